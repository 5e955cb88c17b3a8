r"""5. A surrogate gradient is not the gradient of any loss.

The network of Gygax and Zenke (Neural Computation 37, 2025), without spikes, of steep sigmoids:

.. math:: y = \sigma(u_1 \sigma(v_1 \sigma(w x)) + u_2 \sigma(v_2 \sigma(w x))), \quad x = 1

with slope 10,000 in the forward pass; its surrogate gradient has slope 20 in every derivative. What
a gradient sums up to around a closed loop of the parameters is 0: one is back at the same output.
The loop here is a circle of radius 1.8 in a plane of the five parameters. Along a path that does
not close, the sum is a function on the path, whatever is summed: a virtual surrogate loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import FloatArray, Row, Statement, sigmoid, sigmoid_slope
from scipy.stats import ortho_group

FORWARD, SMOOTH, SURROGATE = 1e4, 10.0, 20.0
RADIUS = 1.8
PLANE = ortho_group.rvs(5, random_state=124)[:2]
FIRST, PART, DRAWN = 4_000, 1 << 17, 128_000
LAYER_INPUT = np.array([[1.0], [0.5]])


def output(parameters: FloatArray, beta: float, x: float = 1.0) -> FloatArray:
    """Output y of the parameters (w, v1, v2, u1, u2), shape (5, ...)."""
    w, v1, v2, u1, u2 = parameters
    g = sigmoid(w * x, beta)
    return sigmoid(u1 * sigmoid(v1 * g, beta) + u2 * sigmoid(v2 * g, beta), beta)


def gradient(parameters: FloatArray, beta: float, beta_sg: float, x: float = 1.0) -> FloatArray:
    """dy/dparameters by the chain rule: slope ``beta`` forward, ``beta_sg`` in each derivative.

    Equal slopes give the true gradient. Shape (5, ...) in and out.
    """
    w, v1, v2, u1, u2 = parameters
    g = sigmoid(w * x, beta)
    h1, h2 = sigmoid(v1 * g, beta), sigmoid(v2 * g, beta)
    dy = sigmoid_slope(u1 * h1 + u2 * h2, beta_sg)
    dv1, dv2 = (dy * u * sigmoid_slope(v * g, beta_sg) for u, v in ((u1, v1), (u2, v2)))
    dw = (dv1 * v1 + dv2 * v2) * sigmoid_slope(w * x, beta_sg) * x
    return np.array([dw, dv1 * g, dv2 * g, dy * h1, dy * h2])


def circle(angle: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The parameters at angles in radians, and their derivative by the angle; shape (5, angles)."""
    sine, cosine = np.sin(angle), np.cos(angle)
    first, second = PLANE[:, :, None]
    return RADIUS * (first * sine + second * cosine), RADIUS * (first * cosine - second * sine)


def along_circle(beta_sg: float) -> Callable[[FloatArray], FloatArray]:
    """The gradient's part along the circle, per radian."""

    def slope(angle: FloatArray) -> FloatArray:
        point, tangent = circle(angle)
        return np.asarray((gradient(point, FORWARD, beta_sg) * tangent).sum(axis=0))

    return slope


def along_one_layer(angle: FloatArray) -> FloatArray:
    """The control: one steep sigmoid of two weighted inputs, on a circle of its two weights."""
    point = RADIUS * np.array([np.sin(angle), np.cos(angle)])
    tangent = RADIUS * np.array([np.cos(angle), -np.sin(angle)])
    slope = sigmoid_slope((point * LAYER_INPUT).sum(axis=0), SURROGATE)
    return np.asarray((slope * LAYER_INPUT * tangent).sum(axis=0))


def loop_integral(slope: Callable[[FloatArray], FloatArray], points: int) -> float:
    """The sum around the circle by the trapezoidal rule, in parts that fit into the memory."""
    width = 2 * np.pi / points
    parts = (np.arange(i, min(i + PART, points)) for i in range(0, points, PART))
    return width * float(sum(slope(np.asarray(width * part)).sum() for part in parts))


