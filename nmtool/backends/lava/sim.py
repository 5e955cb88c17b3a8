"""lava-sim: a Program on Lava's own fixed-point processes, in a child process.

All samples go through one long run; between them the reset is held, as the program's reset
schedule says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nmtool.backends.base import (
    InputBatch,
    ManagedSession,
    Probe,
    Progress,
    Quantity,
    Recording,
    refuse_unsupported,
    unbatch,
)
from nmtool.backends.lava.client import LavaStream, LavaWorker
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.lava.job import LavaJob, LavaResult, Overflow
from nmtool.backends.lava.link import Patience
from nmtool.backends.lava.lower import job, lower
from nmtool.backends.lava.sums import check_sums, watched
from nmtool.backends.limits import LIMITS
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import BoardTimeout, DependencyError, UnsupportedError, UsageError
from nmtool.fixedpoint import IntArray
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class LavaSimBackend:
    """Lava's CPU simulation. Timeouts in seconds: silence while loading, and one whole run.

    ``current_overflow``: the chip's rule for u (modulo 2^24), or Lava's own, which folds once.
    """

    load_timeout: float = 120.0
    run_timeout: float = 600.0
    current_overflow: Overflow = "chip"
    name: str = "lava-sim"

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What Lava's fixed-point models cannot do."""
        return LIMITS["lava-sim"]

    def open(self, program: Program) -> LavaSimSession:
        """Load a program.

        Raises:
            DependencyError: Lava is missing, or of a version that nmtool does not know.
        """
        refuse_unsupported(self.name, self.limits, program)
        if reason := lava_missing():
            raise DependencyError(reason)
        return LavaSimSession(program, self)


