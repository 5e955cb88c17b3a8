"""Place: which core of which chip holds which slice, so that spikes travel short ways.

Cores sit in tiles on a mesh, and spikes go along x, then y: a spike from one core to another takes
as many hops as their tiles lie apart, |dx| + |dy|. The chips of a board are taken to stand in a row
along x (an assumption: no source says how they are joined). Slices are placed one by one, each on
the free core with the fewest spike-hops to what is placed already, in two orders, or simply one
after the other: the best of the three is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler.partition import Boxes, Demand, exceeded, shares
from nmtool.compiler.wiring import Box, Wiring, count, neurons
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.operations import Shape
from nmtool.quantization import QuantizedNetwork

RANDOM_PLACEMENTS = 20
"""How many random placements the hops of a placement are compared with."""


@dataclass(frozen=True)
class Slice:
    """The neurons of a population that one core holds: a box of its shape."""

    population: str
    box: Box
    chip: int
    core: int

    @property
    def size(self) -> int:
        """The number of neurons."""
        return count(self.box)

    def neurons(self, shape: Shape) -> IntArray:
        """The numbers of its neurons in a population of this shape, in rising order."""
        return neurons(self.box, shape)


Placement = tuple[Slice, ...]
Activity = Mapping[str, IntArray]
"""Spikes of every neuron of a population, over all samples."""


@dataclass(frozen=True)
class Hops:
    """Hops and chip crossings of all spikes, and the hops that random placements would take.

    ``basis``: spikes of a recording, or one spike of every neuron.
    """

    hops: int
    crossings: int
    random: float
    basis: str


def pack(demands: Sequence[Demand], chip: ChipSpec, n_cores: int) -> list[list[int]]:
    """Which slices share a core: none while there are cores enough, else as few as first fit makes.

    The most demanding slices come first. The result counts more than ``n_cores`` bins where the
    cores do not suffice.
    """
    if len(demands) <= n_cores:
        return [[index] for index in range(len(demands))]
    largest = [max(shares(demand, chip).values()) for demand in demands]
    bins: list[tuple[Demand, list[int]]] = []
    for index in sorted(range(len(demands)), key=lambda i: (-largest[i], i)):
        for place, (used, held) in enumerate(bins):
            together = used + demands[index]
            if not exceeded(together, chip):
                bins[place] = (together, [*held, index])
                break
        else:
            bins.append((demands[index], [index]))
    return sorted(sorted(held) for _, held in bins)


def traffic(
    network: QuantizedNetwork,
    wirings: Mapping[str, Wiring],
    slices: Sequence[tuple[str, Box]],
    activity: Activity | None,
) -> IntArray:
    """Spikes from every slice to every other, shape (slices, slices); inputs are not counted.

    A spike goes once to every slice that holds a target, for each projection.
    """
    matrix = np.zeros((len(slices), len(slices)), dtype=np.int64)
    held: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(slices):
        held.setdefault(name, []).append(index)
    for projection, p in network.projections.items():
        if p.source not in held:
            continue
        own = np.zeros(network.sizes[p.source], dtype=np.int64)
        for index in held[p.source]:
            own[neurons(slices[index][1], network.shapes[p.source])] = index
        spikes = np.ones_like(own) if activity is None else activity[p.source]
        for target in held[p.target]:
            reaching = wirings[projection].sources(slices[target][1])
            sent = np.bincount(own[reaching], spikes[reaching], len(slices))
            matrix[:, target] += np.rint(sent).astype(np.int64)
    return matrix


def place(
    flow: IntArray,
    bins: Sequence[Sequence[int]],
    chip: ChipSpec,
    n_cores: int,
    excluded: Sequence[int] = (),
) -> IntArray:
    """The core of every bin of slices, by the placement with the fewest spike-hops of three.

    Bins go where their spikes to and from the placed ones go least, either in their order or each
    time the one with most such spikes; or one after the other on the next core. ``flow`` holds the
    spikes between slices, ``n_cores`` counts the cores of each chip that can be used, all but the
    ``excluded`` ones. Cores are numbered on through the chips.
    """
    between = _of_bins(flow, bins)
    both = between + between.T
    n_chips = -(-(len(bins) + len(excluded)) // n_cores) if bins else 1
    positions = tile_positions(chip, n_cores, n_chips)
    usable = np.ones(len(positions), dtype=np.bool_)
    usable[[core for core in excluded if core < usable.size]] = False
    found = [_nearest(both, positions, usable, attached) for attached in (True, False)]
    found.append(np.flatnonzero(usable)[: len(bins)])
    return min(found, key=lambda cores: _hops(between, positions[cores]))


def _nearest(between: IntArray, positions: IntArray, usable: BoolArray, attached: bool) -> IntArray:
    """Bins one by one, each on the usable core with the fewest spike-hops to those before it.

    ``attached``: next comes the bin with most spikes to and from those before it.
    """
    tiles, tile = np.unique(positions, axis=0, return_inverse=True)
    tile = tile.ravel()
    apart = np.abs(tiles[:, None] - tiles[None]).sum(axis=2).astype(np.float64)
    cores = np.full(len(between), -1, dtype=np.int64)
    free = usable.copy()
    ties = np.zeros(len(between), dtype=np.int64)
    for _ in range(len(between)):
        placed = cores >= 0
        index = int(np.argmax(np.where(placed, -1, ties)))
        spikes = np.bincount(tile[cores[placed]], between[index, placed], len(tiles))
        cost = (apart @ spikes)[tile]
        cores[index] = int(np.argmin(np.where(free, cost, np.inf)))
        free[cores[index]] = False
        if attached:
            ties += between[index]
    return cores


def _hops(between: IntArray, positions: IntArray) -> int:
    """Spike-hops between bins at these positions."""
    ends = np.nonzero(between)
    return int(between[ends] @ np.abs(positions[ends[0]] - positions[ends[1]]).sum(axis=1))


def tile_positions(chip: ChipSpec, n_cores: int, n_chips: int) -> IntArray:
    """The tile (x, y) of every core, through the chips of a row; tiles are numbered along y."""
    core = np.arange(n_cores)
    tile = core // chip.cores_per_tile
    x, y = np.divmod(tile, chip.mesh[1])
    each = [np.stack([x + index * chip.mesh[0], y], axis=1) for index in range(n_chips)]
    return np.concatenate(each).astype(np.int64)


def spike_hops(
    flow: IntArray, placement: Sequence[Slice], chip: ChipSpec, basis: str, seed: int = 0
) -> Hops:
    """What a placement costs in hops, and what random ones on the same cores would."""
    at = np.array([[s.chip, s.core] for s in placement], dtype=np.int64).reshape(-1, 2)
    used, own = np.unique(at, axis=0, return_inverse=True)
    between = _joined(flow, own.ravel(), len(used))
    x, y = np.divmod(used[:, 1] // chip.cores_per_tile, chip.mesh[1])
    positions = np.stack([x + used[:, 0] * chip.mesh[0], y], axis=1)
    rng = np.random.default_rng(seed)
    random = [_hops(between, rng.permutation(positions)) for _ in range(RANDOM_PLACEMENTS)]
    crossings = _hops(between, used[:, :1])
    return Hops(_hops(between, positions), crossings, float(np.mean(random)), basis)


def _of_bins(flow: IntArray, bins: Sequence[Sequence[int]]) -> IntArray:
    """The spikes between bins of slices."""
    own = np.zeros(len(flow), dtype=np.int64)
    for index, held in enumerate(bins):
        own[list(held)] = index
    return _joined(flow, own, len(bins))


def _joined(flow: IntArray, own: IntArray, size: int) -> IntArray:
    """The spikes between groups of slices, ``own`` the group of every slice."""
    pair = own[:, None] * size + own[None]
    sums = np.bincount(pair.ravel(), flow.ravel(), size * size)
    return np.rint(sums).astype(np.int64).reshape(size, size)


def slices_of(boxes: Boxes) -> list[tuple[str, Box]]:
    """Every box with its population, in data-flow order."""
    return [(name, box) for name, held in boxes.items() for box in held]
