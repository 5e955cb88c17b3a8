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
from numpy.typing import NDArray

from nmtool.backends.lava.job import LavaJob, Projection
from nmtool.backends.lava.nodes import (
    live_weights,
    make_bridge,
    make_population,
    make_projection,
)
from nmtool.backends.lava.processes.source import SharedSource
from nmtool.backends.lava.shared import (
    FOREVER,
    AnonymousMemory,
    LiveWeights,
    Tape,
    Timeline,
    shared_array,
)

PROBES = ("spikes", "current", "voltage")


def use_anonymous_memory() -> None:
    """Give Lava's channels memory without names. For this process and what it forks."""
    lava_multiprocessing.SharedMemoryManager = AnonymousMemory


def versions() -> dict[str, str]:
    """Name the versions that the results depend on."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    return {**found, "lava-nc": importlib.metadata.version("lava-nc")}


class LavaError(RuntimeError):
    """Lava reported an error; the reason is on standard error."""


def run_steps(anchor: Any, steps: int) -> float:
    """Run the network of a Lava process this many steps; the seconds taken. Raises LavaError.

    Lava's own wait never ends when a process dies, so this one only looks, and lets Lava read the
    answer once there is one.
    """
    started = time.perf_counter()
    anchor.run(RunSteps(num_steps=steps, blocking=False))
    runtime = anchor.runtime
    pause = 1e-4
    while not all(port.probe() for port in runtime.service_to_runtime):
        time.sleep(pause)
        pause = min(pause * 1.5, 5e-3)
    if not all(enum_equal(p.peek(), MGMT_RESPONSE.DONE) for p in runtime.service_to_runtime):
        raise LavaError("a process of Lava's simulation raised an exception")
    runtime.wait()
    return time.perf_counter() - started


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
        self.rasters: dict[str, NDArray[Any]] = {}
        self.tapes: dict[str, Tape] = {}
        self.live: dict[str, LiveWeights] = {}
        self._nodes: dict[str, Any] = {}
        started = time.perf_counter()
        self._build(live)
        self._anchor = next(self._nodes[name] for name in job.populations)
        self._start()
        self.build_seconds = time.perf_counter() - started

    def _start(self) -> None:
        """Compile the processes and start their runtime."""
        self._anchor.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))

    def _build(self, live: bool) -> None:
        for name in self.job.inputs:
            self._add_source(name)
        for number, name in enumerate(self.job.populations):
            self._add_population(number, name)
        for name, projection in zip(self.job.projection_names, self.job.projections, strict=True):
            self._add_projection(name, projection, live)
        for drive in self.job.drives:
            if drive.kind == "graded":
                target = self._nodes[drive.population]
                self._nodes[drive.input].s_out.connect(target.a_in)
        self._bridge_islands()

    def _add_source(self, name: str) -> None:
        drives = [drive.kind for drive in self.job.drives if drive.input == name]
        sends = "graded" in drives or any(p.source == name for p in self.job.projections)
        if not sends and not drives:
            return
        n = self.job.inputs[name].shape[1]
        raster = shared_array((self.rows, n), self.job.raster_type(name))
        self.rasters[name] = raster
        # A population reads its bias straight from the raster.
        if sends:
            self._nodes[name] = SharedSource(n=n, raster=raster, timeline=self._timeline, name=name)

    def _add_population(self, number: int, name: str) -> None:
        population = self.job.populations[name]
        asked = {kind: name in getattr(self.job.probes, kind) for kind in PROBES}
        spikes = np.int32 if population.graded else np.uint8
        kinds = {"spikes": spikes, "current": np.int32, "voltage": np.int32}
        shape = (self.rows, population.n)
        arrays = {
            kind: shared_array(shape, kinds[kind]) if asked[kind] else None for kind in PROBES
        }
        tape = Tape(self._timeline, self._reached[number : number + 1], **arrays)
        self.tapes[name] = tape
        biases = [
            self.rasters[drive.input]
            for drive in self.job.drives
            if drive.population == name and drive.kind == "bias"
        ]
        fold = self.job.current_overflow == "chip"
        self._nodes[name] = make_population(name, population, tape, biases, fold=fold)

    def _add_projection(self, name: str, projection: Projection, live: bool) -> None:
        weights = live_weights(projection) if live else None
        if weights is not None:
            self.live[name] = weights
        graded = self.job.is_graded(projection.source)
        words = self.job.populations[projection.target].graded
        synapses = make_projection(name, projection, graded=graded, words=words, live=weights)
        self._nodes[f"projection {name}"] = synapses
        self._out(projection.source).connect(synapses.s_in)
        synapses.a_out.connect(self._nodes[projection.target].a_in)

    def _out(self, name: str) -> Any:
        """The port from which an input or a population sends."""
        return self._nodes[name].s_out

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
        for drive in self.job.drives:
            if drive.kind == "graded":
                island[root(drive.input)] = root(drive.population)
        first, *others = self.job.populations
        for name in others:
            if root(name) == root(first):
                continue
            island[root(name)] = root(first)
            sizes = self.job.populations[name].n, self.job.populations[first].n
            bridge = make_bridge(f"bridge {name}", *sizes)
            self._nodes[f"projection bridge {name}"] = bridge
            self._nodes[first].s_out.connect(bridge.s_in)
            bridge.a_out.connect(self._nodes[name].a_in)

    @property
    def models(self) -> dict[str, str]:
        """The class name of the ProcessModel that Lava chose, for each process."""
        return {
            name.removeprefix("projection "): node.model_class.__name__
            for name, node in self._nodes.items()
        }

    @property
    def resources(self) -> dict[str, str]:
        """What each process runs on, where that is not the CPU for all of them."""
        return {}

    def measured(self) -> dict[str, Any]:
        """What a profiler measured of the last run; the simulation has none."""
        return {}

    @property
    def reached(self) -> int:
        """Lava steps that every population has finished."""
        return int(self._reached.min())

    def run(self, steps: int) -> float:
        """Run this many Lava steps; the seconds taken. Raises LavaError."""
        self._timeline.base[0] = self.steps_done
        seconds = run_steps(self._anchor, steps)
        self.steps_done += steps
        return seconds

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
