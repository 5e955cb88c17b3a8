"""The equations of one population, fed with what was measured of its sources.

With the measured spikes of its sources a population depends on nothing else: where it does not do
what its equations say, the fault is in it or in its synapses, also in a recurrent network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmtool.backends import Recording
from nmtool.compiler import Program
from nmtool.fixedpoint import (
    CURRENT_DECAY_OFFSET,
    BoolArray,
    IntArray,
    decay,
    fires,
    saturate,
    scaled,
    shift,
    wrap,
)
from nmtool.operations import Connections, apply_chain, chain_connections, with_weight
from nmtool.quantization import QuantizedPopulation
from nmtool.spikes import SpikeTrain

Messages = Mapping[str, IntArray]
"""What every input and measured population sent, shape (samples, steps, neurons)."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Spikes, u and v of neurons, shape (samples, steps, neurons); None where not measured."""

    spikes: BoolArray
    u: IntArray | None
    v: IntArray | None

    def select(self, neurons: Any) -> Trace:
        """The given neurons only."""
        return Trace(
            self.spikes[..., neurons],
            None if self.u is None else self.u[..., neurons],
            None if self.v is None else self.v[..., neurons],
        )

    def of_samples(self, samples: Any) -> Trace:
        """The given samples only."""
        return Trace(
            self.spikes[samples],
            None if self.u is None else self.u[samples],
            None if self.v is None else self.v[samples],
        )

    def differs(self, other: Trace, masked: bool, lossy: bool = False) -> BoolArray:
        """Where two traces part, shape (samples, steps, neurons), in what both have.

        ``masked`` leaves out voltages where either has a spike: a chip shows something else there.
        With ``lossy`` the other may lack spikes: they were lost on their way out.
        """
        apart = other.spikes & ~self.spikes if lossy else self.spikes != other.spikes
        if self.u is not None and other.u is not None:
            apart = apart | (self.u != other.u)
        if self.v is not None and other.v is not None:
            hidden = (self.spikes | other.spikes) & masked
            apart = apart | ((self.v != other.v) & ~hidden)
        return np.asarray(apart)


def messages(
    inputs: Mapping[str, SpikeTrain], run: Recording, samples: IntArray
) -> dict[str, IntArray]:
    """What entered and what was measured of every population, of the given samples."""

    def dense(train: SpikeTrain) -> IntArray:
        return np.ascontiguousarray(train.batch()[samples].transpose(0, 2, 1), dtype=np.int64)

    entered = {name: dense(train.with_steps(run.n_steps)) for name, train in inputs.items()}
    return entered | {name: dense(train) for name, train in run.spikes.items()}


def measured(run: Recording, name: str, samples: IntArray) -> Trace:
    """What a run has of a population, of the given samples."""

    def state(values: IntArray | None) -> IntArray | None:
        if values is None:
            return None
        batch = values if values.ndim == 3 else values[None]
        return np.asarray(batch[samples].transpose(0, 2, 1))

    spikes = run.spikes[name].batch()[samples].transpose(0, 2, 1).astype(np.bool_)
    return Trace(spikes, state(run.current.get(name)), state(run.voltage.get(name)))


def arriving(
    program: Program, projection: str, sent: Messages, mantissa: IntArray | None = None
) -> IntArray:
    """The weighted sums that a projection delivers at every step, shape (samples, steps, neurons).

    ``mantissa`` takes the place of its weights.
    """
    net = program.network
    p = net.projections[projection]
    weight = shift(p.weight_mantissa if mantissa is None else mantissa, p.format.exponent)
    source = sent[p.source]
    samples, steps, _ = source.shape
    delay = np.broadcast_to(p.delay, weight.shape)
    axonal = np.broadcast_to(net.axonal_delay(p.source), source.shape[2:])
    total = np.zeros((samples, steps, net.sizes[p.target]), dtype=np.int64)
    for d in np.unique(delay):
        operations = with_weight(p.operations, np.where(delay == d, weight, 0))
        for a in np.unique(axonal):
            late = 1 + int(d) + int(a)
            spikes = np.where(axonal == a, source, 0)[:, : max(steps - late, 0)]
            flat = spikes.reshape(-1, source.shape[2])
            sums = apply_chain(operations, flat, net.shapes[p.source]).astype(np.int64)
            total[:, late:] += sums.reshape(samples, -1, total.shape[2])
    return total


def all_arriving(program: Program, name: str, sent: Messages) -> IntArray:
    """What arrives at a population through all projections, and from graded inputs driving it."""
    net = program.network
    any_source = next(iter(sent.values()))
    total = np.zeros((*any_source.shape[:2], net.sizes[name]), dtype=np.int64)
    for key, projection in net.projections.items():
        if projection.target == name:
            total += arriving(program, key, sent)
    for key, source in net.inputs.items():
        if source.drives == name and source.kind == "graded":
            total += sent[key]
    return total


