"""Memory of large arrays that every step of training needs again."""

from __future__ import annotations

import weakref
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


class Memory:
    """Arrays whose memory is used again once nobody holds them or a view of them.

    Else the C library gives large arrays back to the system, which hands out their pages one by one
    when they are touched again, at every step. There are never more blocks than arrays that were
    held at once.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array that may hold anything."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        block = self._block(size)
        # Views of an array refer to the array that owns the memory; a bytearray does not count.
        found: Array = np.ndarray(shape, dtype, buffer=block)
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
