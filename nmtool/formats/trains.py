"""Spike trains and state arrays as small arrays: counts and gaps in place of steps and indices."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from nmtool.errors import ArtifactError
from nmtool.fixedpoint import IntArray
from nmtool.formats.claims import MAX_STATES, check_train
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
    """The train that ``put_train`` stored.

    Raises:
        ArtifactError: more than a train may claim, or another count of steps.
    """
    n_samples, n_neurons, n_steps, batched = sizes
    check_train(name, n_samples, n_neurons, n_steps, f"{name}/payload" in arrays)
    stored = [arrays[f"{name}/{key}"] for key in ("count", "gap")]
    for key, array in zip(("count", "gap"), stored, strict=True):
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ArtifactError(
                f"{name}/{key}: found {array.ndim} axes of {array.dtype}, allowed 1 axis of whole "
                "numbers"
            )
    count, gap = (array.astype(np.int64) for array in stored)
    if count.size != n_samples * n_steps:
        raise ArtifactError(
            f"{name}: found counts of {count.size} steps, allowed {n_samples} samples x {n_steps} "
            "steps"
        )
    offset = np.concatenate([[0], np.cumsum(count)])
    if np.any((count < 0) | (count > n_neurons)) or offset[-1] != gap.size:
        raise ValueError(f"{name}: found {gap.size} spikes, its steps count {offset[-1]}")
    total = np.cumsum(gap)
    begins = offset[:-1][count > 0]
    neuron = total - np.repeat(total[begins] - gap[begins], count[count > 0])
    if neuron.size and (neuron.min() < 0 or neuron.max() >= n_neurons):
        raise ArtifactError(
            f"{name}: found the neurons {neuron.min()} to {neuron.max()}, allowed 0 to "
            f"{n_neurons - 1}"
        )
    payload = arrays.get(f"{name}/payload")
    if payload is not None and not _is_word(payload):
        raise ArtifactError(f"{name}/payload: found other values, allowed whole numbers of 32 bits")
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
    """The values that ``put_states`` stored.

    Raises:
        ArtifactError: no whole numbers of ([samples,] neurons, steps), or too many.
    """
    if stored.dtype.kind not in "iu" or stored.ndim not in (2, 3) or stored.size > MAX_STATES:
        raise ArtifactError(
            f"found states of {stored.dtype} of shape {stored.shape}, allowed whole numbers of "
            f"shape ([samples,] neurons, steps), up to {MAX_STATES}"
        )
    return np.asarray(np.cumsum(stored, axis=-1, dtype=np.int64))


def _is_word(values: Array) -> bool:
    low, high = -(1 << 31), (1 << 31) - 1
    whole = values.dtype.kind in "iu"
    return whole and (not values.size or (low <= values.min() and values.max() <= high))


def narrow(values: Array) -> Array:
    """The same whole numbers in the smallest type that holds them."""
    if not values.size:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    return values.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
