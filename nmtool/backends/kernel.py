"""The compiled core: Loihi's fixed-point networks, one event at a time, bit for bit.

All neurons of a circuit share one index space of lanes. A population begins at a multiple of
64 lanes, and what is left of its last block of 64 is padding that never fires. Blocks at rest
are skipped; a spike costs the weights that it adds. `circuit.build` makes the tables.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from nmtool.fixedpoint import STATE_LIMIT

BLOCK = 64
VECTOR = 16

CUBA, DELTA, SIGMA_DELTA, SIGMA = range(4)
DENSE, RUNS, UNITS = range(3)
DRIVE_X, DRIVE_BIAS = range(2)
DEAD, STUCK = 1, 2
DONE, NO_ROOM, PAUSED = range(3)

V_LIMIT = STATE_LIMIT - 1
BIAS_LIMIT = 1 << 30
NEVER = np.int32((1 << 31) - 1)
CHANCE_BITS = 53

_ZERO = np.int32(0)
_INNER: Any = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_HASH = np.uint64(0x6A09E667F3BCC909)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRED, _CHANGED = 1, 2

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
        ("special", np.int64),  # 1: refractory or with faulty neurons
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
        ("stride", np.int64),  # DENSE: weights of a row, zeros up to a multiple of 16
        ("place", np.int64),  # DENSE: delay * lanes + first target
        ("width", np.int64),  # DENSE: targets of a row
        ("narrow", np.int64),  # DENSE: 1 if four weights surely add up in 16 bits
        ("late", np.int64),  # where its delays per target begin in `Circuit.late`, or -1
        ("first", np.int64),  # the target population's first lane
        ("size", np.int64),  # and its neurons
    ],
    align=True,
)

DRIVE = np.dtype(
    [("input", np.int64), ("kind", np.int64), ("shift", np.int64), ("graded", np.int64)],
    align=True,
)

CONTROL = np.dtype(
    [
        ("sample", np.int64),  # where to begin, and where it stopped
        ("step", np.int64),
        ("samples", np.int64),  # stop before this sample
        ("steps", np.int64),  # columns of the inputs
        ("start", np.int64),  # time of column 0
        ("fresh", np.int64),  # 1: every sample begins from reset at its column 0
        ("budget", np.int64),  # neuron updates + synaptic operations before a pause
        ("faulty", np.int64),  # 1: spikes may be lost
        ("chance", np.uint64),  # probability of a loss, times 2**53
        ("seed", np.uint64),
        ("run", np.uint64),
        ("number", np.uint64),  # the number of sample 0, for the hash of losses
        ("spikes", np.int64),  # counters, added up over calls
        ("operations", np.int64),
        ("updates", np.int64),
        ("wraps", np.int64),
        ("clips", np.int64),
    ],
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
    rows: Any  # int64[]: for each row the first of its runs or units, and the end
    runs: Any  # int32[3 R]: place (delay * lanes + target), weight / 16, length
    weights: Any  # int16[]: every run is padded with zeros to a multiple of 16
    unit_place: Any  # int32[]: runs of a single weight
    unit_weight: Any  # int16[]
    late: Any  # int32[]: delays per target
    depth: int  # slots of the ring, at least the longest delay + 2


class Inputs(NamedTuple):
    """Input events, sorted by sample, step and neuron."""

    offsets: Any  # int64[I, samples * steps + 1], into neuron
    neuron: Any  # int32[]
    payload: Any  # int32[]: as neuron, or empty if no input is graded
    record: Any  # int64[I]: index of its event record, or -1


class State(NamedTuple):
    """State per lane, one row per sample if it is kept, else a single row. Written."""

    u: Any  # int32[rows, lanes]: current, or sigma
    v: Any  # int32[rows, lanes]: voltage, or act
    third: Any  # int32[rows, lanes]: refractory countdown, or residue
    ring: Any  # int32[rows, (depth + 1) * lanes + 64]: arriving sums, a row to gather late ones
    dirty: Any  # uint8[rows, (depth + 1) * lanes / 64]: blocks of the ring that are not zero
    awake: Any  # uint8[rows, lanes / 64]: blocks not known to be at rest; 1 at first


class Scratch(NamedTuple):
    """Work space of one thread."""

    bias: Any  # int32[lanes]: a copy of Circuit.bias
    flags: Any  # uint8[lanes]
    masks: Any  # uint64[4]
    message: Any  # int32[lanes]
    neuron: Any  # int32[the most neurons of a node]
    payload: Any  # int32[the same]


class Record(NamedTuple):
    """What the probes see. Record k owns `room[k]` places of the buffers from `begin[k]`."""

    begin: Any  # int64[K]
    room: Any  # int64[K]
    used: Any  # int64[K]: events so far
    offsets: Any  # int64[K, samples * steps + 1]: `used` before each step
    neuron: Any  # int32[]
    payload: Any  # int32[]: as neuron, or empty if no record is graded
    size: Any  # int64[K]: neurons of the node
    graded: Any  # int64[K]
    states: Any  # int32[]: u and v per (sample, step, neuron)


class _Net(NamedTuple):
    """A circuit as plain pointers: no reference counts, no bounds, one word each."""

    populations: Any
    projections: Any
    outgoing: Any
    drives: Any
    threshold: Any
    bias: Any
    faults: Any
    rows: Any
    runs: Any
    weights: Any
    unit_place: Any
    unit_weight: Any
    late: Any
    depth: int
    lanes: int
    n_populations: int
    n_inputs: int


class _Feed(NamedTuple):
    """The inputs as plain pointers."""

    offsets: Any
    neuron: Any
    payload: Any
    record: Any
    width: int
    graded: int


class _Lanes(NamedTuple):
    """The state of one sample as plain pointers."""

    u: Any
    v: Any
    third: Any
    ring: Any
    dirty: Any
    awake: Any


class _Work(NamedTuple):
    """Scratch as plain pointers."""

    bias: Any
    flags: Any
    masks: Any
    message: Any
    neuron: Any
    payload: Any


class _Tape(NamedTuple):
    """Records as plain pointers."""

    begin: Any
    room: Any
    used: Any
    offsets: Any
    neuron: Any
    payload: Any
    size: Any
    graded: Any
    states: Any
    records: int
    width: int


@intrinsic
def _pointer(typing: Any, array: Any, at: Any) -> Any:
    """Return the address of an element of an array, counted in the order of memory."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), emit


