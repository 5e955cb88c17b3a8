"""Why a population departs from its equations: the smallest change of it that explains all of it.

Every cause is a hypothesis that was tried: the equations with that one change, fed with the
measured spikes of the sources, give exactly what was measured. What is not reproduced to the last
value is no cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nmtool.fixedpoint import DECAY_ONE, IntArray
from nmtool.measure.equations import (
    Registers,
    Trace,
    all_arriving,
    always,
    arriving,
    joined,
    later,
    replay,
)
from nmtool.network import counted
from nmtool.regression.losses import lost_arrivals
from nmtool.regression.suspect import Cause, Suspect, screening, shortened
from nmtool.regression.weights import several_weights, shared_weight, single_weight, stale

NEARLY = 0.9
"""The share of steps at which a neuron spikes that is called nearly stuck."""

FEW = 4
"""Samples on which causes of a whole population are tried before all others."""

MOST_NEURONS = 8
"""Departing neurons of a population that are explained one by one."""


@dataclass(frozen=True)
class Diagnosis:
    """A neuron that departs, from which step on, and the causes that reproduce all of it.

    Where none does, ``exact`` is false and a cause is what comes near.
    """

    neuron: int
    step: int
    causes: tuple[Cause, ...]
    exact: bool = True

    @property
    def sure(self) -> str:
        """How sure the first cause is, in words."""
        if not self.causes:
            return "nothing that was tried explains it exactly"
        if not self.exact:
            return "likely, but not exact"
        count = max(len(self.causes), len(self.causes[0].alternatives))
        return "exact, the only one found" if count == 1 else f"exact, one of {count} that are"


@dataclass(frozen=True)
class Explanation:
    """Causes of a population's departure, and its neurons one by one where they share none."""

    causes: tuple[Cause, ...] = ()
    neurons: tuple[Diagnosis, ...] = ()


def explain(suspect: Suspect) -> Explanation:
    """The causes that reproduce everything that was measured of a population.

    Neurons that share no cause are explained one by one, up to 8 of them, once the spikes that were
    lost on their way into the population and out of it are accounted for. Populations of other
    models than CUBA are not explained.
    """
    if suspect.population.graded or not suspect.neurons.size:
        return Explanation()
    alone = suspect.neurons.size == 1
    whole = list(_of_population(suspect))
    if whole and not alone:
        return Explanation(_distinct(whole))
    lost, rest = ([], suspect) if alone else _without_losses(suspect)
    found = tuple(_diagnosis(rest, int(neuron)) for neuron in rest.neurons[:MOST_NEURONS])
    if whole:  # which explains the only neuron: what comes near, or nothing, is no news beside it
        found = tuple(diagnosis for diagnosis in found if diagnosis.exact)
    return Explanation(_distinct([*lost, *_by_kind(found), *whole]), found)


def _distinct(causes: list[Cause]) -> tuple[Cause, ...]:
    return tuple({cause.words: cause for cause in causes}.values())


def _without_losses(suspect: Suspect) -> tuple[list[Cause], Suspect]:
    """What lost spikes explain, and the population without them; where u and v tell."""
    if suspect.found.u is None or suspect.found.v is None:
        return [], suspect
    cause, sent = lost_arrivals(suspect)
    causes = [cause] if cause else []
    rest = replace(suspect, sent=sent, lossy=True)
    apart = rest.expected.spikes & ~rest.found.spikes
    only = np.setdiff1d(np.flatnonzero(apart.any(axis=(0, 1))), rest.neurons)
    if only.size:
        missing, due = (int(s[..., only].sum()) for s in (apart, rest.expected.spikes))
        words = (
            f"{missing} of {due} spikes of {only.size} neurons were sent and did not arrive, their "
            "states are right"
        )
        causes.append(Cause("lost spike", words, tuple(map(int, only))))
    return causes, rest


def _of_population(suspect: Suspect) -> Iterator[Cause]:
    """Causes of the whole population; what fails in the first samples is not tried on the rest."""
    few = suspect.begun(FEW)
    for rule, quick in (
        (_swapped, True),
        (_lost_one, True),
        (_threshold_of_all, False),
        (_decay_of_all, False),
        (_reset, False),
        (_sample_reset, False),
        (_delay, False),
        (shared_weight, False),
        (stale, False),
        (_entering, False),
        (_lost, True),
    ):
        if quick or few is suspect or any(True for _ in rule(few)):
            yield from rule(suspect)


def _diagnosis(suspect: Suspect, neuron: int) -> Diagnosis:
    """What explains one neuron."""
    causes = tuple(_of_neuron(suspect, neuron))
    step = int(np.argwhere(suspect.wrong[..., neuron].any(axis=0))[0, 0])
    return Diagnosis(neuron, step, causes or tuple(_near(suspect, neuron)), bool(causes))


