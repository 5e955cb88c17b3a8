"""The linear operations that a projection chains: weights, convolution, pooling, flatten.

Shapes are (x, y, channel), as netx and Lava have them; the neurons of a population of that shape
are numbered in C order, the channel running fastest. The weights of an operation are real numbers
in a Network and integers in a QuantizedNetwork; everything here holds for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.errors import ConfigError
from nmtool.fixedpoint import IntArray

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]


def _brief(operation: Any) -> str:
    """An operation in one line, arrays by their shape."""
    values = {f.name: getattr(operation, f.name) for f in fields(operation)}
    shown = (f"{k} {np.shape(v) if isinstance(v, np.ndarray) else v}" for k, v in values.items())
    return f"{type(operation).__name__}({', '.join(shown)})"


@dataclass(frozen=True, eq=False)
class Connections:
    """Every synapse of an operation or chain: source and target neuron, and which weight it uses.

    ``index`` counts in the flattened weights; it is 0 where there are none.
    """

    source: IntArray
    target: IntArray
    index: IntArray


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix of weights, shape (target, source): ``y = W x``."""

    weight: Array
    __repr__ = _brief

    def __post_init__(self) -> None:
        _check_array("dense", self.weight, "(target, source)")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of what comes out."""
        if self.weight.ndim != 2 or self.weight.shape[1] != _size(shape):
            raise ConfigError(
                f"dense: found weights of shape {self.weight.shape}, "
                f"allowed (target, {_size(shape)})"
            )
        return (self.weight.shape[0],)

    def apply(self, x: Array, shape: Shape) -> Array:
        """``W x`` for x of shape (samples, source)."""
        return np.asarray(x @ self.weight.T)

    def connections(self, shape: Shape) -> Connections:
        """All pairs."""
        target, source = (axis.ravel() for axis in np.indices(self.weight.shape))
        return Connections(source, target, np.arange(self.weight.size))


@dataclass(frozen=True, eq=False)
class Sparse:
    """Single synapses: ``weight[k]`` from neuron ``source[k]`` to neuron ``target[k]``.

    ``size`` is (target neurons, source neurons). No two synapses join the same pair.
    """

    weight: Array
    target: IntArray
    source: IntArray
    size: Pair
    __repr__ = _brief

    def __post_init__(self) -> None:
        _check_array("sparse", self.weight, "(synapses,)")
        for name, bound in (("target", self.size[0]), ("source", self.size[1])):
            index = getattr(self, name)
            if index.shape != self.weight.shape or index.ndim != 1:
                raise ConfigError(
                    f"sparse.{name}: found shape {index.shape}, "
                    f"allowed {self.weight.shape} as the weights, one axis"
                )
            if index.size and (index.min() < 0 or index.max() >= bound):
                raise ConfigError(
                    f"sparse.{name}: found {index.min()} to {index.max()}, allowed 0 to {bound - 1}"
                )
        pairs = np.sort(self.target * self.size[1] + self.source)
        if np.any(pairs[1:] == pairs[:-1]):
            raise ConfigError("sparse: found two synapses between one pair of neurons, allowed one")

    def with_weight(self, weight: Array) -> Sparse:
        """The same synapses, which need no second look, with other weights."""
        _check_array("sparse", weight, "(synapses,)")
        if weight.shape != self.weight.shape:
            raise ConfigError(
                f"sparse: found weights of shape {weight.shape}, allowed {self.weight.shape}"
            )
        _ = self._by_target  # sorted once for all copies
        other = copy(self)
        object.__setattr__(other, "weight", weight)
        return other

    @classmethod
    def from_matrix(cls, matrix: Any) -> Sparse:
        """The non-zero elements of a matrix (numpy or scipy.sparse), shape (target, source)."""
        import scipy.sparse

        coo = scipy.sparse.coo_array(matrix)
        coo.sum_duplicates()
        target, source = (np.asarray(axis, dtype=np.int64) for axis in (coo.row, coo.col))
        return cls(np.asarray(coo.data), target, source, (coo.shape[0], coo.shape[1]))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of what comes out."""
        if self.size[1] != _size(shape):
            raise ConfigError(
                f"sparse: found {self.size[1]} source neurons, allowed {_size(shape)}"
            )
        return (self.size[0],)

    def apply(self, x: Array, shape: Shape) -> Array:
        """``W x`` for x of shape (samples, source)."""
        import scipy.sparse

        order, sources, rows = self._by_target
        matrix = scipy.sparse.csr_array((self.weight[order], sources, rows), shape=self.size)
        return np.asarray((matrix @ x.T).T, dtype=np.result_type(x, self.weight))

    @cached_property
    def _by_target(self) -> tuple[IntArray, IntArray, IntArray]:
        """Order and sources of the synapses by target, and where those of each target start."""
        order = np.argsort(self.target, kind="stable")
        rows = np.searchsorted(self.target[order], np.arange(self.size[0] + 1))
        return order, self.source[order], rows

    def connections(self, shape: Shape) -> Connections:
        """The synapses as they stand."""
        return Connections(self.source, self.target, np.arange(self.weight.size))


