"""Fan-out: how many synapses every source neuron of a projection has into every slice.

Stored synapses are those that take room in a core: all entries of a dense matrix, zeros as well;
the listed entries of a sparse one; the kernel places of a convolution or pool that meet a neuron,
none in the padding. Effective ones have a weight other than zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.operations import (
    Chain,
    Conv,
    Dense,
    Flatten,
    Scale,
    Shape,
    Sparse,
    SumPool,
    fold,
    weighted,
    window_pairs,
    with_weight,
)
from nmtool.quantization import QuantizedProjection

SynapseKind = Literal["dense", "sparse", "convolution"]


@dataclass(frozen=True, eq=False)
class FanOut:
    """Synapses by source neuron and slice: scipy.sparse matrices of shape (sources, slices)."""

    kind: SynapseKind
    stored: Any
    effective: Any


def fan_out(
    projection: QuantizedProjection, shapes: Mapping[str, Shape], owner: IntArray, n_slices: int
) -> FanOut:
    """The fan-out of a projection; ``owner`` is the slice of every target neuron."""
    found = _counted(projection.operations, shapes[projection.source], owner, n_slices)
    if np.any(weighted(projection.operations).weight):
        return found
    return replace(found, effective=found.stored * 0)


def _counted(chain: Chain, shape: Shape, owner: IntArray, n_slices: int) -> FanOut:
    """By the operation that decides how synapses are stored; pools have no zero weights."""
    shaping = tuple(op for op in chain if not isinstance(op, Scale)) or chain
    last = shaping[-1]
    if isinstance(last, Dense) and all(isinstance(op, Flatten) for op in shaping[:-1]):
        order = np.argsort(_line_order(shaping[:-1], shape))
        stored, effective = _dense(last.weight != 0, owner, n_slices)
        return FanOut("dense", stored[order], effective[order])
    if len(shaping) == 1 and isinstance(last, Conv | SumPool):
        stored, effective = (
            sum(_window(last, shape, owner, n_slices, only_effective))
            for only_effective in (False, True)
        )
        return FanOut("convolution", stored, effective)
    if len(shaping) == 1 and isinstance(last, Sparse):
        ones = last.with_weight(np.ones_like(last.weight))
        return FanOut("sparse", *(_listed(op, owner, n_slices) for op in (ones, last)))
    ones_chain = with_weight(chain, np.ones_like(weighted(chain).weight))
    folded = (fold(each, shape) for each in (ones_chain, chain))
    return FanOut("sparse", *(_listed(op, owner, n_slices) for op in folded))


def _line_order(flattens: Chain, shape: Shape) -> IntArray:
    """The source neuron of every line after some flattening."""
    lines = np.arange(int(np.prod(shape)))[None]
    for operation in flattens:
        lines, shape = operation.apply(lines, shape), operation.output_shape(shape)
    return np.asarray(lines[0])


def _dense(nonzero: BoolArray, owner: IntArray, n_slices: int) -> tuple[Any, Any]:
    import scipy.sparse

    rows = np.bincount(owner, minlength=n_slices)
    stored = np.broadcast_to(rows, (nonzero.shape[1], n_slices))
    effective = [nonzero[owner == index].sum(axis=0) for index in range(n_slices)]
    return scipy.sparse.csr_array(stored), scipy.sparse.csr_array(np.stack(effective, axis=1))


def _listed(operation: Sparse, owner: IntArray, n_slices: int) -> Any:
    import scipy.sparse

    acting = operation.weight != 0
    source, target = operation.source[acting], operation.target[acting]
    entries = (np.ones(source.size, dtype=np.int64), (source, owner[target]))
    return scipy.sparse.csr_array(entries, (operation.size[1], n_slices))


def _window(
    operation: Conv | SumPool, shape: Shape, owner: IntArray, n_slices: int, effective: bool
) -> Iterator[Any]:
    """The fan-out through every place of the kernel, by the channels that slices share."""
    import scipy.sparse

    out = operation.output_shape(shape)
    owners = owner.reshape(-1, out[2])
    parts = np.unique(owners, axis=1, return_inverse=True)[1].ravel()
    for offset, channels in _kernel(operation, shape[2], effective):
        source, place = window_pairs(shape, out, offset, operation.stride, operation.padding)
        for part in np.unique(parts):
            own = owners[place, np.flatnonzero(parts == part)[0]]
            ones = np.ones(source.size, dtype=np.int64)
            places = scipy.sparse.csr_array((ones, (source, own)), (shape[0] * shape[1], n_slices))
            reached = channels[parts == part].sum(axis=0)
            yield scipy.sparse.kron(places, scipy.sparse.csr_array(reached[:, None]), "csr")


def _kernel(
    operation: Conv | SumPool, n_channels: int, effective: bool
) -> Iterator[tuple[tuple[int, int], IntArray]]:
    """Every place of a kernel: its offset, and which channels it joins, shape (out, in)."""
    if isinstance(operation, SumPool):
        for i, j in np.ndindex(*operation.kernel):
            yield (i, j), np.eye(n_channels, dtype=np.int64)
        return
    share, width = operation.weight.shape[0] // operation.groups, operation.weight.shape[3]
    group = np.arange(operation.weight.shape[0]) // share
    column = group[:, None] * width + np.arange(width)
    for i, j in np.ndindex(*operation.weight.shape[1:3]):
        joined = np.zeros((operation.weight.shape[0], n_channels), dtype=np.int64)
        weight = operation.weight[:, i, j]
        np.put_along_axis(joined, column, weight != 0 if effective else np.ones_like(weight), 1)
        yield (i * operation.dilation[0], j * operation.dilation[1]), joined
