"""Spike trains and state arrays as small arrays: counts and gaps in place of steps and indices."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from nmtool.fixedpoint import IntArray
from nmtool.formats.container import Array
from nmtool.spikes import SpikeTrain

Arrays: TypeAlias = dict[str, Array]


def put_train(train: SpikeTrain, arrays: Arrays, name: str) -> list[Any]:
    """Store a train: spikes per step, and each neuron's distance from the one before it there.

    Returns its sizes, which belong into the header.
    """
    arrays[f"{name}/count"] = narrow(np.diff(train.offset))
    gap = train.neuron.astype(np.int64)
    gap[1:] -= train.neuron[:-1]
    begins = train.offset[:-1][np.diff(train.offset) > 0]
    gap[begins] = train.neuron[begins]
    arrays[f"{name}/gap"] = narrow(gap)
    if train.payload is not None:
        arrays[f"{name}/payload"] = narrow(train.payload)
    return [train.n_samples, train.n_neurons, train.n_steps, train.batched]


def get_train(sizes: list[Any], arrays: Arrays, name: str) -> SpikeTrain:
    """The train that ``put_train`` stored."""
    n_samples, n_neurons, n_steps, batched = sizes
    count, gap = (arrays[f"{name}/{key}"].astype(np.int64) for key in ("count", "gap"))
    offset = np.concatenate([[0], np.cumsum(count)])
    if gap.ndim != 1 or np.any(count < 0) or offset[-1] != gap.size:
        raise ValueError(f"{name}: found {gap.size} spikes, its steps count {offset[-1]}")
    total = np.cumsum(gap)
    begins = offset[:-1][count > 0]
    neuron = total - np.repeat(total[begins] - gap[begins], count[count > 0])
    payload = arrays.get(f"{name}/payload")
    return SpikeTrain(
        offset,
        neuron.astype(np.int32),
        int(n_samples),
        int(n_neurons),
        int(n_steps),
        None if payload is None else payload.astype(np.int32),
        bool(batched),
    )


def put_states(values: IntArray) -> Array:
    """Values of shape (..., steps) as their changes from step to step."""
    return narrow(np.diff(values, axis=-1, prepend=0))


def get_states(stored: Array) -> IntArray:
    """The values that ``put_states`` stored."""
    return np.asarray(np.cumsum(stored, axis=-1, dtype=np.int64))


def narrow(values: Array) -> Array:
    """The same whole numbers in the smallest type that holds them."""
    if not values.size:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    return values.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