class LavaSimSession(ManagedSession):
    """A program in Lava; the worker process starts with the first run."""

    name: ClassVar[str] = "lava-sim"

    def __init__(
        self, program: Program, backend: LavaSimBackend, patience: Patience | None = None
    ) -> None:
        self.program = program
        self._lowered = lower(program)
        self._overflow = backend.current_overflow
        self._timeout = backend.run_timeout
        self._worker = LavaWorker(patience or Patience(backend.load_timeout, backend.run_timeout))
        self._stream: LavaStream | None = None
        self._probes: Probe = {}

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        """Run samples one after another in one long run."""
        self._check_no_stream()
        started = time.monotonic()
        if batch.n_samples == 0:
            raise UnsupportedError(f"{self.name}: found 0 samples, allowed 1 or more")
        whole = replace(
            self._job(probes),
            inputs=_rasters(batch),
            n_steps=batch.n_steps,
            samples=batch.n_samples,
        )
        try:
            result = self._worker.run(whole, self._timeout, progress, check=self._checked)
        except BoardTimeout as error:
            raise BoardTimeout(
                f"{error}; timeouts.run of the target is {self._timeout:g} s"
            ) from None
        check_sums(whole, {**whole.inputs, **result.spikes})
        return self._recording(result, probes, batch, time.monotonic() - started)

    def _check_no_stream(self) -> None:
        if self._stream is not None:
            raise UnsupportedError(
                f"{self.name}: found a run in the middle of a stream, allowed one or the other: "
                "Lava holds one network at a time; end the stream with reset(), or open a second "
                "session"
            )

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        """Run the next steps of the one stream.

        Raises:
            UnsupportedError: more than one sample, for Lava holds one network; a probe of what its
                first call did not ask for.
            UsageError: the stream ended with an error.
        """
        started = time.monotonic()
        result = self._streamed(batch, probes)
        return self._recording(result, probes, batch, time.monotonic() - started)

    def _streamed(self, batch: InputBatch, probes: Probe) -> LavaResult:
        """The next steps of the stream, with an axis for its one sample."""
        if batch.n_samples != 1:
            raise UnsupportedError(
                f"{self.name}: found a stream of {batch.n_samples} samples, allowed 1: Lava holds "
                "one network, with the state of one sample; open a session for each, use run(), or "
                "stream on the emulator"
            )
        stream = self._opened(probes)
        rasters = {name: raster[0] for name, raster in _rasters(batch).items()}
        result = stream.stream(rasters, batch.n_steps, self._timeout)
        with_axis = replace(
            result,
            spikes={n: a[None] for n, a in result.spikes.items()},
            current={n: a[None] for n, a in result.current.items()},
            voltage={n: a[None] for n, a in result.voltage.items()},
        )
        try:
            check_sums(self._job(probes), {**_rasters(batch), **with_axis.spikes})
        except UnsupportedError:
            stream.close()
            raise
        return with_axis

    def _opened(self, probes: Probe) -> LavaStream:
        """The stream, begun if there is none, if it records what is probed."""
        if self._stream is None:
            self._stream = self._worker.open(self._job(probes), self._timeout, check=self._checked)
            self._probes = probes
        if not self._stream.alive:
            raise UsageError("stream: found one that ended with an error; reset() begins another")
        for quantity, names in probes.items():
            known = self._probes.get(quantity, ())
            if missing := [name for name in names if name not in known]:
                raise UnsupportedError(
                    f"{self.name}: stream: found the probe {quantity}:{', '.join(missing)}, "
                    f"allowed what the first call of the stream probed ({_listed(self._probes)}): "
                    "Lava sets up what it records when it starts; ask for all of it there, or "
                    "reset()"
                )
        return self._stream

    def _store(self, projection: str) -> None:
        """Write weights into the open stream; a run has those of the program."""
        if self._stream is None:
            return
        written = self.program.network.projections[projection].weight_mantissa
        for part in self._lowered[projection]:
            self._stream.write_weights(part.projection.name, part.mantissa(written), self._timeout)

    def reset(self) -> None:
        """End the stream: the next one starts from reset."""
        if self._stream is not None and self._stream.alive:
            self._stream.close()
        self._stream = None

    def close(self) -> None:
        """End the worker and all that Lava started."""
        super().close()
        self._stream = None
        self._worker.close()

    @property
    def _checked(self) -> bool:
        """Whether Lava's job may be held to the chip's ranges: not with values beyond them."""
        return not self.program.simulators_only

    def _job(self, probes: Probe) -> LavaJob:
        """The program with these probes, and those by which its sums are checked."""
        return watched(job(self.program, self._lowered, probes, self._overflow))

    def _recording(
        self, result: LavaResult, probes: Probe, batch: InputBatch, wall: float
    ) -> Recording:
        def probed(quantity: Quantity, arrays: Mapping[str, Any]) -> dict[str, Any]:
            asked = probes.get(quantity, ())
            return {n: unbatch(a, batch.batched) for n, a in arrays.items() if n in asked}

        def states(quantity: Quantity, arrays: Mapping[str, Any]) -> dict[str, IntArray]:
            return {n: a.astype(np.int64) for n, a in probed(quantity, arrays).items()}

        return Recording(
            {
                name: SpikeTrain.from_raster(raster, self.program.network.graded(name))
                for name, raster in probed("spikes", result.spikes).items()
            },
            states("current", result.current),
            states("voltage", result.voltage),
            self.name,
            self.program.fingerprint,
            batch.n_steps,
            wall,
            {
                "input_sha256": batch.sha256,
                "lava": result.versions,
                "current_overflow": self._overflow,
                "models": result.models,
                "lava_steps": result.steps,
                "build_seconds": result.build_seconds,
                "run_seconds": result.run_seconds,
            },
        )


def _listed(probes: Probe) -> str:
    return ", ".join(f"{quantity}:{name}" for quantity, names in probes.items() for name in names)


def _rasters(batch: InputBatch) -> dict[str, Any]:
    """Spikes as bytes, graded values as signed words."""
    return {
        name: raster.astype(np.uint8 if raster.dtype == np.bool_ else np.int32)
        for name, raster in batch.rasters.items()
    }
