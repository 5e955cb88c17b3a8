r"""Adapting to a stream: a sample runs, its class is read, and only then its label teaches.

Samples are chunks of one stream on the target, or runs from reset. An update is made only where the
error is large enough (error-triggered learning: Payvand et al. 2020, arXiv:1910.06152). With the
class counts n of a sample and its label y,

.. math::
    e &= 1 - \mathrm{softmax}(\kappa n)_y \\
    w &\leftarrow w - \frac{\eta}{G} \frac{\partial L}{\partial w} \quad
    \text{if } e \ge \theta \\
    \theta &\leftarrow \min(1, \max(\theta_0,\; \theta + g\,([e \ge \theta] - r))) .

e is the largest error of any class. g is the gain of the controller that keeps the rate of updates
at r, :math:`\theta_0` the floor, the gradient is the rule's (``finetune.rule``). G makes the
learning rate one of weights, whatever rule and network: see :func:`unit_steps`. Plain steps,
without momentum: they are as large as the error. Weights are rounded to the frozen format of their
projection; what is lost in that is kept in real shadow weights.

Every sample counts for the accuracy before anything has learned from it (prequential, or
test-then-train: Gama, Sebastiao and Rodrigues, Machine Learning 90, 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

from nmtool.backends.base import InputBatch, ManagedSession, Probe, Progress, Recording, Session
from nmtool.chip import ChipSpec, SynapseFormat
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.config import Stream as Settings
from nmtool.data import load_split, n_classes, spikes_of
from nmtool.data.drift import drifting
from nmtool.errors import UnsupportedError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.learning.board import Board, Spent
from nmtool.learning.rule import Batch, Rule, Setting
from nmtool.learning.rules import make_rule
from nmtool.learning.twin import Twin
from nmtool.measure import predict
from nmtool.measure.accuracy import class_counts
from nmtool.quantization import (
    WEIGHT_SCALE,
    QuantizedProjection,
    dequantize_weights,
    quantize_weights,
)
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured

CALIBRATION = 16
"""Samples from which the unit of the learning rate is taken."""


class Chunks(ManagedSession):
    """A session each of whose runs is the next chunk of one stream.

    Args:
        session: the program on the target.
        kept: whether states are kept from chunk to chunk; if not, each is a run from reset.
    """

    def __init__(self, session: Session, kept: bool) -> None:
        self.program = session.program
        self._session, self._kept = session, kept

    def reset(self) -> None:
        """Clear all states and the spikes in flight."""
        self._session.reset()

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        if self._kept:
            return self._go_on(batch, probes)
        return self._session.run(batch.trains, probe=probes, progress=progress)

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        return self._session.stream(batch.trains, probes)

    def _store(self, projection: str) -> None:
        mantissa = self.program.network.projections[projection].weight_mantissa
        self._session.write_weights(projection, mantissa)


@dataclass(frozen=True, eq=False)
class Incoming:
    """What arrives: spikes (samples, lines, steps), labels, and which of these are known."""

    raster: BoolArray
    labels: IntArray
    known: BoolArray

    @classmethod
    def of(cls, experiment: Experiment) -> Incoming:
        """The samples of the stream in their seeded order, changed by its drift.

        Raises:
            ConfigError: a drift that is not for the data set.
        """
        config, data = experiment.finetune.stream, experiment.data
        order = _order(len(load_split(data, config.split)), config.samples, experiment.seed)
        rng = np.random.default_rng([experiment.seed, 6])
        spikes, labels = drifting(data, config.split, order, config.drift, rng)
        known = np.random.default_rng([experiment.seed, 7]).random(len(order)) < config.labelled
        return cls(_paused(spikes, config), labels, known)

    def __len__(self) -> int:
        return len(self.labels)


def _paused(spikes: SpikeTrain, config: Settings) -> BoolArray:
    """The raster of samples, each with the silent steps that follow it."""
    return np.pad(spikes.batch(), ((0, 0), (0, 0), (0, config.pause or 0)))


def _order(available: int, samples: int | None, seed: int) -> IntArray:
    """Each sample once in seeded order, then again in another one."""
    rng = np.random.default_rng([seed, 5])
    wanted = samples or available
    passes = [rng.permutation(available) for _ in range(-(-wanted // available))]
    return np.concatenate(passes)[:wanted]


@dataclass
class Gate:
    """Which errors are large enough to learn from; see the equations of this module.

    Attributes:
        rate: updates for each sample that the controller aims at; 1 lets everything through.
        gain: what the threshold goes up by with an update, less ``rate`` of it every time.
        floor: the lowest threshold.
        threshold: between ``floor`` and 1.
    """

    rate: float
    gain: float
    floor: float
    threshold: float

    @classmethod
    def of(cls, config: Settings) -> Gate:
        """Open as far as it may be."""
        floor = 0.0 if config.updates == 1 else config.floor
        return cls(config.updates, config.gain, floor, floor)

    def passes(self, error: float) -> bool:
        """Whether an error reaches the threshold, which then moves."""
        passed = error >= self.threshold
        moved = self.threshold + self.gain * (passed - self.rate)
        self.threshold = float(np.clip(moved, self.floor, 1.0)) if self.rate < 1 else 0.0
        return passed


@dataclass
class Course:
    """What became of a stream, one entry a sample.

    Attributes:
        correct: whether the class was right.
        threshold: of the gate when the sample came.
        written: weights that changed after it; -1 where it made no update.
        ended: why learning, or the stream, ended before the last sample; empty if neither did.
        best: the program of the best window, None while there has been no whole one.
        last: the program of the last update.
    """

    last: Program
    best: Program | None = None
    best_accuracy: float = -1.0
    correct: list[bool] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    ended: str = ""

    @property
    def accuracy(self) -> float:
        """Of all samples so far, a fraction."""
        return float(np.mean(self.correct)) if self.correct else float("nan")

    @property
    def updates(self) -> int:
        """Samples that made one."""
        return sum(count >= 0 for count in self.written)

    def moving(self, window: int) -> FloatArray:
        """The mean over the last ``window`` samples, from the first whole window on."""
        width = min(window, len(self.correct))
        if not width:
            return np.empty(0)
        return np.convolve(self.correct, np.full(width, 1 / width), mode="valid")

    def keep(self, right: bool, program: Program, window: int) -> None:
        """Note a sample, and the program that ran it if its window is the best one."""
        self.correct.append(right)
        recent = self.correct[-window:]
        if len(recent) == window and (found := float(np.mean(recent))) >= self.best_accuracy:
            self.best, self.best_accuracy = program, found

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "accuracy": self.accuracy,
            "best_window": self.best_accuracy if self.best else None,
            "samples": len(self.correct),
            "updates": self.updates,
            "writes": self.spent.writes,
            "seconds": self.spent.seconds,
            "ended": self.ended,
            "correct": [int(right) for right in self.correct],
            "threshold": self.threshold,
            "written": self.written,
        }


@dataclass(eq=False)
class Learner:
    """Real shadow weights, and what changes them.

    Attributes:
        rates: by population that learns.
        units: by projection, what a gradient is divided by.
    """

    twin: Twin
    rule: Rule
    rates: Mapping[str, float]
    units: Mapping[str, float]
    shadow: dict[str, FloatArray]

    @classmethod
    def of(cls, experiment: Experiment, program: Program, chip: ChipSpec) -> Learner:
        """One that begins with the program's own weights."""
        config, output = experiment.finetune.stream, program.network.outputs[0]
        twin = Twin(program, chip, experiment.surrogate, experiment.train.noise)
        rule = make_rule(experiment.finetune.rule, Setting(twin, experiment))
        rates = {output: config.lr}
        if config.layers == "all":
            rates = {n: config.lr if n == output else config.hidden_lr for n in program.order}
        units = unit_steps(twin, rule, experiment, rates)
        projections = program.network.projections
        return cls(twin, rule, rates, units, {n: _real(projections[n]) for n in units})

    def learn(self, deployed: Program, batch: Batch) -> dict[str, IntArray]:
        """The weights to write after a sample that ``deployed`` ran."""
        self.twin.deploy(deployed)
        gradients = self.rule.gradients(self.twin, batch, [*self.rates]).weights
        projections = deployed.network.projections
        for name, gradient in gradients.items():
            rate = self.rates[projections[name].target] / self.units[name]
            moved = self.shadow[name] - rate * gradient
            self.shadow[name] = _in_range(moved, projections[name].format)
        return {n: quantize_weights(self.shadow[n], projections[n].format) for n in gradients}


