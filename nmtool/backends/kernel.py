"""The compiled core: Loihi's fixed-point networks, one event at a time, bit for bit.

All neurons of a circuit share one index space of lanes. A population begins at a multiple of
64 lanes, and what is left of its last block of 64 is padding that never fires. Blocks at rest
are skipped; a spike costs the weights that it adds. `circuit.build` makes the tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.extending import intrinsic

from nmtool.fixedpoint import STATE_LIMIT

BLOCK = 64
VECTOR = 16
"""Lanes that are updated at once."""

RUN = 8
"""Weights of a run are stored in such pieces, and rows of a full matrix in pieces of ROW."""

ROW = 32
GROUP = 64
"""Events whose runs are added up before they go to the ring, at most."""

SPARE = 8
"""Room after a list of events that may be overwritten: events are written in such pieces."""

CUBA, DELTA, SIGMA_DELTA, SIGMA = range(4)
DENSE, RUNS, UNITS = range(3)
DRIVE_X, DRIVE_BIAS = range(2)
DEAD, STUCK = 1, 2
SPECIAL, OWN_DECAYS = 1, 2
LOST_SPIKE, LATE_SPIKE = range(2)
DONE, NO_ROOM, PAUSED = range(3)

V_LIMIT = STATE_LIMIT - 1
BIAS_LIMIT = 1 << 30
NEVER = np.int32((1 << 31) - 1)
CHANCE_BITS = 53

_ZERO = np.int32(0)
_INNER: Any = {
    "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy",
}  # fmt: skip
_HASH = np.uint64(0x6A09E667F3BCC909)
_LATE_HASH = np.uint64(0xBB67AE8584CAA73B)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

POPULATION = np.dtype(
    [
        ("first", np.int64),  # first lane, a multiple of 64
        ("size", np.int64),  # neurons; lanes up to the next multiple of 64 are padding
        ("model", np.int64),  # CUBA, DELTA, SIGMA_DELTA or SIGMA
        ("keep_u", np.int64),  # CUBA: 4096 - decay
        ("keep_v", np.int64),
        ("refractory", np.int64),
        ("reset_interval", np.int64),  # 0: never
        ("reset_offset", np.int64),
        ("special", np.int64),  # SPECIAL: refractory or with faulty neurons, or OWN_DECAYS
        ("relu", np.int64),
        ("state_exp", np.int64),
        ("shift", np.int64),  # spike_exp + state_exp
        ("drive_begin", np.int64),  # its rows of `drives`
        ("drive_end", np.int64),
        ("record", np.int64),  # index of its event record, or -1
        ("record_u", np.int64),  # where its u begins in `Record.states`, or -1
        ("record_v", np.int64),
    ],
    align=True,
)

PROJECTION = np.dtype(
    [
        ("kind", np.int64),  # DENSE, RUNS or UNITS
        ("graded", np.int64),  # 1: weights are multiplied by payloads
        ("row", np.int64),  # RUNS, UNITS: its first entry in `Circuit.rows`
        ("weight", np.int64),  # DENSE: its first weight
        ("stride", np.int64),  # DENSE: weights of a row, zeros up to a multiple of 32
        ("place", np.int64),  # DENSE: delay * lanes + first target
        ("fit", np.int64),  # DENSE: so many weights surely add up in 16 bits
        ("late", np.int64),  # where its places per target begin in `Circuit.late`, or -1
        ("first", np.int64),  # the target population's first lane
        ("size", np.int64),  # and its neurons
    ],
    align=True,
)

DRIVE = np.dtype(
    [("input", np.int64), ("kind", np.int64), ("shift", np.int64)],
    align=True,
)


class Circuit(NamedTuple):
    """Constant tables of a circuit of I inputs and P populations, shared by all threads."""

    populations: Any  # POPULATION[P]
    projections: Any  # PROJECTION[J], sorted by source node
    outgoing: Any  # int64[I + P + 1]: projections of each source node
    drives: Any  # DRIVE[], sorted by population
    threshold: Any  # int32[lanes]: CUBA threshold or vth; NEVER in padding
    bias: Any  # int32[lanes]
    faults: Any  # uint8[lanes]: 0, DEAD or STUCK
    node_number: Any  # int64[I + P]: of each node, for the hash of losses
    neuron_number: Any  # int32[lanes]: of each neuron in its node, for the same
    keep_u: Any  # int32[lanes]: as that of the population, where it has OWN_DECAYS
    keep_v: Any  # int32[lanes]
    rows: Any  # int64[]: for each row the first of its runs or units, and the end
    pattern: Any  # int32[]: as rows; equal numbers where runs differ in their weights only
    runs: Any  # int32[3 R]: place (delay * lanes + target), weight / 8, length
    weights: Any  # int16[]: every run is padded with zeros to a multiple of 8, the last by 32 more
    unit_place: Any  # int32[]: runs of a single weight
    unit_weight: Any  # int16[]
    late: Any  # int32[]: delays per target, as places (delay * lanes + target)
    waiting_begin: Any  # int64[I + P + 1]: where in `State.waiting` the lists of each node begin
    depth: int  # slots of the ring, at least the longest delay + 2


class Inputs(NamedTuple):
    """Input events, sorted by sample, step and neuron."""

    in_offsets: Any  # int64[I, samples * steps + 1], into in_neuron
    in_neuron: Any  # int32[]
    in_payload: Any  # int32[]: as in_neuron, or empty if no input is graded


class State(NamedTuple):
    """State per lane, one row per sample if it is kept, else a single row. Written."""

    u: Any  # int32[rows, lanes]: current, or sigma
    v: Any  # int32[rows, lanes]: voltage, or act
    third: Any  # int32[rows, lanes]: refractory countdown, or residue
    ring: Any  # int32[rows, (depth + 1) * lanes + 64]: arriving sums, a row to gather late ones
    dirty: Any  # uint8[rows, (depth + 1) * lanes / 64]: blocks of the ring that are not zero
    awake: Any  # uint8[rows, lanes / 64]: blocks not known to be at rest; 1 at first
    waiting: Any  # int32[rows, ...]: two lists a node, for even and odd times: the number of its
    # spikes that arrive a step later, and their neurons


class Scratch(NamedTuple):
    """Work space of one thread."""

    driven: Any  # int32[lanes]: Circuit.bias with what inputs add to it
    message: Any  # int32[lanes]
    work_neuron: Any  # int32[the most neurons of a node + SPARE]
    work_payload: Any  # int32[the same]
    starts: Any  # int64[GROUP]: first runs of rows
    sent: Any  # int32[the most neurons of a node]


class Record(NamedTuple):
    """What the probes see. Record k owns `room[k]` places of the buffers from `begin[k]`."""

    begin: Any  # int64[K]
    room: Any  # int64[K]: SPARE of them may be overwritten with anything
    used: Any  # int64[K]: events so far
    offsets: Any  # int64[K, samples * steps + 1]: `used` after column c at c + 1
    neuron: Any  # int32[]
    payload: Any  # int32[]: as neuron, or empty if no record is graded
    size: Any  # int64[K]: neurons of the node
    states: Any  # int32[]: u and v per (sample, step, neuron)


class Singles(NamedTuple):
    """Single spikes that are lost or late."""

    single: Any  # int64[S, 5]: LOST_SPIKE or LATE_SPIKE, sample, node, time, neuron
    held: Any  # uint8[S]: 1 while a late spike is on its way. Written


_TABLES = [
    name
    for part in (Circuit, Inputs, State, Scratch, Record, Singles)
    for name in part._fields
    if name != "depth"
]

MACHINE = np.dtype(
    [
        ("lanes", np.int64),
        ("depth", np.int64),
        ("inputs", np.int64),
        ("nodes", np.int64),  # inputs and populations
        ("records", np.int64),
        ("kept", np.int64),  # 1: every sample has state of its own
        ("sample", np.int64),  # where to begin, and where it stopped
        ("step", np.int64),
        ("samples", np.int64),  # stop before this sample
        ("steps", np.int64),  # columns of a sample
        ("columns", np.int64),  # of an array of offsets: those of all samples, and 1
        ("start", np.int64),  # time of column 0
        ("fresh", np.int64),  # 1: every sample begins from reset at its column 0
        ("steady", np.int64),  # 1: `driven` holds what the column before drives
        ("budget", np.int64),  # neuron updates + synaptic operations before a pause
        ("faulty", np.int64),  # 1: spikes may be lost or late
        ("singles", np.int64),  # rows of `Singles.single`
        ("chance", np.uint64),  # probability of a loss, times 2**53
        ("late_chance", np.uint64),  # the same of a spike that arrives a step later
        ("seed", np.uint64),
        ("run", np.uint64),
        ("number", np.uint64),  # the number of sample 0, for the hash of losses
        ("spikes", np.int64),  # counters, added up over calls
        ("operations", np.int64),
        ("updates", np.int64),
        ("wraps", np.int64),
        ("clips", np.int64),
        ("events", np.int64),  # addresses of the neurons and payloads of a node's events
        ("messages", np.int64),
        *((name, np.int64) for name in State._fields),  # addresses of the current sample's state
        *((f"{name}_at", np.int64) for name in _TABLES),  # addresses of the tables
    ],
    align=True,
)


def attach(machine: Any, part: Any) -> None:
    """Tell a MACHINE where the tables of a part lie; the caller keeps them alive."""
    for name, table in part._asdict().items():
        if name == "depth":
            machine["depth"] = table
        else:
            machine[f"{name}_at"] = table.ctypes.data


def _pointer(kind: Any) -> Any:
    """Return a function from an address to a pointer."""

    def pointer(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), emit

    return intrinsic(pointer)


def _item(dtype: Any) -> Any:
    """Return a function from an address and an index to a record of a table."""
    record = from_dtype(dtype)

    def item(typing: Any, address: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            size = ir.IntType(64)(dtype.itemsize)
            place = builder.add(args[0], builder.mul(args[1], size))
            return builder.inttoptr(place, context.get_value_type(record))

        return record(types.int64, types.int64), emit

    return intrinsic(item)


_bytes, _shorts = _pointer(types.uint8), _pointer(types.int16)
_ints, _longs = _pointer(types.int32), _pointer(types.int64)
_population, _projection, _drive = _item(POPULATION), _item(PROJECTION), _item(DRIVE)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LONG = ir.VectorType(_I32, VECTOR)
_LONG_RUN, _SHORT_RUN = (ir.VectorType(ir.IntType(bits), RUN) for bits in (32, 16))
_WIDE = ir.VectorType(ir.IntType(16), ROW)


def _vector_pointer(builder: Any, data: Any, at: Any, form: Any) -> Any:
    return builder.bitcast(builder.gep(data, [at]), form.as_pointer())


@intrinsic
def _add_scaled(typing: Any, ring: Any, at: Any, weights: Any, row: Any, factor: Any) -> Any:
    """ring[at:at+8] += weights[row:row+8] * factor."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _vector_pointer(builder, args[0], args[1], _LONG_RUN)
        start = _vector_pointer(builder, args[2], args[3], _SHORT_RUN)
        row = builder.sext(builder.load(start, align=2), _LONG_RUN)
        one = builder.insert_element(ir.Constant(_LONG_RUN, ir.Undefined), args[4], _I32(0))
        order = ir.Constant(_LONG_RUN, [0] * RUN)
        row = builder.mul(row, builder.shuffle_vector(one, one, order))
        builder.store(builder.add(builder.load(to, align=4), row), to, align=4)
        return context.get_dummy_value()

    return types.void(ring, types.int64, weights, types.int64, types.int32), emit


