r"""Surrogate derivatives: what stands for the derivative of a spike by the voltage.

A neuron spikes where its voltage v is above the threshold :math:`\vartheta`; the derivative of that
step is zero or infinite. A surrogate replaces it by

.. math:: \rho(v) = \text{peak} \cdot f(\text{slope} \cdot (v - \vartheta - \text{center}))

with one of the shapes f of ``Shape``. ``nmtool.config`` has the surrogates by name, each with its
equation, its defaults and their source; here they become such numbers, which both engines use.
Real units: v and the threshold as in SLAYER's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from nmtool.config import (
    ArctanSurrogate,
    BoxSurrogate,
    FastSigmoidSurrogate,
    Noise,
    SigmoidNoise,
    SigmoidSurrogate,
    SlayerSurrogate,
    StraightThroughSurrogate,
    Surrogate,
    TriangleSurrogate,
)
from nmtool.errors import FitError

if TYPE_CHECKING:
    import torch


class Shape(IntEnum):
    """The shapes f(t) of surrogate derivatives, 1 at their highest."""

    EXPONENTIAL = 0
    """exp(-|t|)"""
    FAST_SIGMOID = 1
    """(1 + |t|)^-2"""
    LOGISTIC = 2
    """4 s(t) s(-t), with s the logistic function"""
    TRIANGLE = 3
    """max(0, 1 - |t|)"""
    BOX = 4
    """1 where |t| < 1, else 0"""
    LORENTZIAN = 5
    """1 / (1 + t^2)"""
    CONSTANT = 6
    """1"""
    RISING = 7
    """exp(t) where t < 0, else 0"""


AREAS = {
    Shape.EXPONENTIAL: 2.0,
    Shape.FAST_SIGMOID: 2.0,
    Shape.LOGISTIC: 4.0,
    Shape.TRIANGLE: 1.0,
    Shape.BOX: 2.0,
    Shape.LORENTZIAN: math.pi,
    Shape.CONSTANT: math.inf,
    Shape.RISING: 1.0,
}
"""The integrals of the shapes."""


def _exponential(t: Any, xp: Any) -> Any:
    return xp.exp(-abs(t))


def _fast_sigmoid(t: Any, _xp: Any) -> Any:
    return (1 + abs(t)) ** -2


def _logistic(t: Any, xp: Any) -> Any:
    e = xp.exp(-abs(t))
    return 4 * e / (1 + e) ** 2


def _triangle(t: Any, xp: Any) -> Any:
    return xp.clip(1 - abs(t), 0, None)


def _box(t: Any, xp: Any) -> Any:
    return xp.where(abs(t) < 1, xp.ones_like(t), xp.zeros_like(t))


def _lorentzian(t: Any, _xp: Any) -> Any:
    return 1 / (1 + t**2)


def _constant(t: Any, xp: Any) -> Any:
    return xp.ones_like(t)


def _rising(t: Any, xp: Any) -> Any:
    return xp.where(t < 0, xp.exp(xp.clip(t, None, 0)), xp.zeros_like(t))


FORMULAS: dict[Shape, Callable[[Any, Any], Any]] = {
    Shape.EXPONENTIAL: _exponential,
    Shape.FAST_SIGMOID: _fast_sigmoid,
    Shape.LOGISTIC: _logistic,
    Shape.TRIANGLE: _triangle,
    Shape.BOX: _box,
    Shape.LORENTZIAN: _lorentzian,
    Shape.CONSTANT: _constant,
    Shape.RISING: _rising,
}
"""The shapes in closed form, f(t, xp), of arrays of numpy or torch (``xp``)."""


@dataclass(frozen=True)
class Derivative:
    """The surrogate derivative of one population: a shape, its height, slope and centre.

    Attributes:
        shape: the shape f.
        peak: the largest value, spikes per unit of v.
        slope: per unit of v.
        center: where f(0) lies, in units of v above the threshold.
    """

    shape: Shape
    peak: float
    slope: float
    center: float = 0.0

    def __call__(self, distance: Any, xp: Any = np) -> Any:
        """The derivative at ``distance`` = v - threshold, an array of numpy or torch (``xp``)."""
        return self.peak * FORMULAS[self.shape](self.slope * (distance - self.center), xp)

    @property
    def area(self) -> float:
        """The integral over all voltages: how many spikes the surrogate makes of a step."""
        return self.peak * AREAS[self.shape] / self.slope if self.slope else math.inf


def derivative(surrogate: Surrogate, threshold: float, noise: Noise | None = None) -> Derivative:
    """The surrogate of a population with this threshold; ``noise`` is for the kind ``escape``.

    Raises:
        FitError: SLAYER's surrogate, which is as wide as the threshold, with a threshold of 0.
    """
    if isinstance(surrogate, SlayerSurrogate):
        if threshold <= 0:
            raise FitError(
                "surrogate slayer: found a threshold that the chip rounds to 0, allowed 1/64 or "
                "more, for its width is a multiple of the threshold; raise the threshold, or use "
                "another surrogate"
            )
        tau = surrogate.tau_grad * surrogate.tau_factor * threshold
        scale = surrogate.scale_grad * surrogate.scale_factor
        return Derivative(Shape.EXPONENTIAL, scale / (2 * tau), 1 / tau)
    if isinstance(surrogate, FastSigmoidSurrogate):
        return Derivative(Shape.FAST_SIGMOID, 1.0, surrogate.beta)
    if isinstance(surrogate, SigmoidSurrogate):
        return _of_sigmoid(surrogate.beta)
    if isinstance(surrogate, TriangleSurrogate):
        return Derivative(Shape.TRIANGLE, surrogate.gamma, 1 / surrogate.width)
    if isinstance(surrogate, BoxSurrogate):
        return Derivative(Shape.BOX, 1 / surrogate.width, 2 / surrogate.width)
    if isinstance(surrogate, ArctanSurrogate):
        alpha = surrogate.alpha
        return Derivative(Shape.LORENTZIAN, alpha / 2, alpha * math.pi / 2)
    if isinstance(surrogate, StraightThroughSurrogate):
        return Derivative(Shape.CONSTANT, surrogate.scale, 0.0)
    if noise is None:
        raise ValueError("the surrogate escape needs the noise whose derivative it is")
    return escape_derivative(noise)


def escape_derivative(noise: Noise) -> Derivative:
    r"""The derivative of an escape function, :math:`dP / dv`.

    Of the sigmoid :math:`\beta\, P (1 - P)`; of the exponential :math:`P / \Delta u` as long as
    :math:`P < 1`, which is where :math:`v - \vartheta < -\Delta u \ln p_0`, and 0 above.
    """
    if isinstance(noise, SigmoidNoise):
        return _of_sigmoid(noise.beta)
    return Derivative(Shape.RISING, 1 / noise.du, 1 / noise.du, -noise.du * math.log(noise.p0))


def _of_sigmoid(beta: float) -> Derivative:
    return Derivative(Shape.LOGISTIC, beta / 4, beta)


def spike(
    voltage: torch.Tensor, fires: torch.Tensor, threshold: float, rho: Derivative
) -> torch.Tensor:
    """Spikes ``fires`` (0 or 1), whose derivative by the voltage is ``rho`` (torch).

    Args:
        voltage: before the reset, real units, of any shape.
        fires: where there are spikes, of the same shape.
        threshold: in real units.
        rho: the surrogate derivative.
    """
    from nmtool.training.autograd import SurrogateSpike

    spikes: torch.Tensor = SurrogateSpike.apply(voltage, fires, threshold, rho)
    return spikes
