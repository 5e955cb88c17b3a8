r"""4. In a network of several layers the surrogate gradient is biased, and its sign can be wrong.

Bias: two stochastic neurons in a chain,

.. math:: y_1 \sim \sigma_\beta(w x - 1), \quad y_2 \sim \sigma_\beta(u y_1 - 1), \quad
    \beta = 10, x = 1, w = 1.1, u = 1.3

with the surrogate that theory prescribes, the derivative of the escape function. By enumeration

.. math::
    \frac{d E[y_2]}{dw} = \sigma'(wx - 1)\, x\, (\sigma(u - 1) - \sigma(-1)), \quad
    E[\mathrm{SG}] = \sigma'(wx - 1)\, x\, u\, (p_1 \sigma'(u - 1) + (1 - p_1) \sigma'(-1))

The true derivative asks what a whole spike more changes, the surrogate gradient multiplies a slope.

Sign: the deterministic network of steep sigmoids of Gygax and Zenke (Neural Computation 37, 2025),
slope 100 forward and a flatter one in the derivatives, along its first weight w.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from closed_loop import gradient, output
from common import FloatArray, Row, Statement, sigmoid, sigmoid_slope

BETA, X, W, U = 10.0, 1.0, 1.1, 1.3
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
STEEP = 100.0
FLAT = (15.0, 30.0, STEEP)
V1, V2, U1, U2 = 0.05, 0.1, 1.0, -1.0
RANGE, POINTS = 0.2, 10_001
NEGLIGIBLE = 1e-3
"""Signs are compared where the true gradient is above this fraction of its peak."""


def true_derivative(beta: float) -> float:
    """dE[y2]/dw of the chain, in closed form."""
    first = sigmoid_slope(W * X - 1, beta) * X
    return float(first * (sigmoid(U - 1, beta) - sigmoid(-1, beta)))


def expected_surrogate(beta: float) -> float:
    """The surrogate gradient of the chain, averaged over the spikes of both neurons."""
    p = sigmoid(W * X - 1, beta)
    second = p * sigmoid_slope(U - 1, beta) + (1 - p) * sigmoid_slope(-1, beta)
    return float(sigmoid_slope(W * X - 1, beta) * X * U * second)


def sampled(samples: int, seed: int) -> dict[str, tuple[float, float]]:
    """Mean and standard error of the surrogate gradient, and of the difference that a spike makes.

    Each sample draws both neurons; the difference of the output with and without the first spike
    is taken with the same random number.
    """
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, samples))
    slope = sigmoid_slope(W * X - 1, BETA) * X
    spikes = first < sigmoid(W * X - 1, BETA)
    surrogate = slope * U * sigmoid_slope(U * spikes - 1, BETA)
    with_spike, without = (second < sigmoid(U * s - 1, BETA) for s in (1, 0))
    unbiased = slope * (with_spike.astype(np.float64) - without)
    error = 1 / np.sqrt(samples)
    return {
        name: (float(values.mean()), float(values.std() * error))
        for name, values in (("surrogate", surrogate), ("unbiased", unbiased))
    }


@dataclass(frozen=True, eq=False)
class Sign:
    """A flatter surrogate beside the true gradient of the deterministic network."""

    slope: FloatArray
    disagreement: float
    minimum: float


def weights(w: FloatArray) -> FloatArray:
    """All five parameters of the deterministic network along its first weight."""
    rest = np.array([V1, V2, U1, U2])[:, None] * np.ones_like(w)
    return np.concatenate([w[None], rest])


def sign(w: FloatArray, beta_sg: float) -> Sign:
    """Where the signs of dy/dw differ, and where the surrogate gradient sees the minimum of y."""
    true = gradient(weights(w), STEEP, STEEP)[0]
    slope = gradient(weights(w), STEEP, beta_sg)[0]
    counted = np.abs(true) > NEGLIGIBLE * np.abs(true).max()
    differ = np.sign(slope) != np.sign(true)
    return Sign(slope, float(differ[counted].mean()), float(w[np.cumsum(slope).argmin()]))


@dataclass(frozen=True, eq=False)
class Bias:
    """Both cases."""

    ratio: dict[float, float]
    sampled: dict[str, tuple[float, float]]
    w: FloatArray
    y: FloatArray
    sign: dict[float, Sign]


def measure(short: bool) -> Bias:
    """The ratio by the steepness of the neurons; signs and minima by that of the surrogate."""
    w = np.linspace(-RANGE, RANGE, POINTS)
    return Bias(
        {beta: expected_surrogate(beta) / true_derivative(beta) for beta in BETAS},
        sampled(100_000 if short else 1_000_000, seed=1),
        w,
        output(weights(w), STEEP),
        {beta_sg: sign(w, beta_sg) for beta_sg in FLAT},
    )


def rows(bias: Bias) -> list[Row]:
    """The ratios, the samples, the signs."""
    ratios = [
        {"case": "two stochastic neurons", "slope": b, "quantity": "E[SG] / true", "value": r}
        for b, r in bias.ratio.items()
    ]
    means = [
        {"case": "the same, sampled", "slope": BETA, "quantity": f"E[{n}]", "value": mean}
        for n, (mean, _) in bias.sampled.items()
    ]
    signs = [
        {"case": "deterministic network", "slope": b, "quantity": quantity, "value": value}
        for b, s in bias.sign.items()
        for quantity, value in (("wrong sign", s.disagreement), ("minimum at w =", s.minimum))
    ]
    return [*ratios, *means, *signs]


def claims(bias: Bias) -> dict[str, bool]:
    """What must hold."""
    true = true_derivative(BETA)
    surrogate, unbiased = bias.sampled["surrogate"], bias.sampled["unbiased"]
    edges = (-RANGE, RANGE)
    return {
        "E[SG] is 0.45 of the true derivative (0.01)": abs(bias.ratio[BETA] - 0.45) < 0.01,
        "flat neurons have no such bias (0.01)": abs(bias.ratio[min(BETAS)] - 1) < 0.01,
        "samples of the surrogate gradient agree with its expectation": (
            abs(surrogate[0] - expected_surrogate(BETA)) < 4 * surrogate[1]
        ),
        "the difference that a spike makes is unbiased": abs(unbiased[0] - true) < 4 * unbiased[1],
        "slope 15 has the wrong sign at 47 % of the points (1 %)": (
            abs(bias.sign[15].disagreement - 0.47) < 0.01
        ),
        "slope 30 at 7 % (1 %)": abs(bias.sign[30].disagreement - 0.07) < 0.01,
        "the true slope nowhere": bias.sign[STEEP].disagreement == 0,
        "slope 15 sees its minimum at the edge": bias.sign[15].minimum in edges,
        "slope 30 at 0.009, where the true one is at -0.013": (
            abs(bias.sign[30].minimum - 0.009) < 1e-3
            and abs(bias.sign[STEEP].minimum + 0.013) < 1e-3
        ),
    }


def draw(figure: Any, bias: Bias) -> None:
    """The ratio by steepness; the output along w; its derivatives."""
    ratio, level, slope = figure.subplots(1, 3)
    ratio.semilogx(list(bias.ratio), list(bias.ratio.values()), "o-", label="two layers")
    ratio.axhline(1, color="black", lw=1, label="unbiased")
    ratio.set(xlabel="slope of the escape function", ylabel="E[SG] / true derivative", ylim=(0, 2))
    ratio.legend(fontsize=8)
    level.plot(bias.w, bias.y, color="black")
    level.set(xlabel="w", ylabel="output y (deterministic)")
    for beta_sg, found in bias.sign.items():
        scaled = found.slope / np.abs(found.slope).max()
        name = "true gradient" if beta_sg == STEEP else f"surrogate, slope {beta_sg:g}"
        slope.plot(bias.w, scaled, color="black" if beta_sg == STEEP else None, label=name)
        level.axvline(found.minimum, color=slope.lines[-1].get_color(), lw=1, ls="--")
    slope.axhline(0, color="gray", lw=0.5)
    slope.set(xlabel="w", ylabel="dy/dw, scaled to its peak", xlim=(-0.1, 0.1), ylim=(-1.1, 1.4))
    slope.legend(fontsize=6, loc="upper left")


SCRIPT = Statement(
    "sg-bias",
    "4. In several layers the surrogate gradient is biased, and its sign can be wrong",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