@intrinsic
def _add_alike(
    typing: Any, ring: Any, at: Any, weights: Any, offset: Any, run: Any, starts: Any, count: Any,
    length: Any,
) -> Any:  # fmt: skip
    """Add up to 32 weights, from `offset` on, of the same run of `count` rows to ring[at].

    The rows begin at the runs `starts`; `run` points to the weight of the first row's run, were its
    start 0. The sum stays in a register of 16 bits a lane; it is added in steps of 8 lanes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ring, at, weights, offset, run, starts, count, length = args
        before = builder.block
        loop, after = (builder.append_basic_block(name) for name in ("rows", "summed"))
        builder.branch(loop)
        builder.position_at_end(loop)
        event, total = builder.phi(_I64), builder.phi(_WIDE)
        start = builder.load(builder.gep(starts, [event]))
        weight = builder.sext(builder.load(builder.gep(run, [builder.mul(start, _I64(3))])), _I64)
        place = builder.add(builder.mul(weight, _I64(RUN)), offset)
        row = builder.load(_vector_pointer(builder, weights, place, _WIDE), align=2)
        sum = builder.add(total, row)
        following = builder.add(event, _I64(1))
        zero = ir.Constant(_WIDE, None)
        for phi, first, later in ((event, _I64(0), following), (total, zero, sum)):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        for lane in range(0, ROW, RUN):
            with builder.if_then(builder.icmp_signed(">", length, _I64(lane))):
                lanes = ir.Constant(ir.VectorType(_I32, RUN), [*range(lane, lane + RUN)])
                part = builder.sext(builder.shuffle_vector(sum, sum, lanes), _LONG_RUN)
                to = _vector_pointer(builder, ring, builder.add(at, _I64(lane)), _LONG_RUN)
                builder.store(builder.add(builder.load(to, align=4), part), to, align=4)
        return context.get_dummy_value()

    long = types.int64
    return types.void(ring, long, weights, long, run, starts, long, long), emit


def _add_rows(vectors: int) -> Any:
    """Return: ring[at:at+width] += the sum of the rows of `count` events, in 16 bits.

    The width is 32 weights a vector; the sums stay in registers from the first event to the last.
    """

    def add(
        typing: Any, ring: Any, at: Any, weights: Any, row: Any, stride: Any, neuron: Any,
        count: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ring, at, weights, row, stride, neuron, count = args
            before = builder.block
            loop, after = (builder.append_basic_block(name) for name in ("rows", "summed"))
            builder.branch(loop)
            builder.position_at_end(loop)
            event = builder.phi(_I64)
            event.add_incoming(_I64(0), before)
            sums = [builder.phi(_WIDE) for _ in range(vectors)]
            which = builder.sext(builder.load(builder.gep(neuron, [event])), _I64)
            start = builder.add(row, builder.mul(which, stride))
            totals = []
            for k, total in enumerate(sums):
                total.add_incoming(ir.Constant(_WIDE, None), before)
                place = builder.add(start, _I64(ROW * k))
                part = builder.load(_vector_pointer(builder, weights, place, _WIDE), align=2)
                totals.append(builder.add(total, part))
                total.add_incoming(totals[-1], loop)
            following = builder.add(event, _I64(1))
            event.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            for k, total in enumerate(totals):
                place = builder.add(at, _I64(ROW * k))
                wide = ir.VectorType(_I32, ROW)
                to = _vector_pointer(builder, ring, place, wide)
                sum = builder.add(builder.load(to, align=4), builder.sext(total, wide))
                builder.store(sum, to, align=4)
            return context.get_dummy_value()

        long = types.int64
        return types.void(ring, long, weights, long, long, neuron, long), emit

    return intrinsic(add)


_add_one, _add_two, _add_three, _add_four = (_add_rows(vectors) for vectors in (1, 2, 3, 4))


@intrinsic
def _first_lane(typing: Any, mask: Any) -> Any:
    """The number of the lowest bit of a mask, 64 if there is none."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(0))

    return types.int64(types.uint64), emit


