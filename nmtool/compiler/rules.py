"""Checks of the design rules: what of a network, a chip's registers and cores do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler.partition import Demand, Unsplittable, limit
from nmtool.designrules import RULES, Rule, Severity, Violation, in_order, refuse
from nmtool.fixedpoint import DECAY_ONE, STATE_BITS, STATE_LIMIT
from nmtool.network import IntLike
from nmtool.operations import Conv, Shape, SumPool
from nmtool.quantization import (
    MESSAGE_BASIS,
    MESSAGE_BIAS,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    off_grid,
)

__all__ = [
    "RULES",
    "Rule",
    "Severity",
    "Violation",
    "check",
    "core_overfull",
    "in_order",
    "refuse",
    "registers",
    "simulators_only",
    "too_many_cores",
    "unsplittable",
    "warnings",
]

_RESOURCE_RULES = {
    "neurons": "NM-FIT-020",
    "synapse_bits": "NM-FIT-021",
    "input_axons": "NM-FIT-022",
    "output_axons": "NM-FIT-023",
    "memory_words": "NM-FIT-024",
    "profiles": "NM-FIT-025",
    "threshold_profiles": "NM-FIT-026",
    "synapse_formats": "NM-FIT-027",
    "delay_slots": "NM-FIT-028",
}


def unsplittable(problem: Unsplittable, chip: ChipSpec) -> list[Violation]:
    """The resources that a core has too little of for even one neuron of a population."""
    return [
        Violation(
            _RESOURCE_RULES[resource],
            problem.population,
            f"{getattr(problem.demand, resource)} {_unit(resource)} for one neuron",
            f"{limit(chip, resource)} a core",
            chip.standing(f"{resource}_per_core"),
        )
        for resource in problem.resources
    ]


def too_many_cores(
    needed: int,
    cores: int,
    chips: int,
    layers: Sequence[tuple[str, int]],
    chip: ChipSpec,
    how: str = "",
) -> Violation:
    """A network of more slices than there are cores; ``layers`` counts the cores of each."""
    most = sorted(layers, key=lambda layer: -layer[1])[:3]
    largest = ", ".join(f"{name} {count}" for name, count in most)
    basis = chip.standing("cores") if cores == chip.cores else "cores_per_chip of the target"
    return Violation(
        "NM-FIT-030",
        "network",
        f"{how}{needed} cores needed (most by {largest})",
        f"{cores * chips} ({chips} x {cores})",
        basis,
    )


def core_overfull(where: str, demand: Demand, resource: str, chip: ChipSpec) -> Violation:
    """A core that a given placement asks too much of."""
    return Violation(
        _RESOURCE_RULES[resource],
        where,
        f"{getattr(demand, resource)} {_unit(resource)}",
        f"{limit(chip, resource)} a core",
        chip.standing(f"{resource}_per_core"),
        RULES["NM-FIT-031"].advice,
    )


def _unit(resource: str) -> str:
    return {"synapse_bits": "bits of synapse memory", "memory_words": "words of memory"}.get(
        resource, resource.replace("_", " ")
    )


def check(network: QuantizedNetwork, chip: ChipSpec) -> None:
    """Check every register and weight of a network against the chip's ranges.

    Raises:
        FitError: all violations at once, one a line, each with what was found and is allowed.
    """
    refuse(registers(network, chip))


def registers(network: QuantizedNetwork, chip: ChipSpec) -> list[Violation]:
    """The values of a network that the registers and synapses of a chip do not hold."""
    problems: list[Violation] = []
    for name, population in network.populations.items():
        problems += _population(name, population, chip)
        if population.graded:
            problems += _messages(name, f"a {population.model} neuron's messages", chip)
    for name, source in network.inputs.items():
        if source.kind == "graded":
            problems += _messages(f"input {name}", "graded values", chip)
    for name, projection in network.projections.items():
        problems += _projection(name, projection, chip)
    if network.delay_max > chip.delay_max:
        found = f"an axonal and a synaptic delay of {network.delay_max} steps together"
        basis = chip.standing("delay_max")
        problems.append(Violation("NM-FIT-006", "network", found, str(chip.delay_max), basis))
    return problems


def _projection(name: str, projection: QuantizedProjection, chip: ChipSpec) -> list[Violation]:
    exponent, where = projection.weight_exponent, f"projection {name}"
    problems = _range(
        "NM-FIT-002",
        f"{where}.weight_exponent",
        exponent,
        chip.weight_exponent,
        chip.standing("weight_exponent"),
    )
    basis = chip.standing("delay_max")
    for extreme in sorted({projection.delay_min, projection.delay_max}):
        problems += _range("NM-FIT-005", f"{where}.delay", extreme, (0, chip.delay_max), basis)
    if projection.weight_bits in chip.weight_bits:
        return problems + off_grid(name, projection.weight_mantissa, projection.format)
    allowed = ", ".join(map(str, chip.weight_bits))
    found, basis = str(projection.weight_bits), chip.standing("weight_bits")
    return [*problems, Violation("NM-FIT-003", f"{where}.weight_bits", found, allowed, basis)]


def _messages(where: str, what: str, chip: ChipSpec) -> list[Violation]:
    """Messages are as wide as the states that they are cut from."""
    widest = max(chip.message_bits)
    if widest >= STATE_BITS:
        return []
    allowed = f"up to {widest} bits" if widest else "spikes without payload"
    found, basis = f"{what} of {STATE_BITS} bits", chip.standing("message_bits")
    return [Violation("NM-FIT-010", where, found, f"{allowed} on {chip.name}", basis)]


_SIMULATED = {"decay_u": -1, "decay_v": DECAY_ONE, "threshold": 1 << 17}
"""Values that Lava's CPU models run and no register holds: they come from netx files."""


