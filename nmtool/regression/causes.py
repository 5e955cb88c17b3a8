"""Why a population departs from its equations: the smallest change of it that explains all of it.

Every cause is a hypothesis that was tried: the equations with that one change, fed with the
measured spikes of the sources, give exactly what was measured. What is not reproduced to the last
value is no cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.backends.faults import read_back
from nmtool.compiler import Program
from nmtool.fixedpoint import DECAY_ONE, IntArray, shift
from nmtool.operations import Connections, chain_connections
from nmtool.quantization import QuantizedPopulation, QuantizedProjection
from nmtool.regression.equations import (
    Messages,
    Registers,
    Trace,
    all_arriving,
    arriving,
    biases,
    joined,
    replay,
)

MOST_NEURONS = 32
"""Departing neurons of a population that are explained one by one."""

SCREEN = 2_000_000
"""Neuron steps of one sweep through hypotheses."""


@dataclass(frozen=True)
class Cause:
    """A change that reproduces what was measured; ``neurons`` are those it is about."""

    kind: str
    words: str
    neurons: tuple[int, ...] = ()


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


@dataclass(frozen=True, eq=False)
class Suspect:
    """A population of a run, what reached it, and what was measured of it.

    ``masked``: the target shows something else than v where a neuron spikes. ``before`` is the
    program whose weights were there before the last write, where it is known.
    """

    program: Program
    name: str
    sent: Messages
    found: Trace
    masked: bool = False
    before: Program | None = None

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
        return self.expected.differs(self.found, self.masked)

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
        net = self.program.network
        p = net.projections[projection]
        ways = self._ways(projection)
        here = ways.target == neuron
        source, index = ways.source[here], ways.index[here]
        delay = np.broadcast_to(p.delay, p.weight_mantissa.shape).ravel()[index]
        axonal = np.broadcast_to(net.axonal_delay(p.source), (net.sizes[p.source],))[source]
        return Synapses(source, index, 1 + delay + axonal)

    def _ways(self, projection: str) -> Connections:
        if projection not in self._known_ways:
            p = self.projections[projection]
            shape = self.program.network.shapes[p.source]
            self._known_ways[projection] = chain_connections(p.operations, shape)
        return self._known_ways[projection]

    @cached_property
    def _known_ways(self) -> dict[str, Connections]:
        return {}

    def explains(self, trace: Trace, neurons: Any = slice(None)) -> bool:
        """Whether a trace of the given neurons is what was measured of them."""
        return not trace.differs(self.found.select(neurons), self.masked).any()

    def replayed(self, neurons: Any = slice(None), **changes: Any) -> Trace:
        """What the given neurons do with other registers."""
        registers = replace(Registers.of(self.population), **changes)
        arrived, bias = self.arrived[..., neurons], self.bias[..., neurons]
        return replay(self.population, arrived, bias, registers)


def find_causes(suspect: Suspect) -> list[Cause]:
    """The causes that reproduce everything that was measured of a population.

    Neurons that share no cause are explained one by one; those beyond 32, and those that nothing
    explains, are left out. Populations of other models than CUBA are not explained.
    """
    if suspect.population.graded or not suspect.neurons.size:
        return []
    alone = suspect.neurons.size == 1
    whole = list(_of_population(suspect))
    single = [] if whole and not alone else list(_of_neurons(suspect))
    return list({c.words: c for c in (single + whole if alone else whole + single)}.values())


def _of_population(suspect: Suspect) -> Iterator[Cause]:
    for rule in (
        _swapped,
        _lost_one,
        _threshold_of_all,
        _decay_of_all,
        _reset,
        _sample_reset,
        _delay,
        _shared_weight,
        _stale,
        _entering,
        _lost,
    ):
        yield from rule(suspect)


def _of_neurons(suspect: Suspect) -> Iterator[Cause]:
    """Causes of single neurons, those of one kind together."""
    found: dict[str, list[tuple[int, str]]] = {}
    for neuron in map(int, suspect.neurons[:MOST_NEURONS]):
        for kind, words in _of_neuron(suspect, neuron):
            found.setdefault(kind, []).append((neuron, words))
    for kind, entries in found.items():
        neurons = tuple(sorted({neuron for neuron, _ in entries}))
        yield Cause(kind, "; ".join(words for _, words in entries), neurons)


NeuronRule = Callable[[Suspect, int], Iterator[tuple[str, str]]]


def _of_neuron(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    rules: tuple[NeuronRule, ...] = (_stuck, _dead, _threshold, _decay, _weight, _weights)
    for rule in rules:
        causes = list(rule(suspect, neuron))
        yield from causes
        if causes:
            return


def _stuck(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    found = suspect.found.spikes[..., neuron]
    if found.all() and not suspect.expected.spikes[..., neuron].all():
        yield "stuck neuron", f"neuron {neuron} spikes at every step"


def _dead(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    if suspect.found.spikes[..., neuron].any():
        return
    place = slice(neuron, neuron + 1)
    silent = replay(
        suspect.population, suspect.arrived[..., place], suspect.bias[..., place], silent=True
    )
    if suspect.explains(silent, place):
        missed = int(suspect.expected.spikes[..., neuron].sum())
        yield "dead neuron", f"neuron {neuron} never spikes, {missed} spikes were due"


def _offsets(value: int, top: int) -> list[int]:
    """Changes of a register that are tried: small ones, and every flipped bit; smallest first."""
    flipped = [(value ^ (1 << bit)) - value for bit in range(top.bit_length())]
    near = [k for size in range(1, 65) for k in (size, -size)]
    return [k for k in dict.fromkeys([*near, *sorted(flipped, key=abs)]) if 0 <= value + k <= top]


def _threshold(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    own = suspect.population.threshold
    offsets = np.array(_offsets(own, (1 << 17) - 1))
    if fit := _fitting(suspect, neuron, offsets, "threshold", own):
        yield "threshold offset", _offset_words(f"the threshold of neuron {neuron}", own, fit)


def _decay(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    for register in ("decay_u", "decay_v"):
        own = getattr(suspect.population, register)
        offsets = np.array(_offsets(own, DECAY_ONE - 1))
        if fit := _fitting(suspect, neuron, offsets, register, own):
            yield "decay", _offset_words(f"{register} of neuron {neuron}", own, fit)


def _offset_words(what: str, own: int, fit: list[int]) -> str:
    """The smallest change that fits, and how far others would do as well."""
    best = min(fit, key=abs)
    others = f" ({min(fit):+d} to {max(fit):+d} would show the same)" if len(fit) > 1 else ""
    return f"{what} is {own + best}, not {own} ({best:+d}){others}"


def _fitting(
    suspect: Suspect, neuron: int, offsets: IntArray, register: str, own: int
) -> list[int]:
    """The offsets of a register of one neuron that reproduce what was measured of it."""
    samples = _screening(suspect, neuron, offsets.size)
    one = [neuron] * offsets.size
    registers = replace(Registers.of(suspect.population), **{register: own + offsets})
    trace = replay(
        suspect.population,
        suspect.arrived[samples][..., one],
        suspect.bias[samples][..., one],
        registers,
    )
    cut = suspect.found.select(one).of_samples(samples)
    fits = ~trace.differs(cut, suspect.masked).any(axis=(0, 1))
    place = slice(neuron, neuron + 1)
    return [
        int(k)
        for k in offsets[fits]
        if suspect.explains(suspect.replayed(place, **{register: own + int(k)}), place)
    ]


def _screening(suspect: Suspect, neuron: int, hypotheses: int) -> IntArray:
    """Some samples in which a neuron departs: enough to rule most hypotheses out."""
    wrong = np.flatnonzero(suspect.wrong[..., neuron].any(axis=1))
    steps = suspect.wrong.shape[1]
    return wrong[: max(1, SCREEN // max(1, hypotheses * steps))]


def _threshold_of_all(suspect: Suspect) -> Iterator[Cause]:
    own = suspect.population.threshold
    yield from _register_of_all(suspect, "threshold", own, (1 << 17) - 1, "threshold offset")


def _decay_of_all(suspect: Suspect) -> Iterator[Cause]:
    for register in ("decay_u", "decay_v"):
        own = getattr(suspect.population, register)
        yield from _register_of_all(suspect, register, own, DECAY_ONE - 1, "decay")


def _register_of_all(
    suspect: Suspect, register: str, own: int, top: int, kind: str
) -> Iterator[Cause]:
    """One value of a register for all neurons: those that fit the first departing neuron."""
    first = int(suspect.neurons[0])
    fit = [
        k
        for k in _fitting(suspect, first, np.array(_offsets(own, top)), register, own)
        if suspect.explains(suspect.replayed(**{register: own + k}))
    ]
    if fit:
        words = _offset_words(f"{register} of all of {suspect.name}", own, fit)
        yield Cause(kind, words, tuple(map(int, suspect.neurons)))


def _swapped(suspect: Suspect) -> Iterator[Cause]:
    if suspect.neurons.size != 2:
        return
    a, b = sorted(map(int, suspect.neurons))
    if suspect.explains(suspect.expected.select([b, a]), [a, b]):
        yield Cause("swapped neurons", f"neurons {a} and {b} are exchanged", (a, b))


def _lost_one(suspect: Suspect) -> Iterator[Cause]:
    """Before causes that last: where the states tell, or where it is a single spike."""
    apart = int((suspect.expected.spikes & ~suspect.found.spikes).sum())
    if suspect.found.v is not None or apart == 1:
        yield from _lost(suspect)


def _lost(suspect: Suspect) -> Iterator[Cause]:
    """Spikes that are missing, or a step late, while the states are as they should be."""
    expected, found = suspect.expected, suspect.found
    as_told = Trace(expected.spikes, found.u, found.v)
    if expected.differs(as_told, suspect.masked).any():
        return
    missing, extra = expected.spikes & ~found.spikes, found.spikes & ~expected.spikes
    late = np.zeros_like(missing)
    late[:, 1:] = missing[:, :-1]
    if np.any(extra & ~late):
        return
    kind = "late spike" if extra.any() else "lost spike"
    if kind == "lost spike" and _more_likely_dead(suspect, missing):
        return
    step_, sample, neuron = (int(i) for i in np.argwhere(missing.transpose(1, 0, 2))[0])
    count = int(missing.sum())
    what = "came a step late" if extra.any() else "was sent and did not arrive"
    words = (
        f"the spike of neuron {neuron} in sample {sample} at step {step_} {what}"
        if count == 1
        else f"{count} spikes are missing ({int(extra.sum())} of them a step late), the first of "
        f"neuron {neuron} in sample {sample} at step {step_}"
    )
    yield Cause(kind, words, tuple(map(int, suspect.neurons)))


def _more_likely_dead(suspect: Suspect, missing: Any) -> bool:
    """Several spikes missing of neurons that show none at all, and no state that tells."""
    if suspect.found.v is not None:
        return False
    rows = missing.any(axis=(0, 1))
    none = np.asarray(~suspect.found.spikes.any(axis=(0, 1)))
    return bool(np.all(none[rows]) and missing.sum() > 1)


def _reset(suspect: Suspect) -> Iterator[Cause]:
    reset = suspect.population.reset
    if reset is None:
        return
    own = suspect.population
    never = replay(replace(own, reset=None), suspect.arrived, suspect.bias)
    if suspect.explains(never):
        yield Cause("missing reset", f"{suspect.name} is not reset every {reset.interval} steps")
    for by in range(1, reset.interval):
        moved = replace(reset, offset=reset.offset + by)
        if suspect.explains(replay(replace(own, reset=moved), suspect.arrived, suspect.bias)):
            early = reset.interval - by
            yield Cause(
                "reset phase",
                f"{suspect.name} is reset {by} steps late, or {early} early, of {reset.interval}",
            )


def _sample_reset(suspect: Suspect) -> Iterator[Cause]:
    """State and spikes in flight that are kept from one sample to the next."""
    if suspect.found.spikes.shape[0] < 2:
        return
    sent = {name: joined(values) for name, values in suspect.sent.items()}
    arrived = all_arriving(suspect.program, suspect.name, sent)
    bias = joined(np.ascontiguousarray(suspect.bias))
    trace = replay(suspect.population, arrived, bias)
    shape = suspect.found.spikes.shape

    def apart(values: Any) -> Any:
        return None if values is None else values.reshape(shape)

    if suspect.explains(Trace(apart(trace.spikes), apart(trace.u), apart(trace.v))):
        yield Cause("missing reset", f"{suspect.name} is not cleared between samples")


def _delay(suspect: Suspect) -> Iterator[Cause]:
    for key in suspect.projections:
        part = arriving(suspect.program, key, suspect.sent)
        for by in (1, -1, 2, -2, 3, -3):
            moved = np.zeros_like(part)
            if by > 0:
                moved[:, by:] = part[:, :-by]
            else:
                moved[:, :by] = part[:, -by:]
            trace = replay(suspect.population, suspect.arrived - part + moved, suspect.bias)
            if suspect.explains(trace):
                word = "late" if by > 0 else "early"
                yield Cause("delay", f"spikes through {key} come {abs(by)} steps {word}")


def _stale(suspect: Suspect) -> Iterator[Cause]:
    """Projections with the weights that they had before the last write."""
    if suspect.before is None:
        return
    for key in suspect.projections:
        old = suspect.before.network.projections[key].weight_mantissa
        change = arriving(suspect.program, key, suspect.sent, old) - arriving(
            suspect.program, key, suspect.sent
        )
        if suspect.explains(replay(suspect.population, suspect.arrived + change, suspect.bias)):
            yield Cause("stale write", f"{key} has the weights of before the last write")


def _candidates(suspect: Suspect, neuron: int) -> Iterator[tuple[str, int, int, str]]:
    """Single weights into a neuron and what they could be: (projection, index, mantissa, why)."""
    for key, p in suspect.projections.items():
        flat = p.weight_mantissa.ravel()
        for weight in np.unique(suspect.synapses(key, neuron).index):
            own = flat[weight : weight + 1]
            for bit in range(p.weight_bits):
                flipped = int(read_back(own, np.array([1 << bit]), p.format)[0])
                yield key, int(weight), flipped, f"bit {bit} inverted"
            if suspect.before is not None:
                old = int(suspect.before.network.projections[key].weight_mantissa.flat[weight])
                if old != own[0]:
                    yield key, int(weight), old, "its value before the last write"


def _fitting_weights(suspect: Suspect, neuron: int) -> Iterator[tuple[str, int, int, str]]:
    """Single weights that explain one neuron."""
    candidates = list(_candidates(suspect, neuron))
    samples = _screening(suspect, neuron, len(candidates))
    width = max(1, SCREEN // max(1, samples.size * suspect.wrong.shape[1]))
    cut = suspect.found.select([neuron]).of_samples(samples)
    for begin in range(0, len(candidates), width):
        chunk = candidates[begin : begin + width]
        arrived = suspect.arrived[samples][..., [neuron] * len(chunk)].copy()
        for key, p in suspect.projections.items():
            columns = [i for i, entry in enumerate(chunk) if entry[0] == key]
            if not columns:
                continue
            weights = np.array([chunk[i][1] for i in columns])
            unique, inverse = np.unique(weights, return_inverse=True)
            synapses = suspect.synapses(key, neuron)
            per_weight = synapses.contribution(unique, suspect.sent[p.source][samples])
            values = np.array([chunk[i][2] for i in columns]) - p.weight_mantissa.ravel()[weights]
            arrived[..., columns] += per_weight[..., inverse] * shift(values, p.format.exponent)
        bias = suspect.bias[samples][..., [neuron] * len(chunk)]
        trace = replay(suspect.population, arrived, bias)
        fits = ~trace.differs(cut, suspect.masked).any(axis=(0, 1))
        yield from (chunk[i] for i in np.flatnonzero(fits))


def _with_weight(suspect: Suspect, key: str, index: int, mantissa: int) -> IntArray:
    """What arrives at all neurons if one weight is another."""
    weights = suspect.projections[key].weight_mantissa.copy()
    weights.flat[index] = mantissa
    sent = suspect.sent
    change = arriving(suspect.program, key, sent, weights) - arriving(suspect.program, key, sent)
    return np.asarray(suspect.arrived + change)


def _weight_words(suspect: Suspect, key: str, index: int, mantissa: int, why: str) -> str:
    p = suspect.projections[key]
    place = ", ".join(str(int(i)) for i in np.unravel_index(index, p.weight_mantissa.shape))
    own = int(p.weight_mantissa.flat[index])
    return f"weight [{place}] of {key} is {mantissa}, not {own}: {why}"


def _shared_weight(suspect: Suspect) -> Iterator[Cause]:
    """One weight that explains every departing neuron: shared by them, or of the only one."""
    causes = [
        (why, _weight_words(suspect, key, index, mantissa, why))
        for key, index, mantissa, why in _fitting_weights(suspect, int(suspect.neurons[0]))
        if suspect.explains(
            replay(suspect.population, _with_weight(suspect, key, index, mantissa), suspect.bias)
        )
    ]
    yield from _together(causes, tuple(map(int, suspect.neurons)))


def _together(causes: list[tuple[str, str]], neurons: tuple[int, ...]) -> Iterator[Cause]:
    """Weights that explain the same: one cause of each kind, the others said with it."""
    kinds: dict[str, list[str]] = {}
    for why, words in causes:
        kind = "stale write" if "before" in why else "weight bit flip"
        kinds.setdefault(kind, []).append(words)
    for kind, several in kinds.items():
        yield Cause(kind, "; or ".join(several), neurons)


def _weight(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    """Only where the first neuron is not explained with all others by one shared weight."""
    place = slice(neuron, neuron + 1)
    causes = []
    for key, index, mantissa, why in _fitting_weights(suspect, neuron):
        arrived = _with_weight(suspect, key, index, mantissa)[..., place]
        trace = replay(suspect.population, arrived, suspect.bias[..., place])
        if suspect.explains(trace, place):
            causes.append((why, _weight_words(suspect, key, index, mantissa, why)))
    yield from ((cause.kind, cause.words) for cause in _together(causes, (neuron,)))


def _weights(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    """Several weights into a neuron, solved for from its measured current."""
    if suspect.found.u is None or suspect.population.reset is not None:
        return
    residual = _residual(suspect, neuron)
    for key, p in suspect.projections.items():
        synapses = suspect.synapses(key, neuron)
        weights = np.unique(synapses.index)
        parts = synapses.contribution(weights, suspect.sent[p.source])
        table = parts.reshape(-1, weights.size).astype(np.float64)
        if table.size > SCREEN:
            continue
        solved, *_ = np.linalg.lstsq(table, residual.ravel().astype(np.float64), rcond=None)
        change = np.rint(solved).astype(np.int64)
        arrived = suspect.arrived[..., [neuron]] + (parts * change).sum(axis=-1, keepdims=True)
        place = slice(neuron, neuron + 1)
        trace = replay(suspect.population, arrived, suspect.bias[..., place])
        count = int(np.count_nonzero(change))
        if count and suspect.explains(trace, place):
            yield (
                "several weights",
                f"{count} weights of {key} into neuron {neuron} are others, as after a write that "
                "did not land",
            )


def _residual(suspect: Suspect, neuron: int) -> IntArray:
    """What arrived at a neuron beyond what should have, from its measured current."""
    from nmtool.fixedpoint import CURRENT_DECAY_OFFSET, decay, scaled, wrap

    assert suspect.found.u is not None
    u = suspect.found.u[..., neuron]
    before = np.zeros_like(u)
    before[:, 1:] = u[:, :-1]
    kept = decay(before, suspect.population.decay_u + CURRENT_DECAY_OFFSET)
    return wrap(u - kept - scaled(suspect.arrived[..., neuron])) >> 6


def _spikes_at(sent: IntArray, sources: IntArray, steps: IntArray) -> list[tuple[int, int]]:
    """The spikes (source, step) among the given ones that were sent."""
    places = {*zip(sources.tolist(), steps.tolist(), strict=True)}
    return sorted((source, at) for source, at in places if at >= 0 and sent[at, source])


def _entering(suspect: Suspect) -> Iterator[Cause]:
    """One spike of a source that did not reach the population, or reached it a step late."""
    sample, step, neuron = suspect.first
    if suspect.wrong.any(axis=(1, 2)).sum() != 1:
        return
    for key, p in suspect.projections.items():
        synapses = suspect.synapses(key, neuron)
        sent = suspect.sent[p.source]
        when = step - synapses.steps
        for source, at in _spikes_at(sent[sample], synapses.source, when):
            for kind in ("lost spike", "late spike"):
                changed = sent.copy()
                changed[sample, at, source] = 0
                if kind == "late spike":
                    if at + 1 >= sent.shape[1]:
                        continue
                    changed[sample, at + 1, source] = 1
                other = {**suspect.sent, p.source: changed}
                change = arriving(suspect.program, key, other) - arriving(
                    suspect.program, key, suspect.sent
                )
                if suspect.explains(
                    replay(suspect.population, suspect.arrived + change, suspect.bias)
                ):
                    what = "was lost" if kind == "lost spike" else "came a step late"
                    yield Cause(
                        kind,
                        f"the spike of neuron {source} of {p.source} in sample {sample} at step "
                        f"{at} {what} on its way to {suspect.name}",
                    )
