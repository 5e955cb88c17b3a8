"""Networks as lava-dl SLAYER blocks whose forward pass is the chip's integer arithmetic.

Weights are rounded to the chip's synapse format in every forward pass (straight through in the
backward pass), neurons run with the decays and thresholds that the registers will hold, and a
spike takes one step plus its delay. So the trained spikes are the deployed spikes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from nmtool.backends.base import Progress, Recording
from nmtool.backends.lava.compat import prepare_slayer
from nmtool.chip import ChipSpec
from nmtool.config import Surrogate
from nmtool.errors import FitError, UnsupportedError
from nmtool.fixedpoint import STATE_LIMIT
from nmtool.network import Network, Projection, beyond_dense_cuba
from nmtool.quantization import (
    STATE_SCALE,
    choose_format,
    dequantize_weights,
    quantize,
    quantize_weights,
    quantized_neuron_value,
)
from nmtool.spikes import SpikeTrain

RECORD_BATCH = 64


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """One thread and deterministic kernels: the same bits whatever the machine's cores do.

    Networks of this size gain nothing from a second thread, and lose much when cores are busy.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_flush_denormal(False)


class _Bias(torch.nn.Module):
    """Adds the population's bias to the current that the voltage sees."""

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias.reshape(1, -1, 1))

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        return current + self.bias.reshape(1, -1, *[1] * (current.ndim - 2))


