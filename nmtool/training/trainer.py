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
from nmtool.errors import ConfigError, FitError
from nmtool.formats.claims import check_arrays
from nmtool.network import Network
from nmtool.spikes import SpikeTrain
from nmtool.training import require_device
from nmtool.training.losses import Objective, decide, make_objective
from nmtool.training.model import Model, make_model, reproducible
from nmtool.training.noise import Draw
from nmtool.training.optimizers import Schedule, load_moments, make_optimizer, save_moments
from nmtool.training.recipe import check_loss, recipe_of
from nmtool.training.record import batches, out_of_range

SATURATED_RATE = 0.9


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; accuracies are fractions, rates are spikes per neuron and step.

    ``overflow`` names a state that left the chip's 24 bits in validation; empty if none did.
    """

    epoch: int
    loss: float
    validation_accuracy: float
    rates: dict[str, float]
    warnings: tuple[str, ...]
    seconds: float
    overflow: str = ""


@dataclass
class TrainingState:
    """Everything that the rest of a training depends on: saved after every epoch.

    ``weights`` are all parameters by name, ``means`` the running means of batch normalisation.
    ``best_epoch`` is -1, and what belongs to it empty, as long as no epoch fits the chip.
    ``stopped`` says why a training ended before its last epoch; it is not saved, for a training
    that is continued stops there again.
    """

    weights: dict[str, Any]
    first_moment: dict[str, Any]
    second_moment: dict[str, Any]
    updates: int = 0
    best_weights: dict[str, Any] = field(default_factory=dict)
    best_accuracy: float = -1.0
    best_epoch: int = -1
    history: list[Epoch] = field(default_factory=list)
    means: dict[str, Any] = field(default_factory=dict)
    best_means: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    @classmethod
    def fresh(cls, model: Model) -> TrainingState:
        """The state before the first epoch."""
        weights = {name: _array(p) for name, p in model.parameters_by_name().items()}
        zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
        return cls(weights, dict(zeros), dict(zeros), means=model.means())


def _array(parameter: torch.Tensor) -> Any:
    return parameter.detach().cpu().numpy().astype(np.float32)


def train(
    experiment: Experiment,
    network: Network,
    chip: ChipSpec,
    state: TrainingState | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
) -> tuple[Network, TrainingState]:
    """Train a network; returns it with the weights of the best epoch by validation accuracy.

    An epoch in whose validation a state leaves the chip's 24 bits is never the best. Where the
    numbers are too large to train on, the epochs before are what there is.

    The order of samples and their jitter belong to (seed, epoch) and noise to (seed, update,
    sample), so a training that continues from the state of any epoch ends with the same bits as
    one that was never interrupted. Validation runs without noise, as the chip will.

    Args:
        experiment: data, loss, optimizer, epochs and seed.
        network: the untrained network.
        chip: whose synapse formats the forward pass rounds to.
        state: where to continue; None starts afresh.
        on_batch: called with (batches done, batches in all).
        on_epoch: called with the state after every epoch.

    Raises:
        NmtoolError: as ``prepare``, or a checkpoint of another network.
        FitError: no epoch fits the chip.
    """
    with reproducible(experiment.train.device):
        return _train(experiment, network, chip, state, on_batch, on_epoch)


def prepare(experiment: Experiment, network: Network, chip: ChipSpec) -> tuple[Model, Objective]:
    """The model that a training runs, and what it makes smaller.

    Raises:
        UnsupportedError: a network, a recipe or a loss that cannot be trained so.
        FitError: a parameter that the chip cannot hold.
        ConfigError: a regulariser of a population that the network does not have.
        DependencyError: lava-dl is missing (slayer), or the device is.
    """
    require_device(experiment.train.device)
    train, recipe = experiment.train, recipe_of(experiment)
    objective = make_objective(train, experiment.network.readout, network)
    check_loss(network, recipe, train.loss)
    surrogate, noise = experiment.surrogate, train.noise
    model = make_model(network, chip, surrogate, train.engine, noise, recipe)
    return model.to(train.device), objective


def _train(
    experiment: Experiment,
    network: Network,
    chip: ChipSpec,
    state: TrainingState | None,
    on_batch: Callable[[int, int], None] | None,
    on_epoch: Callable[[TrainingState], None] | None,
) -> tuple[Network, TrainingState]:
    model, objective = prepare(experiment, network, chip)
    fresh = TrainingState.fresh(model)
    state = state or fresh
    check_jitter(experiment.data, experiment.train.jitter)
    check_arrays("the checkpoint's weights", state.weights, fresh.weights)
    check_arrays("the checkpoint's running means", state.means, fresh.means)
    model.load(state.weights, state.means)
    optimizer = _optimizer(model, experiment, state)
    train_set = load_split(experiment.data, "train")
    validation = load_split(experiment.data, "validation")
    per_epoch = math.ceil(len(train_set) / experiment.train.batch)
    total = per_epoch * experiment.train.epochs
    schedule = Schedule.make(experiment.train.optimizer.schedule, optimizer, total)
    schedule.replay(state.updates, [epoch.validation_accuracy for epoch in state.history])
    for epoch in range(len(state.history), experiment.train.epochs):
        started = time.monotonic()
        losses: list[float] = []
        try:
            for spikes, labels, chosen in _batches(experiment, train_set, epoch):
                draw = _draw(experiment, state.updates, chosen)
                model.reseed(_mask_seed(experiment.seed, state.updates))
                losses.append(_update(model, optimizer, objective, spikes, labels, draw))
                schedule.after_update()
                state.updates += 1
                if on_batch:
                    on_batch(state.updates, total)
            accuracy, rates, overflow = _evaluate(model, experiment, validation)
        except FitError as error:
            state.stopped = f"epoch {epoch + 1} could not be trained: {error}"
            break
        schedule.after_epoch(accuracy)
        _remember(state, model, optimizer, experiment)
        if not overflow and accuracy >= state.best_accuracy:
            state.best_accuracy, state.best_epoch = accuracy, epoch
            state.best_weights, state.best_means = state.weights, state.means
        warnings, seconds = tuple(_activity_warnings(rates)), time.monotonic() - started
        loss = float(np.mean(losses))
        state.history.append(Epoch(epoch, loss, accuracy, rates, warnings, seconds, overflow))
        if on_epoch:
            on_epoch(state)
    _check_best(experiment, state)
    model.load(state.best_weights, state.best_means)
    return model.export(), state


def _check_best(experiment: Experiment, state: TrainingState) -> None:
    """That there is an epoch to keep.

    Raises:
        FitError: none fits the chip.
    """
    if state.best_epoch >= 0:
        return
    found = [f"epoch {e.epoch + 1}: {e.overflow}" for e in state.history[:1]]
    raise FitError(
        f"{experiment.name}: found no epoch of {experiment.train.epochs} that fits the chip "
        f"({'; '.join([*found, state.stopped]).strip('; ')}); lower train.optimizer.lr or "
        "network.init_gain, and train afresh with --force"
    )


def first_overflow(experiment: Experiment, network: Network, chip: ChipSpec) -> str:
    """Which state leaves the chip's 24 bits before the first update, in a batch of validation.

    Empty if none does.

    Raises:
        NmtoolError: as ``prepare``.
        FitError: the numbers are too large to train on.
    """
    model, _ = prepare(experiment, network, chip)
    samples = load_split(experiment.data, "validation")
    given = spikes_of(samples, experiment.data)
    model.train(False)
    with reproducible(experiment.train.device), torch.no_grad():
        chosen = next(batches(network, given))
        _, reached = model.watched(_raster(given.select(chosen)).to(model.device))
        return out_of_range(reached)


def _mask_seed(seed: int, update: int) -> int:
    """The seed of an update's dropout."""
    return int(np.random.SeedSequence([seed, 2, update]).generate_state(1)[0])