def asymmetry(beta_sg: float) -> float:
    r"""How far the second derivatives are from symmetric, at one place of the loop.

    :math:`|J - J^T| / |J + J^T|` with the gradient's derivatives J, by central differences; slope
    10 forward. A gradient's J is a Hessian, and symmetric.
    """
    place = circle(np.array([1.0]))[0][:, 0]
    steps = 1e-6 * np.eye(5)
    up, down = ([gradient(place + s * h, SMOOTH, beta_sg) for h in steps] for s in (1, -1))
    second = np.array(up) - np.array(down)
    return float(np.linalg.norm(second - second.T) / np.linalg.norm(second + second.T))


@dataclass(frozen=True, eq=False)
class Loop:
    """Integrals around the loop by number of points, and what they sum up on the way.

    ``asymmetry`` is that of the surrogate gradient's second derivatives, and of the true ones'.
    """

    points: list[int]
    surrogate: list[float]
    true: list[float]
    one_layer: list[float]
    angle: FloatArray
    virtual_loss: FloatArray
    output: FloatArray
    asymmetry: tuple[float, float]

    @property
    def last_move(self) -> float:
        """By how much the last refinement still moved the surrogate's integral."""
        return abs(self.surrogate[-1] - self.surrogate[-2])


def measure(short: bool) -> Loop:
    """Double the points until both integrals have stopped moving."""
    points = [FIRST * 2**k for k in range(9 if short else 10)]
    angle = np.linspace(0, 2 * np.pi, DRAWN + 1)
    slope = along_circle(SURROGATE)(angle)
    summed = np.concatenate([[0], np.cumsum(slope[1:] + slope[:-1]) * angle[1] / 2])
    level = output(circle(angle)[0], FORWARD)
    return Loop(
        points,
        [loop_integral(along_circle(SURROGATE), n) for n in points],
        [loop_integral(along_circle(FORWARD), n) for n in points],
        [loop_integral(along_one_layer, n) for n in points],
        angle[::125],
        (summed + level[0])[::125],
        level[::125],
        (asymmetry(SURROGATE), asymmetry(SMOOTH)),
    )


def rows(loop: Loop) -> list[Row]:
    """Integrals by number of points."""
    values = zip(loop.points, loop.surrogate, loop.true, loop.one_layer, strict=True)
    return [
        {"points": n, "surrogate gradient": s, "true gradient": t, "surrogate, one layer": one}
        for n, s, t, one in values
    ]


def claims(loop: Loop) -> dict[str, bool]:
    """What must hold."""
    return {
        "the quadrature has stopped moving (1e-3)": loop.last_move < 1e-3,
        "the surrogate gradient gives 1.8176 around the loop, not 0 (1e-3)": (
            abs(loop.surrogate[-1] - 1.8176) < 1e-3
        ),
        "the true gradient gives 0 there (1e-6)": abs(loop.true[-1]) < 1e-6,
        "its second derivatives are not symmetric (0.1), the true ones (1e-6)": (
            loop.asymmetry[0] > 0.1 and loop.asymmetry[1] < 1e-6
        ),
        "in one layer the surrogate gradient, too, gives 0 (1e-9)": abs(loop.one_layer[-1]) < 1e-9,
    }


def draw(figure: Any, loop: Loop) -> None:
    """What the gradients sum up to along the loop, and the integrals as the points get more."""
    left, right = figure.subplots(1, 2)
    degrees = np.degrees(loop.angle)
    left.plot(degrees, loop.virtual_loss, label="surrogate gradient, summed up")
    left.plot(degrees, loop.output, color="black", lw=1, label="output (true gradient)")
    left.plot(degrees[[0, -1]], loop.virtual_loss[[0, -1]], "o", color="C3", label="same network")
    left.set(xlabel="angle on the loop (degrees)", ylabel="y", xticks=[0, 90, 180, 270, 360])
    left.legend(fontsize=8)
    right.semilogx(loop.points, loop.surrogate, "o-", label="surrogate gradient")
    right.semilogx(loop.points, loop.true, "o-", color="black", label="true gradient")
    right.semilogx(loop.points, loop.one_layer, "--", color="C2", label="surrogate, one layer")
    right.set(xlabel="points of the quadrature", ylabel="integral around the loop")
    right.legend(fontsize=8)


SCRIPT = Statement(
    "sg-closed-loop",
    "5. A surrogate gradient is not the gradient of any loss",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
