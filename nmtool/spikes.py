"""Spike trains, their dense rasters, and encoders from numbers to spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.errors import ConfigError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray

IndexArray: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """Every spike of one population, sorted by sample, then step, then neuron; none stands twice.

    ``offset`` (int64, n_samples * n_steps + 1) says where the spikes of each step begin in
    ``neuron`` (int32): those of step t of sample s are ``neuron[offset[k]:offset[k + 1]]`` with
    k = s * n_steps + t. ``payload`` (int32) is there for graded spikes only and never 0.
    ``batched`` tells whether the raster has a sample axis: without it the train is one sample.
    """

    offset: IntArray
    neuron: IndexArray
    n_samples: int
    n_neurons: int
    n_steps: int
    payload: IndexArray | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        if not self.batched and self.n_samples != 1:
            raise ConfigError(
                f"SpikeTrain: found {self.n_samples} samples without a sample axis, allowed 1"
            )
        self._check_offset()
        self._check_neuron()
        if self.payload is not None:
            if self.payload.shape != self.neuron.shape:
                raise ConfigError(
                    f"SpikeTrain.payload: found shape {self.payload.shape}, "
                    f"allowed {self.neuron.shape}, one a spike"
                )
            if not np.all(self.payload):
                raise ConfigError("SpikeTrain.payload: found 0, which is no spike")

    def _check_offset(self) -> None:
        wanted = (self.n_samples * self.n_steps + 1,)
        if self.offset.shape != wanted:
            raise ConfigError(
                f"SpikeTrain.offset: found shape {self.offset.shape}, allowed {wanted}"
            )
        ends = (int(self.offset[0]), int(self.offset[-1]))
        if ends != (0, self.neuron.size) or np.any(self.offset[1:] < self.offset[:-1]):
            raise ConfigError(
                f"SpikeTrain.offset: found {ends[0]} to {ends[1]}, allowed a rise from 0 to the "
                f"{self.neuron.size} spikes"
            )

    def _check_neuron(self) -> None:
        index = self.neuron
        if index.ndim != 1:
            raise ConfigError(f"SpikeTrain.neuron: found {index.ndim} axes, allowed 1")
        if index.size and (index.min() < 0 or index.max() >= self.n_neurons):
            raise ConfigError(
                f"SpikeTrain.neuron: found {index.min()} to {index.max()}, "
                f"allowed 0 to {self.n_neurons - 1}"
            )
        rises = index[1:] > index[:-1]
        begins = self.offset[(self.offset > 0) & (self.offset < index.size)]
        rises[begins - 1] = True
        if not rises.all():
            raise ConfigError(
                "SpikeTrain: found spikes twice or out of order, allowed each once, sorted by "
                "sample, then step, then neuron"
            )

    @classmethod
    def from_events(
        cls,
        sample: npt.ArrayLike,
        step: npt.ArrayLike,
        neuron: npt.ArrayLike,
        n_samples: int,
        n_neurons: int,
        n_steps: int,
        payload: npt.ArrayLike | None = None,
        batched: bool = True,
    ) -> SpikeTrain:
        """From sample, step and neuron of every spike, sorted in this order.

        Raises:
            ConfigError: arrays of different lengths, an index out of range or out of order.
        """
        axes = {"sample": np.asarray(sample), "step": np.asarray(step)}
        index = np.asarray(neuron)
        for (name, axis), bound in zip(axes.items(), (n_samples, n_steps), strict=True):
            if axis.ndim != 1 or axis.shape != index.shape:
                raise ConfigError(
                    f"SpikeTrain.{name}: found shape {axis.shape}, "
                    f"allowed one axis of {index.size}, one entry a spike"
                )
            if axis.size and (axis.min() < 0 or axis.max() >= bound):
                raise ConfigError(
                    f"SpikeTrain.{name}: found {axis.min()} to {axis.max()}, "
                    f"allowed 0 to {bound - 1}"
                )
        place = axes["sample"].astype(np.int64) * n_steps + axes["step"]
        if np.any(place[1:] < place[:-1]):
            raise ConfigError(
                "SpikeTrain: found spikes twice or out of order, allowed each once, sorted by "
                "sample, then step, then neuron"
            )
        offset = np.zeros(n_samples * n_steps + 1, dtype=np.int64)
        np.cumsum(np.bincount(place, minlength=n_samples * n_steps), out=offset[1:])
        values = None if payload is None else np.asarray(payload, dtype=np.int32)
        return cls(offset, index.astype(np.int32), n_samples, n_neurons, n_steps, values, batched)

    @classmethod
    def from_raster(cls, raster: npt.ArrayLike, graded: bool = False) -> SpikeTrain:
        """From a dense raster of shape ([samples,] neurons, steps): column k is step k.

        Values are 0 or 1, or whole numbers that become payloads if ``graded``.

        Raises:
            ConfigError: another number of axes, or another value.
        """
        dense = np.asarray(raster)
        if dense.dtype.kind not in "biuf":
            raise ConfigError(f"spike raster: found values of type {dense.dtype}, allowed 0 and 1")
        if dense.ndim not in (2, 3):
            raise ConfigError(
                f"spike raster: found shape {dense.shape}, "
                "allowed (neurons, steps) or (samples, neurons, steps)"
            )
        _check_values(dense, graded)
        batch = dense if dense.ndim == 3 else dense[None]
        by_step = batch.transpose(0, 2, 1)
        sample, step, neuron = np.nonzero(by_step)
        n_samples, n_neurons, n_steps = batch.shape
        offset = np.zeros(n_samples * n_steps + 1, dtype=np.int64)
        np.cumsum(np.count_nonzero(by_step, axis=2).ravel(), out=offset[1:])
        payload = by_step[sample, step, neuron].astype(np.int32) if graded else None
        sizes = (n_samples, n_neurons, n_steps)
        return cls(offset, neuron.astype(np.int32), *sizes, payload, dense.ndim == 3)

    @cached_property
    def _place(self) -> IntArray:
        return np.repeat(np.arange(self.offset.size - 1), np.diff(self.offset))

    @cached_property
    def sample(self) -> IntArray:
        """The sample of every spike."""
        return self._place // max(self.n_steps, 1)

    @cached_property
    def step(self) -> IntArray:
        """The step of every spike."""
        return self._place % max(self.n_steps, 1)

    def to_raster(self) -> npt.NDArray[Any]:
        """The dense raster, shape ([samples,] neurons, steps): bool, int64 for graded spikes."""
        kind = np.bool_ if self.payload is None else np.int64
        shape = (self.n_samples, self.n_neurons, self.n_steps)
        dense: npt.NDArray[Any] = np.zeros(shape, dtype=kind)
        value = True if self.payload is None else self.payload
        dense[self.sample, self.neuron, self.step] = value
        return dense if self.batched else dense[0]

    def counts(self) -> IntArray:
        """Spikes per neuron, shape ([samples,] neurons)."""
        index = self.sample * self.n_neurons + self.neuron
        flat = np.bincount(index, minlength=self.n_samples * self.n_neurons)
        count = flat.reshape(self.n_samples, self.n_neurons).astype(np.int64)
        return count if self.batched else np.asarray(count[0])

    def select(self, samples: Sequence[int] | IntArray) -> SpikeTrain:
        """The given samples, in the given order, as a batch."""
        chosen = np.arange(self.n_samples)[np.asarray(samples, dtype=np.int64)]
        begin = self.offset[chosen * self.n_steps]
        length = self.offset[(chosen + 1) * self.n_steps] - begin
        moved = begin - np.cumsum(length) + length
        index = np.repeat(moved, length) + np.arange(length.sum())
        counts = np.diff(self.offset).reshape(self.n_samples, self.n_steps)[chosen]
        offset = np.concatenate([[0], np.cumsum(counts)])
        payload = None if self.payload is None else self.payload[index]
        sizes = (len(chosen), self.n_neurons, self.n_steps)
        return SpikeTrain(offset, self.neuron[index], *sizes, payload)

    def with_steps(self, n_steps: int) -> SpikeTrain:
        """The same spikes in samples of another length.

        Raises:
            ConfigError: a spike lies after the new end.
        """
        if n_steps == self.n_steps:
            return self
        return SpikeTrain.from_events(
            self.sample,
            self.step,
            self.neuron,
            self.n_samples,
            self.n_neurons,
            n_steps,
            self.payload,
            self.batched,
        )

    def first_steps(self, n_steps: int) -> SpikeTrain:
        """The first steps of every sample; all of them if there are not more."""
        if n_steps >= self.n_steps:
            return self
        keep = self.step < n_steps
        return SpikeTrain.from_events(
            self.sample[keep],
            self.step[keep],
            self.neuron[keep],
            self.n_samples,
            self.n_neurons,
            n_steps,
            None if self.payload is None else self.payload[keep],
            self.batched,
        )

    def relabelled(self, neuron: IntArray) -> SpikeTrain:
        """The same spikes of other neurons: those of neuron i become those of ``neuron[i]``."""
        index = neuron[self.neuron]
        order = np.lexsort((index, self._place))
        payload = None if self.payload is None else self.payload[order]
        return replace(self, neuron=index[order].astype(np.int32), payload=payload)

    def batch(self) -> npt.NDArray[Any]:
        """The raster with its sample axis, shape (samples, neurons, steps)."""
        raster = self.to_raster()
        return raster if self.batched else raster[None]

    def __repr__(self) -> str:
        what = "spikes" if self.payload is None else "graded spikes"
        samples = f"samples {self.n_samples}, " if self.batched else ""
        sizes = f"{samples}neurons {self.n_neurons}, steps {self.n_steps}"
        return f"SpikeTrain({sizes}, {what} {len(self)})"

    def __len__(self) -> int:
        return int(self.neuron.shape[0])

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, SpikeTrain):
            return NotImplemented
        return (
            (self.n_samples, self.n_neurons, self.n_steps)
            == (other.n_samples, other.n_neurons, other.n_steps)
            and np.array_equal(self.offset, other.offset)
            and np.array_equal(self.neuron, other.neuron)
            and _same_payload(self.payload, other.payload)
        )


def _check_values(dense: npt.NDArray[Any], graded: bool) -> None:
    if dense.dtype == np.bool_:
        return
    if graded:
        whole = dense == np.rint(dense)
        limits = np.iinfo(np.int32)
        wrong = ~whole | (dense < limits.min) | (dense > limits.max)
        if np.any(wrong):
            raise ConfigError(
                f"graded raster: found {dense[wrong][0]}, allowed whole numbers of 32 bits"
            )
    elif not np.all((dense == 0) | (dense == 1)):
        raise ConfigError(
            f"spike raster: found values from {dense.min()} to {dense.max()}, allowed 0 and 1; "
            "raw samples need --encode"
        )


def _same_payload(a: IndexArray | None, b: IndexArray | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)


def rate_regular(intensity: FloatArray, steps: int, max_rate: float) -> BoolArray:
    """Evenly spaced spikes: one at step t iff ``floor((t+1) r) > floor(t r)``, r = rate.

    ``intensity`` in [0, 1] of shape (samples, neurons) gives rates r = max_rate * intensity in
    spikes per step; the raster has shape (samples, neurons, steps).
    """
    rate = np.asarray(intensity, dtype=np.float64)[..., None] * max_rate
    edge = np.floor(rate * np.arange(steps + 1) + 1e-9)
    return np.asarray(np.diff(edge, axis=-1) > 0)


def rate_random(intensity: FloatArray, steps: int, max_rate: float, seed: int) -> BoolArray:
    """A spike at every step with probability ``max_rate * intensity``.

    The draw belongs to (seed, position of the sample), so a batch gives the same spikes as its
    samples one by one only when they keep their positions.
    """
    rate = np.asarray(intensity, dtype=np.float64)[..., None] * max_rate
    draws = [
        np.random.default_rng([seed, index]).random((rate.shape[1], steps))
        for index in range(rate.shape[0])
    ]
    return np.asarray(np.array(draws).reshape(*rate.shape[:2], steps) < rate)


def latency(intensity: FloatArray, steps: int) -> BoolArray:
    """One spike per neuron, at step ``round((1 - intensity) * (steps - 1))``; none for 0."""
    intensity = np.asarray(intensity, dtype=np.float64)
    first = np.rint((1 - intensity) * (steps - 1)).astype(np.int64)
    at_step = np.arange(steps) == first[..., None]
    return np.asarray(at_step & (intensity[..., None] > 0))
