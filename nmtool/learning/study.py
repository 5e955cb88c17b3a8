"""A fine-tuning study: the loop on a target and the controls that give its gain a meaning.

The columns, each over the same seeds and with the same rule and rounds:

- fault_free: the program on the healthy simulator, no training;
- transfer: the program on the target, no training;
- simulation: trained on the healthy simulator, then put on the target;
- readout: only the last layer trained, on the target;
- loop: every layer trained, on the target.

Seeds are those of the invented faults. A target without any has the seeds of the loop itself: the
order of the samples and the local readouts.

A column is made of legs, such as ``loop-seed7``, one after another. A leg that is finished has a
file of its own and is not run again; one that learns is checkpointed after every round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nmtool import formats
from nmtool.backends import open_session
from nmtool.backends.replay import Log, NoLog
from nmtool.chip import HardwareConfig, load_chip
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray
from nmtool.formats.artifacts import DAMAGE, removable
from nmtool.learning.board import Board, Probes, Spent
from nmtool.learning.budget import UNLIMITED, Budget, total
from nmtool.learning.checkpoint import (
    Leg,
    check_state,
    load_leg,
    load_state,
    save_leg,
    save_state,
)
from nmtool.learning.examination import (
    Examination,
    examine,
    load_examination,
    planned_writes,
    save_examination,
)
from nmtool.learning.loop import Layers, Loop, LoopState, Round, last_layer_alone
from nmtool.learning.verdict import Verdict, judge
from nmtool.network import counted

Progress = Callable[[int, int, str], None]
LEARNING: Mapping[str, Layers] = {"readout": "readout", "loop": "all"}
"""The columns that learn on the target, and which layers of them do."""

SCHEMA = "nmtool.finetune/v1"
"""Of the report."""

_LEG = re.compile(
    r"fault_free|simulation"
    r"|(transfer|simulation|simulation-on|examination|readout|loop)-seed\d+"
)


def forget(folder: Path) -> None:
    """Remove the legs of an earlier study and its report, and no file of anything else."""
    for place in folder.glob("*"):
        kept = (place / "state.h5", place / "leg.json")
        if _LEG.fullmatch(place.name) and any(path.is_file() for path in kept):
            for path in (place / "program.h5", *kept):
                path.unlink(missing_ok=True)
    report = folder / "result.json"
    if report.is_file() and _is_report(report):
        report.unlink()


def _is_report(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["schema"] == SCHEMA)
    except DAMAGE:
        return False


@dataclass(frozen=True)
class Column:
    """Test accuracy (a fraction) of one column: mean, standard deviation, one value per seed.

    One seed has no deviation. ``spent`` is what all seeds took of the target, ``rounds`` what each
    did, of which ``probed`` is the mean fraction of neurons and steps that was measured, ``kept``
    the best round of each, whose weights were tested, and ``ended`` the limits of the budget that
    ended any.
    """

    mean: float
    std: float | None
    seeds: list[float]
    spent: Spent = field(default_factory=Spent, compare=False)
    rounds: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    probed: float | None = None
    ended: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: list[float]) -> Column:
        """The column of the values of all seeds; the deviation is that of the sample, n - 1."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, values)

    @classmethod
    def of_legs(cls, legs: list[Leg], histories: list[list[Round]]) -> Column:
        """The column of what its legs on the target came to, and of its rounds wherever done."""
        probed = [entry.probed for history in histories for entry in history]
        return replace(
            cls.of([leg.accuracy for leg in legs]),
            spent=total(leg.spent for leg in legs),
            rounds=tuple(len(history) - 1 for history in histories),
            kept=tuple(map(_best, histories)),
            probed=float(np.mean(probed)) if probed else None,
            ended=tuple(sorted({leg.ended for leg in legs if leg.ended})),
        )


