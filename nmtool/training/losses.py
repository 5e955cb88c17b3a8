"""Losses on output spikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

from nmtool.config import CountCrossEntropy, Readout, SpikeRate

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(config: CountCrossEntropy | SpikeRate, readout: Readout) -> Loss:
    """The loss of output spikes (samples, neurons, steps) and labels (samples,)."""
    if isinstance(config, CountCrossEntropy):
        scale = config.scale
        return lambda spikes, labels: count_cross_entropy(spikes, labels, readout, scale)
    rates = (config.true_rate, config.false_rate)
    return lambda spikes, labels: spike_rate(spikes, labels, readout, *rates)


def class_sums(spikes: torch.Tensor, readout: Readout) -> torch.Tensor:
    """Spikes per class, shape (samples, classes)."""
    per_class = readout.neurons_per_class
    return spikes.sum(dim=-1).reshape(len(spikes), -1, per_class).sum(dim=2)


def count_cross_entropy(
    spikes: torch.Tensor, labels: torch.Tensor, readout: Readout, scale: float
) -> torch.Tensor:
    r"""Cross-entropy of the class counts: :math:`-\log \mathrm{softmax}(k\, n)_{label}`."""
    return F.cross_entropy(scale * class_sums(spikes, readout), labels)


def spike_rate(
    spikes: torch.Tensor,
    labels: torch.Tensor,
    readout: Readout,
    true_rate: float,
    false_rate: float,
) -> torch.Tensor:
    r"""SLAYER's spike rate loss: :math:`\sum_i (r_i - \hat r_i)^2`, averaged over samples.

    Every neuron of the right class should spike at ``true_rate``, every other at ``false_rate``
    (spikes per step). Source: Shrestha and Orchard, NeurIPS 2018; lava-dl ``SpikeRate``, which sums
    over samples.
    """
    rate = spikes.mean(dim=-1)
    own = torch.arange(rate.shape[1]) // readout.neurons_per_class
    target = torch.where(own[None] == labels[:, None], true_rate, false_rate)
    return ((rate - target) ** 2).sum(dim=1).mean()
