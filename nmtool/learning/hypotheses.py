r"""Why a neuron, or a whole population, does not do what its equations say.

Every hypothesis h is simulated in the chip's integers on what reached the neuron, and what is left
over is judged by the noise of the population:

.. math::
    P(h) \propto \pi_h\, (1-\lambda)^{n_{11}} \lambda^{n_{10}} \epsilon^{n_{01}}
    (1-\epsilon)^{n_{00}}

with n the steps at which a spike was predicted or not (first index) and measured or not (second),
:math:`\lambda` the chance that a spike is lost and :math:`\epsilon` that one comes unpredicted, and
a prior :math:`\pi_h` that is shared by all hypotheses of a kind: a kind that could explain anything
has to explain more. The confidence of a finding is the posterior of its kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from nmtool.backends.faults import read_back
from nmtool.fixedpoint import DECAY_ONE, IntArray, shift
from nmtool.learning.evidence import Evidence, Hypotheses, Noise, Tally
from nmtool.measure.equations import arriving, later, replay, synapses_into
from nmtool.quantization import QuantizedPopulation, QuantizedProjection

PRIOR = float(np.log(0.02))
"""The logarithm of the chance of each kind of fault in a neuron, before anything is known."""

RARE = float(np.log(0.002))
"""The same of kinds that take more: registers of one neuron, exchanged lines."""

MOST_WEIGHTS = 3
"""Weights into one neuron that are looked for one after the other."""

WORTH = 5.0
"""By how much one more weight must raise the logarithm of the likelihood."""

OBVIOUS = 50
"""Residual spikes that a dead or stuck neuron explains beyond doubt."""

FEW = 8
"""Neurons, those with most residuals, on which registers of a whole population are tried."""

THRESHOLD_TOP = (1 << 17) - 1


@dataclass(frozen=True)
class Hypothesis:
    """A kind of fault, how likely it makes what was measured, and where exactly it would be.

    Attributes:
        kind: ``""`` is a healthy neuron.
        score: logarithm of prior and likelihood, over all places that the kind could be at.
        tally: the residuals that it leaves.
        words: where it is, for people.
        details: the same as plain values.
    """

    kind: str
    score: float
    tally: Tally
    words: str = ""
    details: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The likeliest hypothesis of a neuron, and how likely it is among all that were tried."""

    best: Hypothesis
    confidence: float
    explained: bool


def judge(evidence: Evidence, neuron: int) -> Verdict:
    """What one neuron that departs from its equations most likely has."""
    tried = [_healthy(evidence, neuron), *_broken(evidence, neuron)]
    if not any(_plain(evidence, neuron, h) for h in tried):
        for rule in (_registers, _late, _swapped, _weights):
            tried += rule(evidence, neuron)
    best = max(tried, key=lambda h: h.score)
    total = float(logsumexp([h.score for h in tried]))
    explained = bool(evidence.noise.allows(best.tally))
    return Verdict(best, float(np.exp(best.score - total)), explained)


def _plain(evidence: Evidence, neuron: int, broken: Hypothesis) -> bool:
    """Whether a dead or stuck neuron explains so much that no other kind of fault could."""
    left = int(evidence.tally.wrong[neuron]) - int(broken.tally.wrong)
    return left >= OBVIOUS and bool(evidence.noise.allows(broken.tally))


def _healthy(evidence: Evidence, neuron: int) -> Hypothesis:
    tally = evidence.tally.at(neuron)
    return Hypothesis("", float(evidence.noise.likelihood(tally)), tally)


def _broken(evidence: Evidence, neuron: int) -> Iterator[Hypothesis]:
    """Silent, or spiking at every step, whatever arrives."""
    due = int(evidence.tally.due[neuron])
    told = (
        ("dead", False, f"never spikes, {due} spikes were due"),
        ("stuck", True, f"spikes at every step, {due} spikes were due"),
    )
    for kind, spiking, words in told:
        predicted = np.full_like(evidence.found[..., [neuron]], spiking)
        tally = evidence.compare(predicted, [neuron]).at(0)
        yield Hypothesis(kind, PRIOR + float(evidence.noise.likelihood(tally)), tally, words)


def _grid(value: int, top: int) -> IntArray:
    """Other values of a register: near ones, a fine grid up to three times it, flipped bits."""
    near = value + np.arange(-16, 17)
    wide = np.rint(value * np.linspace(0, 3, 241)).astype(np.int64)
    flipped = value ^ (1 << np.arange(top.bit_length()))
    every = np.unique(np.concatenate([near, wide, flipped]))
    return np.asarray(every[(every >= 0) & (every <= top) & (every != value)])


