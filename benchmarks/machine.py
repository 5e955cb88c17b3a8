"""How fast this machine adds integers and reads memory, measured with the kernel's own means.

The rates are the best of several short runs: 32-bit operations on data in the first level cache,
and bytes per second read from the second level cache. With several threads all run at once, for two
hardware threads of one core have not twice its rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numba import njit

VECTOR_WORDS = 4096
CACHE_BYTES = 1 << 19


@njit(cache=True, nogil=True)
def _arithmetic(a: Any, rounds: int) -> None:
    """Eight 32-bit operations on every element, as the compiler vectorises them."""
    for _ in range(rounds):
        for i in range(a.size):
            x = a[i]
            y = np.int32(x + np.int32(12345))
            x = np.int32(x ^ np.int32(y >> np.int32(3)))
            y = np.int32(y - np.int32(x & np.int32(4095)))
            x = np.int32(max(x, y) + np.int32(7))
            a[i] = np.int32(x ^ y)


@njit(cache=True, nogil=True)
def _reading(a: Any, rounds: int) -> int:
    total = np.int64(0)
    for _ in range(rounds):
        part = np.int64(0)
        for i in range(a.size):
            part += a[i]
        total ^= part
    return int(total)


def integer_rate(threads: int) -> float:
    """32-bit integer operations per second of so many threads together."""
    rounds = 2000
    words = [np.arange(VECTOR_WORDS, dtype=np.int32) for _ in range(threads)]
    seconds = best(lambda: _together([partial(_arithmetic, w, rounds) for w in words]))
    return 8 * VECTOR_WORDS * threads * rounds / seconds


def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads together read from their caches."""
    rounds = 400
    words = [np.arange(CACHE_BYTES // 8, dtype=np.int64) for _ in range(threads)]
    seconds = best(lambda: _together([partial(_reading, w, rounds) for w in words]))
    return CACHE_BYTES * threads * rounds / seconds


@njit(cache=True, nogil=True, fastmath={"contract"})
def _multiply_add(a: Any, rounds: int) -> None:
    """Eight float32 multiply-adds on every element."""
    half, tenth = np.float32(0.5), np.float32(0.1)
    for _ in range(rounds):
        for i in range(a.size):
            x = a[i]
            for _ in range(8):
                x = x * half + tenth
            a[i] = x


def real_rate(threads: int) -> float:
    """float32 operations per second of so many threads, a multiply-add counted once."""
    rounds = 2000
    words = [np.ones(VECTOR_WORDS, dtype=np.float32) for _ in range(threads)]
    seconds = best(lambda: _together([partial(_multiply_add, w, rounds) for w in words]))
    return 8 * VECTOR_WORDS * threads * rounds / seconds


def product_rate() -> float:
    """float32 multiply-adds per second of a matrix product, in as many threads as numpy has."""
    n = 1024
    a, b = np.ones((n, n), dtype=np.float32), np.ones((n, n), dtype=np.float32)
    return n**3 / best(lambda: a @ b)


def _together(calls: list[Callable[[], object]]) -> None:
    """Run the calls at the same time, a thread each."""
    if len(calls) == 1:
        calls[0]()
        return
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def best(call: Callable[[], object], repeats: int = 15) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
