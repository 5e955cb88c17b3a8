"""A job as a Lava graph on a Loihi 2 board: Lava's own processes on the chip, nmtool's on the host.

Needs Intel's lava-loihi, whose parts are used as public code uses them: ``embedded_io.spike`` has
the adapters between host and chip, ``loihi2_state_probes`` reads u and v, ``profiler`` measures.
Import only after ``prepare_lava()``, in the worker: this module imports Lava.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from lava.magma.core.model.py.model import AbstractPyProcessModel
from lava.magma.core.resources import ECPU, NeuroCore
from lava.magma.core.run_configs import Loihi2HwCfg
from numpy.typing import NDArray

from nmtool.backends.lava.compat import INTEL
from nmtool.backends.lava.graph import Graph
from nmtool.backends.lava.job import LavaBoard, LavaJob, LavaPopulation, Projection
from nmtool.backends.lava.nodes import make_projection, make_stock_lif
from nmtool.backends.lava.processes.sink import SharedSink
from nmtool.backends.lava.shared import Tape, shared_array
from nmtool.errors import BoardError, BoardUnavailable, DependencyError
from nmtool.fixedpoint import STATE_LIMIT

_VARIABLES = {"current": "u", "voltage": "v"}
_TIME = ("execution_time",)
_POWER = ("power", "static_power", "dynamic_power", "energy", "static_energy", "dynamic_energy")


@functools.lru_cache(maxsize=1)
def use_board(board: LavaBoard) -> None:
    """Choose a board for this process and what it forks, as Lava does: by environment variables.

    Raises:
        DependencyError: Intel's package is missing.
        BoardUnavailable: Lava finds no such board.
    """
    from lava.utils import loihi

    if not loihi.is_installed():
        raise DependencyError(f"lava-loihi is not installed; {INTEL}")
    if board.host is None:
        _use_slurm(board)
        loihi.host = "SLURM"
        return
    try:
        generation = loihi.ChipGeneration[board.loihi_gen]
        loihi.use_ethernet_host(board.host, board.host_binary, generation)
    # Lava lets the error of a missing ping through.
    except (ValueError, OSError) as error:
        raise BoardUnavailable(f"Lava finds no board: {error}") from None


def _use_slurm(board: LavaBoard) -> None:
    """What lava.utils.loihi.use_slurm_host sets, without its look at SLURM.

    That one cannot read the output of sinfo: it stumbles over the empty line after the last
    (lava-nc 0.10.0, IndexError), does not know a default partition, which has a star, and gives up
    when the first of several lines of a partition is about nodes that are down. The parent has
    looked.
    """
    os.environ.pop("NOSLURM", None)
    os.environ.update(SLURM="1", LOIHI_GEN=board.loihi_gen)
    for variable, value in (("BOARD", board.node), ("PARTITION", board.partition)):
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


class BoardGraph(Graph):
    """A job's Lava processes, those of the network on the chip, with their runtime started."""

    job: LavaJob

    def __init__(self, job: LavaJob, *, rows: int, live: bool) -> None:
        self._senders: dict[str, Any] = {}
        self._hosts: dict[str, Any] = {}
        self._sinks: list[NDArray[np.int64]] = []
        self._states: dict[str, Any] = {}
        self._profiler: Any = None
        self._unmeasured: dict[str, str] = {}
        self._live = live
        self._last = 0
        try:
            from lava.magma.core.model.c.model import CLoihiProcessModel  # noqa: F401
            from lava.magma.core.model.nc.model import AbstractNcProcessModel  # noqa: F401
            from lava.proc.embedded_io.spike import NxToPyAdapter, PyToNxAdapter
            from lava.utils.loihi2_state_probes import StateProbe
        except ImportError as error:
            raise DependencyError(f"lava-loihi is incomplete ({error}); {INTEL}") from None
        self._to_chip, self._from_chip, self._probe = PyToNxAdapter, NxToPyAdapter, StateProbe
        super().__init__(job, rows=rows, live=live)

    @property
    def board(self) -> LavaBoard:
        """The board of the job."""
        if self.job.board is None:
            raise ValueError("the job has no board")
        return self.job.board

    def _add_source(self, name: str) -> None:
        super()._add_source(name)
        source = self._nodes.get(name)
        if source is not None:
            self._hosts[f"input adapter {name}"] = adapter = self._to_chip(shape=source.s_out.shape)
            source.s_out.connect(adapter.inp)
            self._senders[name] = adapter.out

    def _add_population(self, number: int, name: str) -> None:
        population = self.job.populations[name]
        if not isinstance(population, LavaPopulation):
            raise BoardError(f"population {name!r}: only LIF neurons run on a board")
        self._nodes[name] = node = make_stock_lif(name, population)
        for kind, variable in _VARIABLES.items():
            if name in getattr(self.job.probes, kind):
                self._states[f"{kind}/{name}"] = self._probe(getattr(node, variable))
        if name in self.job.probes.spikes:
            self._add_sink(name, population.n, self._reached[number : number + 1])

    def _add_sink(self, name: str, n: int, reached: NDArray[np.int64]) -> None:
        spikes = shared_array((self.rows, n), np.int32)
        tape = self.tapes[name] = Tape(self._timeline, reached, spikes, None, None)
        self._sinks.append(reached)
        self._hosts[f"output adapter {name}"] = adapter = self._from_chip(shape=(n,))
        self._hosts[f"sink {name}"] = sink = SharedSink(n=n, tape=tape, name=f"sink {name}")
        self._nodes[name].s_out.connect(adapter.inp)
        adapter.out.connect(sink.a_in)

    def _add_projection(self, name: str, projection: Projection, live: bool) -> None:
        synapses = make_projection(name, projection, stock=True)
        self._nodes[f"projection {name}"] = synapses
        self._out(projection.source).connect(synapses.s_in)
        synapses.a_out.connect(self._nodes[projection.target].a_in)

    def _out(self, name: str) -> Any:
        return self._senders.get(name) or super()._out(name)

    def _start(self) -> None:
        settings = Loihi2HwCfg(callback_fxs=[*self._states.values()])
        settings.select = functools.partial(_select, settings)
        self._attach_profiler(settings)
        executable = self._anchor.compile(settings)
        self._refuse_python()
        self._anchor.create_runtime(executable=executable)

    def _refuse_python(self) -> None:
        """Raise where Lava has quietly taken a Python model for what belongs on the chip."""
        wrong = [
            f"{name} ({type(node).__name__}): found the model {node.model_class.__name__} on "
            f"{_resources(node)}"
            for name, node in self._nodes.items()
            if name not in self.job.inputs
            and not _on_chip(node)
            and not self.board.permits(name.removeprefix("projection "))
        ]
        if wrong:
            raise DependencyError(
                f"lava-loihi has no model for the chip of these, and Lava would run them in Python "
                f"without a word: {'; '.join(wrong)}; use a version that has them, or name them in "
                "allow_python_models of the target"
            )

    @property
    def models(self) -> dict[str, str]:
        """The class name of the ProcessModel that Lava chose, for each process."""
        adapters = {name: node.model_class.__name__ for name, node in self._hosts.items()}
        return {**super().models, **adapters}

    @property
    def resources(self) -> dict[str, str]:
        """What each process runs on."""
        nodes = {**self._nodes, **self._hosts}
        return {name.removeprefix("projection "): _resources(node) for name, node in nodes.items()}

    @property
    def reached(self) -> int:
        """Lava steps whose spikes have arrived; without a probe those of finished runs."""
        return min((int(reached[0]) for reached in self._sinks), default=self.steps_done)

    def run(self, steps: int) -> float:
        """Run this many Lava steps; the seconds taken. Raises LavaError."""
        self._last = steps
        return super().run(steps)

    def records(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return the first rows of what was probed.

        Raises:
            BoardError: what came back cannot be.
        """
        found: dict[str, NDArray[Any]] = {}
        for key, received in super().records(rows).items():
            if received.size and not (0 <= received.min() <= received.max() <= 1):
                wrong = [int(received.min()), int(received.max())]
                raise BoardError(f"the board sent garbage: {key}: spikes of {wrong}, allowed 0, 1")
            found[key] = received.astype(np.uint8)
        steps = np.array([t for t in range(self._last) if self._row(t) >= 0], np.int64)
        for key, probe in self._states.items():
            n = self.job.populations[key.partition("/")[2]].n
            found[key] = self._series(key, probe.time_series, n)[steps]
        return found

    def _row(self, step: int) -> int:
        """The row of a step of the last run."""
        return self._timeline.row(int(self._timeline.base[0]) + step + 1)

    def _series(self, key: str, given: Any, n: int) -> NDArray[np.int32]:
        """States of the last run, (steps, n), from a probe's: flat, one neuron after the other."""
        flat = np.asarray(given).reshape(-1)
        # After several runs a probe may hold the last one or all of them.
        counts = {n * self._last, n * self.steps_done}
        if flat.size not in counts or flat.dtype.kind not in "iuf":
            raise BoardError(
                f"the board sent garbage: {key}: {flat.size} values of {flat.dtype}, allowed "
                f"{' or '.join(map(str, sorted(counts)))} numbers ({n} neurons)"
            )
        whole = flat.astype(np.int64)
        if np.any(whole != flat) or np.any(np.abs(whole) > STATE_LIMIT):
            raise BoardError(f"the board sent garbage: {key}: values that no 24-bit state can have")
        return whole.reshape(n, -1).T[-self._last :].astype(np.int32)

    def _attach_profiler(self, settings: Any) -> None:
        """Have Intel's profiler measure what is asked; it takes one run, so no stream."""
        wanted = self.board.measure
        if not wanted:
            return
        steps = (self.job.samples or 0) * self.job.period
        if self._live:
            self._unmeasured = dict.fromkeys(wanted, "not in a stream: the profiler takes one run")
            return
        try:
            from lava.utils.profiler import Profiler

            self._profiler = Profiler.init(settings)
        except (ImportError, NotImplementedError) as error:
            self._unmeasured = dict.fromkeys(wanted, f"no profiler: {error}")
            return
        probes = {"time": "execution_time_probe", "power": "energy_probe"}
        for what in wanted:
            try:
                getattr(self._profiler, probes[what])(num_steps=steps)
            except Exception as error:  # whatever Intel's package raises: it is reported
                self._unmeasured[what] = f"the profiler refused: {type(error).__name__}: {error}"

    def measured(self) -> dict[str, Any]:
        """What the profiler gave for the last run (s, W, J), or why there is nothing."""
        found: dict[str, Any] = {what: {"missing": why} for what, why in self._unmeasured.items()}
        for what in self.board.measure:
            if what not in found:
                values = _figures(self._profiler, _TIME if what == "time" else _POWER)
                found[what] = values or {"missing": "the profiler has no figures"}
        return found


def _select(settings: Any, process: Any, models: list[Any]) -> Any:
    """Lava's choice; among Python models the fixed-point one, where Lava takes the first."""
    chosen = Loihi2HwCfg.select(settings, process, models)
    if issubclass(chosen, AbstractPyProcessModel) and not _any_chip(chosen.required_resources):
        fixed = [m for m in models if "fixed_pt" in m.tags and not _any_chip(m.required_resources)]
        return fixed[0] if fixed else chosen
    return chosen


def _flat(resources: Iterable[Any]) -> list[Any]:
    return [r for item in resources for r in (item if isinstance(item, list) else [item])]


def _any_chip(resources: Iterable[Any]) -> bool:
    return any(issubclass(resource, NeuroCore | ECPU) for resource in _flat(resources))


def _on_chip(node: Any) -> bool:
    return _any_chip(node.model_class.required_resources)


def _resources(node: Any) -> str:
    named = _flat(node.model_class.required_resources)
    return ", ".join(resource.__name__ for resource in named) or "nothing in particular"


def _figures(profiler: Any, names: Iterable[str]) -> dict[str, Any]:
    """Attributes of a profiler as numbers: those that are there.

    Of one value a step times and energies are summed, powers averaged.
    """
    found: dict[str, Any] = {}
    for name in names:
        try:
            value = np.asarray(getattr(profiler, name), np.float64)
        except Exception:  # absent, or not measured: then it is not in the answer
            continue
        if value.size and np.all(np.isfinite(value)):
            found[name] = float(value.mean() if name.endswith("power") else value.sum())
    return found
