"""Where slices are put, and how far their spikes go."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler.fit import Site, lay_out
from nmtool.compiler.place import Slice, place, spike_hops, tile_positions, traffic
from nmtool.compiler.wiring import wirings
from nmtool.network import Input
from nmtool.operations import Conv, Dense
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

CHIP = load_chip("loihi2")
SMALL = replace(CHIP, mesh=(3, 2), cores_per_tile=2, cores=12)


def distances(cores, chip, n_cores, n_chips=4):
    at = tile_positions(chip, n_cores, n_chips)[list(cores)]
    return np.abs(at[:, None] - at[None]).sum(axis=2)


def test_tiles_are_numbered_along_y_and_chips_stand_in_a_row():
    at = tile_positions(SMALL, 12, 2).tolist()
    assert at[:6] == [[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    assert at[12:16] == [[3, 0], [3, 0], [3, 1], [3, 1]]
    # 3 of 12 cores can be used: the next chip starts at the fourth
    assert tile_positions(SMALL, 3, 2).tolist()[3] == [3, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_no_core_is_taken_twice_and_in_order_is_never_better(seed, n):
    rng = np.random.default_rng(seed)
    flow = rng.integers(0, 100, (n, n)) * (rng.random((n, n)) < 0.3)
    bins = [[k] for k in range(n)]
    cores = place(flow, bins, SMALL, 12)
    assert len(set(cores.tolist())) == n
    assert cores.max() < 12 * -(-n // 12)
    found = (flow * distances(cores, SMALL, 12)).sum()
    assert found <= (flow * distances(range(n), SMALL, 12)).sum()
    assert np.array_equal(place(flow, bins, SMALL, 12), cores)


def test_slices_that_talk_are_put_on_one_tile():
    """0 talks to 2, 1 to 3: in order they would lie a tile apart."""
    flow = np.zeros((4, 4), dtype=np.int64)
    flow[0, 2] = flow[1, 3] = 5
    cores = place(flow, [[0], [1], [2], [3]], replace(SMALL, cores_per_tile=2), 12)
    apart = distances(cores, SMALL, 12)
    assert (flow * apart).sum() <= 5
    assert (flow * distances(range(4), SMALL, 12)).sum() == 10


def network(operations, source, populations=1):
    """Populations that one input projects to, by the same operations."""
    shape = source
    for operation in operations:
        shape = operation.output_shape(shape)
    zero = np.zeros(int(np.prod(shape)), dtype=np.int64)
    neuron = QuantizedPopulation(shape, 0, 0, 100, zero)
    first = QuantizedPopulation(source, 0, 0, 100, np.zeros(int(np.prod(source)), dtype=np.int64))
    format = SynapseFormat(8, 0, "mixed")
    names = [f"l{k}" for k in range(populations)]
    p = {n: QuantizedProjection("first", n, operations, format) for n in names}
    eye = (Dense(np.zeros((int(np.prod(source)), 1), dtype=np.int64)),)
    return QuantizedNetwork(
        "net",
        "loihi2",
        {"in": Input((1,))},
        {"first": first, **dict.fromkeys(names, neuron)},
        {"in": QuantizedProjection("in", "first", eye, format), **p},
        tuple(names),
    )


def test_a_spike_goes_once_to_every_core_with_a_target():
    """Six sources in two slices, dense to four targets in two slices, for two populations."""
    net = network((Dense(np.zeros((4, 6), dtype=np.int64)),), (6,), populations=2)
    slices = [("first", ((0, 4),)), ("first", ((4, 6),))]
    slices += [(name, ((a, a + 2),)) for name in ("l0", "l1") for a in (0, 2)]
    flow = traffic(net, wirings(net), slices, None)
    assert flow[:2, 2:].tolist() == [[4] * 4, [2] * 4]
    assert flow.sum() == 24
    spikes = {"first": np.array([1, 0, 0, 0, 7, 0]), "l0": np.zeros(4), "l1": np.zeros(4)}
    counted = traffic(net, wirings(net), slices, spikes)
    assert counted[:2, 2:].tolist() == [[1] * 4, [7] * 4]


def test_places_at_a_border_send_to_both_sides():
    """Kernels of 3 over 6 columns: 4 columns of targets in two slices see 4 columns each."""
    net = network((Conv(np.zeros((1, 3, 1, 1), dtype=np.int64)),), (6, 2, 1))
    slices = [("first", ((0, 6), (0, 2), (0, 1)))]
    slices += [("l0", ((a, a + 2), (0, 2), (0, 1))) for a in (0, 2)]
    assert traffic(net, wirings(net), slices, None)[0].tolist() == [0, 8, 8]


def test_hops_and_crossings_are_those_of_the_tiles():
    flow = np.array([[0, 3, 5], [0, 0, 2], [1, 0, 0]])
    box = ((0, 1),)
    placement = [Slice("a", box, 0, 0), Slice("b", box, 0, 11), Slice("c", box, 2, 1)]
    # Tiles (0, 0), (2, 1) and (6, 0): 3 and 6 apart, and 5
    found = spike_hops(flow, placement, SMALL, "one spike of every neuron")
    assert found.hops == 3 * 3 + 5 * 6 + 2 * 5 + 1 * 6
    assert found.crossings == 5 * 2 + 2 * 2 + 1 * 2
    assert spike_hops(flow, placement, SMALL, "") == replace(found, basis="")


def test_slices_of_one_core_take_no_hops():
    box = ((0, 1),)
    both = [Slice("a", box, 0, 3), Slice("b", box, 0, 3)]
    found = spike_hops(np.ones((2, 2), dtype=np.int64), both, SMALL, "")
    assert (found.hops, found.crossings, found.random) == (0, 0, 0.0)


def test_random_placements_of_two_cores_keep_their_distance():
    box = ((0, 1),)
    two = [Slice("a", box, 0, 0), Slice("b", box, 0, 11)]
    found = spike_hops(np.array([[0, 4], [0, 0]]), two, SMALL, "")
    assert found.hops == found.random == 12


@pytest.mark.parametrize("cores", [2, 5])
def test_a_network_goes_to_the_next_chip_where_one_is_full(cores):
    chip = replace(SMALL, neurons_per_core=3)
    net = network((Dense(np.zeros((12, 6), dtype=np.int64)),), (6,))
    placement, fit, violations = lay_out(net, chip, Site(chips=4, cores=cores))
    assert violations == []
    assert {s.chip for s in placement} == set(range(-(-fit.cores // cores)))
    assert max(s.core for s in placement) < cores
    assert fit.hops.crossings > 0
    _, fit, violations = lay_out(net, chip, Site(chips=1, cores=1))
    assert fit is None
    assert [v.code for v in violations] == ["NM-FIT-030"]