def simulators_only(network: QuantizedNetwork, chip: ChipSpec) -> list[str]:
    """What of a network no register of the chip holds, and what would take its place there."""
    return [
        f"{name}.{key}: {value} runs on simulators only; lava-loihi would get "
        f"{min(max(value, low), high)}"
        for name, population in network.populations.items()
        if not population.graded
        for key, value, (low, high), _ in _registers(population, chip)
        if not low <= value <= high
    ]


def _registers(
    population: QuantizedPopulation, chip: ChipSpec
) -> list[tuple[str, int, tuple[int, int], str]]:
    """Name, value and range of the registers of a CUBA population, and which limit that is."""
    return [
        ("decay_u", population.decay_u, (0, chip.decay_max), "decay_bits"),
        ("decay_v", population.decay_v, (0, chip.decay_max), "decay_bits"),
        ("threshold", population.threshold, (0, chip.threshold_max), "threshold_bits"),
    ]


def _population(name: str, population: QuantizedPopulation, chip: ChipSpec) -> list[Violation]:
    problems: list[Violation] = []
    basis = chip.standing("delay_max")
    for extreme in _extremes(population.axonal_delay):
        where = f"{name}.axonal_delay"
        problems += _range("NM-FIT-005", where, extreme, (0, chip.delay_max), basis)
    if population.graded:
        return problems + _sigma_delta(name, population, chip)
    for key, value, allowed, limit_ in _registers(population, chip):
        if value != _SIMULATED[key]:
            basis = chip.standing(limit_)
            problems += _range("NM-FIT-001", f"{name}.{key}", value, allowed, basis)
    exponent, refractory = population.bias_exponent, population.refractory_delay
    basis = chip.standing("bias_exponent")
    problems += _range("NM-FIT-008", f"{name}.bias_exponent", exponent, chip.bias_exponent, basis)
    allowed, basis = (1, chip.refractory_delay_max), chip.standing("refractory_delay_max")
    problems += _range("NM-FIT-007", f"{name}.refractory_delay", refractory, allowed, basis)
    basis = chip.standing("bias_mantissa")
    for extreme in _extremes(population.bias_mantissa):
        where = f"{name}.bias_mantissa"
        problems += _range("NM-FIT-008", where, extreme, chip.bias_mantissa, basis)
    return problems


