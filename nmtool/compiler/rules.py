"""Design rules: what must hold before a network goes to a chip.

Every rule has a code that stays: scripts and users may refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler.partition import Demand, Unsplittable, limit
from nmtool.errors import FitError
from nmtool.fixedpoint import DECAY_ONE, STATE_BITS, STATE_LIMIT
from nmtool.quantization import (
    MESSAGE_BIAS,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    check_mantissa,
)

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Rule:
    """What must hold, and what to do where it does not."""

    sentence: str
    advice: str
    severity: Severity = "error"


RULES: dict[str, Rule] = {
    "NM-FIT-001": Rule(
        "A register holds the values of its bits only.",
        "scale the weights and the threshold together, or choose another decay",
    ),
    "NM-FIT-002": Rule(
        "The exponent of a projection's weights is within the chip's range.",
        "scale the weights and the threshold of the target together",
    ),
    "NM-FIT-003": Rule(
        "Weights have a number of bits that the chip stores.",
        "compile with another number of weight bits",
    ),
    "NM-FIT-004": Rule(
        "Weight mantissas lie on the grid of their synapse format.",
        "quantise the weights again",
    ),
    "NM-FIT-005": Rule("A delay is within the chip's range.", "train with a smaller largest delay"),
    "NM-FIT-006": Rule(
        "An axonal and a synaptic delay together are within the chip's range.",
        "shorten one of the two",
    ),
    "NM-FIT-007": Rule(
        "The refractory delay is within the chip's range.", "choose a shorter refractory delay"
    ),
    "NM-FIT-008": Rule(
        "Bias mantissa and exponent are within the chip's range.",
        "choose another bias_exponent, or a smaller bias",
    ),
    "NM-FIT-009": Rule(
        "The scales of a sigma-delta neuron leave room in its state.",
        "choose smaller spike and state exponents",
    ),
    "NM-FIT-010": Rule(
        "Graded messages need a chip whose spikes carry them.",
        "use spiking neurons and spike inputs, or compile for loihi2",
    ),
    "NM-FIT-020": Rule("A neuron fits a core.", "compile for another chip"),
    "NM-FIT-021": Rule(
        "The synapses of one neuron, or the kernels of one channel, fit a core's memory.",
        "use fewer weight bits, fewer sources, or a smaller kernel",
    ),
    "NM-FIT-022": Rule(
        "The sources of one neuron fit a core's input axons.",
        "use fewer sources: a layer between, pooling, or a sparser projection",
    ),
    "NM-FIT-023": Rule(
        "The cores that one neuron sends to fit a core's output axons.",
        "send to fewer populations or cores: a layer between, or smaller targets",
    ),
    "NM-FIT-024": Rule(
        "Synapses, axons and neurons together fit a core's memory.",
        "use fewer weight bits or fewer sources",
    ),
    "NM-FIT-025": Rule("Neuron groups fit a core.", "compile for another chip"),
    "NM-FIT-026": Rule("Threshold profiles fit a core.", "compile for another chip"),
    "NM-FIT-027": Rule(
        "The synapse formats of the projections into a population fit a core.",
        "give projections the same weight bits and exponent, or join them",
    ),
    "NM-FIT-028": Rule(
        "The delays of a neuron fit a core's accumulator slots.", "use shorter delays"
    ),
    "NM-FIT-030": Rule(
        "The slices of a network fit the cores of the target.",
        "use fewer neurons, weight bits or shorter delays, or a board of more chips",
    ),
    "NM-FIT-031": Rule(
        "A given placement holds every neuron once, on cores that there are.",
        "change the placement, or leave it out",
    ),
    "NM-FIT-040": Rule(
        "A program keeps to its budget.", "make the network smaller, or the budget larger"
    ),
    "NM-FIT-050": Rule(
        "A convolution's source is not wider than one spike address counts.",
        "turn the axes, or pool the input",
        "warning",
    ),
    "NM-FIT-051": Rule(
        "Large inputs of a convolution have stopped Loihi 2 without a message.",
        "run it with a timeout, or pool the input",
        "warning",
    ),
    "NM-FIT-052": Rule(
        "A reset interval is a power of two on the chip.",
        "choose a power of two; lava-loihi refuses others, simulators run them",
        "warning",
    ),
    "NM-FIT-053": Rule(
        "Probed neurons fit the counters of a chip's embedded processors.",
        "probe fewer populations",
        "warning",
    ),
}

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


@dataclass(frozen=True)
class Violation:
    """One rule that does not hold: which object, what was found, what is allowed.

    ``basis`` says whether a documented or an inferred limit is behind it, and its source.
    """

    code: str
    where: str
    found: str
    allowed: str
    basis: str = ""
    advice: str = ""

    @property
    def severity(self) -> Severity:
        """Error or warning."""
        return RULES[self.code].severity

    def __str__(self) -> str:
        basis = f" ({self.basis})" if self.basis else ""
        advice = self.advice or RULES[self.code].advice
        return (
            f"{self.code} {self.where}: found {self.found}, allowed {self.allowed}{basis}; {advice}"
        )


def refuse(violations: Iterable[Violation]) -> None:
    """Raise all errors among violations at once, in the order of their codes.

    Raises:
        FitError: one line for each.
    """
    errors = [v for v in violations if v.severity == "error"]
    if errors:
        errors.sort(key=lambda v: v.code)
        raise FitError("\n".join(map(str, errors)))


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
    needed: int, cores: int, chips: int, layers: Sequence[tuple[str, int]], chip: ChipSpec
) -> Violation:
    """A network of more slices than there are cores; ``layers`` counts the cores of each."""
    most = sorted(layers, key=lambda layer: -layer[1])[:3]
    largest = ", ".join(f"{name} {count}" for name, count in most)
    return Violation(
        "NM-FIT-030",
        "network",
        f"{needed} cores needed (most by {largest})",
        f"{cores * chips} ({chips} x {cores})",
        chip.standing("cores"),
    )


def core_overfull(where: str, demand: Demand, resource: str, chip: ChipSpec) -> Violation:
    """A core that a given placement asks too much of."""
    return Violation(
        "NM-FIT-031",
        where,
        f"{getattr(demand, resource)} {_unit(resource)}",
        f"{limit(chip, resource)} a core",
        chip.standing(f"{resource}_per_core"),
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
        if population.graded and chip.message_bits == (0,):
            problems.append(_messages(name, population.model, chip))
    for name, source in network.inputs.items():
        if source.kind == "graded" and chip.message_bits == (0,):
            problems.append(_messages(f"input {name}", "graded values", chip))
    for name, projection in network.projections.items():
        low, high = chip.weight_exponent
        where = f"projection {name}.weight_exponent"
        _range(problems, "NM-FIT-002", where, projection.weight_exponent, low, high)
        for extreme in sorted({projection.delay_min, projection.delay_max}):
            _range(problems, "NM-FIT-005", f"projection {name}.delay", extreme, 0, chip.delay_max)
        if projection.weight_bits not in chip.weight_bits:
            allowed = ", ".join(map(str, chip.weight_bits))
            problems.append(
                Violation(
                    "NM-FIT-003",
                    f"projection {name}.weight_bits",
                    str(projection.weight_bits),
                    allowed,
                )
            )
            continue
        problems += _grid(name, projection)
    if network.delay_max > chip.delay_max:
        problems.append(
            Violation(
                "NM-FIT-006",
                "network",
                f"an axonal and a synaptic delay of {network.delay_max} steps together",
                str(chip.delay_max),
            )
        )
    return problems


def _grid(name: str, projection: QuantizedProjection) -> list[Violation]:
    try:
        check_mantissa(name, projection.weight_mantissa, projection.format)
    except FitError as error:
        where, _, rest = str(error).partition(": found ")
        found, _, allowed = rest.partition(", allowed ")
        return [Violation("NM-FIT-004", where, found, allowed)]
    return []


def _messages(where: str, what: str, chip: ChipSpec) -> Violation:
    return Violation(
        "NM-FIT-010",
        where,
        what,
        f"spikes without payload on {chip.name}",
        chip.standing("message_bits"),
    )


_SIMULATED = {"decay_u": -1, "decay_v": DECAY_ONE, "threshold": 1 << 17}
"""Values that Lava's CPU models run and no register holds: they come from netx files."""


