"""The training loop: epochs with seeded order, model selection by validation, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nmtool.chip import ChipSpec
from nmtool.config import Experiment
from nmtool.data import Samples, load_split, spikes_of
from nmtool.data.augment import check_jitter, varied
from nmtool.formats.claims import check_arrays
from nmtool.network import Network
from nmtool.spikes import SpikeTrain
from nmtool.training.losses import class_sums, make_loss
from nmtool.training.model import Model, make_model, reproducible, trained, with_weights

SATURATED_RATE = 0.9
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; accuracies are fractions, rates are spikes per neuron and step."""

    epoch: int
    loss: float
    validation_accuracy: float
    rates: dict[str, float]
    warnings: tuple[str, ...]
    seconds: float


@dataclass
class TrainingState:
    """Everything that the rest of a training depends on: saved after every epoch."""

    weights: dict[str, Any]
    first_moment: dict[str, Any]
    second_moment: dict[str, Any]
    updates: int = 0
    best_weights: dict[str, Any] = field(default_factory=dict)
    best_accuracy: float = -1.0
    best_epoch: int = -1
    history: list[Epoch] = field(default_factory=list)

    @classmethod
    def fresh(cls, network: Network) -> TrainingState:
        """The state before the first epoch."""
        names = trained(network)
        weights = {n: np.asarray(network.projections[n].weight, np.float32) for n in names}
        zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
        return cls(weights, dict(zeros), dict(zeros))


def train(
    experiment: Experiment,
    network: Network,
    chip: ChipSpec,
    state: TrainingState | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
) -> tuple[Network, TrainingState]:
    """Train a network; returns it with the weights of the best epoch by validation accuracy.

    The order of samples and their jitter belong to (seed, epoch), so a training that continues
    from the state of any epoch ends with the same bits as one that was never interrupted.

    Args:
        experiment: data, loss, optimizer, epochs and seed.
        network: the untrained network.
        chip: whose synapse formats the forward pass rounds to.
        state: where to continue; None starts afresh.
        on_batch: called with (batches done, batches in all).
        on_epoch: called with the state after every epoch.
    """
    with reproducible():
        return _train(experiment, network, chip, state, on_batch, on_epoch)


def _train(
    experiment: Experiment,
    network: Network,
    chip: ChipSpec,
    state: TrainingState | None,
    on_batch: Callable[[int, int], None] | None,
    on_epoch: Callable[[TrainingState], None] | None,
) -> tuple[Network, TrainingState]:
    fresh = TrainingState.fresh(network)
    state = state or fresh
    check_jitter(experiment.data, experiment.train.jitter)
    check_arrays("the checkpoint's weights", state.weights, fresh.weights)
    model = make_model(network, chip, experiment.surrogate, experiment.train.engine)
    model.load(state.weights)
    optimizer = _optimizer(model, experiment, state)
    train_set = load_split(experiment.data, "train")
    validation = load_split(experiment.data, "validation")
    per_epoch = math.ceil(len(train_set) / experiment.train.batch)
    total = per_epoch * experiment.train.epochs
    for epoch in range(len(state.history), experiment.train.epochs):
        started = time.monotonic()
        losses: list[float] = []
        for spikes, labels in _batches(experiment, train_set, epoch):
            _set_rate(optimizer, experiment, state.updates, total)
            losses.append(_update(model, optimizer, experiment, spikes, labels))
            state.updates += 1
            if on_batch:
                on_batch(state.updates, total)
        accuracy, rates, warnings = _evaluate(model, experiment, validation)
        _remember(state, model, optimizer)
        if accuracy >= state.best_accuracy:
            state.best_accuracy, state.best_epoch = accuracy, epoch
            state.best_weights = state.weights
        seconds = time.monotonic() - started
        state.history.append(
            Epoch(epoch, float(np.mean(losses)), accuracy, rates, warnings, seconds)
        )
        if on_epoch:
            on_epoch(state)
    return with_weights(network, state.best_weights), state


def _batches(
    experiment: Experiment, samples: Samples, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng([experiment.seed, 1, epoch])
    order = rng.permutation(len(samples))
    spikes_at = varied(samples, experiment.data, experiment.train.jitter, rng)
    for start in range(0, len(order), experiment.train.batch):
        chosen = order[start : start + experiment.train.batch]
        yield _raster(spikes_at(chosen)), torch.from_numpy(samples.labels[chosen])


def _raster(spikes: SpikeTrain) -> torch.Tensor:
    """Shape (samples, neurons, steps)."""
    return torch.from_numpy(spikes.batch().astype(np.float32))


def _update(
    model: Model,
    optimizer: torch.optim.Optimizer,
    experiment: Experiment,
    spikes: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    model.train()
    (name,) = model.network.outputs
    output = model(spikes, (name,))[name]
    loss = make_loss(experiment.train.loss, experiment.network.readout)(output, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _evaluate(
    model: Model, experiment: Experiment, samples: Samples
) -> tuple[float, dict[str, float], tuple[str, ...]]:
    model.train(False)
    given, n = spikes_of(samples, experiment.data), len(samples)
    right = 0
    rates = dict.fromkeys(model.network.populations, 0.0)
    with torch.no_grad():
        for start in range(0, n, EVALUATION_BATCH):
            chosen = np.arange(start, min(start + EVALUATION_BATCH, n))
            spikes = model(_raster(given.select(chosen)))
            counts = class_sums(spikes[model.network.outputs[0]], experiment.network.readout)
            labels = torch.from_numpy(samples.labels[chosen])
            right += int((counts.argmax(dim=1) == labels).sum())
            for name, train in spikes.items():
                rates[name] += float(train.mean()) * len(labels) / n
    return right / n, rates, tuple(_activity_warnings(rates))


def _activity_warnings(rates: dict[str, float]) -> Iterator[str]:
    for name, rate in rates.items():
        if rate == 0:
            yield f"{name}: silent, no spike in the validation set; lower its threshold"
        elif rate > SATURATED_RATE:
            yield f"{name}: saturated, {rate:.2f} spikes per neuron and step; raise its threshold"


def _set_rate(
    optimizer: torch.optim.Optimizer, experiment: Experiment, update: int, total: int
) -> None:
    config = experiment.train.optimizer
    factor = 0.5 * (1 + math.cos(math.pi * update / total)) if config.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def _optimizer(model: Model, experiment: Experiment, state: TrainingState) -> torch.optim.Optimizer:
    parameters = _parameters(model)
    optimizer = torch.optim.Adam(parameters.values(), lr=experiment.train.optimizer.lr)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.updates)),
            "exp_avg": torch.tensor(state.first_moment[name]).reshape(parameter.shape),
            "exp_avg_sq": torch.tensor(state.second_moment[name]).reshape(parameter.shape),
        }
    return optimizer


def _parameters(model: Model) -> dict[str, torch.nn.Parameter]:
    return {projection: model.parameter(projection) for projection in trained(model.network)}


def _remember(state: TrainingState, model: Model, optimizer: torch.optim.Optimizer) -> None:
    state.weights = model.weights()
    for name, parameter in _parameters(model).items():
        adam, shape = optimizer.state[parameter], state.weights[name].shape
        state.first_moment[name] = adam["exp_avg"].numpy().reshape(shape).copy()
        state.second_moment[name] = adam["exp_avg_sq"].numpy().reshape(shape).copy()
