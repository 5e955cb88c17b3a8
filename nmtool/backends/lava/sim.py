"""lava-sim: a Program on Lava's own fixed-point processes, in a child process.

All samples go through one long run; between them the reset is held, as the program's reset
schedule says. Axonal delays are folded into the synapses that follow, as Lava knows only those.
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
from nmtool.backends.lava.job import (
    LavaJob,
    LavaPopulation,
    LavaProbes,
    LavaProjection,
    LavaResult,
)
from nmtool.backends.lava.link import Patience
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import BoardTimeout, DependencyError, UnsupportedError
from nmtool.fixedpoint import IntArray
from nmtool.quantization import QuantizedProjection
from nmtool.spikes import SpikeTrain

LIMITS: Mapping[Feature, str] = {
    "refractory delay": (
        "Lava has a refractory neuron in floating point only (lava.proc.lif.models); the emulator "
        "and the reference run it"
    ),
}
"""What Lava's fixed-point models cannot do."""


@dataclass(frozen=True)
class LavaSimBackend:
    """Lava's CPU simulation. Timeouts in seconds: silence while loading, and one whole run."""

    load_timeout: float = 120.0
    run_timeout: float = 600.0
    name: str = "lava-sim"

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What Lava's fixed-point models cannot do."""
        return LIMITS

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
        self.reset()
        batch = input_batch(self.program, spikes, n_steps)
        started = time.monotonic()
        if batch.n_samples == 0:
            raise UnsupportedError("lava-sim: found 0 samples, allowed 1 or more")
        job = replace(
            _network(self.program, resolve_probe(self.program, probe)),
            inputs={n: r.astype(np.uint8) for n, r in batch.rasters.items()},
            n_steps=batch.n_steps,
            samples=batch.n_samples,
        )
        try:
            result = self._worker.run(job, self._timeout, progress)
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
        batch = input_batch(self.program, spikes)
        if batch.n_samples != 1:
            raise UnsupportedError(
                f"lava-sim: found a stream of {batch.n_samples} samples, allowed 1"
            )
        started = time.monotonic()
        if self._stream is None:
            job = _network(self.program, resolve_probe(self.program, probe))
            self._stream = self._worker.open(job, self._timeout)
        rasters = {name: raster[0] for name, raster in batch.rasters.items()}
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
        self.program, changed = changed_weights(self.program, projection, mantissa)
        if changed and self._stream is not None:
            written = self.program.network.projections[projection].weight_mantissa
            self._stream.write_weights(projection, written, self._timeout)
        return changed

    def reset(self) -> None:
        """End the stream: the next one starts from reset."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """End the worker and all that Lava started."""
        self._stream = None
        self._worker.close()

    def _recording(self, result: LavaResult, batch: InputBatch, wall: float) -> Recording:
        def states(arrays: Mapping[str, Any]) -> dict[str, IntArray]:
            return {n: unbatch(a.astype(np.int64), batch.batched) for n, a in arrays.items()}

        return Recording(
            {
                name: SpikeTrain.from_raster(unbatch(raster, batch.batched))
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
                "models": result.models,
                "lava_steps": result.steps,
                "build_seconds": result.build_seconds,
                "run_seconds": result.run_seconds,
            },
        )


def _network(program: Program, probe: Probe) -> LavaJob:
    net = program.network
    populations = {
        name: LavaPopulation(
            p.size, p.decay_u, p.decay_v, p.threshold, p.bias_mantissa, p.bias_exponent
        )
        for name, p in net.populations.items()
    }
    projections = [_projection(program, name, p) for name, p in net.projections.items()]
    sizes = {name: source.size for name, source in net.inputs.items()}
    probes = LavaProbes(*(tuple(probe.get(q, ())) for q in ("spikes", "current", "voltage")))
    job = LavaJob.network(sizes, populations, projections, probes)
    return replace(job, hold=program.reset.hold)


def _projection(program: Program, name: str, projection: QuantizedProjection) -> LavaProjection:
    source = program.network.populations.get(projection.source)
    axonal = source.axonal_delay if source else 0
    delay = projection.delay + axonal if np.ndim(projection.delay) else None
    return LavaProjection(
        projection.source,
        projection.target,
        projection.weight_mantissa,
        projection.weight_exponent,
        projection.weight_bits,
        projection.sign_mode,
        int(np.max(projection.delay)) + axonal if delay is None else np.asarray(delay),
        name,
    )
