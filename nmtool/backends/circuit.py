"""A Program laid out as the tables that the compiled kernel runs on.

The layout depends on the structure of the program alone: where a weight lies in the tables is
worked out once, and new weights are filled in by one gather (:meth:`Layout.fill`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nmtool.backends import kernel
from nmtool.backends.faults import Defects
from nmtool.backends.runs import RunTable, by_lines, run_table
from nmtool.errors import FitError
from nmtool.fixedpoint import ALIGN_BITS, CURRENT_DECAY_OFFSET, DECAY_ONE, IntArray, shift
from nmtool.network import IntLike
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation

Array = npt.NDArray[Any]

MODELS = {
    "cuba": kernel.CUBA,
    "delta": kernel.DELTA,
    "sigma_delta": kernel.SIGMA_DELTA,
    "sigma": kernel.SIGMA,
}
DRIVES = {"graded": kernel.DRIVE_X, "bias": kernel.DRIVE_BIAS}
SHORT = 4
"""Runs of fewer synapses than this on average are stored synapse by synapse."""

INT16_MAX, INT32_MAX = (1 << 15) - 1, (1 << 31) - 1
LINES = 128
"""Bytes that two threads should not share."""

FULL = 4
"""A projection with at least one in so many of all synapses may be stored as a full matrix."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The kernel's tables, and where in them the weights of each projection lie.

    ``places[projection]`` is a table of weights and, for each of its elements, the index in the
    flattened mantissas, or -1 for padding.
    """

    tables: kernel.Circuit
    places: Mapping[str, tuple[Array, Array]]

    def fill(self, projection: str, weight: IntArray) -> None:
        """Put the weights of a projection, mantissa times 2^exponent, where they belong."""
        table, index = self.places[projection]
        padded = np.zeros(weight.size + 1, dtype=np.int16)
        padded[:-1] = weight.ravel()
        np.take(padded, index, out=table, mode="wrap")


def build(net: QuantizedNetwork, defects: Defects | None = None) -> Layout:
    """The tables of a network, its weights not yet filled in.

    Raises:
        FitError: neurons times delays are too many for the emulator's indices of 32 bits.
    """
    populations = list(net.populations.values())
    lanes = [_rounded(p.size, kernel.BLOCK) for p in populations]
    first = np.concatenate([[0], np.cumsum(lanes, dtype=np.int64)])
    place = {name: int(first[i]) for i, name in enumerate(net.populations)}
    node = {name: i for i, name in enumerate((*net.inputs, *net.populations))}
    names = sorted(net.projections, key=lambda name: node[net.projections[name].source])
    depth = net.delay_max + 2
    if (depth + 1) * int(first[-1]) + kernel.BLOCK > INT32_MAX:
        raise FitError(
            f"emulator: found {int(first[-1])} neurons (in whole blocks of {kernel.BLOCK}) with "
            f"delays up to {net.delay_max}, allowed {INT32_MAX // (depth + 1)} with such delays"
        )
    tables = _Tables(int(first[-1]))
    rows = [tables.add(name, _runs(net, name, defects), *_ends(net, name, place)) for name in names]
    lane_tables = _lanes(net, defects, place, int(first[-1]))
    sources = np.array([node[net.projections[name].source] for name in names], dtype=np.int64)
    drives = _drives(net, node)
    return tables.finish(
        {
            "populations": _populations(net, defects, place, drives),
            "projections": np.array(rows, kernel.PROJECTION),
            "outgoing": np.searchsorted(sources, np.arange(len(node) + 1)).astype(np.int64),
            "drives": np.array([row for _, row in drives], kernel.DRIVE),
            **lane_tables,
            **_numbers(net, defects, place, int(first[-1])),
            "waiting_begin": _waiting(net, defects),
            "depth": depth,
        }
    )


def _waiting(net: QuantizedNetwork, defects: Defects | None) -> Array:
    """Where the two lists of every node's late spikes begin, each a count and its neurons."""
    sizes = np.array([net.sizes[name] for name in (*net.inputs, *net.populations)], dtype=np.int64)
    needed = bool(defects and defects.faults.late_spikes)
    return np.concatenate([[0], np.cumsum(2 * (sizes + 1) * needed)]).astype(np.int64)


def _runs(net: QuantizedNetwork, name: str, defects: Defects | None) -> RunTable:
    projection = net.projections[name]
    source = projection.source
    table = run_table(
        projection.operations, net.shapes[source], projection.delay, net.axonal_delay(source)
    )
    if defects and source in defects.lines:
        return by_lines(table, defects.lines[source])
    return table


