"""Optimizers and schedules: torch's own, and their state through a checkpoint."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from nmtool.config import Optimizer

torch = pytest.importorskip("torch")

SETTINGS = {
    "adam": {"name": "adam", "weight_decay": 0.01},
    "adamw": {"name": "adamw", "betas": [0.8, 0.9]},
    "adamax": {"name": "adamax", "betas": [0.0, 0.95]},
    "sgd": {"name": "sgd"},
    "sgd, momentum": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "rmsprop": {"name": "rmsprop"},
    "rmsprop, momentum": {"name": "rmsprop", "momentum": 0.5, "alpha": 0.9},
}
REFERENCE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9)),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1, betas=(0.0, 0.95)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "rmsprop, momentum": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, alpha=0.9),
}


def settings(**values):
    return TypeAdapter(Optimizer).validate_python({"lr": 0.1, **values})


def step(optimizer, parameter):
    optimizer.zero_grad()
    ((parameter - 3) ** 2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("case", [*SETTINGS])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_optimizer_is_torchs_and_continues_where_it_was_left(case, stop):
    from nmtool.training.optimizers import load_moments, make_optimizer, save_moments

    chosen = settings(**SETTINGS[case])
    whole = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
    reference = REFERENCE[case]([whole])
    for _ in range(6):
        step(reference, whole)
    moments = {"w": np.zeros((1, 3), np.float32)}, {"w": np.zeros((1, 3), np.float32)}
    value = torch.tensor([[1.0, -2.0, 0.5]])
    for begin, end in ((0, stop), (stop, 6)):
        parameter = torch.nn.Parameter(value.clone())
        optimizer = make_optimizer(chosen, {"w": parameter})
        load_moments(optimizer, chosen, {"w": parameter}, moments, begin)
        for _ in range(begin, end):
            step(optimizer, parameter)
        save_moments(optimizer, chosen, {"w": parameter}, moments)
        value = parameter.detach()
    np.testing.assert_array_equal(value.numpy(), whole.detach().numpy())


def rates(schedule, accuracies, resume=None):
    """The learning rate of every update, two an epoch; ``resume`` at that epoch begins anew."""
    from nmtool.training.optimizers import Schedule, make_optimizer

    chosen = settings(name="sgd", schedule=schedule)
    total = 2 * len(accuracies)

    def fresh():
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = make_optimizer(chosen, {"w": parameter})
        return parameter, optimizer, Schedule.make(chosen.schedule, optimizer, total)

    parameter, optimizer, running = fresh()
    found = []
    for epoch, accuracy in enumerate(accuracies):
        if epoch == resume:
            parameter, optimizer, running = fresh()
            running.replay(2 * epoch, accuracies[:epoch])
        for _ in range(2):
            found.append(optimizer.param_groups[0]["lr"])
            step(optimizer, parameter)
            running.after_update()
        running.after_epoch(accuracy)
    return np.array(found)


RISING, FLAT = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.4, 0.5, 0.4, 0.3, 0.5]
SCHEDULES = {
    "constant": ("constant", lambda k: 1.0),
    "cosine": ("cosine", lambda k: 0.5 * (1 + math.cos(math.pi * k / 12))),
    "step": ({"kind": "step", "every": 2, "factor": 0.5}, lambda k: 0.5 ** (k // 2 // 2)),
    "exponential": ({"kind": "exponential", "factor": 0.9}, lambda k: 0.9 ** (k // 2)),
    "plateau": (
        {"kind": "plateau", "factor": 0.5, "patience": 1},
        lambda k: [1, 1, 1, 0.5, 0.5, 0.25][k // 2],
    ),
}


@pytest.mark.parametrize("case", [*SCHEDULES])
def test_schedules(case):
    schedule, factor = SCHEDULES[case]
    expected = [0.1 * factor(k) for k in range(12)]
    np.testing.assert_allclose(rates(schedule, FLAT), expected, rtol=1e-12)
    for epoch in (1, 3, 5):
        np.testing.assert_array_equal(rates(schedule, FLAT, epoch), rates(schedule, FLAT))
    if case == "plateau":
        np.testing.assert_array_equal(rates(schedule, RISING), [0.1] * 12)


@pytest.mark.parametrize("name", ["adamax", "sgd", "rmsprop"])
def test_a_training_with_another_optimizer_continues_with_the_same_bits(
    experiment, untrained, chip, small_sets, tmp_path, name
):
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint
    from nmtool.training.trainer import train

    optimizer = {"name": name, "lr": 1e-3, "schedule": {"kind": "exponential", "factor": 0.5}}
    if name != "adamax":
        optimizer["momentum"] = 0.9
    config = experiment(train={"epochs": 2, "optimizer": optimizer})

    def save(state):
        save_checkpoint(tmp_path / f"{len(state.history)}.h5", state, "key")

    whole, _ = train(config, untrained(config), chip, on_epoch=save)
    state = load_checkpoint(tmp_path / "1.h5", "key")
    again, _ = train(config, untrained(config), chip, state)
    before = untrained(config)
    for key, projection in whole.projections.items():
        np.testing.assert_array_equal(projection.weight, again.projections[key].weight)
        assert (projection.weight != before.projections[key].weight).any()
