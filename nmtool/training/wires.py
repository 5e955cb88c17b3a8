"""Projections as the compiled engine runs them: what a spike adds, and what gradients go back.

A chain of operations becomes a relay (pooling and flattening of spikes), then weights: a matrix, a
convolution, or single synapses, which stand for any chain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.operations import (
    WEIGHTED,
    Chain,
    Connections,
    Conv,
    Dense,
    Shape,
    chain_connections,
    chain_shape,
    window_pairs,
)
from nmtool.training import kernels
from nmtool.training.events import Events, Relay
from nmtool.training.memory import Memory
from nmtool.training.model import Synapses
from nmtool.training.parts import PARTS, in_parts
from nmtool.training.rounding import Rounded

Array: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["dense", "conv", "single"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of weights the spikes of every source add to which targets; see ``kernels``.

    ``start`` has one number more than there are sources, ``ways`` four columns: where the row
    begins, the first target, the length of the row, the delay.
    """

    start: Array
    ways: Array

    @property
    def most(self) -> int:
        """The most rows that one source adds."""
        return int(np.diff(self.start).max(initial=0))

    def are_whole(self, targets: int) -> bool:
        """Whether every source adds one row of all targets."""
        one = np.diff(self.start) == 1
        return bool(one.all() and np.all(self.ways[:, 1:3] == [0, targets]))


def _rows(sources: int, source: Array, row: Array, place: Array, length: int) -> Rows:
    """Rows of one length; those that go on where another ends, on both sides, become one."""
    order = np.lexsort((row, source))
    source, row, place = source[order], row[order], place[order]
    ends = np.ones(len(source) + 1, dtype=np.bool_)
    ends[1:-1] = (np.diff(source) != 0) | (np.diff(row) != 1) | (np.diff(place) != length)
    first, last = np.flatnonzero(ends[:-1]), np.flatnonzero(ends[1:])
    ways = np.zeros((len(first), 4), dtype=np.int32)
    ways[:, 0], ways[:, 1] = row[first] * length, place[first]
    ways[:, 2] = (last - first + 1) * length
    return Rows(np.searchsorted(source[first], np.arange(sources + 1)), ways)


def dense_rows(targets: int, sources: int) -> Rows:
    """One row of all targets for each source."""
    every = np.arange(sources)
    return _rows(sources, every, every, np.zeros_like(every), targets)


def conv_rows(conv: Conv, shape: Shape) -> Rows:
    """A row of the channels of a group for each place of the kernel that a source meets.

    The weights are in the order of ``Wire.to_matrix``: where the stride in y is 1, the rows of
    neighbours in y go on where each other ends.
    """
    out = conv.output_shape(shape)
    channels, kx, ky, width = conv.weight.shape
    share = channels // conv.groups
    c = np.arange(shape[2])
    group, inner = np.divmod(c, width)
    parts = []
    for i, j in np.ndindex(kx, ky):
        offset = (i * conv.dilation[0], j * conv.dilation[1])
        source, place = window_pairs(shape, out, offset, conv.stride, conv.padding)
        row = ((group * kx + i) * width + inner) * ky + ky - 1 - j
        parts.append(
            (
                (source[:, None] * shape[2] + c).ravel(),
                np.broadcast_to(row, (len(source), len(c))).ravel(),
                (place[:, None] * channels + group * share).ravel(),
            )
        )
    source, row, place = (np.concatenate([part[axis] for part in parts]) for axis in range(3))
    return _rows(int(np.prod(shape)), source, row, place, share)


def single_rows(operations: Chain, shape: Shape) -> Rows:
    """Every synapse by itself, of any chain with at most one operation that has weights."""
    ways: Connections = chain_connections(operations, shape)
    return _rows(int(np.prod(shape)), ways.source, ways.index, ways.target, 1)


def joined(sources: int, parts: Sequence[tuple[Rows, int, int, int, int]]) -> Rows:
    """The rows of several projections in one: from whichever source to whichever target.

    Each comes with its first source, the place of its first weight, its first target, its delay.
    """
    owner, ways = [], []
    for rows, first, begin, place, delay in parts:
        owner.append(first + np.repeat(np.arange(len(rows.start) - 1), np.diff(rows.start)))
        ways.append(rows.ways + np.array([begin, place, 0, delay], dtype=np.int32))
    if not parts:
        return Rows(np.zeros(sources + 1, dtype=np.int64), np.zeros((0, 4), dtype=np.int32))
    source = np.concatenate(owner)
    order = np.argsort(source, kind="stable")
    start = np.searchsorted(source[order], np.arange(sources + 1))
    return Rows(start, np.concatenate(ways)[order])


