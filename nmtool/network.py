"""Network: populations of neurons and the projections between them, in real numbers.

Numbers are in SLAYER's scale: a weight of 1 is 64 of the chip's weight units, and states, biases
and thresholds of 1 are 64 * 64 units of u and v.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nmtool.config import Check, Data, NetworkConfig, NeuronConfig, Readout
from nmtool.errors import ConfigError, UnsupportedError

RealArray = npt.NDArray[np.floating[Any]]
IntLike = int | npt.NDArray[np.integer[Any]]

_NAME = re.compile(r"(?!\.\.?$)[^/:,\x00-\x1f]+")


@dataclass(frozen=True)
class CubaLif:
    r"""Current-based leaky integrate-and-fire neuron with a hard reset.

    .. math::
        u[t] = (1 - \alpha_u) u[t-1] + x[t], \quad
        v[t] = (1 - \alpha_v) v[t-1] + u[t] + b, \quad
        s[t] = v[t] > \vartheta, \quad v[t] \leftarrow v[t] (1 - s[t])

    ``current_decay`` and ``voltage_decay`` are the fractions lost per step, 0 to 1.
    """

    threshold: float
    current_decay: float
    voltage_decay: float


@dataclass(frozen=True)
class Input:
    """A source of spikes from outside, of the given shape."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its spike lines."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons that share one neuron model and one set of parameters.

    ``bias`` is a real number per neuron, shape (size,), added to the voltage at every step.
    ``axonal_delay`` in steps delays every spike that leaves the population.
    """

    shape: tuple[int, ...]
    neuron: CubaLif
    bias: RealArray | None = None
    axonal_delay: int = 0

    @property
    def size(self) -> int:
        """The number of neurons."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix of weights, shape (neurons of the target, neurons of the source)."""

    weight: RealArray


Operation = Dense
"""The linear operations that a projection may chain; dense weights so far."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Synapses from a source (an input or a population) to a target population.

    ``operations`` are applied in order to the spikes of the source. ``delay`` in steps adds to the
    one step that every projection takes: one number, or one per synapse in the weights' shape.
    """

    source: str
    target: str
    operations: tuple[Operation, ...]
    delay: IntLike = 0

    @property
    def weight(self) -> RealArray:
        """The weights of the one operation that has any, shape (target, source)."""
        return self.operations[-1].weight

    @classmethod
    def dense(cls, source: str, target: str, weight: RealArray, delay: IntLike = 0) -> Projection:
        """A projection of dense weights, shape (target, source)."""
        return cls(source, target, (Dense(weight),), delay)

    def with_weight(self, weight: RealArray) -> Projection:
        """The same projection with other weights."""
        return Projection.dense(self.source, self.target, weight, self.delay)


class _Node(Protocol):
    @property
    def size(self) -> int: ...


