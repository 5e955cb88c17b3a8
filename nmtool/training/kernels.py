"""Compiled populations of CUBA neurons for training: integer forward, float backward, by events.

States are integers in the chip's units (a real voltage of 1 is 4096), gradients are float32 in real
units. Arrays of states and gradients have the shape (samples, steps, neurons), so that the neurons
of a step lie side by side.

What a spike does stands in rows of weights: a row lies side by side in the array of weights and is
added to as many neighbouring targets. ``ways[start[i]:start[i + 1]]`` are those of source i, each
(where its row begins, the first target, the length of the row, the delay in steps). A dense
projection has one for each source, a convolution one for each place of the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from nmtool.training.spiking import EXPONENTIAL, NO_NOISE, derivatives, exponential, thresholds

_FAST: Any = {"nogil": True, "error_model": "numpy", "cache": True}

BLOCK = 256
"""Targets that are run at once, at most: their weights stay in the cache."""

WIDE = 4000
"""Neurons that go back at once, at most: long rows are read faster. No power of two, as PERIOD."""

LANES = 16
"""Numbers that are added at once; blocks of targets are padded to a multiple of them."""

WIDE_LANES = 64
"""Numbers whose sum over rows is held in registers."""

TOGETHER, PANEL = 4, 32
"""Samples and columns of a matrix that are multiplied at once: their sums are held in registers."""

PERIOD = 960
"""Registers that are the same for all neurons stand there for so many, which stay in the cache.

No power of two, so that those of a neuron lie in different sets of the cache.
"""

COLUMNS = 64
"""Targets whose weight gradients are summed at once: what arrives there stays in the cache."""

TILE = 32
"""Sources whose weights are turned at once."""

HUGE = 30
"""A state that needs more bits has left what the sums can hold."""


def _vector(context: Any, builder: Any, kind: Any, array: Any, at: Any, count: int) -> Any:
    """Where ``count`` numbers of an array begin, as a vector, in code that is being generated."""
    lanes = ir.VectorType(context.get_data_type(kind.dtype), count)
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), lanes.as_pointer())


@intrinsic
def _put_nonzero(_typing: Any, row: Any, _at: Any, out: Any, _place: Any) -> Any:
    """Put the places of those of row[at:at + LANES] that are not 0 into out[place:]; how many."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, own = signature.args[0], signature.args[2]
        piece = _vector(context, builder, kind, arguments[0], arguments[1], LANES)
        piece = builder.load(piece, align=kind.dtype.bitwidth // 8)
        spiked = builder.icmp_signed("!=", piece, ir.Constant(piece.type, [0] * LANES))
        number = ir.IntType(32)
        lanes = ir.VectorType(number, LANES)
        first = builder.trunc(arguments[1], number)
        places = builder.insert_element(ir.Constant(lanes, [0] * LANES), first, number(0))
        places = builder.shuffle_vector(places, places, ir.Constant(lanes, [0] * LANES))
        places = builder.add(places, ir.Constant(lanes, list(range(LANES))))
        out = context.make_array(own)(context, builder, arguments[2]).data
        target = builder.gep(out, [arguments[3]])
        store = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [lanes, target.type, spiked.type]),
            f"llvm.masked.compressstore.v{LANES}i32",
        )
        builder.call(store, [places, target, spiked])
        bits = builder.zext(builder.bitcast(spiked, ir.IntType(LANES)), ir.IntType(64))
        return builder.ctpop(bits)

    return types.int64(row, types.int64, out, types.int64), generate


