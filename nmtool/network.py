"""Network: populations of neurons and the projections between them, in real numbers.

Numbers are in SLAYER's scale: a weight of 1 is 64 of the chip's weight units, and states, biases
and thresholds of 1 are 64 * 64 units of u and v.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from nmtool.config import Check, Data, Readout
from nmtool.errors import ConfigError
from nmtool.operations import (
    Chain,
    Dense,
    Operation,
    Shape,
    chain_shape,
    count_weighted,
    numbers_its_target,
    weighted,
    with_weight,
)

Activation: TypeAlias = Literal["relu", "unit"]
InputKind: TypeAlias = Literal["spikes", "graded", "bias"]
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

    ``current_decay`` and ``voltage_decay`` are the fractions lost per step, 0 to 1 (the chip's
    voltage decay ends at 4095/4096). For the ``refractory_delay - 1`` steps after a spike v stays 0
    and u goes on; 1 is no pause, the neuron may spike at every step.
    """

    threshold: float
    current_decay: float
    voltage_decay: float
    refractory_delay: int = 1


@dataclass(frozen=True)
class Delta:
    r"""Delta encoder: sends how far its input has moved, once that reaches the threshold.

    .. math::
        d[t] = x[t] - x[t-1] + r[t-1], \quad
        s[t] = d[t] \text{ if } |d[t]| \ge \vartheta \text{ else } 0, \quad r[t] = d[t] - s[t]

    Messages are graded. A unit of x is ``2^(spike_exponent + state_exponent)`` units of state and
    ``2^spike_exponent`` of message.
    """

    threshold: float
    spike_exponent: int = 6
    state_exponent: int = 6


@dataclass(frozen=True)
class SigmaDelta:
    r"""Sigma-delta neuron: sums the messages it receives and delta-encodes its activation.

    .. math::
        \sigma[t] = \sigma[t-1] + x[t], \quad a[t] = f(\sigma[t] + b), \quad
        d[t] = a[t] - a[t-1] + r[t-1]

    and from there as :class:`Delta`; f is ``relu`` or ``unit`` (the identity).
    """

    threshold: float
    activation: Activation = "relu"
    spike_exponent: int = 6
    state_exponent: int = 6


@dataclass(frozen=True)
class Sigma:
    r"""Sigma decoder: sends the sum of all messages so far at every step, ``s[t] = sigma[t]``."""


Neuron: TypeAlias = CubaLif | Delta | SigmaDelta | Sigma
"""The neuron models. Each sends spikes (CubaLif) or graded messages (the others)."""


@dataclass(frozen=True)
class PeriodicReset:
    """State that is cleared at every step t with ``t % interval == offset % interval``.

    It happens after the input of the step has been received and before it is integrated, as in
    Lava's LIFReset; spikes on their way are not touched.
    """

    interval: int
    offset: int = 0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ConfigError(f"reset: found an interval of {self.interval}, allowed 1 or more")