@intrinsic
def _item(typing: Any, records: Any, at: Any) -> Any:
    """Return a record of a table by its pointer."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        form = context.get_value_type(signature.return_type)
        return builder.bitcast(builder.gep(args[0], [args[1]]), form)

    return records.dtype(records, types.int64), emit


def _vector_pointer(builder: Any, data: Any, at: Any, form: Any) -> Any:
    return builder.bitcast(builder.gep(data, [at]), form.as_pointer())


_LONG = ir.VectorType(ir.IntType(32), VECTOR)
_SHORT = ir.VectorType(ir.IntType(16), VECTOR)


@intrinsic
def _add_row(typing: Any, ring: Any, at: Any, weights: Any, row: Any) -> Any:
    """ring[at:at+16] += weights[row:row+16]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _vector_pointer(builder, args[0], args[1], _LONG)
        start = _vector_pointer(builder, args[2], args[3], _SHORT)
        row = builder.sext(builder.load(start, align=2), _LONG)
        builder.store(builder.add(builder.load(to, align=4), row), to, align=4)
        return context.get_dummy_value()

    return types.void(ring, types.int64, weights, types.int64), emit


@intrinsic
def _add_scaled(typing: Any, ring: Any, at: Any, weights: Any, row: Any, factor: Any) -> Any:
    """ring[at:at+16] += weights[row:row+16] * factor."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _vector_pointer(builder, args[0], args[1], _LONG)
        start = _vector_pointer(builder, args[2], args[3], _SHORT)
        row = builder.sext(builder.load(start, align=2), _LONG)
        one = builder.insert_element(ir.Constant(_LONG, ir.Undefined), args[4], ir.IntType(32)(0))
        order = ir.Constant(_LONG, [0] * VECTOR)
        row = builder.mul(row, builder.shuffle_vector(one, one, order))
        builder.store(builder.add(builder.load(to, align=4), row), to, align=4)
        return context.get_dummy_value()

    return types.void(ring, types.int64, weights, types.int64, types.int32), emit


@intrinsic
def _add_four(
    typing: Any, ring: Any, at: Any, weights: Any, r0: Any, r1: Any, r2: Any, r3: Any
) -> Any:
    """ring[at:at+16] += the sum of four rows, which fits in 16 bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _vector_pointer(builder, args[0], args[1], _LONG)
        rows = []
        for row in args[3:]:
            start = _vector_pointer(builder, args[2], row, _SHORT)
            rows.append(builder.load(start, align=2))
        total = builder.add(builder.add(rows[0], rows[1]), builder.add(rows[2], rows[3]))
        total = builder.sext(total, _LONG)
        builder.store(builder.add(builder.load(to, align=4), total), to, align=4)
        return context.get_dummy_value()

    long = types.int64
    return types.void(ring, long, weights, long, long, long, long), emit


