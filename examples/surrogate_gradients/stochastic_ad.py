r"""3, deeper networks. Stochastic automatic differentiation, smoothed, is the surrogate gradient.

A neuron that spikes with probability p, whose p changes by dp, changes its output rarely and by a
whole spike (Arya, Schauer, Schäfer and Rackauckas, NeurIPS 2022). Where it was silent it starts to
spike at the rate dp / (1 - p); where it spiked it stops at the rate -dp / p. A stochastic triple is
the value, that rate, and the value after the change; followed to the end of the network it gives an
unbiased derivative. *Smoothed*, rate times change is sent on as if it were an ordinary derivative.
The change seen from below and from above, weighted with (1 - p) and p, is then

.. math:: (1-p)\, \frac{dp}{1-p} [S = 0] + p\, \frac{dp}{p} [S = 1] = dp

for either S: what a surrogate gradient sends on, if its surrogate is the derivative of the escape
function (Gygax and Zenke, Neural Computation 37, 2025).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from common import FloatArray, Row, Statement, sigmoid, sigmoid_slope, spike

BETA, THRESHOLD = 10.0, 1.0
INPUT = np.array([1.0, 0.0, 1.0])
SHAPES = {"two layers": (3, 3, 1), "four layers": (3, 6, 5, 4, 1)}
CONFIDENCE = 3.29
"""Standard errors of a two-sided interval of 99.9 %."""
NUDGE = 1e-5

Weights: TypeAlias = list[FloatArray]


def weights(shape: tuple[int, ...], seed: int) -> tuple[Weights, Weights]:
    """Weights (target, source) of each layer, and a direction in which they all change."""
    rng = np.random.default_rng(seed)
    sizes = list(zip(shape[1:], shape[:-1], strict=True))
    return (
        [rng.normal(2, 0.6, (target, source)) / source for target, source in sizes],
        [rng.random(size) for size in sizes],
    )


def surrogate_gradient(layers: Weights, direction: Weights, uniform: Weights) -> FloatArray:
    """The output's surrogate gradient along the direction, by backpropagation; one a sample."""
    moved = torch.zeros(len(uniform[0]), 1, 1, dtype=torch.float64, requires_grad=True)
    spikes = torch.tensor(INPUT).expand(len(uniform[0]), -1)
    for layer, change, drawn in zip(layers, direction, uniform, strict=True):
        weight = torch.tensor(layer) + moved * torch.tensor(change)
        distance = (weight @ spikes[:, :, None])[:, :, 0] - THRESHOLD
        p = torch.sigmoid(BETA * distance)
        spikes = spike(distance, torch.tensor(drawn) < p, BETA * p * (1 - p))
    spikes.sum().backward()
    return np.asarray(moved.grad[:, 0, 0].numpy())


def smoothed(layers: Weights, direction: Weights, uniform: Weights) -> FloatArray:
    """The output's smoothed stochastic derivative along the direction, forward; one a sample."""
    spikes = np.broadcast_to(INPUT, (len(uniform[0]), len(INPUT)))
    changes = np.zeros_like(spikes)
    for layer, change, drawn in zip(layers, direction, uniform, strict=True):
        distance = spikes @ layer.T - THRESHOLD
        p, silent = sigmoid(distance, BETA), sigmoid(-distance, BETA)
        dp = sigmoid_slope(distance, BETA) * (changes @ layer.T + spikes @ change.T)
        spikes = (drawn < p).astype(np.float64)
        starts, stops = dp / silent * (1 - spikes), dp / p * spikes
        changes = silent * starts + p * stops
    return np.asarray(changes[:, 0])


def unbiased(layers: Weights, direction: Weights, uniform: Weights) -> FloatArray:
    """Stochastic triples through two layers along a change of the first; one a sample.

    From the right: each hidden neuron changes at a rate, and the output is computed again with that
    change and the same random numbers.
    """
    (first, second), (hidden_drawn, output_drawn) = layers, uniform
    distance = INPUT @ first.T - THRESHOLD
    p, dp = sigmoid(distance, BETA), sigmoid_slope(distance, BETA) * (INPUT @ direction[0].T)
    spikes = (hidden_drawn < p).astype(np.float64)
    rate = np.where(
        spikes == 0, np.maximum(dp, 0) / sigmoid(-distance, BETA), np.maximum(-dp, 0) / p
    )

    def output(hidden: FloatArray) -> FloatArray:
        drawn = output_drawn < sigmoid(hidden @ second.T - THRESHOLD, BETA)
        return np.asarray(drawn[:, 0], dtype=np.float64)

    was, total = output(spikes), np.zeros(len(spikes))
    for i in range(spikes.shape[1]):
        changed = spikes.copy()
        changed[:, i] = 1 - changed[:, i]
        total += rate[:, i] * (output(changed) - was)
    return total