@intrinsic
def _count_lanes(typing: Any, mask: Any) -> Any:
    """The number of bits of a mask that are set."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), emit


@njit(forceinline=True, **_INNER)
def _mix(word: Any) -> Any:
    """Return the finaliser of splitmix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(forceinline=True, **_INNER)
def _chain(key: Any, field: Any) -> Any:
    return _mix((key ^ field) + _GOLDEN)


@njit(forceinline=True, **_INNER)
def _key(m: Any, start: Any, node: Any, time: Any) -> Any:
    """Return what the spikes of a node at one time have in common in the hash of losses."""
    key = _chain(_chain(start, m.seed), m.run)
    key = _chain(key, m.number + np.uint64(m.sample))
    return _chain(_chain(key, np.uint64(_longs(m.node_number_at)[node])), np.uint64(time))


@njit(forceinline=True, **_INNER)
def _is_lost(key: Any, chance: Any, neuron: Any) -> Any:
    return _chain(key, np.uint64(neuron)) >> np.uint64(64 - CHANCE_BITS) < chance


def chance(probability: float) -> int:
    """Return the `chance` of CONTROL for a probability."""
    return round(probability * (1 << CHANCE_BITS))


def lost(
    chance: int, seed: int, run: int, sample: Any, node: Any, step: Any, neuron: Any,
    late: bool = False,
) -> Any:  # fmt: skip
    """Return which spikes are lost, or late, with arrays that broadcast for the last four."""
    word = np.array([_LATE_HASH if late else _HASH])
    for field in (seed, run, sample, node, step, neuron):
        fields = np.atleast_1d(np.asarray(field, np.uint64))
        word = _mix.py_func((word ^ fields) + _GOLDEN)
    return (word >> np.uint64(64 - CHANCE_BITS)) < np.uint64(chance)


