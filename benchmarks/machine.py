"""How fast this machine adds integers and reads memory, measured with the kernel's own means.

The rates are the best of several short runs on one core: 32-bit additions on data in the first
level cache, and bytes per second read from the first and second level caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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


def integer_rate() -> float:
    """32-bit integer operations per second of one core."""
    words = np.arange(VECTOR_WORDS, dtype=np.int32)
    rounds = 2000
    return 8 * words.size * rounds / best(lambda: _arithmetic(words, rounds))


def bandwidth() -> float:
    """Bytes per second that one core reads from its caches."""
    words = np.arange(CACHE_BYTES // 8, dtype=np.int64)
    rounds = 200
    return words.nbytes * rounds / best(lambda: _reading(words, rounds))


def best(call: Callable[[], object], repeats: int = 15) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