def _near(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    """What comes near, where nothing explains a neuron exactly: it spikes nearly always."""
    found, due = suspect.found.spikes[..., neuron], suspect.expected.spikes[..., neuron]
    if found.mean() > NEARLY > due.mean():
        words = f"neuron {neuron} spikes at {found.mean():.0%} of the steps, {due.mean():.0%} due"
        yield Cause("stuck neuron", words, (neuron,))


def _by_kind(found: tuple[Diagnosis, ...]) -> Iterator[Cause]:
    """Causes of single neurons, those of one kind together."""
    kinds: dict[str, list[Cause]] = {}
    for diagnosis in found:
        if not diagnosis.exact:
            continue
        for cause in diagnosis.causes:
            kinds.setdefault(cause.kind, []).append(cause)
    for kind, causes in kinds.items():
        neurons = tuple(sorted({n for cause in causes for n in cause.neurons}))
        alternatives = tuple(words for cause in causes for words in cause.alternatives)
        yield Cause(kind, shortened([c.words for c in causes], "; "), neurons, alternatives)


NeuronRule = Callable[[Suspect, int], Iterator[Cause]]


def _of_neuron(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    rules: tuple[NeuronRule, ...] = (
        _stuck,
        _dead,
        _threshold,
        _decay,
        single_weight,
        several_weights,
    )
    for rule in rules:
        causes = list(rule(suspect, neuron))
        yield from causes
        if causes:
            return


def _stuck(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    found, due = suspect.found.spikes[..., neuron], suspect.expected.spikes[..., neuron]
    place = slice(neuron, neuron + 1)
    whole = bool(found.all()) and not due.all()
    if whole or (
        suspect.lossy
        and found.mean() > 0.5
        and suspect.explains(always(suspect.expected.select(place)), place)
    ):
        words = f"neuron {neuron} spikes at every step"
        if not whole:
            words += f", but for {int((~found).sum())} that were lost on their way out"
        yield Cause("stuck neuron", words, (neuron,))


def _dead(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    if suspect.found.spikes[..., neuron].any():
        return
    place = slice(neuron, neuron + 1)
    silent = replay(
        suspect.population, suspect.arrived[..., place], suspect.bias[..., place], silent=True
    )
    if suspect.explains(silent, place):
        missed = int(suspect.expected.spikes[..., neuron].sum())
        words = f"neuron {neuron} never spikes, {missed} spikes were due"
        yield Cause("dead neuron", words, (neuron,))


def _offsets(value: int, top: int) -> list[int]:
    """Changes of a register that are tried: small ones, and every flipped bit; smallest first."""
    flipped = [(value ^ (1 << bit)) - value for bit in range(top.bit_length())]
    near = [k for size in range(1, 65) for k in (size, -size)]
    return [k for k in dict.fromkeys([*near, *sorted(flipped, key=abs)]) if 0 <= value + k <= top]


def _threshold(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    own = suspect.population.threshold
    offsets = np.array(_offsets(own, (1 << 17) - 1))
    if fit := _fitting(suspect, neuron, offsets, "threshold", own):
        yield _offset("threshold offset", f"the threshold of neuron {neuron}", own, fit, (neuron,))


def _decay(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    for register in ("decay_u", "decay_v"):
        own = getattr(suspect.population, register)
        offsets = np.array(_offsets(own, DECAY_ONE - 1))
        if fit := _fitting(suspect, neuron, offsets, register, own):
            yield _offset("decay", f"{register} of neuron {neuron}", own, fit, (neuron,))


def _offset(kind: str, what: str, own: int, fit: list[int], neurons: tuple[int, ...]) -> Cause:
    """The smallest change that fits, and how far others would do as well."""
    best = min(fit, key=abs)
    others = f" ({min(fit):+d} to {max(fit):+d} would show the same)" if len(fit) > 1 else ""
    alternatives = tuple(f"{what} is {own + k}, not {own}" for k in fit) if others else ()
    return Cause(
        kind, f"{what} is {own + best}, not {own} ({best:+d}){others}", neurons, alternatives
    )


def _fitting(
    suspect: Suspect, neuron: int, offsets: IntArray, register: str, own: int
) -> list[int]:
    """The offsets of a register of one neuron that reproduce what was measured of it."""
    if suspect.current_parts is not None and suspect.current_parts[neuron] != (
        register == "decay_u"
    ):
        return []  # only decay_u changes u
    samples = screening(suspect, neuron, offsets.size)
    one = [neuron] * offsets.size
    registers = replace(Registers.of(suspect.population), **{register: own + offsets})
    trace = replay(
        suspect.population,
        suspect.arrived[samples][..., one],
        suspect.bias[samples][..., one],
        registers,
    )
    cut = suspect.found.select(one).of_samples(samples)
    fits = ~trace.differs(cut, suspect.masked, suspect.lossy).any(axis=(0, 1))
    place = slice(neuron, neuron + 1)
    return [
        int(k)
        for k in offsets[fits]
        if suspect.explains(suspect.replayed(place, **{register: own + int(k)}), place)
    ]


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
        what = f"{register} of all of {suspect.name}"
        yield _offset(kind, what, own, fit, tuple(map(int, suspect.neurons)))


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
                f"{suspect.name} is reset {counted(range(by), 'step')} late, or {early} early, of "
                f"{reset.interval}",
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
            trace = replay(
                suspect.population, suspect.arrived - part + later(part, by), suspect.bias
            )
            if suspect.explains(trace):
                word = "late" if by > 0 else "early"
                late = counted(range(abs(by)), "step")
                yield Cause("delay", f"spikes through {key} come {late} {word}")


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
