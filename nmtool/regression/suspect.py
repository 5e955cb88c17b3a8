"""A population that may depart from its equations: what reached it, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.compiler import Program
from nmtool.fixedpoint import ALIGN_BITS, CURRENT_DECAY_OFFSET, IntArray, decay, scaled, wrap
from nmtool.measure.equations import (
    Messages,
    Registers,
    Synapses,
    Trace,
    all_arriving,
    biases,
    connections_of,
    replay,
    synapses_into,
)
from nmtool.operations import Connections
from nmtool.quantization import QuantizedPopulation, QuantizedProjection

SHOWN = 3
"""Alternatives that are said in words."""

SCREEN = 2_000_000
"""Neuron steps of one sweep through hypotheses."""


@dataclass(frozen=True)
class Cause:
    """A change that reproduces what was measured; ``neurons`` are those it is about.

    ``alternatives`` are all changes of this kind that do, where there are several, in words.
    """

    kind: str
    words: str
    neurons: tuple[int, ...] = ()
    alternatives: tuple[str, ...] = ()

    @classmethod
    def one_of(cls, kind: str, alternatives: list[str], neurons: tuple[int, ...]) -> Cause:
        """Changes that all reproduce it, the first of them in the words."""
        several = tuple(alternatives) if len(alternatives) > 1 else ()
        return cls(kind, shortened(alternatives, "; or "), neurons, several)


def shortened(items: list[str], between: str) -> str:
    """The first three items, and how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*items[:SHOWN], *more])


@dataclass(frozen=True, eq=False)
class Suspect:
    """A population of a run, what reached it, and what was measured of it.

    ``masked``: the target shows something else than v where a neuron spikes. ``before`` is the
    program whose weights were there before the last write, where it is known. ``lossy``: spikes
    that are missing beside right states were lost on their way out, and need no explanation.
    """

    program: Program
    name: str
    sent: Messages
    found: Trace
    masked: bool = False
    before: Program | None = None
    lossy: bool = False

    @property
    def population(self) -> QuantizedPopulation:
        """Its parameters."""
        return self.program.network.populations[self.name]

    @cached_property
    def projections(self) -> dict[str, QuantizedProjection]:
        """What leads into it."""
        every = self.program.network.projections
        return {key: p for key, p in every.items() if p.target == self.name}

    @cached_property
    def arrived(self) -> IntArray:
        """What should have arrived, shape (samples, steps, neurons)."""
        return all_arriving(self.program, self.name, self.sent)

    @cached_property
    def bias(self) -> IntArray:
        """What is added to every voltage."""
        every = biases(self.program, self.name, self.sent)
        return np.broadcast_to(every, self.arrived.shape)

    @cached_property
    def expected(self) -> Trace:
        """What it should have done."""
        return replay(self.population, self.arrived, self.bias)

    @cached_property
    def wrong(self) -> Any:
        """Where it did something else, shape (samples, steps, neurons)."""
        return self.expected.differs(self.found, self.masked, self.lossy)

    @cached_property
    def current_parts(self) -> Any:
        """Which neurons have another u than they should; None where it was not measured."""
        if self.found.u is None:
            return None
        return np.any(self.expected.u != self.found.u, axis=(0, 1))

    @cached_property
    def residual(self) -> IntArray:
        """What arrived beyond what should have, from the measured u; as ``arrived``."""
        assert self.found.u is not None
        before = np.zeros_like(self.found.u)
        before[:, 1:] = self.found.u[:, :-1]
        if reset := self.population.reset:
            before[:, reset.offset % reset.interval :: reset.interval] = 0
        kept = decay(before, self.population.decay_u + CURRENT_DECAY_OFFSET)
        return wrap(self.found.u - kept - scaled(self.arrived)) >> ALIGN_BITS

    @cached_property
    def neurons(self) -> IntArray:
        """The neurons that depart, in the order of their first step."""
        steps = np.arange(self.wrong.shape[1])[None, :, None]
        first = np.where(self.wrong, steps, steps.size).min(axis=(0, 1))
        order = np.lexsort((np.arange(first.size), first))
        return np.asarray(order[first[order] < steps.size])

    @cached_property
    def first(self) -> tuple[int, int, int]:
        """Sample, step and neuron of the first departure: the earliest step."""
        places = np.argwhere(self.wrong.transpose(1, 0, 2))
        step, sample, neuron = (int(i) for i in places[0])
        return sample, step, neuron

    def synapses(self, projection: str, neuron: int) -> Synapses:
        """The synapses of a projection into one of its neurons."""
        return synapses_into(self.program, projection, neuron, self._ways(projection))

    def _ways(self, projection: str) -> Connections:
        if projection not in self._known_ways:
            self._known_ways[projection] = connections_of(self.program, projection)
        return self._known_ways[projection]

    @cached_property
    def _known_ways(self) -> dict[str, Connections]:
        return {}

    def explains(self, trace: Trace, neurons: Any = slice(None)) -> bool:
        """Whether a trace of the given neurons is what was measured of them."""
        return not trace.differs(self.found.select(neurons), self.masked, self.lossy).any()

    def begun(self, few: int) -> Suspect:
        """The first samples, a departure among them; itself where that is all there is."""
        first = int(np.flatnonzero(self.wrong.any(axis=(1, 2)))[0])
        count = max(few, first + 1)
        if count >= len(self.wrong):
            return self
        sent = {name: values[:count] for name, values in self.sent.items()}
        return replace(self, sent=sent, found=self.found.of_samples(slice(count)))

    def replayed(self, neurons: Any = slice(None), **changes: Any) -> Trace:
        """What the given neurons do with other registers."""
        registers = replace(Registers.of(self.population), **changes)
        arrived, bias = self.arrived[..., neurons], self.bias[..., neurons]
        return replay(self.population, arrived, bias, registers)


def screening(suspect: Suspect, neuron: int, hypotheses: int, most: int = SCREEN // 8) -> IntArray:
    """Some samples in which a neuron departs, of ``most`` neuron steps for all hypotheses."""
    wrong = np.flatnonzero(suspect.wrong[..., neuron].any(axis=1))
    steps = suspect.wrong.shape[1]
    return wrong[: max(1, most // max(1, hypotheses * steps))]