def simulators_only(network: QuantizedNetwork, chip: ChipSpec) -> list[str]:
    """What of a network no register of the chip holds, and what would take its place there."""
    return [
        f"{name}.{key}: {value} runs on simulators only; lava-loihi would get "
        f"{min(max(value, low), high)}"
        for name, population in network.populations.items()
        if not population.graded
        for key, value, (low, high) in _registers(population, chip)
        if not low <= value <= high
    ]


def _registers(
    population: QuantizedPopulation, chip: ChipSpec
) -> list[tuple[str, int, tuple[int, int]]]:
    """Name, value and range of the registers of a CUBA population."""
    return [
        ("decay_u", population.decay_u, (0, chip.decay_max)),
        ("decay_v", population.decay_v, (0, chip.decay_max)),
        ("threshold", population.threshold, (0, chip.threshold_max)),
    ]


def _population(name: str, population: QuantizedPopulation, chip: ChipSpec) -> list[Violation]:
    problems: list[Violation] = []
    delay = population.axonal_delay
    for extreme in (int(np.min(delay)), int(np.max(delay))):
        _range(problems, "NM-FIT-005", f"{name}.axonal_delay", extreme, 0, chip.delay_max)
    if population.graded:
        return problems + _sigma_delta(name, population)
    for key, value, allowed in _registers(population, chip):
        if value != _SIMULATED[key]:
            _range(problems, "NM-FIT-001", f"{name}.{key}", value, *allowed)
    _range(
        problems,
        "NM-FIT-008",
        f"{name}.bias_exponent",
        population.bias_exponent,
        *chip.bias_exponent,
    )
    _range(
        problems,
        "NM-FIT-007",
        f"{name}.refractory_delay",
        population.refractory_delay,
        1,
        chip.refractory_delay_max,
    )
    for extreme in (population.bias_mantissa.min(), population.bias_mantissa.max()):
        _range(problems, "NM-FIT-008", f"{name}.bias_mantissa", int(extreme), *chip.bias_mantissa)
    return problems