@intrinsic
def _lanes_with(typing: Any, flags: Any, at: Any, bits: Any) -> Any:
    """Bit i of the result: flags[at + i] has one of these bits, for 64 lanes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        form = ir.VectorType(ir.IntType(8), BLOCK)
        at = _vector_pointer(builder, args[0], args[1], form)
        one = builder.trunc(args[2], ir.IntType(8))
        one = builder.insert_element(ir.Constant(form, ir.Undefined), one, ir.IntType(32)(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        hit = builder.and_(builder.load(at, align=1), builder.shuffle_vector(one, one, order))
        hit = builder.icmp_unsigned("!=", hit, ir.Constant(form, None))
        return builder.bitcast(hit, ir.IntType(64))

    return types.uint64(flags, types.int64, types.int64), emit


@intrinsic
def _first_lane(typing: Any, mask: Any) -> Any:
    """The number of the lowest bit of a mask that is not zero."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

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


@njit(**_INNER)
def _step_key(control: Any, sample: Any, node: Any, step: Any) -> Any:
    """Hash what the events of a node in a step have in common."""
    key = _chain(_chain(_HASH, control["seed"]), control["run"])
    key = _chain(key, control["number"] + np.uint64(sample))
    return _chain(_chain(key, np.uint64(node)), np.uint64(step))


@njit(forceinline=True, **_INNER)
def _is_lost(key: Any, chance: Any, neuron: Any) -> Any:
    return _chain(key, np.uint64(neuron)) >> np.uint64(64 - CHANCE_BITS) < chance


def chance(probability: float) -> int:
    """Return the `chance` of CONTROL for a probability."""
    return round(probability * (1 << CHANCE_BITS))


def lost(chance: int, seed: int, run: int, sample: Any, node: Any, step: Any, neuron: Any) -> Any:
    """Return which spikes are lost, with arrays that broadcast for the last four."""
    word = np.array([_HASH])
    for field in (seed, run, sample, node, step, neuron):
        fields = np.atleast_1d(np.asarray(field, np.uint64))
        word = _mix.py_func((word ^ fields) + _GOLDEN)
    return (word >> np.uint64(64 - CHANCE_BITS)) < np.uint64(chance)


