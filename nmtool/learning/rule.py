"""What a rule of learning is: gradients of the weights, from what a target did."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nmtool.config import Experiment
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.learning.twin import Twin
from nmtool.training.injection import Measured


@dataclass(frozen=True, eq=False)
class Batch:
    """What a target did with some samples; shapes (samples, neurons, steps).

    Attributes:
        inputs: the spikes that went in.
        labels: the class of each sample.
        measured: by population, aligned to the model's steps; what is not known in it, or not in
            it at all, is the model's to say.
        healthy: by population, 1 for neurons that can learn and 0 for those that cannot, whose
            inputs are not driven: shape (neurons,); all can where a population is not named.
    """

    inputs: BoolArray
    labels: IntArray
    measured: Mapping[str, Measured]
    healthy: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the loss by the real weights of each projection, and the loss, a mean over samples."""

    weights: Mapping[str, FloatArray]
    loss: float


class Rule(Protocol):
    """How weights learn from a batch that ran on a target."""

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """Gradients of the projections into the populations that are ``learning``.

        ``twin`` holds the weights that were on the target.
        """
        ...


@dataclass(frozen=True, eq=False)
class Setting:
    """What a rule is made from, once for each loop: its own settings are ``finetune``'s."""

    twin: Twin
    experiment: Experiment
