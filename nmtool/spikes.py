"""Spike trains, their dense rasters, and encoders from numbers to spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmtool.errors import ConfigError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """Every spike of one population as three equally long arrays.

    ``sample``, ``step`` and ``neuron`` (int64) are sorted by sample, then step, then neuron, and no
    spike stands twice. ``payload`` (int64) is there for graded spikes only. ``batched`` tells
    whether the raster has a sample axis: without it the train is one sample.
    """

    sample: IntArray
    step: IntArray
    neuron: IntArray
    n_samples: int
    n_neurons: int
    n_steps: int
    payload: IntArray | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        bounds = (("sample", self.n_samples), ("step", self.n_steps), ("neuron", self.n_neurons))
        for name, bound in bounds:
            index = getattr(self, name)
            if index.ndim != 1 or index.shape != self.sample.shape:
                raise ConfigError(
                    f"SpikeTrain.{name}: found shape {index.shape}, "
                    f"allowed one axis of {self.sample.size}, one entry a spike"
                )
            if index.size and (index.min() < 0 or index.max() >= bound):
                raise ConfigError(
                    f"SpikeTrain.{name}: found {index.min()} to {index.max()}, "
                    f"allowed 0 to {bound - 1}"
                )
        if not self.batched and self.n_samples != 1:
            raise ConfigError(
                f"SpikeTrain: found {self.n_samples} samples without a sample axis, allowed 1"
            )
        place = (self.sample * self.n_steps + self.step) * self.n_neurons + self.neuron
        if np.any(np.diff(place) <= 0):
            raise ConfigError(
                "SpikeTrain: found spikes twice or out of order, allowed each once, sorted by "
                "sample, then step, then neuron"
            )
        if self.payload is not None and self.payload.shape != self.sample.shape:
            raise ConfigError(
                f"SpikeTrain.payload: found shape {self.payload.shape}, "
                f"allowed {self.sample.shape}, one a spike"
            )

    @classmethod
    def from_raster(cls, raster: npt.ArrayLike) -> SpikeTrain:
        """From a dense raster of shape ([samples,] neurons, steps): 0 or 1, column k is step k.

        Raises:
            ConfigError: another number of axes, or a value that is not 0 or 1.
        """
        dense = np.asarray(raster)
        if dense.dtype.kind not in "biuf":
            raise ConfigError(f"spike raster: found values of type {dense.dtype}, allowed 0 and 1")
        if dense.ndim not in (2, 3):
            raise ConfigError(
                f"spike raster: found shape {dense.shape}, "
                "allowed (neurons, steps) or (samples, neurons, steps)"
            )
        if dense.dtype != np.bool_ and not np.all((dense == 0) | (dense == 1)):
            raise ConfigError(
                f"spike raster: found values from {dense.min()} to {dense.max()}, allowed 0 and 1; "
                "raw samples need --encode"
            )
        batch = dense if dense.ndim == 3 else dense[None]
        sample, step, neuron = np.nonzero(batch.transpose(0, 2, 1))
        n_samples, n_neurons, n_steps = batch.shape
        return cls(sample, step, neuron, n_samples, n_neurons, n_steps, batched=dense.ndim == 3)

    def to_raster(self) -> BoolArray:
        """The dense raster, shape ([samples,] neurons, steps)."""
        dense = np.zeros((self.n_samples, self.n_neurons, self.n_steps), dtype=np.bool_)
        dense[self.sample, self.neuron, self.step] = True
        return dense if self.batched else dense[0]

    def counts(self) -> IntArray:
        """Spikes per neuron, shape ([samples,] neurons)."""
        index = self.sample * self.n_neurons + self.neuron
        flat = np.bincount(index, minlength=self.n_samples * self.n_neurons)
        count = flat.reshape(self.n_samples, self.n_neurons).astype(np.int64)
        return count if self.batched else np.asarray(count[0])

    def select(self, samples: Sequence[int] | IntArray) -> SpikeTrain:
        """The given samples, in the given order, as a batch."""
        return SpikeTrain.from_raster(self.batch()[np.asarray(samples, dtype=np.int64)])

    def batch(self) -> BoolArray:
        """The raster with its sample axis, shape (samples, neurons, steps)."""
        raster = self.to_raster()
        return raster if self.batched else raster[None]

    def __len__(self) -> int:
        return int(self.step.shape[0])

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, SpikeTrain):
            return NotImplemented
        return (
            (self.n_samples, self.n_neurons, self.n_steps)
            == (other.n_samples, other.n_neurons, other.n_steps)
            and np.array_equal(self.sample, other.sample)
            and np.array_equal(self.step, other.step)
            and np.array_equal(self.neuron, other.neuron)
            and _same_payload(self.payload, other.payload)
        )


def _same_payload(a: IntArray | None, b: IntArray | None) -> bool:
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
