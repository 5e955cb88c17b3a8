"""What a file may claim: fields of the right types, and sizes that can be worked with.

A file from somebody else is checked here, once; what is read from it is then as good as what was
made in Python.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from nmtool.compiler.fit import SPLITTING, Fit, misplaced, shapes_of
from nmtool.compiler.partition import Demand
from nmtool.compiler.place import Placement
from nmtool.designrules import RULES, Violation
from nmtool.errors import ArtifactError
from nmtool.formats.container import MAX_BYTES
from nmtool.network import Network
from nmtool.operations import WEIGHTED, Chain, Conv, Dense, Shape, Sparse, SumPool
from nmtool.quantization import QuantizedNetwork

MAX_AXES = 8
MAX_NEURONS = 1 << 22
"""Of a whole network, and of what any operation gives on the way: that of four Loihi 2 chips."""
MAX_SYNAPSES = 1 << 28
"""Of one projection that has windows: convolution or pooling."""
MAX_STEPS = 20_000_000
MAX_SAMPLES = 20_000_000
MAX_COUNTS = 1 << 28
"""Samples times neurons of one spike train."""
MAX_RASTER = MAX_BYTES
"""Bytes of one spike train as a dense raster: one a place, eight where messages are graded."""
MAX_STATES = MAX_BYTES // 8
"""Values of u and v in one recording."""

MAX_CHIPS, MAX_CORES = 1 << 14, 1 << 12
"""Of a system, and of a chip: what the addresses of Loihi's mesh count (Davies et al. 2018)."""

T = TypeVar("T")
_WHOLE = 1 << 62


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def build(kind: type[T], values: Mapping[str, Any], name: str = "", arrays: str = "biuf") -> T:
    """A dataclass of values that have the types it declares; arrays have one of these kinds.

    Raises:
        ArtifactError: names the field, what was found and what is allowed.
    """
    for key, hint in _hints(cast(Any, kind)).items():
        if key in values and not _fits(values[key], hint, arrays):
            allowed = getattr(hint, "__name__", None) if isinstance(hint, type) else None
            raise ArtifactError(
                f"{name or kind.__name__}.{key}: found {_shown(values[key])}, "
                f"allowed {allowed or str(hint).replace('typing.', '')[:120]}"
            )
    return kind(**values)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    short = isinstance(value, str | int | float | bool | None)
    return f"{value!r:.60}" if short else f"a {type(value).__name__}"


def _fits(value: Any, hint: Any, arrays: str) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, arrays) for one in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is np.ndarray:
        return isinstance(value, np.ndarray) and value.dtype.kind in _kinds(hint, arrays)
    if origin is tuple:
        return isinstance(value, tuple) and _each_fits(value, get_args(hint), arrays)
    if hint is Any:
        return True
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _WHOLE
    if hint is float:
        return isinstance(value, float) or _fits(value, int, arrays)
    return isinstance(value, origin or hint)


def _each_fits(values: tuple[Any, ...], hints: tuple[Any, ...], arrays: str) -> bool:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return all(_fits(value, hints[0], arrays) for value in values)
    pairs = zip(values, hints, strict=False)
    return len(values) == len(hints) and all(_fits(v, hint, arrays) for v, hint in pairs)


def _kinds(hint: Any, arrays: str) -> str:
    """The kinds of numbers that an array may have: whole ones where it is declared to."""
    number = get_args(get_args(hint)[1])[0]
    kind = get_origin(number) or number
    whole = isinstance(kind, type) and issubclass(kind, np.integer)
    return "iu" if whole else arrays


def check_network(network: Network | QuantizedNetwork) -> None:
    """Check that a network claims no more than it can hold.

    Raises:
        ArtifactError: names the input, population or projection, and the limit.
    """
    shapes = {n: node.shape for n, node in (*network.inputs.items(), *network.populations.items())}
    for name, shape in shapes.items():
        if not 1 <= len(shape) <= MAX_AXES or min(shape) < 1:
            raise ArtifactError(
                f"{name}: found the shape {shape}, allowed 1 to {MAX_AXES} axes of 1 or more"
            )
    most(f"{network.name}: neurons and input lines", sum(map(math.prod, shapes.values())))
    for name, projection in network.projections.items():
        for what, found, allowed in _chain_claims(projection.operations, shapes[projection.source]):
            most(f"projection {name}: {what}", found, allowed)
    if not network.outputs:
        raise ArtifactError(f"{network.name}: found no outputs, allowed one population or more")


def most(what: str, found: int, allowed: int = MAX_NEURONS) -> None:
    """Check a number that a file claims.

    Raises:
        ArtifactError: it is negative, or more than allowed.
    """
    if not 0 <= found <= allowed:
        raise ArtifactError(f"{what}: found {found}, allowed up to {allowed}")