@intrinsic
def _add_lanes(_typing: Any, out: Any, _at: Any, row: Any, _begin: Any) -> Any:
    """out[at:at + LANES] += row[begin:begin + LANES], of float32 or of integers that widen."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places, widths = [], []
        for k in (0, 2):
            kind = signature.args[k]
            array, at = arguments[k : k + 2]
            places.append(_vector(context, builder, kind, array, at, LANES))
            widths.append(kind.dtype.bitwidth // 8)
        total = builder.load(places[0], align=widths[0])
        added = builder.load(places[1], align=widths[1])
        if isinstance(signature.args[0].dtype, types.Float):
            total = builder.fadd(total, added)
        else:
            wide = added if widths[0] == widths[1] else builder.sext(added, total.type)
            total = builder.add(total, wide)
        builder.store(total, places[0], align=widths[0])
        return context.get_dummy_value()

    return types.void(out, types.int64, row, types.int64), generate


def _sum_of_rows(count: int) -> Any:
    """What adds the sum of rows, ``count`` numbers of each, which stays in registers meanwhile."""

    @intrinsic
    def add(
        _typing: Any,
        out: Any,
        _at: Any,
        rows: Any,
        _place: Any,
        _width: Any,
        index: Any,
        _first: Any,
        _last: Any,
    ) -> Any:
        """out[at:at + count] += rows[index[e] * width + place:][:count], e from first to last."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, at, row, place, width, of, first, last = arguments
            kind, size = signature.args[2], signature.args[2].dtype.bitwidth // 8
            lanes = ir.VectorType(context.get_data_type(kind.dtype), count)
            total = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0] * count))
            numbers = context.make_array(signature.args[5])(context, builder, of).data
            with cgutils.for_range_slice(builder, first, last, first.type(1)) as (e, _):
                i = builder.sext(builder.load(builder.gep(numbers, [e])), place.type)
                begin = builder.add(builder.mul(i, width), place)
                added = builder.load(_vector(context, builder, kind, row, begin, count), align=size)
                builder.store(builder.add(builder.load(total), added), total)
            target = _vector(context, builder, signature.args[0], to, at, count)
            found = builder.load(total)
            if size < 4:
                found = builder.sext(found, target.type.pointee)
            builder.store(builder.add(builder.load(target, align=4), found), target, align=4)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(out, whole, rows, whole, whole, index, whole, whole), generate

    return add


_add_sum, _add_wide_sum = _sum_of_rows(LANES), _sum_of_rows(WIDE_LANES)


def _product_of_rows(rows: int) -> Any:
    """What adds to ``rows`` rows their product with a matrix, ``PANEL`` columns of it."""
    count = PANEL

    @intrinsic
    def add(
        _typing: Any,
        array: Any,
        _to: Any,
        _came: Any,
        _stride: Any,
        matrix: Any,
        _column: Any,
        _n: Any,
    ) -> Any:
        """array[to + r stride:][:count] += sum over k of array[came + r stride + k] matrix[k, :].

        The columns are those from ``column`` on; k runs to n, the products are not rounded.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values, to, came, stride, weights, column, n = arguments
            kind, own = signature.args[0], signature.args[4]
            lanes = ir.VectorType(ir.FloatType(), count)
            begins = [builder.mul(stride, stride.type(r)) for r in range(rows)]
            targets = [
                _vector(context, builder, kind, values, builder.add(to, begin), count)
                for begin in begins
            ]
            totals = [
                cgutils.alloca_once_value(builder, builder.load(target, align=4))
                for target in targets
            ]
            data = context.make_array(kind)(context, builder, values).data
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fma.v{count}f32"
            )
            same = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
            with cgutils.for_range(builder, n) as loop:
                at = builder.add(builder.mul(loop.index, n), column)
                row = builder.load(_vector(context, builder, own, weights, at, count), align=4)
                for begin, total in zip(begins, totals, strict=True):
                    k = builder.add(builder.add(came, begin), loop.index)
                    one = builder.load(builder.gep(data, [k]), align=4)
                    first = builder.insert_element(row, one, ir.IntType(32)(0))
                    every = builder.shuffle_vector(first, first, same)
                    builder.store(builder.call(fma, [every, row, builder.load(total)]), total)
            for target, total in zip(targets, totals, strict=True):
                builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(array, whole, whole, whole, matrix, whole, whole), generate

    return add


_add_product, _add_products = _product_of_rows(1), _product_of_rows(TOGETHER)


@intrinsic
def _add_column(_typing: Any, out: Any, _at: Any, row: Any, _begin: Any) -> Any:
    """out[at:at + COLUMNS] += row[begin:begin + COLUMNS], of float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, added = (
            _vector(context, builder, signature.args[k], arguments[k], arguments[k + 1], COLUMNS)
            for k in (0, 2)
        )
        found = builder.fadd(builder.load(total, align=4), builder.load(added, align=4))
        builder.store(found, total, align=4)
        return context.get_dummy_value()

    return types.void(out, types.int64, row, types.int64), generate


