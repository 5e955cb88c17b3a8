"""What several runs of a target say of one population, and how well a hypothesis explains it.

Fed with the measured spikes of its sources a population depends on nothing else, and its arithmetic
is exact: a hypothesis that is right predicts every spike but those that were lost on their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.compiler import Program
from nmtool.fixedpoint import (
    ALIGN_BITS,
    CURRENT_DECAY_OFFSET,
    DECAY_ONE,
    BoolArray,
    FloatArray,
    IntArray,
)
from nmtool.learning.kernels import residuals
from nmtool.measure.equations import (
    Messages,
    all_arriving,
    biases,
    connections_of,
    replay,
)
from nmtool.operations import Connections
from nmtool.quantization import QuantizedPopulation
from nmtool.training.injection import Measured

LOSS_FLOOR, EXTRA_FLOOR = 1e-3, 1e-4
"""Probabilities of a missing and of an unpredicted spike that no target is taken to be below."""

MAD = 1.4826
"""Standard deviations in the median absolute deviation of a normal distribution."""

QUIETEST = 0.75
"""The share of a population's neurons, those with the fewest residuals, that shows its noise."""


@dataclass(frozen=True, eq=False)
class Observed:
    """One run at the model's steps: the program that was on the target, what went in, what came."""

    program: Program
    inputs: BoolArray
    measured: dict[str, Measured]


@dataclass(frozen=True, eq=False)
class Tally:
    """Residual spikes: predicted and measured, predicted alone, measured alone, neither.

    Each is a count, or an array of counts for neurons or hypotheses.
    """

    hits: Any
    missing: Any
    extra: Any
    quiet: Any

    @classmethod
    def of(cls, predicted: BoolArray, found: BoolArray, known: BoolArray) -> Tally:
        """Over samples and steps of arrays of shape (samples, steps, ...), where known."""
        hits = (predicted & found & known).sum(axis=(0, 1))
        missing = (predicted & ~found & known).sum(axis=(0, 1))
        extra = (~predicted & found & known).sum(axis=(0, 1))
        return cls(hits, missing, extra, (known & ~predicted & ~found).sum(axis=(0, 1)))

    @property
    def wrong(self) -> Any:
        """Residual spikes."""
        return self.missing + self.extra

    @property
    def due(self) -> Any:
        """Predicted spikes."""
        return self.hits + self.missing

    def at(self, index: Any) -> Tally:
        """Some of the neurons or hypotheses."""
        return Tally(self.hits[index], self.missing[index], self.extra[index], self.quiet[index])

    def pooled(self) -> Tally:
        """All together."""
        parts = (self.hits, self.missing, self.extra, self.quiet)
        return Tally(*(int(np.sum(part)) for part in parts))


def quietest(tally: Tally) -> Tally:
    """The neurons with the fewest residuals for their spikes; silent ones and those on left out."""
    active = np.flatnonzero((tally.hits > 0) & (tally.quiet > 0))
    rate = tally.wrong[active] / (tally.due[active] + tally.extra[active])
    order = active[np.argsort(rate, kind="stable")]
    return tally.at(order[: max(1, int(QUIETEST * order.size))])


