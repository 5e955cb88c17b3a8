"""Networks as lava-dl SLAYER blocks whose forward pass is the chip's integer arithmetic.

Weights are rounded to the chip's synapse format in every forward pass (straight through in the
backward pass), neurons run with the decays and thresholds that the registers will hold, and a
spike takes one step plus its delay. So the trained spikes are the deployed spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from nmtool.backends.lava.compat import prepare_slayer
from nmtool.chip import ChipSpec
from nmtool.config import Surrogate
from nmtool.network import Network
from nmtool.quantization import (
    STATE_SCALE,
    choose_format,
    dequantize_weights,
    quantize,
    quantize_weights,
    quantized_neuron_value,
)
from nmtool.training.model import States, feed


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
        self.feed = feed(network)
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

    def states(self, x: torch.Tensor) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, step by step."""
        sent = dict.fromkeys(self.network.inputs, x)
        result: dict[str, States] = {}
        for name, projection_name in self.feed.items():
            projection = self.network.projections[projection_name]
            block = self.blocks[name]
            source = self.network.populations.get(projection.source)
            axonal = int(source.axonal_delay) if source else 0
            delay = 1 + int(projection.delay) + axonal
            arriving = self._shift(sent[projection.source], delay)
            current, voltage = block.neuron.dynamics(block.synapse(arriving))
            sent[name] = block.neuron.spike(voltage)
            if block.neuron.norm is not None:
                current = current - block.neuron.norm.bias
            result[name] = (sent[name], current, voltage)
        return result

    def parameter(self, projection: str) -> torch.nn.Parameter:
        """The real weights of a projection before rounding."""
        (name,) = (n for n, p in self.feed.items() if p == projection)
        return self.blocks[name].synapse.weight

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