class _Vector:
    """16 lanes of int32 while LLVM code is written; the arithmetic wraps modulo 2^32."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder: Any, data: Any, at: Any) -> _Vector:
        """Load lanes of an array; int8 is extended."""
        form = ir.VectorType(data.type.pointee, VECTOR)
        value = builder.load(_vector_pointer(builder, data, at, form), align=1)
        wide = data.type.pointee.width == 32
        return cls(builder, value if wide else builder.zext(value, _LONG))

    def store(self, data: Any, at: Any) -> None:
        """Store lanes of an array of int32."""
        self.builder.store(self.value, _vector_pointer(self.builder, data, at, _LONG), align=4)

    def same(self, number: Any) -> _Vector:
        """Return lanes that are all equal to a number, or to a value of LLVM."""
        if isinstance(number, int):
            return _Vector(self.builder, ir.Constant(_LONG, [number] * VECTOR))
        undefined, zero = ir.Constant(_LONG, ir.Undefined), ir.IntType(32)(0)
        one = self.builder.insert_element(undefined, number, zero)
        order = ir.Constant(_LONG, [0] * VECTOR)
        return _Vector(self.builder, self.builder.shuffle_vector(one, one, order))

    def _apply(self, name: str, other: Any) -> _Vector:
        other = other if isinstance(other, _Vector) else self.same(other)
        return _Vector(self.builder, getattr(self.builder, name)(self.value, other.value))

    def __add__(self, other: Any) -> _Vector:
        return self._apply("add", other)

    def __sub__(self, other: Any) -> _Vector:
        return self._apply("sub", other)

    def __mul__(self, other: Any) -> _Vector:
        return self._apply("mul", other)

    def __and__(self, other: Any) -> _Vector:
        return self._apply("and_", other)

    def __or__(self, other: Any) -> _Vector:
        return self._apply("or_", other)

    def __lshift__(self, other: Any) -> _Vector:
        return self._apply("shl", other)

    def __rshift__(self, other: Any) -> _Vector:
        return self._apply("ashr", other)

    def compare(self, sign: str, other: Any) -> _Vector:
        """Return where a comparison holds."""
        other = other if isinstance(other, _Vector) else self.same(other)
        return _Vector(self.builder, self.builder.icmp_signed(sign, self.value, other.value))

    def where(self, condition: Any, other: Any) -> _Vector:
        """Return these lanes where a condition of lanes or of all holds, else the other ones."""
        other = other if isinstance(other, _Vector) else self.same(other)
        condition = condition.value if isinstance(condition, _Vector) else condition
        value = self.builder.select(condition, self.value, other.value)
        return _Vector(self.builder, value)

    def bits(self) -> Any:
        """Return a condition as an integer, one bit a lane."""
        word = self.builder.bitcast(self.value, ir.IntType(VECTOR))
        return self.builder.zext(word, _I64)


def _decay(a: _Vector, keep: _Vector) -> _Vector:
    """sign(a) * ((|a| * keep) >> 12) in 32 bits, for |a| up to 2^23.

    All factors have at most 16 bits with their sign, and LLVM can tell: it takes fast products.
    """
    negative = a.compare("<", 0)
    size = (a.same(0) - a).where(negative, a)
    high = ((size << 4) >> 16) * keep
    low = ((size & 4095) * keep) >> 12
    kept = high + low
    return (a.same(0) - kept).where(negative, kept)


def _wrap(a: _Vector) -> _Vector:
    """Fold modulo 2^24 into (-2^23, 2^23]."""
    return (((a - 1) << 8) >> 8) + 1


def _clip(v: _Vector) -> _Vector:
    v = v.where(v.compare("<", V_LIMIT), V_LIMIT)
    return v.where(v.compare(">", -V_LIMIT), -V_LIMIT)


def _masks(context: Any, builder: Any, signature: Any, conditions: Any) -> Any:
    """Return conditions of 16 lanes as a tuple of integers, one bit a lane."""
    return context.make_tuple(builder, signature.return_type, [c.bits() for c in conditions])


_MASKS = types.UniTuple(types.uint64, 4)


def _cuba_lanes(special: bool, own: bool = False) -> Any:
    """Return the update of the 16 CUBA lanes from `at` on, whose sums are at ring[slot].

    The decays are numbers, or tables of the lanes' `own`.

    It gives the masks of the lanes that fired, wrapped, clipped and changed.
    """

    def update(
        typing: Any, u: Any, v: Any, third: Any, ring: Any, bias: Any, threshold: Any,
        faults: Any, at: Any, slot: Any, keep_u: Any, keep_v: Any, refractory: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            u, v, third, ring, bias, threshold, faults, at, slot, keep_u, keep_v, refractory = args
            x = _Vector.load(builder, ring, slot)
            x.same(0).store(ring, slot)
            old_u, old_v = _Vector.load(builder, u, at), _Vector.load(builder, v, at)
            if own:
                keeps = [_Vector.load(builder, keep, at) for keep in (keep_u, keep_v)]
            else:
                keeps = [x.same(keep) for keep in (keep_u, keep_v)]
            kept = _decay(old_u, keeps[0] & 8191)
            new_u = _wrap(kept + (x << 6))
            wrapped = ((new_u - kept) >> 6).compare("!=", x)
            total = _decay(old_v, keeps[1] & 8191) + new_u
            total = total + _Vector.load(builder, bias, at)
            new_v = _clip(total)
            clipped = new_v.compare("!=", total)
            fired = new_v.compare(">", _Vector.load(builder, threshold, at))
            if special:
                fault, wait = _Vector.load(builder, faults, at), _Vector.load(builder, third, at)
                waits = wait.compare(">", 0)
                new_v = x.same(0).where(waits, new_v)
                fired = fired & wait.compare("<=", 0) & fault.compare("!=", DEAD)
                fired = fired | fault.compare("==", STUCK)
                left = x.same(refractory).where(fired, (wait - 1).where(waits, 0))
                left.store(third, at)
            new_v = x.same(0).where(fired, new_v)
            new_u.store(u, at)
            new_v.store(v, at)
            changed = new_u.compare("!=", old_u) | new_v.compare("!=", old_v)
            if special:
                changed = changed | left.compare("!=", wait)
            return _masks(context, builder, signature, (fired, wrapped, clipped, changed))

        number, long = types.int32, types.int64
        return _MASKS(
            u, v, third, ring, bias, threshold, faults, long, long,
            *((keep_u, keep_v) if own else (number, number)), number,
        ), emit  # fmt: skip

    return intrinsic(update)


_cuba, _cuba_special = _cuba_lanes(special=False), _cuba_lanes(special=True)
_cuba_own = _cuba_lanes(special=True, own=True)


@intrinsic
def _graded(
    typing: Any, sigma: Any, act: Any, residue: Any, ring: Any, bias: Any, vth: Any, message: Any,
    at: Any, slot: Any, model: Any, relu: Any, shift: Any, state_exp: Any,
) -> Any:  # fmt: skip
    """Update 16 lanes of a population that sends messages; the masks are those of CUBA lanes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sigma, act, residue, ring, bias, vth, message, at, slot, model, relu, *shifts = args
        x = _Vector.load(builder, ring, slot)
        x.same(0).store(ring, slot)
        shift, state_exp = (x.same(number) for number in shifts)
        is_sigma = builder.icmp_signed("==", model, _I64(SIGMA))
        is_delta = builder.icmp_signed("==", model, _I64(DELTA))
        old_sigma, old_act = _Vector.load(builder, sigma, at), _Vector.load(builder, act, at)
        old_residue, limit = _Vector.load(builder, residue, at), _Vector.load(builder, vth, at)
        total = old_sigma.where(is_delta, old_sigma + x)
        new_act = (x << shift).where(is_delta, total + _Vector.load(builder, bias, at))
        positive = new_act.where(new_act.compare(">", 0), 0)
        new_act = positive.where(builder.icmp_signed("!=", relu, _I64(0)), new_act)
        difference = new_act - old_act + old_residue
        large = difference.compare(">=", limit) | difference.compare("<=", x.same(0) - limit)
        sent = difference.where(large, 0)
        new_act = old_act.where(is_sigma, new_act)
        new_residue = old_residue.where(is_sigma, difference - sent)
        said = total.where(is_sigma, sent >> state_exp)
        total.store(sigma, at)
        new_act.store(act, at)
        new_residue.store(residue, at)
        said.store(message, at)
        changed = total.compare("!=", old_sigma) | new_act.compare("!=", old_act)
        changed = changed | new_residue.compare("!=", old_residue)
        none = changed.same(0).compare("!=", 0)
        return _masks(context, builder, signature, (said.compare("!=", 0), none, none, changed))

    number, long = types.int32, types.int64
    return _MASKS(
        sigma, act, residue, ring, bias, vth, message, long, long, long, long, number, number
    ), emit


