"""The spikes of a batch as events: which neurons spike at a step, at which steps a neuron does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.training import kernels
from nmtool.training.parts import in_parts

Array: TypeAlias = npt.NDArray[Any]

GUESS = 8
"""Rasters are taken to hold fewer spikes than their size by this; if not, they are read again."""


@dataclass(frozen=True, eq=False)
class Events:
    """The spikes of a batch.

    ``neuron[at_step[b, t]:at_step[b, t + 1]]`` of ``size`` neurons spike at step t of sample b.
    """

    neuron: Array
    at_step: Array
    size: int
    turned: tuple[Array, Array] | None = None

    @classmethod
    def of_rows(cls, raster: Array) -> Events:
        """The spikes of a raster (samples, neurons, steps)."""
        step, at_neuron = _listed(raster)
        neuron, at_step = _turned(step, at_neuron, raster.shape[2])
        return cls(neuron, at_step, raster.shape[1], (step, at_neuron))

    @classmethod
    def of_steps(cls, raster: Array) -> Events:
        """The spikes of a raster (samples, steps, neurons)."""
        return cls(*_listed(raster), raster.shape[2])

    @cached_property
    def by_neuron(self) -> tuple[Array, Array]:
        """``(step, at)``: neuron n spikes at the steps ``step[at[b, n]:at[b, n + 1]]``."""
        return self.turned or _turned(self.neuron, self.at_step, self.size)

    @property
    def most(self) -> int:
        """The most spikes of one step."""
        return int(np.diff(self.at_step, axis=1).max(initial=0))

    def through(self, relay: Relay) -> Events:
        """The events of the places that a relay takes them to, as often as there are ways."""
        if relay.one_to_one:
            return Events(relay.place[self.neuron], self.at_step, relay.size)
        count = np.diff(relay.begin)[self.neuron]
        to = np.concatenate([[0], np.cumsum(count)])
        place = np.empty(to[-1], dtype=np.int32)
        in_parts(
            len(self.neuron),
            lambda first, last: kernels.relay(
                first, last, self.neuron, relay.begin, relay.place, to, place
            ),
        )
        return Events(place, to[self.at_step], relay.size)


@dataclass(frozen=True, eq=False)
class Relay:
    """Where the spikes of sources go before they meet weights: pooling windows, another order.

    Source i reaches ``place[begin[i]:begin[i + 1]]`` of ``size`` places.
    """

    begin: Array
    place: Array
    size: int

    @cached_property
    def one_to_one(self) -> bool:
        """Whether every source reaches one place."""
        return bool(np.all(np.diff(self.begin) == 1))


def merged(parts: Sequence[tuple[Events, int]]) -> Events:
    """Several sources as one, the events of each so many steps later."""
    samples, steps = parts[0][0].at_step.shape
    count = np.zeros((samples, steps - 1), dtype=np.int64)
    for events, delay in parts:
        kept = max(steps - 1 - delay, 0)
        count[:, steps - 1 - kept :] += np.diff(events.at_step, axis=1)[:, :kept]
    ends = np.cumsum(count).reshape(count.shape)
    at_step = np.empty((samples, steps), dtype=np.int64)
    at_step[:, 1:] = ends
    at_step[:, 0] = np.concatenate([[0], ends[:-1, -1]]) if samples else 0
    neuron = np.empty(int(count.sum()), dtype=np.int32)
    at, offset = at_step.copy(), 0
    for events, delay in parts:
        _merge(events, delay, offset, at, neuron)
        offset += events.size
    return Events(neuron, at_step, offset)


def _merge(events: Events, delay: int, offset: int, at: Array, neuron: Array) -> None:
    in_parts(
        len(at),
        lambda first, last: kernels.merge(
            first, last, events.neuron, events.at_step, delay, offset, at, neuron
        ),
    )


def _listed(raster: Array) -> tuple[Array, Array]:
    """Places on the last axis of all that is not 0, and where those of each row begin."""
    samples, rows, places = raster.shape
    bits = np.ascontiguousarray(raster).view(f"i{raster.dtype.itemsize}")
    bits = bits.reshape(samples * rows, places)
    start = np.zeros(samples * rows + 1, dtype=np.int64)

    def part(first: int, last: int) -> tuple[int, int, Array]:
        inner = np.empty((last - first) * places // GUESS + places, dtype=np.int32)
        found = kernels.list_events(first, last, bits, inner, start)
        if found + places > inner.size:
            inner = np.empty(found + places, dtype=np.int32)
            kernels.list_events(first, last, bits, inner, start)
        return first, last, inner[:found]

    listed = in_parts(samples * rows, part)
    for first, last, inner in listed:
        start[first:last] += start[-1]
        start[-1] += inner.size
    begins = np.empty((samples, rows + 1), dtype=np.int64)
    begins[:, :-1] = start[:-1].reshape(samples, rows)
    begins[:, -1] = start[rows::rows] if rows else 0
    found = [inner for _, _, inner in listed]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int32), begins


def _turned(inner: Array, begins: Array, places: int) -> tuple[Array, Array]:
    """Events by row turned into events by place."""
    turned = np.zeros((len(begins), places + 1), dtype=np.int64)
    index = np.empty_like(inner)
    in_parts(
        len(begins), lambda first, last: kernels.turn(first, last, inner, begins, index, turned)
    )
    return index, turned
