"""Partition: which neurons of a population share a core.

Populations are cut into boxes, along x first, so that a convolution's kernels are shared by as
many neurons as a core holds; by channels first where not even one place's kernels fit a core. Every
box is as large as the scarcest resource allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from nmtool.chip import UNLIMITED, ChipSpec
from nmtool.compiler.wiring import Box, Wiring, count, whole, wirings
from nmtool.network import data_flow
from nmtool.quantization import QuantizedNetwork


@dataclass(frozen=True)
class Demand:
    """What neurons take of a core."""

    neurons: int = 0
    synapse_bits: int = 0
    input_axons: int = 0
    output_axons: int = 0
    profiles: int = 0
    threshold_profiles: int = 0
    synapse_formats: int = 0
    delay_slots: int = 0
    memory_words: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


RESOURCES = tuple(field.name for field in fields(Demand))
"""Names of what a core has; a chip's limit of each is called the same, with ``_per_core``."""


def limit(chip: ChipSpec, resource: str) -> int:
    """What a core of a chip has of a resource."""
    return int(getattr(chip, f"{resource}_per_core"))


def exceeded(demand: Demand, chip: ChipSpec) -> list[str]:
    """The resources that a demand takes more of than a core has."""
    return [name for name in RESOURCES if getattr(demand, name) > limit(chip, name)]


def shares(demand: Demand, chip: ChipSpec) -> dict[str, float]:
    """The share of a core that a demand takes of every limited resource."""
    return {
        name: getattr(demand, name) / limit(chip, name)
        for name in RESOURCES
        if limit(chip, name) < UNLIMITED
    }


@dataclass(frozen=True, eq=False)
class Costs:
    """What boxes of populations take of a core, as long as the boxes of their targets are known."""

    network: QuantizedNetwork
    chip: ChipSpec
    wirings: Mapping[str, Wiring]
    probed: frozenset[str]

    @classmethod
    def of(
        cls, network: QuantizedNetwork, chip: ChipSpec, probed: Iterable[str] | None = None
    ) -> Costs:
        """The costs of a network on a chip; ``probed`` populations (None: outputs) take axons."""
        to_host = network.outputs if probed is None else probed
        return cls(network, chip, wirings(network), frozenset(to_host))

    def demand(
        self,
        name: str,
        box: Box,
        boxes: Mapping[str, Sequence[Box]],
        weight_bits: int | None = None,
    ) -> Demand:
        """What a box takes; ``boxes`` are those of the populations that it sends to."""
        incoming = self._incoming(name)
        size = count(box)
        bits = sum(self.wirings[p].memory(box, self.chip, weight_bits) for p in incoming)
        inputs = sum(self.wirings[p].input_axons(box, self.chip) for p in incoming)
        outputs = self.output_axons(name, box, boxes)
        words = bits // self.chip.synapse_memory.word_bits + inputs + size + outputs
        return Demand(
            neurons=size,
            synapse_bits=bits,
            input_axons=inputs,
            output_axons=outputs,
            profiles=1,
            threshold_profiles=1,
            synapse_formats=len({self._stored(p) for p in incoming}),
            delay_slots=size * self._slots(incoming),
            memory_words=words,
        )

    def output_axons(self, name: str, box: Box, boxes: Mapping[str, Sequence[Box]]) -> int:
        """Output axons of a box: to the cores that it reaches, and to the host."""
        total = count(box) if name in self.probed else 0
        for projection, p in self.network.projections.items():
            if p.source != name:
                continue
            wiring = self.wirings[projection]
            if self.chip.axons.kind == "shared":
                total += wiring.sent(box, self.chip)
            else:
                targets = boxes.get(p.target, (whole(self.network.shapes[p.target]),))
                total += sum(wiring.slots(box, target, self.chip) for target in targets)
        return total

    def _incoming(self, name: str) -> list[str]:
        return [key for key, p in self.network.projections.items() if p.target == name]

    def _stored(self, projection: str) -> tuple[object, ...]:
        """What makes a synapse format: bits, exponent, sign mode, and whether there are delays."""
        p = self.network.projections[projection]
        return (p.format, p.delay_max > 0)

    def _slots(self, incoming: list[str]) -> int:
        """Accumulator slots that each neuron takes: a power of two that holds every delay."""
        network = self.network
        longest = max(
            (
                network.projections[p].delay_max
                + int(np.max(network.axonal_delay(network.projections[p].source)))
                for p in incoming
            ),
            default=0,
        )
        return max(self.chip.delay_slots_min or 1, 1 << (longest + 1).bit_length())


@dataclass(frozen=True)
class Unsplittable:
    """A population of which not even the smallest box fits a core."""

    population: str
    demand: Demand
    resources: tuple[str, ...]


Boxes = dict[str, tuple[Box, ...]]


def partition(costs: Costs) -> tuple[Boxes, list[Unsplittable]]:
    """Cut every population into boxes that fit a core each.

    Targets come before their sources, whose output axons depend on them; loops are gone through
    again until nothing changes. What cannot be cut small enough stays whole.
    """
    network = costs.network
    named = (network.inputs, network.populations, network.projections)
    order = list(data_flow(*(dict(sorted(items.items())) for items in named)))[::-1]  # type: ignore[arg-type]
    boxes: Boxes = {}
    problems: dict[str, Unsplittable] = {}
    for _ in range(len(order) + 1):
        before = dict(boxes)
        for name in order:
            found = _cut(costs, name, boxes)
            if isinstance(found, Unsplittable):
                problems[name] = found
                found = (whole(network.shapes[name]),)
            boxes[name] = found
        if boxes == before or not _loops(costs, order):
            break
    return {name: boxes[name] for name in order[::-1]}, list(problems.values())


