"""The loop: run samples on a target, learn from the measured spikes, write weights, run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nmtool.backends.base import Session
from nmtool.chip import ChipSpec, load_chip
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.data import Samples, load_split, spikes_of
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.learning.board import Board, Spent
from nmtool.learning.host import Host, HostState
from nmtool.learning.rule import Batch, Setting
from nmtool.learning.rules import make_rule
from nmtool.learning.twin import Twin
from nmtool.measure import predict
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured

Layers = Literal["readout", "all"]


@dataclass(frozen=True)
class Round:
    """One round; round 0 is the measurement before any learning.

    ``suspects`` has (dead, stuck) counts per population, ``written`` the weights changed.
    """

    round: int
    validation_accuracy: float
    loss: float | None
    written: int
    suspects: dict[str, list[int]]


@dataclass
class LoopState:
    """Everything that the rest of a loop depends on: saved after every round.

    ``masks`` are 0 for neurons that look dead or stuck. The runs that were ``spent`` number
    those of a target, by which transient faults of a simulator are drawn.
    """

    host: HostState
    best: dict[str, IntArray]
    best_accuracy: float = -1.0
    best_round: int = -1
    masks: dict[str, FloatArray] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    history: list[Round] = field(default_factory=list)

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
        on_round: called with the state after every round.
        chip: the target's; found by its name unless given.
    """

    experiment: Experiment
    program: Program
    session: Session
    layers: Layers
    state: LoopState
    on_batch: Callable[[], None] = lambda: None
    on_round: Callable[[LoopState], None] = lambda state: None
    chip: ChipSpec | None = None

    def __post_init__(self) -> None:
        chip = self.chip or load_chip(self.program.chip)
        twin = Twin(self.program, chip, self.experiment.surrogate, self.experiment.train.noise)
        rule = make_rule(self.experiment.finetune.rule, Setting(twin, self.experiment))
        self._host = Host(twin, rule)
        self._board = Board(self.session, spent=self.state.spent)
        self._train = _Split.load(self.experiment, self.program, "train")
        self._validation = _Split.load(self.experiment, self.program, "validation")

    def run(self) -> Program:
        """Learn for the rounds that are left; returns the program of the best round."""
        self._write()
        if not self.state.history:
            self._finish_round(None, 0)
        while len(self.state.history) <= self.experiment.finetune.rounds:
            losses, written = self._learn_round(len(self.state.history) - 1)
            self._finish_round(float(np.mean(losses)), written)
        self._board.write(self.state.best)
        return self.program.with_weights(self.state.best)

    def accuracy(self, split: str) -> float:
        """Accuracy (a fraction) of the weights that are on the target now."""
        samples = _Split.load(self.experiment, self.program, split)
        return samples.accuracy(self.experiment, self._board.run(samples.raster))

    def _learn_round(self, index: int) -> tuple[list[float], int]:
        config = self.experiment.finetune
        order = np.random.default_rng([self.experiment.seed, 2, index]).permutation(
            len(self._train.samples)
        )
        learning = self._learning(index)
        losses, written = [], 0
        for start in range(0, len(order), config.batch):
            chosen = order[start : start + config.batch]
            batch = self._measure(self._train, chosen)
            rates = self._rates(index + start / len(order))
            loss = self._host.update(self.state.host, self._board.program, batch, learning, rates)
            losses.append(loss)
            written += self._write()
            self.on_batch()
        return losses, written

    def _learning(self, index: int) -> list[str]:
        """The output layer learns in every round, hidden layers after ``readout_rounds``."""
        outputs = self.program.network.outputs
        hidden = self.layers == "all" and index >= self.experiment.finetune.readout_rounds
        return [name for name in self.program.order if hidden or name in outputs]

    def _rates(self, progress: float) -> dict[str, float]:
        """Learning rates, falling to zero as a cosine over all rounds."""
        config = self.experiment.finetune
        factor = 0.5 * (1 + math.cos(math.pi * progress / config.rounds))
        outputs = self.program.network.outputs
        return {
            name: factor * (config.lr if name in outputs else config.hidden_lr)
            for name in self.program.order
        }

    def _write(self) -> int:
        """Write the weights that changed; returns their number."""
        return self._board.write(self._host.mantissas(self.state.host))

    def _measure(self, split: _Split, chosen: IntArray | slice = slice(None)) -> Batch:
        """Run samples on the target."""
        inputs, labels = split.raster[chosen], split.samples.labels[chosen]
        return Batch(inputs, labels, self._board.run(inputs), self.state.masks)

    def _finish_round(self, loss: float | None, written: int) -> None:
        batch = self._measure(self._validation)
        accuracy = self._validation.accuracy(self.experiment, batch.measured)
        suspects = self._mask_suspects(batch)
        index = len(self.state.history)
        self.state.history.append(Round(index, accuracy, loss, written, suspects))
        if accuracy >= self.state.best_accuracy:
            self.state.best_accuracy, self.state.best_round = accuracy, index
            deployed = self.session.program.network.projections
            self.state.best = {name: p.weight_mantissa for name, p in deployed.items()}
        self.on_round(self.state)

    def _mask_suspects(self, batch: Batch) -> dict[str, list[int]]:
        found = self._host.suspect(self._board.program, batch)
        self.state.masks = {name: suspects.healthy for name, suspects in found.items()}
        return {name: [int(s.dead.sum()), int(s.stuck.sum())] for name, s in found.items()}


@dataclass(frozen=True, eq=False)
class _Split:
    """One part of the data set, encoded."""

    samples: Samples
    raster: BoolArray
    output: str

    @classmethod
    def load(cls, experiment: Experiment, program: Program, split: str) -> _Split:
        samples = load_split(experiment.data, split)
        raster = spikes_of(samples, experiment.data).batch()
        return cls(samples, raster, program.network.outputs[0])

    def accuracy(self, experiment: Experiment, measured: Mapping[str, Measured]) -> float:
        output = SpikeTrain.from_raster(measured[self.output].spikes)
        classes = predict(output, experiment.network.readout)
        return float(np.mean(classes == self.samples.labels))