@intrinsic
def _add_four_columns(
    _typing: Any, out: Any, _at: Any, row: Any, _a: Any, _b: Any, _c: Any, _d: Any
) -> Any:
    """``_add_column`` of four places of a row, as (a + b) + (c + d)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(k: int, at: Any) -> Any:
            return _vector(context, builder, signature.args[k], arguments[k], at, COLUMNS)

        total = place(0, arguments[1])
        a, b, c, d = (builder.load(place(2, at), align=4) for at in arguments[3:])
        four = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
        builder.store(builder.fadd(builder.load(total, align=4), four), total, align=4)
        return context.get_dummy_value()

    at = types.int64
    return types.void(out, at, row, at, at, at, at), generate


@njit(forceinline=True, **_FAST)
def _integers(n: int) -> Any:
    """Zeros that begin with a line of the cache."""
    found = np.zeros(n + LANES, dtype=np.int32)
    first = -found.ctypes.data // 4 % LANES
    return found[first : first + n]


@njit(forceinline=True, **_FAST)
def _floats(n: int) -> Any:
    """``_integers``, of float32."""
    return _integers(n).view(np.float32)


@njit(forceinline=True, **_FAST)
def _add(out: Any, at: int, row: Any, begin: int, length: int) -> None:
    """out[at:at + length] += row[begin:begin + length]."""
    whole = length - length % LANES
    for k in range(0, whole, LANES):
        _add_lanes(out, at + k, row, begin + k)
    for k in range(whole, length):
        out[at + k] += row[begin + k]


@njit(forceinline=True, **_FAST)
def _add_ways(
    coming: Any, t: int, ahead: int, n: int, weight: Any, ways: Any, first: int, last: int
) -> None:
    """Add the rows of the ways first to last to what arrives at n neurons at t and later."""
    for w in range(first, last):
        at = (t + ways[w, 3]) % ahead * n + ways[w, 1]
        _add(coming, at, weight, ways[w, 0], ways[w, 2])


@njit(forceinline=True, **_FAST)
def _add_rows(
    out: Any,
    at: int,
    n: int,
    weight: Any,
    width: int,
    room: int,
    source: Any,
    first: int,
    last: int,
) -> None:
    """Add the rows of the sources source[first:last] to out[at:at + n].

    Row i begins at ``weight[i * width]``; the sum of ``room`` rows fits the type of the weights.
    """
    wide, even = n - n % WIDE_LANES, n - n % LANES
    while first < last:
        end = min(first + room, last)
        for k in range(0, wide, WIDE_LANES):
            _add_wide_sum(out, at + k, weight, k, width, source, first, end)
        for k in range(wide, even, LANES):
            _add_sum(out, at + k, weight, k, width, source, first, end)
        if even < n:
            for e in range(first, end):
                row = np.int64(source[e]) * width
                for k in range(even, n):
                    out[at + k] += weight[row + k]
        first = end


@njit(forceinline=True, **_FAST)
def _decayed(state: np.int32, keep: np.int32) -> np.int32:
    """trunc(state keep / 4096) in 32 bits, of which every step of the sum needs no more."""
    size = np.int32(abs(state))
    high = np.int32(np.int32(size >> np.int32(12)) * keep)
    low = np.int32(np.int32(np.int32(size & np.int32(4095)) * keep) >> np.int32(12))
    left = np.int32(high + low)
    return left if state >= 0 else np.int32(-left)


@njit(forceinline=True, **_FAST)
def _spikes(voltage: Any, threshold: Any) -> Any:
    """Whether a neuron spikes."""
    return voltage > threshold


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
    scale: Any,
    low: Any,
    high: Any,
    back: Any,
    unit: Any,
    real: Any,
    blocks: Any,
) -> int:
    """Round the blocks ``first`` to ``last`` of weights (target, source); returns the largest size.

    ``real`` comes to hold ``back`` times the rounded number, ``blocks`` (blocks, sources, targets
    of the block) ``unit`` times, a whole number.
    """
    n, sources = weight.shape
    width = blocks.shape[2]
    whole = np.empty(TILE, dtype=np.int32)
    largest = np.int32(0)
    for block in range(first, last):
        begin, end = block * width, min(n, (block + 1) * width)
        out = blocks[block]
        for tile in range(0, sources, TILE):
            size = min(TILE, sources - tile)
            for j in range(begin, end):
                exact, rounded = weight[j, tile : tile + size], real[j, tile : tile + size]
                for i in range(size):
                    grid = min(max(np.rint(exact[i] * scale), low), high)
                    rounded[i] = grid * back
                    whole[i] = np.int32(grid * unit)
                    largest = max(largest, abs(whole[i]))
                for i in range(size):
                    out[tile + i, j - begin] = whole[i]
    return int(largest)


@njit(**_FAST)
def list_events(first: int, last: int, raster: Any, inner: Any, start: Any) -> int:
    """Places of all that is not 0 in the rows ``first`` to ``last`` of a raster, as bits.

    ``start[row]`` comes to say where the places of a row begin in ``inner``. Returns how many
    there are: if ``inner`` has no room for them and one more row, it is to be called again.
    """
    found = 0
    for r in range(first, last):
        start[r] = found
        if found + raster.shape[1] <= inner.size:
            found = _put_places(raster[r], inner, found)
        else:
            found += int(np.count_nonzero(raster[r]))
    return found


@njit(forceinline=True, **_FAST)
def _put_places(row: Any, out: Any, found: int) -> int:
    """Put the places of all that is not 0 in a row into out[found:]; returns where they end."""
    whole = row.size - row.size % LANES
    for k in range(0, whole, LANES):
        found += _put_nonzero(row, k, out, found)
    for k in range(whole, row.size):
        if row[k] != 0:
            out[found] = k
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
def relay(first: int, last: int, index: Any, begin: Any, place: Any, to: Any, out: Any) -> None:
    """Events ``first`` to ``last`` of sources turned into events of the places that they reach.

    Source i reaches ``place[begin[i]:begin[i + 1]]``. What event e gives begins at ``to[e]`` of
    ``out``.
    """
    at = to[first]
    for e in range(first, last):
        for k in range(begin[index[e]], begin[index[e] + 1]):
            out[at] = place[k]
            at += 1


@njit(**_FAST)
def merge(
    first: int, last: int, index: Any, start: Any, delay: int, offset: int, at: Any, merged: Any
) -> None:
    """Put events, ``delay`` steps later and as sources from ``offset`` on, into ``merged``.

    ``at[b, t]`` is where the next event of that step goes, and moves on.
    """
    steps = start.shape[1] - 1
    for b in range(first, last):
        for t in range(steps - delay):
            for e in range(start[b, t], start[b, t + 1]):
                merged[at[b, t + delay]] = index[e] + offset
                at[b, t + delay] += 1


@njit(forceinline=True, **_FAST)
def _update(
    u: Any,
    v: Any,
    arrived: Any,
    keep_u: Any,
    keep_v: Any,
    threshold: Any,
    bias: Any,
    voltage: Any,
    spikes: Any,
) -> np.int32:
    """One step of neurons, after ``arrived`` (units of 1/64); returns the bits that states use.

    ``voltage`` comes to hold the one before the reset.
    """
    large = np.int32(0)
    for j in range(voltage.size):
        current = np.int32(_decayed(u[j], keep_u[j]) + np.int32(arrived[j] << np.int32(6)))
        state = np.int32(_decayed(v[j], keep_v[j]) + current + bias[j])
        large = np.int32(large | abs(current) | abs(state))
        spiked = _spikes(state, threshold[j])
        u[j] = current
        v[j] = np.int32(0) if spiked else state
        voltage[j] = state
        spikes[j] = np.int8(spiked)
    return large


@njit(**_FAST)
def forward_dense(
    first: int,
    last: int,
    index: Any,
    start: Any,
    delay: int,
    weight: Any,
    room: int,
    neuron: Any,
    escape: Any,
    keys: Any,
    levels: Any,
    current: Any,
    voltage: Any,
    spikes: Any,
) -> int:
    """Run a part of a population that dense weights feed; returns whether a state grew too large.

    The part is ``first`` to ``last`` of all samples of the first block of targets, then of the
    second, and so on. ``index[start[b, t]:start[b, t + 1]]`` are the sources that spike at step t,
    which arrive ``delay`` steps later. ``weight`` holds blocks of targets, shape (blocks, sources,
    targets of the block), in units of 1/64, ``room`` rows of which can be added up in their type.
    ``neuron`` holds keep_u, keep_v, threshold and bias of every neuron, or of ``PERIOD`` neurons if
    all are the same. ``current`` may have no steps: then it is not kept. With an ``escape``
    function neurons spike by chance, by ``keys`` (populations, samples). ``levels``, if it has
    steps, has the thresholds of every step.
    """
    samples, steps, neurons = voltage.shape
    width = weight.shape[2]
    u, v, arrived, limit = _integers(width), _integers(width), _integers(width), _integers(width)
    large = np.int32(0)
    keep_current, given = current.shape[1] > 0, levels.shape[1] > 0
    for item in range(first, last):
        block, b = item // samples, item % samples
        begin = block * width
        n = min(width, neurons - begin)
        at = begin if neuron.shape[1] == neurons else 0
        keep_u, keep_v = neuron[0, at : at + n], neuron[1, at : at + n]
        threshold, bias = neuron[2, at : at + n], neuron[3, at : at + n]
        rows = weight[block].reshape(-1)
        limit[:n] = threshold
        u[:] = 0
        v[:] = 0
        for t in range(steps):
            arrived[:] = 0
            if t >= delay:
                e, end = start[b, t - delay], start[b, t - delay + 1]
                _add_rows(arrived, 0, width, rows, width, room, index, e, end)
            out = voltage[b, t, begin : begin + n]
            fired = spikes[b, t, begin : begin + n]
            if escape.kind != NO_NOISE:
                thresholds(escape, keys[0, b], t, begin, threshold, limit[:n])
            if given:
                limit[:n] = levels[b, t, begin : begin + n]
            large |= _update(u, v, arrived, keep_u, keep_v, limit[:n], bias, out, fired)
            if keep_current:
                current[b, t, begin : begin + n] = u[:n]
    return int(large >> HUGE)


@njit(**_FAST)
def forward_rows(
    first: int,
    last: int,
    index: Any,
    start: Any,
    delay: int,
    from_source: Any,
    ways: Any,
    weight: Any,
    from_neuron: Any,
    own_ways: Any,
    own_weight: Any,
    room: int,
    ahead: int,
    whole: int,
    neuron: Any,
    begins: Any,
    escape: Any,
    keys: Any,
    levels: Any,
    current: Any,
    voltage: Any,
    spikes: Any,
) -> int:
    """Run samples ``first`` to ``last`` of neurons that rows of weights feed, also their own.

    ``from_source``, ``ways`` and ``weight`` say what the spikes of the sources do, ``from_neuron``,
    ``own_ways`` and ``own_weight`` what those of the neurons themselves do, which arrive less than
    ``ahead`` steps later. With ``whole`` every source has one row, of all neurons, and own ones
    arrive ``ahead - 1`` steps later. The neurons of population k are those from ``begins[k]`` to
    ``begins[k + 1]``. The rest as in ``forward_dense``.
    """
    _, steps, n = voltage.shape
    u, v, coming = _integers(n), _integers(n), _integers(ahead * n)
    large = np.int32(0)
    keep_current, given = current.shape[1] > 0, levels.shape[1] > 0
    loops = own_ways.shape[0] > 0
    who = np.empty(n, dtype=np.int32)
    keep_u, keep_v, threshold, bias = neuron[0], neuron[1], neuron[2], neuron[3]
    period = neuron.shape[1]
    limit = threshold.copy()
    for b in range(first, last):
        u[:] = 0
        v[:] = 0
        coming[:] = 0
        for t in range(steps):
            now = t % ahead * n
            arrived = coming[now : now + n]
            if t >= delay and whole:
                e, end = start[b, t - delay], start[b, t - delay + 1]
                _add_rows(coming, now, n, weight, n, room, index, e, end)
            elif t >= delay:
                for e in range(start[b, t - delay], start[b, t - delay + 1]):
                    i = index[e]
                    _add_ways(coming, t, ahead, n, weight, ways, from_source[i], from_source[i + 1])
            fired = spikes[b, t]
            out = voltage[b, t]
            if escape.kind != NO_NOISE:
                _redraw(escape, keys[:, b], t, begins, threshold, limit)
            for k in range(0, n, period):
                end = min(k + period, n)
                m = end - k
                over = levels[b, t, k:end] if given else limit[:m]
                large |= _update(
                    u[k:end],
                    v[k:end],
                    arrived[k:end],
                    keep_u[:m],
                    keep_v[:m],
                    over,
                    bias[:m],
                    out[k:end],
                    fired[k:end],
                )
            arrived[:] = 0
            if keep_current:
                current[b, t] = u
            spiked = _put_places(fired, who, 0) if loops else 0
            if loops and whole:
                late = (t + ahead - 1) % ahead * n
                _add_rows(coming, late, n, own_weight, n, room, who, 0, spiked)
            elif loops:
                for k in range(spiked):
                    i, to = from_neuron[who[k]], from_neuron[who[k] + 1]
                    _add_ways(coming, t, ahead, n, own_weight, own_ways, i, to)
    return int(large >> HUGE)


@njit(**_FAST)
def _redraw(escape: Any, keys: Any, t: int, begins: Any, threshold: Any, limit: Any) -> None:
    """Draw the thresholds of a step anew, by the key of each population."""
    for k in range(keys.size):
        own = slice(begins[k], begins[k + 1])
        thresholds(escape, keys[k], t, 0, threshold[own], limit[own])


@njit(fastmath={"contract"}, **_FAST)
def backward(
    first: int, last: int, width: int, gradient: Any, voltage: Any, shape: int, neuron: Any
) -> None:
    r"""Gradients of what arrives, in place of those of the spikes.

    With the surrogate derivative :math:`\rho` of ``surrogates.Shape``,

    .. math::
        g_v[t] = \rho[t]\, g_s[t] + k_v\, g_v[t+1], \qquad g_x[t] = g_v[t] + k_u\, g_x[t+1]

    The reset has no gradient (SLAYER). ``neuron`` holds centre, slope, peak, k_u and k_v of
    every neuron, or of ``PERIOD``. The part is that of ``forward_dense``, with blocks of ``width``
    targets.
    """
    samples, steps, neurons = voltage.shape
    own = np.empty((neuron.shape[0], width), dtype=np.float32)
    center, slope, peak, keep_u, keep_v = own[0], own[1], own[2], own[3], own[4]
    g_u, g_v, rho = _floats(width), _floats(width), _floats(width)
    before = -1
    for item in range(first, last):
        b, begin = item % samples, item // samples * width
        end = min(neurons, begin + width)
        if begin != before:
            for k in range(own.shape[0]):
                for j in range(end - begin):
                    own[k, j] = neuron[k, (begin + j) % neuron.shape[1]]
            before = begin
        g_u[:] = 0
        g_v[:] = 0
        for t in range(steps - 1, -1, -1):
            g, state = gradient[b, t, begin:end], voltage[b, t, begin:end]
            if shape == EXPONENTIAL:
                _recur_exponential(g, state, center, slope, peak, keep_u, keep_v, g_u, g_v)
            else:
                derivatives(shape, state, center, slope, peak, rho)
                _recur(g, rho, keep_u, keep_v, g_u, g_v)


@njit(forceinline=True, fastmath={"contract"}, **_FAST)
def _recur_exponential(
    g: Any,
    voltage: Any,
    center: Any,
    slope: Any,
    peak: Any,
    keep_u: Any,
    keep_v: Any,
    g_u: Any,
    g_v: Any,
) -> None:
    """``_recur`` with SLAYER's surrogate, which goes into no memory in between."""
    for j in range(g.size):
        rho = exponential(voltage[j], center[j], slope[j], peak[j])
        g_v[j] = rho * g[j] + keep_v[j] * g_v[j]
        g_u[j] = g_v[j] + keep_u[j] * g_u[j]
        g[j] = g_u[j]