def _loops(costs: Costs, order: Sequence[str]) -> bool:
    """Whether the boxes of a population depend on some that are cut after it."""
    rank = {name: at for at, name in enumerate(order)}
    ends = ((p.source, p.target) for p in costs.network.projections.values() if p.source in rank)
    return costs.chip.axons.kind == "discrete" and any(rank[t] >= rank[s] for s, t in ends)


def _cut(costs: Costs, name: str, boxes: Boxes) -> tuple[Box, ...] | Unsplittable:
    """The boxes of one population."""
    chip, shape = costs.chip, costs.network.shapes[name]
    smallest = tuple((0, 1) for _ in shape)
    needed = costs.demand(name, smallest, boxes)
    if len(shape) < 3 and (beyond := exceeded(needed, chip)):
        return Unsplittable(name, needed, tuple(beyond))

    def fits(box: Box) -> bool:
        if count(box) > chip.neurons_per_core:
            return False
        box = tuple((start, min(stop, n)) for (start, stop), n in zip(box, shape, strict=True))
        if exceeded(costs.demand(name, box, boxes), chip):
            return False
        if chip.split_synapse_bits == UNLIMITED or count(box) == 1:
            return True
        reckoned = costs.demand(name, box, boxes, chip.split_weight_bits)
        return reckoned.synapse_bits <= chip.split_synapse_bits

    try:
        if len(shape) < 3:
            return tuple(_rows(whole(shape), fits, chip))
        parts = _channel_parts(shape, fits, chip.slice_widths)
        return tuple(box for part in parts for box in _along(part, 0, fits, chip.slice_widths))
    except _TooLarge as error:
        needed = costs.demand(name, error.box, boxes)
        return Unsplittable(name, needed, tuple(exceeded(needed, chip)))


class _TooLarge(Exception):
    """A box of one neuron does not fit."""

    def __init__(self, box: Box) -> None:
        self.box = box


def _rows(box: Box, fits: Callable[[Box], bool], chip: ChipSpec) -> Iterator[Box]:
    """Cut a population without places: each slice as large as fits, or by halves of a core."""
    if chip.slice_widths != "halves":
        yield from _along(box, 0, fits, "any")
        return
    room = chip.neurons_per_core + 1
    while room > 2 and not all(fits(part) for part in _slices(box, 0, room - 1)):
        room = max(room // 2, 2)
    for part in _slices(box, 0, room - 1):
        yield from [part] if fits(part) else _along(part, 0, fits, "any")


def _channel_parts(
    shape: tuple[int, ...], fits: Callable[[Box], bool], widths: str
) -> Iterator[Box]:
    """The whole, or as few ranges of channels as let one place fit a core."""
    places = tuple((n // 2, n // 2 + 1) for n in shape[:-1])
    channels: Box = ((0, shape[-1]),)
    if fits((*places, *channels)):
        parts: Iterable[Box] = [channels]
    elif widths == "halves":
        width = 1 << (shape[-1] - 1).bit_length()
        while width > 1 and not all(fits((*places, *part)) for part in _slices(channels, 0, width)):
            width //= 2
        parts = _slices(channels, 0, width)
    else:
        parts = _along((*places, *channels), len(shape) - 1, fits, "any")
    for part in parts:
        yield (*((0, n) for n in shape[:-1]), part[-1])


def _along(box: Box, axis: int, fits: Callable[[Box], bool], widths: str) -> Iterator[Box]:
    """Cut a box along one axis, and along the next where one step does not fit."""
    if axis == len(box):
        raise _TooLarge(box)
    start, stop = box[axis]
    if widths != "any":
        yield from _evenly(box, axis, fits)
        return
    while start < stop:
        width = _widest(stop - start, lambda w, at=start: fits(_with(box, axis, at, w)))  # type: ignore[misc]
        part = _with(box, axis, start, max(width, 1))
        yield from [part] if width else _along(part, axis + 1, fits, widths)
        start = part[axis][1]


def _evenly(box: Box, axis: int, fits: Callable[[Box], bool]) -> Iterator[Box]:
    """Cut a box into slices of one width, a power of two; neurons that hang over count as well."""
    if axis == len(box):
        raise _TooLarge(box)
    start, stop = box[axis]
    width = 1 << (stop - start - 1).bit_length()
    while width > 1 and not fits(_with(box, axis, start, width)):
        width //= 2
    for part in _slices(box, axis, width):
        yield from [part] if fits(part) else _evenly(part, axis + 1, fits)


def _slices(box: Box, axis: int, width: int) -> Iterator[Box]:
    start, stop = box[axis]
    for at in range(start, stop, width):
        yield _with(box, axis, at, min(width, stop - at))


def _with(box: Box, axis: int, start: int, width: int) -> Box:
    return (*box[:axis], (start, start + width), *box[axis + 1 :])


def _widest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest width up to ``most`` that fits; 0 if not even 1 does."""
    if most and fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
