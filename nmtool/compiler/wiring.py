"""Wiring: the synapses of a projection as cores see them, by boxes of neurons.

A box is a range of neurons on every axis of a population's shape; a core holds boxes. The wiring
of a projection says what a box of targets takes in its core, and how many neurons of a box of
sources reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler.memory import delay_bits, index_bits, kernel_bits, powers_of_two, row_bits
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.operations import (
    Chain,
    Conv,
    Dense,
    Flatten,
    Pair,
    Scale,
    Shape,
    Sparse,
    SumPool,
    chain_connections,
)
from nmtool.quantization import QuantizedNetwork, QuantizedProjection

Box: TypeAlias = tuple[Pair, ...]
"""Neurons [start, stop) on every axis of a shape."""


def whole(shape: Shape) -> Box:
    """The box of all neurons of a shape."""
    return tuple((0, size) for size in shape)


def count(box: Box) -> int:
    """The neurons of a box."""
    return math.prod(stop - start for start, stop in box)


def neurons(box: Box, shape: Shape) -> IntArray:
    """The numbers of the neurons of a box, in rising order."""
    axes = [np.arange(start, stop) for start, stop in box]
    return np.asarray(np.ravel_multi_index(np.ix_(*axes), shape)).ravel()


def listed(box: Box) -> str:
    """A box as placement files have it: [start, stop), or a list of these for several axes."""
    ranges = [list(ends) for ends in box]
    return str(ranges[0] if len(ranges) == 1 else ranges)


class Wiring(Protocol):
    """What the synapses of one projection take in cores."""

    def memory(self, box: Box, chip: ChipSpec, weight_bits: int | None = None) -> int:
        """Bits of synapse memory that a box of targets takes, with weights of so many bits."""

    def input_axons(self, box: Box, chip: ChipSpec) -> int:
        """Input axons of the core that holds a box of targets."""

    def reach(self, source: Box, target: Box) -> int:
        """How many neurons of a box of sources have a synapse into a box of targets."""

    def slots(self, source: Box, target: Box, chip: ChipSpec) -> int:
        """Output axons of a box of sources to a box of targets, where axons are not shared."""

    def sources(self, target: Box) -> BoolArray:
        """Which source neurons have a synapse into a box of targets."""

    def sent(self, source: Box, chip: ChipSpec) -> int:
        """Entries of the axon map for a box of sources, where axons are shared."""


@dataclass(frozen=True, eq=False)
class Full:
    """Every source to every target; all weights are stored, zeros as well."""

    n_sources: int
    weight_bits: int
    delay: int

    def memory(self, box: Box, chip: ChipSpec, weight_bits: int | None = None) -> int:
        """One row for each source."""
        memory = chip.synapse_memory
        bits = (weight_bits or self.weight_bits) + memory.index_bits
        return self.n_sources * int(
            row_bits(count(box), bits + delay_bits(self.delay, memory), memory)
        )

    def input_axons(self, box: Box, chip: ChipSpec) -> int:
        """One for each source."""
        return self.n_sources

    def reach(self, source: Box, target: Box) -> int:
        """All of them."""
        return count(source) if count(target) else 0

    def slots(self, source: Box, target: Box, chip: ChipSpec) -> int:
        """One for each source."""
        return self.reach(source, target)

    def sources(self, target: Box) -> BoolArray:
        """All of them."""
        return np.full(self.n_sources, count(target) > 0)

    def sent(self, source: Box, chip: ChipSpec) -> int:
        """One for each neuron."""
        return count(source)


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a convolution: which inputs each output sees.

    ``taps[o]`` are the inputs of output o in the order of the kernel, -1 for those in the padding.
    """

    taps: IntArray
    size: int
    _uses: dict[Pair, IntArray] = field(default_factory=dict, repr=False)
    _below: dict[Pair, IntArray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, n_in: int, n_out: int, kernel: int, window: tuple[int, int, int]) -> Axis:
        """An axis with ``window`` = (stride, padding, dilation)."""
        stride, padding, dilation = window
        taps = np.arange(n_out)[:, None] * stride - padding + np.arange(kernel) * dilation
        return cls(np.where((taps >= 0) & (taps < n_in), taps, -1), n_in)

    @cached_property
    def _users(self) -> IntArray:
        """How many outputs below o see input i, shape (outputs + 1, inputs)."""
        sees = np.zeros((len(self.taps) + 1, self.size + 1), dtype=np.int64)
        rows = np.repeat(np.arange(1, len(self.taps) + 1), self.taps.shape[1])
        sees[rows, self.taps.ravel()] = 1
        return np.asarray(sees[:, :-1].cumsum(axis=0))

    def seen(self, outputs: Pair) -> BoolArray:
        """Which inputs a range of outputs sees; outputs beyond the last see none."""
        last = len(self._users) - 1
        low, high = min(outputs[0], last), min(outputs[1], last)
        return np.asarray(self._users[high] > self._users[low])

    def overlap(self, inputs: Pair, outputs: Pair) -> int:
        """How many of a range of inputs a range of outputs sees."""
        if outputs not in self._below:
            self._below[outputs] = np.concatenate([[0], self.seen(outputs).cumsum()])
        below = self._below[outputs]
        return int(below[inputs[1]] - below[inputs[0]])

    def uses(self, outputs: Pair) -> IntArray:
        """How inputs are used by a range of outputs, shape (ways, 4), each way once.

        A way is (pattern of kernel places, its size, first output from the range's start, outputs
        from the first to the last).
        """
        if outputs not in self._uses:
            self._uses[outputs] = self._find_uses(outputs)
        return self._uses[outputs]

    def _find_uses(self, outputs: Pair) -> IntArray:
        """An input's pattern is which kernel places reach an output of the range through it."""
        taps = self.taps[outputs[0] : outputs[1]]
        reached, place = np.nonzero(taps >= 0)
        inputs, inside = np.unique(taps[reached, place], return_inverse=True)
        used = np.zeros((inputs.size, taps.shape[1]), dtype=np.bool_)
        used[inside, place] = True
        pattern = np.unique(used, axis=0, return_inverse=True)[1].ravel()
        first = np.full(inputs.size, len(taps), dtype=np.int64)
        last = np.zeros(inputs.size, dtype=np.int64)
        np.minimum.at(first, inside, reached)
        np.maximum.at(last, inside, reached)
        ways = np.stack([pattern, used.sum(axis=1), first, last - first], axis=1)
        return np.asarray(np.unique(ways, axis=0))