@dataclass(frozen=True)
class Input:
    """A source from outside, of the given shape.

    ``kind``: ``spikes``; ``graded`` messages, whole numbers of which 0 is none; or ``bias``, which
    is added to the bias mantissas of the population that it drives. An input with ``drives`` set
    has no synapses: its column k reaches that population at step k itself (graded values as
    synaptic input of weight 1 on the chip). All others go through projections.
    """

    shape: tuple[int, ...]
    kind: InputKind = "spikes"
    drives: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(InputKind):
            raise ConfigError(
                f"input.kind: found {self.kind!r}, allowed {', '.join(get_args(InputKind))}"
            )

    @property
    def size(self) -> int:
        """The number of its lines."""
        return int(np.prod(self.shape))

    @property
    def graded(self) -> bool:
        """Whether its messages carry a number."""
        return self.kind != "spikes"


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons that share one neuron model and one set of parameters.

    ``bias`` is a real number per neuron, shape (size,), added to the voltage (of sigma-delta
    neurons: to sigma) at every step. ``bias_exponent`` e scales the bias mantissas of a CUBA
    population, an input's that drive it too, by 2^e: the smallest that holds ``bias`` unless given.
    ``axonal_delay`` in steps delays every spike that leaves the population: one number, or one per
    neuron.
    """

    shape: tuple[int, ...]
    neuron: Neuron
    bias: RealArray | None = None
    axonal_delay: IntLike = 0
    reset: PeriodicReset | None = None
    bias_exponent: int | None = None

    @property
    def size(self) -> int:
        """The number of neurons."""
        return int(np.prod(self.shape))

    def __repr__(self) -> str:
        return f"Population({self.neuron}, shape {self.shape})"


@dataclass(frozen=True, eq=False)
class Projection:
    """Synapses from a source (an input or a population) to a target population.

    ``operations`` are applied in order to the spikes of the source. ``delay`` in steps adds to the
    one step that every projection takes: one number, or one per weight in the weights' shape.
    """

    source: str
    target: str
    operations: Chain
    delay: IntLike = 0

    @property
    def weight(self) -> RealArray:
        """The weights of the one operation that has any (dense: shape (target, source))."""
        return weighted(self.operations).weight

    @classmethod
    def dense(cls, source: str, target: str, weight: RealArray, delay: IntLike = 0) -> Projection:
        """A projection of dense weights, shape (target, source)."""
        return cls(source, target, (Dense(weight),), delay)

    def with_weight(self, weight: RealArray) -> Projection:
        """The same projection with other weights."""
        return replace(self, operations=with_weight(self.operations, weight))

    def __repr__(self) -> str:
        return described_projection(self)


class _Node(Protocol):
    @property
    def shape(self) -> Shape: ...
    @property
    def size(self) -> int: ...


class _Edge(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def operations(self) -> Chain: ...
    @property
    def delay(self) -> IntLike: ...


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
        for name, population in self.populations.items():
            _check_neuron(name, population)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Neurons or spike lines of every input and population."""
        return sizes(self.inputs, self.populations)

    def __repr__(self) -> str:
        return described_network(self, f"{self.weight_bits}-bit weights")


class _Graph(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, Input]: ...
    @property
    def populations(self) -> Mapping[str, _Node]: ...
    @property
    def projections(self) -> Mapping[str, _Edge]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


def counted(items: Sized, noun: str) -> str:
    """How many there are of something: ``3 inputs``, ``1 input``."""
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def described_network(network: _Graph, more: str) -> str:
    """A network in one line, without its arrays."""
    return (
        f"{type(network).__name__}({network.name!r}, {more}, {counted(network.inputs, 'input')}, "
        f"{counted(network.populations, 'population')}, "
        f"{counted(network.projections, 'projection')}, outputs {', '.join(network.outputs)})"
    )


def described_projection(projection: _Edge, more: str = "") -> str:
    """A projection in one line, without its arrays."""
    delay = projection.delay
    late = f"delay {delay}" if np.ndim(delay) == 0 else f"delays of shape {np.shape(delay)}"
    chain = " + ".join(map(repr, projection.operations))
    parts = (f"{projection.source} -> {projection.target}", chain, more, late)
    return f"{type(projection).__name__}({', '.join(filter(None, parts))})"


def sizes(inputs: Mapping[str, Input], populations: Mapping[str, _Node]) -> dict[str, int]:
    """Neurons or spike lines of every input and population."""
    return {name: node.size for name, node in (*inputs.items(), *populations.items())}


def shapes(inputs: Mapping[str, Input], populations: Mapping[str, _Node]) -> dict[str, Shape]:
    """The shape of every input and population."""
    found = {name: source.shape for name, source in inputs.items()}
    return {**found, **{name: node.shape for name, node in populations.items()}}


def check_graph(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
    outputs: tuple[str, ...],
) -> None:
    """Check that every name a graph mentions exists, and that shapes fit.

    Raises:
        ConfigError: names the input, population, projection or output at fault.
    """
    _check_kinds(inputs, populations, projections)
    _check_names(inputs, populations, projections)
    for name, source in inputs.items():
        if source.drives is not None:
            _check_drive(name, source, source.drives, populations)
        elif source.kind == "bias":
            raise ConfigError(
                f"input {name}: found a bias that drives nothing, allowed the name of a population"
            )
    for name, projection in projections.items():
        _check_projection(name, projection, inputs, populations)
    if not outputs:
        raise ConfigError(
            f"network: found no outputs, allowed one or more of {', '.join(populations)}"
        )
    for output in outputs:
        if output not in populations:
            raise ConfigError(
                f"network: found the output {output!r}, allowed {', '.join(populations)}"
            )