def _sigma_delta(name: str, population: QuantizedPopulation, chip: ChipSpec) -> list[Violation]:
    problems: list[Violation] = []
    align = population.spike_exponent + population.state_exponent
    if population.model == "sigma":
        for key in ("threshold", "spike_exponent", "state_exponent"):
            found = getattr(population, key)
            problems += _range("NM-FIT-009", f"{name}.{key}", found, (0, 0), MESSAGE_BASIS)
    elif min(population.spike_exponent, population.state_exponent) < 0 or align >= STATE_BITS:
        found = (
            f"the exponents {population.spike_exponent} (spike) and "
            f"{population.state_exponent} (state)"
        )
        allowed, basis = f"from 0, below {STATE_BITS} together", chip.standing("state_bits")
        problems.append(Violation("NM-FIT-009", name, found, allowed, basis))
    else:
        span, basis = (0, (STATE_LIMIT - 1) >> align), chip.standing("state_bits")
        where = f"{name}.threshold"
        problems += _range("NM-FIT-009", where, population.threshold, span, basis)
        if np.any(population.bias_mantissa):
            where, exponent = f"{name}.bias_exponent", population.bias_exponent
            problems += _range("NM-FIT-009", where, exponent, (align, align), MESSAGE_BASIS)
    span = MESSAGE_BIAS if population.model == "sigma_delta" else (0, 0)
    for extreme in _extremes(population.bias_mantissa):
        where = f"{name}.bias_mantissa"
        problems += _range("NM-FIT-009", where, extreme, span, MESSAGE_BASIS)
    return problems


def _extremes(values: IntLike) -> tuple[int, int]:
    return int(np.min(values)), int(np.max(values))


def _range(
    code: str, where: str, found: int, allowed: tuple[int, int], basis: str
) -> list[Violation]:
    low, high = allowed
    if low <= found <= high:
        return []
    return [Violation(code, where, str(found), f"{low} to {high}", basis)]


def warnings(
    network: QuantizedNetwork, chip: ChipSpec, probed: Sequence[str] | None = None
) -> list[Violation]:
    """What a chip runs with a flaw or not at all, though every limit is kept.

    ``probed`` names the populations whose spikes go to the host (None: the outputs).
    """
    found = [
        *_wide_convolutions(network, chip),
        *_hanging_convolutions(network, chip),
        *_odd_resets(network),
        *_probed(network, chip, network.outputs if probed is None else probed),
    ]
    return in_order(found)


def _windows(network: QuantizedNetwork) -> Iterator[tuple[str, QuantizedProjection, Shape]]:
    """Every convolution or pool of a projection, with the shape that it is applied to."""
    for name, projection in network.projections.items():
        shape = network.shapes[projection.source]
        for operation in projection.operations:
            if isinstance(operation, Conv | SumPool):
                yield name, projection, shape
            shape = operation.output_shape(shape)


def _wide_convolutions(network: QuantizedNetwork, chip: ChipSpec) -> Iterator[Violation]:
    for name, _, shape in _windows(network):
        if shape[0] > chip.convolution_width_max:
            yield Violation(
                "NM-FIT-050",
                f"projection {name}",
                f"a source {shape[0]} wide in x; spikes from x = "
                f"{chip.convolution_width_max} n - 1 may be dropped",
                f"up to {chip.convolution_width_max}",
                chip.standing("convolution_width_max"),
            )


def _hanging_convolutions(network: QuantizedNetwork, chip: ChipSpec) -> Iterator[Violation]:
    spiking = {n for n, p in network.populations.items() if not p.graded}
    for name, p, shape in _windows(network):
        suspect = chip.convolution_hangs_from
        if suspect is None or not {p.source, p.target} <= spiking:
            continue
        if all(size >= least for size, least in zip(shape, suspect, strict=True)):
            yield Violation(
                "NM-FIT-051",
                f"projection {name}",
                f"a source of shape {shape} between spiking populations",
                f"smaller than {suspect}",
                chip.standing("convolution_hangs_from"),
            )


def _odd_resets(network: QuantizedNetwork) -> Iterator[Violation]:
    for name, population in network.populations.items():
        interval = population.reset.interval if population.reset else 1
        if interval & (interval - 1):
            yield Violation(
                "NM-FIT-052",
                f"{name}.reset",
                f"an interval of {interval} steps",
                "powers of two",
                "documented: lava-nc lava.proc.lif.process, LIFReset",
            )


def _probed(network: QuantizedNetwork, chip: ChipSpec, names: Sequence[str]) -> Iterator[Violation]:
    count = sum(network.sizes[name] for name in names)
    if count > chip.probed_neurons_max:
        yield Violation(
            "NM-FIT-053",
            "network",
            f"{count} probed neurons ({', '.join(names)})",
            f"{chip.probed_neurons_max} a chip",
            chip.standing("probed_neurons_max"),
        )
