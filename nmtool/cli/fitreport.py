"""What a program takes of its chips: one screen, a document, a table of layers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.chip import DOCUMENTED, UNLIMITED, ChipSpec
from nmtool.cli.common import table
from nmtool.cli.parameters import bounds_table, errors_table, registers_table
from nmtool.compiler import Fit, Program
from nmtool.compiler.budget import BITS_PER_KB
from nmtool.compiler.fit import LayerFit
from nmtool.compiler.headroom import CORES, Headroom
from nmtool.compiler.partition import limit
from nmtool.compiler.place import RANDOM_PLACEMENTS
from nmtool.network import counted
from nmtool.quantization import dequantize_weights

_NAMES = {"synapse_bits": "synapse memory", "memory_words": "memory", CORES: "cores"}
_LABEL, _VALUE = 24, 10


@dataclass(frozen=True)
class LayerRow:
    """A layer as the table has it.

    Cores and memory are those of the whole layer, shares and axons those of its fullest core.
    ``error`` is the rms error of the weights relative to the rms of the weights on the chip; None
    where nothing was quantised. ``first_step``: None for a layer that no input reaches.
    ``counting``: documented or inferred, of the formulas of memory and axons.
    """

    layer: str
    neurons: int
    cores: int
    synapse_memory_kb: float
    synapse_memory_share: float | None
    input_axons: int
    output_axons: int
    limiting: str
    limiting_share: float
    weight_format: str
    error: float | None
    first_step: int | None
    counting: str


@dataclass(frozen=True, eq=False)
class Report:
    """A program with what is said about it; ``predicted``: somebody else places it in the end."""

    program: Program
    chip: ChipSpec
    headroom: Headroom
    limits: str
    budget: Mapping[str, float]
    predicted: bool = False

    @property
    def fit(self) -> Fit:
        """What the program takes."""
        assert self.program.fit is not None
        return self.program.fit

    @cached_property
    def rows(self) -> list[LayerRow]:
        """Every layer in data-flow order."""
        return [self._row(layer) for layer in self.fit.layers]

    def _row(self, layer: LayerFit) -> LayerRow:
        name, largest = layer.population, layer.largest
        incoming = [p for p in self.program.network.projections.values() if p.target == name]
        words = dict.fromkeys(str(p.format) for p in incoming)
        return LayerRow(
            name,
            layer.neurons,
            layer.cores,
            layer.total.synapse_bits / BITS_PER_KB,
            self._share(largest.synapse_bits),
            largest.input_axons,
            largest.output_axons,
            resource_name(layer.limiting),
            layer.share,
            "; ".join(words) or "none",
            weight_error(self.program, name),
            layer.first_step,
            self.counting,
        )

    def _share(self, synapse_bits: int) -> float | None:
        most = limit(self.chip, "synapse_bits")
        return synapse_bits / most if most < UNLIMITED else None

    @property
    def n_weights(self) -> int:
        """Weights that are stored; the kernels of a convolution once."""
        projections = self.program.network.projections.values()
        return sum(p.weight_mantissa.size for p in projections)

    @property
    def counting(self) -> str:
        """How sure the formulas are that memory and axons are counted by: documented, inferred."""
        standings = {self.chip.facts[key].standing for key in ("synapse_memory", "axons")}
        return "documented" if standings <= set(DOCUMENTED) else "inferred"

    def text(self, verbose: bool) -> str:
        """One screen; ``verbose`` adds every parameter and the bounds of the states."""
        parts = [_lines(self._head()), self._table(), _lines([*self._totals(), *self._outlook()])]
        if verbose:
            parts += [
                registers_table(self.program),
                errors_table(self.program),
                bounds_table(self.program),
            ]
        return "\n\n".join(parts)

    def _head(self) -> list[tuple[str, object, str]]:
        program, fit = self.program, self.fit
        only = ", simulators only (see the warnings)" if program.simulators_only else ""
        known = "documented and inferred ones" if self.limits == "all" else "documented ones only"
        chips, cores = range(fit.chips), range(fit.cores_per_chip)
        board = f"{counted(chips, 'chip')} x {counted(cores, 'core')}"
        return [
            (f"Network summary for {program.network.name}", "", ""),
            ("Program", program.fingerprint, ""),
            ("Chip", program.chip + only, ""),
            ("Limits", known, ""),
            ("Memory and axons", f"by {self.counting} formulas (docs/fit.md)", ""),
            ("Board", board, ""),
            ("Sample", program.reset.n_steps, f"steps, reset held {program.reset.hold} between"),
            ("Latency", program.latency, "steps from the first input to the first output spike"),
        ]

    def _table(self) -> str:
        header = (
            "layer",
            "neurons",
            "cores",
            "synapses",
            "of a core",
            "axons in",
            "out",
            "limited by",
            "",
            "weights",
            "error",
            "step",
        )
        rows = [
            (
                row.layer,
                row.neurons,
                row.cores,
                f"{row.synapse_memory_kb:.1f} KB",
                percent(row.synapse_memory_share),
                row.input_axons,
                row.output_axons,
                row.limiting,
                percent(row.limiting_share),
                row.weight_format,
                percent(row.error),
                "-" if row.first_step is None else row.first_step,
            )
            for row in self.rows
        ]
        return table(header, rows)

    def _totals(self) -> list[tuple[str, object, str]]:
        fit, total = self.fit, self.fit.total
        share = fit.cores / fit.cores_available
        memory = self._share(total.synapse_bits)
        of_all = "" if memory is None else f" ({percent(memory / fit.cores_available)} of all)"
        hops = fit.hops
        return [
            ("Cores used", fit.cores, f"of {fit.cores_available} ({percent(share)})"),
            ("Neurons", total.neurons, ""),
            ("Weights", self.n_weights, ""),
            ("Synapse memory", f"{total.synapse_bits / BITS_PER_KB:.1f}", f"KB{of_all}"),
            ("Spike-hops", hops.hops, f"for {hops.basis}, {hops.crossings} between chips"),
            (
                "  placed at random",
                f"{hops.random:.1f}",
                f"mean of {RANDOM_PLACEMENTS}, on these cores",
            ),
        ]

    def _outlook(self) -> list[tuple[str, object, str]]:
        lines: list[tuple[str, object, str]] = [("Headroom", self._nearest(), "")]
        lines.append(("", self._savings(), ""))
        if self.headroom.probe_cores:
            cores = counted(range(self.headroom.probe_cores), "core")
            lines.append(("", f"the target's probes take {cores} more than the outputs alone", ""))
        if self.predicted:
            lines.append(
                ("Placement", "a prediction: on the board Intel's own compiler places", "")
            )
        if self.budget:
            kept = ", ".join(f"{key}={most:g}" for key, most in self.budget.items())
            lines.append(("Budget", f"kept: {kept}", ""))
        return lines

    def _nearest(self) -> str:
        nearest = self.headroom.nearest
        if nearest is None:
            return "nothing is taken"
        of = "the board" if nearest.resource == CORES else "a core"
        return (
            f"{nearest.population} fills {of} first: {resource_name(nearest.resource)} "
            f"{percent(nearest.share)}, {_room(nearest.room)}"
        )

    def _savings(self) -> str:
        said, best = [], 0
        for saving in self.headroom.savings:
            if saving.freed > best:
                best = saving.freed
                said.append(f"at {saving.weight_bits} bits {counted(range(best), 'core')}")
        return f"fewer weight bits would free {', '.join(said)}" if said else _NO_SAVINGS

    def document(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        program, fit = self.program, self.fit
        return {
            "fingerprint": program.fingerprint,
            "chip": program.chip,
            "limits": self.limits,
            "counting": self.counting,
            "latency": program.latency,
            "reset": asdict(program.reset),
            "layers": [asdict(row) for row in self.rows],
            "weights": self.n_weights,
            "fit": {
                **asdict(fit),
                "cores_available": fit.cores_available,
                "total": asdict(fit.total),
            },
            "headroom": asdict(self.headroom),
            "budget": dict(self.budget),
            "placement": [asdict(part) for part in program.placement],
            "parameters": [asdict(error) for error in program.network.errors],
            "simulators_only": list(program.simulators_only),
            "bounds": [{**asdict(b), "safe": b.safe} for b in program.bounds],
        }

    def csv(self) -> str:
        """The table of layers; shares and errors as fractions, empty where there is none."""
        target = io.StringIO()
        writer = csv.DictWriter(target, [*LayerRow.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return target.getvalue()


_NO_SAVINGS = "fewer weight bits would free no core"


def weight_error(program: Program, population: str) -> float | None:
    r"""Relative rms error of the weights into a population, :math:`|w - \hat w| / |\hat w|`.

    The weights :math:`\hat w` are those on the chip, of all projections together.
    """
    errors = {error.name: error.rms_error for error in program.network.errors}
    squared, power = 0.0, 0.0
    for name, p in program.network.projections.items():
        if p.target == population and f"{name}.weight" in errors:
            squared += errors[f"{name}.weight"] ** 2 * p.weight_mantissa.size
            power += float(np.sum(dequantize_weights(p.weight_mantissa, p.format) ** 2))
    return float(np.sqrt(squared / power)) if power else None


def resource_name(resource: str) -> str:
    """What people call a resource."""
    return _NAMES.get(resource, resource.replace("_", " "))


def _room(room: float) -> str:
    """Room for growth, in words."""
    if room <= 0:
        return "full"
    return f"room for {room:.1%} more" if room < 1 else f"room for {room + 1:.1f} times that"


def percent(share: float | None) -> str:
    """A share with two figures that count, or a dash."""
    if share is None:
        return "-"
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _lines(lines: list[tuple[str, object, str]]) -> str:
    """Label left, numbers right-aligned, the unit after them."""
    return "\n".join(
        f"{label:<{_LABEL}}{value:>{_VALUE}} {unit}".rstrip()
        if isinstance(value, int) or unit
        else f"{label:<{_LABEL}}{value}".rstrip()
        for label, value, unit in lines
    )