@dataclass(frozen=True, eq=False)
class Window:
    """A convolution or pool: kernels that all places share."""

    x: Axis
    y: Axis
    stride: int
    channels_in: int
    channels_out: int
    groups: int
    weight_bits: int
    delay: int

    def memory(self, box: Box, chip: ChipSpec, weight_bits: int | None = None) -> int:
        """The kernels of the channels of the box."""
        memory = chip.synapse_memory
        bits = (weight_bits or self.weight_bits) + delay_bits(self.delay, memory)
        sources = self._sources(box[2])
        per_source = self._outputs(box[2])
        if memory.kernels == "shared":
            rows = self.x.taps.shape[1] * self.y.taps.shape[1] * sources
            return kernel_bits(rows, per_source, bits, memory)
        sizes, last = self._rows(box, chip.axons.base_targets)
        index = index_bits(last + 1, memory)
        if index is None:
            return _TOO_MUCH
        return int(row_bits(sizes * sources * per_source, bits + index, memory).sum())

    def _rows(self, box: Box, base: int) -> tuple[IntArray, int]:
        """Targets of every row of a channel, and the largest index of a synapse.

        Inputs share a row if the same kernel places reach outputs and the first of these lies in
        the same stretch of ``base`` targets, which the base of an axon can count.
        """
        x, y = self.x.uses(box[0])[:, None], self.y.uses(box[1])[None]
        n_y, n_channels = box[1][1] - box[1][0], box[2][1] - box[2][0]
        start = (x[..., 2] * n_y + y[..., 2]) * n_channels // base * base
        span = (x[..., 3] * n_y + y[..., 3]) * n_channels + n_channels - 1
        n_patterns = self.y.taps.shape[0] + self.y.size
        pattern = x[..., 0] * n_patterns + y[..., 0]
        sizes = np.broadcast_to(x[..., 1] * y[..., 1], pattern.shape).ravel()
        n_starts = int(start.max(initial=0)) + 1
        first = np.unique(pattern.ravel() * n_starts + start.ravel(), return_index=True)[1]
        return sizes[first], int((start + span).max(initial=0))

    def input_axons(self, box: Box, chip: ChipSpec) -> int:
        """One for each stride in x, or one for each place, which its channels share."""
        if chip.axons.kind == "shared":
            return self.stride
        return int(self.x.seen(box[0]).sum()) * int(self.y.seen(box[1]).sum())

    def slots(self, source: Box, target: Box, chip: ChipSpec) -> int:
        """For each place as many as an axon takes that its channels share."""
        if not self.reach(source, target):
            return 0
        return chip.axons.per_place * self._places(source, target)

    def reach(self, source: Box, target: Box) -> int:
        """Places that both see, times the channels of the groups in common."""
        places = self._places(source, target)
        if not places:
            return 0
        width = self.channels_in // self.groups
        first, last = self._groups(target[2])
        low, high = max(source[2][0], first * width), min(source[2][1], (last + 1) * width)
        return places * max(high - low, 0)

    def _places(self, source: Box, target: Box) -> int:
        """Places of a box of sources that a box of targets sees."""
        x = self.x.overlap(source[0], target[0])
        return x * self.y.overlap(source[1], target[1]) if x else 0

    def sources(self, target: Box) -> BoolArray:
        """The places that the kernels see, in the channels of their groups."""
        width = self.channels_in // self.groups
        first, last = self._groups(target[2])
        channels = np.zeros(self.channels_in, dtype=np.bool_)
        channels[first * width : (last + 1) * width] = True
        places = np.multiply.outer(self.x.seen(target[0]), self.y.seen(target[1]))
        return np.asarray(np.multiply.outer(places, channels).ravel())

    def sent(self, source: Box, chip: ChipSpec) -> int:
        """Every place once for each power of two in its channels."""
        places = count(source[:2])
        smallest = chip.synapse_memory.kernel_channels_min
        return places * len(powers_of_two(source[2][1] - source[2][0], smallest))

    def _groups(self, channels: Pair) -> Pair:
        """The first and the last group of a range of output channels."""
        share = self.channels_out // self.groups
        return channels[0] // share, (channels[1] - 1) // share

    def _sources(self, channels: Pair) -> int:
        first, last = self._groups(channels)
        return (last - first + 1) * self.channels_in // self.groups

    def _outputs(self, channels: Pair) -> int:
        """Output channels that one source channel reaches, at most."""
        return min(channels[1] - channels[0], self.channels_out // self.groups)


@dataclass(frozen=True, eq=False)
class Listed:
    """Single synapses: of a sparse matrix, or of a chain of several operations.

    ``source`` and ``target`` are sorted by target. ``seen`` keeps what was counted of a box, for
    other weight bits too.
    """

    source: IntArray
    target: IntArray
    shapes: tuple[Shape, Shape]
    weight_bits: int
    delay: int
    seen: dict[Box, IntArray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, source: IntArray, target: IntArray, shapes: tuple[Shape, Shape], bits: int, delay: int
    ) -> Listed:
        """Synapses in any order."""
        if target.size and np.any(target[1:] < target[:-1]):
            order = np.argsort(target, kind="stable")
            source, target = source[order], target[order]
        return cls(source, target, shapes, bits, delay)

    def memory(self, box: Box, chip: ChipSpec, weight_bits: int | None = None) -> int:
        """One row for each source that reaches the box."""
        memory = chip.synapse_memory
        index = index_bits(count(box), memory)
        if index is None:
            return _TOO_MUCH
        bits = (weight_bits or self.weight_bits) + index + delay_bits(self.delay, memory)
        lengths = self._lengths(box)
        return int((lengths * row_bits(np.arange(lengths.size), bits, memory)).sum())

    def input_axons(self, box: Box, chip: ChipSpec) -> int:
        """One for each source, or for each that reaches the box."""
        if chip.axons.kind == "shared":
            return math.prod(self.shapes[0])
        return int(np.count_nonzero(self._rows(box)))

    def reach(self, source: Box, target: Box) -> int:
        """Sources of one box with a synapse into the other."""
        rows = self._rows(target)
        return int(np.count_nonzero(rows[neurons(source, self.shapes[0])]))

    def slots(self, source: Box, target: Box, chip: ChipSpec) -> int:
        """One for each source."""
        return self.reach(source, target)

    def sources(self, target: Box) -> BoolArray:
        """Those that the list has."""
        return np.asarray(self._rows(target) > 0)

    def sent(self, source: Box, chip: ChipSpec) -> int:
        """One for each neuron."""
        return count(source)

    def _lengths(self, box: Box) -> IntArray:
        """How many rows have no synapse into a box, one, two, ..."""
        if box not in self.seen:
            self.seen[box] = np.bincount(self._rows(box))
        return self.seen[box]

    def _rows(self, box: Box) -> IntArray:
        """Synapses of every source into a box."""
        size = math.prod(self.shapes[0])
        if all(ends == (0, n) for ends, n in zip(box[1:], self.shapes[1][1:], strict=True)):
            stride = math.prod(self.shapes[1][1:])
            edges = np.searchsorted(self.target, [box[0][0] * stride, box[0][1] * stride])
            return np.bincount(self.source[edges[0] : edges[1]], minlength=size)
        inside = np.zeros(math.prod(self.shapes[1]), dtype=np.bool_)
        inside[neurons(box, self.shapes[1])] = True
        return np.bincount(self.source[inside[self.target]], minlength=size)


_TOO_MUCH = 1 << 60
"""Bits of rows whose targets no index can count."""


def wirings(network: QuantizedNetwork) -> dict[str, Wiring]:
    """The wiring of every projection."""
    return {name: wiring(network, p) for name, p in network.projections.items()}


def wiring(network: QuantizedNetwork, projection: QuantizedProjection) -> Wiring:
    """How a projection is stored: full matrix, shared kernels, or single synapses."""
    shape = network.shapes[projection.source]
    target = network.shapes[projection.target]
    chain, bits, delay = projection.operations, projection.weight_bits, projection.delay_max
    shaping = _without_scale(chain)
    last = shaping[-1]
    if isinstance(last, Dense) and all(isinstance(op, Flatten) for op in shaping[:-1]):
        return Full(math.prod(shape), bits, delay)
    if isinstance(last, Conv | SumPool) and len(shaping) == 1 and len(target) == 3:
        return _window(last, shape, bits, delay)
    if len(shaping) == 1 and isinstance(last, Sparse):
        return Listed.of(last.source, last.target, (shape, target), bits, delay)
    joined = chain_connections(chain, shape)
    pairs = np.unique(joined.target * math.prod(shape) + joined.source)
    ends = np.divmod(pairs, math.prod(shape))
    return Listed.of(ends[1], ends[0], (shape, target), bits, delay)


def _without_scale(chain: Chain) -> Chain:
    """A chain without single weights for all, unless it is nothing else."""
    return tuple(op for op in chain if not isinstance(op, Scale)) or chain


def _window(operation: Conv | SumPool, shape: Shape, bits: int, delay: int) -> Window:
    out = operation.output_shape(shape)
    if isinstance(operation, Conv):
        kernel, dilation = operation.weight.shape[1:3], operation.dilation
        groups = operation.groups
    else:
        kernel, dilation, groups = operation.kernel, (1, 1), shape[2]
    x, y = (
        Axis.of(
            shape[a],
            out[a],
            kernel[a],
            (operation.stride[a], operation.padding[a], dilation[a]),
        )
        for a in (0, 1)
    )
    return Window(x, y, operation.stride[0], shape[2], out[2], groups, bits, delay)
