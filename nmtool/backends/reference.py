"""The reference backend: plain numpy, one loop over steps, obviously right. The oracle.

At step t a population adds up the weights of the spikes that its sources sent at t - 1 - delay,
updates u, then v, spikes where v is above its threshold, and sets v to 0 there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from nmtool.backends.base import InputBatch, Quantity, Session, refuse_unsupported, unbatch
from nmtool.backends.faults import Defects
from nmtool.backends.injected import defects_of
from nmtool.backends.limits import FAULT_LIMITS, LIMITS
from nmtool.backends.placed import by_core
from nmtool.backends.simulator import Order, Outcome, SimulatorSession, Stream
from nmtool.chip import ChipSpec
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.faultmodel import Faults
from nmtool.fixedpoint import CURRENT_DECAY_OFFSET as OFFSET
from nmtool.fixedpoint import (
    BoolArray,
    IntArray,
    decay,
    delta_step,
    fires,
    saturate,
    scaled,
    shift,
    wrap,
    wrap_word,
)
from nmtool.operations import Array, Chain, apply_chain, with_weight
from nmtool.quantization import QuantizedPopulation
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class ReferenceBackend:
    """Runs programs in numpy; with ``faults`` it acts out invented defects.

    ``chip`` is the one whose registers faults change: the program's, by its name, unless given.
    With ``by_core`` every core's share of a placed program runs by itself.
    """

    faults: Faults | None = None
    timeout: float | None = None
    name: str = "reference"
    chip: ChipSpec | None = None
    by_core: bool = False

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What it cannot run: with faults, graded messages."""
        return FAULT_LIMITS if self.faults else LIMITS["reference"]

    def open(self, program: Program) -> Session:
        """Load a program, with the defects that the faults give it."""
        refuse_unsupported(self.name, self.limits, program)
        defects = defects_of(program, self.faults, self.chip)
        return (
            by_core(self._load, program, defects) if self.by_core else self._load(program, defects)
        )

    def _load(self, program: Program, defects: Defects | None) -> ReferenceSession:
        return ReferenceSession(program, defects, self.timeout)


@dataclass
class _State:
    """The state of every population, shape (samples, neurons), and the input still to come.

    ``third`` counts down the refractory steps of CUBA neurons and holds the residue of delta
    encoders. ``arriving[population][k]`` is the weighted sum that arrives k steps from now: a spike
    adds its weights where its delay puts them when it is sent, as the chip's dendritic
    accumulators do. ``first`` is the number of the first sample, ``held`` are named
    late spikes, ``late`` those by chance: of each node, shape (samples, neurons).
    """

    n_samples: int
    u: dict[str, IntArray]
    v: dict[str, IntArray]
    third: dict[str, IntArray]
    arriving: dict[str, list[IntArray]]
    step: int = 0
    first: int = 0
    held: set[int] = field(default_factory=set)
    late: dict[str, BoolArray | None] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=lambda: {"wrapped": 0, "saturated": 0})

    def fold(self, event: str, rule: Callable[[IntArray], IntArray], exact: IntArray) -> IntArray:
        """Apply an overflow rule and count the states that it changed."""
        folded = rule(exact)
        self.events[event] += int(np.count_nonzero(folded != exact))
        return folded


@dataclass(frozen=True, eq=False)
class _Synapses:
    """The synapses of one projection that share a delay: steps until arrival, and their weights.

    ``axons`` are the source neurons that have this axonal delay (None: all).
    """

    source: str
    target: str
    steps: int
    axons: BoolArray | None
    operations: Chain


_Tape: TypeAlias = dict[Quantity, dict[str, Any]]
Register: TypeAlias = int | IntArray
"""What a register of a population holds, or those of its neurons."""