def _check_kinds(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
) -> None:
    """That the parts are what they should be, and that there are neurons at all."""
    for name, source in inputs.items():
        if not isinstance(source, Input):
            raise ConfigError(f"input {name}: found a {type(source).__name__}, allowed an Input")
    if not populations:
        raise ConfigError("network: found no populations, allowed one or more")
    for name, population in populations.items():
        if not hasattr(population, "axonal_delay"):
            raise ConfigError(
                f"population {name}: found a {type(population).__name__}, allowed a Population"
            )
    for name, projection in projections.items():
        if not hasattr(projection, "operations"):
            raise ConfigError(
                f"projection {name}: found a {type(projection).__name__}, allowed a Projection; "
                "Projection.dense(source, target, weight) makes one of a matrix"
            )


def _check_names(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
) -> None:
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


def _check_drive(name: str, source: Input, driven: str, populations: Mapping[str, _Node]) -> None:
    if driven not in populations:
        raise ConfigError(
            f"input {name}: found that it drives {driven!r}, allowed {', '.join(populations)}"
        )
    if source.kind == "spikes":
        raise ConfigError(
            f"input {name}: found spikes that drive {driven}, allowed graded values or a "
            "bias; spikes go through a projection"
        )
    if source.kind == "bias" and model_of(populations[driven]) != "cuba":
        raise ConfigError(
            f"input {name}: found a bias that drives {driven}, allowed for CUBA neurons; "
            "sigma-delta neurons take graded values"
        )
    if source.size != populations[driven].size:
        raise ConfigError(
            f"input {name}: found {source.size} lines, allowed "
            f"{populations[driven].size} as {driven} has neurons"
        )


def _check_projection(
    name: str,
    projection: _Edge,
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
) -> None:
    free = [key for key, source in inputs.items() if source.drives is None]
    for role, end, allowed in (
        ("source", projection.source, [*free, *populations]),
        ("target", projection.target, [*populations]),
    ):
        if end not in allowed:
            raise ConfigError(
                f"projection {name}: found the {role} {end!r}, allowed {', '.join(allowed)}"
            )
    if not isinstance(projection.operations, tuple):
        raise ConfigError(
            f"projection {name}: found operations of type "
            f"{type(projection.operations).__name__}, allowed a tuple of operations"
        )
    for operation in projection.operations:
        if not isinstance(operation, Operation):
            raise ConfigError(
                f"projection {name}: found a {type(operation).__name__} among its operations, "
                f"allowed {', '.join(kind.__name__ for kind in get_args(Operation))}"
            )
    nodes: dict[str, Input | _Node] = {**inputs, **populations}
    source, target = nodes[projection.source].shape, nodes[projection.target].shape
    wanted = (int(np.prod(target)), int(np.prod(source)))
    match projection.operations:
        case (Dense(weight=weight),) if weight.shape != wanted:
            raise ConfigError(
                f"projection {name}: found weights of shape {weight.shape}, allowed {wanted} "
                f"({projection.target}, {projection.source})"
            )
    try:
        shape = chain_shape(projection.operations, source)
    except ConfigError as error:
        raise ConfigError(f"projection {name}: {error}") from None
    same_size = np.prod(shape) == np.prod(target)
    if not (numbers_its_target(projection.operations) and same_size) and not _same_shape(
        shape, target
    ):
        raise ConfigError(
            f"projection {name}: found that it ends in the shape {shape}, allowed {target} as "
            f"{projection.target} has; Flatten() puts (x, y, channel) on one axis"
        )
    delay = np.shape(projection.delay)
    if delay == ():
        return
    if count_weighted(projection.operations) != 1:
        raise ConfigError(
            f"projection {name}: found delays of shape {delay}, allowed one number for a chain "
            "that has not exactly one operation with weights"
        )
    if delay != (weights := weighted(projection.operations).weight.shape):
        raise ConfigError(
            f"projection {name}: found delays of shape {delay}, allowed one number or {weights}"
        )


