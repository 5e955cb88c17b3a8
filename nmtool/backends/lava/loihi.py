"""lava-loihi: a Program on a Loihi 2 board, through Lava and Intel's package, in a child process.

A chip clears neurons every 2^k steps and nothing else, so samples share a run only where that keeps
them apart exactly (:func:`reset_plan`); any other program is loaded anew for each sample.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nmtool.backends.base import (
    InputBatch,
    Probe,
    Progress,
    Recording,
    refuse_unsupported,
)
from nmtool.backends.boards import require_board
from nmtool.backends.lava.compat import loihi_missing
from nmtool.backends.lava.job import LavaBoard, LavaJob, LavaPopulation, LavaResult
from nmtool.backends.lava.link import Patience
from nmtool.backends.lava.lower import lower
from nmtool.backends.lava.sim import LavaSimBackend, LavaSimSession
from nmtool.backends.limits import LIMITS
from nmtool.backends.locks import BoardLock
from nmtool.chip import Board, HardwareConfig
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import BoardTimeout, DependencyError, UnsupportedError
from nmtool.fixedpoint import IntArray
from nmtool.quantization import QuantizedNetwork


@dataclass(frozen=True)
class LavaLoihiBackend:
    """A Loihi 2 board, as a target describes it."""

    hardware: HardwareConfig
    name: str = "lava-loihi"

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What Lava's own processes on a chip cannot do."""
        return LIMITS["lava-loihi"]

    @property
    def board(self) -> Board:
        """The board of the target."""
        if self.hardware.board is None:
            raise UnsupportedError(
                f"target {self.hardware.name}: found no board, allowed one of slurm or host"
            )
        return self.hardware.board

    def open(self, program: Program) -> LavaLoihiSession:
        """Take a board for a program.

        Raises:
            DependencyError: Lava or lava-loihi is missing.
            BoardUnavailable: no board can be had, or somebody else holds it.
            WriteError: the lock of the board cannot be written.
        """
        refuse_unsupported(self.name, self.limits, program)
        if reason := loihi_missing():
            raise DependencyError(reason)
        timeouts = self.hardware.timeouts
        # SLURM gives a node to one job at a time: there the job is the lock.
        host = self.board.host
        lock = None if host is None else BoardLock(host, timeouts.lock, timeouts.run)
        try:
            require_board(self.hardware.name, self.board, timeouts.board)
            return LavaLoihiSession(program, self, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise


_NEVER = 1 << 30


@dataclass(frozen=True)
class ResetPlan:
    """How resets every ``period`` steps keep samples apart: the step of each population's reset.

    Population p belongs to a sample from step ``start[p]`` on; before, it still runs the last one.
    """

    period: int
    start: Mapping[str, int]


def reset_plan(program: Program, n_steps: int) -> ResetPlan | None:
    """The resets that keep samples apart in one run as if each had been alone; None if none do.

    Every population is cleared once in each period, after the last spike of the old sample has
    arrived and before the first one of the new can. Where loops, several ways of different length
    or a bias leave no such step, there is no plan.
    """
    net = program.network
    start: dict[str, int] = {}
    earliest: dict[str, int] = {}  # the step of a sample at which a population may spike at first
    while len(start) < len(net.populations):
        name = next((n for n in net.populations if n not in start and _fed(net, n, start)), None)
        if name is None:
            return None  # a loop
        begin, first = 0, _NEVER
        for p in (p for p in net.projections.values() if p.target == name):
            axonal = np.asarray(net.axonal_delay(p.source))
            low = 1 + int(np.min(p.delay, initial=_NEVER)) + int(axonal.min())
            high = 1 + int(np.max(p.delay, initial=0)) + int(axonal.max())
            if p.source in net.inputs:
                first = min(first, low)  # inputs are silent from a sample's end to the next one
            else:
                begin = max(begin, start[p.source] + high)
                first = min(first, earliest[p.source] + low)
        population = net.populations[name]
        if np.any(population.bias_mantissa):
            first = 0
        if begin > first or population.reset is not None:
            return None
        start[name], earliest[name] = begin, first
    period = 1
    while period < n_steps + program.reset.hold:
        period *= 2
    return ResetPlan(period, start)


def _fed(net: QuantizedNetwork, name: str, done: Mapping[str, int]) -> bool:
    """Whether all populations that a population hears from are done."""
    sources = [p.source for p in net.projections.values() if p.target == name]
    return all(source in net.inputs or source in done for source in sources)


class LavaLoihiSession(LavaSimSession):
    """A program on a board; the worker process starts with the first run."""

    name = "lava-loihi"

    def __init__(self, program: Program, backend: LavaLoihiBackend, lock: BoardLock | None) -> None:
        timeouts, hardware = backend.hardware.timeouts, backend.hardware
        patience = Patience(timeouts.load, timeouts.run, f"the board ({backend.board})")
        super().__init__(program, LavaSimBackend(timeouts.load, timeouts.run), patience)
        self._lowered = lower(program, convolutions=False)
        self._where = backend.board
        self._board = _job_board(backend.board, hardware)
        self._lock = lock

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        """Run samples: all in one run, or each on a program loaded anew."""
        self._check_no_stream()
        started = time.monotonic()
        if batch.n_samples == 0:
            raise UnsupportedError("lava-loihi: found 0 samples, allowed 1 or more")
        plan = reset_plan(self.program, batch.n_steps) if batch.n_samples > 1 else None
        jobs = self._jobs(batch, probes, plan)
        try:
            results = self._run_all(jobs, progress)
        except BoardTimeout as error:
            each = f"; it is loaded anew for each of {len(jobs)} samples" if len(jobs) > 1 else ""
            raise BoardTimeout(
                f"{error}; timeouts.run of the target is {self._timeout:g} s{each}"
            ) from None
        result = _joined(results)
        facts: dict[str, Any] = {"samples": "loaded anew for each sample"}
        if batch.n_samples == 1:
            facts["samples"] = "one sample"
        elif plan is not None:
            result = _cut(result, plan.start)
            facts["samples"] = f"one run, neurons cleared every {plan.period} steps"
        return self._noted(result, probes, batch, time.monotonic() - started, facts)

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        """Run the next steps of the one stream; what it records is set up by its first call."""
        started = time.monotonic()
        result = self._streamed(batch, probes)
        facts = {"samples": "a stream"}
        return self._noted(result, probes, batch, time.monotonic() - started, facts)

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights within the frozen format; they are loaded with the next run.

        Raises:
            UnsupportedError: in an open stream, whose weights are on the chip.
        """
        self._check_open()
        if self._stream is not None:
            raise UnsupportedError(
                "lava-loihi: found weights for an open stream, allowed before it begins or after "
                "reset(): a chip gets its weights when a program is loaded"
            )
        return super().write_weights(projection, mantissa)

    def close(self) -> None:
        """End the worker and give the board back."""
        super().close()
        if self._lock is not None:
            self._lock.release()

    def _job(self, probes: Probe) -> LavaJob:
        """A job whose spikes include those of every population with a voltage probe."""
        made = super()._job(probes)
        spikes = tuple(dict.fromkeys((*made.probes.spikes, *made.probes.voltage)))
        return replace(made, board=self._board, probes=replace(made.probes, spikes=spikes))

    def _jobs(self, batch: InputBatch, probes: Probe, plan: ResetPlan | None) -> list[LavaJob]:
        made = replace(self._job(probes), hold=None)
        rasters = {name: raster.astype(np.uint8) for name, raster in batch.rasters.items()}
        if plan is not None:
            populations = {
                name: _reset(population, plan.period, plan.start[name])
                for name, population in made.populations.items()
            }
            hold = plan.period - batch.n_steps
            made = replace(made, populations=populations, hold=hold)
            return [replace(made, inputs=rasters, n_steps=batch.n_steps, samples=batch.n_samples)]
        return [
            replace(
                made,
                inputs={name: raster[[k]] for name, raster in rasters.items()},
                n_steps=batch.n_steps,
                samples=1,
            )
            for k in range(batch.n_samples)
        ]

    def _run_all(self, jobs: Sequence[LavaJob], progress: Progress | None) -> list[LavaResult]:
        deadline = time.monotonic() + self._timeout
        total = sum((job.samples or 0) * job.period for job in jobs)
        results: list[LavaResult] = []
        for job in jobs:
            done = sum(result.steps for result in results)

            def tell(step: int, _steps: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + step, total)

            left = max(0.0, deadline - time.monotonic())
            results.append(self._worker.run(job, left, tell, check=self._checked))
        return results

    def _noted(
        self,
        result: LavaResult,
        probes: Probe,
        batch: InputBatch,
        wall: float,
        facts: Mapping[str, Any],
    ) -> Recording:
        """The recording, with the voltage at spikes as nmtool has it, and what really ran where."""
        voltage: dict[str, Any] = {}
        read: set[int] = set()
        for name, values in result.voltage.items():
            spiked = result.spikes[name]
            read.update(np.unique(values[spiked]).tolist()[:8])
            voltage[name] = np.where(spiked, 0, values).astype(np.int32)
        recording = self._recording(replace(result, voltage=voltage), probes, batch, wall)
        provenance = {k: v for k, v in recording.provenance.items() if k != "current_overflow"}
        provenance["models"] = {
            name: {"model": model, "resource": result.resources.get(name, "unknown")}
            for name, model in result.models.items()
        }
        if result.voltage:
            # A chip keeps 128 times the refractory delay where a neuron has just spiked.
            provenance["voltage_masked_at_spikes"] = True
            provenance["voltage_read_at_spikes"] = sorted(read)
        if self._board.measure:
            provenance["measured"] = result.measured
        provenance |= {"board": str(self._where), **facts}
        return replace(recording, backend="lava-loihi", provenance=provenance)


def _job_board(board: Board, hardware: HardwareConfig) -> LavaBoard:
    slurm, python = board.slurm, hardware.allow_python_models
    return LavaBoard(
        None if slurm is None else slurm.partition,
        None if slurm is None else slurm.node,
        board.host,
        board.host_binary,
        board.loihi_gen,
        tuple(hardware.measure),
        (("*",) if python else ()) if isinstance(python, bool) else tuple(python),
    )


def _reset(population: Any, period: int, start: int) -> LavaPopulation:
    made: LavaPopulation = replace(population, reset_interval=period, reset_offset=start % period)
    return made


def _joined(results: Sequence[LavaResult]) -> LavaResult:
    """The results of runs of one sample each, as one."""
    first = results[0]
    if len(results) == 1:
        return first

    def joined(kind: str) -> dict[str, Any]:
        parts = [getattr(result, kind) for result in results]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return replace(
        first,
        spikes=joined("spikes"),
        current=joined("current"),
        voltage=joined("voltage"),
        steps=sum(result.steps for result in results),
        build_seconds=sum(result.build_seconds for result in results),
        run_seconds=sum(result.run_seconds for result in results),
        measured={"samples": [result.measured for result in results]},
    )


def _cut(result: LavaResult, start: Mapping[str, int]) -> LavaResult:
    """Without the steps in which a population still ran the sample before: it is silent in them."""

    def cut(arrays: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, array in arrays.items():
            found[name] = array.copy()
            found[name][..., : start[name]] = 0
        return found

    return replace(
        result,
        spikes=cut(result.spikes),
        current=cut(result.current),
        voltage=cut(result.voltage),
    )