class ReferenceSession(SimulatorSession[_State]):
    """A program in memory; nothing to hold or release."""

    name = "reference"

    def __init__(self, program: Program, defects: Defects | None, timeout: float | None) -> None:
        super().__init__(program, defects, timeout)
        self._synapses: dict[str, list[_Synapses]] = {}
        for name in program.network.projections:
            self._store(name)

    def _store(self, name: str) -> None:
        projection = self._network.projections[name]
        weight = shift(self._mantissa(name), projection.format.exponent)
        if not self._network.graded(projection.source):
            weight = weight.astype(np.float64)  # sums stay exact, and matrix products are fast
        delay = np.broadcast_to(projection.delay, weight.shape)
        axonal = np.asarray(self._network.axonal_delay(projection.source))
        self._synapses[name] = [
            _Synapses(
                projection.source,
                projection.target,
                1 + int(a) + int(d),
                None if axonal.ndim == 0 else axonal == a,
                with_weight(projection.operations, np.where(delay == d, weight, 0)),
            )
            for d in np.unique(delay)
            for a in np.unique(axonal)
        ]

    def _fresh(self, n_samples: int) -> _State:
        net = self._network
        zero = {n: np.zeros((n_samples, p.size), np.int64) for n, p in net.populations.items()}
        depth = net.delay_max + 2
        arriving = {name: [np.zeros_like(z) for _ in range(depth)] for name, z in zero.items()}
        return _State(n_samples, zero, dict(zero), dict(zero), arriving)

    def _advance(self, order: Order, stream: Stream[_State] | None) -> Outcome:
        batch = order.batch
        if stream or self._defects is None or not self._defects.kept:
            state = stream.state if stream else self._fresh(batch.n_samples)
            return self._outcome(self._play(order, state), batch, state)
        state, tapes = self._fresh(1), []
        for sample in range(batch.n_samples):
            state = self._following(state, sample, self._defects.kept) if sample else state
            tapes.append(self._play(order, state))
        joined = {
            quantity: {name: np.concatenate([t[quantity][name] for t in tapes]) for name in names}
            for quantity, names in order.probes.items()
        }
        return self._outcome(joined, batch, state)

    def _following(self, before: _State, sample: int, kept: Iterable[str]) -> _State:
        """The state in which a sample begins that is not wholly reset from the one before."""
        state = self._fresh(1)
        state.first, state.events = sample, before.events
        for name in kept:
            for new, old in (
                (state.u, before.u),
                (state.v, before.v),
                (state.third, before.third),
            ):
                new[name] = old[name]
            state.arriving[name] = before.arriving[name]
        return state

    def _play(self, order: Order, state: _State) -> _Tape:
        """Run the samples of a state; what is probed has the shape (samples, neurons, steps)."""
        batch = order.batch
        mine = slice(state.first, state.first + state.n_samples)
        done = 0 if state.n_samples == batch.n_samples else state.first * batch.n_steps
        total = batch.n_steps * (batch.n_samples // state.n_samples)
        tape: dict[Quantity, dict[str, list[Any]]] = {
            quantity: {name: [] for name in names} for quantity, names in order.probes.items()
        }
        for step in range(batch.n_steps):
            raw = {name: raster[mine, :, step] for name, raster in batch.rasters.items()}
            entering = self._delivered(state, raw, order.run)
            messages = self._delivered(state, self._step(state, entering), order.run)
            state.step += 1
            now: dict[Quantity, Mapping[str, Any]] = {
                "spikes": messages,
                "current": state.u,
                "voltage": state.v,
            }
            for quantity, lists in tape.items():
                for name, columns in lists.items():
                    values = now[quantity][name]
                    columns.append(values if quantity == "spikes" else self._lined(name, values))
            self._send(state, {**messages, **entering})
            if order.progress:
                order.progress(done + step + 1, total)
            if order.deadline is not None and time.monotonic() > order.deadline:
                raise self._too_slow(done + step + 1, total)
        return {
            quantity: {name: np.stack(columns, axis=-1) for name, columns in lists.items()}
            for quantity, lists in tape.items()
        }

    def _delivered(self, state: _State, sent: Mapping[str, Array], run: int) -> dict[str, Array]:
        """What of the messages of nodes arrives, on the lines by which it does."""
        if self._defects is None:
            return dict(sent)
        result = {}
        net, step, first = self._network, state.step, state.first
        for node, name in enumerate((*net.inputs, *net.populations)):
            if name not in sent:
                continue
            messages = sent[name]
            if name in net.populations:
                messages = self._defects.displace(name, messages, step, first, state.held)
            if not net.graded(name):
                number, own = self._defects.numbers.get(name, (node, None))
                place = (run, number, step, first, own)
                messages = self._defects.deliver(messages, *place)
                before = state.late.get(name)
                messages, state.late[name] = self._defects.defer(messages, before, *place)
            result[name] = self._lined(name, messages)
        return result

    def _lined(self, name: str, values: Array) -> Array:
        """Values (samples, neurons) in the order of the neurons' output lines."""
        if self._defects is None or name not in self._defects.lines:
            return values
        lined = np.empty_like(values)
        lined[:, self._defects.lines[name]] = values
        return lined

    def _step(self, state: _State, entering: Mapping[str, Array]) -> dict[str, Array]:
        """One step of every population; returns the spikes or messages that leave them."""
        net = self._network
        sent: dict[str, Array] = {}
        for name, p in net.populations.items():
            arrived = state.arriving[name].pop(0)
            state.arriving[name].append(np.zeros_like(arrived))
            bias = p.bias
            for key, source in net.inputs.items():
                if source.drives == name and source.kind == "graded":
                    arrived = arrived + entering[key]
                elif source.drives == name:
                    bias = bias + shift(entering[key], p.bias_exponent)
            if p.reset and state.step % p.reset.interval == p.reset.offset % p.reset.interval:
                for values in (state.u, state.v, state.third):
                    values[name] = np.zeros_like(values[name])
            if p.graded:
                sent[name] = _sigma_delta(state, name, p, arrived)
            else:
                sent[name] = self._cuba(state, name, p, arrived, bias)
        return sent

    def _cuba(
        self, state: _State, name: str, p: QuantizedPopulation, arrived: IntArray, bias: IntArray
    ) -> BoolArray:
        decay_u, decay_v, threshold = self._registers(name, p)
        total = decay(state.u[name], decay_u + OFFSET) + scaled(arrived)
        u = state.fold("wrapped", wrap, total)
        v = state.fold("saturated", saturate, decay(state.v[name], decay_v) + u + bias)
        paused = state.third[name] > 0
        v = np.where(paused, 0, v)
        fired = fires(v, threshold) & ~paused
        if self._defects:
            fired = self._defects.fire(name, fired)
        state.u[name], state.v[name] = u, np.where(fired, 0, v)
        count = np.maximum(state.third[name] - 1, 0)
        state.third[name] = np.where(fired, p.refractory_delay - 1, count)
        return fired

    def _registers(self, name: str, p: QuantizedPopulation) -> tuple[Register, Register, Register]:
        """Both decays and the threshold, of a population or of every neuron."""
        if self._defects is None:
            return p.decay_u, p.decay_v, p.threshold
        defects = self._defects
        return defects.decay_u[name], defects.decay_v[name], defects.threshold_of(name)

    def _send(self, state: _State, sent: Mapping[str, Array]) -> None:
        """Add the weights of the spikes of this step where their delays put them."""
        shapes = self._network.shapes
        for parts in self._synapses.values():
            for part in parts:
                spikes = sent[part.source]
                if part.axons is not None:
                    spikes = np.where(part.axons, spikes, 0)
                total = apply_chain(part.operations, spikes, shapes[part.source])
                state.arriving[part.target][part.steps - 1] += total.astype(np.int64)

    def _outcome(self, arrays: _Tape, batch: InputBatch, state: _State) -> Outcome:
        spikes = {
            name: SpikeTrain.from_raster(
                unbatch(raster, batch.batched), self.program.network.graded(name)
            )
            for name, raster in arrays.get("spikes", {}).items()
        }
        return Outcome(
            spikes, arrays.get("current", {}), arrays.get("voltage", {}), dict(state.events)
        )


def _sigma_delta(state: _State, name: str, p: QuantizedPopulation, arrived: IntArray) -> IntArray:
    """One step of delta, sigma-delta or sigma neurons; returns their messages."""
    if p.model != "delta":
        state.u[name] = wrap_word(state.u[name] + arrived)
    if p.model == "sigma":
        return state.u[name]
    if p.model == "delta":
        activation = wrap_word(arrived << (p.spike_exponent + p.state_exponent))
    else:
        activation = wrap_word(state.u[name] + p.bias)
        if p.activation == "relu":
            activation = np.maximum(activation, 0)
    message, state.third[name] = delta_step(
        activation, state.v[name], state.third[name], p.effective_threshold
    )
    state.v[name] = activation
    return shift(message, -p.state_exponent)