class SlayerNetwork(torch.nn.Module):
    """A Network as one CUBA block a population, in data-flow order.

    Args:
        network: every population is fed by one projection from an input or an earlier population.
        chip: its formats are those that the forward pass rounds to.
        surrogate: SLAYER's surrogate derivative.

    Raises:
        UnsupportedError: recurrent or converging projections, or more than CUBA neurons, dense
            weights and one delay a projection.
        FitError: a parameter that the chip cannot hold.
        DependencyError: lava-dl or torch is missing.
    """

    def __init__(self, network: Network, chip: ChipSpec, surrogate: Surrogate) -> None:
        super().__init__()
        prepare_slayer()
        from lava.lib.dl import slayer

        self._shift: Callable[[torch.Tensor, int], torch.Tensor] = slayer.axon.delay
        self._chip = chip
        self.network = network
        self.feed = _chain(network)
        quantized = quantize(network, chip)
        self.blocks = torch.nn.ModuleDict()
        for name, projection_name in self.feed.items():
            population = network.populations[name]
            registers = quantized.populations[name]
            neuron = quantized_neuron_value(
                registers.decay_u, registers.decay_v, registers.threshold
            )
            weight = network.projections[projection_name].weight
            block = slayer.block.cuba.Dense(
                {
                    "threshold": neuron.threshold,
                    "current_decay": neuron.current_decay,
                    "voltage_decay": neuron.voltage_decay,
                    "tau_grad": surrogate.tau_grad,
                    "scale_grad": surrogate.scale_grad,
                },
                weight.shape[1],
                weight.shape[0],
                pre_hook_fx=partial(self._round, projection_name),
                delay_shift=False,
            )
            block.synapse.pre_hook_fx = partial(self._round, projection_name)
            if population.bias is not None:
                bias = quantized.populations[name].bias / STATE_SCALE
                block.neuron.norm = _Bias(torch.tensor(bias, dtype=torch.float32))
            self.blocks[name] = block
        self.load({name: p.weight for name, p in network.projections.items()})

    def _round(self, projection: str, weight: torch.Tensor) -> torch.Tensor:
        """Real weights rounded to the chip's format, with the gradient of the identity."""
        real = weight.detach().numpy().reshape(weight.shape[:2])
        format = choose_format(projection, real, self.network.weight_bits, self._chip)
        rounded = dequantize_weights(quantize_weights(real, format), format).astype(np.float32)
        return weight + (torch.from_numpy(rounded).reshape(weight.shape) - weight).detach()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Spikes of every population, shape (samples, neurons, steps), from input spikes."""
        return {name: states[0] for name, states in self.states(x).items()}

    def states(self, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(spikes, current, voltage before the reset) of every population, step by step."""
        sent = dict.fromkeys(self.network.inputs, x)
        result: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for name, projection_name in self.feed.items():
            projection = self.network.projections[projection_name]
            block = self.blocks[name]
            source = self.network.populations.get(projection.source)
            axonal = int(source.axonal_delay) if source else 0
            delay = 1 + int(projection.delay) + axonal
            arriving = self._shift(sent[projection.source], delay)
            current, voltage = block.neuron.dynamics(block.synapse(arriving))
            sent[name] = block.neuron.spike(voltage)
            result[name] = (sent[name], current, voltage)
        return result

    def load(self, weights: dict[str, Any]) -> None:
        """Take over real weights by projection, shape (target, source)."""
        with torch.no_grad():
            for name, projection in self.feed.items():
                parameter = self.blocks[name].synapse.weight
                value = torch.as_tensor(np.asarray(weights[projection], dtype=np.float32))
                parameter.copy_(value.reshape(parameter.shape))

    def weights(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """The real weights by projection, shape (target, source), before rounding."""
        return {
            projection: self.blocks[name]
            .synapse.weight.detach()
            .numpy()
            .reshape(self.network.projections[projection].weight.shape)
            .copy()
            for name, projection in self.feed.items()
        }


def _chain(network: Network) -> dict[str, str]:
    """The projection that feeds each population, in data-flow order."""
    feed: dict[str, str] = {}
    for problem in beyond_dense_cuba(network.inputs, network.populations, network.projections):
        raise UnsupportedError(f"{problem} in SLAYER training")
    for name, projection in network.projections.items():
        if projection.target in feed:
            raise UnsupportedError(
                f"projection {name}: found a second projection into {projection.target}, SLAYER "
                "training allows one for each population"
            )
        feed[projection.target] = name
    for name in network.populations:
        if name not in feed:
            raise UnsupportedError(
                f"population {name}: found no projection into it, SLAYER training allows one for "
                "each population"
            )
    if len(network.inputs) != 1:
        raise UnsupportedError(
            f"network: found {len(network.inputs)} inputs, SLAYER training allows 1"
        )
    return _ordered(network, feed)


def _ordered(network: Network, feed: dict[str, str]) -> dict[str, str]:
    reached, ordered = set(network.inputs), dict[str, str]()
    while len(ordered) < len(feed):
        ready = [
            target
            for target, projection in feed.items()
            if target not in ordered and network.projections[projection].source in reached
        ]
        if not ready:
            raise UnsupportedError(
                f"network: found a loop among {sorted(set(feed) - set(ordered))}, SLAYER training "
                "allows feed-forward networks"
            )
        ordered.update({target: feed[target] for target in ready})
        reached.update(ready)
    return ordered


def with_weights(network: Network, weights: dict[str, Any]) -> Network:
    """The same network with other real weights by projection."""
    from dataclasses import replace

    projections: dict[str, Projection] = {
        name: p.with_weight(weights[name]) for name, p in network.projections.items()
    }
    return replace(network, projections=projections)


def record(
    network: Network,
    chip: ChipSpec,
    spikes: SpikeTrain,
    progress: Progress = lambda done, total: None,
) -> Recording:
    """The trainer's integer forward pass as a Recording: spikes, u and v of every population.

    ``progress`` is called with (samples done, samples in all).

    Raises:
        FitError: a state left the chip's 24 bits, where SLAYER (which has no such register) and
            the chip part.
    """
    model = SlayerNetwork(network, chip, Surrogate()).eval()
    raster = torch.from_numpy(spikes.batch().astype(np.float32))
    parts: dict[str, list[_States]] = {name: [] for name in model.feed}
    with reproducible(), torch.no_grad():
        for start in range(0, len(raster), RECORD_BATCH):
            batch = raster[start : start + RECORD_BATCH]
            for name, states in model.states(batch).items():
                _check_range(name, states[1], states[2])
                parts[name].append(_chip_units(model, name, states))
            progress(start + len(batch), len(raster))
    axis = slice(None) if spikes.batched else 0
    fired, current, voltage = (
        {name: np.concatenate([part[k] for part in chunks])[axis] for name, chunks in parts.items()}
        for k in range(3)
    )
    trains = {name: SpikeTrain.from_raster(raster) for name, raster in fired.items()}
    return Recording(trains, current, voltage, "trainer", "", spikes.n_steps, 0.0)


_States = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _chip_units(
    model: SlayerNetwork, name: str, states: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> _States:
    """Spikes, and u and v after the reset as the chip's integers."""
    fired, current, voltage = (state.numpy() for state in states)
    if model.network.populations[name].bias is not None:
        current = current - model.blocks[name].neuron.norm.bias.numpy()
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
