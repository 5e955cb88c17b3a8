"""Compiled parts of a neuron's step: its surrogate derivative, and its noisy threshold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_FAST: Any = {"nogil": True, "error_model": "numpy", "cache": True}
_SMALLEST = np.float32(-126)
_EXP2 = tuple(
    np.float32(np.log(2) ** k / np.prod(np.arange(1, k + 1, dtype=np.float64))) for k in range(7)
)
"""Taylor coefficients of 2^x, for x from -1/2 to 1/2."""

EXPONENTIAL, FAST_SIGMOID, LOGISTIC, TRIANGLE, BOX, LORENTZIAN, CONSTANT, RISING = range(8)
"""``nmtool.training.surrogates.Shape`` as plain numbers, which numba takes as constants."""

POWERS_OF_TWO = (EXPONENTIAL, LOGISTIC, RISING)
"""Shapes that are worked out with 2^x: their slopes are given times log2(e)."""

NO_NOISE, SIGMOID, ESCAPE_EXPONENTIAL = range(3)

FARTHEST = 2.0**30
"""Thresholds are moved by no more, in chip units: the trainer refuses states as large as this."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Escape(NamedTuple):
    """An escape function for compiled code: its kind and two numbers, in chip units of v.

    Of the sigmoid: 1 / beta, 0. Of the exponential: du, ln(p0).
    """

    kind: int
    scale: float
    shift: float


DETERMINISTIC = Escape(NO_NOISE, 0.0, 0.0)


@intrinsic
def _float_of_bits(_typing: Any, _bits: Any) -> Any:
    """The float32 that an int32 is the bit pattern of."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always", **_FAST)
def exp2(x: Any) -> Any:
    """2^x for x <= 0; below 2^-126 it is 2^-126."""
    x = max(x, _SMALLEST)
    whole = np.int32(x - np.float32(0.5))
    f = x - np.float32(whole)
    p = _EXP2[6]
    p = p * f + _EXP2[5]
    p = p * f + _EXP2[4]
    p = p * f + _EXP2[3]
    p = p * f + _EXP2[2]
    p = p * f + _EXP2[1]
    p = p * f + _EXP2[0]
    return p * _float_of_bits((whole + np.int32(127)) << np.int32(23))


@njit(inline="always", **_FAST)
def exponential(voltage: Any, center: np.float32, slope: np.float32, peak: np.float32) -> Any:
    """SLAYER's surrogate derivative at one voltage, in chip units; see ``derivatives``."""
    return peak * exp2(-slope * abs(np.float32(voltage) - center))


@njit(**_FAST)
def derivatives(shape: int, voltage: Any, center: Any, slope: Any, peak: Any, rho: Any) -> None:
    """Surrogate derivatives of neurons, of any shape but the exponential, into ``rho``.

    ``center`` and ``voltage`` are in chip units, ``slope`` is per chip unit.
    """
    one, zero, four = np.float32(1), np.float32(0), np.float32(4)
    n = len(voltage)
    if shape == FAST_SIGMOID:
        for j in range(n):
            base = one + slope[j] * abs(np.float32(voltage[j]) - center[j])
            rho[j] = peak[j] / (base * base)
    elif shape == LOGISTIC:
        for j in range(n):
            e = exp2(-slope[j] * abs(np.float32(voltage[j]) - center[j]))
            rho[j] = peak[j] * four * e / ((one + e) * (one + e))
    elif shape == TRIANGLE:
        for j in range(n):
            rho[j] = peak[j] * max(zero, one - slope[j] * abs(np.float32(voltage[j]) - center[j]))
    elif shape == BOX:
        for j in range(n):
            rho[j] = peak[j] if slope[j] * abs(np.float32(voltage[j]) - center[j]) < one else zero
    elif shape == LORENTZIAN:
        for j in range(n):
            t = slope[j] * (np.float32(voltage[j]) - center[j])
            rho[j] = peak[j] / (one + t * t)
    elif shape == RISING:
        for j in range(n):
            t = slope[j] * (np.float32(voltage[j]) - center[j])
            rho[j] = peak[j] * exp2(min(t, zero)) if t < zero else zero
    else:
        rho[:n] = peak[:n]


@njit(inline="always", **_FAST)
def _mixed(z: np.uint64) -> np.uint64:
    """SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014): all bits of z mixed."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@njit(**_FAST)
def stream(seed: np.uint64, number: np.uint64) -> np.uint64:
    """The seed of the stream with this number, of all streams of a seed."""
    mixed: np.uint64 = _mixed(seed + (number + np.uint64(1)) * _GOLDEN)
    return mixed


@njit(**_FAST)
def thresholds(
    escape: Any, key: np.uint64, step: int, first: int, threshold: Any, row: Any
) -> None:
    r"""The thresholds of a step, in chip units, of the neurons ``first`` and following.

    A neuron with escape noise is one whose threshold is drawn anew at every step: with u uniform
    in (0, 1) it spikes where :math:`u < P(v)`, which is where v is above
    :math:`\vartheta + P^{-1}(u)`. Rounded down, because v is a whole number, this is exact.
    The number u has 24 bits and belongs to (key, step, neuron) alone.
    """
    if escape.kind == NO_NOISE:
        row[:] = threshold
        return
    base = stream(key, np.uint64(step))
    for j in range(len(row)):
        bits = stream(base, np.uint64(first + j)) >> np.uint64(40)
        u = (np.float64(np.int64(bits)) + 0.5) * 2.0**-24
        level = math.log(u / (1.0 - u) if escape.kind == SIGMOID else u) - escape.shift
        level = min(max(np.floor(escape.scale * level), -FARTHEST), FARTHEST)
        row[j] = threshold[j] + np.int32(level)


@njit(**_FAST)
def all_thresholds(escape: Any, keys: Any, threshold: Any, levels: Any) -> None:
    """The thresholds of all steps, ``levels`` (samples, steps, neurons), from a key a sample."""
    samples, steps, _ = levels.shape
    for b in range(samples):
        for t in range(steps):
            thresholds(escape, keys[b], t, 0, threshold, levels[b, t])