@dataclass(frozen=True, eq=False)
class Wire:
    """A projection, compiled.

    Attributes:
        synapses: what it is made from.
        relay: the places that spikes reach before they meet weights; None: they stay.
        kind: of the weights.
        shape: of what meets the weights.
        weight_shape: of the operation with weights; (1,) for a chain that has none.
    """

    synapses: Synapses
    relay: Relay | None
    kind: Kind
    operations: Chain
    shape: Shape
    weight_shape: Shape

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of the weights as a matrix whose columns are rows of ``rows``."""
        size = int(np.prod(self.weight_shape))
        first = 1 if self.kind == "single" else self.weight_shape[0]
        return first, size // first

    def to_matrix(self, weight: Array) -> Array:
        """Weights as a matrix (target, source); a kernel's in the order (x, channel, y backwards).

        A source meets places of the kernel and targets that go on in opposite directions.
        """
        if self.kind != "conv":
            return weight.reshape(self.matrix)
        turned = weight[:, :, ::-1].transpose(0, 1, 3, 2)
        return np.array(turned, order="C").reshape(self.matrix)

    def from_matrix(self, matrix: Array) -> Array:
        """Weights in the shape of their operation."""
        if self.kind != "conv":
            return matrix.reshape(self.weight_shape)
        out, kx, ky, width = self.weight_shape
        turned = matrix.reshape(out, kx, width, ky).transpose(0, 1, 3, 2)
        return np.array(turned[:, :, ::-1], order="C")

    @property
    def length(self) -> int:
        """Of a row of weights."""
        groups = self.operations[0].groups if isinstance(self.operations[0], Conv) else 1
        return self.matrix[0] // groups if self.kind != "single" else 1

    @cached_property
    def rows(self) -> Rows:
        """What the spikes that come out of the relay do."""
        first = self.operations[0] if self.operations else None
        if self.kind == "conv" and isinstance(first, Conv):
            return conv_rows(first, self.shape)
        if self.kind == "dense":
            return dense_rows(*self.matrix)
        return single_rows(self.operations, self.shape)

    @property
    def size(self) -> int:
        """Sources after the relay."""
        return int(np.prod(self.shape))

    def arriving(self, events: Events) -> Events:
        """The spikes of the source behind the relay."""
        return events if self.relay is None else events.through(self.relay)

    def most(self, spikes: int) -> int:
        """The most rows that so many spikes can add to one target."""
        return spikes * (self.rows.most if self.kind == "single" else 1)

    def weight_gradient(self, events: Events, arriving: Array) -> Array:
        """The gradient of the weights, in their shape, from spikes and what arrives."""
        if self.kind == "dense":
            return _dense_gradient(self, events, arriving)
        parts = in_parts(
            len(arriving), lambda first, last: self._partial(first, last, events, arriving)
        )
        total = sum(parts[1:], parts[0]) if parts else self._empty()
        rows = total.reshape(-1, self.matrix[1], self.length)
        return self.from_matrix(np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(self.matrix))

    def _empty(self) -> Array:
        return np.zeros(int(np.prod(self.weight_shape)), dtype=np.float32)

    def _partial(self, first: int, last: int, events: Events, arriving: Array) -> Array:
        total, delay = self._empty(), self.synapses.delay
        kernels.rows_gradient(
            first,
            last,
            events.neuron,
            events.at_step,
            delay,
            self.rows.start,
            self.rows.ways,
            arriving,
            total,
        )
        return total

    def back(self, arriving: Array, weight: Rounded, memory: Memory) -> Array:
        """The gradient of the source's spikes, (samples, steps, neurons), from what arrives."""
        samples, steps, _ = arriving.shape
        size = self.size if self.relay is None else len(self.relay.begin) - 1
        found = memory.empty((samples, steps, size), np.float32)
        kept = max(steps - self.synapses.delay, 0)
        found[:, kept:] = 0
        if not kept:
            return found
        came, sent = arriving[:, steps - kept :], found[:, :kept]
        inner, relay = _inner_back(self, weight), self.relay

        def part(first: int, last: int) -> None:
            if relay is None:
                for b in range(first, last):
                    inner(came[b], sent[b])
                return
            places = np.empty((kept, self.size), dtype=np.float32)
            for b in range(first, last):
                inner(came[b], places)
                _spread(relay, places, sent[b])

        with one_thread():
            in_parts(samples, part)
        return found

    def step_back(self, weight: Rounded) -> Callable[[torch.Tensor, torch.Tensor], Any]:
        """``back`` of one step: adds to the gradients of a projection's source, without a relay.

        They are its first argument, those of what arrives its second, (samples, neurons).
        """
        if self.kind == "dense":
            matrix = torch.from_numpy(weight.real)
            return lambda sent, came: sent.addmm_(came, matrix)
        ways = (self.rows.start, self.rows.ways, weight.real_rows)

        def add(sent: torch.Tensor, came: torch.Tensor) -> None:
            found = np.empty(sent.shape, dtype=np.float32)
            kernels.rows_back(0, len(found), *ways, came.contiguous().numpy(), found)
            sent += torch.from_numpy(found)

        return add


