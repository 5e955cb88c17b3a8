r"""6, beside it. Learning a target spike train by its likelihood, in one layer of escape noise.

In a network without hidden layer the likelihood of a spike train S* needs no surrogate: reset where
S* spikes, the voltage is a known function of the weights, and

.. math::
    \ln P(S^*) = \sum_t S^*[t] \ln p[t] + (1 - S^*[t]) \ln(1 - p[t]), \quad
    p[t] = \sigma_\beta(v[t] - \vartheta) \\
    \frac{d \ln P}{dw_j} = \sum_t \frac{S^*[t] - p[t]}{p[t] (1 - p[t])}\, p'[t]\, P_j[t]
    = \beta \sum_t (S^*[t] - p[t])\, P_j[t]

with the trace :math:`P_j = dv / dw_j` (Pfister, Toyoizumi, Barber and Gerstner, Neural Computation
18, 2006, here in discrete time). The surrogate gradient learns the same task from spikes that the
network draws itself: it goes down the van Rossum distance of what was drawn to S*.

The controls: the weights before learning, and a likelihood learned for another train.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import FloatArray, Lif, Row, Statement, escape, sigmoid
from scipy.special import log_expit

from nmtool.config import SigmoidNoise
from nmtool.training.losses import van_rossum

INPUTS, STEPS, RATE, SEED = 100, 100, 0.05, 0
TARGET, OTHER = (18, 37, 52, 71, 90), (11, 29, 44, 63, 82)
BETA = 5.0
NOISE = SigmoidNoise(kind="sigmoid", beta=BETA)
NEURON = Lif(keep_current=0.5, keep_voltage=0.8)
TAU = 5.0
"""Of the van Rossum distance, in steps."""
UPDATES, SHORT, LEARNING_RATE, DRAWS = 200, 70, 0.005, 20
TRIALS, TOLERANCE = 200, 1
NUDGE = 1e-5


def inputs() -> FloatArray:
    """Input spikes, shape (steps, inputs)."""
    rng = np.random.default_rng(SEED)
    return np.asarray(rng.random((STEPS, INPUTS)) < RATE, dtype=np.float64)


def train_of(steps: tuple[int, ...]) -> FloatArray:
    """A spike train, 1 at the steps."""
    return np.isin(np.arange(STEPS), steps).astype(np.float64)


def traces(history: FloatArray) -> FloatArray:
    """dv/dweights of a neuron that is reset where ``history`` spikes, shape (steps, inputs)."""
    u, v, found = np.zeros(INPUTS), np.zeros(INPUTS), []
    for x, spiked in zip(inputs(), history, strict=True):
        u = NEURON.keep_current * u + x
        v = NEURON.keep_voltage * v + u
        found.append(v)
        v = v * (1 - spiked)
    return np.array(found)


def log_likelihood(weight: FloatArray, target: FloatArray) -> float:
    """Log-likelihood ln P(target), with the target as the history."""
    distance = traces(target) @ weight - NEURON.threshold
    return float(log_expit(BETA * np.where(target == 1, distance, -distance)).sum())


def gradient(weight: FloatArray, target: FloatArray, history: FloatArray) -> FloatArray:
    """Derivative d ln P(target)/dweights; the likelihood's where ``history`` is the target."""
    trace = traces(history)
    p = sigmoid(trace @ weight - NEURON.threshold, BETA)
    return np.asarray(BETA * (target - p) @ trace)


def gradient_errors(weight: FloatArray, target: FloatArray) -> tuple[float, float]:
    """Relative distance to central differences: of the gradient, and of one without resets."""
    ends = [
        [log_likelihood(weight + sign * NUDGE * unit, target) for sign in (1, -1)]
        for unit in np.eye(INPUTS)
    ]
    numeric = np.array([(up - down) / (2 * NUDGE) for up, down in ends])
    found = (gradient(weight, target, h) for h in (target, np.zeros(STEPS)))
    ours, without = (float(np.linalg.norm(g - numeric) / np.linalg.norm(numeric)) for g in found)
    return ours, without


def start() -> FloatArray:
    """Weights before learning."""
    rng = np.random.default_rng(SEED + 1)
    return np.asarray(rng.normal(0.015, 0.02, INPUTS))


def by_likelihood(target: FloatArray, updates: int) -> Iterator[FloatArray]:
    """The weights after each step up the likelihood's gradient, by Adam."""
    weight = torch.tensor(start(), requires_grad=True)
    adam = torch.optim.Adam([weight], lr=LEARNING_RATE)
    for _ in range(updates):
        weight.grad = -torch.tensor(gradient(weight.detach().numpy(), target, target))
        adam.step()
        yield weight.detach().numpy().copy()


def by_surrogate_gradient(target: FloatArray, updates: int) -> Iterator[FloatArray]:
    """The weights after each step down the surrogate gradient of the van Rossum distance."""
    weight = torch.tensor(start(), requires_grad=True)
    adam = torch.optim.Adam([weight], lr=LEARNING_RATE)
    emit = escape(NOISE, torch.Generator().manual_seed(SEED))
    raster = torch.tensor(inputs())
    for _ in range(updates):
        spikes = NEURON.run((raster @ weight)[:, None].expand(-1, DRAWS), emit)
        adam.zero_grad()
        distance(spikes, target).mean().backward()
        adam.step()
        yield weight.detach().numpy().copy()


