"""Work in parts that threads share, whose results do not depend on how many threads there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
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

    The caller works too: whoever is free takes the next part. A part has ``least`` things or more,
    for few are done sooner than a thread has begun. Every thread takes subnormal numbers for 0 if
    the caller does, and lets torch's own threads rest.
    """
    n = min(PARTS, count, max(1, count // least))
    parts = list(pairwise(count * k // n for k in range(n + 1))) if n else []
    if len(parts) < 2:
        return [work(*part) for part in parts]
    found = list[Any]([None] * n)
    left = iter(range(n))  # next() of it is atomic
    flush = flushes_subnormals()

    def take() -> None:
        for k in left:
            found[k] = work(*parts[k])

    def elsewhere() -> None:
        torch.set_flush_denormal(flush)
        take()

    helping = [_pool().submit(elsewhere) for _ in range(min(_others(), n - 1))]
    try:
        take()
    finally:
        running = [future for future in helping if not future.cancel()]
        wait(running)
    for future in running:
        future.result()
    return found


def flushes_subnormals() -> bool:
    """Whether this thread takes numbers below the normal float32 for 0."""
    return bool(SMALLEST * np.float32(0.5) == 0)


def _others() -> int:
    """How many threads work beside the caller."""
    return max(1, min(PARTS, len(os.sched_getaffinity(0))) - 1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_others(), "nmtool-training", _alone)


def _alone() -> None:
    """Have this thread make matrix products by itself: others would wait for work in vain."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes the number of the process when it first asks