class _Vector:
    """16 lanes of int32 while LLVM code is written; the arithmetic wraps modulo 2^32."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder: Any, data: Any, at: Any, offset: int) -> _Vector:
        """Load lanes of an array; int8 is extended."""
        form = ir.VectorType(data.type.pointee, VECTOR)
        at = builder.add(at, ir.IntType(64)(offset))
        value = builder.load(_vector_pointer(builder, data, at, form), align=1)
        wide = data.type.pointee.width == 32
        return cls(builder, value if wide else builder.zext(value, _LONG))

    def store(self, data: Any, at: Any, offset: int) -> None:
        """Store lanes of an array of int32."""
        at = self.builder.add(at, ir.IntType(64)(offset))
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

    def where(self, condition: _Vector, other: Any) -> _Vector:
        """Return these lanes where a condition holds, and the other ones elsewhere."""
        other = other if isinstance(other, _Vector) else self.same(other)
        value = self.builder.select(condition.value, self.value, other.value)
        return _Vector(self.builder, value)

    def bits(self, offset: int) -> Any:
        """Return a condition as bits of 64, from bit `offset` on."""
        word = self.builder.bitcast(self.value, ir.IntType(VECTOR))
        word = self.builder.zext(word, ir.IntType(64))
        return self.builder.shl(word, ir.IntType(64)(offset))


def _decay(a: _Vector, keep: _Vector) -> _Vector:
    """sign(a) * ((|a| * keep) >> 12) in 32 bits, for |a| up to 2^23."""
    negative = a.compare("<", 0)
    size = (a.same(0) - a).where(negative, a)
    high = ((size >> 12) & 4095) * keep
    low = ((size & 4095) * keep) >> 12
    kept = high + low
    return (a.same(0) - kept).where(negative, kept)


def _wrap(a: _Vector) -> _Vector:
    """Fold modulo 2^24 into (-2^23, 2^23]."""
    return (((a - 1) << 8) >> 8) + 1


def _clip(v: _Vector) -> _Vector:
    v = v.where(v.compare("<", V_LIMIT), V_LIMIT)
    return v.where(v.compare(">", -V_LIMIT), -V_LIMIT)


def _cuba_lanes(builder: Any, args: Any, offset: int, special: bool) -> list[Any]:
    """Write the update of 16 CUBA lanes; return its conditions as bits."""
    u, v, third, ring, bias, threshold, faults, at, slot, keep_u, keep_v, refractory = args
    x = _Vector.load(builder, ring, slot, offset)
    x.same(0).store(ring, slot, offset)
    old_u = _Vector.load(builder, u, at, offset)
    old_v = _Vector.load(builder, v, at, offset)
    kept = _decay(old_u, x.same(keep_u) & 8191)
    new_u = _wrap(kept + (x << 6))
    wrapped = ((new_u - kept) >> 6).compare("!=", x)
    total = _decay(old_v, x.same(keep_v) & 8191) + new_u
    total = total + _Vector.load(builder, bias, at, offset)
    new_v = _clip(total)
    clipped = new_v.compare("!=", total)
    fired = new_v.compare(">", _Vector.load(builder, threshold, at, offset))
    if special:
        fault = _Vector.load(builder, faults, at, offset)
        wait = _Vector.load(builder, third, at, offset)
        waits = wait.compare(">", 0)
        new_v = x.same(0).where(waits, new_v)
        fired = fired & wait.compare("<=", 0) & fault.compare("!=", DEAD)
        fired = fired | fault.compare("==", STUCK)
        left = x.same(refractory).where(fired, (wait - 1).where(waits, 0))
        left.store(third, at, offset)
    new_v = x.same(0).where(fired, new_v)
    new_u.store(u, at, offset)
    new_v.store(v, at, offset)
    changed = new_u.compare("!=", old_u) | new_v.compare("!=", old_v)
    if special:
        changed = changed | left.compare("!=", wait)
    return [condition.bits(offset) for condition in (fired, wrapped, clipped, changed)]


def _cuba_block(special: bool) -> Any:
    """Return the update of the 64 CUBA lanes from `at` on, whose sums are at ring[slot]."""

    def update(
        typing: Any, u: Any, v: Any, third: Any, ring: Any, bias: Any, threshold: Any,
        faults: Any, at: Any, slot: Any, keep_u: Any, keep_v: Any, refractory: Any, masks: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            parts = [_cuba_lanes(builder, args[:-1], offset, special)
                     for offset in range(0, BLOCK, VECTOR)]  # fmt: skip
            for k, bits in enumerate(zip(*parts, strict=True)):
                word = reduce(builder.or_, bits)
                builder.store(word, builder.gep(args[-1], [ir.IntType(64)(k)]))
            return context.get_dummy_value()

        number, long = types.int32, types.int64
        return types.void(
            u, v, third, ring, bias, threshold, faults, long, long, number, number, number, masks
        ), emit

    return intrinsic(update)


_cuba = _cuba_block(special=False)
_cuba_special = _cuba_block(special=True)


@njit(**_INNER)
def _delta(
    begin: Any, end: Any, slot: Any, sums: Any, relu: Any, shift: Any, state_exp: Any,
    sigma: Any, act: Any, residue: Any, ring: Any, bias: Any, vth: Any,
    flags: Any, message: Any,
) -> None:  # fmt: skip
    """Update DELTA lanes, or SIGMA_DELTA lanes if `sums`."""
    for i in range(begin, end):
        x = ring[slot + i]
        ring[slot + i] = _ZERO
        total = np.int32(sigma[i] + x) if sums else sigma[i]
        new = np.int32(total + bias[i]) if sums else np.int32(x << shift)
        new = max(new, _ZERO) if relu else new
        difference = np.int32(np.int32(new - act[i]) + residue[i])
        large = (difference >= vth[i]) | (difference <= np.int32(-vth[i]))
        sent = difference if large else _ZERO
        left = np.int32(difference - sent)
        changed = (total != sigma[i]) | (new != act[i]) | (left != residue[i])
        sigma[i], act[i], residue[i] = total, new, left
        said = np.int32(sent >> state_exp)
        message[i] = said
        flags[i] = np.uint8((_FIRED if said != 0 else 0) | (_CHANGED if changed else 0))


@njit(**_INNER)
def _sigma(
    begin: Any, end: Any, slot: Any, sigma: Any, ring: Any, flags: Any, message: Any
) -> None:
    """Update SIGMA lanes."""
    for i in range(begin, end):
        x = ring[slot + i]
        ring[slot + i] = _ZERO
        total = np.int32(sigma[i] + x)
        sigma[i] = total
        message[i] = total
        flags[i] = np.uint8((_FIRED if total != 0 else 0) | (_CHANGED if x != 0 else 0))


@njit(**_INNER)
def _update_graded(net: Any, work: Any, population: Any, at: Any, slot: Any, lane: Any) -> None:
    """Update the 64 lanes from `at` on of a population that sends messages."""
    model, end, flags, masks = population["model"], at + BLOCK, work.flags, work.masks
    if model == SIGMA:
        _sigma(at, end, slot - at, lane.u, lane.ring, flags, work.message)
    else:
        sums = model == SIGMA_DELTA
        relu = sums and population["relu"] != 0
        shift, state_exp = np.int32(population["shift"]), np.int32(population["state_exp"])
        _delta(
            at, end, slot - at, sums, relu, shift, state_exp, lane.u, lane.v, lane.third,
            lane.ring, work.bias, net.threshold, flags, work.message,
        )  # fmt: skip
    masks[0] = _lanes_with(flags, at, _FIRED)
    masks[1] = masks[2] = np.uint64(0)
    masks[3] = _lanes_with(flags, at, _CHANGED)


@njit(forceinline=True, **_INNER)
def _update_block(net: Any, work: Any, population: Any, at: Any, slot: Any, lane: Any) -> None:
    """Update the 64 lanes from `at` on, whose sums are at ring[slot]; set the masks."""
    if population["model"] != CUBA:
        _update_graded(net, work, population, at, slot, lane)
        return
    keep_u, keep_v = np.int32(population["keep_u"]), np.int32(population["keep_v"])
    refractory = np.int32(population["refractory"])
    if population["special"]:
        _cuba_special(
            lane.u, lane.v, lane.third, lane.ring, work.bias, net.threshold, net.faults, at,
            slot, keep_u, keep_v, refractory, work.masks,
        )  # fmt: skip
    else:
        _cuba(
            lane.u, lane.v, lane.third, lane.ring, work.bias, net.threshold, net.faults, at,
            slot, keep_u, keep_v, refractory, work.masks,
        )  # fmt: skip


@njit(forceinline=True, **_INNER)
def _collect(work: Any, mask: Any, lane: Any, first: Any, graded: Any, count: Any) -> Any:
    """Append the neurons of a mask to the list of events; return its new length."""
    while mask != 0:
        neuron = lane - first + _first_lane(mask)
        work.neuron[count] = neuron
        if graded:
            work.payload[count] = work.message[first + neuron]
        count += 1
        mask &= mask - np.uint64(1)
    return count


@njit(**_INNER)
def _update(net: Any, work: Any, control: Any, population: Any, now: Any, lane: Any) -> Any:
    """Update the blocks of a population that are not at rest; return its number of events."""
    dirty, awake, masks = lane.dirty, lane.awake, work.masks
    first, size = population["first"], population["size"]
    graded = population["model"] != CUBA
    ahead = now * (net.lanes // BLOCK)
    count, updates = np.int64(0), 0
    for block in range(first // BLOCK, (first + size + BLOCK - 1) // BLOCK):
        arrived = dirty[ahead + block]
        if (awake[block] | arrived) == 0:
            continue
        at = block * BLOCK
        _update_block(net, work, population, at, (ahead + block) * BLOCK, lane)
        dirty[ahead + block] = np.uint8(0)
        awake[block] = np.uint8(arrived != 0 or (masks[0] | masks[1] | masks[2] | masks[3]) != 0)
        updates += min(BLOCK, first + size - at)
        if (masks[1] | masks[2]) != 0:
            control["wraps"] += _count_lanes(masks[1])
            control["clips"] += _count_lanes(masks[2])
        if masks[0] != 0:
            count = _collect(work, masks[0], at, first, graded, count)
    control["updates"] += updates
    return count


@njit(forceinline=True, **_INNER)
def _mark(dirty: Any, at: Any, length: Any) -> None:
    for block in range(at // BLOCK, (at + length - 1) // BLOCK + 1):
        dirty[block] = np.uint8(1)


@njit(**_INNER)
def _send_dense(
    projection: Any, weights: Any, neuron: Any, payload: Any, begin: Any, end: Any, at: Any,
    ring: Any,
) -> Any:  # fmt: skip
    """Add the rows of a dense matrix at one place; return the weights added."""
    stride, base = projection["stride"], projection["weight"]
    event = begin
    if projection["graded"]:
        while event < end:
            row = base + neuron[event] * stride
            for i in range(0, stride, VECTOR):
                _add_scaled(ring, at + i, weights, row + i, payload[event])
            event += 1
    if projection["narrow"]:
        while event + 4 <= end:
            r0 = base + neuron[event] * stride
            r1 = base + neuron[event + 1] * stride
            r2 = base + neuron[event + 2] * stride
            r3 = base + neuron[event + 3] * stride
            for i in range(0, stride, VECTOR):
                _add_four(ring, at + i, weights, r0 + i, r1 + i, r2 + i, r3 + i)
            event += 4
    while event < end:
        row = base + neuron[event] * stride
        for i in range(0, stride, VECTOR):
            _add_row(ring, at + i, weights, row + i)
        event += 1
    return (end - begin) * projection["width"]


@njit(**_INNER)
def _send_runs(
    net: Any, projection: Any, neuron: Any, payload: Any, begin: Any, end: Any, base: Any,
    limit: Any, ring: Any, dirty: Any,
) -> Any:  # fmt: skip
    """Add the runs of each event's row; return the weights added."""
    rows, runs, weights = net.rows, net.runs, net.weights
    first_row, graded = projection["row"], projection["graded"]
    added = 0
    for event in range(begin, end):
        row = first_row + neuron[event]
        for run in range(rows[row], rows[row + 1]):
            at = base + runs[3 * run]
            at -= limit if at >= limit else 0
            weight = np.int64(runs[3 * run + 1]) * VECTOR
            length = np.int64(runs[3 * run + 2])
            if graded:
                for i in range(0, length, VECTOR):
                    _add_scaled(ring, at + i, weights, weight + i, payload[event])
            else:
                for i in range(0, length, VECTOR):
                    _add_row(ring, at + i, weights, weight + i)
            _mark(dirty, at, length)
            added += int(length)
    return added