def _spread(relay: Relay, gradient: Array, out: Array) -> None:
    """Gradients (steps, places) of what meets the weights, to those of the source."""
    if relay.one_to_one:
        kernels.spread_one(0, len(out), relay.place, gradient, out)
    else:
        kernels.spread(0, len(out), relay.begin, relay.place, gradient, out)


def wire(synapses: Synapses, in_a_loop: bool) -> Wire:
    """A projection, compiled; in a loop spikes meet the weights without a relay."""
    operations, shape = synapses.operations, synapses.shape
    at = next((k for k, o in enumerate(operations) if isinstance(o, WEIGHTED)), len(operations))
    weight_shape = operations[at].weight.shape if at < len(operations) else (1,)  # type: ignore[union-attr]
    kinds: dict[Any, Kind] = {Dense: "dense", Conv: "conv"}
    last = operations[-1] if operations else None
    kind = kinds.get(type(last), "single") if at == len(operations) - 1 else "single"
    if kind == "single" or (in_a_loop and at):
        return Wire(synapses, None, "single", operations, shape, weight_shape)
    relay = _relay(operations[:at], shape) if at else None
    inner = chain_shape(operations[:at], shape)
    return Wire(synapses, relay, kind, operations[at:], inner, weight_shape)


def _relay(operations: Chain, shape: Shape) -> Relay:
    ways = chain_connections(operations, shape)
    begin = np.searchsorted(ways.source, np.arange(int(np.prod(shape)) + 1))
    size = int(np.prod(chain_shape(operations, shape)))
    return Relay(begin, ways.target.astype(np.int32), size)


def _dense_gradient(wire: Wire, events: Events, arriving: Array) -> Array:
    gradient = np.empty(wire.matrix, dtype=np.float32)
    step, at_neuron = events.by_neuron
    blocks = -(-wire.matrix[0] // kernels.COLUMNS)
    share = -(-wire.size // max(1, PARTS // blocks))
    in_parts(
        blocks * -(-wire.size // share),
        lambda first, last: kernels.weight_gradient(
            first, last, share, step, at_neuron, wire.synapses.delay, arriving, gradient
        ),
    )
    return gradient


def _inner_back(wire: Wire, weight: Rounded) -> Callable[[Array, Array], None]:
    """What puts the gradients (steps, places) of what meets the weights into its second argument.

    Its first are those of what arrives.
    """
    if wire.kind == "dense":
        matrix = torch.from_numpy(weight.real)
        return lambda came, out: _product(came, matrix, out)
    if wire.kind == "conv":
        kernel = torch.from_numpy(wire.from_matrix(weight.real)).permute(0, 3, 1, 2)
        return lambda came, out: _conv_back(wire, came, kernel, out)
    ways = (wire.rows.start, wire.rows.ways, weight.real_rows)
    return lambda came, out: kernels.rows_back(0, len(came), *ways, came, out)


def _product(came: Array, matrix: torch.Tensor, out: Array) -> None:
    """``came @ matrix``, by torch, which can be told to use one thread."""
    torch.mm(torch.from_numpy(came), matrix, out=torch.from_numpy(out))


def _conv_back(wire: Wire, came: Array, kernel: torch.Tensor, out: Array) -> None:
    conv = wire.operations[0]
    assert isinstance(conv, Conv)
    x, y, channels = wire.shape
    gradient = torch.from_numpy(came.reshape(-1, *conv.output_shape(wire.shape)))
    size = (len(came), channels, x, y)
    how = (conv.stride, conv.padding, conv.dilation, conv.groups)
    with torch.no_grad():
        found = torch.nn.grad.conv2d_input(size, kernel, gradient.permute(0, 3, 1, 2), *how)
    out.reshape(-1, x, y, channels)[:] = found.permute(0, 2, 3, 1).numpy()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread, while parts of the work have threads of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