def distance(spikes: torch.Tensor, target: FloatArray) -> torch.Tensor:
    """The squared van Rossum distance of each trial's train, shape (trials,)."""
    trains = spikes.T[:, None]
    return van_rossum(trains, torch.tensor(target).expand_as(trains), TAU)


@dataclass(frozen=True)
class Quality:
    """How well the trains that a neuron draws are the target.

    Attributes:
        distance: mean van Rossum distance of a train to the target.
        hits: share of the target's spikes with one within a step of them.
        extra: spikes of a train that are near no target spike.
        likelihood: ln P(target).
    """

    distance: float
    hits: float
    extra: float
    likelihood: float

    @classmethod
    def of(cls, weight: FloatArray, target: FloatArray) -> Quality:
        """From fresh trials."""
        emit = escape(NOISE, torch.Generator().manual_seed(SEED + 2))
        drive = torch.tensor(inputs() @ weight)[:, None].expand(-1, TRIALS)
        spikes = NEURON.run(drive, emit)
        wanted = torch.tensor(target)[:, None]
        near = _near(spikes)[torch.tensor(target == 1)]
        extra = (spikes * (1 - _near(wanted))).sum(dim=0)
        return cls(
            float(distance(spikes, target).mean()),
            float(near.mean()),
            float(extra.mean()),
            log_likelihood(weight, target),
        )


def _near(spikes: torch.Tensor) -> torch.Tensor:
    """1 within TOLERANCE steps of a spike, else 0; shape (steps, trials)."""
    width = 2 * TOLERANCE + 1
    return torch.nn.functional.max_pool1d(spikes.T[:, None], width, 1, TOLERANCE)[:, 0].T


@dataclass(frozen=True, eq=False)
class Learned:
    """Both ways of learning and the controls."""

    error: float
    error_without_reset: float
    quality: dict[str, Quality]
    likelihood: dict[str, list[float]]
    spikes: dict[str, FloatArray]


def measure(short: bool) -> Learned:
    """Check the gradient, learn both ways, draw fresh trials."""
    updates = SHORT if short else UPDATES
    target, other = train_of(TARGET), train_of(OTHER)
    paths = {
        "likelihood": [*by_likelihood(target, updates)],
        "surrogate gradient": [*by_surrogate_gradient(target, updates)],
    }
    ends = {
        "before learning": start(),
        "likelihood of another train": [*by_likelihood(other, updates)][-1],
        **{name: path[-1] for name, path in paths.items()},
    }
    return Learned(
        *gradient_errors(start(), target),
        {name: Quality.of(weight, target) for name, weight in ends.items()},
        {name: [log_likelihood(w, target) for w in path] for name, path in paths.items()},
        {name: _drawn(ends[name]) for name in ("before learning", *paths)},
    )


def _drawn(weight: FloatArray) -> FloatArray:
    """Trains of ten trials, shape (steps, trials)."""
    emit = escape(NOISE, torch.Generator().manual_seed(SEED + 3))
    drive = torch.tensor(inputs() @ weight)[:, None].expand(-1, 10)
    return np.asarray(NEURON.run(drive, emit).numpy())


def rows(learned: Learned) -> list[Row]:
    """Distances, hits, extra spikes and likelihoods."""
    return [
        {
            "learned by": name,
            "van Rossum distance": q.distance,
            "target spikes hit": q.hits,
            "extra spikes": q.extra,
            "ln P(target)": q.likelihood,
        }
        for name, q in learned.quality.items()
    ]


def claims(learned: Learned) -> dict[str, bool]:
    """What must hold."""
    before, other, likelihood, surrogate = learned.quality.values()
    return {
        "the likelihood's gradient is that of finite differences (1e-6)": learned.error < 1e-6,
        "without the resets it is not (0.01)": learned.error_without_reset > 0.01,
        "the likelihood rises": likelihood.likelihood > before.likelihood + 5,
        "by likelihood 8 of 10 target spikes are hit": likelihood.hits > 0.8,
        "by surrogate gradient 7 of 10": surrogate.hits > 0.7,
        "after learning another train fewer than half": other.hits < 0.5,
        "both halve the distance": max(likelihood.distance, surrogate.distance)
        < min(before.distance, other.distance) / 2,
    }


def draw(figure: Any, learned: Learned) -> None:
    """Trains before and after, over the target; the likelihood as both learn."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, spikes in enumerate(learned.spikes.values()):
        when, trial = spikes.nonzero()
        left.scatter(when, trial + 12 * place, marker="|", s=20, color=f"C{place}")
    for target in TARGET:
        left.axvline(target, color="black", lw=3, alpha=0.2)
    left.set(xlabel="step (grey: target spikes)", ylim=(12 * len(learned.spikes) - 1, -1))
    centers = [12 * place + 4.5 for place in range(len(learned.spikes))]
    left.set(yticks=centers, yticklabels=[f"{name}\n(10 trials)" for name in learned.spikes])
    for place, (name, values) in enumerate(learned.likelihood.items(), 1):
        right.plot(values, color=f"C{place}", label=name)
    right.set(xlabel="update", ylabel="ln P(target)")
    right.legend(fontsize=8)


SCRIPT = Statement(
    "sg-target-train",
    "6. A target spike train, learned by its likelihood and by surrogate gradients",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