@dataclass(frozen=True)
class StudyResult:
    """Columns by name, the rounds of every leg that learned, and what is wrong with each target.

    ``alike`` is why loop and readout did the same, if they did: hidden layers learn after
    ``readout_rounds``.
    """

    columns: Mapping[str, Column]
    rounds: Mapping[str, list[Round]]
    targets: Mapping[int, Examination] = field(default_factory=dict)
    alike: str | None = None
    readout_rounds: int = 0

    @property
    def verdict(self) -> Verdict:
        """Whether the loop was worth it."""
        seeds = {name: column.seeds for name, column in self.columns.items()}
        return judge(seeds, self.alike)

    @property
    def examined(self) -> Spent:
        """What the examinations of all targets took."""
        return total(found.spent for found in self.targets.values())

    @property
    def before_learning(self) -> int:
        """How many columns come before those that learn on the target, as the examination does."""
        return sum(name not in LEARNING for name in self.columns)

    @property
    def hidden_dropped(self) -> bool:
        """Whether hidden layers learned in the loop, and no round of that was kept."""
        kept = self.columns["loop"].kept
        return not self.alike and max(kept, default=0) <= self.readout_rounds

    @property
    def equal_rounds(self) -> bool:
        """Whether every leg did the same number of rounds."""
        return len({len(history) for history in self.rounds.values()}) <= 1

    def at_equal_rounds(self) -> dict[str, float]:
        """Mean over seeds of the best validation accuracy up to the last round that all did."""
        last = min((len(history) for history in self.rounds.values()), default=0)
        best: dict[str, list[float]] = {}
        for leg, history in self.rounds.items():
            reached = max(entry.validation_accuracy for entry in history[:last])
            best.setdefault(leg.partition("-seed")[0], []).append(reached)
        return {name: float(np.mean(values)) for name, values in best.items()}

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file.

        All but the seconds can be had again; from a log those that the target was busy as well.
        """
        return {
            "columns": {name: _without(column, "spent") for name, column in self.columns.items()},
            "spent": {
                **{name: asdict(column.spent) for name, column in self.columns.items()},
                "examination": asdict(self.examined),
            },
            "verdict": asdict(self.verdict),
            "diagnosis": {str(seed): found.diagnosis for seed, found in self.targets.items()},
            "equal_rounds": self.equal_rounds,
            "validation_at_equal_rounds": self.at_equal_rounds(),
            "rounds": {
                name: [_without(entry, "timing") for entry in row]
                for name, row in self.rounds.items()
            },
            "timing": {
                name: [asdict(entry.timing) for entry in row] for name, row in self.rounds.items()
            },
        }


@dataclass(frozen=True)
class Trial:
    """One seed of a study: its experiment and its target."""

    seed: int
    experiment: Experiment
    target: HardwareConfig


@dataclass
class Study:
    """Runs the columns one after another.

    Args:
        experiment: its ``finetune`` section says rounds, rates, controls, seeds and the budget.
        program: compiled for the target; its synapse formats stay.
        shadow: real weights that the host starts from, by projection.
        hardware: the target.
        healthy: the same chip without faults, a simulator.
        folder: where checkpoints and the learned programs go.
        progress: called with (batches done, batches in all, what runs).
        log: keeps what the target answers, or follows what it answered.
    """

    experiment: Experiment
    program: Program
    shadow: Mapping[str, FloatArray]
    hardware: HardwareConfig
    healthy: HardwareConfig
    folder: Path
    progress: Progress = lambda done, total, what: None
    log: Log = field(default_factory=NoLog)
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.experiment.finetune
        self._trials = [*self._seeded(config.seeds)]
        self._done = 0
        self._batches = config.rounds * _batches(self.experiment, config.batch)
        on_target = [name for name in LEARNING if name in (*config.controls, "loop")]
        self._learners = len(self._trials) * len(on_target)
        simulated = len(self._simulated()) if "simulation" in config.controls else 0
        self._total = self._batches * (self._learners + simulated)

    @property
    def seeds(self) -> list[int]:
        """One for each value of a column."""
        return [trial.seed for trial in self._trials]

    @property
    def alike(self) -> str | None:
        """Why loop and readout will be the same, if they will."""
        config = self.experiment.finetune
        return last_layer_alone(self.experiment, self.program, config.rounds)

    def check_budget(self) -> None:
        """Refuse a budget of writes that the examinations alone would pass.

        Raises:
            ConfigError: it is smaller.
            UnsupportedError: a program that cannot be examined.
        """
        config = self.experiment.finetune
        if config.writes is None:
            return
        seeds = [trial.experiment.seed for trial in self._trials]
        planned = {s: planned_writes(self.program, s, config.diagnosis) for s in {*seeds}}
        needed = sum(planned[seed] for seed in seeds)
        if config.writes < needed:
            raise ConfigError(
                f"finetune.writes: found {config.writes}, allowed {needed} or more, as the "
                f"examination of {counted(seeds, 'target')} writes so many weights before "
                "anything is learned; or finetune.diagnosis=false, which writes none"
            )

    def rehearse(self) -> None:
        """Learn from one batch of the healthy simulator; nothing of it is kept.

        Raises:
            ConfigError: a setting or a rule of learning that does not go with the program.
            UnsupportedError: a network that cannot learn.
        """
        state, chip = LoopState.start(self.program, self.shadow), load_chip(self.hardware.chip)
        with open_session(self.program, self.healthy) as session:
            Loop(self.experiment, self.program, session, "all", state, chip=chip).rehearse()

    def run(self) -> StudyResult:
        """All columns, on one thread: arrays this small lose by being shared out."""
        with threadpool_limits(limits=1):
            return self._columns()

    def _columns(self) -> StudyResult:
        controls = self.experiment.finetune.controls
        plain = self._measured("fault_free", self.program, self.healthy)
        columns = {"fault_free": Column.of([plain.accuracy for _ in self._trials])}
        legs: dict[str, list[Leg]] = {}
        if "transfer" in controls:
            legs["transfer"] = [
                self._measured(f"transfer-seed{trial.seed}", self.program, trial.target)
                for trial in self._trials
            ]
        if "simulation" in controls:
            legs["simulation"] = self._simulation()
        spent = [leg.spent for column in legs.values() for leg in column]
        targets = {trial.seed: self._examined(trial) for trial in self._trials}
        spent += [found.spent for found in targets.values()]
        budget = self._budget().share(spent, self._learners)
        for name, layers in LEARNING.items():
            if name in (*controls, "loop"):
                legs[name] = [
                    self._learned(
                        f"{name}-seed{trial.seed}", trial, layers, budget, targets[trial.seed]
                    )[0]
                    for trial in self._trials
                ]
        for name, column in legs.items():
            rounds = [row for leg, row in self.rounds.items() if leg.partition("-seed")[0] == name]
            columns[name] = Column.of_legs(column, rounds)
        done = max(columns["loop"].rounds)
        return StudyResult(
            columns,
            self.rounds,
            targets,
            last_layer_alone(self.experiment, self.program, done),
            self.experiment.finetune.readout_rounds,
        )

    def _simulation(self) -> list[Leg]:
        """Learned on the healthy simulator, measured on the target."""
        sound = Examination.passed(self.program)
        programs = {
            name: self._learned(name, replace(trial, target=self.healthy), "all", UNLIMITED, sound)[
                1
            ]
            for name, trial in self._simulated().items()
        }
        learned = [*programs.values()]
        each = learned if len(learned) > 1 else learned * len(self._trials)
        return [
            self._measured(f"simulation-on-seed{trial.seed}", program, trial.target)
            for trial, program in zip(self._trials, each, strict=True)
        ]

    def _simulated(self) -> dict[str, Trial]:
        """The legs on the healthy simulator: one, if the seeds are those of faults alone."""
        if self.hardware.faults:
            return {"simulation": self._trials[0]}
        return {f"simulation-seed{trial.seed}": trial for trial in self._trials}

    def _seeded(self, count: int) -> list[Trial]:
        faults, experiment = self.hardware.faults, self.experiment
        if faults:
            return [
                Trial(seed, experiment, self.hardware.with_faults(seed=seed))
                for seed in range(faults.seed, faults.seed + count)
            ]
        return [
            Trial(seed, experiment.model_copy(update={"seed": seed}), self.hardware)
            for seed in range(experiment.seed, experiment.seed + count)
        ]

    def _budget(self) -> Budget:
        config = self.experiment.finetune
        return Budget(config.board_time, config.writes)

    def _measured(self, name: str, program: Program, target: HardwareConfig) -> Leg:
        """Test accuracy of a program on a target."""
        key = self._key(name, self.experiment, program, target)
        if finished := self._finished(name, key, target):
            return finished
        state = LoopState.start(program, self.shadow)
        chip = load_chip(self.hardware.chip)
        log = self._log(target)
        log.begin(name)
        with log.watch(open_session(program, target)) as session:
            loop = Loop(self.experiment, program, session, "all", state, chip=chip)
            leg = Leg(loop.accuracy("test"), state.spent)
        save_leg(self._file(name), leg, key)
        return leg

    def _examined(self, trial: Trial) -> Examination:
        """What is found out about a target, once for all columns."""
        name = f"examination-seed{trial.seed}"
        key = self._key(name, trial.experiment, self.program, trial.target)
        path, log = self._file(name), self._log(trial.target)
        if path.is_file():
            found = load_examination(path, key, self.program)
            log.skip(name, found.spent.runs)
            return found
        log.begin(name)
        config, seed = trial.experiment.finetune, trial.experiment.seed
        with log.watch(open_session(self.program, trial.target)) as session:
            board = Board(session, Probes.of(self.program, config, seed))
            found = examine(board, seed, config.diagnosis)
        save_examination(path, found, key)
        return found

    def _learned(
        self,
        name: str,
        trial: Trial,
        layers: Layers,
        budget: Budget,
        examined: Examination,
    ) -> tuple[Leg, Program]:
        """One loop, from its checkpoint if there is one; the learned program too."""
        place = self.folder / name
        key = self._key(name, trial.experiment, self.program, trial.target, layers)
        self._done += self._batches
        finished = self._finished(name, key, trial.target)
        if finished and not (finished.ended and finished.budget != budget):
            with removable(place / "program.h5", self._file(name)):
                learned: Program = formats.load_as(place / "program.h5", Program)
            self.rounds[name] = finished.history
            return finished, learned
        state = self._state(place / "state.h5", key)
        learned, accuracy = self._loop(name, trial, layers, budget, state, key, examined)
        formats.save(place / "program.h5", learned)
        leg = Leg(accuracy, state.spent, state.history, state.ended, budget)
        save_leg(self._file(name), leg, key)
        self.rounds[name] = state.history
        return leg, learned

    def _state(self, path: Path, key: str) -> LoopState:
        """The state to go on from, or that of the beginning."""
        fresh = LoopState.start(self.program, self.shadow)
        if not path.is_file():
            return fresh
        state = load_state(path, key)
        with removable(path):
            check_state(path, state, self.program, fresh)
        return state

    def _loop(
        self,
        name: str,
        trial: Trial,
        layers: Layers,
        budget: Budget,
        state: LoopState,
        key: str,
        examined: Examination,
    ) -> tuple[Program, float]:
        log, before = self._log(trial.target), self._done - self._batches
        rounds = trial.experiment.finetune.rounds
        done = before + max(len(state.history) - 1, 0) * self._batches // rounds

        def on_batch() -> None:
            nonlocal done
            done += 1
            self.progress(done, self._total, _told(name, state, rounds))

        def on_round(current: LoopState) -> None:
            log.mark(len(current.history) - 1, session.program.fingerprint)
            save_state(self.folder / name / "state.h5", current, key)

        target = trial.target
        if target.faults:
            target = target.with_faults(first_run=state.spent.runs)
        log.begin(name, len(state.history) - 1 if state.history else None)
        chip = load_chip(self.hardware.chip)
        with log.watch(open_session(self.program, target)) as session:
            settings = (self.program, session, layers, state, on_batch, on_round, chip, budget)
            loop = Loop(trial.experiment, *settings, examined)
            learned = loop.run()
            return learned, loop.accuracy("test")

    def _log(self, target: HardwareConfig) -> Log:
        """The log, of the target alone: what a simulator does can be had again."""
        return NoLog() if target is self.healthy else self.log

    def _file(self, name: str) -> Path:
        return self.folder / name / "leg.json"

    def _finished(self, name: str, key: str, target: HardwareConfig) -> Leg | None:
        """What a leg came to, if it is finished."""
        path = self._file(name)
        if not path.is_file():
            return None
        leg = load_leg(path, key)
        self._log(target).skip(name, leg.spent.runs)
        return leg

    def _key(
        self,
        name: str,
        experiment: Experiment,
        program: Program,
        target: HardwareConfig,
        layers: Layers | None = None,
    ) -> str:
        """What a leg depends on, but for the budget, which may grow."""
        apart = {"controls", "seeds", "board_time", "writes"}
        return json.dumps(
            {
                "name": name,
                "layers": layers,
                "program": program.fingerprint,
                "finetune": experiment.finetune.model_dump(mode="json", exclude=apart),
                "surrogate": experiment.surrogate.model_dump(),
                "noise": noise.model_dump() if (noise := experiment.train.noise) else None,
                "seed": experiment.seed,
                "target": target.model_dump(mode="json", exclude={"timeouts", "probes"}),
            },
            sort_keys=True,
        )


def _best(history: list[Round]) -> int:
    """The round that a loop keeps: the last of those with the best validation accuracy."""
    return max(history, key=lambda entry: (entry.validation_accuracy, entry.round)).round


def _without(entry: Column | Round, key: str) -> dict[str, Any]:
    """The plain values of all fields but one."""
    return {name: value for name, value in asdict(entry).items() if name != key}


def _told(name: str, state: LoopState, rounds: int) -> str:
    """What runs, for people."""
    done = state.history
    text = f"{name}, round {len(done)} of {rounds}"
    return f"{text}, validation {done[-1].validation_accuracy:.4f}" if done else text


def _batches(experiment: Experiment, batch: int) -> int:
    from nmtool.data import load_split

    return -(-len(load_split(experiment.data, "train")) // batch)
