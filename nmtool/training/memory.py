"""Memory of large arrays that every step of training needs again."""

from __future__ import annotations

import weakref
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


ALIGNED = 64
"""Bytes: a line of the cache, and the widest vector."""


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array that may hold anything and begins at a multiple of ``ALIGNED`` bytes."""
    size = prod(shape) * np.dtype(dtype).itemsize
    return _placed(np.empty(size + ALIGNED, np.uint8), shape, dtype)


def _placed(block: Any, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    begin = -np.frombuffer(block, np.uint8).ctypes.data % ALIGNED
    return np.ndarray(shape, dtype, buffer=block, offset=begin)


class Memory:
    """Arrays whose memory is used again once nobody holds them or a view of them.

    Else the C library gives large arrays back to the system, which hands out their pages one by one
    when they are touched again, at every step. There are never more blocks than arrays that were
    held at once. All begin at a multiple of ``ALIGNED`` bytes: matrix products may round another
    way where they do not, and results would depend on where memory happened to be.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def copy(self, array: Array) -> Array:
        """An array of its own, in C order."""
        found = self.empty(array.shape, array.dtype)
        found[...] = array
        return found

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array that may hold anything."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        block = self._block(size + ALIGNED)
        # Views of an array refer to the array that owns the memory; a bytearray does not count.
        found = _placed(block, shape, dtype)
        weakref.finalize(found, self._free.append, block).atexit = False
        return found

    def _block(self, size: int) -> bytearray:
        """The smallest free block that is large enough; a new one in place of one too small."""
        fits = [k for k, block in enumerate(self._free) if len(block) >= size]
        if fits:
            return self._free.pop(min(fits, key=lambda k: len(self._free[k])))
        if self._free:
            self._free.pop()
        return bytearray(size)