@dataclass(frozen=True, eq=False)
class Conv:
    r"""Two-dimensional convolution (as in torch, without a flip).

    .. math::
        y[x', y', o] = \sum_{i,j,c} w[o, i, j, c]\;
            x[x' s_x + i d_x - p_x,\; y' s_y + j d_y - p_y,\; c]

    ``weight`` has the shape (channels out, kernel x, kernel y, channels in / groups).
    """

    weight: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    __repr__ = _brief

    def __post_init__(self) -> None:
        _check_array(
            "conv", self.weight, "(channels out, kernel x, kernel y, channels in / groups)"
        )
        for name in ("stride", "padding", "dilation"):
            _check_pair(f"conv.{name}", getattr(self, name))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape (x, y, channels out)."""
        _three_axes("conv", shape)
        if self.weight.ndim != 4 or 0 in self.weight.shape:
            raise ConfigError(
                f"conv: found weights of shape {self.weight.shape}, "
                "allowed (channels out, kernel x, kernel y, channels in / groups)"
            )
        channels_out, *kernel, channels_in = self.weight.shape
        if self.groups < 1 or channels_out % self.groups or channels_in * self.groups != shape[2]:
            raise ConfigError(
                f"conv: found {channels_in} channels x {self.groups} groups in and {channels_out} "
                f"channels out, allowed {shape[2]} channels in and a multiple of the groups out"
            )
        if min(self.dilation) < 1:
            raise ConfigError(f"conv: found the dilation {self.dilation}, allowed 1 or more")
        window = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        return (*_window_shape("conv", shape, window, self.stride, self.padding), channels_out)

    def apply(self, x: Array, shape: Shape) -> Array:
        """The convolution of x, shape (samples, source)."""
        out = self.output_shape(shape)
        padded = _padded(x.reshape(-1, *shape), self.padding)
        _, kx, ky, width = self.weight.shape
        share = out[2] // self.groups
        y = np.zeros((x.shape[0], *out), dtype=np.result_type(x, self.weight))
        for i, j, g in np.ndindex(kx, ky, self.groups):
            offset = (i * self.dilation[0], j * self.dilation[1])
            view = _strided(padded, offset, self.stride, out)[..., g * width : (g + 1) * width]
            ends = slice(g * share, (g + 1) * share)
            y[..., ends] += view @ self.weight[ends, i, j].T
        return y.reshape(x.shape[0], -1)

    def connections(self, shape: Shape) -> Connections:
        """Every use of every kernel weight."""
        out = self.output_shape(shape)
        _, kx, ky, width = self.weight.shape
        share = out[2] // self.groups
        parts = []
        for i, j, g in np.ndindex(kx, ky, self.groups):
            offset = (i * self.dilation[0], j * self.dilation[1])
            source, place = window_pairs(shape, out, offset, self.stride, self.padding)
            o = np.arange(g * share, (g + 1) * share)[:, None]
            c = np.arange(width)
            index = np.ravel_multi_index((o, i, j, c), self.weight.shape)
            sources = source[:, None, None] * shape[2] + g * width + c
            targets = place[:, None, None] * out[2] + o
            parts.append(tuple(a.ravel() for a in np.broadcast_arrays(sources, targets, index)))
        return _stack(parts)


@dataclass(frozen=True, eq=False)
class SumPool:
    """The sum over windows of every channel; no weights (NIR's SumPool2d).

    With ``overhang`` windows that reach beyond the end count too.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    overhang: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel", "stride", "padding"):
            _check_pair(f"sum pooling.{name}", getattr(self, name))

    def output_shape(self, shape: Shape) -> Shape:
        """The shape (x, y, channels)."""
        _three_axes("sum pooling", shape)
        window = _window_shape("sum pooling", self._grown(shape), self.kernel, *self._steps)
        return (*window, shape[2])

    @property
    def _steps(self) -> tuple[Pair, Pair]:
        return self.stride, self.padding

    def _grown(self, shape: Shape) -> Shape:
        """The shape with the rows and columns beyond the end that windows hang over."""
        if not self.overhang or min(self.stride) < 1:
            return shape
        x, y = (
            shape[a] + -(shape[a] + 2 * self.padding[a] - self.kernel[a]) % self.stride[a]
            for a in (0, 1)
        )
        return (x, y, shape[2])

    def apply(self, x: Array, shape: Shape) -> Array:
        """The sums of x, shape (samples, source)."""
        out, grown = self.output_shape(shape), self._grown(shape)
        beyond = [(0, grown[a] - shape[a]) for a in range(3)]
        numbers = x.astype(np.int64) if x.dtype == np.bool_ else x
        image = np.pad(numbers.reshape(-1, *shape), ((0, 0), *beyond))
        padded = _padded(image, self.padding)
        windows = [
            _strided(padded, offset, self.stride, out) for offset in np.ndindex(*self.kernel)
        ]
        return np.asarray(sum(windows[1:], windows[0])).reshape(x.shape[0], -1)

    def connections(self, shape: Shape) -> Connections:
        """Every neuron to the windows that it lies in."""
        out = self.output_shape(shape)
        parts = []
        for offset in np.ndindex(*self.kernel):
            source, place = window_pairs(shape, out, offset, *self._steps)
            c = np.arange(shape[2])
            ends = ((axis[:, None] * shape[2] + c).ravel() for axis in (source, place))
            parts.append((*ends, np.zeros(source.size * c.size, dtype=np.int64)))
        return _stack(parts)


@dataclass(frozen=True, eq=False)
class Flatten:
    """From (x, y, channel) to one axis in the order (channel, y, x), as netx and torch flatten."""

    def output_shape(self, shape: Shape) -> Shape:
        """One axis."""
        return (_size(shape),)

    def apply(self, x: Array, shape: Shape) -> Array:
        """x, shape (samples, source), in the other order."""
        return x[:, self._order(shape)]

    def connections(self, shape: Shape) -> Connections:
        """One to one."""
        order = self._order(shape)
        target = np.arange(order.size)
        return Connections(order, target, np.zeros_like(target))

    def _order(self, shape: Shape) -> IntArray:
        return np.arange(_size(shape)).reshape(shape).transpose().ravel()


@dataclass(frozen=True, eq=False)
class Scale:
    """One weight for every neuron: ``y = w x``, the weight of a chain that has no other.

    ``weight`` has the shape (1,).
    """

    weight: Array
    __repr__ = _brief

    def __post_init__(self) -> None:
        _check_array("scale", self.weight, "(1,)")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape stays."""
        if self.weight.shape != (1,):
            raise ConfigError(f"scale: found weights of shape {self.weight.shape}, allowed (1,)")
        return shape

    def apply(self, x: Array, shape: Shape) -> Array:
        """``w x`` for x of shape (samples, source)."""
        return np.asarray(x * self.weight[0])

    def connections(self, shape: Shape) -> Connections:
        """One to one, all with the one weight."""
        neuron = np.arange(_size(shape))
        return Connections(neuron, neuron, np.zeros_like(neuron))


Weighted: TypeAlias = Dense | Sparse | Conv | Scale
Operation: TypeAlias = Dense | Sparse | Conv | Scale | SumPool | Flatten
Chain: TypeAlias = tuple[Operation, ...]

WEIGHTED = (Dense, Sparse, Conv, Scale)


def chain_shape(operations: Chain, shape: Shape) -> Shape:
    """The shape that a chain makes of its source's.

    Raises:
        ConfigError: an operation does not fit what comes in.
    """
    for operation in operations:
        shape = operation.output_shape(shape)
    return shape


def apply_chain(operations: Chain, x: Array, shape: Shape) -> Array:
    """What a chain makes of x, shape (samples, source)."""
    for operation in operations:
        x, shape = operation.apply(x, shape), operation.output_shape(shape)
    return x


def weighted(operations: Chain) -> Weighted:
    """The one operation of a chain that has weights."""
    (found,) = (operation for operation in operations if isinstance(operation, WEIGHTED))
    return found


def numbers_its_target(operations: Chain) -> bool:
    """Whether a chain ends in a matrix, whose rows are numbered as the neurons of its target."""
    shaping = [operation for operation in operations if not isinstance(operation, Scale)]
    return bool(shaping) and isinstance(shaping[-1], Dense | Sparse)


def count_weighted(operations: Chain) -> int:
    """How many operations of a chain have weights."""
    return sum(isinstance(operation, WEIGHTED) for operation in operations)


def with_weight(operations: Chain, weight: Array) -> Chain:
    """The same chain with other weights in the one operation that has any."""

    def changed(operation: Operation) -> Operation:
        if isinstance(operation, Sparse):
            return operation.with_weight(weight)
        return replace(operation, weight=weight) if isinstance(operation, WEIGHTED) else operation

    return tuple(map(changed, operations))


def chain_connections(operations: Chain, shape: Shape) -> Connections:
    """Every synapse of a chain with one weighted operation, sorted by source, then target.

    A pair of neurons stands as often as there are ways between them (overlapping pools).
    """
    neuron = np.arange(_size(shape))
    joined = Connections(neuron, neuron, np.zeros_like(neuron))
    for operation in operations:
        joined = join(joined, operation.connections(shape))
        shape = operation.output_shape(shape)
    order = np.lexsort((joined.index, joined.target, joined.source))
    return Connections(joined.source[order], joined.target[order], joined.index[order])


def fold(operations: Chain, shape: Shape) -> Sparse:
    """A chain as one sparse matrix of real weights: the product of all of them."""
    import scipy.sparse

    product = scipy.sparse.identity(_size(shape), format="csr")
    for operation in operations:
        ways = operation.connections(shape)
        weight = operation.weight.ravel() if isinstance(operation, WEIGHTED) else np.ones(1)
        shape_out = operation.output_shape(shape)
        size = (_size(shape_out), _size(shape))
        factor = scipy.sparse.csr_array((weight[ways.index], (ways.target, ways.source)), size)
        product, shape = factor @ product, shape_out
    return Sparse.from_matrix(product)


def join(first: Connections, second: Connections) -> Connections:
    """The ways through two operations. At most one of them has weights, so indices add up."""
    order = np.argsort(second.source, kind="stable")
    start = np.searchsorted(second.source[order], first.target, side="left")
    stop = np.searchsorted(second.source[order], first.target, side="right")
    count = stop - start
    way = np.repeat(np.arange(count.size), count)
    within = np.arange(way.size) - np.repeat(np.cumsum(count) - count, count)
    then = order[start[way] + within]
    return Connections(
        first.source[way], second.target[then], first.index[way] + second.index[then]
    )


def _check_array(kind: str, weight: object, shape: str) -> None:
    if not isinstance(weight, np.ndarray):
        raise ConfigError(
            f"{kind}: found weights of type {type(weight).__name__}, allowed a numpy array of "
            f"shape {shape}"
        )
    if weight.dtype.kind not in "biuf":
        raise ConfigError(f"{kind}: found weights of type {weight.dtype}, allowed real numbers")


def _check_pair(name: str, value: object) -> None:
    whole = isinstance(value, tuple) and all(isinstance(n, int | np.integer) for n in value)
    if not whole or len(value) != 2:  # type: ignore[arg-type]
        raise ConfigError(f"{name}: found {value!r}, allowed a pair of whole numbers (x, y)")


def _size(shape: Shape) -> int:
    return int(np.prod(shape))


def _three_axes(kind: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise ConfigError(f"{kind}: found a source of shape {shape}, allowed (x, y, channel)")


def _window_shape(
    kind: str, shape: Shape, window: Sequence[int], stride: Pair, padding: Pair
) -> Pair:
    if min(*window, *stride) < 1 or min(padding) < 0:
        raise ConfigError(
            f"{kind}: found kernel {tuple(window)}, stride {stride} and padding {padding}, "
            "allowed kernel and stride from 1, padding from 0"
        )
    x, y = ((shape[a] + 2 * padding[a] - window[a]) // stride[a] + 1 for a in (0, 1))
    if min(x, y) < 1:
        raise ConfigError(
            f"{kind}: found a window of {tuple(window)} on a source of shape {shape} with padding "
            f"{padding}, allowed windows that fit"
        )
    return x, y


def _padded(x: Array, padding: Pair) -> Array:
    return np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


def _strided(padded: Array, offset: Pair, stride: Pair, out: Shape) -> Array:
    """What the windows see at one place of the kernel, shape (samples, x, y, channels)."""
    x, y = (
        slice(offset[axis], offset[axis] + (out[axis] - 1) * stride[axis] + 1, stride[axis])
        for axis in (0, 1)
    )
    return padded[:, x, y]


def window_pairs(
    shape: Shape, out: Shape, offset: Pair, stride: Pair, padding: Pair
) -> tuple[IntArray, IntArray]:
    """Places (x, y) of source and output that meet at one place of the kernel, without padding."""
    place_x, place_y = (axis.ravel() for axis in np.indices(out[:2]))
    x = place_x * stride[0] + offset[0] - padding[0]
    y = place_y * stride[1] + offset[1] - padding[1]
    inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
    return (x * shape[1] + y)[inside], (place_x * out[1] + place_y)[inside]


def _stack(parts: Sequence[tuple[Array, ...]]) -> Connections:
    return Connections(*(np.concatenate([part[axis] for part in parts]) for axis in range(3)))
