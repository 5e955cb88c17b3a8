"""The trainer's forward pass as a recording."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

from nmtool.backends.base import Progress, Recording
from nmtool.chip import ChipSpec
from nmtool.config import Engine, StraightThroughSurrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import STATE_LIMIT
from nmtool.network import Network
from nmtool.quantization import STATE_SCALE
from nmtool.spikes import SpikeTrain
from nmtool.training.model import States, make_model, reproducible

RECORD_BATCH = 64


def record(
    network: Network,
    chip: ChipSpec,
    spikes: SpikeTrain,
    progress: Progress = lambda done, total: None,
    engine: Engine = "event",
) -> Recording:
    """The trainer's integer forward pass as a Recording: spikes, u and v of every population.

    ``progress`` is called with (samples done, samples in all).

    Raises:
        FitError: a state left the chip's 24 bits, where SLAYER (which has no such register) and
            the chip part.
    """
    model = make_model(network, chip, StraightThroughSurrogate(kind="straight_through"), engine)
    model.train(False)
    raster = torch.from_numpy(spikes.batch().astype(np.float32))
    parts: dict[str, list[_Arrays]] = {name: [] for name in network.populations}
    with reproducible(), torch.no_grad():
        for start in range(0, len(raster), RECORD_BATCH):
            batch = raster[start : start + RECORD_BATCH]
            for name, states in model.states(batch).items():
                _check_range(name, states[1], states[2])
                parts[name].append(_chip_units(states))
            progress(start + len(batch), len(raster))
    axis = slice(None) if spikes.batched else 0
    fired, current, voltage = (
        {name: np.concatenate([part[k] for part in chunks])[axis] for name, chunks in parts.items()}
        for k in range(3)
    )
    trains = {name: SpikeTrain.from_raster(raster) for name, raster in fired.items()}
    return Recording(trains, current, voltage, "trainer", "", spikes.n_steps, 0.0)


_Arrays: TypeAlias = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _chip_units(states: States) -> _Arrays:
    """Spikes, and u and v after the reset as the chip's integers."""
    fired, current, voltage = (state.numpy() for state in states)
    spikes = fired > 0
    u = (current.astype(np.float64) * STATE_SCALE).astype(np.int64)
    v = (voltage.astype(np.float64) * STATE_SCALE).astype(np.int64)
    return spikes, u, np.where(spikes, 0, v)


def _check_range(name: str, current: torch.Tensor, voltage: torch.Tensor) -> None:
    limit = STATE_LIMIT / STATE_SCALE
    for what, state in (("current", current), ("voltage", voltage)):
        reached = float(state.abs().max()) if state.numel() else 0.0
        if reached >= limit:
            raise FitError(
                f"{name}.{what}: the trainer's forward reached {reached * STATE_SCALE:.0f}, "
                f"allowed below {STATE_LIMIT}: the chip's 24 bits overflow where SLAYER's numbers "
                "do not; train with smaller weights or a faster decay"
            )