@njit(forceinline=True, fastmath={"contract"}, **_FAST)
def _recur(g: Any, rho: Any, keep_u: Any, keep_v: Any, g_u: Any, g_v: Any) -> None:
    """One step of the recurrences of ``backward``."""
    for j in range(g.size):
        g_v[j] = rho[j] * g[j] + keep_v[j] * g_v[j]
        g_u[j] = g_v[j] + keep_u[j] * g_u[j]
        g[j] = g_u[j]


@njit(fastmath={"contract"}, **_FAST)
def backward_step(
    t: int, gradient: Any, voltage: Any, shape: int, neuron: Any, g_u: Any, g_v: Any
) -> None:
    """Step t of ``backward``, of all samples; ``g_u`` and ``g_v`` are those of the step after."""
    center, slope, peak, keep_u, keep_v = neuron[0], neuron[1], neuron[2], neuron[3], neuron[4]
    rho = np.empty(gradient.shape[2], dtype=np.float32)
    for b in range(gradient.shape[0]):
        g, state = gradient[b, t], voltage[b, t]
        if shape == EXPONENTIAL:
            _recur_exponential(g, state, center, slope, peak, keep_u, keep_v, g_u[b], g_v[b])
        else:
            derivatives(shape, state, center, slope, peak, rho)
            _recur(g, rho, keep_u, keep_v, g_u[b], g_v[b])