def expected_output(layers: Weights) -> float:
    """E[y] of two layers, summed over all hidden spikes."""
    first, second = layers
    p = sigmoid(INPUT @ first.T - THRESHOLD, BETA)
    hidden = np.array(list(product((0.0, 1.0), repeat=len(p))))
    likely = np.where(hidden == 1, p, 1 - p).prod(axis=1)
    return float(likely @ sigmoid(hidden @ second.T - THRESHOLD, BETA)[:, 0])


def finite_difference(layers: Weights, direction: Weights) -> float:
    """The derivative of the expectation along the direction, by central differences."""
    up, down = (
        expected_output([w + s * NUDGE * d for w, d in zip(layers, direction, strict=True)])
        for s in (1, -1)
    )
    return (up - down) / (2 * NUDGE)


@dataclass(frozen=True)
class Estimate:
    """The mean of an estimator and half the width of its confidence interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: FloatArray) -> Estimate:
        """Of one value a sample."""
        return cls(float(values.mean()), CONFIDENCE * float(values.std() / np.sqrt(len(values))))

    def holds(self, value: float) -> bool:
        """Whether the value is inside the interval."""
        return abs(self.mean - value) <= self.half


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Differences of the two derivatives sample by sample, and the estimators of two layers."""

    largest_difference: dict[str, float]
    largest: dict[str, float]
    true: float
    estimates: dict[str, Estimate]
    true_last: float
    last: Estimate


def draws(shape: tuple[int, ...], samples: int, seed: int) -> Weights:
    """Random numbers of each layer, shape (samples, neurons)."""
    rng = np.random.default_rng(seed)
    return [rng.random((samples, size)) for size in shape[1:]]


def measure(short: bool) -> Derivatives:
    """Both derivatives on the same samples; the estimators along changes of one layer's weights."""
    samples = 20_000 if short else 200_000
    difference, largest = {}, {}
    for name, shape in SHAPES.items():
        layers, direction = weights(shape, seed=1)
        uniform = draws(shape, samples // 10, seed=2)
        ours = smoothed(layers, direction, uniform)
        theirs = surrogate_gradient(layers, direction, uniform)
        difference[name], largest[name] = float(abs(ours - theirs).max()), float(abs(theirs).max())
    layers, (first, second) = weights(SHAPES["two layers"], seed=1)
    uniform = draws(SHAPES["two layers"], samples, seed=3)
    hidden, last = [first, np.zeros_like(second)], [np.zeros_like(first), second]
    return Derivatives(
        difference,
        largest,
        finite_difference(layers, hidden),
        {
            "stochastic triples": Estimate.of(unbiased(layers, hidden, uniform)),
            "smoothed": Estimate.of(smoothed(layers, hidden, uniform)),
            "surrogate gradient": Estimate.of(surrogate_gradient(layers, hidden, uniform)),
        },
        finite_difference(layers, last),
        Estimate.of(surrogate_gradient(layers, last, uniform)),
    )


def rows(found: Derivatives) -> list[Row]:
    """The estimators beside the derivative of the expectation."""
    estimates = [
        {"by": name, "layer": "first", "mean": e.mean, "+-": e.half, "true": found.true}
        for name, e in found.estimates.items()
    ]
    last = {"by": "surrogate gradient", "layer": "last", "mean": found.last.mean}
    return [*estimates, {**last, "+-": found.last.half, "true": found.true_last}]


def claims(found: Derivatives) -> dict[str, bool]:
    """What must hold."""
    triples, surrogate = (found.estimates[n] for n in ("stochastic triples", "surrogate gradient"))
    same = {
        f"{name}: the smoothed derivative is the surrogate gradient, sample by sample (1e-9)": (
            found.largest_difference[name] < 1e-9 < found.largest[name]
        )
        for name in found.largest_difference
    }
    return {
        **same,
        "stochastic triples are unbiased (99.9 %)": triples.holds(found.true),
        "the surrogate gradient of the first layer is not": not surrogate.holds(found.true),
        "nor does the interval of the triples hold its mean": not triples.holds(surrogate.mean),
        "that of the last layer is unbiased": found.last.holds(found.true_last),
    }


def draw(figure: Any, found: Derivatives) -> None:
    """Means and intervals of the estimators, over the true derivative."""
    axis = figure.subplots()
    shown = {f"{name}, first layer": (e, found.true) for name, e in found.estimates.items()}
    shown["surrogate gradient, last layer"] = (found.last, found.true_last)
    for place, (estimate, true) in enumerate(shown.values()):
        error = abs(estimate.half / true)
        axis.errorbar(estimate.mean / true, place, xerr=error, fmt="o", capsize=4)
    axis.axvline(1, color="black", lw=1)
    axis.set(yticks=range(len(shown)), yticklabels=shown, ylim=(len(shown) - 0.5, -0.5))
    axis.set(xlabel="mean / derivative of the expectation (99.9 % interval)")


SCRIPT = Statement(
    "sg-stochastic-ad",
    "3. Smoothed stochastic automatic differentiation is the surrogate gradient; "
    "the unbiased one is not",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