def biases(program: Program, name: str, sent: Messages) -> IntArray:
    """What is added to every voltage, shape (samples or 1, steps or 1, neurons)."""
    population = program.network.populations[name]
    total = population.bias[None, None]
    for key, source in program.network.inputs.items():
        if source.drives == name and source.kind == "bias":
            total = total + shift(sent[key], population.bias_exponent)
    return total


@dataclass(frozen=True, eq=False)
class Synapses:
    """The synapses of a projection into one neuron: source, weight index, steps to arrival."""

    source: IntArray
    index: IntArray
    steps: IntArray

    def contribution(self, weights: IntArray, sent: IntArray) -> IntArray:
        """What each of some weights would add if it were 1, shape (samples, steps, weights)."""
        total = np.zeros((*sent.shape[:2], weights.size), dtype=np.int64)
        for column, weight in enumerate(weights):
            for way in np.flatnonzero(self.index == weight):
                late = int(self.steps[way])
                arriving = sent[:, : max(sent.shape[1] - late, 0), self.source[way]]
                total[:, late:, column] += arriving
        return total


def connections_of(program: Program, projection: str) -> Connections:
    """Every way through a projection from a neuron of its source to one of its target."""
    p = program.network.projections[projection]
    return chain_connections(p.operations, program.network.shapes[p.source])


def synapses_into(
    program: Program, projection: str, neuron: int, ways: Connections | None = None
) -> Synapses:
    """The synapses of a projection into one neuron; ``ways`` are those of the projection."""
    net = program.network
    p = net.projections[projection]
    ways = ways or connections_of(program, projection)
    here = ways.target == neuron
    source, index = ways.source[here], ways.index[here]
    delay = np.broadcast_to(p.delay, p.weight_mantissa.shape).ravel()[index]
    axonal = np.broadcast_to(net.axonal_delay(p.source), (net.sizes[p.source],))[source]
    return Synapses(source, index, 1 + delay + axonal)


@dataclass(frozen=True, eq=False)
class Registers:
    """Registers in place of a population's own: one value, or one for each neuron."""

    decay_u: int | IntArray
    decay_v: int | IntArray
    threshold: int | IntArray

    @classmethod
    def of(cls, population: QuantizedPopulation) -> Registers:
        """Those of a population."""
        return cls(population.decay_u, population.decay_v, population.threshold)


def replay(
    population: QuantizedPopulation,
    arrived: IntArray,
    bias: IntArray,
    registers: Registers | None = None,
    silent: bool = False,
    measured: BoolArray | None = None,
) -> Trace:
    """What CUBA neurons do with what arrives, each sample from reset.

    Arrays have the shape (samples, steps, neurons), ``bias`` one that broadcasts to it. With
    ``silent`` no neuron spikes, whatever its voltage. Where it was ``measured`` to spike a neuron
    is reset beside its own spikes, so that one wrong spike does not make others wrong.
    """
    r = registers or Registers.of(population)
    samples, steps, neurons = arrived.shape
    bias = np.broadcast_to(bias, arrived.shape)
    u, v, paused = (np.zeros((samples, neurons), dtype=np.int64) for _ in range(3))
    spikes = np.zeros(arrived.shape, dtype=np.bool_)
    us, vs = np.zeros_like(arrived), np.zeros_like(arrived)
    keep_u = np.asarray(r.decay_u) + CURRENT_DECAY_OFFSET
    reset = population.reset
    for t in range(steps):
        if reset and t % reset.interval == reset.offset % reset.interval:
            u, v, paused = np.zeros_like(u), np.zeros_like(v), np.zeros_like(paused)
        u = wrap(decay(u, keep_u) + scaled(arrived[:, t]))
        v = saturate(decay(v, r.decay_v) + u + bias[:, t])
        v = np.where(paused > 0, 0, v)
        fired = fires(v, r.threshold) & (paused == 0) & (not silent)
        cleared = fired if measured is None else fired | measured[:, t]
        v = np.where(cleared, 0, v)
        paused = np.where(cleared, population.refractory_delay - 1, np.maximum(paused - 1, 0))
        spikes[:, t], us[:, t], vs[:, t] = fired, u, v
    return Trace(spikes, us, vs)


def always(due: Trace) -> Trace:
    """What a neuron shows that spikes at every step: its u, and a v that is reset at once."""
    zero = None if due.v is None else np.zeros_like(due.v)
    return Trace(np.ones_like(due.spikes), due.u, zero)


def joined(values: IntArray) -> IntArray:
    """Samples one after the other, as one."""
    return values.reshape(1, -1, values.shape[-1])


def later(part: IntArray, by: int) -> IntArray:
    """What arrives, shape (samples, steps, neurons), ``by`` steps later (earlier below 0).

    Nothing arrives in the steps that are left; ``by`` is not 0.
    """
    moved = np.zeros_like(part)
    if by > 0:
        moved[:, by:] = part[:, :-by]
    else:
        moved[:, :by] = part[:, -by:]
    return moved
