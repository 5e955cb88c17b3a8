"""The reference backend: plain numpy, one loop over steps, obviously right. The oracle.

At step t a population adds up the weights of the spikes that its sources sent at t - 1 - delay,
updates u, then v, spikes where v is above its threshold, and sets v to 0 there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmtool.backends.base import (
    InputBatch,
    ManagedSession,
    Probe,
    Progress,
    Recording,
    changed_weights,
    input_batch,
    refuse_unsupported,
    resolve_probe,
    unbatch,
)
from nmtool.backends.faults import Defects, draw
from nmtool.chip import Faults
from nmtool.compiler import Program
from nmtool.errors import BoardTimeout, ConfigError
from nmtool.fixedpoint import CURRENT_DECAY_OFFSET as OFFSET
from nmtool.fixedpoint import (
    STATE_LIMIT,
    BoolArray,
    FloatArray,
    IntArray,
    decay,
    fires,
    saturate,
    scaled,
    wrap,
)
from nmtool.quantization import QuantizedProjection
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class ReferenceBackend:
    """Runs programs in numpy; with ``faults`` it acts out invented defects."""

    faults: Faults | None = None
    timeout: float | None = None
    name: str = "reference"

    def unsupported(self, program: Program) -> list[str]:
        """Everything that a Program can hold is supported."""
        return []

    def open(self, program: Program) -> ReferenceSession:
        """Load a program, with the defects that the seed of the faults gives it."""
        refuse_unsupported(self, program)
        defects = draw(program, self.faults) if self.faults else None
        return ReferenceSession(program, defects, self.timeout)


@dataclass
class _State:
    """u and v by population, shape (samples, neurons), and the synaptic input still to come.

    ``arriving[population][k]`` is the weighted sum that arrives k steps from now: a spike adds its
    weights where its delay puts them when it is sent, as the chip's dendritic accumulators do.
    """

    n_samples: int
    u: dict[str, IntArray]
    v: dict[str, IntArray]
    arriving: dict[str, list[FloatArray]]
    events: dict[str, int] = field(default_factory=lambda: {"wrapped": 0, "saturated": 0})

    def fold(self, event: str, rule: Callable[[IntArray], IntArray], value: IntArray) -> IntArray:
        """A state as its register holds it; values that do not fit are counted as ``event``."""
        if value.size == 0 or max(value.max(), -value.min()) < STATE_LIMIT:
            return value
        folded = rule(value)
        self.events[event] += int(np.count_nonzero(folded != value))
        return folded


@dataclass(frozen=True, eq=False)
class _Synapses:
    """One projection's weights, shape (source, target), by the steps a spike needs."""

    source: str
    target: str
    by_delay: Mapping[int, FloatArray]