def unit_steps(
    twin: Twin, rule: Rule, experiment: Experiment, learning: Mapping[str, float]
) -> dict[str, float]:
    """What a gradient of each projection is divided by, to make a step of 1.

    Training samples run on the host, each as if another class had been right. The unit is the root
    mean square, over the afferents of the neuron that moves most, and over the samples.

    Raises:
        UnsupportedError: the rule has no gradient of a projection's own weights.
    """
    samples = load_split(experiment.data, "train")
    rng = np.random.default_rng([experiment.seed, 8])
    chosen = samples.pick(rng.permutation(len(samples))[:CALIBRATION])
    raster = _paused(spikes_of(chosen, experiment.data), experiment.finetune.stream)
    squares: dict[str, list[float]] = {}
    for k, wrong in enumerate((chosen.labels + 1) % n_classes(experiment.data)):
        batch = Batch(raster[k : k + 1], np.array([wrong]), {})
        for name, gradient in rule.gradients(twin, batch, [*learning]).weights.items():
            _check_shape(name, gradient, twin.network.projections[name])
            rows = np.square(gradient).reshape(len(gradient), -1)
            squares.setdefault(name, []).append(float(rows.mean(axis=1).max()))
    return {name: float(np.sqrt(np.mean(found))) or 1.0 for name, found in squares.items()}


