"""Budgets: what a program may take at most, checked when it is compiled."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from nmtool.compiler.fit import Fit
from nmtool.compiler.program import Program
from nmtool.compiler.rules import Violation, refuse
from nmtool.errors import UsageError

BITS_PER_KB = 8 * 1024
Measure = Callable[[Program, Fit], float]

MEASURES: dict[str, tuple[Measure, str]] = {
    "cores": (lambda program, fit: fit.cores, "cores"),
    "chips": (lambda program, fit: len({part.chip for part in program.placement}), "chips"),
    "latency": (lambda program, fit: program.latency, "steps"),
    "neurons": (lambda program, fit: fit.total.neurons, "neurons"),
    "synapse_memory": (
        lambda program, fit: fit.total.synapse_bits / BITS_PER_KB,
        "KB of synapse memory",
    ),
    "input_axons": (lambda program, fit: fit.total.input_axons, "input axons"),
    "output_axons": (lambda program, fit: fit.total.output_axons, "output axons"),
}
"""What a budget can hold: how it is measured, and its unit. A KB is 1024 bytes."""

Budget = Mapping[str, float]


def parse_budget(text: str) -> dict[str, float]:
    """A budget from ``cores=24,latency=8``.

    Raises:
        UsageError: an unknown key, one that stands twice, or no number from 0.
    """
    budget: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, number = (part.strip() for part in item.partition("="))
        if key in budget:
            raise UsageError(f"budget: found {key} twice, allowed once")
        budget[_known(key)] = _number(key, number)
    if not budget:
        raise UsageError(f"budget: found {text!r}, allowed KEY=NUMBER of {', '.join(MEASURES)}")
    return budget


def most_cores(budget: Budget) -> int | None:
    """The whole cores of a budget, for which slices are to share cores; None: it has none."""
    return int(budget["cores"]) if "cores" in budget else None


def check_budget(program: Program, budget: Budget) -> None:
    """Refuse a program that takes more than its budget.

    Raises:
        FitError: every number that is exceeded, one a line.
        UsageError: an unknown key.
    """
    refuse(over_budget(program, budget))


def over_budget(program: Program, budget: Budget) -> list[Violation]:
    """Where a program takes more than its budget."""
    violations = []
    for key, most in budget.items():
        measure, unit = MEASURES[_known(key)]
        found = measure(program, program.fit) if program.fit else 0
        if found > most:
            said = f"{found:g} {unit.removesuffix('s') if found == 1 else unit}"
            violations.append(Violation("NM-FIT-040", f"budget {key}", said, f"{most:g}"))
    return violations


def _known(key: str) -> str:
    if key not in MEASURES:
        close = difflib.get_close_matches(key, MEASURES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"budget: found {key!r}, allowed {', '.join(MEASURES)}{hint}")
    return key


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"budget {key}: found {text!r}, allowed a number from 0")
    return number