@njit(fastmath={"contract"}, **_FAST)
def backward_loop(
    first: int,
    last: int,
    delay: int,
    matrix: Any,
    follow: Any,
    gradient: Any,
    voltage: Any,
    shape: int,
    neuron: Any,
) -> None:
    r"""``backward`` of samples ``first`` to ``last`` of neurons whose spikes come back.

    With the weights W (target, source) of what comes back ``delay`` steps later,
    :math:`g_s[t] \mathrel{+}= g_x[t + d]\, W`. Neurons where ``follow`` is 0 do not follow their
    inputs; it may be empty.
    """
    _, steps, n = voltage.shape
    center, slope, peak, keep_u, keep_v = neuron[0], neuron[1], neuron[2], neuron[3], neuron[4]
    g_u = _floats(TOGETHER * n).reshape(TOGETHER, n)
    g_v = _floats(TOGETHER * n).reshape(TOGETHER, n)
    rho = _floats(n)
    for b in range(first, last, TOGETHER):
        count = min(TOGETHER, last - b)
        g_u[:] = 0
        g_v[:] = 0
        for t in range(steps - 1, -1, -1):
            if t + delay < steps:
                _send_product(gradient, b, count, t, t + delay, matrix)
            for k in range(count):
                g, state = gradient[b + k, t], voltage[b + k, t]
                for j in range(follow.size):
                    g[j] *= follow[j]
                if shape == EXPONENTIAL:
                    _recur_exponential(
                        g, state, center, slope, peak, keep_u, keep_v, g_u[k], g_v[k]
                    )
                else:
                    derivatives(shape, state, center, slope, peak, rho)
                    _recur(g, rho, keep_u, keep_v, g_u[k], g_v[k])


