"""What became of every parameter: the long tables of ``nmtool compile -v``."""

from __future__ import annotations

import numpy as np

from nmtool.cli.common import table
from nmtool.compiler import Program


def registers_table(program: Program) -> str:
    """The registers of every population and the format of its weights."""
    net = program.network
    rows = []
    for name in program.order:
        population = net.populations[name]
        incoming = [p for p in net.projections.values() if p.target == name]
        rows.append(
            (
                name,
                population.size,
                population.decay_u,
                population.decay_v,
                population.threshold,
                _bias(name, program),
                sum(p.weight_mantissa.size for p in incoming),
                ", ".join(str(p.format) for p in incoming) or "none",
                max((p.delay_max for p in incoming), default=0),
            )
        )
    header = (
        *("population", "neurons", "decay_u", "decay_v", "threshold", "bias"),
        *("weights", "format", "delay"),
    )
    return table(header, rows)


def errors_table(program: Program) -> str:
    """What was wanted of every parameter, and what is on the chip."""
    rows = [
        (
            e.name,
            e.wanted,
            e.got,
            f"{e.max_error:.2e}",
            f"{e.rms_error:.2e}",
            f"{100 * e.clipped:.3g} %",
            e.dead_rows,
        )
        for e in program.network.errors
    ]
    header = ("parameter", "wanted", "on the chip", "max error", "rms error", "clipped")
    return table((*header, "dead rows"), rows)


def bounds_table(program: Program) -> str:
    """The worst states of every population within one sample."""
    rows = [(b.population, b.current, b.voltage, "yes" if b.safe else "NO") for b in program.bounds]
    return table(("population", "worst |u|", "worst |v|", "inside 24 bits"), rows)


def _bias(name: str, program: Program) -> str:
    """The exponent of the bias mantissas of a population that has any."""
    population = program.network.populations[name]
    driven = any(s.drives == name and s.kind == "bias" for s in program.network.inputs.values())
    if driven or np.any(population.bias_mantissa):
        return f"mantissa x 2^{population.bias_exponent}"
    return "none"
