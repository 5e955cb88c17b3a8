r"""DCLL on CUBA neurons with a hard reset: each layer learns from a readout of its own spikes.

Deep continuous local learning (Kaiser, Mostafa and Neftci, Frontiers in Neuroscience 14, 2020;
Mostafa, Ramesh and Cauwenberghs 2018 for the fixed random readouts) gives every layer a linear
readout with fixed random weights and its own loss; nothing flows back from layer to layer. Their
neuron has no reset. Here, for Loihi's neuron, with the reset as a detached constant:

.. math::
    q_j[t] &= (1 - \alpha_u) q_j[t-1] + s_j[t-1-d], \quad
    P_j[t] = (1 - \alpha_v) P_j[t-1] + q_j[t] \\
    r_k &= \kappa \sum_i G_{ki} \sum_t s_i[t], \quad
    e_k = \mathrm{softmax}(r)_k - y_k \\
    \Delta w_{ij} &= -\eta \sum_t \Big(\kappa \sum_k G_{ki} e_k\Big)\, \sigma'(v_i[t])\, P_j[t]

s are measured spikes, P is the presynaptic trace, :math:`\sigma'` the surrogate derivative at the
voltage before the reset, G the local readout: fixed and random for hidden layers, the class sums
for the output layer. Memory is O(neurons); the trace ignores that a reset also forgets the past
input (its bias is measured in the tests). Per layer this equals autograd on the graph in which the
reset and the layer's input are detached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nmtool.fixedpoint import (
    ALIGN_BITS,
    CURRENT_DECAY_OFFSET,
    DECAY_ONE,
    BoolArray,
    FloatArray,
    IntArray,
    current_step,
    fires,
    voltage_step,
)
from nmtool.learning.rule import Batch, Gradients, Setting
from nmtool.learning.twin import Twin
from nmtool.quantization import (
    STATE_SCALE,
    WEIGHT_SCALE,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
)
from nmtool.training.surrogates import Derivative, derivative


@dataclass(frozen=True)
class LocalReadout:
    """A layer's own readout: ``weight`` (classes, neurons) times the spike counts, times scale."""

    weight: FloatArray
    scale: float

    def error(self, counts: IntArray, labels: IntArray) -> tuple[FloatArray, float]:
        """Error sent back to every neuron, shape (samples, neurons), and the mean loss.

        The loss is the cross-entropy of ``softmax(scale * weight @ counts)``, averaged over
        samples; the error is its derivative by the counts.
        """
        logits = self.scale * (counts @ self.weight.T)
        logits = logits - logits.max(axis=1, keepdims=True)
        likelihood = np.exp(logits)
        likelihood /= likelihood.sum(axis=1, keepdims=True)
        chosen = np.arange(len(labels)), labels
        loss = float(-np.log(np.maximum(likelihood[chosen], 1e-300)).mean())
        likelihood[chosen] -= 1.0
        return self.scale * (likelihood / len(labels)) @ self.weight, loss