@njit(forceinline=True, **_INNER)
def _list_lanes(neuron: Any, count: Any, mask: Any, lane: Any) -> Any:
    """Append the lanes of a mask to a list, whose new length is returned.

    They are written eight at a time, without a branch for each; those too many do not count.
    """
    end = count + _count_lanes(mask)
    while count < end:
        for i in range(SPARE):
            neuron[count + i] = np.int32(lane + _first_lane(mask))
            mask &= mask - np.uint64(1)
        count += SPARE
    return end


@njit(**_INNER)
def _update(m: Any, population: Any, now: Any) -> Any:
    """Update the blocks of a population that are not at rest, and list its events.

    Their number is returned.
    """
    u, v, third, ring = _ints(m.u), _ints(m.v), _ints(m.third), _ints(m.ring)
    dirty, awake, neuron = _bytes(m.dirty), _bytes(m.awake), _ints(m.events)
    bias, threshold, faults = _ints(m.driven_at), _ints(m.threshold_at), _bytes(m.faults_at)
    message = _ints(m.message_at)
    model, relu, special = population.model, population.relu, population.special
    keep_u, keep_v = np.int32(population.keep_u), np.int32(population.keep_v)
    refractory = np.int32(population.refractory)
    keeps_u, keeps_v = _ints(m.keep_u_at), _ints(m.keep_v_at)
    shift, state_exp = np.int32(population.shift), np.int32(population.state_exp)
    first = population.first
    last = first + population.size
    slot = now * m.lanes
    count, updates = np.int64(0), np.int64(0)
    for at in range(first, last, BLOCK):
        block, ahead = at >> 6, (slot + at) >> 6
        arrived = dirty[ahead]
        if (awake[block] | arrived) == 0:
            continue
        fires = wraps = clips = changes = np.uint64(0)
        end = min(at + BLOCK, last)
        for i in range(at, end, VECTOR):
            if model != CUBA:
                masks = _graded(
                    u, v, third, ring, bias, threshold, message, i, slot + i, model, relu,
                    shift, state_exp,
                )  # fmt: skip
            elif special == OWN_DECAYS:
                masks = _cuba_own(
                    u, v, third, ring, bias, threshold, faults, i, slot + i, keeps_u, keeps_v,
                    refractory,
                )  # fmt: skip
            elif special:
                masks = _cuba_special(
                    u, v, third, ring, bias, threshold, faults, i, slot + i, keep_u, keep_v,
                    refractory,
                )  # fmt: skip
            else:
                masks = _cuba(
                    u, v, third, ring, bias, threshold, faults, i, slot + i, keep_u, keep_v,
                    refractory,
                )  # fmt: skip
            fired, wrapped, clipped, changed = masks
            bit = np.uint64(i - at)
            fires |= fired << bit
            wraps |= wrapped << bit
            clips |= clipped << bit
            changes |= changed
        dirty[ahead] = np.uint8(0)
        rest = wraps | clips
        awake[block] = np.uint8(arrived != 0 or (fires | rest | changes) != 0)
        updates += end - at
        if rest != 0:
            m.wraps += _count_lanes(wraps)
            m.clips += _count_lanes(clips)
        if fires != 0:
            count = _list_lanes(neuron, count, fires, at - first)
    m.updates += updates
    if model != CUBA:
        payload = _ints(m.messages)
        for i in range(count):
            payload[i] = message[first + neuron[i]]
    return count


