"""Fit: what a placed network takes of a chip, layer by layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from nmtool.chip import ChipSpec, HardwareConfig
from nmtool.compiler.latency import Arrivals, first_step
from nmtool.compiler.partition import RESOURCES, Boxes, Costs, Demand, exceeded, partition, shares
from nmtool.compiler.place import (
    Activity,
    Hops,
    Placement,
    Slice,
    pack,
    place,
    slices_of,
    spike_hops,
    traffic,
)
from nmtool.compiler.rules import Violation, core_overfull, too_many_cores, unsplittable
from nmtool.compiler.wiring import Box, listed, whole
from nmtool.errors import ConfigError
from nmtool.faultmodel import CoreName
from nmtool.fixedpoint import BoolArray
from nmtool.network import counted
from nmtool.operations import Shape
from nmtool.quantization import QuantizedNetwork

Core: TypeAlias = tuple[int, int]
"""A core as (chip, core)."""

SPLITTING = (
    "neurons",
    "synapse_bits",
    "input_axons",
    "output_axons",
    "delay_slots",
    "memory_words",
)
"""The resources that decide how large a slice is."""


@dataclass(frozen=True)
class Site:
    """What a program is laid out for: chips and cores of a board, probes, and what is known.

    ``cores`` of each chip can be used (None: all), ``probed`` names the populations whose spikes
    go to the host (None: the outputs). ``activity`` holds the spikes of every neuron; without it
    every neuron counts as one spike. ``placement`` replaces nmtool's own. Where there are more
    slices than ``core_budget`` (None: than cores), slices share cores. ``excluded`` cores, named by
    number or as (chip, core), hold nothing.
    """

    chips: int = 1
    cores: int | None = None
    probed: tuple[str, ...] | None = None
    activity: Activity | None = None
    placement: Placement | None = None
    core_budget: int | None = None
    excluded: tuple[CoreName, ...] = ()

    @classmethod
    def of(cls, hardware: HardwareConfig, populations: Iterable[str]) -> Site:
        """Chips, cores and probed populations of a target.

        Raises:
            ConfigError: the target probes a population that there is not.
        """
        probed = _probed(hardware, list(populations))
        return cls(
            hardware.chips, hardware.cores_per_chip, probed, excluded=hardware.excluded_cores
        )

    def cores_of(self, chip: ChipSpec) -> int:
        """Cores of each chip that can be used."""
        return chip.cores if self.cores is None else min(self.cores, chip.cores)

    def room(self, chip: ChipSpec) -> int:
        """Cores that can be used, of all chips."""
        return self.cores_of(chip) * self.chips - len(self.excluded_cores(chip))

    def excluded_cores(self, chip: ChipSpec) -> frozenset[Core]:
        """The cores, as (chip, core), that could be used and are to hold nothing."""
        found = (divmod(n, chip.cores) if isinstance(n, int) else n for n in self.excluded)
        return frozenset(
            (number, core)
            for number, core in found
            if number < self.chips and core < self.cores_of(chip)
        )

    def wanted(self, chip: ChipSpec) -> int:
        """Cores to keep to, if slices that share cores can: the budget, or all."""
        room = self.room(chip)
        return room if self.core_budget is None else min(room, self.core_budget)


def _probed(hardware: HardwareConfig, populations: Sequence[str]) -> tuple[str, ...] | None:
    """The populations whose spikes a target probes; None: the outputs."""
    wanted = hardware.probes.spikes
    if wanted == "outputs":
        return None
    if wanted == "all":
        return tuple(populations)
    for name in wanted:
        if name not in populations:
            close = difflib.get_close_matches(name, populations, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"target {hardware.name}: probes.spikes: found the population {name!r}, allowed "
                f"outputs, all, or some of {', '.join(populations)}{hint}"
            )
    return tuple(wanted)


@dataclass(frozen=True)
class LayerFit:
    """What a population takes: of cores, of the one that it takes most of, and of all together.

    ``largest`` is the most that it takes of each resource of a core. ``limiting`` is the resource
    of which most, the ``share``, is taken of one of its cores, by all that is there.
    ``first_step`` is the first step after an input spike at which it can spike (None: it cannot).
    """

    population: str
    neurons: int
    cores: int
    box: Box
    largest: Demand
    total: Demand
    limiting: str
    share: float
    first_step: int | None = None


@dataclass(frozen=True)
class Fit:
    """What a program takes of its chips."""

    chips: int
    cores_per_chip: int
    cores: int
    layers: tuple[LayerFit, ...]
    hops: Hops

    @property
    def cores_available(self) -> int:
        """The cores of all chips."""
        return self.chips * self.cores_per_chip

    @property
    def total(self) -> Demand:
        """What all layers take together."""
        return sum((layer.total for layer in self.layers), Demand())


def with_first_steps(fit: Fit, arrival: Arrivals) -> Fit:
    """The same with the first step of every layer."""
    layers = (replace(la, first_step=first_step(arrival, la.population)) for la in fit.layers)
    return replace(fit, layers=tuple(layers))


def lay_out(
    network: QuantizedNetwork, chip: ChipSpec, site: Site
) -> tuple[Placement, Fit | None, list[Violation]]:
    """Partition and place a network.

    Returns the placement, what it takes, and the rules that do not hold; without a placement where
    there is none.
    """
    if site.placement is None and (violation := _too_many_neurons(network, chip, site)):
        return (), None, [violation]
    costs = Costs.of(network, chip, site.probed)
    if site.placement is not None:
        return _given(costs, site, site.placement)
    boxes, problems = partition(costs)
    known = list(network.populations)
    problems.sort(key=lambda problem: known.index(problem.population))
    violations = [v for problem in problems for v in unsplittable(problem, chip)]
    if violations:
        return (), None, violations
    slices = slices_of(boxes)
    demands = [costs.demand(name, box, boxes) for name, box in slices]
    n_cores = site.cores_of(chip)
    bins = pack(demands, chip, site.wanted(chip))
    if len(bins) > site.room(chip):
        layers = [(name, len(held)) for name, held in boxes.items()]
        return (), None, [_too_many_cores(len(bins), layers, chip, site)]
    flow = traffic(network, costs.wirings, slices, site.activity)
    excluded = [number * n_cores + core for number, core in site.excluded_cores(chip)]
    where = place(flow, bins, chip, n_cores, excluded)
    core = {index: int(where[b]) for b, held in enumerate(bins) for index in held}
    placement = tuple(
        Slice(name, box, *divmod(core[index], n_cores)) for index, (name, box) in enumerate(slices)
    )
    hops = spike_hops(flow, placement, chip, _basis(site))
    return placement, _fit(network, chip, site, placement, demands, hops), []


def _too_many_cores(
    needed: int, layers: Sequence[tuple[str, int]], chip: ChipSpec, site: Site
) -> Violation:
    """More slices than there are cores to put them on."""
    violation = too_many_cores(needed, site.cores_of(chip), site.chips, layers, chip)
    if not site.excluded_cores(chip):
        return violation
    without = f"{site.room(chip)}: {violation.allowed} without {len(site.excluded_cores(chip))}"
    return replace(violation, allowed=f"{without} excluded ones")


def _too_many_neurons(network: QuantizedNetwork, chip: ChipSpec, site: Site) -> Violation | None:
    """A network that not even full cores could hold: known without cutting anything."""
    room = chip.neurons_per_core
    cores = site.cores_of(chip)
    needed = -(-sum(p.size for p in network.populations.values()) // room)
    if needed <= site.room(chip):
        return None
    layers = [(name, -(-p.size // room)) for name, p in network.populations.items()]
    chips = -(-needed // cores)
    return replace(
        too_many_cores(needed, cores, site.chips, layers, chip, "at least "),
        advice=f"use fewer neurons, or a board of {chips} chips or more (chips: {chips})",
    )


def _given(
    costs: Costs, site: Site, placement: Placement
) -> tuple[Placement, Fit | None, list[Violation]]:
    """A placement from elsewhere: held against every limit."""
    network, chip = costs.network, costs.chip
    if wrong := misplaced(shapes_of(network), placement, site.chips, site.cores_of(chip)):
        return (), None, [violation for _, violation in wrong]
    if excluded := list(_on_excluded(placement, site, chip)):
        return (), None, excluded
    boxes = _boxes(network, placement)
    ordered = tuple(s for name in boxes for s in placement if s.population == name)
    demands = [costs.demand(s.population, s.box, boxes) for s in ordered]
    if violations := list(_overfull(chip, ordered, demands)):
        return (), None, violations
    flow = traffic(network, costs.wirings, slices_of(boxes), site.activity)
    hops = spike_hops(flow, ordered, chip, _basis(site))
    return ordered, _fit(network, chip, site, ordered, demands, hops), []


def held_against(
    network: QuantizedNetwork, chip: ChipSpec, placement: Placement, site: Site
) -> list[Violation]:
    """What is wrong with a placement, if there is one: slices, cores, and what the cores hold.

    Spikes to the host are not counted: which are probed is not known.
    """
    if not placement:
        return []
    if wrong := misplaced(shapes_of(network), placement, site.chips, site.cores_of(chip)):
        return [violation for _, violation in wrong]
    if excluded := list(_on_excluded(placement, site, chip)):
        return excluded
    costs, boxes = Costs.of(network, chip, ()), _boxes(network, placement)
    demands = [costs.demand(s.population, s.box, boxes) for s in placement]
    return list(_overfull(chip, placement, demands))


def _on_excluded(placement: Placement, site: Site, chip: ChipSpec) -> Iterable[Violation]:
    """Slices on cores that are to hold nothing."""
    excluded = site.excluded_cores(chip)
    for part in placement:
        if (part.chip, part.core) in excluded:
            yield Violation(
                "NM-FIT-031",
                f"placement of {part.population} {listed(part.box)}",
                f"chip {part.chip}, core {part.core}, which the target excludes",
                "cores that are not among its excluded_cores",
            )


def shapes_of(network: QuantizedNetwork) -> dict[str, Shape]:
    """The shape of every population."""
    return {name: network.shapes[name] for name in network.populations}


def misplaced(
    shapes: Mapping[str, Shape], placement: Placement, chips: int, cores: int
) -> list[tuple[int | None, Violation]]:
    """Slices that are none of the populations', or on no core, and neurons not placed once.

    ``shapes`` holds the shape of each population. Every violation comes with the index of the slice
    that is at fault, None where there is none.
    """
    wrong: list[tuple[int | None, Violation]] = [
        (
            index,
            Violation("NM-FIT-031", f"placement of {part.population} {listed(part.box)}", *said),
        )
        for index, part in enumerate(placement)
        for said in _wrong(shapes, part, chips, cores)
    ]
    return wrong or list(_uncovered(shapes, placement))


def _wrong(
    shapes: Mapping[str, Shape], part: Slice, chips: int, cores: int
) -> Iterable[tuple[str, str]]:
    """What is wrong with one slice: what was found and what is allowed."""
    shape = shapes.get(part.population)
    if shape is None:
        yield f"the population {part.population}", ", ".join(shapes)
    elif len(part.box) != len(shape) or not all(
        0 <= start < stop <= size for (start, stop), size in zip(part.box, shape, strict=True)
    ):
        yield listed(part.box), f"a slice inside {listed(whole(shape))}"
    if not (0 <= part.chip < chips and 0 <= part.core < cores):
        found = f"chip {part.chip}, core {part.core}"
        yield found, f"chips 0 to {chips - 1}, cores 0 to {cores - 1}"


def _uncovered(
    shapes: Mapping[str, Shape], placement: Placement
) -> Iterable[tuple[int | None, Violation]]:
    """Populations of which not every neuron is in one slice."""
    for name, shape in shapes.items():
        held = {index: s.box for index, s in enumerate(placement) if s.population == name}
        times = np.zeros(shape, dtype=np.int64)
        for box in held.values():
            times[tuple(slice(*ends) for ends in box)] += 1
        wrong = ((times.ravel() == 0, "no slice"), (times.ravel() > 1, "several slices"))
        if found := " and ".join(
            _where(neurons, where) for neurons, where in wrong if neurons.any()
        ):
            allowed = f"each of its {times.size} neurons in one"
            violation = Violation("NM-FIT-031", f"placement of {name}", found, allowed)
            yield next(iter(held), None), violation


def _where(neurons: BoolArray, where: str) -> str:
    """How many neurons are there, and the first of them."""
    places = np.flatnonzero(neurons)
    return f"{counted(places, 'neuron')} in {where} (the first: {places[0]})"


def _boxes(network: QuantizedNetwork, placement: Placement) -> Boxes:
    """The boxes of every population, in the order of the network."""
    held: dict[str, list[Box]] = {name: [] for name in network.populations}
    for part in placement:
        held[part.population].append(part.box)
    return {name: tuple(boxes) for name, boxes in held.items()}


def _overfull(
    chip: ChipSpec, placement: Placement, demands: Sequence[Demand]
) -> Iterable[Violation]:
    """The cores of a placement that hold more than they can, by the demands of its slices."""
    held: dict[tuple[int, int], list[str]] = {}
    for part in placement:
        held.setdefault((part.chip, part.core), []).append(part.population)
    for core, demand in _by_core(zip(placement, demands, strict=True)).items():
        for resource in exceeded(demand, chip):
            where = f"chip {core[0]} core {core[1]} ({', '.join(dict.fromkeys(held[core]))})"
            yield core_overfull(where, demand, resource, chip)


def _by_core(slices: Iterable[tuple[Slice, Demand]]) -> dict[tuple[int, int], Demand]:
    """What slices take together of every core, (chip, core), that they are on."""
    used: dict[tuple[int, int], Demand] = {}
    for s, demand in slices:
        used[s.chip, s.core] = used.get((s.chip, s.core), Demand()) + demand
    return used


def _most(demands: Iterable[Demand]) -> Demand:
    """The most that any takes of each resource."""
    each = list(demands)
    return Demand(*(max(getattr(d, r) for d in each) for r in RESOURCES))


def _fit(
    network: QuantizedNetwork,
    chip: ChipSpec,
    site: Site,
    placement: Placement,
    demands: Sequence[Demand],
    hops: Hops,
) -> Fit:
    """What a placement takes; ``demands`` are those of its slices."""
    slices = list(zip(placement, demands, strict=True))
    cores, layers = _by_core(slices), []
    for name in dict.fromkeys(s.population for s in placement):
        own = _by_core((s, demand) for s, demand in slices if s.population == name)
        part = shares(_most(cores[core] for core in own), chip)
        limiting = max(SPLITTING, key=lambda r: part.get(r, 0.0))
        layers.append(
            LayerFit(
                name,
                network.populations[name].size,
                len(own),
                next(s.box for s in placement if s.population == name),
                _most(own.values()),
                sum(own.values(), Demand()),
                limiting,
                part.get(limiting, 0.0),
            )
        )
    return Fit(site.chips, site.cores_of(chip), len(cores), tuple(layers), hops)


def _basis(site: Site) -> str:
    return "one spike of every neuron" if site.activity is None else "spikes of a recording"