@njit(**_INNER)
def _send_units(
    net: Any, projection: Any, neuron: Any, payload: Any, begin: Any, end: Any, base: Any,
    limit: Any, ring: Any, dirty: Any,
) -> Any:  # fmt: skip
    """Add single weights, each at a place of its own; return their number."""
    rows, place, weight = net.rows, net.unit_place, net.unit_weight
    first_row, graded = projection["row"], projection["graded"]
    added = 0
    for event in range(begin, end):
        row = first_row + neuron[event]
        first, last = rows[row], rows[row + 1]
        factor = payload[event] if graded else np.int32(1)
        for i in range(np.uint64(first), np.uint64(last)):
            at = base + place[i]
            at -= limit if at >= limit else 0
            ring[np.uint64(at)] += np.int32(weight[i] * factor)
            dirty[np.uint64(at >> 6)] = np.uint8(1)
        added += last - first
    return added


@njit(**_INNER)
def _release(
    projection: Any, late: Any, ring: Any, dirty: Any, base: Any, limit: Any, stage: Any
) -> None:
    """Move gathered sums to the slots of their targets' delays."""
    first, delays = projection["first"], projection["late"]
    for i in range(projection["size"]):
        at = base + late[delays + i] + first + i
        at -= limit if at >= limit else 0
        ring[np.uint64(at)] += ring[np.uint64(stage + first + i)]
        ring[np.uint64(stage + first + i)] = _ZERO
        dirty[np.uint64(at >> 6)] = np.uint8(1)


