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
_SMALLEST = np.float32(-126)
_EXP2 = tuple(
    np.float32(np.log(2) ** k / np.prod(np.arange(1, k + 1, dtype=np.float64))) for k in range(7)
)
"""Taylor coefficients of 2^x, for x from -1/2 to 1/2."""

BLOCK = 256
"""Targets that are run at once: their weights stay in the cache."""

LANES = 16
"""Blocks are padded to a multiple of so many targets, which one vector register holds."""

SOURCES = 128
"""Sources whose weight gradients are summed at once: their rows stay in the cache."""

TILE = 32
"""Sources whose weights are turned at once."""

PIECE = 32
"""Places of a raster that are looked at together."""

HUGE = 30
"""A state that needs more bits has left what the sums can hold."""


@intrinsic
def _float_of_bits(_typing: Any, _bits: Any) -> Any:
    """The float32 that an int32 is the bit pattern of."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _nonzero(_typing: Any, row: Any, _at: Any) -> Any:
    """Of the ``PIECE`` numbers row[at:at + PIECE], those that are not 0, as the bits of a word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        number = context.get_data_type(kind.dtype)
        data = context.make_array(kind)(context, builder, arguments[0]).data
        lanes = ir.VectorType(number, PIECE)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), lanes.as_pointer())
        piece = builder.load(place, align=kind.dtype.bitwidth // 8)
        spiked = builder.icmp_signed("!=", piece, ir.Constant(lanes, [0] * PIECE))
        return builder.zext(builder.bitcast(spiked, ir.IntType(PIECE)), ir.IntType(64))

    return types.uint64(row, types.int64), generate


@intrinsic
def _lowest(_typing: Any, _bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


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


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def squared_error(weight: Any, scale: float, low: float, high: float, back: float) -> float:
    """Of weights that are rounded to ``back * clip(round(scale * weight), low, high)``."""
    flat = weight.reshape(-1)
    total = 0.0
    for k in range(flat.size):
        real = np.float64(flat[k])
        difference = min(max(np.rint(real * scale), low), high) * back - real
        total += difference * difference
    return total


@njit(**_FAST)
def round_weights(
    first: int,
    last: int,
    weight: Any,
    scale: float,
    low: float,
    high: float,
    back: float,
    unit: float,
    real: Any,
    blocks: Any,
) -> float:
    """Round the blocks ``first`` to ``last`` of weights (target, source); returns the largest size.

    ``real`` comes to hold ``back`` times the rounded number, ``blocks`` (blocks, sources, targets
    of the block) ``unit`` times, a whole number.
    """
    n, sources = weight.shape
    largest = 0.0
    for block in range(first, last):
        begin, end = block * BLOCK, min(n, (block + 1) * BLOCK)
        out = blocks[block]
        for tile in range(0, sources, TILE):
            for j in range(begin, end):
                for i in range(tile, min(tile + TILE, sources)):
                    grid = min(max(np.rint(np.float64(weight[j, i]) * scale), low), high)
                    real[j, i] = grid * back
                    out[i, j - begin] = np.int32(grid * unit)
                    largest = max(largest, abs(grid))
    return largest * unit


@njit(**_FAST)
def list_events(first: int, last: int, raster: Any, inner: Any, start: Any) -> int:
    """Places of all that is not 0 in the rows ``first`` to ``last`` of a raster, as bits.

    ``start[row]`` comes to say where the places of a row begin in ``inner``. Returns how many
    there are: if ``inner`` has no room for them, it is to be called again.
    """
    found = 0
    places, room = raster.shape[1], inner.size
    for r in range(first, last):
        start[r] = found
        row = raster[r]
        whole = places - places % PIECE
        for piece in range(0, whole, PIECE):
            bits = _nonzero(row, piece)
            while bits != 0:
                if found < room:
                    inner[found] = piece + _lowest(bits)
                found += 1
                bits &= bits - np.uint64(1)
        for k in range(whole, places):
            if row[k] != 0:
                if found < room:
                    inner[found] = k
                found += 1
    return found


@njit(**_FAST)
def turn(first: int, last: int, inner: Any, begins: Any, index: Any, turned: Any) -> None:
    """Events by row turned into events by place, of samples ``first`` to ``last``.

    ``index`` then holds rows, in rising order.

    ``begins`` (samples, rows + 1) says where the places of each row begin in ``inner``, ``turned``
    (samples, places + 1), all 0, comes to say where the rows of each place begin in ``index``.
    """
    places = turned.shape[1] - 1
    for b in range(first, last):
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
    """Run a part of a layer; returns whether a state grew too large.

    The part is ``first`` to ``last`` of all samples of the first block of targets, then of the
    second, and so on. ``index[start[b, t]:start[b, t + 1]]`` are the sources that spike at step t,
    which arrive ``delay`` steps later. ``weight`` holds blocks of targets, shape (blocks, sources,
    targets of the block), in units of 1/64. ``voltage`` is the one before the reset. ``current``
    may have no steps: then it is not kept.
    """
    samples, steps, neurons = voltage.shape
    width = weight.shape[2]
    u = np.zeros(width, dtype=np.int32)
    v = np.zeros(width, dtype=np.int32)
    drive = np.zeros(width, dtype=np.int32)
    large = np.int32(0)
    keep_current = current.shape[1] > 0
    for item in range(first, last):
        block, b = item // samples, item % samples
        begin = block * BLOCK
        n = min(BLOCK, neurons - begin)
        rows = weight[block]
        drive[:n] = bias[begin : begin + n]
        u[:] = 0
        v[:] = 0
        for t in range(steps):
            for j in range(width):
                u[j] = _decayed(u[j], keep_u)
            if t >= delay:
                e, end = start[b, t - delay], start[b, t - delay + 1]
                while e + 4 <= end:
                    r0, r1 = rows[index[e]], rows[index[e + 1]]
                    r2, r3 = rows[index[e + 2]], rows[index[e + 3]]
                    for j in range(width):
                        four = np.int32(r0[j]) + np.int32(r1[j]) + np.int32(r2[j]) + np.int32(r3[j])
                        u[j] += np.int32(four) << np.int32(6)
                    e += 4
                while e < end:
                    row = rows[index[e]]
                    for j in range(width):
                        u[j] += np.int32(row[j]) << np.int32(6)
                    e += 1
            out = voltage[b, t, begin : begin + n]
            fired = spikes[b, t, begin : begin + n]
            for j in range(n):
                state = _decayed(v[j], keep_v) + u[j] + drive[j]
                large |= abs(u[j]) | abs(state)
                out[j] = state
                spiked = state > threshold
                fired[j] = np.float32(spiked)
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
    r"""Gradients of what arrives, from those of the spikes, of a part as in ``forward``.

    With :math:`\rho = \text{peak}\; 2^{-\text{slope} |v - \vartheta|}`,

    .. math::
        g_v[t] = \rho[t]\, g_s[t] + k_v\, g_v[t+1], \qquad g_x[t] = g_v[t] + k_u\, g_x[t+1]

    The reset has no gradient (SLAYER).
    """
    samples, steps, neurons = voltage.shape
    g_u = np.zeros(BLOCK, dtype=np.float32)
    g_v = np.zeros(BLOCK, dtype=np.float32)
    for item in range(first, last):
        b, begin = item % samples, item // samples * BLOCK
        n = min(BLOCK, neurons - begin)
        g_u[:] = 0
        g_v[:] = 0
        for t in range(steps - 1, -1, -1):
            g, state = gradient[b, t, begin : begin + n], voltage[b, t, begin : begin + n]
            out = arriving[b, t, begin : begin + n]
            for j in range(n):
                rho = peak * _exp2(-slope * abs(np.float32(state[j]) - threshold))
                g_v[j] = rho * g[j] + keep_v * g_v[j]
                g_u[j] = g_v[j] + keep_u * g_u[j]
                out[j] = g_u[j]


@njit(**_FAST)
def weight_gradient(
    first: int, last: int, step: Any, start: Any, delay: int, arriving: Any, gradient: Any
) -> None:
    """The gradient of the weights (target, source), of ``SOURCES`` times first to last sources.

    ``step[start[b, i]:start[b, i + 1]]`` are the steps at which source i spikes. The sum over the
    samples and steps has the same order whatever the parts are.
    """
    samples, steps, n = arriving.shape
    sources = gradient.shape[1]
    total = np.empty((SOURCES, n), dtype=np.float32)
    for part in range(first, last):
        begin = part * SOURCES
        end = min(begin + SOURCES, sources)
        total[:] = 0
        for b in range(samples):
            came = arriving[b]
            for i in range(begin, end):
                row = total[i - begin]
                e, stop = start[b, i], start[b, i + 1]
                while stop > e and step[stop - 1] + delay >= steps:
                    stop -= 1
                while e + 4 <= stop:
                    g0, g1 = came[step[e] + delay], came[step[e + 1] + delay]
                    g2, g3 = came[step[e + 2] + delay], came[step[e + 3] + delay]
                    for j in range(n):
                        row[j] += (g0[j] + g1[j]) + (g2[j] + g3[j])
                    e += 4
                while e < stop:
                    g = came[step[e] + delay]
                    for j in range(n):
                        row[j] += g[j]
                    e += 1
        for tile in range(0, n, TILE):
            for i in range(begin, end):
                for j in range(tile, min(tile + TILE, n)):
                    gradient[j, i] = total[i - begin, j]
