r"""What local rules share: readouts of single populations, their errors, correlations in time.

A local rule changes a weight by what its two ends know,

.. math:: g_{ij} = \sum_b \sum_t e_{bi}[t]\, P_{bj}[t]

with P the presynaptic trace and e what reaches the target of the synapse. A projection that is no
matrix (a convolution, pooling before weights) is linear in its weights too: there the sum is the
vector-Jacobian product of its operations at P.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from nmtool.config import Experiment
from nmtool.errors import ConfigError
from nmtool.fixedpoint import (
    CURRENT_DECAY_OFFSET,
    DECAY_ONE,
    BoolArray,
    FloatArray,
    IntArray,
)
from nmtool.learning.chain import weight_gradient
from nmtool.learning.replay import Chunk, is_whole, replay
from nmtool.learning.rule import Batch
from nmtool.learning.twin import Twin
from nmtool.quantization import QuantizedPopulation
from nmtool.training.losses import Penalty, make_regularizer


@dataclass(frozen=True)
class LocalReadout:
    """A population's own readout: ``weight`` (classes, neurons) times its spike counts x scale."""

    weight: FloatArray
    scale: float

    def error(self, counts: IntArray, labels: IntArray) -> tuple[FloatArray, float]:
        """Error sent back to every neuron, shape (samples, neurons), and the mean loss.

        The loss is the cross-entropy of ``softmax(scale * weight @ counts)``, averaged over
        samples; the error is its derivative by the counts.
        """
        likelihood = softmax(self.scale * (counts @ self.weight.T), axis=1)
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
    """A hidden population's readout: fixed, uniform in +- 1 / sqrt(n_neurons)."""
    bound = 1.0 / np.sqrt(n_neurons)
    return LocalReadout(rng.uniform(-bound, bound, (n_classes, n_neurons)), scale)


def make_readouts(twin: Twin, experiment: Experiment) -> dict[str, LocalReadout]:
    """The readout of every population, drawn from the experiment's seed."""
    net, readout = twin.network, experiment.network.readout
    per_class, scale = readout.neurons_per_class, experiment.finetune.scale
    (output,) = net.outputs
    n_classes = net.populations[output].size // per_class

    def make(index: int, name: str) -> LocalReadout:
        size = net.populations[name].size
        if name == output:
            return class_readout(size, per_class, scale)
        rng = np.random.default_rng([experiment.seed, 3, index])
        return random_readout(size, n_classes, scale, rng)

    return {name: make(index, name) for index, name in enumerate(twin.program.order)}


@dataclass(frozen=True, eq=False)
class Counts:
    """Spikes of each neuron before and from the first step that is read, (samples, neurons)."""

    before: dict[str, IntArray]
    read: dict[str, IntArray]

    def rates(self, name: str, steps: int) -> FloatArray:
        """Spikes per step of the whole sample."""
        return (self.before[name] + self.read[name]) / steps


def count(twin: Twin, batch: Batch, burn_in: int) -> Counts:
    """Count the spikes of every population, the model's where none were measured.

    Raises:
        ConfigError: no step of a sample is read.
    """
    steps = batch.inputs.shape[2]
    if burn_in >= steps:
        raise ConfigError(
            f"finetune.burn_in: found {burn_in} steps, allowed fewer than the {steps} of a sample"
        )
    names = [*twin.network.populations]
    if all(is_whole(batch.measured.get(name)) for name in names):
        spikes = {name: batch.measured[name].spikes for name in names}
        return Counts(
            {name: s[..., :burn_in].sum(axis=2) for name, s in spikes.items()},
            {name: s[..., burn_in:].sum(axis=2) for name, s in spikes.items()},
        )
    zeros = {n: np.zeros((len(batch.labels), s), np.int64) for n, s in twin.network.sizes.items()}
    counts = Counts({n: zeros[n].copy() for n in names}, {n: zeros[n].copy() for n in names})
    for chunk in replay(twin, batch.inputs, batch.measured):
        at = max(burn_in - chunk.steps.start, 0)
        for name in names:
            counts.before[name] += chunk.spikes[name][:at].sum(axis=0)
            counts.read[name] += chunk.spikes[name][at:].sum(axis=0)
    return counts


@dataclass
class Trace:
    r"""The derivative of a voltage without resets by a weight, from the spikes that arrive.

    .. math:: q[t] = (1 - \alpha_u) q[t-1] + s[t], \quad P[t] = (1 - \alpha_v) P[t-1] + q[t]

    s are the spikes that arrive at step t, :math:`\alpha` the decays in the target's registers.
    """

    keep_u: float
    keep_v: float
    q: FloatArray | float = 0.0
    p: FloatArray | float = 0.0

    @classmethod
    def into(cls, population: QuantizedPopulation) -> Trace:
        """Of synapses into a population."""
        keep_u = 1 - (population.decay_u + CURRENT_DECAY_OFFSET) / DECAY_ONE
        return cls(keep_u, 1 - population.decay_v / DECAY_ONE)

    def advance(self, arriving: BoolArray) -> FloatArray:
        """P in the next steps; shape (steps, samples, sources), as ``arriving``."""
        trace = np.empty(arriving.shape)
        for t, spikes in enumerate(arriving):
            self.q = self.keep_u * self.q + spikes
            trace[t] = self.p = self.keep_v * self.p + self.q
        return trace