@dataclass(frozen=True)
class Noise:
    """Residuals without a cause: the chance that a spike is lost, and that one is unpredicted.

    Residuals come in bursts where spikes are lost on their way in: ``spread`` says by how much more
    their numbers vary from neuron to neuron than if each came by itself.
    """

    loss: float
    extra: float
    spread: float = 1.0

    @classmethod
    def of(cls, tally: Tally) -> Noise:
        """From the quietest neurons of a population, which are taken to be healthy."""
        active = np.flatnonzero((tally.hits > 0) & (tally.quiet > 0))
        if not active.size:
            return cls(LOSS_FLOOR, EXTRA_FLOOR)
        noise = cls.pooled(quietest(tally).pooled())
        expected = noise.expected(tally.at(active))
        apart = (tally.wrong[active] - expected) / np.sqrt(expected)
        deviation = MAD * float(np.median(np.abs(apart - np.median(apart))))
        return replace(noise, spread=max(1.0, deviation**2))

    @classmethod
    def pooled(cls, tally: Tally) -> Noise:
        """The most likely rates, no lower than the floors."""
        loss = tally.missing / max(tally.due, 1)
        extra = tally.extra / max(tally.extra + tally.quiet, 1)
        return cls(
            float(np.clip(loss, LOSS_FLOOR, 0.5)),
            float(np.clip(extra, EXTRA_FLOOR, 0.5)),
        )

    def likelihood(self, tally: Tally) -> FloatArray:
        """The logarithm of the probability of the residuals, tempered by their spread."""
        return np.asarray(
            tally.hits * np.log1p(-self.loss)
            + tally.missing * np.log(self.loss)
            + tally.extra * np.log(self.extra)
            + tally.quiet * np.log1p(-self.extra)
        ) / np.float64(self.spread)

    def expected(self, tally: Tally) -> Any:
        """Residuals that come by chance."""
        return self.loss * tally.due + self.extra * (tally.extra + tally.quiet)

    def allows(self, tally: Tally) -> Any:
        """Whether so many residuals may come by chance (four standard deviations)."""
        expected = self.expected(tally)
        return tally.wrong <= expected + 4 * np.sqrt(self.spread * expected) + 1


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """Ways in which one neuron may be another: a weight, or a register.

    Attributes:
        way: the row of ``parts`` of the weight that is another, -1 for none.
        change: what it adds more for each spike, shape (hypotheses, runs).
        parts: the spikes that arrive through each weight, shape (weights, samples, steps).
        values: of the registers that are others, by name, one for each hypothesis.
    """

    way: IntArray
    change: IntArray
    parts: IntArray
    values: Mapping[str, IntArray] = field(default_factory=dict)

    @classmethod
    def of_register(cls, name: str, values: IntArray) -> Hypotheses:
        """Other values of one register."""
        none = np.full(values.size, -1)
        nothing = np.zeros((values.size, 1), dtype=np.int64)
        return cls(none, nothing, np.zeros((0, 0, 0), dtype=np.int64), {name: values})

    def registers(self, own: QuantizedPopulation) -> IntArray:
        """What is kept of u and v and the threshold in units of v, shape (3, hypotheses)."""
        held = {name: getattr(own, name) for name in ("decay_u", "decay_v", "threshold")}
        held |= self.values
        table = np.empty((3, self.way.size), dtype=np.int64)
        table[0] = DECAY_ONE - held["decay_u"] - CURRENT_DECAY_OFFSET
        table[1] = DECAY_ONE - held["decay_v"]
        table[2] = np.asarray(held["threshold"]) << ALIGN_BITS
        return table


@dataclass(frozen=True, eq=False)
class Evidence:
    """A population in all runs; arrays of shape (samples of all runs, steps, neurons).

    Attributes:
        program: as it was loaded.
        name: of the population.
        population: its parameters, or those that a hypothesis has.
        sent: what every source was measured to send.
        arrived: what reached the neurons, by the weights that were written.
        bias: what is added to every voltage; any shape that broadcasts.
        found, known: where they were measured to spike, and where they were measured.
        run: of each sample.
        weights: mantissas of the projections into the population, by run.
    """

    program: Program
    name: str
    population: QuantizedPopulation
    sent: Messages
    arrived: IntArray
    bias: IntArray
    found: BoolArray
    known: BoolArray
    run: IntArray
    weights: tuple[dict[str, IntArray], ...]

    @cached_property
    def predicted(self) -> BoolArray:
        """The spikes that are due, each neuron reset where it was measured to spike, too."""
        found = self.found & self.known
        return replay(self.population, self.arrived, self.bias, measured=found).spikes

    @cached_property
    def tally(self) -> Tally:
        """The residuals of every neuron."""
        return Tally.of(self.predicted, self.found, self.known)

    @cached_property
    def noise(self) -> Noise:
        """What residuals come by chance."""
        return Noise.of(self.tally)

    @cached_property
    def tested(self) -> BoolArray:
        """Neurons that something can be said of: they spiked, or should have."""
        return np.asarray(self.tally.due + self.tally.extra > 0)

    def sweep(self, neuron: int, hypotheses: Hypotheses, arrived: IntArray | None = None) -> Tally:
        """The residuals of one neuron under each hypothesis.

        ``arrived`` is what reaches it, shape (samples, steps); what was written unless given.
        """
        own = self.population
        reset = own.reset
        counts = residuals(
            np.ascontiguousarray(self.arrived[..., neuron] if arrived is None else arrived),
            np.ascontiguousarray(np.broadcast_to(self.bias, self.arrived.shape)[..., neuron]),
            hypotheses.parts,
            hypotheses.way,
            hypotheses.change,
            self.run,
            hypotheses.registers(own),
            own.refractory_delay,
            reset.interval if reset else 0,
            reset.offset if reset else 0,
            np.ascontiguousarray(self.found[..., neuron]),
            np.ascontiguousarray(self.known[..., neuron]),
        )
        return Tally(*counts.T)

    def compare(self, predicted: BoolArray, neurons: Any) -> Tally:
        """The residuals of predicted spikes of some neurons."""
        return Tally.of(predicted, self.found[..., neurons], self.known[..., neurons])

    def assuming(self, population: QuantizedPopulation, arrived: IntArray) -> Evidence:
        """The same under a hypothesis of the whole population."""
        return replace(self, population=population, arrived=arrived)

    def ways(self, projection: str) -> Connections:
        """The synapses of a projection."""
        if projection not in self._ways:
            self._ways[projection] = connections_of(self.program, projection)
        return self._ways[projection]

    @cached_property
    def _ways(self) -> dict[str, Connections]:
        return {}