@njit(**_INNER)
def _send_dense(m: Any, projection: Any, count: Any, at: Any) -> None:
    """Add the rows of a dense matrix at one place."""
    ring, weights = _ints(m.ring), _shorts(m.weights_at)
    stride, base, fit = projection.stride, projection.weight, projection.fit
    neuron, payload = _ints(m.events), _ints(m.messages)
    if projection.graded:
        for event in range(count):
            row = base + neuron[event] * stride
            for i in range(0, stride, RUN):
                _add_scaled(ring, at + i, weights, row + i, payload[event])
        return
    for begin in range(0, count, fit):
        events, some = _ints(m.events + 4 * begin), min(fit, count - begin)
        i = 0
        while i + 4 * ROW <= stride:
            _add_four(ring, at + i, weights, base + i, stride, events, some)
            i += 4 * ROW
        rest = stride - i
        if rest == 3 * ROW:
            _add_three(ring, at + i, weights, base + i, stride, events, some)
        elif rest == 2 * ROW:
            _add_two(ring, at + i, weights, base + i, stride, events, some)
        elif rest == ROW:
            _add_one(ring, at + i, weights, base + i, stride, events, some)


@njit(**_INNER)
def _send_runs(m: Any, projection: Any, count: Any, base: Any, limit: Any) -> Any:
    """Add the runs of each event's row; return the weights added.

    Events whose runs lie at the same places, as those of the channels of one pixel, go together.
    """
    rows, runs, weights = _longs(m.rows_at), _ints(m.runs_at), _shorts(m.weights_at)
    ring, dirty, pattern = _ints(m.ring), _bytes(m.dirty), _ints(m.pattern_at)
    neuron, payload, starts = _ints(m.events), _ints(m.messages), _longs(m.starts_at)
    first_row, graded = projection.row, projection.graded
    most = 1 if graded else min(projection.fit, GROUP)
    added, event = np.int64(0), np.int64(0)
    while event < count:
        row = first_row + neuron[event]
        begin, end = rows[row], rows[row + 1]
        factor = payload[event] if graded else np.int32(1)
        alike = np.int64(0)
        while alike == 0 or (
            alike < most and event < count and pattern[first_row + neuron[event]] == pattern[row]
        ):
            starts[alike] = rows[first_row + neuron[event]]
            alike += 1
            event += 1
        for run in range(begin, end):
            at = base + runs[3 * run]
            at -= limit if at >= limit else 0
            length = np.int64(runs[3 * run + 2])
            if graded:
                weight = np.int64(runs[3 * run + 1]) * RUN
                for i in range(0, length, RUN):
                    _add_scaled(ring, at + i, weights, weight + i, factor)
            else:
                weight_of = _ints(m.runs_at + 4 * (3 * (run - begin) + 1))
                for i in range(0, length, ROW):
                    _add_alike(ring, at + i, weights, i, weight_of, starts, alike, length - i)
            for block in range(at >> 6, ((at + length - 1) >> 6) + 1):
                dirty[block] = np.uint8(1)
            added += alike * length
    return added


@njit(**_INNER)
def _send_units(m: Any, projection: Any, count: Any, base: Any, limit: Any) -> Any:
    """Add single weights, each at a place of its own; return their number."""
    rows, place, weight = _longs(m.rows_at), _ints(m.unit_place_at), _shorts(m.unit_weight_at)
    ring, dirty = _ints(m.ring), _bytes(m.dirty)
    neuron, payload = _ints(m.events), _ints(m.messages)
    first_row, graded = projection.row, projection.graded
    added = np.int64(0)
    for event in range(count):
        row = first_row + neuron[event]
        first, last = rows[row], rows[row + 1]
        factor = payload[event] if graded else np.int32(1)
        for i in range(first, last):
            at = base + place[i]
            at -= limit if at >= limit else 0
            ring[at] += np.int32(weight[i] * factor)
            dirty[at >> 6] = np.uint8(1)
        added += last - first
    return added


@njit(**_INNER)
def _release(m: Any, projection: Any, base: Any, limit: Any) -> None:
    """Move gathered sums to the slots of their targets' delays."""
    ring, dirty = _ints(m.ring), _bytes(m.dirty)
    stage = _ints(m.ring + 4 * (limit + projection.first))
    late = _ints(m.late_at + 4 * projection.late)
    for i in range(projection.size):
        at = base + late[i]
        at -= limit if at >= limit else 0
        ring[at] += stage[i]
        stage[i] = _ZERO
        dirty[at >> 6] = np.uint8(1)


@njit(**_INNER)
def _send(m: Any, node: Any, now: Any, count: Any) -> None:
    """Send the events of a node to all of its targets, and count them."""
    lanes, outgoing = m.lanes, _longs(m.outgoing_at)
    limit = m.depth * lanes
    base = (now + 1) * lanes
    base -= limit if base >= limit else 0
    added = np.int64(0)
    for j in range(outgoing[node], outgoing[node + 1]):
        projection = _projection(m.projections_at, j)
        staged = projection.late >= 0
        origin = limit if staged else base
        bound = 2 * limit + 2 * lanes if staged else limit
        if projection.kind == DENSE:
            at = origin + projection.place
            at -= bound if at >= bound else 0
            _send_dense(m, projection, count, at)
            dirty = _bytes(m.dirty)
            for block in range(at >> 6, (at + projection.size + BLOCK - 1) >> 6):
                dirty[block] = np.uint8(1)
            added += count * projection.size
        elif projection.kind == RUNS:
            added += _send_runs(m, projection, count, origin, bound)
        else:
            added += _send_units(m, projection, count, origin, bound)
        if staged:
            _release(m, projection, base, limit)
    m.spikes += count
    m.operations += added


