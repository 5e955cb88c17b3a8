"""The emulator: the chip's bits at the speed of the machine, event-driven and compiled.

It gives what the reference gives, bit for bit. Samples are shared out to threads; a run is cut into
pieces, so that it can be interrupted, timed out and followed, and so that memory grows only with
what is recorded.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmtool.backends import kernel
from nmtool.backends.base import InputBatch, Progress, Quantity, Session, refuse_unsupported
from nmtool.backends.circuit import Array, Layout, aligned, build
from nmtool.backends.faults import Defects
from nmtool.backends.injected import defects_of
from nmtool.backends.limits import FAULT_LIMITS, LIMITS
from nmtool.backends.placed import by_core
from nmtool.backends.simulator import Order, Outcome, SimulatorSession, Stream
from nmtool.chip import ChipSpec
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.faultmodel import Faults
from nmtool.fixedpoint import BoolArray, IntArray, shift
from nmtool.quantization import QuantizedNetwork
from nmtool.spikes import SpikeTrain

PIECE = 20_000_000
"""Neuron updates and synaptic operations between two looks at the clock: some milliseconds."""

_STATE_COLUMNS: Mapping[Quantity, str] = {"current": "record_u", "voltage": "record_v"}

_COUNTERS: Mapping[str, str] = {
    "wrapped": "wraps",
    "saturated": "clips",
    "synaptic_operations": "operations",
    "neuron_updates": "updates",
}

FIRST_RATE = 1 / 8
"""Spikes per neuron and step for which the first run of a session makes room."""

WORTH_A_THREAD = 200_000
"""Neuron updates for which a second thread is worth its start."""


@dataclass(frozen=True)
class EmulatorBackend:
    """Runs programs in compiled code; with ``faults`` it acts out invented defects.

    ``threads`` share the samples of a run: all cores that the process may use unless given.
    ``chip`` is the one whose registers faults change: the program's, by its name, unless given.
    With ``by_core`` every core's share of a placed program runs by itself.
    """

    faults: Faults | None = None
    timeout: float | None = None
    threads: int | None = None
    name: str = "emulator"
    chip: ChipSpec | None = None
    by_core: bool = False

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What it cannot run: with faults, graded messages."""
        return FAULT_LIMITS if self.faults else LIMITS["emulator"]

    def open(self, program: Program) -> Session:
        """Load a program, with the defects that the faults give it."""
        refuse_unsupported(self.name, self.limits, program)
        defects = defects_of(program, self.faults, self.chip)
        return (
            by_core(self._load, program, defects) if self.by_core else self._load(program, defects)
        )

    def _load(self, program: Program, defects: Defects | None) -> EmulatorSession:
        threads = self.threads or len(os.sched_getaffinity(0))
        return EmulatorSession(program, defects, self.timeout, threads)


@dataclass(frozen=True, eq=False)
class _Probes:
    """What a run records: the populations with their place in the records."""

    names: Mapping[Quantity, tuple[str, ...]]
    populations: Array
    sizes: Array
    graded: Array
    offsets: Array
    states: Array
    begin: Mapping[tuple[str, str], int]


@dataclass
class _Worker:
    """What one thread works with, kept from run to run; `machine` has the addresses of it."""

    machine: Array
    state: kernel.State
    scratch: kernel.Scratch
    neuron: Array
    payload: Array


@dataclass
class _Task:
    """A stretch of samples that one thread runs, and what it records."""

    machine: Array
    worker: _Worker
    record: kernel.Record
    first: int
    last: int
    singles: kernel.Singles | None = None


