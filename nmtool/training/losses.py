"""Losses on output spikes, and regularisers on the spikes of any population.

Spikes have the shape (samples, neurons, steps), labels (samples,). Everything is a torch function
of the spikes, whose gradients go on through the surrogate derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from nmtool import config
from nmtool.config import Readout, Train
from nmtool.errors import ConfigError
from nmtool.network import Network
from nmtool.training.recipe import check_regularizer

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Penalty: TypeAlias = Callable[[dict[str, torch.Tensor]], torch.Tensor]

RESOLUTION_BITS = 24
"""Of a float32: filters end where they have fallen below it."""


@dataclass(frozen=True)
class Objective:
    """The loss of the output and the penalties of the regularisers, of spikes and labels.

    Attributes:
        populations: whose spikes it takes, the output first.
        loss: of the output spikes.
        penalties: of the spikes of these populations.
    """

    populations: tuple[str, ...]
    loss: Loss
    penalties: tuple[Penalty, ...]

    def __call__(self, spikes: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The sum of all, from the spikes of each population."""
        loss = self.loss(spikes[self.populations[0]], labels)
        return sum((penalty(spikes) for penalty in self.penalties), loss)


def make_objective(train: Train, readout: Readout, network: Network) -> Objective:
    """The loss and the regularisers of an experiment.

    Raises:
        ConfigError: a regulariser of a population that the network does not have.
    """
    penalties = tuple(
        make_regularizer(regularizer, network, f"train.regularizers.{index}")
        for index, regularizer in enumerate(train.regularizers)
    )
    needed = [network.outputs[0]]
    for regularizer in train.regularizers:
        needed += regularizer.populations or network.populations
    return Objective(tuple(dict.fromkeys(needed)), make_loss(train.loss, readout), penalties)


def make_loss(loss: config.Loss, readout: Readout) -> Loss:
    """The loss of output spikes and labels.

    It raises ConfigError for samples of too few steps.
    """
    if isinstance(loss, config.CountCrossEntropy):
        return lambda spikes, labels: count_cross_entropy(spikes, labels, readout, loss.scale)
    if isinstance(loss, config.SpikeRate):
        rates = loss.true_rate, loss.false_rate
        return lambda spikes, labels: spike_rate(spikes, labels, readout, *rates)
    if isinstance(loss, config.SpikeTime):
        return lambda spikes, labels: _spike_time(spikes, labels, readout, loss)
    if isinstance(loss, config.MaxOverTime):
        return lambda spikes, labels: _max_over_time(spikes, labels, readout, loss)
    return lambda spikes, labels: first_spike(spikes, labels, readout, loss.tau)


def decide(spikes: torch.Tensor, readout: Readout) -> torch.Tensor:
    """The class of each sample, shape (samples,), as ``nmtool.measure.predict``."""
    if readout.kind == "count":
        return class_sums(spikes, readout).argmax(dim=1)
    return latencies(spikes, readout).argmin(dim=1)


def class_sums(spikes: torch.Tensor, readout: Readout) -> torch.Tensor:
    """Spikes per class, shape (samples, classes)."""
    per_class = readout.neurons_per_class
    return spikes.sum(dim=-1).reshape(len(spikes), -1, per_class).sum(dim=2)


def by_class(spikes: torch.Tensor, readout: Readout) -> torch.Tensor:
    """Spikes as (samples, classes, neurons of the class, steps)."""
    return spikes.reshape(len(spikes), -1, readout.neurons_per_class, spikes.shape[-1])


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
    own = torch.arange(rate.shape[1], device=rate.device) // readout.neurons_per_class
    target = torch.where(own[None] == labels[:, None], true_rate, false_rate)
    return ((rate - target) ** 2).sum(dim=1).mean()


def exponential_trace(spikes: torch.Tensor, tau: float) -> torch.Tensor:
    r"""Spikes filtered along the last axis: :math:`a[t] = e^{-1/\tau} a[t-1] + s[t]`.

    The filter is cut off where it has fallen below the resolution of a float32.
    """
    steps = spikes.shape[-1]
    length = max(1, min(steps, math.ceil(tau * RESOLUTION_BITS * math.log(2))))
    ago = torch.arange(length - 1, -1, -1, dtype=spikes.dtype, device=spikes.device)
    rows = F.pad(spikes.reshape(-1, 1, steps), (length - 1, 0))
    return F.conv1d(rows, torch.exp(-ago / tau)[None, None]).reshape(spikes.shape)


def van_rossum(spikes: torch.Tensor, target: torch.Tensor, tau: float) -> torch.Tensor:
    r"""Squared van Rossum distance of each sample's spike trains to target ones, shape (samples,).

    .. math:: D^2 = \frac{1}{\tau} \sum_i \sum_t (\varepsilon * (s_i - \hat s_i))[t]^2, \qquad
        \varepsilon[t] = e^{-t / \tau}

    ``tau`` is in steps; ``target`` has the shape of ``spikes``. The gradient at a spike is the
    filtered difference, filtered once more backwards in time. Source: van Rossum, Neural
    Computation 13, 2001; as a loss in SLAYER (lava-dl ``SpikeTime``, which has no 1 / tau) and
    SuperSpike.
    """
    difference = exponential_trace(spikes - target.to(spikes.dtype), tau)
    return (difference**2).sum(dim=(1, 2)) / tau


