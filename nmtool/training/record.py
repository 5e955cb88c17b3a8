"""The trainer's forward pass as a recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from nmtool.backends.base import Progress, Recording
from nmtool.chip import ChipSpec
from nmtool.config import Engine, Readout, StraightThroughSurrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import STATE_LIMIT, IntArray
from nmtool.network import Network
from nmtool.quantization import STATE_SCALE
from nmtool.spikes import SpikeTrain
from nmtool.training.losses import decide
from nmtool.training.model import Reach, States, make_model, reach, reproducible

BATCH = 256
"""The most samples of one forward pass without gradients."""
RASTER = 1 << 27
"""The most entries of the rasters of all lines and neurons of one, each a few bytes."""


def batches(network: Network, spikes: SpikeTrain) -> Iterator[IntArray]:
    """The samples of each forward pass: as many as are held in memory at a time."""
    of_one = sum(network.sizes.values()) * max(1, spikes.n_steps)
    size = max(1, min(BATCH, RASTER // of_one))
    for start in range(0, spikes.n_samples, size):
        yield np.arange(start, min(start + size, spikes.n_samples))


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
    kept = {
        name: _room(spikes.n_samples, network.sizes[name], spikes.n_steps)
        for name in network.populations
    }
    begin = 0
    with reproducible(), torch.no_grad():
        for done, states in _forward(network, chip, spikes, engine):
            for name, found in states.items():
                for whole, part in zip(kept[name], _chip_units(found), strict=True):
                    whole[begin:done] = part
            begin = done
            progress(done, spikes.n_samples)
    axis = slice(None) if spikes.batched else 0
    trains = {name: SpikeTrain.from_raster(fired[axis]) for name, (fired, _, _) in kept.items()}
    current = {name: u[axis] for name, (_, u, _) in kept.items()}
    voltage = {name: v[axis] for name, (_, _, v) in kept.items()}
    return Recording(trains, current, voltage, "trainer", "", spikes.n_steps, 0.0)


def decisions(
    network: Network,
    chip: ChipSpec,
    spikes: SpikeTrain,
    readout: Readout,
    engine: Engine = "event",
) -> IntArray:
    """The class of each sample, shape (samples,), by the trainer's integer forward pass.

    States are held for one batch at a time, so a data set may be larger than the memory.

    Raises:
        FitError: as ``record``.
    """
    output = network.outputs[0]
    with reproducible(), torch.no_grad():
        return np.concatenate(
            [
                decide(states[output][0], readout).numpy()
                for _, states in _forward(network, chip, spikes, engine)
            ]
        )


def _forward(
    network: Network, chip: ChipSpec, spikes: SpikeTrain, engine: Engine
) -> Iterator[tuple[int, dict[str, States]]]:
    """Samples done and the states of every population, batch by batch."""
    model = make_model(network, chip, StraightThroughSurrogate(kind="straight_through"), engine)
    model.train(False)
    for chosen in batches(network, spikes):
        raster = torch.from_numpy(spikes.select(chosen).to_raster().astype(np.float32))
        states = model.states(raster)
        if text := out_of_range(reach(states)):
            raise FitError(text)
        yield int(chosen[-1]) + 1, states


_Arrays: TypeAlias = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _room(*size: int) -> _Arrays:
    """Room for spikes, u and v of a population."""
    return np.empty(size, np.bool_), np.empty(size, np.int64), np.empty(size, np.int64)


def _chip_units(states: States) -> _Arrays:
    """Spikes, and u and v after the reset as the chip's integers."""
    fired, current, voltage = (state.numpy() for state in states)
    spikes = fired > 0
    u = (current.astype(np.float64) * STATE_SCALE).astype(np.int64)
    v = (voltage.astype(np.float64) * STATE_SCALE).astype(np.int64)
    return spikes, u, np.where(spikes, 0, v)


def out_of_range(reached: Mapping[str, Reach]) -> str:
    """The first state that left the chip's 24 bits, and how far; empty if none did."""
    for name, both in reached.items():
        for what, most in zip(("current", "voltage"), both, strict=True):
            if not most < STATE_LIMIT:  # nor is it a number that can be held against the limit
                return (
                    f"{name}.{what}: the trainer's forward reached {most:.0f}, allowed below "
                    f"{STATE_LIMIT}: the chip's 24 bits overflow where SLAYER's numbers do not; "
                    "train with smaller weights or a faster decay"
                )
    return ""