def _chain_claims(operations: Chain, shape: Shape) -> Iterator[tuple[str, int, int]]:
    """What the operations of a chain need room for, and how much of it is allowed."""
    ways = 1
    for operation in operations:
        if isinstance(operation, Conv | SumPool):
            x, y = (shape[axis] + 2 * operation.padding[axis] for axis in (0, 1))
            yield "a padded image", x * y * shape[2], MAX_NEURONS
            if isinstance(operation, SumPool):
                reach = [max(operation.kernel[a], operation.stride[a]) for a in (0, 1)]
                yield "a pooling window", math.prod(reach), MAX_NEURONS
        ways *= _fan_in(operation)
        shape = operation.output_shape(shape)
        yield "neurons on the way", math.prod(shape), MAX_NEURONS
    if any(isinstance(operation, Conv | SumPool) for operation in operations):
        yield "synapses", ways * math.prod(shape), MAX_SYNAPSES


def _fan_in(operation: Any) -> int:
    """The most synapses into one neuron."""
    if isinstance(operation, SumPool):
        return math.prod(operation.kernel)
    if isinstance(operation, Conv):
        return math.prod(operation.weight.shape[1:])
    if isinstance(operation, Sparse):
        return int(np.bincount(operation.target).max(initial=1))
    return int(operation.weight.shape[1]) if isinstance(operation, Dense) else 1


def check_placement(network: QuantizedNetwork, placement: Placement) -> None:
    """Check that a placement, if there is one, has every neuron once, on a core that may be.

    Whether the cores of a chip hold it shows where the chip is known, when a program is opened.

    Raises:
        ArtifactError: names the slice or population, what was found and what is allowed.
    """
    if placement and (wrong := misplaced(shapes_of(network), placement, MAX_CHIPS, MAX_CORES)):
        raise ArtifactError(str(wrong[0][1]))


def check_fit(network: QuantizedNetwork, fit: Fit) -> None:
    """Check that what a program takes of a chip is told of its populations, in possible numbers.

    Raises:
        ArtifactError: names the layer, what was found and what is allowed.
    """
    layers = [layer.population for layer in fit.layers]
    if sorted(layers) != sorted(network.populations):
        known = ", ".join(network.populations)
        raise ArtifactError(f"fit: found the layers {', '.join(layers)[:200]}, allowed {known}")
    most("fit.chips", fit.chips, MAX_CHIPS)
    most("fit.cores_per_chip", fit.cores_per_chip, MAX_CORES)
    most("fit.cores", fit.cores, fit.cores_available)
    for what, number in (("hops", fit.hops.hops), ("crossings", fit.hops.crossings)):
        most(f"fit.hops.{what}", number, _WHOLE)
    _positive("fit.hops.random", fit.hops.random)
    for layer in fit.layers:
        where = f"fit of {layer.population}"
        if layer.limiting not in SPLITTING:
            allowed = ", ".join(SPLITTING)
            raise ArtifactError(f"{where}: found {layer.limiting!r:.60}, allowed {allowed}")
        most(f"{where}: neurons", layer.neurons, network.sizes[layer.population])
        most(f"{where}: cores", layer.cores, fit.cores)
        _positive(f"{where}: share", layer.share)
        for demand in (layer.largest, layer.total):
            for name in Demand.__dataclass_fields__:
                most(f"{where}: {name}", getattr(demand, name), _WHOLE)


def _positive(what: str, found: float) -> None:
    if not 0 <= found < math.inf:
        raise ArtifactError(f"{what}: found {found}, allowed numbers from 0")


def check_violation(violation: Violation) -> None:
    """Check that a design rule that a file names is one.

    Raises:
        ArtifactError: there is no such rule.
    """
    if violation.code not in RULES:
        raise ArtifactError(
            f"warnings: found the rule {violation.code!r:.60}, allowed those of nmtool.designrules"
        )


def check_weights(name: str, operations: Chain) -> None:
    """Check that the weights of a quantised projection are whole numbers.

    Raises:
        ArtifactError: they are not.
    """
    for operation in operations:
        if isinstance(operation, WEIGHTED) and operation.weight.dtype.kind not in "iu":
            raise ArtifactError(
                f"projection {name}: found weights of type {operation.weight.dtype}, allowed "
                "whole numbers"
            )


def check_arrays(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that arrays have the names and shapes of others.

    Raises:
        ArtifactError: they have not.
    """
    shapes = [{name: np.shape(a) for name, a in arrays.items()} for arrays in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ArtifactError(f"{what}: found the shapes {shapes[0]}, allowed {shapes[1]}")


def check_train(
    name: str, n_samples: int, n_neurons: int, n_steps: int, graded: bool = False
) -> None:
    """Check the sizes that a spike train claims.

    Raises:
        ArtifactError: names the train and the limit.
    """
    sizes = {"samples": n_samples, "neurons": n_neurons, "steps": n_steps}
    allowed = {"samples": MAX_SAMPLES, "neurons": MAX_NEURONS, "steps": MAX_STEPS}
    for what, found in sizes.items():
        if not isinstance(found, int) or isinstance(found, bool):
            raise ArtifactError(f"{name}: found {_shown(found)} {what}, allowed a whole number")
        most(f"{name}: {what}", found, allowed[what])
    most(f"{name}: samples x neurons", n_samples * n_neurons, MAX_COUNTS)
    places = MAX_RASTER // 8 if graded else MAX_RASTER
    most(f"{name}: samples x neurons x steps", n_samples * n_neurons * n_steps, places)