def _draw(experiment: Experiment, update: int, chosen: Any) -> Draw | None:
    """Fresh noise for an update, if the experiment has noise."""
    noisy = experiment.train.noise is not None
    return Draw.of_update(experiment.seed, update, chosen) if noisy else None


def _batches(
    experiment: Experiment, samples: Samples, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
    """Spikes, labels and numbers of the samples of each batch of an epoch."""
    rng = np.random.default_rng([experiment.seed, 1, epoch])
    order = rng.permutation(len(samples))
    spikes_at = varied(samples, experiment.data, experiment.train.jitter, rng)
    for start in range(0, len(order), experiment.train.batch):
        chosen = order[start : start + experiment.train.batch]
        yield _raster(spikes_at(chosen)), torch.from_numpy(samples.labels[chosen]), chosen


def _raster(spikes: SpikeTrain) -> torch.Tensor:
    """Shape (samples, neurons, steps)."""
    return torch.from_numpy(spikes.batch().astype(np.float32))


def _update(
    model: Model,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    spikes: torch.Tensor,
    labels: torch.Tensor,
    draw: Draw | None,
) -> float:
    model.train()
    spikes, labels = spikes.to(model.device), labels.to(model.device)
    loss = objective(model(spikes, objective.populations, draw), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _evaluate(
    model: Model, experiment: Experiment, samples: Samples
) -> tuple[float, dict[str, float], str]:
    """Accuracy, rates, and the first state that left the chip's 24 bits."""
    model.train(False)
    given, n = spikes_of(samples, experiment.data), len(samples)
    right, overflow = 0, ""
    rates = dict.fromkeys(model.network.populations, 0.0)
    with torch.no_grad():
        for chosen in batches(model.network, given):
            spikes, reached = model.watched(_raster(given.select(chosen)).to(model.device))
            overflow = overflow or out_of_range(reached)
            found = decide(spikes[model.network.outputs[0]], experiment.network.readout)
            labels = torch.from_numpy(samples.labels[chosen])
            right += int((found.cpu() == labels).sum())
            for name, train in spikes.items():
                rates[name] += float(train.mean()) * len(labels) / n
    return right / n, rates, overflow


def _activity_warnings(rates: dict[str, float]) -> Iterator[str]:
    for name, rate in rates.items():
        if rate == 0:
            yield f"{name}: silent, no spike in the validation set; lower its threshold"
        elif rate > SATURATED_RATE:
            yield f"{name}: saturated, {rate:.2f} spikes per neuron and step; raise its threshold"


def _optimizer(model: Model, experiment: Experiment, state: TrainingState) -> torch.optim.Optimizer:
    settings, parameters = experiment.train.optimizer, model.parameters_by_name()
    optimizer = make_optimizer(settings, parameters)
    moments = state.first_moment, state.second_moment
    load_moments(optimizer, settings, parameters, moments, state.updates)
    return optimizer


def _remember(
    state: TrainingState, model: Model, optimizer: torch.optim.Optimizer, experiment: Experiment
) -> None:
    parameters = model.parameters_by_name()
    state.weights = {name: _array(p) for name, p in parameters.items()}
    state.means = model.means()
    settings, moments = experiment.train.optimizer, (state.first_moment, state.second_moment)
    save_moments(optimizer, settings, parameters, moments)


def stochastic_spikes(
    experiment: Experiment, network: Network, chip: ChipSpec, samples: Samples, trial: int = 0
) -> torch.Tensor:
    """Output spikes of a trained network with the noise of training.

    Shape (samples, neurons, steps). A trial has the same noise whenever it is repeated, another
    trial has another.

    Raises:
        ConfigError: the experiment has no noise.
    """
    train = experiment.train
    if train.noise is None:
        raise ConfigError("train.noise: found none, allowed an escape function to draw spikes from")
    model = make_model(network, chip, experiment.surrogate, train.engine, train.noise)
    model.train(False)
    given = spikes_of(samples, experiment.data)
    parts: list[torch.Tensor] = []
    with reproducible(), torch.no_grad():
        for chosen in batches(network, given):
            draw = Draw.of_trial(experiment.seed, trial, chosen)
            spikes = model(_raster(given.select(chosen)), network.outputs, draw)
            parts.append(spikes[network.outputs[0]])
    return torch.cat(parts)


def stochastic_accuracy(
    experiment: Experiment, network: Network, chip: ChipSpec, samples: Samples
) -> float:
    """Accuracy (a fraction) with the noise of training, of one trial."""
    spikes = stochastic_spikes(experiment, network, chip, samples)
    found = decide(spikes, experiment.network.readout).numpy()
    return float((found == samples.labels).mean())
