"""Memory that is used again is nobody else's, and is used again."""

import gc
import threading
import time

import numpy as np
import pytest

from nmtool.training.memory import ALIGNED, Memory, aligned

torch = pytest.importorskip("torch")

SHAPE = (4, 1000)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_holds_is_used_again():
    memory = Memory()
    first = memory.empty(SHAPE, np.int32)
    at = address(first)
    other = memory.empty(SHAPE, np.int32)
    assert address(other) != at
    del first
    again = memory.empty((2, 2000), np.float32)
    assert (address(again), again.shape, again.dtype) == (at, (2, 2000), np.float32)


def test_views_and_tensors_hold_memory():
    import torch

    for held in (
        lambda array: array[1:, ::2].T,
        lambda array: array.view(np.float32).reshape(-1)[5:],
        lambda array: torch.from_numpy(array).permute(1, 0)[3:],
    ):
        memory = Memory()
        array = memory.empty(SHAPE, np.int32)
        at, kept = address(array), held(array)
        del array
        gc.collect()
        other = memory.empty(SHAPE, np.int32)
        assert address(other) != at
        del kept
        assert address(memory.empty(SHAPE, np.int32)) == at


def test_there_are_no_more_blocks_than_arrays_that_were_held_at_once():
    memory = Memory()
    for size in (10, 1000, 30, 5000, 7, 2000):
        one, two = (memory.empty((size,), np.int8) for _ in range(2))
        assert one.size == two.size == size
        del one, two
    assert [len(block) for block in memory._free] == [5000 + ALIGNED] * 2


def test_an_array_of_no_size_takes_no_block():
    memory = Memory()
    kept = address(memory.empty(SHAPE, np.int32))
    empty = memory.empty((3, 0, 5), np.int32)
    assert empty.shape == (3, 0, 5)
    assert address(memory.empty(SHAPE, np.int32)) == kept


@pytest.mark.parametrize("flush", [True, False])
def test_every_thread_flushes_subnormal_numbers_as_the_caller_does(flush):
    from nmtool.training.parts import flushes_subnormals, in_parts

    def part(first, last):
        time.sleep(0.01)  # so that threads take some of them
        return threading.get_ident(), flushes_subnormals()

    for state in (not flush, flush):
        torch.set_flush_denormal(state)
        try:
            found = in_parts(4, part)
        finally:
            torch.set_flush_denormal(False)
        assert {flushes for _, flushes in found} == {state}
    assert len({thread for thread, _ in found}) > 1


def test_arrays_begin_at_a_line_of_the_cache():
    memory = Memory()
    held = [memory.empty((n,), np.float32) for n in (1, 5, 77)] + [aligned((3, 7), np.int32)]
    assert all(array.ctypes.data % ALIGNED == 0 for array in held)