def _spike_time(
    spikes: torch.Tensor, labels: torch.Tensor, readout: Readout, loss: config.SpikeTime
) -> torch.Tensor:
    target = torch.zeros_like(by_class(spikes, readout)[:1]).expand(len(spikes), -1, -1, -1).clone()
    right = F.one_hot(labels, target.shape[1]).bool()
    steps = spikes.shape[-1]
    for key, chosen in (("true_steps", right), ("false_steps", ~right)):
        at = getattr(loss, key)
        if at and max(at) >= steps:
            raise ConfigError(
                f"train.loss.{key}: found step {max(at)}, allowed 0 to {steps - 1}, the steps of "
                "a sample"
            )
        train = torch.zeros(steps, dtype=spikes.dtype)
        train[at] = 1.0
        target[chosen] = train.to(spikes.device)
    return van_rossum(spikes, target.reshape(spikes.shape), loss.tau).mean()


def _max_over_time(
    spikes: torch.Tensor, labels: torch.Tensor, readout: Readout, loss: config.MaxOverTime
) -> torch.Tensor:
    if loss.burn_in >= spikes.shape[-1]:
        raise ConfigError(
            f"train.loss.burn_in: found {loss.burn_in} steps, allowed fewer than the "
            f"{spikes.shape[-1]} of a sample"
        )
    return max_over_time(spikes, labels, readout, loss.tau, loss.scale, loss.burn_in)


def max_over_time(
    spikes: torch.Tensor,
    labels: torch.Tensor,
    readout: Readout,
    tau: float,
    scale: float = 1.0,
    burn_in: int = 0,
) -> torch.Tensor:
    r"""Cross-entropy of :math:`k \max_{t \ge b} a_c[t]`, a the filtered spikes of a class.

    The gradient goes to the step of the maximum, in equal parts where several are as large: a
    silent class learns at every step, not at the first alone. Source: Cramer, Stradmann, Schemmel
    and Zenke, IEEE Transactions on Neural Networks and Learning Systems 33, 2022, with the voltage
    of readout neurons in place of filtered spikes.
    """
    trace = exponential_trace(by_class(spikes, readout).sum(dim=2), tau)
    return F.cross_entropy(scale * trace[..., burn_in:].amax(dim=-1), labels)


def latencies(spikes: torch.Tensor, readout: Readout) -> torch.Tensor:
    r"""The step of each class's first spike, shape (samples, classes); T, the steps, if none.

    .. math:: l_c = \sum_{t=0}^{T-1} \prod_{t' \le t} \prod_{i \in c} (1 - s_i[t'])

    Each product is 1 as long as no neuron of the class has spiked. This is the latency of spikes
    that are 0 or 1, and linear in each of them: the derivative by a spike is how much later the
    first one would come without it, also where there is none yet.
    """
    quiet = (1 - by_class(spikes, readout)).prod(dim=2)
    return quiet.cumprod(dim=-1).sum(dim=-1)


def first_spike(
    spikes: torch.Tensor, labels: torch.Tensor, readout: Readout, tau: float
) -> torch.Tensor:
    r"""Cross-entropy of the latencies: :math:`-\log \mathrm{softmax}(-l / \tau)_{label}`.

    Source: Goeltz et al., Nature Machine Intelligence 3, 2021, for the loss; the latencies are
    those of ``latencies``.
    """
    return F.cross_entropy(-latencies(spikes, readout) / tau, labels)


def make_regularizer(
    regularizer: config.Regularizer, network: Network, key: str = "regularizer"
) -> Penalty:
    """The penalty of a regulariser, of the spikes of every population.

    Raises:
        ConfigError: a population that the network does not have.
    """
    check_regularizer(network, regularizer, key)
    names = regularizer.populations or [*network.populations]
    rule = {
        "upper_rate": upper_rate,
        "lower_rate": lower_rate,
        "sparsity": sparsity,
    }[regularizer.kind]
    rate, weight = regularizer.rate, regularizer.weight
    return lambda spikes: (
        weight * sum((rule(spikes[name], rate) for name in names), torch.zeros(()))
    )


def upper_rate(spikes: torch.Tensor, rate: float) -> torch.Tensor:
    r""":math:`\langle \max(0, r_{bi} - \hat r)^2 \rangle`, the mean over samples and neurons.

    r is spikes per step of one neuron in one sample. Source: Zenke and Vogels, Neural Computation
    33, 2021 (upper bound on activity).
    """
    return (F.relu(spikes.mean(dim=-1) - rate) ** 2).mean()


def lower_rate(spikes: torch.Tensor, rate: float) -> torch.Tensor:
    r""":math:`\langle \max(0, \hat r - r_{bi})^2 \rangle`, the mean over samples and neurons.

    Wakes neurons that are silent. Source: as ``upper_rate`` (lower bound on activity).
    """
    return (F.relu(rate - spikes.mean(dim=-1)) ** 2).mean()


def sparsity(spikes: torch.Tensor, rate: float) -> torch.Tensor:
    r""":math:`\max(0, \langle s \rangle - \hat r)^2`, with the mean over everything.

    Source: lava-dl ``SparsityEnforcer``.
    """
    return F.relu(spikes.mean() - rate) ** 2
