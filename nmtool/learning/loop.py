"""The loop: run samples on a target, learn from the measured spikes, write weights, run again."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nmtool.backends.base import Session
from nmtool.chip import ChipSpec, load_chip
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.data import Samples, load_split, spikes_of
from nmtool.errors import ConfigError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.learning.align import Alignment
from nmtool.learning.board import Board, Probes, Spent, probed_share
from nmtool.learning.budget import UNLIMITED, Budget, Limit
from nmtool.learning.examination import Examination, differing, examine
from nmtool.learning.host import Host, HostState
from nmtool.learning.rule import Batch, Setting
from nmtool.learning.rules import make_rule
from nmtool.learning.twin import Twin
from nmtool.measure import predict
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured
from nmtool.training.model import is_trained

Layers = Literal["readout", "all"]


@dataclass(frozen=True)
class Timing:
    """Where the seconds of a round went.

    ``board``: the target was busy. ``gradients``: the rule and the optimizer. ``rest``: writing
    weights, encoding samples, reading out, the diagnosis, and keeping account.
    """

    board: float = 0.0
    gradients: float = 0.0
    rest: float = 0.0


@dataclass(frozen=True)
class Round:
    """One round; round 0 is the measurement before any learning.

    ``suspects`` has (dead, stuck) counts per population, ``written`` the weights changed,
    ``probed`` the fraction of all neurons and steps that was measured. Rounds that differ in their
    ``timing`` alone are equal.
    """

    round: int
    validation_accuracy: float
    loss: float | None
    written: int
    suspects: dict[str, list[int]]
    probed: float = 1.0
    timing: Timing = field(default_factory=Timing, compare=False)


@dataclass
class LoopState:
    """Everything that the rest of a loop depends on: saved after every round.

    ``masks`` are 0 for neurons that cannot learn, ``offsets`` where the recordings of each
    population lie, ``suspects`` how many neurons of each look dead and stuck; all are found before
    round 0. The runs that were ``spent`` number those of a target, by which transient faults of a
    simulator are drawn. ``ended`` is the limit of the budget that ended the loop before its last
    round, if one did.
    """

    host: HostState
    best: dict[str, IntArray]
    best_accuracy: float = -1.0
    best_round: int = -1
    masks: dict[str, FloatArray] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    suspects: dict[str, list[int]] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    history: list[Round] = field(default_factory=list)
    ended: Limit | None = None

    @classmethod
    def start(cls, program: Program, shadow: Mapping[str, FloatArray]) -> LoopState:
        """Before round 0: the program's own weights are the best so far."""
        projections = program.network.projections
        return cls(HostState.start(shadow), {n: p.weight_mantissa for n, p in projections.items()})