def collect(runs: Sequence[Observed]) -> dict[str, Evidence]:
    """What the runs say of every population that was measured, in data-flow order.

    Where a source was not measured it is taken to have done what the program says.
    """
    program = runs[0].program
    sent = [_as_measured(run) for run in runs]
    found: dict[str, Evidence] = {}
    for name in program.order:
        pieces = [_piece(r, name, s) for r, s in zip(runs, sent, strict=True)]
        if all(name in r.measured for r in runs):
            found[name] = _joined(program, name, pieces, sent, runs)
    return found


def _as_measured(run: Observed) -> dict[str, IntArray]:
    """What went in, and what every population was measured to send; nothing where it was not."""
    net = run.program.network
    (entrance,) = net.inputs
    samples, _, steps = run.inputs.shape
    return {entrance: _by_step(run.inputs)} | {
        name: _by_step(run.measured[name].spikes)
        if name in run.measured
        else np.zeros((samples, steps, net.sizes[name]), dtype=np.int64)
        for name in run.program.order
    }


@dataclass(frozen=True, eq=False)
class _Piece:
    """A population in one run."""

    arrived: IntArray
    bias: IntArray
    found: BoolArray
    known: BoolArray


def _piece(run: Observed, name: str, sent: dict[str, IntArray]) -> _Piece:
    """What reached a population, and what it was measured to do, which its targets then see."""
    arrived = all_arriving(run.program, name, sent)
    bias = biases(run.program, name, sent)
    predicted = replay(run.program.network.populations[name], arrived, bias).spikes
    if name not in run.measured:
        sent[name] = predicted.astype(np.int64)
        return _Piece(arrived, bias, predicted, np.zeros_like(predicted))
    measured = run.measured[name]
    known = np.broadcast_to(measured.known, measured.spikes.shape).swapaxes(1, 2)
    spikes = measured.spikes.swapaxes(1, 2)
    sent[name] = np.where(known, spikes, predicted).astype(np.int64)
    return _Piece(arrived, bias, spikes, known)


def _by_step(raster: BoolArray) -> IntArray:
    return np.ascontiguousarray(raster.swapaxes(1, 2), dtype=np.int64)


def _joined(
    program: Program,
    name: str,
    pieces: list[_Piece],
    sent: list[dict[str, IntArray]],
    runs: Sequence[Observed],
) -> Evidence:
    net = program.network
    sources = {p.source for p in net.projections.values() if p.target == name}
    into = [key for key, p in net.projections.items() if p.target == name]
    bias = [np.broadcast_to(piece.bias, piece.arrived.shape) for piece in pieces]
    return Evidence(
        program,
        name,
        net.populations[name],
        {source: np.concatenate([s[source] for s in sent]) for source in sources},
        np.concatenate([piece.arrived for piece in pieces]),
        np.concatenate(bias),
        np.concatenate([piece.found for piece in pieces]),
        np.concatenate([piece.known for piece in pieces]),
        np.repeat(np.arange(len(pieces)), [len(piece.arrived) for piece in pieces]),
        tuple(
            {key: r.program.network.projections[key].weight_mantissa for key in into} for r in runs
        ),
    )