@dataclass
class _Run:
    """What the threads of a run share: how far each is, and whether to stop."""

    deadline: float | None
    total: int
    done: dict[int, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


class EmulatorSession(SimulatorSession[kernel.State]):
    """A program in memory, laid out for the compiled kernel."""

    name = "emulator"

    def __init__(
        self, program: Program, defects: Defects | None, timeout: float | None, threads: int
    ) -> None:
        super().__init__(program, defects, timeout)
        self._threads = threads
        self._layout: Layout = build(self._network, defects)
        self._carrying = self._kept_lanes()
        self._singles = _singles(self._network, defects)
        for name in program.network.projections:
            self._store(name)
        self._idle: list[_Worker] = []
        self._rates: dict[str, float] = {}
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads."""
        super().close()
        self._idle.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _store(self, name: str) -> None:
        exponent = self._network.projections[name].format.exponent
        self._layout.fill(name, shift(self._mantissa(name), exponent))

    def _kept_lanes(self) -> BoolArray | None:
        """The lanes that are not reset between the samples of a run, if there are any."""
        if self._defects is None or not self._defects.kept:
            return None
        tables = self._layout.tables
        kept = np.zeros(tables.threshold.size, dtype=np.bool_)
        for name, row in zip(self._network.populations, tables.populations, strict=True):
            begin = int(row["first"])
            kept[begin : begin + int(row["size"])] = name in self._defects.kept
        return kept

    def _fresh(self, n_samples: int) -> kernel.State:
        tables = self._layout.tables
        lanes = tables.threshold.size
        ring = (tables.depth + 1) * lanes
        awake = aligned((n_samples, lanes // kernel.BLOCK), np.uint8)
        awake[:] = 1
        return kernel.State(
            aligned((n_samples, lanes), np.int32),
            aligned((n_samples, lanes), np.int32),
            aligned((n_samples, lanes), np.int32),
            aligned((n_samples, ring + kernel.BLOCK), np.int32),
            aligned((n_samples, ring // kernel.BLOCK), np.uint8),
            awake,
            aligned((n_samples, int(tables.waiting_begin[-1])), np.int32),
        )

    def _new_worker(self) -> _Worker:
        tables = self._layout.tables
        lanes = tables.threshold.size
        most = max([lanes, *self.program.network.sizes.values()]) + kernel.SPARE
        none = np.empty(0, dtype=np.int32)
        scratch = kernel.Scratch(
            aligned(lanes, np.int32),
            aligned(lanes, np.int32),
            aligned(most, np.int32),
            aligned(most, np.int32),
            aligned(kernel.GROUP, np.int64),
            aligned(most, np.int32),
        )
        machine = np.zeros(1, kernel.MACHINE)
        state = self._fresh(1)
        for part in (tables, state, scratch):
            kernel.attach(machine, part)
        return _Worker(machine, state, scratch, none, none)

    def _advance(self, order: Order, stream: Stream[kernel.State] | None) -> Outcome:
        batch = order.batch
        probes = self._probes(order.probes, batch)
        inputs = _inputs(self.program, batch)
        tasks = self._tasks(order, probes, inputs, stream)
        self._execute(tasks, _Run(order.deadline, batch.n_samples * batch.n_steps), order.progress)
        outcome = self._outcome(tasks, probes, batch)
        self._idle += [task.worker for task in tasks]
        return outcome

    def _probes(self, names: Mapping[Quantity, tuple[str, ...]], batch: InputBatch) -> _Probes:
        net = self.program.network
        rows = {name: index for index, name in enumerate(net.populations)}
        table = self._layout.tables.populations.copy()
        spiking = names.get("spikes", ())
        for index, name in enumerate(spiking):
            table["record"][rows[name]] = index
        begin: dict[tuple[str, str], int] = {}
        total = 0
        for quantity, column in _STATE_COLUMNS.items():
            for name in names.get(quantity, ()):
                table[column][rows[name]] = begin[quantity, name] = total
                total += batch.n_samples * batch.n_steps * net.sizes[name]
        return _Probes(
            names,
            table,
            np.array([net.sizes[name] for name in spiking], dtype=np.int64),
            np.array([net.graded(name) for name in spiking], dtype=np.bool_),
            np.zeros((len(spiking), batch.n_samples * batch.n_steps + 1), dtype=np.int64),
            np.empty(total, dtype=np.int32),
            begin,
        )

    def _tasks(
        self,
        order: Order,
        probes: _Probes,
        inputs: kernel.Inputs,
        stream: Stream[kernel.State] | None,
    ) -> list[_Task]:
        """The samples, shared out evenly."""
        batch = order.batch
        lanes = self._layout.tables.threshold.size
        work = batch.n_samples * batch.n_steps * lanes
        if self._carrying is not None:
            work = 0  # one sample after the other, so one thread
        count = max(1, min(self._threads, batch.n_samples, 1 + work // WORTH_A_THREAD))
        edges = [batch.n_samples * i // count for i in range(count + 1)]
        return [
            self._task(order, probes, inputs, stream, first, last)
            for first, last in itertools.pairwise(edges)
        ]

    def _task(
        self,
        order: Order,
        probes: _Probes,
        inputs: kernel.Inputs,
        stream: Stream[kernel.State] | None,
        first: int,
        last: int,
    ) -> _Task:
        batch = order.batch
        worker = self._idle.pop() if self._idle else self._new_worker()
        worker.scratch.driven[:] = self._layout.tables.bias
        record = self._new_record(probes, worker, (last - first) * batch.n_steps)
        columns = batch.n_samples * batch.n_steps + 1
        machine = aligned(1, kernel.MACHINE)
        machine[0] = worker.machine[0]
        set_up = machine[0]
        set_up["populations_at"] = probes.populations.ctypes.data
        set_up["lanes"] = worker.scratch.driven.size
        set_up["inputs"] = inputs.in_offsets.shape[0]
        set_up["nodes"] = inputs.in_offsets.shape[0] + probes.populations.size
        set_up["records"] = probes.sizes.size
        set_up["sample"], set_up["samples"] = first, last
        set_up["steps"], set_up["columns"] = batch.n_steps, columns
        set_up["budget"], set_up["fresh"] = PIECE, stream is None
        if stream:
            set_up["kept"], set_up["start"] = 1, stream.step
            kernel.attach(machine, stream.state)
        if self._carrying is not None and stream is None:
            set_up["fresh"], set_up["samples"] = 0, min(first + 1, last)
            _carry_over(worker.state, np.zeros_like(self._carrying), 0)
        singles = None
        if self._defects and (self._defects.faults.loses or self._singles.held.size):
            faults = self._defects.faults
            set_up["faulty"] = 1
            set_up["chance"] = kernel.chance(faults.spike_loss)
            set_up["late_chance"] = kernel.chance(faults.late_spikes)
            set_up["seed"], set_up["run"] = faults.seed, order.run
            singles = self._held_by(stream)
            set_up["singles"] = singles.held.size
            kernel.attach(machine, singles)
        kernel.attach(machine, inputs)
        kernel.attach(machine, record)
        return _Task(machine, worker, record, first, last, singles)

    def _held_by(self, stream: Stream[kernel.State] | None) -> kernel.Singles:
        """The single spikes; which late ones are on their way is kept from piece to piece."""
        if stream is None:
            return self._singles._replace(held=np.zeros_like(self._singles.held))
        if stream.step == 0:
            self._singles.held[:] = 0
        return self._singles

    def _new_record(self, probes: _Probes, worker: _Worker, columns: int) -> kernel.Record:
        """Records with room for as many events as the session has seen; they grow where needed."""
        sizes = probes.sizes
        rates = [self._rates.get(name, FIRST_RATE) for name in probes.names.get("spikes", ())]
        expected = (np.array(rates) * sizes * columns).astype(np.int64)
        room = sizes + kernel.SPARE + 4096 + expected + expected // 8
        total = int(room.sum())
        if worker.neuron.size < total:
            worker.neuron = np.empty(total, dtype=np.int32)
        if probes.graded.any() and worker.payload.size < total:
            worker.payload = np.empty(total, dtype=np.int32)
        return kernel.Record(
            np.cumsum(room) - room,
            room,
            aligned(sizes.size, np.int64),
            probes.offsets,
            worker.neuron,
            worker.payload,
            sizes,
            probes.states,
        )

    def _execute(self, tasks: list[_Task], run: _Run, progress: Progress | None) -> None:
        """Run all tasks, the first of them in this thread."""
        if len(tasks) == 1:
            self._work(tasks[0], run, progress)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "nmtool-emulator")
        others = [self._pool.submit(self._work, task, run, None) for task in tasks[1:]]
        try:
            self._work(tasks[0], run, progress)
        except BaseException:
            run.stop.set()
            raise
        finally:
            for other in others:
                other.exception()  # wait
        for other in others:
            other.result()

    def _work(self, task: _Task, run: _Run, progress: Progress | None) -> None:
        """Run one task piece by piece, until it is done or told to stop."""
        machine = task.machine[0]
        while not run.stop.is_set():
            state = kernel.advance(task.machine)
            if state == kernel.NO_ROOM:
                _grow(task)
            done = (int(machine["sample"]) - task.first) * int(machine["steps"])
            run.done[task.first] = done + int(machine["step"])
            if progress:
                progress(sum(run.done.copy().values()), run.total)
            if state == kernel.DONE and machine["samples"] == task.last:
                return
            if state == kernel.DONE and self._carrying is not None:
                _carry_over(task.worker.state, self._carrying, int(machine["steps"]))
                machine["samples"] += 1
            if run.deadline is not None and time.monotonic() > run.deadline:
                raise self._too_slow(sum(run.done.copy().values()), run.total)

    def _outcome(self, tasks: list[_Task], probes: _Probes, batch: InputBatch) -> Outcome:
        net = self.program.network
        states: dict[str, dict[str, IntArray]] = {"current": {}, "voltage": {}}
        for (quantity, name), begin in probes.begin.items():
            shape = (batch.n_samples, batch.n_steps, net.sizes[name])
            values = probes.states[begin : begin + int(np.prod(shape))].reshape(shape)
            states[quantity][name] = np.ascontiguousarray(values.transpose(0, 2, 1), dtype=np.int64)
        lines = self._defects.lines if self._defects else {}
        for arrays in states.values():
            for name in lines.keys() & arrays.keys():
                arrays[name] = arrays[name][:, np.argsort(lines[name])]
        spikes = {}
        for k, name in enumerate(probes.names.get("spikes", ())):
            train = _train(tasks, k, batch, net.sizes[name], net.graded(name))
            spikes[name] = train.relabelled(lines[name]) if name in lines else train
            rate = len(train) / max(1, net.sizes[name] * batch.n_samples * batch.n_steps)
            self._rates[name] = max(rate, self._rates.get(name, 0.0))
        counters = {
            name: sum(int(task.machine[column][0]) for task in tasks)
            for name, column in _COUNTERS.items()
        }
        return Outcome(spikes, states["current"], states["voltage"], counters)


def _singles(net: QuantizedNetwork, defects: Defects | None) -> kernel.Singles:
    """The single spikes that are lost or late, as the kernel's table."""
    node = {name: index for index, name in enumerate((*net.inputs, *net.populations))}
    rows = [
        (
            kernel.LATE_SPIKE if s.kind == "late_spike" else kernel.LOST_SPIKE,
            s.sample,
            node[s.population],
            s.step,
            s.neuron,
        )
        for s in (defects.singles if defects else ())
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return kernel.Singles(table, np.zeros(len(rows), dtype=np.uint8))


def _carry_over(state: kernel.State, kept: BoolArray, steps: int) -> None:
    """Make the state after so many steps that of a sample's start, all zero but the kept lanes."""
    lanes = kept.size
    ring = state.ring[0, : state.dirty.shape[1] * kernel.BLOCK].reshape(-1, lanes)
    ring[:-1] = np.where(kept, np.roll(ring[:-1], -steps, axis=0), 0)
    ring[-1] = 0
    for values in (state.u, state.v, state.third):
        values[:, ~kept] = 0
    state.dirty[0] = ring.reshape(-1, kernel.BLOCK).any(axis=1)
    state.awake[:] = 1


def _inputs(program: Program, batch: InputBatch) -> kernel.Inputs:
    """The events of all inputs in one array."""
    trains = [batch.trains[name] for name in program.network.inputs]
    columns = batch.n_samples * batch.n_steps + 1
    offsets = np.zeros((len(trains), columns), dtype=np.int64)
    begin = 0
    for row, train in zip(offsets, trains, strict=True):
        row[:] = train.offset + begin
        begin += len(train)
    graded = any(train.payload is not None for train in trains)
    payloads = [
        np.ones(len(train), dtype=np.int32) if train.payload is None else train.payload
        for train in trains
        if graded
    ]
    return kernel.Inputs(
        offsets,
        _together([train.neuron for train in trains]),
        _together(payloads),
    )


def _together(parts: list[Any]) -> Array:
    if len(parts) == 1:
        return np.asarray(parts[0])
    return np.concatenate([np.empty(0, dtype=np.int32), *parts])


def _grow(task: _Task) -> None:
    """Give a task twice the room for what it records."""
    record, worker = task.record, task.worker
    room = record.room * 2
    begin = np.cumsum(room) - room
    neuron = np.empty(int(room.sum()), dtype=np.int32)
    payload = np.empty(neuron.size if record.payload.size else 0, dtype=np.int32)
    for k, used in enumerate(record.used):
        old = slice(record.begin[k], record.begin[k] + used)
        new = slice(begin[k], begin[k] + used)
        neuron[new] = record.neuron[old]
        if payload.size:
            payload[new] = record.payload[old]
    worker.neuron, worker.payload = neuron, payload
    task.record = record._replace(begin=begin, room=room, neuron=neuron, payload=payload)
    kernel.attach(task.machine, task.record)


def _train(tasks: list[_Task], k: int, batch: InputBatch, size: int, graded: bool) -> SpikeTrain:
    """The events of record k from all tasks, one after the other."""
    offset = tasks[0].record.offsets[k]
    neurons, payloads, before = [], [], 0
    for task in tasks:
        record, used = task.record, int(task.record.used[k])
        if before:
            offset[task.first * batch.n_steps + 1 : task.last * batch.n_steps + 1] += before
        events = slice(record.begin[k], record.begin[k] + used)
        neurons.append(record.neuron[events])
        if graded:
            payloads.append(record.payload[events])
        before += used
    payload = np.concatenate(payloads) if graded else None
    sizes = (batch.n_samples, size, batch.n_steps)
    return SpikeTrain(offset, np.concatenate(neurons), *sizes, payload, batch.batched)
