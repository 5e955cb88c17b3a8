"""Fit: what a placed network takes of a chip, layer by layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from nmtool.compiler.wiring import Box, count
from nmtool.errors import ConfigError
from nmtool.operations import Shape
from nmtool.quantization import QuantizedNetwork

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
    every neuron counts as one spike. ``placement`` replaces nmtool's own.
    """

    chips: int = 1
    cores: int | None = None
    probed: tuple[str, ...] | None = None
    activity: Activity | None = None
    placement: Placement | None = None

    @classmethod
    def of(cls, hardware: HardwareConfig, populations: Iterable[str]) -> Site:
        """Chips, cores and probed populations of a target.

        Raises:
            ConfigError: the target probes a population that there is not.
        """
        probed = _probed(hardware, list(populations))
        return cls(hardware.chips, hardware.cores_per_chip, probed)

    def cores_of(self, chip: ChipSpec) -> int:
        """Cores of each chip that can be used."""
        return chip.cores if self.cores is None else min(self.cores, chip.cores)


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
    """What a population takes: its cores, the demand of its largest slice and of all together.

    ``limiting`` is the resource that its largest slice takes the largest ``share`` of.
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
    costs = Costs.of(network, chip, site.probed)
    if site.placement is not None:
        return _given(costs, site, site.placement)
    boxes, problems = partition(costs)
    violations = [v for problem in problems for v in unsplittable(problem, chip)]
    if violations:
        return (), None, violations
    slices = slices_of(boxes)
    demands = [costs.demand(name, box, boxes) for name, box in slices]
    n_cores = site.cores_of(chip)
    bins = pack(demands, chip, n_cores * site.chips)
    if len(bins) > n_cores * site.chips:
        layers = [(name, len(held)) for name, held in boxes.items()]
        return (), None, [too_many_cores(len(bins), n_cores, site.chips, layers, chip)]
    flow = traffic(network, costs.wirings, slices, site.activity)
    where = place(flow, bins, chip, n_cores)
    core = {index: int(where[b]) for b, held in enumerate(bins) for index in held}
    placement = tuple(
        Slice(name, box, *divmod(core[index], n_cores)) for index, (name, box) in enumerate(slices)
    )
    hops = spike_hops(flow, placement, chip, _basis(site))
    return placement, _fit(costs, site, boxes, placement, hops), []


def _given(
    costs: Costs, site: Site, placement: Placement
) -> tuple[Placement, Fit | None, list[Violation]]:
    """A placement from elsewhere: held against every limit."""
    network, chip = costs.network, costs.chip
    boxes: Boxes = {
        name: tuple(s.box for s in placement if s.population == name)
        for name in network.populations
    }
    ordered = tuple(s for name in boxes for s in placement if s.population == name)
    shapes = {name: network.shapes[name] for name in network.populations}
    found = [violation for _, violation in misplaced(shapes, placement, chip, site)]
    if violations := found or list(overfull(costs, boxes, ordered)):
        return (), None, violations
    flow = traffic(network, costs.wirings, slices_of(boxes), site.activity)
    hops = spike_hops(flow, ordered, chip, _basis(site))
    return ordered, _fit(costs, site, boxes, ordered, hops), []


def misplaced(
    populations: Mapping[str, Shape], placement: Placement, chip: ChipSpec, site: Site
) -> Iterable[tuple[int | None, Violation]]:
    """Where a placement names what there is not, or does not hold every neuron once.

    ``populations`` holds the shape of each. Every violation comes with the index of the slice that
    is at fault, None where there is none.
    """
    for index, s in enumerate(placement):
        where = f"placement of {s.population} {s.box}"
        for found, allowed in _wrong(populations, s, site.chips, site.cores_of(chip)):
            yield index, Violation("NM-FIT-031", where, found, allowed)
    for name, shape in populations.items():
        size = int(np.prod(shape))
        held = {index: s.box for index, s in enumerate(placement) if s.population == name}
        covered, twice = sum(map(count, held.values())), _overlap(list(held.values()))
        if covered != size or twice:
            found = "neurons in two slices" if twice else f"{covered} neurons"
            allowed = f"each of its {size} neurons once"
            at = next(iter(held), None)
            yield at, Violation("NM-FIT-031", f"placement of {name}", found, allowed)


def _wrong(
    populations: Mapping[str, Shape], s: Slice, chips: int, cores: int
) -> Iterable[tuple[str, str]]:
    """What is wrong with one slice: what was found and what is allowed."""
    if s.population not in populations:
        yield f"the population {s.population}", ", ".join(populations)
        return
    shape = populations[s.population]
    if len(s.box) != len(shape) or any(
        not 0 <= start < stop <= size for (start, stop), size in zip(s.box, shape, strict=True)
    ):
        yield f"{s.box}", f"a box of the shape {shape}"
    if not (0 <= s.chip < chips and 0 <= s.core < cores):
        yield f"chip {s.chip}, core {s.core}", f"chips 0 to {chips - 1}, cores 0 to {cores - 1}"


def _overlap(boxes: Sequence[Box]) -> bool:
    return any(
        all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(boxes[i], boxes[j], strict=False))
        for i in range(len(boxes))
        for j in range(i)
    )


def overfull(costs: Costs, boxes: Boxes, placement: Placement) -> Iterable[Violation]:
    """The cores of a placement that hold more than they can."""
    for (chip, core), demand in _by_core(costs, boxes, placement).items():
        held = [s.population for s in placement if (s.chip, s.core) == (chip, core)]
        for resource in exceeded(demand, costs.chip):
            where = f"chip {chip} core {core} ({', '.join(dict.fromkeys(held))})"
            yield core_overfull(where, demand, resource, costs.chip)


def _by_core(costs: Costs, boxes: Boxes, placement: Placement) -> Mapping[tuple[int, int], Demand]:
    used: dict[tuple[int, int], Demand] = {}
    for s in placement:
        demand = costs.demand(s.population, s.box, boxes)
        used[s.chip, s.core] = used.get((s.chip, s.core), Demand()) + demand
    return used


def _fit(costs: Costs, site: Site, boxes: Boxes, placement: Placement, hops: Hops) -> Fit:
    layers = []
    for name, held in boxes.items():
        demands = [costs.demand(name, box, boxes) for box in held]
        largest = Demand(*(max(getattr(d, r) for d in demands) for r in RESOURCES))
        part = shares(largest, costs.chip)
        limiting = max((r for r in SPLITTING if r in part), key=lambda r: part[r])
        cores = len({(s.chip, s.core) for s in placement if s.population == name})
        total = sum(demands, Demand())
        size = costs.network.populations[name].size
        layers.append(
            LayerFit(name, size, cores, held[0], largest, total, limiting, part[limiting])
        )
    used = len({(s.chip, s.core) for s in placement})
    return Fit(site.chips, site.cores_of(costs.chip), used, tuple(layers), hops)


def _basis(site: Site) -> str:
    return "one spike of every neuron" if site.activity is None else "spikes of a recording"
