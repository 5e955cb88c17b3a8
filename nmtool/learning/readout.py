r"""The delta rule on the output layer: error times presynaptic activity, and nothing else.

.. math::
    e = \mathrm{softmax}(\kappa\, G n) - y, \qquad
    \Delta w_{ij} = -\eta \sum_b \Big(\kappa \sum_k G_{ki} e_{bk}\Big)
        \sum_{t \ge t_0} P_{bj}[t]

n are the spike counts of the output from step :math:`t_0` (``finetune.burn_in``) on, G the sums
over each class's neurons, y the label, P the presynaptic trace (``nmtool.learning.local``). It is
``dcll`` of the last layer without a surrogate derivative: no voltage has a part in it, so that
nothing but the spikes of two layers need be known. Source: Widrow and Hoff, IRE WESCON Convention
Record 4, 1960. Learning the last layer alone on Loihi, from features that stay: SOEL (Stewart,
Orchard, Shrestha and Neftci, arXiv:2008.01151), where errors trigger updates.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nmtool.learning.local import Judge, correlate
from nmtool.learning.rule import Batch, Gradients, Setting
from nmtool.learning.twin import Twin


@dataclass(frozen=True, eq=False)
class DeltaRule:
    """The rule; other layers than the output do not learn by it."""

    judge: Judge

    @classmethod
    def make(cls, setting: Setting) -> DeltaRule:
        """With the output's class sums."""
        return cls(Judge.make(setting.twin, setting.experiment))

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """Gradients of the projections into the output, if that is ``learning``."""
        errors = self.judge.errors(twin, batch)
        outputs = [name for name in twin.network.outputs if name in learning]
        found = correlate(twin, batch, outputs, lambda name, chunk: errors.at(name, chunk.steps))
        return Gradients(found, errors.loss)
