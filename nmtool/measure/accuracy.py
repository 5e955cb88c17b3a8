"""Classes from output spikes, and the quantities of a recording."""

from __future__ import annotations

import numpy as np

from nmtool.backends.base import Recording
from nmtool.config import Readout
from nmtool.errors import ConfigError
from nmtool.fixedpoint import IntArray
from nmtool.measure.quantity import Measurement, Quantity
from nmtool.spikes import SpikeTrain


def class_counts(spikes: SpikeTrain, readout: Readout) -> IntArray:
    """Output spikes per class, shape (samples, classes): the sum over the class's neurons.

    Raises:
        ConfigError: the neurons cannot be divided into classes.
    """
    per_class = readout.neurons_per_class
    if spikes.n_neurons % per_class:
        raise ConfigError(
            f"readout: found {spikes.n_neurons} output neurons, allowed a multiple of "
            f"neurons_per_class, {per_class}"
        )
    count = spikes.counts().reshape(spikes.n_samples, -1, per_class)
    return np.asarray(count.sum(axis=2))


def first_spikes(spikes: SpikeTrain, readout: Readout) -> IntArray:
    """The step of each class's first output spike, shape (samples, classes); n_steps if none.

    Raises:
        ConfigError: the neurons cannot be divided into classes.
    """
    shape = class_counts(spikes, readout).shape
    first = np.full(shape, spikes.n_steps, dtype=np.int64)
    np.minimum.at(first, (spikes.sample, spikes.neuron // readout.neurons_per_class), spikes.step)
    return first


def predict(spikes: SpikeTrain, readout: Readout) -> IntArray:
    """The class of each sample, shape (samples,): that of most output spikes, or of the first one.

    A tie goes to the lower class.
    """
    if readout.kind == "first_spike":
        return np.asarray(first_spikes(spikes, readout).argmin(axis=1))
    return np.asarray(class_counts(spikes, readout).argmax(axis=1))


def measure(
    recording: Recording, output: str, readout: Readout | None, labels: IntArray | None
) -> Measurement:
    """Quantities of a recording: accuracy (with labels), spikes per population, wall time.

    Raises:
        ConfigError: labels for another number of samples.
    """
    quantities: dict[str, Quantity] = {}
    if labels is not None and readout is not None and output in recording.spikes:
        train = recording.spikes[output]
        if labels.shape != (train.n_samples,):
            raise ConfigError(
                f"labels: found shape {labels.shape}, allowed ({train.n_samples},), one a sample"
            )
        accuracy = float(np.mean(predict(train, readout) == labels))
        quantities["accuracy"] = Quantity(accuracy, "fraction", "counted")
    for name, train in recording.spikes.items():
        quantities[f"spikes.{name}"] = Quantity(len(train), "spikes", "counted")
        slots = train.n_samples * train.n_neurons * train.n_steps
        rate = len(train) / slots if slots else 0.0
        quantities[f"rate.{name}"] = Quantity(rate, "spikes per neuron and step", "counted")
    quantities["wall_time"] = Quantity(recording.wall_time, "s", "measured")
    return Measurement(recording.backend, quantities)