def _same_shape(a: Shape, b: Shape) -> bool:
    """Equal up to axes of length 1, so that nothing changes its order."""
    return [n for n in a if n != 1] == [n for n in b if n != 1]


def check_per_neuron(name: str, what: str, values: IntLike | RealArray, size: int) -> None:
    """Check that something is one number or one per neuron.

    Raises:
        ConfigError: the shape found and the shape allowed.
    """
    if np.shape(values) not in ((), (size,)):
        raise ConfigError(
            f"population {name}: found {what} of shape {np.shape(values)}, allowed ({size},)"
        )


def _check_neuron(name: str, population: Population) -> None:
    if population.bias is not None and np.shape(population.bias) != (population.size,):
        raise ConfigError(
            f"population {name}: found a bias of shape {np.shape(population.bias)}, "
            f"allowed ({population.size},)"
        )
    check_per_neuron(name, "an axonal delay", population.axonal_delay, population.size)
    neuron = population.neuron
    if isinstance(neuron, SigmaDelta) and neuron.activation not in get_args(Activation):
        raise ConfigError(
            f"population {name}: found the activation {neuron.activation!r}, "
            f"allowed {', '.join(get_args(Activation))}"
        )
    if population.bias is not None and isinstance(population.neuron, Delta | Sigma):
        raise ConfigError(
            f"population {name}: found a bias, allowed none: a "
            f"{type(population.neuron).__name__} neuron has no bias"
        )


def model_of(population: Any) -> str:
    """The neuron model of a Population or a QuantizedPopulation, as the latter names it."""
    models = {CubaLif: "cuba", Delta: "delta", SigmaDelta: "sigma_delta", Sigma: "sigma"}
    if isinstance(population, Population):
        return models[type(population.neuron)]
    return str(population.model)


def beyond_cuba(inputs: Mapping[str, Input], populations: Mapping[str, Any]) -> Iterator[str]:
    """What of a network is more than spikes, CUBA neurons and one axonal delay a population.

    For methods that handle these only; holds for a Network and for a QuantizedNetwork.
    """
    for name, source in inputs.items():
        if source.kind != "spikes":
            yield f"input {name}: found {source.kind} values, allowed spikes"
    for name, population in populations.items():
        neuron = getattr(population, "neuron", population)
        if (model := model_of(population)) != "cuba":
            yield f"population {name}: found {model} neurons, allowed CUBA neurons"
        elif neuron.refractory_delay != 1:
            yield f"population {name}: found a refractory delay, allowed none (1)"
        if population.reset is not None:
            yield f"population {name}: found a periodic reset, allowed none"
        if np.ndim(population.axonal_delay):
            yield f"population {name}: found an axonal delay for each neuron, allowed one for all"


def beyond_dense_cuba(
    inputs: Mapping[str, Input],
    populations: Mapping[str, Any],
    projections: Mapping[str, _Edge],
) -> Iterator[str]:
    """What of a network is more than CUBA neurons, dense weights and one delay a projection."""
    yield from beyond_cuba(inputs, populations)
    for name, projection in projections.items():
        kinds = [type(operation).__name__ for operation in projection.operations]
        if kinds != ["Dense"]:
            yield f"projection {name}: found {' + '.join(kinds)}, allowed dense weights"
        elif np.ndim(projection.delay):
            yield f"projection {name}: found a delay for each synapse, allowed one for all"


def data_flow(
    inputs: Mapping[str, Input],
    populations: Mapping[str, _Node],
    projections: Mapping[str, _Edge],
) -> Iterator[str]:
    """Names of the populations in the order in which a spike first reaches them."""
    reached = list(inputs)
    ends = [(name, source.drives) for name, source in inputs.items() if source.drives]
    ends += [(projection.source, projection.target) for projection in projections.values()]
    for name in reached:
        for source, target in ends:
            if source == name and target not in reached:
                reached.append(target)
                yield target
    yield from (name for name in populations if name not in reached)
