"""What a deployed program costs: the options of ``deploy``, its report and its document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from nmtool.backends import Recording, resolve_probe
from nmtool.backends.base import Probe
from nmtool.chip import ChipSpec, HardwareConfig, load_chip
from nmtool.cli.common import table
from nmtool.cli.runs import Given
from nmtool.compiler import Program
from nmtool.measure.cost import (
    UPDATES,
    Counts,
    Estimate,
    check_placed,
    choose_model,
    count,
    estimate,
    no_model,
)
from nmtool.measure.quantity import Quantity


@dataclass(frozen=True)
class Costing:
    """The chip whose operations are counted, and the model that prices them (None: it has none)."""

    chip: ChipSpec
    model: str | None

    @property
    def probe(self) -> str:
        """What has to be recorded: spikes, and the states where updates have prices."""
        models = self.chip.cost_models or {}
        priced = self.model is not None and not models[self.model].events.keys().isdisjoint(UPDATES)
        return "spikes,current,voltage" if priced else "spikes"

    def probed(self, program: Program, chosen: Probe) -> Probe:
        """A probe, and what has to be recorded beside it.

        Raises:
            ArtifactError: nothing can be counted of the program.
        """
        check_placed(program)
        needed = resolve_probe(program, self.probe)
        return {
            quantity: tuple(dict.fromkeys((*needed.get(quantity, ()), *chosen.get(quantity, ()))))
            for quantity in {**needed, **chosen}
        }

    def report(
        self, program: Program, recording: Recording, given: Given
    ) -> tuple[dict[str, Any], str]:
        """What a recording cost: a document, and text for people."""
        counts = count(program, recording, given.spikes, self.chip)
        document: dict[str, Any] = {"counts": counts.as_json(), "modelled": None}
        lines = [_counted(counts)]
        if self.model is None:
            document["no_model"] = no_model(self.chip)
            lines.append(no_model(self.chip))
        else:
            modelled = estimate(counts, self.chip, self.model)
            document["modelled"] = modelled.as_json()
            lines.append(_modelled(modelled, self.chip))
        return document, "\n\n".join(lines)


def cost_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that ask what a run costs; see ``costing``."""
    for option in (
        click.option(
            "--cost-model",
            metavar="NAME",
            help="The chip's cost model for --cost, which this implies [default: its first].",
        ),
        click.option(
            "--cost",
            is_flag=True,
            help="Count operations; model energy and time where the chip has a cost model.",
        ),
    ):
        function = option(function)
    return function


def costing(cost: bool, model: str | None, hardware: HardwareConfig) -> Costing | None:
    """What ``--cost`` and ``--cost-model`` ask for, of the target's chip.

    Raises:
        ConfigError: the chip has no such model.
    """
    if not cost and model is None:
        return None
    chip = load_chip(hardware.chip)
    if model is None and not chip.cost_models:
        return Costing(chip, None)
    return Costing(chip, choose_model(chip, model))


def _counted(counts: Counts) -> str:
    """Tables of projections, populations and the busiest cores."""
    projections = [
        (p.projection, p.kind, p.spikes, p.operations, p.effective) for p in counts.projections
    ]
    populations = [
        (
            p.population,
            p.updates,
            "not known" if p.active is None else p.active,
            p.spikes,
            p.messages,
            p.hops_x,
            p.hops_y,
            p.crossings,
        )
        for p in counts.populations
    ]
    peaks = [
        (name, peak.count, peak.chip, peak.core, peak.sample, peak.step)
        for name, peak in counts.peaks.items()
    ]
    messages = [(name, spikes, sent) for name, (spikes, sent) in counts.inputs.items()]
    columns = ("updates", "active", "spikes", "messages", "hops x", "hops y", "chip crossings")
    shown = {name: counts.quantities[name] for name in NEUROBENCH}
    return "\n\n".join(
        [
            f"\ncounted over {counts.samples} x {counts.steps} steps on {len(counts.cores)} cores",
            table(("projection", "synapses", "spikes", "operations", "effective"), projections),
            table(("population", *columns), populations),
            *([table(("input", "spikes", "messages"), messages)] if messages else []),
            table(("busiest core and step", "count", "chip", "core", "sample", "step"), peaks),
            _quantities(shown),
        ]
    )


NEUROBENCH = ("synaptic_operations", "activation_sparsity", "connection_sparsity")
"""The counted quantities that NeuroBench defines."""


def _modelled(modelled: Estimate, chip: ChipSpec) -> str:
    """Energy and time, and what is not in them."""
    lines = [
        f"modelled by {modelled.model} for {chip.name} ({modelled.about})",
        _quantities(modelled.quantities),
    ]
    if modelled.static_power is not None:
        source = chip.facts["static_power"].source
        lines.append(f"static power is not in the energy: {source}")
    if modelled.unpriced:
        lines.append(f"no energy in the model for: {', '.join(modelled.unpriced)}")
    if modelled.no_time:
        lines.append(f"no time: {modelled.no_time}")
    return "\n".join(lines)


def _quantities(quantities: dict[str, Quantity]) -> str:
    rows = [(name, f"{q.value:.4g}", q.unit, q.basis) for name, q in quantities.items()]
    return table(("quantity", "value", "unit", "basis"), rows)
