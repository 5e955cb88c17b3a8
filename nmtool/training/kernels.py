"""Compiled layers of CUBA neurons for training: integer forward, float backward, by events.

States are integers in the chip's units (a real voltage of 1 is 4096), gradients are float32 in real
units. Arrays of states and gradients have the shape (samples, steps, neurons), so that the neurons
of a step lie side by side; weights have the shape (sources, targets).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_FAST: Any = {"nogil": True, "error_model": "numpy", "cache": True}
_LOG2E = np.float32(1.4426950408889634)
_SMALLEST = np.float32(-126)
_EXP2 = tuple(
    np.float32(np.log(2) ** k / np.prod(np.arange(1, k + 1, dtype=np.float64))) for k in range(7)
)
"""Taylor coefficients of 2^x, for x from -1/2 to 1/2."""

BLOCK = 256
"""Targets that are run at once: their weights stay in the cache."""

PIECE = 16
"""Steps of a raster that are looked at together."""

HUGE = 30
"""A state that needs more bits has left what the sums can hold."""


@intrinsic
def _float_of_bits(_typing: Any, _bits: Any) -> Any:
    """The float32 that an int32 is the bit pattern of."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always", **_FAST)
def _exp2(x: Any) -> Any:
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
def _decayed(state: np.int32, keep: np.int32) -> np.int32:
    """trunc(state keep / 4096) in 32 bits."""
    size = abs(state)
    left = (size >> np.int32(12)) * keep + (((size & np.int32(4095)) * keep) >> np.int32(12))
    return left if state >= 0 else -left


@njit(**_FAST)
def list_events(raster: Any, inner: Any, start: Any) -> int:
    """Places on the last axis of all that is not 0 in a raster (samples, rows, places), as bits.

    ``start`` has one place for each sample and row, and one more. Returns how many there are: if
    ``inner`` has no room for them, it is to be called again.
    """
    found = 0
    samples, rows, places = raster.shape
    room = inner.size
    for b in range(samples):
        for r in range(rows):
            start[b * rows + r] = found
            row = raster[b, r]
            for piece in range(0, places, PIECE):
                if piece + PIECE <= places:
                    bits = row[piece]
                    for k in range(1, PIECE):
                        bits |= row[piece + k]
                    if bits == 0:
                        continue
                for k in range(piece, min(piece + PIECE, places)):
                    if found < room:
                        inner[found] = k
                    found += row[k] != 0
    start[start.size - 1] = found
    return found


@njit(**_FAST)
def turn(inner: Any, begins: Any, index: Any, turned: Any) -> None:
    """Events by row turned into events by place: ``index`` then holds rows, in rising order.

    ``begins`` (samples, rows + 1) says where the places of each row begin in ``inner``, ``turned``
    (samples, places + 1), all 0, comes to say where the rows of each place begin in ``index``.
    """
    places = turned.shape[1] - 1
    for b in range(begins.shape[0]):
        at = turned[b]
        for e in range(begins[b, 0], begins[b, -1]):
            at[inner[e] + 1] += 1
        at[0] = begins[b, 0]
        for k in range(places):
            at[k + 1] += at[k]
        for row in range(begins.shape[1] - 1):
            for e in range(begins[b, row], begins[b, row + 1]):
                index[at[inner[e]]] = row
                at[inner[e]] += 1
        for k in range(places, 0, -1):
            at[k] = at[k - 1]
        at[0] = begins[b, 0]


@njit(**_FAST)
def forward(
    first: int,
    last: int,
    index: Any,
    start: Any,
    delay: int,
    weight: Any,
    keep_u: np.int32,
    keep_v: np.int32,
    threshold: np.int32,
    bias: Any,
    current: Any,
    voltage: Any,
    spikes: Any,
) -> int:
    """Run samples ``first`` to ``last`` of a layer; returns whether a state grew too large.

    ``index[start[b, t]:start[b, t + 1]]`` are the sources that spike at step t, which arrive
    ``delay`` steps later. ``weight`` holds blocks of targets, shape (blocks, sources, BLOCK), in
    units of 1/64. ``voltage`` is the one before the reset. ``current`` may have no steps: then it
    is not kept.
    """
    steps = voltage.shape[1]
    u = np.zeros(BLOCK, dtype=np.int32)
    v = np.zeros(BLOCK, dtype=np.int32)
    drive = np.zeros(BLOCK, dtype=np.int32)
    large = np.int32(0)
    keep_current = current.shape[1] > 0
    for block in range(weight.shape[0]):
        begin = block * BLOCK
        n = min(BLOCK, voltage.shape[2] - begin)
        rows = weight[block]
        drive[:n] = bias[begin : begin + n]
        for b in range(first, last):
            u[:] = 0
            v[:] = 0
            for t in range(steps):
                for j in range(BLOCK):
                    u[j] = _decayed(u[j], keep_u)
                if t >= delay:
                    for e in range(start[b, t - delay], start[b, t - delay + 1]):
                        row = rows[index[e]]
                        for j in range(BLOCK):
                            u[j] += np.int32(row[j]) << np.int32(6)
                out = voltage[b, t, begin : begin + n]
                fired = spikes[b, t, begin : begin + n]
                for j in range(n):
                    state = _decayed(v[j], keep_v) + u[j] + drive[j]
                    large |= abs(u[j]) | abs(state)
                    out[j] = state
                    spiked = state > threshold
                    fired[j] = spiked
                    v[j] = np.int32(0) if spiked else state
                if keep_current:
                    current[b, t, begin : begin + n] = u[:n]
    return int(large >> HUGE)


@njit(**_FAST)
def backward(
    first: int,
    last: int,
    gradient: Any,
    voltage: Any,
    threshold: np.float32,
    slope: np.float32,
    peak: np.float32,
    keep_u: np.float32,
    keep_v: np.float32,
    arriving: Any,
) -> None:
    r"""Gradients of what arrives, from those of the spikes.

    With :math:`\rho = \text{peak}\; 2^{-\text{slope} |v - \vartheta|}`,

    .. math::
        g_v[t] = \rho[t]\, g_s[t] + k_v\, g_v[t+1], \qquad g_x[t] = g_v[t] + k_u\, g_x[t+1]

    The reset has no gradient (SLAYER).
    """
    n = voltage.shape[2]
    g_u = np.zeros(n, dtype=np.float32)
    g_v = np.zeros(n, dtype=np.float32)
    for b in range(first, last):
        g_u[:] = 0
        g_v[:] = 0
        for t in range(voltage.shape[1] - 1, -1, -1):
            g, state, out = gradient[b, t], voltage[b, t], arriving[b, t]
            for j in range(n):
                rho = peak * _exp2(-slope * abs(np.float32(state[j]) - threshold))
                g_v[j] = rho * g[j] + keep_v * g_v[j]
                g_u[j] = g_v[j] + keep_u * g_u[j]
                out[j] = g_u[j]


@njit(**_FAST)
def weight_gradient(
    first: int, last: int, step: Any, start: Any, delay: int, arriving: Any, total: Any
) -> None:
    """Add the gradient of the weights over samples ``first`` to ``last`` to ``total``.

    ``step[start[b, i]:start[b, i + 1]]`` are the steps at which source i spikes.
    """
    steps, n = arriving.shape[1], total.shape[1]
    for b in range(first, last):
        for i in range(total.shape[0]):
            row = total[i]
            for e in range(start[b, i], start[b, i + 1]):
                t = step[e] + delay
                if t < steps:
                    g = arriving[b, t]
                    for j in range(n):
                        row[j] += g[j]
