r"""Backpropagation through time over what was measured: forward the chip, backward the model.

.. math::
    s[t] = s^{measured}[t], \qquad
    \frac{\partial s[t]}{\partial v[t]} = \rho(v[t]), \qquad
    \Delta w = -\eta\, \frac{dL(s)}{dw}

L is the experiment's loss, :math:`\rho` its surrogate derivative, v the voltage before the reset
that the deployed weights give from the measured spikes, or the measured voltage where it was probed
and no spike hid it. The gradient goes back through the model's synapses, layers and loops; what was
not measured is the model's. As in training the reset is left out of it, and in a loop it goes by
way of spikes only. Source: Cramer et al., PNAS 119, 2022; hxtorch. Memory grows with the steps of a
sample, as that of all backpropagation through time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from nmtool.learning.rule import Batch, Gradients, Setting
from nmtool.learning.twin import Twin
from nmtool.training.losses import Objective, make_objective


@dataclass(frozen=True, eq=False)
class Injected:
    """The rule: the objective that the network was trained with."""

    objective: Objective

    @classmethod
    def make(cls, setting: Setting) -> Injected:
        """With ``train.loss``, and the regularisers of ``train`` and of ``finetune``.

        Raises:
            ConfigError: a regulariser of a population that the network does not have.
        """
        experiment, network = setting.experiment, setting.twin.model.network
        regularizers = [*experiment.train.regularizers, *experiment.finetune.regularizers]
        train = experiment.train.model_copy(update={"regularizers": regularizers})
        return cls(make_objective(train, experiment.network.readout, network))

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """Gradients of the projections into the populations that are ``learning``."""
        into = [s.name for s in twin.synapses if s.trained and s.target in learning]
        inputs = torch.from_numpy(batch.inputs.astype(np.float32))
        spikes = twin.model.injected(
            inputs, self.objective.populations, batch.measured, batch.healthy
        )
        loss = self.objective(spikes, torch.from_numpy(batch.labels))
        weights = [twin.model.parameter(name) for name in into]
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        gradients = {
            name: g.numpy().astype(np.float64) for name, g in zip(into, found, strict=True)
        }
        return Gradients(gradients, float(loss.detach()))
