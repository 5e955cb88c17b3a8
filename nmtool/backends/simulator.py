"""What the simulators share: runs and streams of a program, weight writes, and invented defects."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from nmtool.backends.base import (
    InputBatch,
    ManagedSession,
    Probe,
    Progress,
    Recording,
    unbatch,
)
from nmtool.backends.faults import Defects
from nmtool.compiler import Program
from nmtool.errors import BoardTimeout, ConfigError
from nmtool.fixedpoint import IntArray
from nmtool.spikes import SpikeTrain

S = TypeVar("S")


@dataclass
class Stream(Generic[S]):
    """The state of the samples of a stream, and how many steps it has run.

    ``run`` counts it among the runs of the session: its pieces are one run. ``held`` are the last
    columns of what was recorded, by quantity and population, where recordings are late.
    """

    n_samples: int
    state: S
    run: int
    step: int = 0
    held: dict[tuple[str, str], npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Order:
    """What a simulator is asked to run.

    ``run`` counts the runs of the session, by which transient faults are drawn; ``deadline`` is a
    time of ``time.monotonic``.
    """

    batch: InputBatch
    probes: Probe
    run: int
    deadline: float | None
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a simulator recorded: states of shape (samples, neurons, steps), and its counters."""

    spikes: dict[str, SpikeTrain]
    current: dict[str, IntArray]
    voltage: dict[str, IntArray]
    counters: dict[str, Any]


class SimulatorSession(ManagedSession, Generic[S]):
    """A program in the memory of this process; a simulator adds how it is stored and advanced."""

    name: ClassVar[str]

    def __init__(self, program: Program, defects: Defects | None, timeout: float | None) -> None:
        self.program = program
        self._defects = defects
        self._timeout = timeout
        self._network = defects.network if defects else program.network
        self._runs = defects.faults.first_run if defects else 0
        self._stream: Stream[S] | None = None

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        """Run samples side by side; one by one if a fault joins them."""
        return self._record(batch, probes, None, progress)

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        """Run the next steps of a stream of samples.

        Raises:
            ConfigError: another number of samples than the stream began with.
        """
        if self._stream is None:
            state = self._fresh(batch.n_samples)
            self._stream = Stream(batch.n_samples, state, self._next_run())
        if batch.n_samples != self._stream.n_samples:
            raise ConfigError(
                f"stream: found {batch.n_samples} samples, allowed {self._stream.n_samples} as at "
                "its start; reset() begins another stream"
            )
        recording = self._record(batch, probes, self._stream, None)
        self._stream.step += batch.n_steps
        return recording

    def reset(self) -> None:
        """Forget the stream."""
        self._stream = None

    def close(self) -> None:
        """Forget the stream."""
        super().close()
        self._stream = None

    @property
    def runs(self) -> int:
        """Runs so far, by which transient faults are drawn."""
        return self._runs

    def _next_run(self) -> int:
        run, self._runs = self._runs, self._runs + 1
        return run

    def _mantissa(self, projection: str) -> IntArray:
        """What the synapse memory gives back for the weights of a projection."""
        written = self.program.network.projections[projection]
        if self._defects is None:
            return written.weight_mantissa
        return self._defects.stored(projection, written.weight_mantissa, written.format)

    def _fresh(self, n_samples: int) -> S:
        """The state of samples after a reset."""
        raise NotImplementedError

    def _advance(self, order: Order, stream: Stream[S] | None) -> Outcome:
        """Run samples, each from reset, or those of a stream from where they are."""
        raise NotImplementedError

    def _record(
        self,
        batch: InputBatch,
        probes: Probe,
        stream: Stream[S] | None,
        progress: Progress | None,
    ) -> Recording:
        started = time.monotonic()
        deadline = started + self._timeout if self._timeout else None
        run = stream.run if stream else self._next_run()
        outcome = self._advance(Order(batch, probes, run, deadline, progress), stream)
        if self._defects and self._defects.late:
            outcome = _late(outcome, self._defects.late, batch, stream)
        recorded = self._recorded(batch.n_steps, stream)
        facts: dict[str, Any] = {"input_sha256": batch.sha256, **outcome.counters}
        if self._defects:
            facts["faults"] = {**self._defects.listing(), "run": run}
        return Recording(
            {name: train.first_steps(recorded) for name, train in outcome.spikes.items()},
            _cut(outcome.current, batch, recorded),
            _cut(outcome.voltage, batch, recorded),
            f"{self.name} with faults" if self._defects else self.name,
            self.program.fingerprint,
            recorded,
            time.monotonic() - started,
            facts,
        )

    def _recorded(self, n_steps: int, stream: Stream[S] | None) -> int:
        """How many of the steps that ran are recorded."""
        if self._defects is None or self._defects.steps is None:
            return n_steps
        before = stream.step if stream else 0
        return min(n_steps, max(self._defects.steps - before, 0))

    def _too_slow(self, done: int, total: int) -> BoardTimeout:
        return BoardTimeout(
            f"{self.name}: not done after {self._timeout:g} s, with {done} of {total} steps; "
            "raise timeouts.run of the target or run fewer samples"
        )


def _late(outcome: Outcome, by: int, batch: InputBatch, stream: Stream[Any] | None) -> Outcome:
    """What is recorded if every column comes ``by`` steps late; a stream holds the last ones."""
    held = stream.held if stream else {}
    begun = bool(stream and stream.step)

    def late(quantity: str, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if begun and (quantity, name) not in held:
            raise ConfigError(
                f"stream: found a probe of the {quantity} of {name} that begins within it, allowed "
                "the probes of its first piece while recordings are late (output_offset)"
            )
        none = np.zeros((*values.shape[:2], by), dtype=values.dtype)
        joined = np.concatenate([held.get((quantity, name), none), values], axis=2)
        held[quantity, name] = joined[..., values.shape[2] :]
        return joined[..., : values.shape[2]]

    spikes = {
        name: SpikeTrain.from_raster(unbatch(late("spikes", name, train.batch()), batch.batched))
        for name, train in outcome.spikes.items()
    }
    current = {name: late("current", name, values) for name, values in outcome.current.items()}
    voltage = {name: late("voltage", name, values) for name, values in outcome.voltage.items()}
    return Outcome(spikes, current, voltage, outcome.counters)


def _cut(states: Mapping[str, IntArray], batch: InputBatch, recorded: int) -> dict[str, IntArray]:
    """The recorded steps of states, in the shape of the input."""
    return {name: unbatch(array[..., :recorded], batch.batched) for name, array in states.items()}