class _Edge(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Network:
    """Populations and projections by name, in real numbers (SLAYER's scale).

    ``data``, ``readout`` and ``checks`` travel with the network to the program, so that a deployed
    program takes raw samples. ``weight_bits`` is what the weights were trained for.

    Raises:
        ConfigError: a name that is not there, or shapes that do not fit.
    """

    name: str
    inputs: Mapping[str, Input]
    populations: Mapping[str, Population]
    projections: Mapping[str, Projection]
    outputs: tuple[str, ...]
    data: Data | None = None
    readout: Readout | None = None
    checks: tuple[Check, ...] = ()
    weight_bits: int = 8
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_graph(self.inputs, self.populations, self.projections, self.outputs)
        for name, projection in self.projections.items():
            check_shape(name, projection.weight.shape, projection, self.sizes)
            check_delay_shape(name, projection.weight.shape, projection.delay)
        for name, population in self.populations.items():
            if population.bias is not None and population.bias.shape != (population.size,):
                raise ConfigError(
                    f"population {name}: found a bias of shape {population.bias.shape}, "
                    f"allowed ({population.size},)"
                )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Neurons or spike lines of every input and population."""
        return sizes(self.inputs, self.populations)


def sizes(inputs: Mapping[str, Input], populations: Mapping[str, _Node]) -> dict[str, int]:
    """Neurons or spike lines of every input and population."""
    return {name: node.size for name, node in (*inputs.items(), *populations.items())}


def check_graph(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
    outputs: tuple[str, ...],
) -> None:
    """Check that every name a graph mentions exists and that inputs are only sources.

    Raises:
        ConfigError: names the projection or output at fault.
    """
    for name in (*inputs, *populations, *projections):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"network: found the name {name!r}, allowed names without / : , and control "
                "characters (files and probes use these)"
            )
    for name, size in sizes(inputs, populations).items():
        if size < 1:
            raise ConfigError(f"{name}: found no neurons, allowed 1 or more")
    if both := set(inputs) & set(populations):
        raise ConfigError(f"network: found {sorted(both)} as input and as population")
    for name, projection in projections.items():
        for role, end, allowed in (
            ("source", projection.source, [*inputs, *populations]),
            ("target", projection.target, [*populations]),
        ):
            if end not in allowed:
                raise ConfigError(
                    f"projection {name}: found the {role} {end!r}, allowed {', '.join(allowed)}"
                )
    for output in outputs:
        if output not in populations:
            raise ConfigError(
                f"network: found the output {output!r}, allowed {', '.join(populations)}"
            )


def check_shape(
    name: str, shape: tuple[int, ...], projection: _Edge, size: Mapping[str, int]
) -> None:
    """Check that dense weights fit the two ends of their projection.

    Raises:
        ConfigError: the shape found and the shape allowed.
    """
    allowed = (size[projection.target], size[projection.source])
    if shape != allowed:
        raise ConfigError(
            f"projection {name}: found weights of shape {shape}, allowed {allowed} "
            f"({projection.target}, {projection.source})"
        )


def check_delay_shape(name: str, shape: tuple[int, ...], delay: IntLike) -> None:
    """Check that a delay is one number or one per synapse.

    Raises:
        ConfigError: the shape found and the shapes allowed.
    """
    if np.shape(delay) not in ((), shape):
        raise ConfigError(
            f"projection {name}: found delays of shape {np.shape(delay)}, "
            f"allowed one number or {shape}"
        )


def data_flow(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
) -> Iterator[str]:
    """Names of the populations in the order in which a spike first reaches them."""
    reached = list(inputs)
    for name in reached:
        for projection in projections.values():
            if projection.source == name and projection.target not in reached:
                reached.append(projection.target)
                yield projection.target
    yield from (name for name in populations if name not in reached)


def from_config(
    config: NetworkConfig, n_inputs: int, n_classes: int, seed: int, name: str = "network"
) -> Network:
    """The untrained network of an experiment's ``network.layers``.

    A chain of dense layers; weights are drawn uniformly from
    +- ``init_gain * threshold / sqrt(fan_in)``.

    Raises:
        ConfigError: the last layer has not ``neurons_per_class`` neurons for every class.
        UnsupportedError: an entry function makes the network, not layers.
    """
    if config.layers is None:
        raise UnsupportedError("network: found an entry function, allowed layers")
    wanted = n_classes * config.readout.neurons_per_class
    if config.layers[-1].dense != wanted:
        raise ConfigError(
            f"network.layers.{len(config.layers) - 1}.dense: found {config.layers[-1].dense}, "
            f"allowed {wanted} ({n_classes} classes x {config.readout.neurons_per_class} "
            "neurons_per_class)"
        )
    rng = np.random.default_rng([seed, 0])
    populations: dict[str, Population] = {}
    projections: dict[str, Projection] = {}
    source, fan_in = "input", n_inputs
    for layer in config.layers:
        neuron = _neuron(layer.neuron or config.neuron)
        bias = None if layer.bias is None else np.full(layer.dense, layer.bias)
        populations[layer.name] = Population((layer.dense,), neuron, bias)
        bound = config.init_gain * neuron.threshold / np.sqrt(fan_in)
        weight = rng.uniform(-bound, bound, (layer.dense, fan_in)).astype(np.float32)
        projections[layer.name] = Projection.dense(source, layer.name, weight, layer.delay)
        source, fan_in = layer.name, layer.dense
    return Network(
        name,
        {"input": Input((n_inputs,))},
        populations,
        projections,
        (source,),
        readout=config.readout,
    )


def _neuron(config: NeuronConfig | None) -> CubaLif:
    assert config is not None
    return CubaLif(config.threshold, config.current_decay, config.voltage_decay)
