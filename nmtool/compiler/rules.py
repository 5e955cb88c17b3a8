"""Design rules: what must hold before a network goes to a chip."""

from __future__ import annotations

from nmtool.chip import ChipSpec
from nmtool.errors import FitError
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, check_mantissa


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
        _range(problems, f"projection {name}.delay", projection.delay_max, 0, chip.delay_max)
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


def _population(name: str, population: QuantizedPopulation, chip: ChipSpec) -> list[str]:
    problems: list[str] = []
    _range(problems, f"{name}.decay_u", population.decay_u, 0, chip.decay_max)
    _range(problems, f"{name}.decay_v", population.decay_v, 0, chip.decay_max)
    _range(problems, f"{name}.threshold", population.threshold, 0, chip.threshold_max)
    _range(problems, f"{name}.bias_exponent", population.bias_exponent, *chip.bias_exponent)
    for extreme in (population.bias_mantissa.min(), population.bias_mantissa.max()):
        _range(problems, f"{name}.bias_mantissa", int(extreme), *chip.bias_mantissa)
    return problems


def _range(problems: list[str], name: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        problems.append(f"{name}: found {found}, allowed {low} to {high}")
