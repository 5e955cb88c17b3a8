"""Work in parts that threads share, whose results do not depend on how many threads there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

PARTS = 4
"""Work is cut into so many parts at most; no sum is cut."""

SMALLEST = np.finfo(np.float32).smallest_normal


def in_parts(count: int, work: Callable[[int, int], Any], least: int = 1) -> list[Any]:
    """What ``work(first, last)`` gives for every part of so many things, in their order.

    The caller works too: it takes the parts from the end that no thread has begun. A part has
    ``least`` things or more, for few are done sooner than a thread has begun. Every thread takes
    subnormal numbers for 0 if the caller does.
    """
    n = min(PARTS, count, max(1, count // least))
    parts = list(pairwise(count * k // n for k in range(n + 1))) if n else []
    if len(parts) < 2:
        return [work(*part) for part in parts]
    pool = _pool()
    flush = flushes_subnormals()

    def elsewhere(first: int, last: int) -> Any:
        torch.set_flush_denormal(flush)
        return work(first, last)

    waiting = [pool.submit(elsewhere, *part) for part in parts[:-1]]
    found = [work(*parts[-1])]
    for part, future in zip(reversed(parts[:-1]), reversed(waiting), strict=True):
        found.append(work(*part) if future.cancel() else future.result())
    return found[::-1]


def flushes_subnormals() -> bool:
    """Whether this thread takes numbers below the normal float32 for 0."""
    return bool(SMALLEST * np.float32(0.5) == 0)


@cache
def _pool() -> ThreadPoolExecutor:
    threads = max(1, min(PARTS, len(os.sched_getaffinity(0))) - 1)
    return ThreadPoolExecutor(threads, "nmtool-training")