def _ends(net: QuantizedNetwork, name: str, place: Mapping[str, int]) -> tuple[int, int, bool, int]:
    """First lane and size of the target, whether messages are graded, weights that fit 16 bits."""
    projection = net.projections[name]
    format = projection.format
    largest = shift(np.int64(max(-format.minimum, format.maximum)), format.exponent)
    return (
        place[projection.target],
        net.sizes[projection.target],
        net.graded(projection.source),
        max(1, INT16_MAX // max(1, int(largest))),
    )


def _drives(net: QuantizedNetwork, node: Mapping[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """The driven populations and the kernel's rows, sorted by population."""
    order = list(net.populations)
    rows = [
        (
            source.drives,
            (
                node[name],
                DRIVES[source.kind],
                net.populations[source.drives].bias_exponent,
            ),
        )
        for name, source in net.inputs.items()
        if source.drives is not None
    ]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _lanes(
    net: QuantizedNetwork, defects: Defects | None, place: Mapping[str, int], lanes: int
) -> dict[str, Array]:
    """Threshold, bias, faults and, where they may differ, decays of every lane."""
    own = lanes if defects else 0
    tables = {name: aligned(lanes, np.int32) for name in ("threshold", "bias")}
    tables |= {name: aligned(own, np.int32) for name in ("keep_u", "keep_v")}
    tables["faults"] = aligned(lanes, np.uint8)
    tables["threshold"][:] = kernel.NEVER
    for name, p in net.populations.items():
        own_lanes = slice(place[name], place[name] + p.size)
        tables["threshold"][own_lanes] = p.effective_threshold
        tables["bias"][own_lanes] = p.bias
        if defects:
            tables["threshold"][own_lanes] = defects.threshold_of(name) << ALIGN_BITS
            tables["keep_u"][own_lanes] = _keep_u(defects.decay_u[name])
            tables["keep_v"][own_lanes] = _keep_v(defects.decay_v[name])
            tables["faults"][place[name] + defects.dead[name]] = kernel.DEAD
            tables["faults"][place[name] + defects.stuck[name]] = kernel.STUCK
    return tables


def _numbers(
    net: QuantizedNetwork, defects: Defects | None, place: Mapping[str, int], lanes: int
) -> dict[str, Array]:
    """The numbers of nodes and of their neurons by which spikes are lost."""
    known = defects.numbers if defects else {}
    nodes = enumerate((*net.inputs, *net.populations))
    neuron = aligned(lanes if defects else 0, np.int32)
    for name, p in net.populations.items() if defects else ():
        _, own = known.get(name, (0, np.arange(p.size)))
        neuron[place[name] : place[name] + p.size] = own
    node = np.array([known[name][0] if name in known else k for k, name in nodes], dtype=np.int64)
    return {"node_number": node, "neuron_number": neuron}


def _populations(
    net: QuantizedNetwork,
    defects: Defects | None,
    place: Mapping[str, int],
    drives: Sequence[tuple[str, tuple[int, ...]]],
) -> Array:
    table = np.zeros(len(place), kernel.POPULATION)
    driven = [name for name, _ in drives]
    for row, (name, p) in zip(table, net.populations.items(), strict=True):
        begin = driven.index(name) if name in driven else 0
        values = {
            "first": place[name],
            "size": p.size,
            "model": MODELS[p.model],
            "special": _special(name, p, defects),
            "drive_begin": begin,
            "drive_end": begin + driven.count(name),
            "record": -1,
            "record_u": -1,
            "record_v": -1,
            **_registers(p),
        }
        for key, value in values.items():
            row[key] = value
    return table


def _special(name: str, p: QuantizedPopulation, defects: Defects | None) -> int:
    """Which update the neurons of a population need."""
    if defects:
        decays = ((defects.decay_u, p.decay_u), (defects.decay_v, p.decay_v))
        if any(np.any(own[name] != usual) for own, usual in decays):
            return kernel.OWN_DECAYS
        if len(defects.dead[name]) + len(defects.stuck[name]):
            return kernel.SPECIAL
    return kernel.SPECIAL if p.refractory_delay > 1 else 0


def _keep_u(decay: IntLike) -> IntLike:
    return DECAY_ONE - decay - CURRENT_DECAY_OFFSET


def _keep_v(decay: IntLike) -> IntLike:
    return DECAY_ONE - decay


def _registers(p: QuantizedPopulation) -> dict[str, IntLike]:
    interval = p.reset.interval if p.reset else 0
    return {
        "keep_u": _keep_u(p.decay_u),
        "keep_v": _keep_v(p.decay_v),
        "refractory": p.refractory_delay - 1,
        "reset_interval": interval,
        "reset_offset": p.reset.offset % interval if p.reset else 0,
        "relu": p.activation == "relu",
        "state_exp": p.state_exponent,
        "shift": p.spike_exponent + p.state_exponent,
    }


@dataclass
class _Tables:
    """The growing tables of all projections; weights are indices until the end."""

    lanes: int
    rows: list[Array] = field(default_factory=list)
    pattern: list[Array] = field(default_factory=list)
    runs: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    unit_place: list[Array] = field(default_factory=list)
    unit_weight: list[Array] = field(default_factory=list)
    late: list[Array] = field(default_factory=list)
    owners: list[tuple[str, bool, int, Array]] = field(default_factory=list)

    def add(
        self, name: str, table: RunTable, first: int, size: int, graded: bool, fit: int
    ) -> tuple[int, ...]:
        """Append a projection; returns its row of ``kernel.PROJECTION``."""
        delays = late_delays(table, size)
        late = -1
        if delays is not None:
            late = _length(self.late)
            self.late.append(delays * self.lanes + first + np.arange(size))
            table = full_matrix(table, size)
        place = table.delay * self.lanes + first + table.target
        common = {"graded": graded, "fit": fit, "late": late, "first": first, "size": size}
        if _is_dense(table, size):
            begin = self._add_weights(name, table, kernel.ROW)
            stride = _rounded(size, kernel.ROW)
            row = {"kind": kernel.DENSE, "weight": begin[0], "stride": stride, "place": place[0]}
            return _row({**common, **row})
        synapses = int(table.length.sum())
        if synapses < SHORT * table.length.size:
            row = {"kind": kernel.UNITS, "row": self._add_units(name, table, place)}
        else:
            begin = self._add_weights(name, table, kernel.RUN)
            at = _length(self.rows)
            self.rows.append(table.row + _length(self.runs) // 3)
            self.pattern.append(_pattern(table.row, place, table.length))
            self.runs.append(np.stack([place, begin // kernel.RUN, table.length], 1).ravel())
            row = {"kind": kernel.RUNS, "row": at}
        return _row({**common, **row})

    def _add_weights(self, name: str, table: RunTable, vector: int) -> IntArray:
        """Weights in whole vectors; returns where each run begins."""
        begin, stretches = _shared(table)
        padded, starts = _pad(table.order, *stretches, vector)
        at = _length(self.weights)
        self.weights.append(padded)
        self.owners.append((name, False, at, padded))
        return starts[begin] + at

    def _add_units(self, name: str, table: RunTable, place: IntArray) -> int:
        at = _length(self.unit_place)
        self.unit_place.append(ranges(place, table.length).astype(np.int32))
        index = table.order[ranges(table.weight, table.length)].astype(np.int32)
        self.unit_weight.append(index)
        self.owners.append((name, True, at, index))
        ends = np.concatenate([[0], np.cumsum(table.length, dtype=np.int64)])
        row = _length(self.rows)
        self.rows.append(ends[table.row] + at)
        self.pattern.append(np.zeros_like(table.row))
        return row

    def finish(self, rest: dict[str, Any]) -> Layout:
        """The finished tables."""
        tables = kernel.Circuit(
            rows=_joined(self.rows, np.int64),
            pattern=_joined(self.pattern, np.int32),
            runs=_joined(self.runs, np.int32),
            weights=aligned(_length(self.weights) + kernel.ROW, np.int16),
            unit_place=_joined(self.unit_place, np.int32),
            unit_weight=aligned(_length(self.unit_weight), np.int16),
            late=_joined(self.late, np.int32),
            **rest,
        )
        places = {}
        for name, unit, begin, index in self.owners:
            table = tables.unit_weight if unit else tables.weights
            places[name] = (table[begin : begin + index.size], index)
        return Layout(tables, places)


def late_delays(table: RunTable, size: int) -> IntArray | None:
    """The delay of each target neuron, where it has one for all its synapses.

    None where targets do not differ, or the projection is too empty to be stored as a matrix.
    """
    sources = table.row.size - 1
    synapses = int(table.length.sum())
    if not synapses or FULL * synapses < sources * size or _one(table.delay):
        return None
    target, delay = ranges(table.target, table.length), np.repeat(table.delay, table.length)
    late = np.zeros(size, dtype=np.int64)
    late[target] = delay
    if not np.array_equal(late[target], delay):
        return None
    source = np.repeat(np.repeat(np.arange(sources), np.diff(table.row)), table.length)
    joined = np.zeros(sources * size, dtype=np.bool_)
    joined[source * size + target] = True
    return late if np.count_nonzero(joined) == synapses else None


def full_matrix(table: RunTable, size: int) -> RunTable:
    """The table as a full matrix without delays; -1 where there is no synapse."""
    sources = table.row.size - 1
    source = np.repeat(np.repeat(np.arange(sources), np.diff(table.row)), table.length)
    order = np.full(sources * size, -1)
    place = source * size + ranges(table.target, table.length)
    order[place] = table.order[ranges(table.weight, table.length)]
    zero = np.zeros(sources, dtype=np.int64)
    every = np.arange(sources)
    return replace(
        table,
        row=np.arange(sources + 1),
        target=zero,
        weight=every * size,
        length=np.full(sources, size),
        delay=zero,
        order=order,
    )


def _is_dense(table: RunTable, size: int) -> bool:
    """Whether every source reaches the whole target with one and the same delay."""
    sources = table.row.size - 1
    whole = table.length.size == sources and bool(np.all(np.diff(table.row) == 1))
    return whole and bool(np.all(table.length == size)) and _one(table.delay) and _apart(table)


def _apart(table: RunTable) -> bool:
    """Whether every run has weights of its own, one after the other."""
    return np.array_equal(table.weight, np.cumsum(table.length) - table.length)


def _shared(table: RunTable) -> tuple[IntArray, tuple[IntArray, IntArray]]:
    """For each run its stretch of weights, and the stretches: runs may share them."""
    if _apart(table):
        return np.arange(table.weight.size), (table.weight, table.length)
    base = int(table.length.max(initial=0)) + 1
    key, which = np.unique(table.weight * base + table.length, return_inverse=True)
    return which, (key // base, key % base)


def _pattern(row: IntArray, place: IntArray, length: IntArray) -> IntArray:
    """A number for each row, equal to that of the row before where the runs have equal places."""
    count = np.diff(row, prepend=0, append=row[-1:])[1:]
    before = np.diff(count, prepend=-1) == 0
    run_row = np.repeat(np.arange(row.size), count)
    run = np.arange(place.size)
    other = np.maximum(run - count[run_row], 0)
    differs = (place != place[other]) | (length != length[other])
    return np.cumsum(~before | (np.bincount(run_row[differs], minlength=row.size) > 0))


def _pad(order: IntArray, begin: IntArray, length: IntArray, vector: int) -> tuple[Array, IntArray]:
    """Stretches of ``order``, each in whole vectors; returns where each begins, too."""
    room = _rounded(length, vector)
    starts = np.cumsum(room) - room
    padded = np.full(int(room.sum()), -1, dtype=np.int32)
    padded[ranges(starts, length)] = order[ranges(begin, length)]
    return padded, starts


def ranges(begin: IntArray, length: IntArray) -> IntArray:
    """begin[0] to begin[0] + length[0] - 1, then begin[1] ..., in one array."""
    ends = np.cumsum(length, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(begin - (ends - length), length) + np.arange(total)


def _rounded(size: Any, to: int) -> Any:
    """The next multiple."""
    return -(-size // to) * to


def aligned(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Zeros in cache lines of their own, and of their neighbour's prefetcher."""
    kind = np.dtype(dtype)
    size = math.prod(np.atleast_1d(shape).tolist()) * kind.itemsize
    space = np.zeros(_rounded(size, LINES) + LINES, np.uint8)
    begin = -space.ctypes.data % LINES
    return space[begin : begin + size].view(kind).reshape(shape)


def _row(values: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(values.get(name, 0)) for name in kernel.PROJECTION.names or ())


def _one(values: IntArray) -> bool:
    return bool(values.size) and bool(np.all(values == values[0]))


def _length(parts: Sequence[Array]) -> int:
    return sum(part.size for part in parts)


def _joined(parts: Sequence[Array], dtype: npt.DTypeLike) -> Array:
    table = aligned(_length(parts), dtype)
    if parts:
        table[:] = np.concatenate(parts)
    return table