def _sigma_delta(name: str, population: QuantizedPopulation) -> list[Violation]:
    problems: list[Violation] = []
    spike, state = population.spike_exponent, population.state_exponent
    if population.model == "sigma":
        for key in ("threshold", "spike_exponent", "state_exponent"):
            _range(problems, "NM-FIT-009", f"{name}.{key}", getattr(population, key), 0, 0)
    elif min(spike, state) < 0 or spike + state >= STATE_BITS:
        problems.append(
            Violation(
                "NM-FIT-009",
                name,
                f"the exponents {spike} (spike) and {state} (state)",
                f"from 0, below {STATE_BITS} together",
            )
        )
    else:
        limit = (STATE_LIMIT - 1) >> (spike + state)
        _range(problems, "NM-FIT-009", f"{name}.threshold", population.threshold, 0, limit)
        if np.any(population.bias_mantissa):
            align = spike + state
            _range(
                problems,
                "NM-FIT-009",
                f"{name}.bias_exponent",
                population.bias_exponent,
                align,
                align,
            )
    allowed = MESSAGE_BIAS if population.model == "sigma_delta" else (0, 0)
    for extreme in (population.bias_mantissa.min(), population.bias_mantissa.max()):
        _range(problems, "NM-FIT-009", f"{name}.bias_mantissa", int(extreme), *allowed)
    return problems


def _range(
    problems: list[Violation], code: str, name: str, found: int, low: int, high: int
) -> None:
    if not low <= found <= high:
        problems.append(Violation(code, name, str(found), f"{low} to {high}"))
