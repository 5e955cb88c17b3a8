"""Run tables: the synapses of a projection, compressed for event-driven simulation.

A run is a stretch of neighbouring target neurons that one spike reaches with one delay, and the
stretch of weights that it adds there. A dense projection is one run a source neuron, a convolution
one run for every place of its kernel (weights are shared, the channel runs fastest), a sparse
matrix one run for every gap-free piece of its columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nmtool.fixedpoint import IntArray
from nmtool.network import IntLike
from nmtool.operations import (
    Chain,
    Connections,
    Conv,
    Dense,
    Shape,
    chain_connections,
    chain_shape,
    join,
    weighted,
    window_pairs,
)


@dataclass(frozen=True, eq=False)
class RunTable:
    """Runs sorted by source neuron: those of neuron i are ``row[i]`` to ``row[i + 1]``.

    Each has its first ``target`` neuron, the place of its first ``weight``, a ``length`` and a
    ``delay`` in steps (synaptic plus axonal). Place k of the weights holds the element ``order[k]``
    of the flattened mantissas.
    """

    row: IntArray
    target: IntArray
    weight: IntArray
    length: IntArray
    delay: IntArray
    order: IntArray


def run_table(operations: Chain, shape: Shape, delay: IntLike, axonal_delay: IntLike) -> RunTable:
    """The runs of a projection whose source has a shape and an axonal delay."""
    last = operations[-1]
    if np.ndim(delay) == 0 and isinstance(last, Dense | Conv):
        before = _before(operations, shape)
        inner = chain_shape(operations[:-1], shape)
        table = _dense_runs(last) if isinstance(last, Dense) else _conv_runs(last, inner)
        if before is not None:
            table = _through(before, table, int(np.prod(shape)))
        return _delayed(table, delay, axonal_delay)
    return _delayed(_gathered(operations, shape, delay), 0, axonal_delay)


def _before(operations: Chain, shape: Shape) -> Connections | None:
    """The ways to the last operation of a chain, if there is anything before it."""
    return chain_connections(operations[:-1], shape) if len(operations) > 1 else None


def _dense_runs(operation: Dense) -> RunTable:
    n_target, n_source = operation.weight.shape
    source = np.arange(n_source)
    order = np.arange(operation.weight.size).reshape(n_target, n_source).T.ravel()
    zero = np.zeros(n_source, dtype=np.int64)
    length = np.full(n_source, n_target)
    return RunTable(np.arange(n_source + 1), zero, source * n_target, length, zero, order)


def _conv_runs(operation: Conv, shape: Shape) -> RunTable:
    """Weights lie in the order (kernel x, kernel y, group, channel in, channel out)."""
    out = operation.output_shape(shape)
    channels, kx, ky, width = operation.weight.shape
    share = channels // operation.groups
    order = np.arange(operation.weight.size).reshape(operation.groups, share, kx, ky, width)
    order = order.transpose(2, 3, 0, 4, 1).ravel()
    channel = np.arange(shape[2])
    sources, targets, weights = [], [], []
    for i, j in np.ndindex(kx, ky):
        offset = (i * operation.dilation[0], j * operation.dilation[1])
        source, place = window_pairs(shape, out, offset, operation.stride, operation.padding)
        ones = np.ones_like(source)[:, None]
        sources.append((source[:, None] * shape[2] + channel).ravel())
        targets.append((place[:, None] * channels + channel // width * share).ravel())
        weights.append((ones * (((i * ky + j) * shape[2] + channel) * share)).ravel())
    source, target, weight = (np.concatenate(part) for part in (sources, targets, weights))
    length, delay = np.full(source.size, share), np.zeros_like(source)
    return _sorted(source, target, weight, length, delay, order, int(np.prod(shape)))


def _gathered(operations: Chain, shape: Shape, delay: IntLike) -> RunTable:
    """Any chain: every synapse has a weight of its own, and neighbours join to runs."""
    ways = chain_connections(operations, shape)
    per_weight = np.broadcast_to(delay, weighted(operations).weight.shape).ravel()
    steps = per_weight[ways.index]
    order = np.lexsort((ways.target, steps, ways.source))
    source, target, steps = ways.source[order], ways.target[order], steps[order]
    begins = np.ones(source.size, dtype=np.bool_)
    begins[1:] = (
        (source[1:] != source[:-1]) | (steps[1:] != steps[:-1]) | (target[1:] != target[:-1] + 1)
    )
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, source.size))
    n_source = int(np.prod(shape))
    return _sorted(
        source[first], target[first], first, length, steps[first], ways.index[order], n_source
    )


def _sorted(
    source: IntArray,
    target: IntArray,
    weight: IntArray,
    length: IntArray,
    delay: IntArray,
    order: IntArray,
    n_source: int,
) -> RunTable:
    by = np.argsort(source, kind="stable")
    row = np.searchsorted(source[by], np.arange(n_source + 1))
    return RunTable(row, target[by], weight[by], length[by], delay[by], order)


def _through(before: Connections, table: RunTable, n_source: int) -> RunTable:
    """The table seen from the sources of the chain that leads to it."""
    run_source = np.repeat(np.arange(table.row.size - 1), np.diff(table.row))
    runs = Connections(run_source, np.arange(run_source.size), np.zeros_like(run_source))
    ways = join(before, runs)
    t, run = table, ways.target
    return _sorted(
        ways.source, t.target[run], t.weight[run], t.length[run], t.delay[run], t.order, n_source
    )


def _delayed(table: RunTable, delay: IntLike, axonal_delay: IntLike) -> RunTable:
    """The table with the delays that hold for whole sources added."""
    n_source = table.row.size - 1
    source = np.repeat(np.arange(n_source), np.diff(table.row))
    added = np.broadcast_to(np.asarray(axonal_delay) + delay, n_source)[source]
    return replace(table, delay=(table.delay + added).astype(np.int64))


def by_lines(table: RunTable, line: IntArray) -> RunTable:
    """The table of sources whose spikes leave by other lines: those of neuron i by ``line[i]``."""
    source = np.arange(line.size)
    return _through(Connections(source, line, np.zeros_like(source)), table, line.size)