@njit(**_INNER)
def _send(
    net: Any, node: Any, now: Any, neuron: Any, payload: Any, begin: Any, end: Any,
    ring: Any, dirty: Any,
) -> Any:  # fmt: skip
    """Send events [begin, end) of a node to all of its targets; return the weights added."""
    lanes = net.lanes
    limit = net.depth * lanes
    base = (now + 1) * lanes
    base -= limit if base >= limit else 0
    added = 0
    for j in range(net.outgoing[node], net.outgoing[node + 1]):
        projection = _item(net.projections, j)
        staged = projection["late"] >= 0
        origin = limit if staged else base
        bound = 2 * limit + 2 * lanes if staged else limit
        if projection["kind"] == DENSE:
            at = origin + projection["place"]
            at -= bound if at >= bound else 0
            added += _send_dense(projection, net.weights, neuron, payload, begin, end, at, ring)
            _mark(dirty, at, projection["width"])
        elif projection["kind"] == RUNS:
            added += _send_runs(
                net, projection, neuron, payload, begin, end, origin, bound, ring, dirty
            )
        else:
            added += _send_units(
                net, projection, neuron, payload, begin, end, origin, bound, ring, dirty
            )
        if staged:
            _release(projection, net.late, ring, dirty, base, limit, limit)
    return added


@njit(**_INNER)
def _keep(
    control: Any, sample: Any, node: Any, step: Any, neuron: Any, payload: Any, begin: Any,
    end: Any, work: Any, graded: Any,
) -> Any:  # fmt: skip
    """Copy the events that are not lost to the work list; return their number."""
    key = _step_key(control, sample, node, step)
    count = 0
    for event in range(begin, end):
        if not _is_lost(key, control["chance"], neuron[event]):
            work.neuron[count] = neuron[event]
            if graded:
                work.payload[count] = payload[event]
            count += 1
    return count


@njit(**_INNER)
def _write(record: Any, k: Any, neuron: Any, payload: Any, begin: Any, end: Any) -> None:
    """Append events [begin, end) to record k."""
    used = record.begin[k] + record.used[k]
    for i in range(end - begin):
        record.neuron[used + i] = neuron[begin + i]
    if record.graded[k]:
        for i in range(end - begin):
            record.payload[used + i] = payload[begin + i]
    record.used[k] += end - begin


