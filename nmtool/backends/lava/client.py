"""The parent's side of Lava's simulation: start the worker, give it jobs, and get rid of it.

Lava hangs when one of its processes raises, and its processes outlive a killed parent. Therefore
everything of Lava's lives in a process group of its own, and the group is killed as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava import wire
from nmtool.backends.lava.job import LavaJob, LavaResult, check_payloads
from nmtool.backends.lava.link import Link, Patience, Progress
from nmtool.backends.lava.netx import NetxJob


class LavaWorker:
    """A child process that runs Lava; a context manager.

    It is started when first needed and again after a failure. One run or stream at a time. Leaving
    the context, or losing the last reference, kills everything. Errors: DependencyError (Lava is
    missing or unknown), UnsupportedError (a number that the chip cannot hold), BoardTimeout (too
    long, silent or stuck), BoardError (anything else; its text holds Lava's last traceback line).
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._link: Link | None = None
        self._stream: LavaStream | None = None

    def __enter__(self) -> LavaWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker and all that Lava started."""
        link, self._link = self._link, None
        self._stream = None
        if link is not None:
            link.close()

    @property
    def pid(self) -> int | None:
        """The worker's process and group number, while there is one."""
        return None if self._link is None else self._link.group.pid

    def run(
        self,
        job: LavaJob,
        timeout: float | None = None,
        progress: Progress | None = None,
        *,
        check: bool = True,
    ) -> LavaResult:
        """Run all samples of a job in one go; arrays come back as (samples, n, n_steps).

        timeout is in seconds, for everything from the start of the worker. progress(done, total)
        is called about twice a second with Lava steps. check=False skips :meth:`LavaJob.check`.
        """
        samples = job.samples or 0
        if samples < 1 or job.n_steps < 1:
            raise ValueError("nothing to run: the job has no samples or no steps")
        if check:
            job.check()
        body, arrays = wire.job_to_message(job)
        reply, found = self._ask({"op": "run", "job": body}, arrays, timeout, progress)
        return _result(reply, found, (samples, job.n_steps))

    def run_netx(
        self,
        job: NetxJob,
        raster: NDArray[Any],
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> LavaResult:
        """Run a netx file by netx's own loader on an input (samples, lines, steps).

        Errors besides those of a run: UnsupportedError, a layer that netx cannot build;
        ArtifactError, other layers than the job has.
        """
        body = {"op": "netx", "job": asdict(job)}
        arrays = {"input": raster.astype(np.int32)}
        reply, found = self._ask(body, arrays, timeout, progress)
        return _result(reply, found, (job.samples, job.n_steps))

    def open(self, job: LavaJob, timeout: float | None = None, *, check: bool = True) -> LavaStream:
        """Build a network and keep it open for streaming; see :meth:`LavaJob.network`."""
        if check:
            job.check()
        body, arrays = wire.job_to_message(job)
        self._ask({"op": "open", "job": body}, arrays, timeout, None)
        self._stream = LavaStream(self, job)
        return self._stream

    def _ask(
        self,
        body: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        timeout: float | None,
        progress: Progress | None,
        stream: LavaStream | None = None,
    ) -> tuple[dict[str, Any], wire.Arrays]:
        if self._stream is not stream:
            raise RuntimeError("another stream is open" if stream is None else "stream is closed")
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if self._link is None:
                self._link = Link(self._patience)
                self._link.receive("hello", deadline, None)
            self._link.send(body, arrays, deadline)
            return self._link.receive("result done", deadline, progress)
        except BaseException:
            self.close()
            raise


class LavaStream:
    """A network that stays open: its state is kept from one piece of input to the next.

    Any number of pieces gives the same as one piece of their whole length.
    """

    def __init__(self, worker: LavaWorker, job: LavaJob) -> None:
        self._worker = worker
        self._job = job

    def __enter__(self) -> LavaStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.alive:
            self.close()

    def stream(
        self,
        inputs: Mapping[str, NDArray[Any]],
        n_steps: int | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> LavaResult:
        """Send a raster (n, steps) per input; arrays come back as (n, steps).

        It holds 0 and 1, or integers where the input is graded (LavaJob.network).

        n_steps is needed only by a network without inputs.
        """
        steps = self._steps(inputs, n_steps)
        arrays = {
            f"input/{name}": np.asarray(raster, self._job.raster_type(name))
            for name, raster in inputs.items()
        }
        body = {"op": "stream", "n_steps": steps}
        reply, found = self._worker._ask(body, arrays, timeout, progress, self)
        return _result(reply, found, (steps,))

    def _steps(self, inputs: Mapping[str, NDArray[Any]], n_steps: int | None) -> int:
        if set(inputs) != set(self._job.inputs):
            raise ValueError(f"inputs are {sorted(inputs)}, expected {sorted(self._job.inputs)}")
        lengths = set() if n_steps is None else {n_steps}
        for name, raster in inputs.items():
            lines = self._job.inputs[name].shape[1]
            if raster.ndim != 2 or raster.shape[0] != lines:
                raise ValueError(f"input {name!r} is {raster.shape}, expected ({lines}, steps)")
            if raster.dtype.kind not in "bui":
                raise ValueError(f"input {name!r} must be integer or bool, not {raster.dtype}")
            if self._job.is_graded(name):
                check_payloads(f"input {name!r}", raster)
            elif raster.size and (raster.min() < 0 or raster.max() > 1):
                raise ValueError(f"input {name!r} holds values other than 0 and 1")
            lengths.add(raster.shape[1])
        if len(lengths) != 1 or min(lengths) < 1:
            raise ValueError(f"the inputs need one common length above 0, got {sorted(lengths)}")
        return lengths.pop()

    def write_weights(
        self, projection: str | int, mantissa: NDArray[Any], timeout: float | None = None
    ) -> None:
        """Replace a projection's weight mantissas, by its name or its number.

        They are shaped as in the job, and act on spikes sent from the next step on; what is on its
        way arrives with the weights it was sent with. Sign mode, exponent and bits stay, and Lava
        clips and truncates as ever.
        """
        names = self._job.projection_names
        number = names.index(projection) if isinstance(projection, str) else projection
        old = self._job.projections[number]
        if mantissa.shape != old.weight_mantissa.shape or mantissa.dtype.kind not in "iu":
            raise ValueError(f"weights must be integer, of shape {old.weight_mantissa.shape}")
        replace(old, weight_mantissa=mantissa).check_weights(f"projection {names[number]!r}")
        body = {"op": "write", "projection": names[number]}
        arrays = {"mantissa": mantissa.astype(np.int32)}
        self._worker._ask(body, arrays, timeout, None, self)

    @property
    def alive(self) -> bool:
        """Whether the network is still there: not after it was closed, or the worker failed."""
        return self._worker._stream is self

    def close(self) -> None:
        """End this network; the worker stays for the next run."""
        self._worker._ask({"op": "close"}, {}, 60.0, None, self)
        self._worker._stream = None


def _result(reply: Mapping[str, Any], found: wire.Arrays, head: tuple[int, ...]) -> LavaResult:
    """Tapes (rows, n) as they come from the worker, turned to (..., n, n_steps)."""
    parts: dict[str, dict[str, Any]] = {"spikes": {}, "current": {}, "voltage": {}}
    for key, rows in found.items():
        kind, _, name = key.partition("/")
        shaped = rows.reshape(*head, rows.shape[1]).swapaxes(-1, -2)
        spikes = rows.dtype == np.uint8
        parts[kind][name] = np.ascontiguousarray(shaped, bool if spikes else np.int32)
    return LavaResult(
        **parts,
        steps=reply["steps"],
        build_seconds=reply["build_seconds"],
        run_seconds=reply["run_seconds"],
        versions=reply["versions"],
        models=reply["models"],
        resources=reply["resources"],
        measured=reply["measured"],
    )
