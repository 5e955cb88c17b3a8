"""The untrained network of an experiment's ``network.layers``."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nmtool.config import MAX_LAYER, MAX_WEIGHTS, LayerConfig, NetworkConfig, NeuronConfig, pair
from nmtool.errors import ConfigError, UnsupportedError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import (
    Chain,
    Conv,
    Dense,
    Flatten,
    Operation,
    Scale,
    Shape,
    SumPool,
    chain_shape,
)


@dataclass
class _Built:
    """What has been made of the layers so far: where the next begins."""

    source: str
    shape: Shape
    chain: Chain = ()
    fan: int = 1
    populations: dict[str, Population] = field(default_factory=dict)
    projections: dict[str, Projection] = field(default_factory=dict)

    @property
    def reached(self) -> Shape:
        """The shape that the next layer's weights see."""
        return chain_shape(self.chain, self.shape)


def from_config(
    config: NetworkConfig,
    shape: Shape,
    n_classes: int,
    seed: int,
    name: str = "network",
) -> Network:
    """The untrained network of ``network.layers``, for an input of the given shape.

    Each layer is fed by the one before. Weights are drawn uniformly from
    +- ``init_gain * threshold / sqrt(fan_in)``, the fan-in counting the lines that are pooled.

    Raises:
        ConfigError: layers that do not fit each other or the input, or a last layer that has not
            ``neurons_per_class`` neurons for every class; the message begins with the key.
        UnsupportedError: an entry function makes the network, not layers.
    """
    if config.layers is None:
        raise UnsupportedError("network: found an entry function, allowed layers")
    rng = np.random.default_rng([seed, 0])
    flat = all(layer.conv is None and layer.pool is None for layer in config.layers)
    shape = (int(np.prod(shape)),) if flat else shape
    built = _Built("input", shape)
    for place, layer in enumerate(config.layers):
        where = f"network.layers.{place}"
        try:
            _add(built, layer, config, rng)
        except ConfigError as error:
            raise ConfigError(f"{where}.{layer.kind}: {error}") from None
        _check_size(built, where, layer)
    _check_last(config, built, n_classes)
    return Network(
        name,
        {"input": Input(shape)},
        built.populations,
        built.projections,
        (built.source,),
        readout=config.readout,
    )


def _add(
    built: _Built, layer: LayerConfig, config: NetworkConfig, rng: np.random.Generator
) -> None:
    """Add a layer: a pool without neurons to the chain of the next one, others as a population."""
    if layer.pool is not None:
        pool = _pool(layer)
        built.fan *= int(np.prod(pool.kernel))
        built.chain = (*built.chain, pool)
        chain_shape(built.chain, built.shape)
        if layer.name is None:
            return
    neuron = _neuron(layer.neuron or config.neuron)
    gain = config.init_gain * neuron.threshold
    chain = (*built.chain, *_weights(built, layer, gain, rng))
    name = str(layer.name)
    shape = chain_shape(chain, built.shape)
    size = int(np.prod(shape))
    bias = None if layer.bias is None else np.full(size, layer.bias)
    built.populations[name] = Population(shape, neuron, bias)
    built.projections[name] = Projection(built.source, name, chain, layer.delay)
    if layer.recurrent is not None:
        weight = _drawn(rng, gain, size, (size, size))
        built.projections[f"{name}.recurrent"] = Projection.dense(name, name, weight)
    built.source, built.shape, built.chain, built.fan = name, shape, (), 1


def _weights(
    built: _Built, layer: LayerConfig, gain: float, rng: np.random.Generator
) -> tuple[Operation, ...]:
    """The operations that end in a layer's weights."""
    shape = built.reached
    if layer.pool is not None:
        return (Scale(np.array([layer.weight or 1.0])),)
    if layer.conv is not None:
        if len(shape) != 3:
            raise ConfigError(f"found a source of shape {shape}, allowed (x, y, channel)")
        if shape[2] % layer.groups or layer.conv % layer.groups:
            raise ConfigError(
                f"found {shape[2]} channels in, {layer.conv} out and {layer.groups} groups, "
                "allowed groups that divide both"
            )
        inside = shape[2] // layer.groups
        weight_shape = (layer.conv, *pair(layer.kernel or 1), inside)
        fan_in = int(np.prod(weight_shape[1:]))
        _check_weights(int(np.prod(weight_shape)))
        conv = Conv(
            _drawn(rng, gain, fan_in * built.fan, weight_shape),
            pair(layer.stride or 1),
            pair(layer.padding),
            pair(layer.dilation),
            layer.groups,
        )
        return (conv,)
    fan_in = int(np.prod(shape))
    _check_weights(layer.size * fan_in)
    weight = _drawn(rng, gain, fan_in * built.fan, (layer.size, fan_in))
    return (Flatten(), Dense(weight)) if len(shape) == 3 else (Dense(weight),)


def _drawn(rng: np.random.Generator, gain: float, fan_in: int, shape: Shape) -> np.ndarray:
    bound = gain / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _pool(layer: LayerConfig) -> SumPool:
    assert layer.pool is not None
    return SumPool(pair(layer.pool), pair(layer.stride or layer.pool), pair(layer.padding))


def _neuron(config: NeuronConfig | None) -> CubaLif:
    assert config is not None
    return CubaLif(config.threshold, config.current_decay, config.voltage_decay)


def _check_weights(count: int) -> None:
    if count > MAX_WEIGHTS:
        raise ConfigError(f"found {count} weights, allowed {MAX_WEIGHTS}")


def _check_size(built: _Built, where: str, layer: LayerConfig) -> None:
    if (size := int(np.prod(built.shape))) > MAX_LAYER:
        raise ConfigError(f"{where}.{layer.kind}: found {size} neurons, allowed {MAX_LAYER}")


def _check_last(config: NetworkConfig, built: _Built, n_classes: int) -> None:
    layers = config.layers or []
    per_class = config.readout.neurons_per_class
    where = f"network.layers.{len(layers) - 1}.{layers[-1].kind}"
    if built.chain:
        raise ConfigError(f"{where}: found pooling without neurons at the end, allowed neurons")
    wanted, found = n_classes * per_class, int(np.prod(built.shape))
    if found != wanted:
        raise ConfigError(
            f"{where}: found {found}, allowed {wanted} ({n_classes} classes x {per_class} "
            "neurons_per_class)"
        )