@njit(**_INNER)
def _emit(
    net: Any, control: Any, record: Any, k: Any, node: Any, now: Any, neuron: Any,
    payload: Any, begin: Any, end: Any, ring: Any, dirty: Any,
) -> None:  # fmt: skip
    """Count, record and send events [begin, end) of a node."""
    control["spikes"] += end - begin
    if k >= 0:
        _write(record, k, neuron, payload, begin, end)
    control["operations"] += _send(net, node, now, neuron, payload, begin, end, ring, dirty)


@njit(**_INNER)
def _drive(
    net: Any, inputs: Any, work: Any, control: Any, population: Any, sample: Any,
    step: Any, lane: Any,
) -> None:  # fmt: skip
    """Apply the inputs that drive a population directly."""
    time = control["start"] + step
    column = sample * control["steps"] + step
    first, slot = population["first"], time % net.depth * net.lanes
    for d in range(population["drive_begin"], population["drive_end"]):
        drive = _item(net.drives, d)
        key = _step_key(control, sample, drive["input"], time)
        row = drive["input"] * inputs.width
        for event in range(inputs.offsets[row + column], inputs.offsets[row + column + 1]):
            i = first + inputs.neuron[event]
            if control["faulty"] and _is_lost(key, control["chance"], i - first):
                continue
            value = inputs.payload[event] if drive["graded"] else np.int32(1)
            if drive["kind"] == DRIVE_BIAS:
                lane.awake[i // BLOCK] = np.uint8(1)
                work.bias[i] += np.int32(np.int64(value) << drive["shift"])
            else:
                lane.ring[slot + i] += value
                lane.dirty[(slot + i) // BLOCK] = np.uint8(1)


@njit(**_INNER)
def _settle(
    net: Any, inputs: Any, work: Any, population: Any, column: Any, restore: Any,
    awake: Any,
) -> None:  # fmt: skip
    """Clip driven biases to where v saturates anyway, for exact sums in 32 bits; or restore."""
    for d in range(population["drive_begin"], population["drive_end"]):
        drive = _item(net.drives, d)
        if drive["kind"] == DRIVE_BIAS:
            row = drive["input"] * inputs.width
            for event in range(inputs.offsets[row + column], inputs.offsets[row + column + 1]):
                lane = population["first"] + inputs.neuron[event]
                if restore:
                    work.bias[lane] = net.bias[lane]
                    awake[lane // BLOCK] = np.uint8(1)
                elif population["model"] == CUBA:
                    bias = min(max(work.bias[lane], -BIAS_LIMIT), BIAS_LIMIT)
                    work.bias[lane] = np.int32(bias)


@njit(**_INNER)
def _reset_lanes(lane: Any, begin: Any, end: Any) -> None:
    for i in range(begin, end):
        lane.u[i] = _ZERO
        lane.v[i] = _ZERO
        lane.third[i] = _ZERO
    for block in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK):
        lane.awake[block] = np.uint8(1)


@njit(**_INNER)
def _reset_ring(net: Any, lane: Any) -> None:
    for block in range((net.depth + 1) * (net.lanes // BLOCK)):
        if lane.dirty[block]:
            lane.dirty[block] = np.uint8(0)
            for i in range(block * BLOCK, (block + 1) * BLOCK):
                lane.ring[i] = _ZERO


@njit(**_INNER)
def _has_room(record: Any) -> bool:
    for k in range(record.records):  # noqa: SIM110
        if record.used[k] + record.size[k] > record.room[k]:
            return False
    return True


@njit(**_INNER)
def _record_states(record: Any, population: Any, index: Any, u: Any, v: Any) -> None:
    first, size = population["first"], population["size"]
    if population["record_u"] >= 0:
        at = population["record_u"] + index * size
        for i in range(size):
            record.states[at + i] = u[first + i]
    if population["record_v"] >= 0:
        at = population["record_v"] + index * size
        for i in range(size):
            record.states[at + i] = v[first + i]


@njit(**_INNER)
def _step(
    net: Any, inputs: Any, work: Any, record: Any, control: Any, sample: Any, step: Any,
    lane: Any,
) -> None:  # fmt: skip
    """Do one step of one sample."""
    time = control["start"] + step
    now = time % net.depth
    column = sample * control["steps"] + step
    for node in range(net.n_inputs):
        row = node * inputs.width + column
        begin, end = inputs.offsets[row], inputs.offsets[row + 1]
        neuron, payload = inputs.neuron, inputs.payload
        if control["faulty"] and end > begin:
            graded = inputs.graded
            end = _keep(control, sample, node, time, neuron, payload, begin, end, work, graded)
            begin, neuron, payload = np.int64(0), work.neuron, work.payload
        if end > begin:
            _emit(
                net, control, record, inputs.record[node], node, now, neuron, payload,
                begin, end, lane.ring, lane.dirty,
            )  # fmt: skip
    for p in range(net.n_populations):
        population = _item(net.populations, p)
        interval = population["reset_interval"]
        if interval > 0 and time % interval == population["reset_offset"]:
            _reset_lanes(lane, population["first"], population["first"] + population["size"])
        driven = population["drive_end"] > population["drive_begin"]
        if driven:
            _drive(net, inputs, work, control, population, sample, step, lane)
            _settle(net, inputs, work, population, column, np.int64(0), lane.awake)
        count = _update(net, work, control, population, now, lane)
        if driven:
            _settle(net, inputs, work, population, column, np.int64(1), lane.awake)
        if population["record_u"] >= 0 or population["record_v"] >= 0:
            _record_states(record, population, column, lane.u, lane.v)
        if count > 0 and control["faulty"]:
            graded = population["model"] != CUBA
            count = _keep(
                control, sample, net.n_inputs + p, time, work.neuron, work.payload, np.int64(0),
                count, work, graded,
            )  # fmt: skip
        if count > 0:
            _emit(
                net, control, record, population["record"], net.n_inputs + p, now,
                work.neuron, work.payload, np.int64(0), count, lane.ring, lane.dirty,
            )  # fmt: skip
    for k in range(record.records):
        record.offsets[k * record.width + column + 1] = record.used[k]


@njit(**_INNER)
def _point(circuit: Any, inputs: Any) -> Any:
    return _Net(
        _pointer(circuit.populations, 0), _pointer(circuit.projections, 0),
        _pointer(circuit.outgoing, 0), _pointer(circuit.drives, 0),
        _pointer(circuit.threshold, 0), _pointer(circuit.bias, 0), _pointer(circuit.faults, 0),
        _pointer(circuit.rows, 0), _pointer(circuit.runs, 0), _pointer(circuit.weights, 0),
        _pointer(circuit.unit_place, 0), _pointer(circuit.unit_weight, 0),
        _pointer(circuit.late, 0), circuit.depth, circuit.threshold.size,
        circuit.populations.size, inputs.record.size,
    )  # fmt: skip


@njit(nogil=True, cache=True)
def advance(circuit: Any, inputs: Any, state: Any, scratch: Any, record: Any, controls: Any) -> int:
    """Run samples until all is done, a record might not fit, or the budget is spent.

    `controls` is one CONTROL; it says where to begin and where the next call goes on.
    """
    net = _point(circuit, inputs)
    feed = _Feed(
        _pointer(inputs.offsets, 0), _pointer(inputs.neuron, 0), _pointer(inputs.payload, 0),
        _pointer(inputs.record, 0), inputs.offsets.shape[1], inputs.payload.size > 0,
    )  # fmt: skip
    work = _Work(
        _pointer(scratch.bias, 0), _pointer(scratch.flags, 0), _pointer(scratch.masks, 0),
        _pointer(scratch.message, 0),
        _pointer(scratch.neuron, 0), _pointer(scratch.payload, 0),
    )  # fmt: skip
    tape = _Tape(
        _pointer(record.begin, 0), _pointer(record.room, 0), _pointer(record.used, 0),
        _pointer(record.offsets, 0), _pointer(record.neuron, 0), _pointer(record.payload, 0),
        _pointer(record.size, 0), _pointer(record.graded, 0), _pointer(record.states, 0),
        record.used.size, record.offsets.shape[1],
    )  # fmt: skip
    control = controls[0]
    budget = control["budget"] + control["operations"] + control["updates"]
    ring, dirty = state.ring.shape[1], state.dirty.shape[1]
    while control["sample"] < control["samples"]:
        sample = control["sample"]
        row = sample if state.u.shape[0] > 1 else 0
        lane = _Lanes(
            _pointer(state.u, row * net.lanes), _pointer(state.v, row * net.lanes),
            _pointer(state.third, row * net.lanes), _pointer(state.ring, row * ring),
            _pointer(state.dirty, row * dirty), _pointer(state.awake, row * (net.lanes // BLOCK)),
        )  # fmt: skip
        if control["step"] == 0 and control["fresh"]:
            _reset_lanes(lane, 0, net.lanes)
            _reset_ring(net, lane)
        for step in range(control["step"], control["steps"]):
            if not _has_room(tape):
                control["step"] = step
                return NO_ROOM
            if control["operations"] + control["updates"] >= budget:
                control["step"] = step
                return PAUSED
            _step(net, feed, work, tape, control, sample, step, lane)
        control["sample"] = sample + 1
        control["step"] = 0
    return DONE
