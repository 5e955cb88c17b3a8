"""lava-sim: a Program on Lava's own fixed-point processes, in a child process.

All samples go through one long run; between them the reset is held, as the program's reset
schedule says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from nmtool.backends.lava.client import LavaStream, LavaWorker
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.lava.job import LavaJob, LavaResult, Overflow
from nmtool.backends.lava.link import Patience
from nmtool.backends.lava.lower import job, lower
from nmtool.backends.limits import LIMITS
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import BoardTimeout, DependencyError, UnsupportedError
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

    def __init__(self, program: Program, backend: LavaSimBackend) -> None:
        self.program = program
        self._lowered = lower(program)
        self._overflow = backend.current_overflow
        self._timeout = backend.run_timeout
        self._worker = LavaWorker(Patience(backend.load_timeout, backend.run_timeout))
        self._stream: LavaStream | None = None
        self._stream_batched = True

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples one after another in one long run, each from reset."""
        self._check_open()
        self.reset()
        batch = input_batch(self.program, spikes, n_steps)
        started = time.monotonic()
        if batch.n_samples == 0:
            raise UnsupportedError("lava-sim: found 0 samples, allowed 1 or more")
        whole = replace(
            self._job(probe),
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
        return self._recording(result, batch, time.monotonic() - started)

    def stream(
        self, spikes: SpikeTrain | Mapping[str, SpikeTrain], probe: str | Probe | None = None
    ) -> Recording:
        """Run the next steps of the one stream; the probe is that of its first call.

        Raises:
            UnsupportedError: more than one sample, for Lava holds one network.
        """
        self._check_open()
        batch = input_batch(self.program, spikes)
        if batch.n_samples != 1:
            raise UnsupportedError(
                f"lava-sim: found a stream of {batch.n_samples} samples, allowed 1"
            )
        started = time.monotonic()
        if self._stream is None:
            self._stream = self._worker.open(self._job(probe), self._timeout, check=self._checked)
        rasters = {name: raster[0] for name, raster in _rasters(batch).items()}
        result = self._stream.stream(rasters, batch.n_steps, self._timeout)
        with_axis = replace(
            result,
            spikes={n: a[None] for n, a in result.spikes.items()},
            current={n: a[None] for n, a in result.current.items()},
            voltage={n: a[None] for n, a in result.voltage.items()},
        )
        return self._recording(with_axis, batch, time.monotonic() - started)

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights within the frozen format; returns how many of them changed."""
        self._check_open()
        self.program, changed = changed_weights(self.program, projection, mantissa)
        if changed and self._stream is not None:
            written = self.program.network.projections[projection].weight_mantissa
            for part in self._lowered[projection]:
                name = part.projection.name
                self._stream.write_weights(name, part.mantissa(written), self._timeout)
        return changed

    def reset(self) -> None:
        """End the stream: the next one starts from reset."""
        if self._stream is not None:
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

    def _job(self, probe: str | Probe | None) -> LavaJob:
        probes = resolve_probe(self.program, probe)
        return job(self.program, self._lowered, probes, self._overflow)

    def _recording(self, result: LavaResult, batch: InputBatch, wall: float) -> Recording:
        def states(arrays: Mapping[str, Any]) -> dict[str, IntArray]:
            return {n: unbatch(a.astype(np.int64), batch.batched) for n, a in arrays.items()}

        return Recording(
            {
                name: SpikeTrain.from_raster(
                    unbatch(raster, batch.batched), self.program.network.graded(name)
                )
                for name, raster in result.spikes.items()
            },
            states(result.current),
            states(result.voltage),
            "lava-sim",
            self.program.fingerprint,
            batch.n_steps,
            wall,
            {
                "lava": result.versions,
                "current_overflow": self._overflow,
                "models": result.models,
                "lava_steps": result.steps,
                "build_seconds": result.build_seconds,
                "run_seconds": result.run_seconds,
            },
        )


def _rasters(batch: InputBatch) -> dict[str, Any]:
    """Spikes as bytes, graded values as signed words."""
    return {
        name: raster.astype(np.uint8 if raster.dtype == np.bool_ else np.int32)
        for name, raster in batch.rasters.items()
    }
