r"""DCLL on CUBA neurons with a hard reset: each population learns from a readout of its own spikes.

Deep continuous local learning (Kaiser, Mostafa and Neftci, Frontiers in Neuroscience 14, 2020;
Mostafa, Ramesh and Cauwenberghs 2018 for the fixed random readouts) gives every layer a linear
readout with fixed random weights and its own loss; nothing flows back from layer to layer. Their
neuron has no reset. Here, for Loihi's neuron, with the reset as a detached constant:

.. math::
    q_j[t] &= (1 - \alpha_u) q_j[t-1] + s_j[t-1-d], \quad
    P_j[t] = (1 - \alpha_v) P_j[t-1] + q_j[t] \\
    r_k &= \kappa \sum_i G_{ki} \sum_{t \ge t_0} s_i[t], \quad
    e_k = \mathrm{softmax}(r)_k - y_k \\
    \Delta w_{ij} &= -\eta \sum_{t \ge t_0}
        \Big(\kappa \sum_k G_{ki} e_k\Big)\, \sigma'(v_i[t])\, P_j[t]

s are measured spikes, P is the presynaptic trace, :math:`\sigma'` the surrogate derivative at the
voltage before the reset, G the local readout: fixed and random for hidden populations, the class
sums for the output; t_0 is ``finetune.burn_in``. For a convolution, or pooling before weights, the
last product is the vector-Jacobian product of the projection's operations at P, for rate
regularisers the derivative of the penalty is added to the error at every step.

The spikes of a population's own loop are presynaptic like any other: measured, and constants. So
the rule leaves out how a weight changes later spikes through the loop (the recurrent cross terms of
real-time recurrent learning), as it leaves out that a reset also forgets the past input; the tests
measure the latter. Per population it equals autograd on the graph in which the reset and all that
arrives are detached. Memory does not grow with the steps; the trace belongs to the source, not to
the synapse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nmtool.fixedpoint import ALIGN_BITS, FloatArray, IntArray
from nmtool.learning.local import Judge, correlate
from nmtool.learning.replay import Chunk
from nmtool.learning.rule import Batch, Gradients, Setting
from nmtool.learning.twin import Twin
from nmtool.quantization import STATE_SCALE, WEIGHT_SCALE
from nmtool.training.surrogates import Derivative, derivative


@dataclass(frozen=True, eq=False)
class Dcll:
    """The rule: where errors come from, and surrogate derivatives by population."""

    judge: Judge
    derivatives: Mapping[str, Derivative]

    @classmethod
    def make(cls, setting: Setting) -> Dcll:
        """With local readouts drawn from the experiment's seed, and its surrogate.

        The surrogate's height becomes 1: it is part of the learning rate.
        """
        twin = setting.twin
        derivatives = {
            name: replace(
                derivative(twin.surrogate, population.threshold / WEIGHT_SCALE, twin.noise),
                peak=1.0,
            )
            for name, population in twin.network.populations.items()
        }
        return cls(Judge.make(twin, setting.experiment), derivatives)

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """Gradients of the projections into the populations that are ``learning``."""
        errors = self.judge.errors(twin, batch)

        def reaching(name: str, chunk: Chunk) -> FloatArray:
            threshold = twin.network.populations[name].threshold
            slope = surrogate(chunk.voltage[name], threshold, self.derivatives[name])
            return errors.at(name, chunk.steps) * slope

        return Gradients(correlate(twin, batch, learning, reaching, learning), errors.loss)


def surrogate(voltage: IntArray, threshold: int, rho: Derivative) -> FloatArray:
    r"""The surrogate derivative :math:`\sigma'(v)` at the chip's voltages, for its threshold.

    ``rho`` is in SLAYER's scale.
    """
    return np.asarray(rho((voltage - (threshold << ALIGN_BITS)) / STATE_SCALE))
