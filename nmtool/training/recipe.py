"""What a training adds to a network: dropout, normalisation, and parameters beside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.config import Experiment, LearnedParameter, Loss, Regularizer
from nmtool.errors import ConfigError, FitError, UnsupportedError
from nmtool.network import Network, Population
from nmtool.operations import Conv, Dense, weighted


@dataclass(frozen=True)
class PopulationRecipe:
    """How one population is trained.

    Attributes:
        dropout: the probability that a neuron is silent for a whole sample, 0 to below 1.
        batch_norm: whether the batch's mean current is taken off (mean-only batch normalisation).
        learn: which of its parameters are learned.
        max_delay: the longest delay in steps that is learned; None: what the chip holds.
    """

    dropout: float = 0.0
    batch_norm: bool = False
    learn: tuple[LearnedParameter, ...] = ()
    max_delay: int | None = None

    @property
    def apart(self) -> bool:
        """Whether its current is looked at before it becomes a voltage."""
        return self.batch_norm or "current_decay" in self.learn or "voltage_decay" in self.learn


PLAIN = PopulationRecipe()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: every population, and whether the norms of weights are learned."""

    weight_norm: bool = False
    populations: Mapping[str, PopulationRecipe] = field(default_factory=dict)

    def of(self, population: str) -> PopulationRecipe:
        """That of a population."""
        return self.populations.get(population, PLAIN)


WEIGHTS_ONLY = Recipe()
"""Nothing beside the weights is trained."""


def recipe_of(experiment: Experiment) -> Recipe:
    """The recipe of an experiment's layers."""
    populations = {
        str(layer.name): PopulationRecipe(
            layer.dropout, layer.batch_norm, tuple(layer.learn), layer.max_delay
        )
        for layer in experiment.network.layers or []
        if layer.has_neurons
    }
    return Recipe(experiment.train.weight_norm, populations)


def features(population: Population) -> int:
    """How many means and delays a population has: its channels, or its neurons."""
    return population.shape[-1] if len(population.shape) == 3 else population.size


def without_own_delays(network: Network, recipe: Recipe) -> Network:
    """The network with no axonal delay where every neuron has its own, or learns it."""
    populations = {
        name: replace(p, axonal_delay=0) if has_own_delays(network, recipe, name) else p
        for name, p in network.populations.items()
    }
    return replace(network, populations=populations)


def has_own_delays(network: Network, recipe: Recipe, population: str) -> bool:
    """Whether the neurons of a population have axonal delays of their own."""
    fixed = np.ndim(network.populations[population].axonal_delay) > 0
    return fixed or "delay" in recipe.of(population).learn


def longest_delay(network: Network, recipe: Recipe, population: str, chip: ChipSpec) -> int:
    """The longest axonal delay in steps that a population can learn.

    Raises:
        FitError: the recipe allows more than the chip holds, or less than the network has.
    """
    after = [p.delay for p in network.projections.values() if p.source == population]
    most = chip.delay_max - max((int(np.max(delay, initial=0)) for delay in after), default=0)
    wanted = recipe.of(population).max_delay
    if wanted is not None and wanted > most:
        raise FitError(
            f"{population}.max_delay: found {wanted} steps, allowed up to {most} (the chip's "
            f"{chip.delay_max} less the delay of the projections from it); lower max_delay"
        )
    longest = most if wanted is None else wanted
    has = int(np.max(network.populations[population].axonal_delay, initial=0))
    if has > longest:
        raise FitError(
            f"{population}.axonal_delay: found {has} steps, allowed up to {longest}, the longest "
            "that is learned; raise max_delay or lower the axonal delay"
        )
    return longest


def check_recipe(network: Network, recipe: Recipe, loops: Iterable[str]) -> None:
    """That a recipe can be carried out; ``loops`` are the populations whose spikes come back.

    Raises:
        UnsupportedError: names the population or projection, what was found and what is allowed.
    """
    for name in recipe.populations:
        if name not in network.populations:
            raise UnsupportedError(
                f"recipe: found the population {name!r}, allowed {', '.join(network.populations)}"
            )
    for name in loops:
        _check_loop(network, recipe, name)
    sources = {p.source for p in network.projections.values()}
    for name in network.populations:
        if "delay" in recipe.of(name).learn and name not in sources:
            raise UnsupportedError(
                f"population {name}: found a learned delay, allowed where its spikes reach another "
                "population; remove delay from its learn"
            )
        if "delay" in recipe.of(name).learn:
            _check_channels(name, network.populations[name])
    if recipe.weight_norm:
        _check_norms(network)


def check_loss(network: Network, recipe: Recipe, loss: Loss) -> None:
    """That a loss can take the output spikes, which dropout makes larger than 1.

    Raises:
        UnsupportedError: the loss is one of first spikes, and the output has dropout.
    """
    output = network.outputs[0]
    dropout = recipe.of(output).dropout
    if dropout and loss.kind == "first_spike":
        raise UnsupportedError(
            f"population {output}: found dropout {dropout} at the output with train.loss "
            "first_spike, allowed in populations before it (a latency is that of spikes of 1, "
            "dropout makes them larger); set its dropout to 0, or use another loss"
        )


def check_regularizers(network: Network, regularizers: Sequence[Regularizer], section: str) -> None:
    """That the populations of all regularisers of a section of an experiment are there.

    Raises:
        ConfigError: one is not.
    """
    for index, regularizer in enumerate(regularizers):
        check_regularizer(network, regularizer, f"{section}.regularizers.{index}")


def check_regularizer(network: Network, regularizer: Regularizer, key: str) -> None:
    """That the populations of a regulariser are there.

    Raises:
        ConfigError: one is not.
    """
    for name in regularizer.populations or ():
        if name not in network.populations:
            raise ConfigError(
                f"{key}.populations: found {name!r}, allowed {', '.join(network.populations)}"
            )


def _check_loop(network: Network, recipe: Recipe, name: str) -> None:
    own = recipe.of(name)
    found = ["dropout"] if own.dropout else []
    found += ["batch_norm"] if own.batch_norm else []
    found += [f"learn {key}" for key in own.learn]
    if np.ndim(network.populations[name].axonal_delay):
        found.append("an axonal delay for each neuron")
    if found:
        raise UnsupportedError(
            f"population {name}: found {' and '.join(found)} in a loop, allowed outside of loops: "
            "lava-dl runs a loop step by step, where a mean or a mask would be that of one step "
            "and decays and delays have no gradient"
        )


def _check_channels(name: str, population: Population) -> None:
    steps = np.broadcast_to(population.axonal_delay, population.size)
    if (steps.reshape(-1, features(population)) != steps[: features(population)]).any():
        raise UnsupportedError(
            f"population {name}: found axonal delays that differ within a channel, allowed one for "
            "each channel where they are learned"
        )


def _check_norms(network: Network) -> None:
    from nmtool.training.model import trained

    for name in trained(network):
        operation = weighted(network.projections[name].operations)
        if not isinstance(operation, Dense | Conv):
            raise UnsupportedError(
                f"projection {name}: found {type(operation).__name__} weights with weight_norm, "
                "allowed dense and convolutional weights; train without weight_norm"
            )
        norms = np.linalg.norm(operation.weight.reshape(len(operation.weight), -1), axis=1)
        if not norms.all():
            raise UnsupportedError(
                f"projection {name}: found weights of output {int(np.argmin(norms))} that are all "
                "0 with weight_norm, allowed outputs with a weight that is not 0"
            )