@njit(forceinline=True, **_FAST)
def _send_product(gradient: Any, b: int, count: int, sent: int, came: int, matrix: Any) -> None:
    """gradient[b + k, sent] += gradient[b + k, came] @ matrix, for k from 0 to count."""
    _, steps, n = gradient.shape
    values, weights, stride = gradient.reshape(-1), matrix.reshape(-1), steps * n
    whole = n - n % PANEL
    to, of = b * stride + sent * n, b * stride + came * n
    for j in range(0, whole, PANEL):
        if count == TOGETHER:
            _add_products(values, to + j, of, stride, weights, j, n)
        else:
            for k in range(count):
                _add_product(values, to + k * stride + j, of + k * stride, 0, weights, j, n)
    for k in range(count):
        for j in range(whole, n):
            total = gradient[b + k, sent, j]
            for i in range(n):
                total += gradient[b + k, came, i] * matrix[i, j]
            gradient[b + k, sent, j] = total


@njit(**_FAST)
def rows_gradient(
    first: int,
    last: int,
    index: Any,
    start: Any,
    delay: int,
    from_source: Any,
    ways: Any,
    arriving: Any,
    total: Any,
) -> None:
    """Add the gradients of rows of weights, of samples ``first`` to ``last``, to ``total``."""
    steps = arriving.shape[1]
    for b in range(first, last):
        for t in range(steps - delay):
            came = arriving[b, t + delay]
            for e in range(start[b, t], start[b, t + 1]):
                for w in range(from_source[index[e]], from_source[index[e] + 1]):
                    _add(total, ways[w, 0], came, ways[w, 1], ways[w, 2])


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def rows_back(
    first: int, last: int, from_source: Any, ways: Any, weight: Any, arriving: Any, out: Any
) -> None:
    """Gradients of sources, from those of what arrives, of rows ``first`` to ``last`` of both."""
    for r in range(first, last):
        for i in range(out.shape[1]):
            total = np.float32(0)
            for w in range(from_source[i], from_source[i + 1]):
                row, place = np.uint64(ways[w, 0]), np.uint64(ways[w, 1])
                for j in range(np.uint64(ways[w, 2])):
                    total += weight[row + j] * arriving[r, place + j]
            out[r, i] = total


