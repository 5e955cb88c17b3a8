"""Run tables hold the synapses of a chain, no more and no fewer."""

from collections import Counter

import numpy as np
import oracle
import strategies as nets
from hypothesis import given

from nmtool.backends.runs import run_table
from nmtool.operations import Conv, Dense, Sparse


def read(table, mantissa):
    """{(source, target, delay): weight} of a table."""
    found = Counter()
    for source in range(table.row.size - 1):
        for run in range(table.row[source], table.row[source + 1]):
            for k in range(table.length[run]):
                weight = mantissa.ravel()[table.order[table.weight[run] + k]]
                found[source, int(table.target[run]) + k, int(table.delay[run])] += int(weight)
    return found


def wanted(projection, shape, axonal):
    found = Counter()
    for i, j, value, place in oracle.paths(projection.operations, shape)[0]:
        delay = projection.delay if np.ndim(projection.delay) == 0 else projection.delay[place]
        found[i, j, int(delay) + int(np.broadcast_to(axonal, oracle.count(shape))[i])] += value
    return found


def tables(network):
    for projection in network.projections.values():
        shape, axonal = network.shapes[projection.source], network.axonal_delay(projection.source)
        table = run_table(projection.operations, shape, projection.delay, axonal)
        yield projection, shape, axonal, table


@given(nets.any_networks(longest=62))
def test_a_table_holds_every_synapse_with_its_delay(network):
    for projection, shape, axonal, table in tables(network):
        assert read(table, projection.weight_mantissa) == wanted(projection, shape, axonal)


@given(nets.any_networks(longest=62))
def test_rows_rise_and_runs_stay_inside_the_target(network):
    for projection, _, _, table in tables(network):
        assert table.row.shape == (network.sizes[projection.source] + 1,)
        assert (table.row[0], table.row[-1]) == (0, table.target.size)
        assert np.all(np.diff(table.row) >= 0)
        assert np.all(table.length >= 1)
        assert np.all(table.target >= 0)
        assert np.all(table.target + table.length <= network.sizes[projection.target])
        assert np.all(table.weight >= 0)
        assert np.all(table.weight + table.length <= table.order.size)
        assert np.all(table.delay >= 0)


def test_dense_weights_are_one_run_a_source_and_convolutions_share_theirs():
    dense = run_table((Dense(np.ones((5, 3))),), (3,), 2, 1)
    assert (dense.length.tolist(), dense.delay.tolist()) == ([5] * 3, [3] * 3)
    conv = run_table((Conv(np.ones((4, 3, 3, 2)), padding=(1, 1)),), (6, 6, 2), 0, 0)
    assert set(conv.length) == {4}
    assert conv.order.size == 4 * 3 * 3 * 2


def test_a_gap_or_another_delay_ends_a_run():
    ones, source = np.ones(4), np.zeros(4, dtype=np.int64)
    sparse = Sparse(ones, np.array([5, 1, 0, 2]), source, (6, 1))
    assert run_table((sparse,), (1,), 0, 0).length.tolist() == [3, 1]
    each = run_table((sparse,), (1,), np.array([0, 0, 0, 4]), 0)
    assert list(zip(each.target, each.length, each.delay, strict=True)) == [
        (0, 2, 0),
        (5, 1, 0),
        (2, 1, 4),
    ]