Reaching = Callable[[str, Chunk], FloatArray]
"""What reaches the targets of synapses: by population, shape (steps, samples, neurons)."""


def correlate(
    twin: Twin,
    batch: Batch,
    learning: Collection[str],
    reaching: Reaching,
    voltage_of: Collection[str] = (),
) -> dict[str, FloatArray]:
    """The sums over samples and steps of what reaches the targets of synapses and their traces.

    By projection into a population that is ``learning``, in the shape of its weights. Memory does
    not grow with the steps.
    """
    net = twin.network
    into = [s for s in twin.synapses if s.trained and s.target in learning]
    traces = {s.name: Trace.into(net.populations[s.target]) for s in into}
    weights = {s.name: net.projections[s.name].weight for s in into}
    found = {name: np.zeros(weight.shape) for name, weight in weights.items()}
    for chunk in replay(twin, batch.inputs, batch.measured, voltage_of):
        errors = {name: _rows(reaching(name, chunk)) for name in {s.target for s in into}}
        for s in into:
            trace = _rows(traces[s.name].advance(chunk.arriving[s.name]))
            operations = net.projections[s.name].operations
            found[s.name] += weight_gradient(
                operations, trace, s.shape, weights[s.name].shape, errors[s.target]
            )
    return found


@dataclass(frozen=True, eq=False)
class Errors:
    """What comes back to each neuron of a batch; shapes (samples, neurons), by population.

    Attributes:
        read: of the local loss, for every spike from ``burn_in`` on.
        always: of rate regularisers, for every spike.
        loss: of the output, and the penalties.
    """

    read: Mapping[str, FloatArray]
    always: Mapping[str, FloatArray]
    loss: float
    burn_in: int

    def at(self, name: str, steps: slice) -> FloatArray:
        """At some steps, shape (steps, samples, neurons)."""
        read = np.arange(steps.start, steps.stop) >= self.burn_in
        return read[:, None, None] * self.read[name] + self.always.get(name, 0.0)


@dataclass(frozen=True, eq=False)
class Judge:
    """What local rules take errors from: a readout of each population, penalties of rates."""

    readouts: Mapping[str, LocalReadout]
    penalties: tuple[Penalty, ...] = ()
    burn_in: int = 0

    @classmethod
    def make(cls, twin: Twin, experiment: Experiment) -> Judge:
        """As the ``finetune`` section of an experiment says.

        Raises:
            ConfigError: a regulariser of a population that the network does not have.
        """
        config = experiment.finetune
        penalties = tuple(
            make_regularizer(regularizer, twin.model.network, f"finetune.regularizers.{index}")
            for index, regularizer in enumerate(config.regularizers)
        )
        return cls(make_readouts(twin, experiment), penalties, config.burn_in)

    def errors(self, twin: Twin, batch: Batch) -> Errors:
        """Of the spikes of a batch; neurons that cannot learn get none.

        Raises:
            ConfigError: no step of a sample is read.
        """
        counts = count(twin, batch, self.burn_in)
        read, losses = dict[str, FloatArray](), dict[str, float]()
        for name, readout in self.readouts.items():
            read[name], losses[name] = readout.error(counts.read[name], batch.labels)
        always, penalty = self._penalties(counts, batch.inputs.shape[2])
        for errors in (read, always):
            for name in errors:
                errors[name] = errors[name] * batch.healthy.get(name, 1.0)
        return Errors(read, always, losses[twin.network.outputs[0]] + penalty, self.burn_in)

    def _penalties(self, counts: Counts, steps: int) -> tuple[dict[str, FloatArray], float]:
        """Derivatives of the penalties by a spike at any step, and their sum."""
        if not self.penalties:
            return {}, 0.0
        rates = {
            name: torch.from_numpy(counts.rates(name, steps))[..., None].requires_grad_()
            for name in counts.read
        }
        total = sum((penalty(rates) for penalty in self.penalties), torch.zeros(()))
        found = torch.autograd.grad(total, [*rates.values()], allow_unused=True)
        gradients = zip(rates, found, strict=True)
        always = {n: g[..., 0].numpy() / steps for n, g in gradients if g is not None}
        return always, float(total.detach())


def _rows(values: FloatArray) -> FloatArray:
    return values.reshape(-1, values.shape[-1])