def _registers(evidence: Evidence, neuron: int) -> Iterator[Hypothesis]:
    own = evidence.population
    kinds = (
        ("threshold", PRIOR, THRESHOLD_TOP),
        ("decay_u", RARE, DECAY_ONE - 1),
        ("decay_v", RARE, DECAY_ONE - 1),
    )
    for register, prior, top in kinds:
        held = int(getattr(own, register))
        values = _grid(held, top)

        tally = evidence.sweep(neuron, Hypotheses.of_register(register, values))
        scores = evidence.noise.likelihood(tally)
        best = int(np.argmax(scores))
        good = values[scores >= scores[best] - 1e-6]
        middle = int(good[good.size // 2])
        words = f"{register} {middle} in place of {held} ({middle - held:+d})"
        if good.size > 1:
            words += f"; {good[0]} to {good[-1]} show the same"
        score = prior - float(np.log(values.size)) + float(logsumexp(scores))
        details = (("by", middle - held), ("low", int(good[0])), ("high", int(good[-1])))
        yield Hypothesis(register, score, tally.at(best), words, details)


def _late(evidence: Evidence, neuron: int) -> Iterator[Hypothesis]:
    """Spikes that reach targets and probe a step late: the neuron itself is on time."""
    predicted = _free(evidence, evidence.arrived, [neuron])[..., 0]
    found, known = evidence.found[..., neuron], evidence.known[..., neuron]
    missing, extra = predicted & ~found & known, found & ~predicted & known
    late = np.zeros_like(missing)
    late[:, 1:] = missing[:, :-1]
    if not extra.any() or np.any(extra & ~late):
        return
    moved = (predicted & ~missing) | extra
    tally = Tally.of(moved[..., None], found[..., None], known[..., None]).at(0)
    count = int(missing.sum())
    sample, step = (int(i) for i in np.argwhere(missing)[0])
    score = PRIOR + count * float(np.log(LATE)) + float(evidence.noise.likelihood(tally))
    words = f"{count} spikes come a step late, the first of sample {sample} at step {step}"
    yield Hypothesis(
        "late_spike", score, tally, words, (("sample", sample), ("step", step), ("count", count))
    )


LATE = 1e-3
"""The chance that one spike is late, in a neuron of which spikes are."""


def _free(evidence: Evidence, arrived: IntArray, neurons: Any) -> Any:
    """What neurons do by themselves, not reset where they were measured to spike."""
    bias = np.broadcast_to(evidence.bias, evidence.arrived.shape)[..., neurons]
    return replay(evidence.population, arrived[..., neurons], bias).spikes


def _swapped(evidence: Evidence, neuron: int) -> Iterator[Hypothesis]:
    """What it shows is what another one should: exchanged lines."""
    suspects = np.flatnonzero(~evidence.noise.allows(evidence.tally))
    others = [int(n) for n in suspects if n != neuron]
    if not others:
        return
    predicted = _free(evidence, evidence.arrived, [neuron, *others])
    mine = evidence.compare(predicted[..., 1:], [neuron] * len(others))
    theirs = evidence.compare(np.repeat(predicted[..., :1], len(others), axis=2), others)
    scores = evidence.noise.likelihood(mine)
    for k, other in enumerate(others):
        if evidence.noise.allows(theirs.at(k)) and evidence.noise.allows(mine.at(k)):
            score = RARE - float(np.log(len(evidence.tested))) + float(scores[k])
            words = f"exchanged with neuron {other}"
            yield Hypothesis("swapped", score, mine.at(k), words, (("with", other),))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Single weights into a neuron that may be others.

    Attributes:
        kind: ``weight_bit`` or ``stale_write``, of each.
        projection, index, bit: which weight and which bit of it, -1 for all.
        tried: what they do.
    """

    kind: list[str]
    projection: list[str]
    index: IntArray
    bit: IntArray
    tried: Hypotheses

    def part(self, evidence: Evidence, chosen: int) -> IntArray:
        """What reaches the neuron more if a candidate is right, shape (samples, steps)."""
        change = self.tried.change[chosen][evidence.run][:, None]
        return np.asarray(self.tried.parts[self.tried.way[chosen]] * change)


def _weights(evidence: Evidence, neuron: int) -> Iterator[Hypothesis]:
    """One damaged weight after the other, each the one that explains most of what is left."""
    candidates = _candidates(evidence, neuron)
    if not candidates.kind:
        return
    base = evidence.arrived[..., neuron].copy()
    before = float(evidence.noise.likelihood(evidence.tally.at(neuron)))
    taken: list[int] = []
    hypothesis: Hypothesis | None = None
    places = float(np.log(len(candidates.kind)))
    for _ in range(MOST_WEIGHTS):
        tally = evidence.sweep(neuron, candidates.tried, base)
        scores = evidence.noise.likelihood(tally)
        best = int(np.argmax(scores))
        if float(scores[best]) - before < WORTH + places:
            break
        share = float(np.exp(scores[best] - logsumexp(scores)))
        before = float(scores[best])
        taken.append(best)
        prior = len(taken) * (PRIOR - places)
        alone = len(taken) == 1
        score = prior + (float(logsumexp(scores)) if alone else before)
        hypothesis = _of_weights(evidence, candidates, taken, score, tally.at(best), share)
        base = base + candidates.part(evidence, best)
        if tally.at(best).wrong == 0:
            break
    if hypothesis:
        yield hypothesis


def _of_weights(
    evidence: Evidence,
    candidates: _Candidates,
    taken: list[int],
    score: float,
    tally: Tally,
    share: float,
) -> Hypothesis:
    kinds = {candidates.kind[k] for k in taken}
    kind = kinds.pop() if len(kinds) == 1 else "weight_bit"
    words = "; ".join(_weight_words(evidence, candidates, k) for k in taken)
    if share < 0.99:
        words += f" (this weight at {share:.0%} among those that may be)"
    weights = [
        {
            "projection": candidates.projection[k],
            "weight": int(candidates.index[k]),
            "bit": int(candidates.bit[k]) if candidates.bit[k] >= 0 else None,
        }
        for k in taken
    ]
    return Hypothesis(kind, score, tally, words, (("weights", weights), ("share", share)))


def _candidates(evidence: Evidence, neuron: int) -> _Candidates:
    """Every flipped bit of every weight into a neuron, and every write that did not land."""
    every = [_of_projection(evidence, neuron, key, p) for key, p in _into(evidence).items()]
    rows = np.cumsum([0, *(len(c.tried.parts) for c in every)])
    tried = Hypotheses(
        np.concatenate([c.tried.way + k for c, k in zip(every, rows, strict=False)]),
        np.concatenate([c.tried.change for c in every]),
        np.concatenate([c.tried.parts for c in every]),
    )
    return _Candidates(
        [kind for c in every for kind in c.kind],
        [name for c in every for name in c.projection],
        np.concatenate([c.index for c in every]),
        np.concatenate([c.bit for c in every]),
        tried,
    )


def _of_projection(
    evidence: Evidence, neuron: int, key: str, p: QuantizedProjection
) -> _Candidates:
    synapses = synapses_into(evidence.program, key, neuron, evidence.ways(key))
    weights = np.unique(synapses.index)
    parts = synapses.contribution(weights, evidence.sent[p.source])
    written = np.stack([run[key].ravel()[weights] for run in evidence.weights], axis=1)
    others = [
        read_back(written, np.full_like(written, 1 << bit), p.format)
        for bit in range(p.weight_bits)
    ]
    others.append(np.broadcast_to(written[:, :1], written.shape))
    exponent = p.format.exponent
    change = np.stack([shift(other, exponent) - shift(written, exponent) for other in others])
    seen = parts.any(axis=(0, 1))
    what, way = np.nonzero(change.any(axis=2) & seen)
    bit = np.where(what < p.weight_bits, what, -1)
    return _Candidates(
        ["weight_bit" if b >= 0 else "stale_write" for b in bit],
        [key] * way.size,
        weights[way],
        bit,
        Hypotheses(way, change[what, way], np.ascontiguousarray(parts.transpose(2, 0, 1))),
    )


def _weight_words(evidence: Evidence, candidates: _Candidates, k: int) -> str:
    key, bit = candidates.projection[k], int(candidates.bit[k])
    shape = evidence.program.network.projections[key].weight_mantissa.shape
    place = [int(i) for i in np.unravel_index(int(candidates.index[k]), shape)]
    what = f"bit {bit} reads back inverted" if bit >= 0 else "writes do not land"
    return f"weight {place} of {key}: {what}"


@dataclass(frozen=True, eq=False)
class Shared:
    """A fault of a whole population: what it would be with it."""

    kind: str
    words: str
    evidence: Evidence
    details: tuple[tuple[str, Any], ...] = ()


def judge_population(evidence: Evidence) -> tuple[Shared, float] | None:
    """One fault that explains most of what all neurons do wrong, and how likely it is; or none.

    The noise is that under each hypothesis, for under a wrong one all neurons are noisy.
    """
    active = evidence.tested
    wrong = (evidence.tally.wrong > 0) & active
    if 2 * wrong.sum() < max(active.sum(), 1) or not evidence.found.any():
        return None  # most do as they should, or none says anything
    tried = [*_resets(evidence), *_stale_projections(evidence), *_delays(evidence)]
    tried += _shared_registers(evidence)
    plain = _profile(evidence.tally.pooled())
    scores = np.array([_profile(h.evidence.tally.pooled()) for h in tried])
    if not scores.size:
        return None
    best = int(np.argmax(scores))
    left = int(tried[best].evidence.tally.wrong.sum())
    if scores[best] - plain < 4 * WORTH or 2 * left > int(evidence.tally.wrong.sum()):
        return None
    priors = np.full(scores.size, RARE - np.log(scores.size))
    posterior = scores + priors
    same = [s for h, s in zip(tried, posterior, strict=True) if h.kind == tried[best].kind]
    total = logsumexp([plain, *posterior])
    return tried[best], float(np.exp(logsumexp(same) - total))


def _profile(pooled: Tally) -> float:
    """The likelihood of all residuals at the noise that makes it largest."""
    return float(Noise.pooled(pooled).likelihood(pooled))


def _sum(tallies: list[Tally]) -> Tally:
    parts = ((t.hits, t.missing, t.extra, t.quiet) for t in tallies)
    return Tally(*(int(total) for total in np.sum([*parts], axis=0)))


def _resets(evidence: Evidence) -> Iterator[Shared]:
    reset = evidence.population.reset
    if reset is None:
        return
    own, name = evidence.population, evidence.name
    for by in range(1, reset.interval):
        moved = replace(own, reset=replace(reset, offset=reset.offset + by))
        words = (
            f"{name} is reset {by} steps late, or {reset.interval - by} early, of {reset.interval}"
        )
        changed = evidence.assuming(moved, evidence.arrived)
        yield Shared("reset_phase", words, changed, (("by", by),))
    never = evidence.assuming(replace(own, reset=None), evidence.arrived)
    yield Shared("missing_reset", f"{name} is not reset every {reset.interval} steps", never)


def _into(evidence: Evidence) -> dict[str, QuantizedProjection]:
    every = evidence.program.network.projections
    return {key: p for key, p in every.items() if p.target == evidence.name}


def _delivered(evidence: Evidence, key: str, run: int | None = None) -> IntArray:
    """What a projection delivers with the weights that were written, or with those of one run."""
    source = evidence.program.network.projections[key].source
    parts = []
    for k, weights in enumerate(evidence.weights):
        sent = {source: evidence.sent[source][evidence.run == k]}
        held = weights if run is None else evidence.weights[run]
        parts.append(arriving(evidence.program, key, sent, held[key]))
    return np.concatenate(parts)


def _stale_projections(evidence: Evidence) -> Iterator[Shared]:
    for key in _into(evidence):
        change = _delivered(evidence, key, 0) - _delivered(evidence, key)
        if change.any():
            held = evidence.assuming(evidence.population, evidence.arrived + change)
            words = f"no write to {key} lands: it has the weights that were loaded"
            yield Shared("stale_write", words, held, (("projection", key),))


def _delays(evidence: Evidence) -> Iterator[Shared]:
    for key in _into(evidence):
        part = _delivered(evidence, key)
        for by in (1, -1, 2, -2, 3, -3):
            late = evidence.assuming(evidence.population, evidence.arrived - part + later(part, by))
            words = f"spikes through {key} come {abs(by)} steps {'late' if by > 0 else 'early'}"
            yield Shared("delay", words, late, (("projection", key), ("by", by)))


def _shared_registers(evidence: Evidence) -> Iterator[Shared]:
    """One other value of a register in all neurons, the likeliest of each register."""
    own: QuantizedPopulation = evidence.population
    loudest = np.argsort(-evidence.tally.wrong, kind="stable")[:FEW]
    tops = {"threshold": THRESHOLD_TOP, "decay_u": DECAY_ONE - 1, "decay_v": DECAY_ONE - 1}
    for register, top in tops.items():
        held = int(getattr(own, register))
        values = _grid(held, top)
        tried = Hypotheses.of_register(register, values)
        each = [evidence.sweep(int(neuron), tried) for neuron in loudest]
        scores = np.array(
            [_profile(_sum([tally.at(k) for tally in each])) for k in range(values.size)]
        )
        alike = np.flatnonzero(scores >= scores.max() - 1e-6)
        best = int(alike[alike.size // 2])
        words = f"{register} of all of {evidence.name} is {values[best]}, not {held}"
        details = (("by", int(values[best]) - held),)
        changed: QuantizedPopulation = replace(own, **{register: int(values[best])})  # type: ignore[arg-type]
        yield Shared(register, words, evidence.assuming(changed, evidence.arrived), details)
