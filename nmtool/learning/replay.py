"""What every population did in a batch, a few steps at a time: memory does not grow with steps.

Presynaptic spikes are the measured ones, and a population is reset where it was *measured* to
spike, whatever the model would have done; where nothing is known, the model's spikes take their
place. The arithmetic is the chip's, on the integers that are on the target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.fixedpoint import BoolArray, IntArray, current_step, fires, voltage_step
from nmtool.learning.chain import apply_chain
from nmtool.learning.twin import Twin
from nmtool.quantization import QuantizedPopulation
from nmtool.training.injection import Measured
from nmtool.training.model import Stage, Synapses

Array: TypeAlias = npt.NDArray[Any]

STEPS = 32
"""The most steps at a time."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some steps of a batch; shapes (steps, samples, neurons).

    Attributes:
        steps: which of the sample's.
        spikes: of every population, measured or else the model's.
        voltage: before the reset, of the populations that were asked for at least.
        arriving: by projection, the spikes of its source that arrive in these steps.
    """

    steps: slice
    spikes: dict[str, BoolArray]
    voltage: dict[str, IntArray]
    arriving: dict[str, BoolArray]


def replay(
    twin: Twin,
    inputs: BoolArray,
    measured: Mapping[str, Measured],
    voltage_of: Collection[str] = (),
) -> Iterator[Chunk]:
    """A batch from its first step to its last, ``inputs`` of shape (samples, lines, steps).

    The voltage of a population that was measured whole is computed only where it is asked for.
    """
    samples, _, steps = inputs.shape
    run = _Run.begin(twin, samples, measured, voltage_of)
    for first in range(0, steps, run.length):
        yield run.advance(slice(first, min(first + run.length, steps)), inputs)


def is_whole(measured: Measured | None) -> bool:
    """Whether a population was measured at every step."""
    return measured is not None and bool(np.all(measured.known))


@dataclass
class _Axon:
    """The spikes on their way along a projection, in the order in which they arrive."""

    way: BoolArray

    @classmethod
    def empty(cls, delay: int, samples: int, sources: int) -> _Axon:
        return cls(np.zeros((delay, samples, sources), dtype=np.bool_))

    def send(self, spikes: BoolArray) -> None:
        self.way = np.concatenate([self.way, spikes])

    def arrive(self, steps: int) -> BoolArray:
        arriving, self.way = self.way[:steps], self.way[steps:]
        return arriving


@dataclass
class _Membrane:
    """Current and voltage of a population, shape (samples, neurons)."""

    population: QuantizedPopulation
    u: IntArray
    v: IntArray

    @classmethod
    def at_rest(cls, population: QuantizedPopulation, samples: int) -> _Membrane:
        u, v = np.zeros((2, samples, population.size), dtype=np.int64)
        return cls(population, u, v)

    def advance(self, drive: IntArray, seen: Measured | None) -> tuple[IntArray, BoolArray]:
        """Voltage before the reset, and spikes: those that were seen, else the model's."""
        of, before = self.population, np.empty_like(drive)
        spikes = np.zeros(drive.shape, np.bool_) if seen is None else _by_step(seen.spikes)
        known = None if seen is None else _by_step(np.broadcast_to(seen.known, seen.spikes.shape))
        whole = is_whole(seen)
        for t, arriving in enumerate(drive):
            self.u = current_step(self.u, arriving, of.decay_u)
            before[t] = voltage_step(self.v, self.u, of.bias, of.decay_v)
            if not whole:
                own = fires(before[t], of.threshold)
                spikes[t] = own if known is None else np.where(known[t], spikes[t], own)
            self.v = np.where(spikes[t], 0, before[t])
        if seen is not None:
            seen.put_voltage(np.moveaxis(before, 0, 1))
        return before, spikes


@dataclass
class _Run:
    """What a replay carries from step to step, and how many it takes at a time."""

    twin: Twin
    measured: Mapping[str, Measured]
    axons: dict[str, _Axon]
    membranes: dict[str, _Membrane]
    weights: dict[str, torch.Tensor]
    length: int

    @classmethod
    def begin(
        cls,
        twin: Twin,
        samples: int,
        measured: Mapping[str, Measured],
        voltage_of: Collection[str],
    ) -> _Run:
        net, stages = twin.network, twin.model.stages
        whole = {name for name in net.populations if is_whole(measured.get(name))}
        synapses = twin.synapses
        axons = {s.name: _Axon.empty(s.delay, samples, net.sizes[s.source]) for s in synapses}
        membranes = {
            name: _Membrane.at_rest(population, samples)
            for name, population in net.populations.items()
            if name not in whole or name in voltage_of
        }
        weights = {
            s.name: torch.from_numpy(net.projections[s.name].weight.astype(np.float64))
            for s in synapses
            if s.target in membranes
        }
        # What the model sends within a loop must not be due in the steps that are being computed.
        due = [s.delay for stage in stages for s in stage.within if s.source not in whole]
        return cls(twin, measured, axons, membranes, weights, min([STEPS, *due]))

    def advance(self, part: slice, inputs: BoolArray) -> Chunk:
        """The next steps."""
        chunk = Chunk(part, {}, {}, {})
        self._send(chunk, self.twin.input, _by_step(inputs[..., part]))
        seen = {name: m.steps(part) for name, m in self.measured.items()}
        for name, m in seen.items():
            if is_whole(self.measured[name]):
                self._send(chunk, name, _by_step(m.spikes))
        for stage in self.twin.model.stages:
            for s in _all(stage):
                chunk.arriving[s.name] = self.axons[s.name].arrive(part.stop - part.start)
            for name in stage.populations:
                if name in self.membranes:
                    self._integrate(chunk, name, stage, seen.get(name))
        return chunk

    def _send(self, chunk: Chunk, source: str, spikes: BoolArray) -> None:
        chunk.spikes[source] = spikes
        for name, projection in self.twin.network.projections.items():
            if projection.source == source:
                self.axons[name].send(spikes)

    def _integrate(self, chunk: Chunk, name: str, stage: Stage, seen: Measured | None) -> None:
        fed = [s for s in _all(stage) if s.target == name]
        drive = sum(self._drive(s, chunk.arriving[s.name]) for s in fed)
        voltage, spikes = self.membranes[name].advance(np.asarray(drive), seen)
        chunk.voltage[name] = voltage
        if name not in chunk.spikes:
            self._send(chunk, name, spikes)

    def _drive(self, s: Synapses, arriving: BoolArray) -> IntArray:
        """What the spikes that arrive add to the current, shape (steps, samples, neurons)."""
        steps, samples, sources = arriving.shape
        rows = torch.from_numpy(arriving.reshape(-1, sources).astype(np.float64))
        operations = self.twin.network.projections[s.name].operations
        drive = apply_chain(operations, rows, s.shape, self.weights[s.name]).numpy()
        return np.asarray(drive.astype(np.int64).reshape(steps, samples, -1))


def _all(stage: Stage) -> tuple[Synapses, ...]:
    return stage.incoming + stage.within


def _by_step(spikes: Array) -> Array:
    """From (samples, neurons, steps) to (steps, samples, neurons)."""
    return np.array(np.moveaxis(spikes, -1, 0), order="C")
