"""What is learned beside the weights: norms, decays, delays, running means; and dropout's masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.chip import ChipSpec
from nmtool.fixedpoint import CURRENT_DECAY_OFFSET, DECAY_ONE
from nmtool.network import CubaLif, Network, Population
from nmtool.quantization import WEIGHT_SCALE, QuantizedPopulation, quantize_population
from nmtool.training.recipe import Recipe, features, has_own_delays, longest_delay

Array: TypeAlias = npt.NDArray[Any]

MOMENTUM = 0.1
"""Of the running mean (lava-dl's MeanOnlyBatchNorm)."""

MEAN_STEP = 2 / WEIGHT_SCALE
MEAN_RANGE = (-256 / WEIGHT_SCALE, 254 / WEIGHT_SCALE)
"""A mean is rounded as lava-dl's neuron rounds what is given to it: 8 bits in steps of two."""

FIRST_DELAY = 0.5
"""Added to the delay that a network begins with: the middle of its step."""


class Learned(torch.nn.Module):
    """Parameters and running means that a recipe adds to a network.

    Parameters are called ``PROJECTION:gain`` and ``POPULATION:current_decay`` (``voltage_decay``,
    ``delay``). A decay is the fraction lost per step, shape (1,); a delay is in steps, one for each
    neuron, for populations (x, y, channel) one for each channel. Both are rounded in the forward
    pass (delays down), with the gradient of the identity, and kept within the chip's registers.

    Raises:
        FitError: a delay that the chip cannot hold.
    """

    def __init__(
        self, network: Network, weighted: Sequence[str], chip: ChipSpec, recipe: Recipe
    ) -> None:
        super().__init__()
        self.network, self.recipe, self._chip = network, recipe, chip
        self.generator = torch.Generator()
        first = _first_values(network, weighted, recipe)
        self.names = tuple(first)
        self._values = torch.nn.ParameterList(
            torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in first.values()
        )
        self.normalized = tuple(n for n in network.populations if recipe.of(n).batch_norm)
        for k, name in enumerate(self.normalized):
            self.register_buffer(f"mean_{k}", torch.zeros(features(network.populations[name])))
        self._longest = {
            name: longest_delay(network, recipe, name, chip)
            for name in network.populations
            if "delay" in recipe.of(name).learn
        }

    @property
    def values(self) -> dict[str, torch.nn.Parameter]:
        """The parameters by name."""
        return dict(zip(self.names, self._values, strict=True))

    @property
    def dynamic(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of neurons and axons."""
        return {name: p for name, p in self.values.items() if not name.endswith(":gain")}

    def mean(self, population: str) -> torch.Tensor:
        """The running mean of the current, one number for each feature."""
        mean: torch.Tensor = getattr(self, f"mean_{self.normalized.index(population)}")
        return mean

    def means(self) -> dict[str, Array]:
        """The running means by population."""
        return {n: self.mean(n).cpu().numpy().astype(np.float32) for n in self.normalized}

    def load(self, values: Mapping[str, Any], means: Mapping[str, Any]) -> None:
        """Take over parameters and running means by name."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(torch.as_tensor(np.asarray(values[name], dtype=np.float32)))
            for name in self.normalized:
                self.mean(name).copy_(torch.as_tensor(np.asarray(means[name], dtype=np.float32)))

    def weight(self, projection: str, direction: torch.Tensor) -> torch.Tensor:
        r"""The weights of a projection: :math:`w = g\, v / \lVert v \rVert`, a norm per output.

        ``direction`` is v, and w itself without weight normalisation. Source: Salimans and Kingma,
        2016; torch's ``weight_norm`` over all axes but the first.
        """
        if (name := f"{projection}:gain") not in self.names:
            return direction
        norm = direction.flatten(1).norm(dim=1)
        factor = self.values[name] / norm
        return direction * factor.reshape(-1, *(1 for _ in direction.shape[1:]))

    def clamp(self) -> None:
        """Bring decays and delays back into what the chip's registers hold."""
        last = self._chip.decay_max
        with torch.no_grad():
            for name, value in self.dynamic.items():
                population, _, key = name.rpartition(":")
                if key == "delay":
                    value.clamp_(0, self._longest[population])
                else:
                    first = CURRENT_DECAY_OFFSET if key == "current_decay" else 0
                    value.clamp_(first / DECAY_ONE, (last + first) / DECAY_ONE)

    def masks(self, samples: int) -> dict[str, torch.Tensor]:
        """Dropout's masks (samples, neurons) by population: 0, or 1 / (1 - p); none in evaluation.

        They are drawn on the CPU, the same whatever the device.
        One draw for a neuron and sample, which holds for all steps. Source: lava-dl's
        ``neuron.Dropout``.
        """
        if not self.training:
            return {}
        sizes = {n: self.network.sizes[n] for n in self.network.populations if self.scale(n) != 1}
        return {
            name: torch.empty(samples, size, dtype=torch.float64).bernoulli_(
                1 - self.recipe.of(name).dropout, generator=self.generator
            )
            * self.scale(name)
            for name, size in sizes.items()
        }

    def scale(self, source: str) -> float:
        """What the spikes of a source that are not dropped are multiplied by."""
        return 1 / (1 - self.recipe.of(source).dropout) if self.training else 1.0

    def delay(self, population: str) -> Array | None:
        """The axonal delay of every neuron in whole steps; None: not one for each neuron."""
        if not has_own_delays(self.network, self.recipe, population):
            return None
        if (real := self.values.get(f"{population}:delay")) is None:
            return np.asarray(self.network.populations[population].axonal_delay, dtype=np.int64)
        steps = torch.floor(real.detach()).cpu().numpy().astype(np.int64)
        return np.tile(steps, self.network.sizes[population] // len(steps))

    def population(self, name: str, mean: Array | None = None) -> Population:
        """A population as it is now: learned decays and delays, and the mean in its bias.

        ``mean`` is the rounded mean of a batch, the running one unless given.
        """
        population = self.network.populations[name]
        neuron = population.neuron
        assert isinstance(neuron, CubaLif)
        learned = {
            key: self.values[f"{name}:{key}"].item()
            for key in self.recipe.of(name).learn
            if key != "delay"
        }
        delay = self.delay(name)
        return replace(
            population,
            neuron=replace(neuron, **learned),
            bias=self._bias(name, mean),
            axonal_delay=population.axonal_delay if delay is None else delay,
        )

    def _bias(self, name: str, mean: Array | None) -> Array | None:
        population = self.network.populations[name]
        if name not in self.normalized:
            return population.bias
        if mean is None:
            mean = rounded_mean(self.mean(name).double().cpu().numpy())
        bias = np.zeros(population.size) if population.bias is None else population.bias
        return np.asarray(bias - np.tile(mean, population.size // len(mean)))

    def quantized(self, name: str, mean: Array | None = None) -> QuantizedPopulation:
        """``population`` in the chip's integers.

        Raises:
            FitError: a bias that the chip cannot hold.
        """
        return quantize_population(name, self.population(name, mean), self._chip)

    def observe(self, name: str, mean: Array) -> None:
        """Move the running mean towards that of a batch."""
        running = self.mean(name)
        with torch.no_grad():
            running.mul_(1 - MOMENTUM).add_(MOMENTUM * torch.from_numpy(mean).to(running))


def rounded_mean(mean: Array) -> Array:
    """A mean as it goes into the bias."""
    return np.asarray(np.clip(np.rint(mean / MEAN_STEP) * MEAN_STEP, *MEAN_RANGE))


def mean_is_free(mean: Array) -> Array:
    """Where a mean is within the range, so that it has a gradient."""
    steps = np.rint(mean / MEAN_STEP) * MEAN_STEP
    return np.asarray((steps >= MEAN_RANGE[0]) & (steps <= MEAN_RANGE[1]))


def _first_values(
    network: Network, weighted: Sequence[str], recipe: Recipe
) -> dict[str, npt.ArrayLike]:
    values: dict[str, npt.ArrayLike] = {}
    for name in weighted if recipe.weight_norm else ():
        weight = np.asarray(network.projections[name].weight, dtype=np.float32)
        values[f"{name}:gain"] = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    for name, population in network.populations.items():
        for key in recipe.of(name).learn:
            if key == "delay":
                steps = np.broadcast_to(population.axonal_delay, population.size)
                values[f"{name}:delay"] = steps[: features(population)] + FIRST_DELAY
            else:
                values[f"{name}:{key}"] = [getattr(population.neuron, key)]
    return values
