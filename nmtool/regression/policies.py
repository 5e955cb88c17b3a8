"""Policies: what must hold of a run beside the golden one, and how far it was from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmtool.backends import Recording
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray
from nmtool.measure import Agreement, compare, predict
from nmtool.network import counted
from nmtool.regression.golden import Golden, latencies
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class Verdict:
    """What one policy says of a run: what was found, what is allowed, whether it passed."""

    policy: str
    found: str
    allowed: str
    passed: bool


@dataclass(frozen=True)
class Policy:
    """A rule with its numbers, as in ``jitter=2`` or ``van_rossum=10:0.5``."""

    name: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        numbers = ":".join(np.format_float_positional(v, trim="-") for v in self.values)
        return f"{self.name}={numbers}" if numbers else self.name

    def judge(self, golden: Golden, run: Recording) -> Verdict:
        """Hold a run against the golden one."""
        found, allowed, passed = _RULES[self.name].judge(golden, run, *self.values)
        return Verdict(str(self), found, allowed, bool(passed))


def parse_policy(text: str) -> Policy:
    """A policy from its text.

    Raises:
        ConfigError: an unknown name, or other numbers than it takes.
    """
    name, _, rest = text.partition("=")
    if name not in _RULES:
        raise ConfigError(f"policy: found {name!r}, allowed {', '.join(_RULES)}")
    rule = _RULES[name]
    try:
        values = tuple(float(part) for part in rest.split(":")) if rest else ()
    except ValueError:
        values = (np.nan,)
    values += rule.defaults[len(values) :]
    inside = len(values) == len(rule.limits) and all(
        low <= value <= high for value, (low, high) in zip(values, rule.limits, strict=True)
    )
    if not inside:
        raise ConfigError(f"policy: found {text!r}, allowed {rule.form}")
    return Policy(name, values)


def judge(golden: Golden, run: Recording, policies: Sequence[str] = ()) -> list[Verdict]:
    """Hold a run against a golden one by the golden's policies, or by others.

    A recording that ends too early breaks all of them: one verdict says so.

    Raises:
        ConfigError: the run lacks a population of the golden one, or has another shape.
    """
    if early := _ends_early(golden, run):
        return [early]
    return [parse_policy(text).judge(golden, run) for text in policies or golden.policies]


def _ends_early(golden: Golden, run: Recording) -> Verdict | None:
    """The verdict on a recording that ends before the golden one, if it does.

    Raises:
        ConfigError: the run lacks a population of the golden one, or has another shape.
    """
    for quantity, names in golden.probe.items():
        for name in names:
            if name not in getattr(run, quantity):
                raise ConfigError(
                    f"golden: found no {quantity} of {name} in the run, allowed what the golden "
                    "run has: what was not measured is not compared"
                )
    for name, train in golden.expected.spikes.items():
        found = run.spikes[name]
        sizes = (found.n_samples, found.n_neurons, found.n_steps)
        wanted = (train.n_samples, train.n_neurons, train.n_steps)
        if sizes[:2] == wanted[:2] and sizes[2] < wanted[2]:
            found_steps = (
                f"a truncated recording: {name} ends after {sizes[2]} of {wanted[2]} steps"
            )
            return Verdict("complete", found_steps, f"all {wanted[2]} steps", False)
        if sizes != wanted:
            raise ConfigError(
                f"golden: found (samples, neurons, steps) {sizes} of {name}, allowed {wanted} as "
                "in the golden run: this run is of another input"
            )
    return None


def _exact(golden: Golden, run: Recording) -> tuple[str, str, bool]:
    agreement = compare(golden.expected, run, golden.program.order)
    return agreement_text(agreement), "0 differing spikes and states", agreement.equal


def agreement_text(agreement: Agreement) -> str:
    """How many spikes and states differ, and where the first does."""
    states = sum(p.states or 0 for p in agreement.populations)
    text = f"{agreement.differing_spikes} differing spikes, {states} differing states"
    first = agreement.first
    if first is None:
        return text
    return (
        f"{text}, first in {first.population}: sample {first.sample}, step {first.step}, "
        f"neuron {first.neuron}"
    )


def _pairs(golden: Golden, run: Recording) -> list[tuple[str, SpikeTrain, SpikeTrain]]:
    expected = golden.expected.spikes
    return [(name, expected[name], run.spikes[name]) for name in golden.expected.spikes]


def _jitter(golden: Golden, run: Recording, steps: float) -> tuple[str, str, bool]:
    """The k-th spike of a neuron beside its k-th golden spike: the pairing of least shift."""
    shift, unpaired = 0, 0
    for _, mine, theirs in _pairs(golden, run):
        for a, b in zip(_series(mine), _series(theirs), strict=True):
            unpaired += abs(a.size - b.size)
            if a.size == b.size and a.size:
                shift = max(shift, int(np.abs(a - b).max()))
    moved, alone = counted(range(shift), "step"), counted(range(unpaired), "spike")
    found = f"{moved} of shift, {alone} without a partner"
    return (
        found,
        f"up to {steps:g} steps, no spike without a partner",
        (unpaired == 0 and shift <= steps),
    )


def _series(train: SpikeTrain) -> list[Any]:
    """The steps of the spikes of every neuron of every sample."""
    line = train.sample * train.n_neurons + train.neuron
    order = np.argsort(line, kind="stable")
    ends = np.cumsum(np.bincount(line, minlength=train.n_samples * train.n_neurons))
    return np.split(train.step[order], ends[:-1])


def _rate(golden: Golden, run: Recording, bound: float) -> tuple[str, str, bool]:
    worst, where = 0.0, ""
    for name, mine, theirs in _pairs(golden, run):
        apart = abs(len(theirs) - len(mine))
        change = apart / len(mine) if len(mine) else float(apart > 0)
        if change > worst:
            worst, where = change, f" in {name}"
    return f"{worst:.4g} of the spikes{where}", f"up to {bound:g}", worst <= bound


def _van_rossum(golden: Golden, run: Recording, tau: float, bound: float) -> tuple[str, str, bool]:
    worst, where = 0.0, ""
    for name, mine, theirs in _pairs(golden, run):
        distance = van_rossum(mine, theirs, tau)
        if distance.size and distance.max() > worst:
            sample, neuron = np.unravel_index(int(distance.argmax()), distance.shape)
            worst, where = float(distance.max()), f" in {name}, sample {sample}, neuron {neuron}"
    return f"{worst:.4g}{where}", f"up to {bound:g} with tau {tau:g}", worst <= bound


def van_rossum(a: SpikeTrain, b: SpikeTrain, tau: float) -> FloatArray:
    """The van Rossum distance of every neuron in every sample, shape (samples, neurons).

    D = sqrt((1 - q^2) sum_t (f_t - g_t)^2) with the trains filtered by f_t = q f_(t-1) + s_t,
    q = exp(-1/tau), and the sum running on after the end: one spike more on one side is a distance
    of 1, two spikes far apart one of sqrt(2). ``tau`` is in steps.
    Source: van Rossum, Neural Computation 13 (2001), there in continuous time, where a spike more
    is sqrt(1/2).
    """
    from scipy.signal import lfilter

    q = float(np.exp(-1.0 / tau))
    apart = a.batch().astype(np.float64) - b.batch().astype(np.float64)
    filtered = lfilter([1.0], [1.0, -q], apart, axis=-1)
    total = (filtered**2).sum(axis=-1) + filtered[..., -1] ** 2 * q**2 / (1 - q**2)
    return np.asarray(np.sqrt((1 - q**2) * total))


def _accuracy(golden: Golden, run: Recording, level: float) -> tuple[str, str, bool]:
    """The exact one-sided McNemar test on the samples that only one of the runs gets right.

    It fails where as few gains among so many changes have a probability below 1 - level if gains
    and losses are equally likely. Beside it stands the Wilson interval of the run's accuracy.
    Source: McNemar, Psychometrika 12 (1947).
    """
    from scipy.stats import binomtest

    net = golden.program.network
    if golden.labels is None or net.readout is None:
        raise ConfigError("policy accuracy: the golden run has no labels or no readout")
    output = net.outputs[0]
    before, after = (
        predict(each.spikes[output], net.readout) == golden.labels
        for each in (golden.expected, run)
    )
    losses, gains = int((before & ~after).sum()), int((after & ~before).sum())
    changes = losses + gains
    chance = binomtest(losses, changes, alternative="greater").pvalue if changes else 1.0
    interval = binomtest(int(after.sum()), after.size).proportion_ci(level, method="wilson")
    text = (
        f"{after.mean():.4f} ({level:.0%} interval {interval.low:.4f} to {interval.high:.4f}), "
        f"{losses} samples lost and {gains} won, p {chance:.3g}"
    )
    allowed = f"no significant loss from {before.mean():.4f} (p of {1 - level:.3g} or more)"
    return text, allowed, chance >= 1 - level


def _latency(golden: Golden, run: Recording, steps: float) -> tuple[str, str, bool]:
    """The mean latency of the samples that the golden run answers; each must have one.

    An output spike before the input of its sample answers nothing: of the golden run that is
    refused, of another run it is a regression.
    """
    before, after = latencies(golden, golden.expected), latencies(golden, run)
    answered = np.isfinite(before)
    if not answered.any():
        raise ConfigError(
            "policy latency: found no output spike that follows an input spike in the golden run, "
            "allowed one or more; use exact, jitter or rate"
        )
    if (early := np.flatnonzero(before < 0)).size:
        raise ConfigError(
            f"policy latency: found an output spike {-before[early[0]]:g} steps before the first "
            f"input spike in sample {early[0]} of the golden run, allowed none: it is no answer to "
            "the input; use exact, jitter or rate"
        )
    limit = float(before[answered].mean()) + steps
    allowed = f"up to {limit:.4g} steps"
    if (early := np.flatnonzero(after < 0)).size:
        found = f"an output spike {-after[early[0]]:g} steps before the first input spike in sample"
        return f"{found} {early[0]}", allowed, False
    if (silent := np.flatnonzero(answered & np.isnan(after))).size:
        return f"no output spike in {silent.size} samples, first {silent[0]}", allowed, False
    mean = float(after[answered].mean())
    return f"{mean:.4g} steps", allowed, mean <= limit


Judge = Callable[..., tuple[str, str, bool]]


@dataclass(frozen=True)
class _Rule:
    form: str
    judge: Judge
    limits: tuple[tuple[float, float], ...] = ()
    defaults: tuple[float, ...] = ()


_RULES: Mapping[str, _Rule] = {
    "exact": _Rule("exact (the same spikes and recorded states)", _exact),
    "jitter": _Rule("jitter=STEPS, 0 to 1e9", _jitter, ((0, 1e9),)),
    "rate": _Rule("rate=FRACTION, 0 to 1e9", _rate, ((0, 1e9),)),
    "van_rossum": _Rule(
        "van_rossum=TAU:DISTANCE, 1e-9 to 1e9 steps and 0 to 1e9",
        _van_rossum,
        ((1e-9, 1e9), (0, 1e9)),
    ),
    "accuracy": _Rule(
        "accuracy=LEVEL of confidence, 0 to 0.999999", _accuracy, ((0, 0.999999),), (0.95,)
    ),
    "latency": _Rule("latency=STEPS, 0 to 1e9", _latency, ((0, 1e9),), (0.0,)),
}
