"""What a network is made of: the kinds of layers, neurons and signals that a backend may lack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np

from nmtool.compiler.program import Program
from nmtool.fixedpoint import STATE_LIMIT
from nmtool.operations import Conv
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation

Feature: TypeAlias = Literal[
    "dense",
    "sparse",
    "conv",
    "conv with groups",
    "conv with dilation",
    "sum pooling",
    "flatten",
    "scale",
    "chain of several operations",
    "several projections into one population",
    "synaptic delay",
    "synaptic delay per weight",
    "axonal delay",
    "recurrent projection",
    "cuba",
    "bias",
    "refractory delay",
    "periodic reset",
    "reset interval not a power of two",
    "delta",
    "sigma delta",
    "sigma",
    "sigma-delta reset",
    "sigma-delta exponent above 7",
    "sigma-delta bias beyond 24 bits",
    "spike input",
    "graded input",
    "bias input",
    "no input",
    "values beyond the chip's registers",
]

FEATURES: tuple[Feature, ...] = get_args(Feature)
"""Every kind, in the order in which they are listed."""

_OPERATIONS: dict[str, Feature] = {
    "Dense": "dense",
    "Sparse": "sparse",
    "Conv": "conv",
    "SumPool": "sum pooling",
    "Flatten": "flatten",
    "Scale": "scale",
}
_MODELS: dict[str, Feature] = {
    "cuba": "cuba",
    "delta": "delta",
    "sigma_delta": "sigma delta",
    "sigma": "sigma",
}
_INPUTS: dict[str, Feature] = {
    "spikes": "spike input",
    "graded": "graded input",
    "bias": "bias input",
}


def features(program: Program) -> dict[Feature, list[str]]:
    """What a program is made of: every kind it uses, with the names of those that use it."""
    found: dict[Feature, list[str]] = {}
    for feature, name in _uses(program):
        names = found.setdefault(feature, [])
        if name not in names:
            names.append(name)
    return {feature: found[feature] for feature in FEATURES if feature in found}


def _uses(program: Program) -> Iterator[tuple[Feature, str]]:
    net = program.network
    for name, source in net.inputs.items():
        yield _INPUTS[source.kind], f"input {name}"
    if not net.inputs:
        yield "no input", "network"
    for name, population in net.populations.items():
        for feature in _of_population(population):
            yield feature, f"population {name}"
    for line in program.simulators_only:
        yield "values beyond the chip's registers", f"population {line.split('.')[0]}"
    yield from _of_projections(net)


def _of_population(population: QuantizedPopulation) -> Iterator[Feature]:
    yield _MODELS[population.model]
    if np.any(population.bias_mantissa):
        yield "bias"
    if population.refractory_delay > 1:
        yield "refractory delay"
    if population.reset is not None:
        yield "sigma-delta reset" if population.graded else "periodic reset"
        if population.reset.interval & (population.reset.interval - 1):
            yield "reset interval not a power of two"
    if population.graded:
        yield from _of_registers(population)
    if np.any(population.axonal_delay):
        yield "axonal delay"


def _of_registers(population: QuantizedPopulation) -> Iterator[Feature]:
    """What of a sigma-delta population is wider than Lava's registers."""
    if max(population.spike_exponent, population.state_exponent) > 7:
        yield "sigma-delta exponent above 7"
    if np.any(population.bias >= STATE_LIMIT) or np.any(population.bias < -STATE_LIMIT):
        yield "sigma-delta bias beyond 24 bits"


def _of_projections(net: QuantizedNetwork) -> Iterator[tuple[Feature, str]]:
    for name, projection in net.projections.items():
        where = f"projection {name}"
        for operation in projection.operations:
            yield _OPERATIONS[type(operation).__name__], where
            if isinstance(operation, Conv):
                yield from ((feature, where) for feature in _of_convolution(operation))
        if len(projection.operations) > 1:
            yield "chain of several operations", where
        if np.ndim(projection.delay):
            yield "synaptic delay per weight", where
        elif projection.delay_max:
            yield "synaptic delay", where
        if projection.source in _reached_from(net, projection.target):
            yield "recurrent projection", where

    targets = [projection.target for projection in net.projections.values()]
    for target in dict.fromkeys(targets):
        if targets.count(target) > 1:
            yield "several projections into one population", f"population {target}"


def _of_convolution(operation: Conv) -> Iterator[Feature]:
    if operation.groups > 1:
        yield "conv with groups"
    if operation.dilation != (1, 1):
        yield "conv with dilation"


def _reached_from(net: QuantizedNetwork, start: str) -> set[str]:
    """The populations that spikes of one can reach, itself included."""
    reached, pending = {start}, [start]
    while pending:
        name = pending.pop()
        ends = {p.target for p in net.projections.values() if p.source == name}
        pending += ends - reached
        reached |= ends
    return reached