@dataclass
class Loop:
    """One program learning on one target.

    Args:
        experiment: data, readout and the ``finetune`` section.
        program: its synapse formats stay as they are.
        session: the program on the target.
        layers: ``readout`` changes the last layer alone, ``all`` every layer.
        state: where to begin or to continue.
        on_batch: called after every batch.
        on_round: called with the state after every round, and when the budget ends the loop.
        chip: the target's; found by its name unless given.
        budget: what the rounds may take; the measurement before them and the test after them
            run in any case, and are counted all the same.
        examined: what is known of the target; it is found out unless given.
    """

    experiment: Experiment
    program: Program
    session: Session
    layers: Layers
    state: LoopState
    on_batch: Callable[[], None] = lambda: None
    on_round: Callable[[LoopState], None] = lambda state: None
    chip: ChipSpec | None = None
    budget: Budget = UNLIMITED
    examined: Examination | None = None

    def __post_init__(self) -> None:
        check_rates(self.experiment.finetune.rates, self.program)
        chip = self.chip or load_chip(self.program.chip)
        twin = Twin(self.program, chip, self.experiment.surrogate, self.experiment.train.noise)
        rule = make_rule(self.experiment.finetune.rule, Setting(twin, self.experiment))
        self._host = Host(twin, rule)
        probes = Probes.of(self.program, self.experiment.finetune, self.experiment.seed)
        self._board = Board(self.session, probes, spent=self.state.spent)
        self._longest = {"train": 0.0, "validation": 0.0}
        self._begin_round()
        self._train = _Split.load(self.experiment, self.program, "train")
        self._validation = _Split.load(self.experiment, self.program, "validation")

    def run(self) -> Program:
        """Learn for the rounds that are left; returns the program of the best round.

        A round that would pass the budget is dropped whole.
        """
        self.state.ended = None
        if not self.state.history:
            self._begin_round()
            self._look_over()
        self._board.alignment = Alignment(self.state.offsets)
        if self.state.history:
            self._restore()
        else:
            self._write()
            self._finish_round(None, 0)
        while len(self.state.history) <= self.experiment.finetune.rounds:
            before = copy.deepcopy(self.state.host)
            self._begin_round()
            learned = self._learn_round(len(self.state.history) - 1)
            if learned is None:
                self.state.host = before
                self.on_round(self.state)
                break
            losses, written = learned
            self._finish_round(float(np.mean(losses)), written)
        self._board.write(self.state.best)
        return self.program.with_weights(self.state.best)

    def _look_over(self) -> None:
        """Align the recordings, and find out what cannot learn, before anything does.

        Raises:
            AlignmentError: recordings cannot be put beside the model's steps.
        """
        state, seed = self.state, self.experiment.seed
        found = self.examined or examine(self._board, seed, self.experiment.finetune.diagnosis)
        state.masks = found.masks(self.program.network.sizes)
        state.suspects, state.offsets = found.suspects, found.offsets

    def rehearse(self) -> None:
        """Run one batch and learn from it, to see that all settings go together.

        Raises:
            ConfigError: a setting or a rule of learning that does not go with the program.
        """
        config = self.experiment.finetune
        batch = self._measure(self._train, slice(config.batch))
        self._update(batch, self._learning(config.rounds - 1), self._rates(0))

    def accuracy(self, split: str) -> float:
        """Accuracy (a fraction) of the weights that are on the target now."""
        samples = _Split.load(self.experiment, self.program, split)
        return samples.accuracy(self.experiment, self._board.run(samples.raster))

    def _restore(self) -> None:
        """Write back what was on the target when the last round ended; that costs no budget."""
        on_board = self._board.program.network.projections
        for name, mantissa in self._host.mantissas(self.state.host).items():
            if not np.array_equal(mantissa, on_board[name].weight_mantissa):
                self.session.write_weights(name, mantissa)

    def _learn_round(self, index: int) -> tuple[list[float], int] | None:
        """One pass over the training samples; losses and weights written, None if it was ended."""
        config = self.experiment.finetune
        order = np.random.default_rng([self.experiment.seed, 2, index]).permutation(
            len(self._train.samples)
        )
        learning = self._learning(index)
        losses, written = [], 0
        for start in range(0, len(order), config.batch):
            chosen = order[start : start + config.batch]
            if self._ended(sum(self._longest.values())):
                return None
            batch = self._measure(self._train, chosen)
            rates = self._rates(index + start / len(order))
            losses.append(self._update(batch, learning, rates))
            mantissas = self._host.mantissas(self.state.host)
            if self._ended(self._longest["validation"], self._writes_ahead(mantissas)):
                return None
            written += self._board.write(mantissas)
            self.on_batch()
        return losses, written

    def _update(self, batch: Batch, learning: list[str], rates: Mapping[str, float]) -> float:
        """One step of learning; returns the loss."""
        began = time.perf_counter()
        loss = self._host.update(self.state.host, self._board.program, batch, learning, rates)
        self._learned += time.perf_counter() - began
        return loss

    def _ended(self, seconds: float, writes: int = 0) -> bool:
        """Whether so much more would pass the budget.

        What comes is taken to last as long as the longest of its kind so far: a batch, and the
        validation without which a round is worth nothing.
        """
        spent = self.state.spent
        self.state.ended = self.budget.passed(spent.seconds + seconds, spent.writes + writes)
        return self.state.ended is not None

    def _writes_ahead(self, mantissas: Mapping[str, IntArray]) -> int:
        """Weights to write now, and those to write back if the best round were to be restored."""
        if self.budget.writes is None:
            return 0
        projections = self._board.program.network.projections
        on_board = {name: p.weight_mantissa for name, p in projections.items()}
        now = differing(mantissas, on_board)
        return now + differing(mantissas, self.state.best) if now else 0

    def _learning(self, index: int) -> list[str]:
        """The output layer learns in every round, hidden layers after ``readout_rounds``."""
        config, outputs = self.experiment.finetune, self.program.network.outputs
        hidden = self.layers == "all" and index >= config.readout_rounds
        learning = [name for name in self.program.order if hidden or name in outputs]
        return [name for name in learning if config.rates.get(name) != 0]

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rates, falling to zero as a cosine over all rounds."""
        config = self.experiment.finetune
        factor = 0.5 * (1 + math.cos(math.pi * progress / config.rounds))
        outputs = self.program.network.outputs
        plain = {n: config.lr if n in outputs else config.hidden_lr for n in self.program.order}
        return {name: factor * config.rates.get(name, rate) for name, rate in plain.items()}

    def _write(self) -> int:
        """Write the weights that changed; returns their number."""
        return self._board.write(self._host.mantissas(self.state.host))

    def _measure(self, split: _Split, chosen: IntArray | slice = slice(None)) -> Batch:
        """Run samples on the target."""
        inputs, labels = split.raster[chosen], split.samples.labels[chosen]
        before = self.state.spent.seconds
        batch = Batch(inputs, labels, self._board.run(inputs), self.state.masks)
        seconds = self.state.spent.seconds - before
        self._longest[split.name] = max(self._longest[split.name], seconds)
        return batch

    def _begin_round(self) -> None:
        self._began, self._learned = time.perf_counter(), 0.0
        self._busy = self.state.spent.seconds

    def _timing(self) -> Timing:
        """Where the time since the round began went."""
        board = self.state.spent.seconds - self._busy
        rest = time.perf_counter() - self._began - board - self._learned
        return Timing(board, self._learned, max(rest, 0.0))

    def _finish_round(self, loss: float | None, written: int) -> None:
        batch = self._measure(self._validation)
        accuracy = self._validation.accuracy(self.experiment, batch.measured)
        index = len(self.state.history)
        probed = probed_share(self.program, batch.measured)
        done = Round(index, accuracy, loss, written, self.state.suspects, probed)
        self.state.history.append(replace(done, timing=self._timing()))
        if accuracy >= self.state.best_accuracy:
            self.state.best_accuracy, self.state.best_round = accuracy, index
            deployed = self.session.program.network.projections
            self.state.best = {name: p.weight_mantissa for name, p in deployed.items()}
        self.on_round(self.state)


def last_layer_alone(experiment: Experiment, program: Program, rounds: int) -> str | None:
    """Why no hidden layer learns in so many rounds of a loop; None: one does."""
    config, net = experiment.finetune, program.network
    if config.rule == "readout":
        return "finetune.rule readout changes the last layer alone"
    if rounds <= config.readout_rounds:
        return (
            f"hidden layers learn after {config.readout_rounds} rounds (finetune.readout_rounds), "
            f"and the loop has {rounds}"
        )
    fed = {p.target for p in net.projections.values() if is_trained(p)} - {*net.outputs}
    if all(config.rates.get(name) == 0 for name in fed):
        return "no hidden layer has weights that finetune.rates lets learn"
    return None


def check_rates(rates: Mapping[str, float], program: Program) -> None:
    """Check that rates are those of populations.

    Raises:
        ConfigError: the program has no population of that name.
    """
    for name in rates:
        if name not in program.network.populations:
            allowed = ", ".join(program.network.populations)
            raise ConfigError(f"finetune.rates: found the population {name!r}, allowed {allowed}")


@dataclass(frozen=True, eq=False)
class _Split:
    """One part of the data set, encoded."""

    name: str
    samples: Samples
    raster: BoolArray
    output: str

    @classmethod
    def load(cls, experiment: Experiment, program: Program, split: str) -> _Split:
        samples = load_split(experiment.data, split)
        raster = spikes_of(samples, experiment.data).batch()
        return cls(split, samples, raster, program.network.outputs[0])

    def accuracy(self, experiment: Experiment, measured: Mapping[str, Measured]) -> float:
        output = SpikeTrain.from_raster(measured[self.output].spikes)
        classes = predict(output, experiment.network.readout)
        return float(np.mean(classes == self.samples.labels))
