"""A job as a Lava graph: built, run and read inside of the worker.

Import only after ``prepare_lava()``: this module imports Lava.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

import lava.magma.runtime.message_infrastructure.multiprocessing as lava_multiprocessing
import numpy as np
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal
from lava.proc.dense.process import DelayDense, Dense
from lava.utils.weightutils import SignMode
from numpy.typing import NDArray

from nmtool.backends.lava.job import LavaJob, LavaProjection
from nmtool.backends.lava.processes.neuron import HeldLIF
from nmtool.backends.lava.processes.source import SharedSource
from nmtool.backends.lava.processes.synapse import LiveDelayDense, LiveDense
from nmtool.backends.lava.shared import (
    FOREVER,
    AnonymousMemory,
    LiveWeights,
    Tape,
    Timeline,
    shared_array,
)

PROBES = ("spikes", "current", "voltage")
_SIGN_MODES = {
    "mixed": SignMode.MIXED,
    "excitatory": SignMode.EXCITATORY,
    "inhibitory": SignMode.INHIBITORY,
}


def use_anonymous_memory() -> None:
    """Give Lava's channels memory without names. For this process and what it forks."""
    lava_multiprocessing.SharedMemoryManager = AnonymousMemory


def versions() -> dict[str, str]:
    """Name the versions that the results depend on."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    return {**found, "lava-nc": importlib.metadata.version("lava-nc")}


class LavaError(RuntimeError):
    """Lava reported an error; the reason is on standard error."""


class Graph:
    """A job's Lava processes, compiled, with their runtime started.

    rows is the length of the tapes: all steps of all samples, or for a stream (live=True) the
    longest piece that can run at once.
    """

    def __init__(self, job: LavaJob, *, rows: int, live: bool) -> None:
        self.job = job
        self.rows = rows
        self.steps_done = 0
        period, n_steps = (FOREVER, FOREVER) if live else (job.period, job.n_steps)
        self._timeline = Timeline(n_steps, period, shared_array((1,), np.int64))
        self._reached = shared_array((len(job.populations),), np.int64)
        self.rasters: dict[str, NDArray[np.uint8]] = {}
        self.tapes: dict[str, Tape] = {}
        self.live: dict[str, LiveWeights] = {}
        self._nodes: dict[str, Any] = {}
        started = time.perf_counter()
        self._build(live)
        self._anchor = next(self._nodes[name] for name in job.populations)
        self._anchor.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        self.build_seconds = time.perf_counter() - started

    def _build(self, live: bool) -> None:
        for name, raster in self.job.inputs.items():
            self._add_source(name, raster.shape[1])
        for number, name in enumerate(self.job.populations):
            self._add_population(number, name)
        for name, projection in zip(self.job.projection_names, self.job.projections, strict=True):
            synapses = self._synapses(name, projection, live)
            self._nodes[f"projection {name}"] = synapses
            self._connect(self._nodes[projection.source], synapses, self._nodes[projection.target])
        self._bridge_islands()

    def _add_source(self, name: str, n: int) -> None:
        if all(projection.source != name for projection in self.job.projections):
            return
        raster = shared_array((self.rows, n), np.uint8)
        self.rasters[name] = raster
        self._nodes[name] = SharedSource(n=n, raster=raster, timeline=self._timeline, name=name)

    def _add_population(self, number: int, name: str) -> None:
        population = self.job.populations[name]
        asked = {kind: name in getattr(self.job.probes, kind) for kind in PROBES}
        kinds = {"spikes": np.uint8, "current": np.int32, "voltage": np.int32}
        shape = (self.rows, population.n)
        arrays = {
            kind: shared_array(shape, kinds[kind]) if asked[kind] else None for kind in PROBES
        }
        tape = Tape(self._timeline, self._reached[number : number + 1], **arrays)
        self.tapes[name] = tape
        bias = population.bias_mantissa
        self._nodes[name] = HeldLIF(
            shape=(population.n,),
            du=population.decay_u,
            dv=population.decay_v,
            vth=population.threshold,
            bias_mant=0 if bias is None else np.asarray(bias, np.int16),
            bias_exp=population.bias_exponent,
            name=name,
            tape=tape,
        )

    def _synapses(self, name: str, projection: LavaProjection, live: bool) -> Any:
        weights = np.array(projection.weight_mantissa, np.int32)
        settings: dict[str, Any] = {
            "weights": weights,
            "weight_exp": projection.weight_exponent,
            "num_weight_bits": projection.weight_bits,
            "sign_mode": _SIGN_MODES[projection.sign_mode],
            "name": name,
        }
        delayed = projection.longest_delay > 0
        if delayed:
            # Lava takes one number or a matrix of int64, and the number not from numpy.
            settings["delays"] = np.broadcast_to(projection.delay, weights.shape).astype(np.int64)
        if not live:
            return DelayDense(**settings) if delayed else Dense(**settings)
        shared = LiveWeights(shared_array(weights.shape, np.int32), shared_array((1,), np.int64))
        self.live[name] = shared
        kind = LiveDelayDense if delayed else LiveDense
        return kind(live=shared, **settings)

    def _connect(self, source: Any, synapses: Any, target: Any) -> None:
        source.s_out.connect(synapses.s_in)
        synapses.a_out.connect(target.a_in)

    def _bridge_islands(self) -> None:
        """Join the unconnected parts of a network by synapses of weight 0.

        Lava runs what is connected to the process it is asked to run, and nothing else.
        """
        island = {name: name for name in self._nodes if not name.startswith("projection ")}

        def root(name: str) -> str:
            while island[name] != name:
                name = island[name]
            return name

        for projection in self.job.projections:
            island[root(projection.source)] = root(projection.target)
        first, *others = self.job.populations
        for name in others:
            if root(name) == root(first):
                continue
            island[root(name)] = root(first)
            shape = (self.job.populations[name].n, self.job.populations[first].n)
            zeros = np.zeros(shape, np.int32)
            bridge = Dense(weights=zeros, sign_mode=SignMode.MIXED, name=f"bridge {name}")
            self._nodes[f"projection bridge {name}"] = bridge
            self._connect(self._nodes[first], bridge, self._nodes[name])

    @property
    def models(self) -> dict[str, str]:
        """The class name of the ProcessModel that Lava chose, for each process."""
        return {
            name.removeprefix("projection "): node.model_class.__name__
            for name, node in self._nodes.items()
        }

    @property
    def reached(self) -> int:
        """Lava steps that every population has finished."""
        return int(self._reached.min())

    def run(self, steps: int) -> float:
        """Run this many Lava steps; the seconds taken. Raises LavaError.

        Lava's own wait never ends when a process dies, so this one only looks, and lets Lava read
        the answer once there is one.
        """
        self._timeline.base[0] = self.steps_done
        started = time.perf_counter()
        self._anchor.run(RunSteps(num_steps=steps, blocking=False))
        runtime = self._anchor.runtime
        pause = 1e-4
        while not all(port.probe() for port in runtime.service_to_runtime):
            time.sleep(pause)
            pause = min(pause * 1.5, 5e-3)
        if not all(enum_equal(p.peek(), MGMT_RESPONSE.DONE) for p in runtime.service_to_runtime):
            raise LavaError("a process of Lava's simulation raised an exception")
        runtime.wait()
        self.steps_done += steps
        return time.perf_counter() - started

    def records(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return the first rows of every tape: {"spikes/name": (rows, n)} and so on."""
        found = {}
        for name, tape in self.tapes.items():
            for kind in PROBES:
                array = getattr(tape, kind)
                if array is not None:
                    found[f"{kind}/{name}"] = array[:rows]
        return found

    def stop(self) -> None:
        """End Lava's processes."""
        # A runtime that never ran a step would not tell its processes, and wait for them forever.
        self._anchor.runtime._is_started = True
        self._anchor.stop()
