r"""Escape noise: neurons that spike by chance, the likelier the higher their voltage.

A stochastic neuron has the same u and v as Loihi's deterministic one, but spikes at a step with
probability :math:`P(v - \vartheta)`, and is reset when it does. Noise belongs to training: the
program of a network trained with it is the deterministic one, whose neurons spike where v is above
the threshold. Nothing in it uses the noise generator of Loihi 1, which adds random numbers to u or
v.

Random numbers are counted, not drawn in turn: that of a neuron at a step is a hash of (seed,
sample, population, neuron, step) and of nothing else. So neither threads, the size of a batch nor
the order of samples in it change any spike, and both engines have the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmtool.config import Experiment, Noise, SigmoidNoise
from nmtool.fixedpoint import ALIGN_BITS, IntArray
from nmtool.quantization import STATE_SCALE
from nmtool.training.spiking import (
    DETERMINISTIC,
    ESCAPE_EXPONENTIAL,
    SIGMOID,
    Escape,
    all_thresholds,
    stream,
)
from nmtool.training.surrogates import derivative, escape_derivative

TRAINING, EVALUATION = 4, 5
"""What random numbers are for; one seed has different ones for each."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Which random numbers a forward pass with noise takes.

    Attributes:
        seed: 64 bits; another seed has nothing to do with this one.
        samples: the number of each sample of the batch within its data set.
    """

    seed: int
    samples: IntArray

    @classmethod
    def of_update(cls, experiment_seed: int, update: int, samples: IntArray) -> Draw:
        """Fresh noise for one update of the optimizer."""
        return cls(_seed(experiment_seed, TRAINING, update), samples)

    @classmethod
    def of_trial(cls, experiment_seed: int, trial: int, samples: IntArray) -> Draw:
        """Noise for evaluation: the same whenever a trial is repeated."""
        return cls(_seed(experiment_seed, EVALUATION, trial), samples)

    def keys(self, population: int) -> npt.NDArray[np.uint64]:
        """The key of each sample for the population with this number, shape (samples,)."""
        own = stream(np.uint64(self.seed), np.uint64(population))
        return np.array([stream(np.uint64(own), np.uint64(s)) for s in self.samples], np.uint64)


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def compiled(noise: Noise | None) -> Escape:
    """An escape function in the chip's units for the kernels; without noise, none."""
    if noise is None:
        return DETERMINISTIC
    if isinstance(noise, SigmoidNoise):
        return Escape(SIGMOID, STATE_SCALE / noise.beta, 0.0)
    return Escape(ESCAPE_EXPONENTIAL, STATE_SCALE * noise.du, math.log(noise.p0))


def probability(noise: Noise, distance: Any) -> Any:
    """P(spike) at a step, for ``distance`` = v - threshold in real units (numpy)."""
    from scipy.special import expit

    if isinstance(noise, SigmoidNoise):
        return expit(noise.beta * np.asarray(distance))
    exponent = np.asarray(distance) / noise.du
    return np.exp(np.minimum(exponent + math.log(noise.p0), 0.0))


def noisy_thresholds(
    noise: Noise, keys: npt.NDArray[np.uint64], threshold: int, shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """The thresholds that a population's neurons have at each step, as the chip's whole numbers.

    Args:
        noise: the escape function.
        keys: of each sample, from ``Draw.keys``.
        threshold: the register's, as the mantissa that is compared with v / 64.
        shape: (neurons, steps).

    Returns:
        An array of shape (samples, neurons, steps).
    """
    neurons, steps = shape
    levels = np.empty((len(keys), steps, neurons), dtype=np.int32)
    registers = np.full(neurons, threshold << ALIGN_BITS, dtype=np.int32)
    all_thresholds(compiled(noise), keys, registers, levels)
    return levels.swapaxes(1, 2)


def fano_factor(counts: Any) -> float:
    """Variance over mean of the spike counts of repeated trials, averaged over neurons.

    Args:
        counts: spikes of the same input, shape (trials, ...).

    Returns:
        0 for a deterministic network; NaN where no neuron ever spikes. Neurons without spikes do
        not count. A Poisson process has 1.
    """
    counts = np.asarray(counts, dtype=np.float64)
    mean = counts.mean(axis=0)
    active = mean > 0
    if not active.any():
        return math.nan
    return float((counts.var(axis=0, ddof=1)[active] / mean[active]).mean())


def mismatch(experiment: Experiment) -> str | None:
    """A warning if an experiment's surrogate is not the derivative of its escape noise."""
    noise, surrogate = experiment.train.noise, experiment.surrogate
    if noise is None:
        return None
    if derivative(surrogate, 1.0, noise) == escape_derivative(noise):
        return None
    return (
        f"surrogate: found {surrogate.kind} with escape noise {noise.kind}, whose derivative is "
        "another function: gradients are biased even for one neuron; leave the surrogate out, or "
        "use surrogate.kind=escape"
    )