@njit(**_INNER)
def _find(neuron: Any, count: Any, which: Any) -> Any:
    """Return the place of a neuron in a sorted list, or where it would be."""
    at = 0
    while at < count and neuron[at] < which:
        at += 1
    return at


@njit(**_INNER)
def _displace(m: Any, node: Any, time: Any, count: Any) -> Any:
    """Take out the single spikes that are lost or late, then put in those that were late."""
    held, neuron = _bytes(m.held_at), _ints(m.events)
    for k in range(m.singles):
        row = _longs(m.single_at + 40 * k)
        if row[1] == m.sample and row[2] == node and row[3] == time:
            at = _find(neuron, count, row[4])
            if at < count and neuron[at] == row[4]:
                count -= 1
                for i in range(at, count):
                    neuron[i] = neuron[i + 1]
                held[k] = np.uint8(row[0] == LATE_SPIKE)
    for k in range(m.singles):
        row = _longs(m.single_at + 40 * k)
        if row[1] == m.sample and row[2] == node and row[3] + 1 == time and held[k] != 0:
            held[k] = np.uint8(0)
            at = _find(neuron, count, row[4])
            if at == count or neuron[at] != row[4]:
                for i in range(count, at, -1):
                    neuron[i] = neuron[i - 1]
                neuron[at] = np.int32(row[4])
                count += 1
    return count


@njit(**_INNER)
def _keep(m: Any, population: Any, node: Any, time: Any, count: Any) -> Any:
    """Keep the events of a node that are not lost, in the work list or where they are."""
    if m.singles > 0 and node >= m.inputs:
        count = _displace(m, node, time, count)
    key = _key(m, _HASH, node, time)
    neuron = _ints(m.events)
    first, number = np.int64(0), _ints(m.neuron_number_at)
    if node < m.inputs:
        m.events = m.work_neuron_at
    else:
        first = population.first
    kept, count_kept = _ints(m.events), 0
    for event in range(count):
        which = neuron[event]
        kept[count_kept] = which
        if not _is_lost(key, m.chance, which if node < m.inputs else number[first + which]):
            count_kept += 1
    return count_kept


@njit(**_INNER)
def _defer(m: Any, population: Any, node: Any, time: Any, count: Any) -> Any:
    """Hold events of a node back by chance for a step, and let those of the step before arrive.

    One that arrives where there is an event already merges with it. Both lists are sorted.
    """
    key = _key(m, _LATE_HASH, node, time)
    first, number = np.int64(0), _ints(m.neuron_number_at)
    if node >= m.inputs:
        first = population.first
    sent, arriving = _ints(m.sent_at), _ints(m.events)
    for i in range(count):
        sent[i] = arriving[i]
    begin, end = _longs(m.waiting_begin_at)[node], _longs(m.waiting_begin_at)[node + 1]
    half, odd = (end - begin) >> 1, time & 1
    before = _ints(m.waiting + 4 * (begin + (1 - odd) * half))
    after = _ints(m.waiting + 4 * (begin + odd * half))
    waiting = before[0]
    if m.step == 0 and m.kept == 0:
        waiting = _ZERO
    event, place, late, arrived = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    while event < count or place < waiting:
        comes = False
        if place < waiting and (event == count or before[1 + place] <= sent[event]):
            which, comes = before[1 + place], True
            place += 1
        else:
            which = sent[event]
        if event < count and sent[event] == which:
            event += 1
            if _is_lost(key, m.late_chance, which if node < m.inputs else number[first + which]):
                after[1 + late] = which
                late += 1
            else:
                comes = True
        if comes:
            arriving[arrived] = which
            arrived += 1
    after[0] = np.int32(late)
    return arrived


@njit(**_INNER)
def _is_steady(m: Any, drive: Any, column: Any) -> Any:
    """Whether an input drives as it did a column before."""
    offsets = _longs(m.in_offsets_at + 8 * (drive.input * m.columns + column - 1))
    neuron, payload = _ints(m.in_neuron_at), _ints(m.in_payload_at)
    before, now, end = offsets[0], offsets[1], offsets[2]
    if end - now != now - before:
        return False
    different = _ZERO
    for i in range(end - now):
        different |= neuron[before + i] ^ neuron[now + i]
        different |= payload[before + i] ^ payload[now + i]
    return different == 0


@njit(**_INNER)
def _drive_bias(m: Any, population: Any, column: Any) -> None:
    """Set the bias of a population to its own plus what the inputs of a column add.

    It is clipped to where v saturates anyway, for exact sums in 32 bits.
    """
    driven, bias, awake = _ints(m.driven_at), _ints(m.bias_at), _bytes(m.awake)
    neuron, payload = _ints(m.in_neuron_at), _ints(m.in_payload_at)
    first = population.first
    last = first + population.size
    for i in range(first, last):
        driven[i] = bias[i]
    for d in range(population.drive_begin, population.drive_end):
        drive = _drive(m.drives_at, d)
        if drive.kind == DRIVE_BIAS:
            offsets = _longs(m.in_offsets_at + 8 * (drive.input * m.columns + column))
            for event in range(offsets[0], offsets[1]):
                value = np.int64(payload[event]) << drive.shift
                driven[first + neuron[event]] += np.int32(value)
    if population.model == CUBA:
        for i in range(first, last):
            driven[i] = min(max(driven[i], -BIAS_LIMIT), BIAS_LIMIT)
    for block in range(first >> 6, (last + BLOCK - 1) >> 6):
        awake[block] = np.uint8(1)


