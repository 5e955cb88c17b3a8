"""Headroom: what fewer weight bits would free, which limit comes first, what would make it fit.

Nothing is quantised again: the network is partitioned as if its weights had fewer bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from nmtool.chip import ChipSpec
from nmtool.compiler.fit import Fit, Site
from nmtool.compiler.partition import Costs, partition
from nmtool.compiler.place import pack, slices_of
from nmtool.compiler.rules import Violation
from nmtool.compiler.wiring import Full, Listed, Window
from nmtool.quantization import QuantizedNetwork

CORES = "cores"
"""The resource of a whole board; all others are a core's."""

_OF_MEMORY = ("NM-FIT-021", "NM-FIT-024")
_OF_CORES = "NM-FIT-030"


@dataclass(frozen=True)
class Saving:
    """The cores that a network would take with weights of at most so many bits, and frees."""

    weight_bits: int
    cores: int
    freed: int


@dataclass(frozen=True)
class Nearest:
    """The limit that is nearest: the share that is taken of a core's resource, or of all cores.

    ``population`` is the one that takes it, or ``network`` for the cores.
    """

    population: str
    resource: str
    share: float

    @property
    def room(self) -> float:
        """By which fraction of what is taken it can grow."""
        return 1 / self.share - 1


@dataclass(frozen=True)
class Headroom:
    """What is left: ``savings`` from the most bits to the fewest, the nearest limit, the probes.

    ``probe_cores`` are the cores that probing other populations than the outputs takes.
    """

    savings: tuple[Saving, ...]
    nearest: Nearest | None
    probe_cores: int = 0


def headroom(network: QuantizedNetwork, chip: ChipSpec, site: Site, fit: Fit) -> Headroom:
    """The headroom of a network that fits; savings are those of nmtool's own placement.

    Slices of fewer weight bits share cores only to take no more of them than those there are.
    """
    costs, room = Costs.of(network, chip, site.probed), site.wanted(chip)
    own = cores_needed(costs, room)
    savings = []
    for bits in fewer_bits(network, chip):
        needed = cores_needed(with_bits(costs, bits), room if own is None else own)
        if own is not None and needed is not None:
            savings.append(Saving(bits, needed, own - needed))
    unprobed = own if site.probed is None else cores_needed(Costs.of(network, chip), room)
    return Headroom(tuple(savings), _nearest(fit), (own or 0) - (unprobed or 0))


def fewer_bits(network: QuantizedNetwork, chip: ChipSpec) -> list[int]:
    """The weight bits of a chip below the most that a network has, in falling order."""
    widest = max((p.weight_bits for p in network.projections.values()), default=0)
    return sorted((bits for bits in chip.weight_bits if bits < widest), reverse=True)


def with_bits(costs: Costs, bits: int) -> Costs:
    """The costs if no weight had more than so many bits."""
    slim = {
        name: replace(w, weight_bits=min(w.weight_bits, bits))
        for name, w in ((n, cast(Full | Window | Listed, w)) for n, w in costs.wirings.items())
    }
    return replace(costs, wirings=slim)


def cores_needed(costs: Costs, room: int) -> int | None:
    """The cores that a network takes, with slices that share cores where there are but ``room``.

    None if not even the smallest slices fit a core.
    """
    boxes, problems = partition(costs)
    if problems:
        return None
    demands = [costs.demand(name, box, boxes) for name, box in slices_of(boxes)]
    return len(pack(demands, costs.chip, room))


def advised(
    problems: Sequence[Violation], network: QuantizedNetwork, chip: ChipSpec, site: Site
) -> list[Violation]:
    """The same violations; those of cores and of memory say what would make the network fit.

    What has an advice of its own keeps it: networks that are far too large are not cut for it.
    """
    if not any(v.code in (_OF_CORES, *_OF_MEMORY) and not v.advice for v in problems):
        return list(problems)
    costs, room = Costs.of(network, chip, site.probed), site.room(chip)
    bits = next(
        (
            bits
            for bits in fewer_bits(network, chip)
            if (needed := cores_needed(with_bits(costs, bits), room)) is not None and needed <= room
        ),
        None,
    )
    return [_advised(v, bits, _chips(costs, site)) for v in problems]


def _advised(violation: Violation, bits: int | None, chips: int | None) -> Violation:
    of_cores = violation.code == _OF_CORES
    ways = []
    if violation.advice:
        return violation
    if bits is not None and (of_cores or violation.code in _OF_MEMORY):
        ways.append(f"weights of at most {bits} bits (weight_bits: {bits})")
    if chips is not None and of_cores:
        ways.append(f"a board of {chips} chips (chips: {chips})")
    return replace(violation, advice=f"use {' or '.join(ways)}") if ways else violation


def _chips(costs: Costs, site: Site) -> int | None:
    """The chips that hold a network as it is; None if a core is too small for it."""
    needed = cores_needed(costs, site.room(costs.chip))
    return None if needed is None else -(-needed // site.cores_of(costs.chip))


def _nearest(fit: Fit) -> Nearest | None:
    limits = [Nearest(layer.population, layer.limiting, layer.share) for layer in fit.layers]
    limits.append(Nearest("network", CORES, fit.cores / fit.cores_available))
    taken = [limit for limit in limits if limit.share > 0]
    return max(taken, key=lambda limit: limit.share, default=None)
