"""Design rules: what must hold before a network goes to a chip."""

from __future__ import annotations

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.errors import FitError
from nmtool.fixedpoint import DECAY_ONE, STATE_BITS, STATE_LIMIT
from nmtool.quantization import (
    MESSAGE_BIAS,
    QuantizedNetwork,
    QuantizedPopulation,
    check_mantissa,
)


def check(network: QuantizedNetwork, chip: ChipSpec) -> None:
    """Check every register and weight of a network against the chip's ranges.

    Raises:
        FitError: all violations at once, one a line, each with what was found and is allowed.
    """
    problems: list[str] = []
    for name, population in network.populations.items():
        problems += _population(name, population, chip)
    for name, projection in network.projections.items():
        low, high = chip.weight_exponent
        _range(
            problems, f"projection {name}.weight_exponent", projection.weight_exponent, low, high
        )
        for extreme in sorted({projection.delay_min, projection.delay_max}):
            _range(problems, f"projection {name}.delay", extreme, 0, chip.delay_max)
        if projection.weight_bits not in chip.weight_bits:
            allowed = ", ".join(map(str, chip.weight_bits))
            problems.append(
                f"projection {name}.weight_bits: found {projection.weight_bits}, allowed {allowed}"
            )
            continue
        try:
            check_mantissa(name, projection.weight_mantissa, projection.format)
        except FitError as error:
            problems.append(str(error))
    if network.delay_max > chip.delay_max:
        problems.append(
            f"network: found an axonal and a synaptic delay of {network.delay_max} steps together, "
            f"allowed {chip.delay_max}"
        )
    if problems:
        raise FitError("\n".join(problems))


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


def _population(name: str, population: QuantizedPopulation, chip: ChipSpec) -> list[str]:
    problems: list[str] = []
    delay = population.axonal_delay
    for extreme in (int(np.min(delay)), int(np.max(delay))):
        _range(problems, f"{name}.axonal_delay", extreme, 0, chip.delay_max)
    if population.graded:
        return problems + _sigma_delta(name, population)
    for key, value, limit in _registers(population, chip):
        if value != _SIMULATED[key]:
            _range(problems, f"{name}.{key}", value, *limit)
    _range(problems, f"{name}.bias_exponent", population.bias_exponent, *chip.bias_exponent)
    _range(
        problems,
        f"{name}.refractory_delay",
        population.refractory_delay,
        1,
        chip.refractory_delay_max,
    )
    for extreme in (population.bias_mantissa.min(), population.bias_mantissa.max()):
        _range(problems, f"{name}.bias_mantissa", int(extreme), *chip.bias_mantissa)
    return problems


def _sigma_delta(name: str, population: QuantizedPopulation) -> list[str]:
    problems: list[str] = []
    spike, state = population.spike_exponent, population.state_exponent
    if population.model == "sigma":
        for key in ("threshold", "spike_exponent", "state_exponent"):
            _range(problems, f"{name}.{key}", getattr(population, key), 0, 0)
    elif min(spike, state) < 0 or spike + state >= STATE_BITS:
        problems.append(
            f"{name}: found the exponents {spike} (spike) and {state} (state), allowed from 0, "
            f"below {STATE_BITS} together"
        )
    else:
        limit = (STATE_LIMIT - 1) >> (spike + state)
        _range(problems, f"{name}.threshold", population.threshold, 0, limit)
        if np.any(population.bias_mantissa):
            align = spike + state
            _range(problems, f"{name}.bias_exponent", population.bias_exponent, align, align)
    allowed = MESSAGE_BIAS if population.model == "sigma_delta" else (0, 0)
    for extreme in (population.bias_mantissa.min(), population.bias_mantissa.max()):
        _range(problems, f"{name}.bias_mantissa", int(extreme), *allowed)
    return problems


def _range(problems: list[str], name: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        problems.append(f"{name}: found {found}, allowed {low} to {high}")