def class_readout(n_neurons: int, per_class: int, scale: float) -> LocalReadout:
    """The readout of the output layer: every class sums its own neurons."""
    own = np.arange(n_neurons) // per_class
    weight = (own[None] == np.arange(n_neurons // per_class)[:, None]).astype(np.float64)
    return LocalReadout(weight, scale)


def random_readout(
    n_neurons: int, n_classes: int, scale: float, rng: np.random.Generator
) -> LocalReadout:
    """A hidden layer's readout: fixed, uniform in +- 1 / sqrt(n_neurons)."""
    bound = 1.0 / np.sqrt(n_neurons)
    return LocalReadout(rng.uniform(-bound, bound, (n_classes, n_neurons)), scale)


def presynaptic_trace(spikes: BoolArray, population: QuantizedPopulation, delay: int) -> FloatArray:
    """The derivative of v by a weight without resets: spikes (samples, sources, steps) filtered.

    ``delay`` is what a spike needs beyond the one step of its projection. Same shape out.
    """
    keep_u = 1 - (population.decay_u + CURRENT_DECAY_OFFSET) / DECAY_ONE
    keep_v = 1 - population.decay_v / DECAY_ONE
    arriving = np.moveaxis(spikes, -1, 0).astype(np.float64)
    trace = np.zeros_like(arriving)
    current, voltage = np.zeros_like(arriving[0]), np.zeros_like(arriving[0])
    for step in range(1 + delay, len(arriving)):
        current = keep_u * current + arriving[step - 1 - delay]
        voltage = keep_v * voltage + current
        trace[step] = voltage
    return np.moveaxis(trace, 0, -1)


@dataclass(frozen=True, eq=False)
class Afferent:
    """What feeds a population: a projection, the spikes of its source, the axonal delay there."""

    projection: QuantizedProjection
    spikes: BoolArray
    axonal_delay: int = 0

    @property
    def delay(self) -> int:
        """Steps beyond the one step of the projection."""
        return int(np.max(self.projection.delay, initial=0)) + self.axonal_delay


def replay(
    population: QuantizedPopulation, afferents: list[Afferent], measured: BoolArray
) -> IntArray:
    """The host's voltage before the reset, from deployed integers and measured spikes.

    Presynaptic spikes are the measured ones, and v is reset where the population was *measured* to
    spike, whatever the host would have predicted. Shapes (samples, neurons, steps).
    """
    n_samples, n_neurons, n_steps = measured.shape
    drive = np.zeros((n_steps, n_samples, n_neurons), dtype=np.int64)
    for afferent in afferents:
        first = 1 + afferent.delay
        sent = np.moveaxis(afferent.spikes, -1, 0)[: max(n_steps - first, 0)].astype(np.float64)
        weight = afferent.projection.weight.T.astype(np.float64)
        drive[first:] += (sent @ weight).astype(np.int64)
    u = np.zeros((n_samples, n_neurons), dtype=np.int64)
    v = np.zeros_like(u)
    before = np.empty_like(drive)
    for step in range(n_steps):
        u = current_step(u, drive[step], population.decay_u)
        before[step] = v = voltage_step(v, u, population.bias, population.decay_v)
        v = np.where(measured[:, :, step], 0, v)
    return np.moveaxis(before, 0, -1)


def surrogate(voltage: IntArray, threshold: int, rho: Derivative) -> FloatArray:
    r"""The surrogate derivative :math:`\sigma'(v)` at the chip's voltages, for its threshold.

    ``rho`` is in SLAYER's scale.
    """
    return np.asarray(rho((voltage - (threshold << ALIGN_BITS)) / STATE_SCALE))


def gradient(error: FloatArray, derivative: FloatArray, trace: FloatArray) -> FloatArray:
    """Sum over samples and steps of error x surrogate x trace, shape (neurons, sources).

    Args:
        error: what the local readout sends back, shape (samples, neurons).
        derivative: surrogate derivative, shape (samples, neurons, steps).
        trace: presynaptic trace, shape (samples, sources, steps).
    """
    local = derivative * error[:, :, None]
    return np.asarray(np.tensordot(local, trace, axes=((0, 2), (0, 2))))


@dataclass(frozen=True, eq=False)
class Dcll:
    """The rule: local readouts and surrogate derivatives by population."""

    readouts: Mapping[str, LocalReadout]
    derivatives: Mapping[str, Derivative]

    @classmethod
    def make(cls, setting: Setting) -> Dcll:
        """Draw the local readouts of a program.

        The surrogate's height becomes 1: it is part of the learning rate.
        """
        twin, experiment = setting.twin, setting.experiment
        net, readout, scale = twin.network, experiment.network.readout, experiment.finetune.scale
        output = net.outputs[0]
        n_classes = net.populations[output].size // readout.neurons_per_class
        readouts: dict[str, LocalReadout] = {}
        for index, name in enumerate(twin.program.order):
            rng = np.random.default_rng([experiment.seed, 3, index])
            size = net.populations[name].size
            readouts[name] = (
                class_readout(size, readout.neurons_per_class, scale)
                if name == output
                else random_readout(size, n_classes, scale, rng)
            )
        derivatives = {
            name: replace(
                derivative(twin.surrogate, population.threshold / WEIGHT_SCALE, twin.noise),
                peak=1.0,
            )
            for name, population in net.populations.items()
        }
        return cls(readouts, derivatives)

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """Gradients of the projections into the populations that are ``learning``."""
        net, found, loss = twin.network, dict[str, FloatArray](), 0.0
        done = twin.replay(batch.inputs, batch.measured)
        spikes = {twin.input: batch.inputs, **{n: d.spikes for n, d in done.items()}}
        for name in learning:
            population = net.populations[name]
            error, own = self.readouts[name].error(spikes[name].sum(axis=2), batch.labels)
            if name in net.outputs:
                loss = own
            slope = surrogate(done[name].voltage, population.threshold, self.derivatives[name])
            error = error * batch.healthy.get(name, 1.0)
            for projection, afferent in afferents(net, name, spikes).items():
                trace = presynaptic_trace(afferent.spikes, population, afferent.delay)
                found[projection] = gradient(error, slope, trace)
        return Gradients(found, loss)


def afferents(
    net: QuantizedNetwork, population: str, spikes: Mapping[str, BoolArray]
) -> dict[str, Afferent]:
    """What feeds a population, with the spikes of every source."""
    return {
        name: Afferent(p, spikes[p.source], int(net.axonal_delay(p.source)))
        for name, p in net.projections.items()
        if p.target == population
    }


@dataclass(frozen=True, eq=False)
class Suspects:
    """Neurons that look dead or stuck, as masks of shape (neurons,)."""

    dead: BoolArray
    stuck: BoolArray

    @property
    def healthy(self) -> FloatArray:
        """1 for neurons that learn, 0 for the suspects: their inputs are not driven."""
        return np.asarray(~(self.dead | self.stuck), dtype=np.float64)


def find_suspects(
    population: QuantizedPopulation, voltage: IntArray, measured: BoolArray
) -> Suspects:
    """Compare what the host predicts from measured inputs with what was measured.

    Dead: never measured to spike although the host's voltage is above threshold in at least 2 % of
    the steps. Stuck: measured in more than 90 % of the steps, predicted in fewer than half.
    """
    predicted = fires(voltage, population.threshold).mean(axis=(0, 2))
    rate = measured.mean(axis=(0, 2))
    return Suspects((rate == 0) & (predicted >= 0.02), (rate > 0.9) & (predicted < 0.5))
