"""A fine-tuning study: the loop on a target and the controls that give its gain a meaning.

The columns, each over the same fault seeds and with the same rule and rounds:

- fault_free: the program on the healthy simulator, no training;
- transfer: the program on the target, no training;
- simulation: trained on the healthy simulator, then put on the target;
- readout: only the last layer trained, on the target;
- loop: every layer trained, on the target.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nmtool import formats
from nmtool.backends import open_session
from nmtool.chip import HardwareConfig, load_chip
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.fixedpoint import FloatArray
from nmtool.learning.checkpoint import check_state, load_state, save_state
from nmtool.learning.loop import Layers, Loop, LoopState

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Column:
    """Test accuracy (a fraction) of one column: mean, standard deviation, one value per seed."""

    mean: float
    std: float
    seeds: list[float]

    @classmethod
    def of(cls, values: list[float]) -> Column:
        """The column of the values of all seeds; the deviation is that of the sample, n - 1."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), std, values)


@dataclass(frozen=True)
class StudyResult:
    """Columns by name, and the rounds of every loop that ran, by column and seed."""

    columns: Mapping[str, Column]
    rounds: Mapping[str, list[dict[str, Any]]]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "rounds": dict(self.rounds),
        }


@dataclass
class Study:
    """Runs the columns one after another; every loop is checkpointed after every round.

    Args:
        experiment: its ``finetune`` section says rounds, rates, controls and seeds.
        program: compiled for the target; its synapse formats stay.
        shadow: real weights that the host starts from, by projection.
        hardware: the target.
        healthy: the same chip without faults, a simulator.
        folder: where checkpoints and the learned programs go.
        progress: called with (batches done, batches in all, what runs).
    """

    experiment: Experiment
    program: Program
    shadow: Mapping[str, FloatArray]
    hardware: HardwareConfig
    healthy: HardwareConfig
    folder: Path
    progress: Progress = lambda done, total, what: None
    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.experiment.finetune
        first = self.hardware.faults.seed if self.hardware.faults else 0
        self.seeds = [*range(first, first + (config.seeds if self.hardware.faults else 1))]
        train = self.experiment.data
        self._done = 0
        self._batches = config.rounds * _batches(train, config.batch)
        loops = len(self.seeds) * (1 + ("readout" in config.controls))
        self._total = self._batches * (loops + ("simulation" in config.controls))

    def run(self) -> StudyResult:
        """All columns, on one thread: arrays this small lose by being shared out."""
        with threadpool_limits(limits=1):
            return self._columns()

    def _columns(self) -> StudyResult:
        controls = self.experiment.finetune.controls
        plain = self._accuracy(self.program, self.healthy)
        columns = {"fault_free": [plain for _ in self.seeds]}
        if "transfer" in controls:
            columns["transfer"] = [self._accuracy(self.program, t) for t in self._targets()]
        if "simulation" in controls:
            learned, _ = self._learn("simulation", self.healthy, "all")
            columns["simulation"] = [self._accuracy(learned, t) for t in self._targets()]
        layers: dict[str, Layers] = {"readout": "readout", "loop": "all"}
        for name, which in layers.items():
            if name in (*controls, "loop"):
                columns[name] = [
                    self._learn(f"{name}-seed{seed}", target, which)[1]
                    for seed, target in zip(self.seeds, self._targets(), strict=True)
                ]
        return StudyResult({n: Column.of(values) for n, values in columns.items()}, self.rounds)

    def _targets(self) -> list[HardwareConfig]:
        if self.hardware.faults is None:
            return [self.hardware]
        return [self.hardware.with_faults(seed=seed) for seed in self.seeds]

    def _accuracy(self, program: Program, target: HardwareConfig) -> float:
        """Test accuracy of a program on a target."""
        with open_session(program, target) as session:
            state = LoopState.start(program, self.shadow)
            chip = load_chip(self.hardware.chip)
            loop = Loop(self.experiment, program, session, "all", state, chip=chip)
            return loop.accuracy("test")

    def _learn(self, name: str, target: HardwareConfig, layers: Layers) -> tuple[Program, float]:
        """One loop, from its checkpoint if there is one; the learned program, its accuracy."""
        folder = self.folder / name
        checkpoint = folder / "state.h5"
        key = self._key(name, target, layers)
        state = fresh = LoopState.start(self.program, self.shadow)
        if checkpoint.is_file():
            state = load_state(checkpoint, key)
            check_state(checkpoint, state, self.program, fresh)
        resumed = max(len(state.history) - 1, 0) * self._batches // self.experiment.finetune.rounds
        end = self._done + self._batches
        self._done += resumed

        def on_batch() -> None:
            self._done += 1
            self.progress(self._done, self._total, name)

        if target.faults:
            target = target.with_faults(first_run=state.spent.runs)
        with open_session(self.program, target) as session:
            loop = Loop(
                self.experiment,
                self.program,
                session,
                layers,
                state,
                on_batch,
                lambda current: save_state(checkpoint, current, key),
                load_chip(self.hardware.chip),
            )
            learned = loop.run()
            accuracy = loop.accuracy("test")
        self._done = end
        formats.save(folder / "program.h5", learned)
        self.rounds[name] = [asdict(entry) for entry in state.history]
        return learned, accuracy

    def _key(self, name: str, target: HardwareConfig, layers: Layers) -> str:
        return json.dumps(
            {
                "name": name,
                "layers": layers,
                "program": self.program.fingerprint,
                "finetune": self.experiment.finetune.model_dump(exclude={"controls", "seeds"}),
                "surrogate": self.experiment.surrogate.model_dump(),
                "noise": noise.model_dump() if (noise := self.experiment.train.noise) else None,
                "seed": self.experiment.seed,
                "target": target.model_dump(exclude={"timeouts", "probes"}),
            },
            sort_keys=True,
        )


def _batches(data: Any, batch: int) -> int:
    from nmtool.data import load_split

    return -(-len(load_split(data, "train")) // batch)