@njit(**_FAST)
def spread(first: int, last: int, begin: Any, place: Any, gradient: Any, out: Any) -> None:
    """Gradients of sources, from those of the places that ``relay`` takes them to."""
    for r in range(first, last):
        for i in range(out.shape[1]):
            total = np.float32(0)
            for k in range(begin[i], begin[i + 1]):
                total += gradient[r, place[k]]
            out[r, i] = total


@njit(**_FAST)
def spread_one(first: int, last: int, place: Any, gradient: Any, out: Any) -> None:
    """``spread`` where every source has one place."""
    for r in range(first, last):
        came, row = gradient[r], out[r]
        for i in range(row.size):
            row[i] = came[place[i]]


@njit(**_FAST)
def weight_gradient(
    first: int,
    last: int,
    share: int,
    step: Any,
    start: Any,
    delay: int,
    arriving: Any,
    gradient: Any,
) -> None:
    """The gradient of the weights (target, source), of the parts ``first`` to ``last`` of it.

    The parts are ``share`` sources to ``COLUMNS`` targets, then the next sources to them, and so
    on. ``step[start[b, i]:start[b, i + 1]]`` are the steps at which source i spikes. The sum over
    the samples and steps has the same order whatever the parts are.
    """
    samples, steps, n = arriving.shape
    sources = gradient.shape[1]
    shares = -(-sources // share)
    came, total = _floats(steps * COLUMNS), _floats(share * COLUMNS)
    for part in range(first, last):
        low, target = part % shares * share, part // shares * COLUMNS
        high, width = min(low + share, sources), min(COLUMNS, n - target)
        total[:] = 0
        for b in range(samples):
            for t in range(steps - delay):
                row = arriving[b, t + delay]
                for j in range(width):
                    came[t * COLUMNS + j] = row[target + j]
            for i in range(low, high):
                to = (i - low) * COLUMNS
                e, stop = start[b, i], start[b, i + 1]
                while stop > e and step[stop - 1] >= steps - delay:
                    stop -= 1
                while e + 4 <= stop:
                    one, two = step[e] * COLUMNS, step[e + 1] * COLUMNS
                    three, four = step[e + 2] * COLUMNS, step[e + 3] * COLUMNS
                    _add_four_columns(total, to, came, one, two, three, four)
                    e += 4
                while e < stop:
                    _add_column(total, to, came, step[e] * COLUMNS)
                    e += 1
        for tile in range(low, high, TILE):
            for j in range(width):
                for i in range(tile, min(tile + TILE, high)):
                    gradient[target + j, i] = total[(i - low) * COLUMNS + j]