class ReferenceSession(ManagedSession):
    """A program in numpy. Sums are float64 products of integers, exact below 2^53."""

    def __init__(self, program: Program, defects: Defects | None, timeout: float | None) -> None:
        self.program = program
        self._defects = defects
        self._timeout = timeout
        self._runs = defects.faults.first_run if defects else 0
        self._weights = {n: self._load(n, p) for n, p in program.network.projections.items()}
        self._bias = {name: p.bias for name, p in program.network.populations.items()}
        self._stream: _State | None = None

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples side by side, each from reset."""
        batch = input_batch(self.program, spikes, n_steps)
        return self._advance(self._fresh(batch.n_samples), batch, probe, progress)

    def stream(
        self, spikes: SpikeTrain | Mapping[str, SpikeTrain], probe: str | Probe | None = None
    ) -> Recording:
        """Run the next steps of one stream of samples; the state is kept between calls.

        Raises:
            ConfigError: another number of samples than the stream began with.
        """
        batch = input_batch(self.program, spikes)
        if self._stream is None:
            self._stream = self._fresh(batch.n_samples)
        if batch.n_samples != self._stream.n_samples:
            raise ConfigError(
                f"stream: found {batch.n_samples} samples, allowed {self._stream.n_samples} as at "
                "its start; reset() begins another stream"
            )
        return self._advance(self._stream, batch, probe, None)

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights within the frozen format; returns how many of them changed."""
        self.program, changed = changed_weights(self.program, projection, mantissa)
        if changed:
            quantized = self.program.network.projections[projection]
            self._weights[projection] = self._load(projection, quantized)
        return changed

    def reset(self) -> None:
        """Forget the stream."""
        self._stream = None

    def close(self) -> None:
        """Nothing is held."""
        self._stream = None

    @property
    def runs(self) -> int:
        """Runs so far, by which transient faults are drawn."""
        return self._runs

    def _load(self, name: str, projection: QuantizedProjection) -> _Synapses:
        mantissa = projection.weight_mantissa
        if self._defects:
            mantissa = self._defects.stored(name, mantissa, projection.format)
        weight = mantissa * 2.0**projection.format.exponent
        delay = np.broadcast_to(projection.delay, weight.shape)
        source = self.program.network.populations.get(projection.source)
        steps = 1 + (source.axonal_delay if source else 0)
        by_delay = {steps + int(d): np.where(delay == d, weight, 0.0).T for d in np.unique(delay)}
        return _Synapses(projection.source, projection.target, by_delay)

    def _fresh(self, n_samples: int) -> _State:
        net = self.program.network
        zero = {n: np.zeros((n_samples, p.size), np.int64) for n, p in net.populations.items()}
        depth = net.delay_max + 2
        arriving = {name: [np.zeros(z.shape) for _ in range(depth)] for name, z in zero.items()}
        return _State(n_samples, zero, dict(zero), arriving)

    def _advance(
        self, state: _State, batch: InputBatch, probe: str | Probe | None, progress: Progress | None
    ) -> Recording:
        started = time.monotonic()
        probes = resolve_probe(self.program, probe)
        rng = np.random.default_rng(
            [self._defects.faults.seed, 2, self._runs] if self._defects else 0
        )
        self._runs += 1
        tape: dict[str, dict[str, list[Any]]] = {
            quantity: {name: [] for name in names} for quantity, names in probes.items()
        }
        for step in range(batch.n_steps):
            spikes = self._step(state, rng)
            now: dict[str, Mapping[str, Any]] = {
                "spikes": spikes,
                "current": state.u,
                "voltage": state.v,
            }
            for quantity, lists in tape.items():
                for name, columns in lists.items():
                    columns.append(now[quantity][name])
            entering = {name: raster[:, :, step] for name, raster in batch.rasters.items()}
            if self._defects:
                entering = {n: self._defects.deliver(s, rng) for n, s in entering.items()}
            self._send(state, {**spikes, **entering})
            if progress:
                progress(step + 1, batch.n_steps)
            if self._timeout and time.monotonic() - started > self._timeout:
                raise BoardTimeout(
                    f"reference: not done after {self._timeout:g} s at step {step + 1} of "
                    f"{batch.n_steps}; raise timeouts.run of the target or run fewer samples"
                )
        return self._recording(tape, batch, state, time.monotonic() - started)

    def _step(self, state: _State, rng: np.random.Generator) -> dict[str, BoolArray]:
        """One step of every population; returns the spikes that leave them."""
        spikes: dict[str, BoolArray] = {}
        for name, p in self.program.network.populations.items():
            arrived = state.arriving[name].pop(0)
            state.arriving[name].append(np.zeros(arrived.shape))
            total = decay(state.u[name], p.decay_u + OFFSET) + scaled(arrived.astype(np.int64))
            u = state.fold("wrapped", wrap, total)
            v = state.fold(
                "saturated", saturate, decay(state.v[name], p.decay_v) + u + self._bias[name]
            )
            fired = fires(v, p.threshold)
            if self._defects:
                fired = self._defects.fire(name, fired)
            state.u[name], state.v[name] = u, np.where(fired, 0, v)
            spikes[name] = self._defects.deliver(fired, rng) if self._defects else fired
        return spikes

    def _send(self, state: _State, spikes: Mapping[str, BoolArray]) -> None:
        """Add the weights of the spikes of this step where their delays put them."""
        for synapses in self._weights.values():
            sent = spikes[synapses.source]
            for delay, weight in synapses.by_delay.items():
                state.arriving[synapses.target][delay - 1] += sent @ weight

    def _recording(
        self, tape: dict[str, dict[str, list[Any]]], batch: InputBatch, state: _State, wall: float
    ) -> Recording:
        stacked = {
            quantity: {
                name: unbatch(np.stack(columns, axis=-1), batch.batched)
                for name, columns in lists.items()
            }
            for quantity, lists in tape.items()
        }
        provenance: dict[str, Any] = dict(state.events)
        if self._defects:
            provenance["faults"] = {**self._defects.listing(), "run": self._runs - 1}
        return Recording(
            {n: SpikeTrain.from_raster(r) for n, r in stacked.get("spikes", {}).items()},
            stacked.get("current", {}),
            stacked.get("voltage", {}),
            "reference with faults" if self._defects else "reference",
            self.program.fingerprint,
            batch.n_steps,
            wall,
            provenance,
        )