@njit(**_INNER)
def _reset_lanes(m: Any, first: Any, last: Any) -> None:
    u, v, third, awake = _ints(m.u), _ints(m.v), _ints(m.third), _bytes(m.awake)
    for i in range(first, last):
        u[i] = _ZERO
        v[i] = _ZERO
        third[i] = _ZERO
    for block in range(first >> 6, (last + BLOCK - 1) >> 6):
        awake[block] = np.uint8(1)


@njit(**_INNER)
def _reset_ring(m: Any) -> None:
    ring, dirty = _ints(m.ring), _bytes(m.dirty)
    for block in range((m.depth + 1) * m.lanes >> 6):
        if dirty[block]:
            dirty[block] = np.uint8(0)
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                ring[i] = _ZERO


@njit(**_INNER)
def _prepare(m: Any, population: Any, time: Any, now: Any, column: Any) -> None:
    """Before the update of a population: reset it where due, and apply what drives it.

    A driven bias stays in place until it changes. The events will go to their record, if any.
    """
    neuron, payload = _ints(m.in_neuron_at), _ints(m.in_payload_at)
    ring, dirty = _ints(m.ring), _bytes(m.dirty)
    interval, k = population.reset_interval, population.record
    if interval > 0 and time % interval == population.reset_offset:
        _reset_lanes(m, population.first, population.first + population.size)
    first, changes = now * m.lanes + population.first, False
    for d in range(population.drive_begin, population.drive_end):
        drive = _drive(m.drives_at, d)
        if drive.kind == DRIVE_BIAS:
            changes = changes or m.steady == 0 or not _is_steady(m, drive, column)
            continue
        offsets = _longs(m.in_offsets_at + 8 * (drive.input * m.columns + column))
        for event in range(offsets[0], offsets[1]):
            at = first + neuron[event]
            ring[at] += payload[event]
            dirty[at >> 6] = np.uint8(1)
    if changes:
        _drive_bias(m, population, column)
    m.events, m.messages = m.work_neuron_at, m.work_payload_at
    if k >= 0:
        end = _longs(m.begin_at)[k] + _longs(m.used_at)[k]
        m.events = m.neuron_at + 4 * end
        m.messages = m.payload_at + 4 * end


@njit(**_INNER)
def _find_input(m: Any, node: Any, column: Any) -> Any:
    """Find the events of an input; return their number."""
    offsets = _longs(m.in_offsets_at + 8 * (node * m.columns + column))
    m.events = m.in_neuron_at + 4 * offsets[0]
    m.messages = m.in_payload_at + 4 * offsets[0]
    return offsets[1] - offsets[0]


@njit(**_INNER)
def _note(m: Any, population: Any, column: Any, count: Any) -> None:
    """Record the events and the states of a population."""
    k, first, size = population.record, population.first, population.size
    if k >= 0:
        used, offsets = _longs(m.used_at), _longs(m.offsets_at)
        used[k] += count
        offsets[k * m.columns + column + 1] = used[k]
    if population.record_u >= 0:
        u, to = _ints(m.u), _ints(m.states_at + 4 * (population.record_u + column * size))
        for i in range(size):
            to[i] = u[first + i]
    if population.record_v >= 0:
        v, to = _ints(m.v), _ints(m.states_at + 4 * (population.record_v + column * size))
        for i in range(size):
            to[i] = v[first + i]


@njit(**_INNER)
def _steps_with_room(m: Any) -> Any:
    """For how many steps there is surely room for the events."""
    used, room, size = _longs(m.used_at), _longs(m.room_at), _longs(m.size_at)
    steps = m.steps
    for k in range(m.records):
        steps = min(steps, (room[k] - used[k] - SPARE) // size[k])
    return steps


@njit(**_INNER)
def _begin_sample(m: Any) -> None:
    """Find the state of a sample, and reset it at the start."""
    row = m.sample * m.kept
    lanes, ring = m.lanes, (m.depth + 1) * m.lanes
    m.u = m.u_at + 4 * row * lanes
    m.v = m.v_at + 4 * row * lanes
    m.third = m.third_at + 4 * row * lanes
    m.ring = m.ring_at + 4 * row * (ring + BLOCK)
    m.dirty = m.dirty_at + row * (ring >> 6)
    m.awake = m.awake_at + row * (lanes >> 6)
    m.waiting = m.waiting_at + 4 * row * _longs(m.waiting_begin_at)[m.nodes]
    if m.step == 0:
        m.steady = 0
        if m.fresh:
            _reset_lanes(m, np.int64(0), lanes)
            _reset_ring(m)


@njit(nogil=True, cache=True, error_model="numpy")
def advance(machines: Any) -> int:
    """Run samples until all is done, a record might not fit, or the budget is spent.

    `machines` is one MACHINE; it says where to begin and where the next call goes on.
    """
    m = machines[0]
    pause = m.budget + m.operations + m.updates
    room = _steps_with_room(m)
    while m.sample < m.samples:
        _begin_sample(m)
        now = (m.start + m.step) % m.depth
        for step in range(m.step, m.steps):
            m.step = step
            if m.operations + m.updates >= pause:
                return PAUSED
            if room == 0:
                room = _steps_with_room(m)
                if room == 0:
                    return NO_ROOM
            room -= 1
            time, column = m.start + step, m.sample * m.steps + step
            for node in range(m.nodes):
                population = _population(m.populations_at, node - m.inputs)
                if node < m.inputs:
                    count = _find_input(m, node, column)
                else:
                    _prepare(m, population, time, now, column)
                    count = _update(m, population, now)
                if m.faulty:
                    count = _keep(m, population, node, time, count)
                    if m.late_chance > 0:
                        count = _defer(m, population, node, time, count)
                if count > 0:
                    _send(m, node, now, count)
                if node >= m.inputs:
                    _note(m, population, column, count)
            m.steady = 1
            now = now + 1 if now + 1 < m.depth else 0
        m.sample += 1
        m.step = 0
    return DONE