def _check_shape(name: str, gradient: FloatArray, projection: QuantizedProjection) -> None:
    if gradient.shape != (wanted := projection.weight_mantissa.shape):
        raise UnsupportedError(
            f"projection {name}: found a gradient of shape {gradient.shape} for weights of shape "
            f"{wanted}, allowed dense weights that see their source itself"
        )


def _real(projection: QuantizedProjection) -> FloatArray:
    weight = dequantize_weights(projection.weight_mantissa, projection.format)
    return np.asarray(weight, dtype=np.float64)


def _in_range(weight: FloatArray, format: SynapseFormat) -> FloatArray:
    """Real weights that are never further away than the format's ends."""
    unit = 2.0**format.exponent / WEIGHT_SCALE
    return np.clip(weight, format.minimum * unit, format.maximum * unit)


@dataclass(eq=False)
class Stream:
    """One program on one target, while samples arrive.

    Args:
        experiment: readout, rule, and ``finetune.stream``.
        session: the program on the target.
        incoming: the samples.
        learner: what learns; None leaves the network as it is.
        on_sample: called after every sample.
        course: what was done, complete after every sample.
    """

    experiment: Experiment
    session: Session
    incoming: Incoming
    learner: Learner | None
    on_sample: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        config = self.experiment.finetune.stream
        self.course = Course(self.session.program)
        chunks = Chunks(self.session, kept=config.pause is not None)
        self._board = Board(chunks, spent=self.course.spent)
        self._config, self._gate = config, Gate.of(config)
        self._output = self.session.program.network.outputs[0]

    def run(self) -> Course:
        """All samples, or as many as the budget of time allows."""
        for index in range(len(self.incoming)):
            if self._time_is_up():
                self.course.ended = f"sample {index}: the board time is spent; the rest did not run"
                break
            self._take(index)
            self.on_sample()
        return self.course

    def _take(self, index: int) -> None:
        program, one = self._board.program, slice(index, index + 1)
        chunk, label = self.incoming.raster[one], self.incoming.labels[one]
        measured = self._board.run(chunk)
        output = SpikeTrain.from_raster(measured[self._output].spikes)
        found = predict(output, self.experiment.network.readout)
        self.course.keep(bool(found[0] == label[0]), program, self._config.window)
        self.course.threshold.append(self._gate.threshold)
        written = -1
        if self.learner and self.incoming.known[index]:
            written = self._learn(self.learner, chunk, label, measured, output)
        self.course.written.append(written)

    def _learn(
        self,
        learner: Learner,
        chunk: BoolArray,
        label: IntArray,
        measured: Mapping[str, Measured],
        output: SpikeTrain,
    ) -> int:
        """Write what a sample teaches; returns how many weights changed, -1 for no update."""
        if self.course.ended:
            return -1
        readout = self.experiment.network.readout
        counts = class_counts(output, readout)[0]
        likelihood = softmax(self.experiment.finetune.scale * counts)
        if not self._gate.passes(1.0 - float(likelihood[label[0]])):
            return -1
        batch = Batch(chunk, label, measured)
        weights = learner.learn(self._board.program, batch)
        if self._too_many(weights):
            at = len(self.course.correct) - 1
            self.course.ended = f"sample {at}: the writes are spent; the rest ran without learning"
            return -1
        written = self._board.write(weights)
        self.course.last = self._board.program
        return written

    def _too_many(self, weights: Mapping[str, IntArray]) -> bool:
        limit = self.experiment.finetune.writes
        if limit is None:
            return False
        deployed = self._board.program.network.projections
        more = sum(np.count_nonzero(deployed[n].weight_mantissa != w) for n, w in weights.items())
        return bool(self.course.spent.writes + more > limit)

    def _time_is_up(self) -> bool:
        """Both passes, where there is a frozen one, have the same share of the time."""
        limit = self.experiment.finetune.board_time
        share = 2 if self._config.control else 1
        return limit is not None and self.course.spent.seconds >= limit / share
