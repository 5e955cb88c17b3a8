"""torch's optimizers and learning-rate schedules by name, with a state that can be written down."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import lr_scheduler

from nmtool import config

MOMENTS: dict[str, tuple[str | None, str | None]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adamax": ("exp_avg", "exp_inf"),
    "sgd": ("momentum_buffer", None),
    "rmsprop": ("momentum_buffer", "square_avg"),
}
"""What torch calls an optimizer's state: the moving gradient and the moving size of it."""

COUNTED = ("adam", "adamw", "adamax", "rmsprop")
"""Optimizers that keep the number of updates."""

Tensors = Mapping[str, Any]


def make_optimizer(
    settings: config.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer of torch for named parameters.

    Learned decays and delays are called ``POPULATION:current_decay`` and so on: they have learning
    rates of their own, and no weight decay.
    """
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adamax": torch.optim.Adamax,
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
    }
    values = settings.model_dump(exclude={"name", "schedule", "decay_lr", "delay_lr"})
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(_rates(settings, name), []).append(parameter)
    made: torch.optim.Optimizer = kinds[settings.name](
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        **values,
    )
    return made


def _rates(settings: config.Optimizer, name: str) -> tuple[float, float]:
    """The learning rate and the weight decay of a parameter."""
    _, _, key = name.rpartition(":")
    rates = {
        "current_decay": settings.decay_lr,
        "voltage_decay": settings.decay_lr,
        "delay": settings.delay_lr,
    }
    if key == name or key not in rates:
        return settings.lr, settings.weight_decay
    return rates[key] or settings.lr, 0.0


def _moments(settings: config.Optimizer) -> Iterator[tuple[int, str]]:
    """Place and name of the tensors that an optimizer with these settings keeps."""
    for place, name in enumerate(MOMENTS[settings.name]):
        idle = name == "momentum_buffer" and not getattr(settings, "momentum", 0.0)
        if name is not None and not idle:
            yield place, name


def load_moments(
    optimizer: torch.optim.Optimizer,
    settings: config.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    moments: tuple[Tensors, Tensors],
    updates: int,
) -> None:
    """Go on with the moments by parameter, after so many updates; zeros are a fresh start."""
    for name, parameter in parameters.items():
        state: dict[str, Any] = {
            key: torch.tensor(moments[place][name]).reshape(parameter.shape).to(parameter.device)
            for place, key in _moments(settings)
        }
        if settings.name in COUNTED:
            state["step"] = torch.tensor(float(updates))
        optimizer.state[parameter] = state


def save_moments(
    optimizer: torch.optim.Optimizer,
    settings: config.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    moments: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Write the moments by parameter, in the shapes that ``moments`` already has."""
    for name, parameter in parameters.items():
        for place, key in _moments(settings):
            shape = moments[place][name].shape
            moment = optimizer.state[parameter][key].cpu().numpy()
            moments[place][name] = moment.reshape(shape).copy()


@dataclass
class Schedule:
    """A learning-rate schedule of torch: some change after every update, some after every epoch."""

    by_update: Any = None
    by_epoch: Any = None
    plateau: bool = False

    @classmethod
    def make(
        cls, settings: config.Schedule, optimizer: torch.optim.Optimizer, updates: int
    ) -> Schedule:
        """The schedule of a training of so many ``updates`` in all."""
        if isinstance(settings, config.CosineSchedule):

            def factor(update: int) -> float:
                return 0.5 * (1 + math.cos(math.pi * update / updates))

            return cls(by_update=lr_scheduler.LambdaLR(optimizer, factor))
        if isinstance(settings, config.StepSchedule):
            every, factor_ = settings.every, settings.factor
            return cls(by_epoch=lr_scheduler.StepLR(optimizer, every, factor_))
        if isinstance(settings, config.ExponentialSchedule):
            return cls(by_epoch=lr_scheduler.ExponentialLR(optimizer, settings.factor))
        if isinstance(settings, config.PlateauSchedule):
            made = lr_scheduler.ReduceLROnPlateau(
                optimizer, "max", factor=settings.factor, patience=settings.patience
            )
            return cls(by_epoch=made, plateau=True)
        return cls()

    def after_update(self) -> None:
        """Set the learning rate of the next update."""
        if self.by_update:
            self.by_update.step()

    def after_epoch(self, accuracy: float) -> None:
        """Set the learning rate of the next epoch, from this one's validation accuracy."""
        if self.by_epoch:
            self.by_epoch.step(*([accuracy] if self.plateau else []))

    def replay(self, updates: int, accuracies: list[float]) -> None:
        """Go through what has been trained already: the learning rate is as it was left."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: a schedule before its optimizer's first step
            for _ in range(updates):
                self.after_update()
            for accuracy in accuracies:
                self.after_epoch(accuracy)
