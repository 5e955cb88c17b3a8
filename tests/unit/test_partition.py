"""Partition and placement of any network on small chips, against its single synapses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_networks, generators, quantized_networks

from nmtool.chip import UNLIMITED, SynapseFormat, load_chip
from nmtool.compiler.fit import Site, lay_out
from nmtool.compiler.partition import Costs, Demand, exceeded, partition
from nmtool.compiler.place import pack
from nmtool.compiler.rules import RULES
from nmtool.compiler.wiring import Full, Window, neurons, wirings
from nmtool.network import Input
from nmtool.operations import Conv, Dense, Sparse, chain_connections
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

CHIPS = {name: load_chip(name) for name in ("loihi1", "loihi2", "loihi2-2022")}


def small_chip(rng, base):
    """A chip with little of everything."""
    return replace(
        CHIPS[base],
        cores=int(rng.integers(2, 40)),
        neurons_per_core=int(rng.integers(1, 40)),
        synapse_bits_per_core=int(rng.integers(2, 60)) * 64,
        input_axons_per_core=int(rng.integers(2, 60)),
        output_axons_per_core=int(rng.integers(4, 80)),
        slice_widths=str(rng.choice(["any", "powers of two", "halves"])),
        split_synapse_bits=int(rng.integers(8, 60)) * 64 if rng.random() < 0.5 else UNLIMITED,
        delay_slots_per_core=int(rng.integers(8, 400)) if base == "loihi1" else UNLIMITED,
    )


@st.composite
def cases(draw, bases=tuple(CHIPS)):
    network = draw(st.one_of(any_networks(), quantized_networks()))
    rng = draw(generators())
    return network, small_chip(rng, str(rng.choice(bases))), Site(chips=int(rng.integers(1, 4)))


def by_core(placement):
    cores = {}
    for part in placement:
        cores.setdefault((part.chip, part.core), []).append(part)
    return cores


@given(cases())
def test_every_neuron_is_placed_once_on_a_core_that_there_is(case):
    network, chip, site = case
    placement, fit, violations = lay_out(network, chip, site)
    if fit is None:
        assert violations
        assert {v.code for v in violations} <= RULES.keys()
        return
    for name, population in network.populations.items():
        held = [part.neurons(population.shape) for part in placement if part.population == name]
        assert np.sort(np.concatenate(held)).tolist() == list(range(population.size))
    for where, parts in by_core(placement).items():
        assert 0 <= where[0] < site.chips
        assert 0 <= where[1] < chip.cores
        assert sum(part.size for part in parts) <= chip.neurons_per_core
    assert fit.cores == len(by_core(placement)) <= site.chips * chip.cores


def pairs_of(network, name):
    """Every source and target neuron that a projection joins, each pair once."""
    p = network.projections[name]
    found = chain_connections(p.operations, network.shapes[p.source])
    return np.unique(np.stack([found.source, found.target], axis=1), axis=0)


def words(synapses, bits):
    return sum(-(-(min(64, synapses - k) * bits + 10) // 64) for k in range(0, synapses, 64))


def taken(network, placement, wires, part):
    """Synapse bits, input axons and output axons of one slice, counted one by one on Loihi 1."""
    own = part.neurons(network.shapes[part.population])
    bits = inputs = 0
    outputs = own.size if part.population in network.outputs else 0
    for name, p in network.projections.items():
        pairs = pairs_of(network, name)
        window = isinstance(wires[name], Window)
        channels = network.shapes[p.source][-1] if window else 1
        if p.target == part.population:
            held = pairs[np.isin(pairs[:, 1], own)]
            inputs += np.unique(held[:, 0] // channels).size
            lengths = np.unique(held[:, 0], return_counts=True)[1].tolist()
            needed = 0 if isinstance(wires[name], Full) else (own.size - 1).bit_length()
            each = p.weight_bits + (max(6, needed) if needed else 0) + p.delay_max.bit_length()
            if window:  # rows that places share are held against the synapses elsewhere
                bits += wires[name].memory(part.box, CHIPS["loihi1"])
            else:
                bits += 64 * sum(words(n, each) for n in lengths)
        if p.source == part.population:
            sent = pairs[np.isin(pairs[:, 0], own)]
            for other in placement:
                if other.population == p.target:
                    there = np.isin(sent[:, 1], other.neurons(network.shapes[p.target]))
                    reaching = np.unique(sent[there, 0] // channels).size
                    outputs += reaching * (2 if window else 1)
    return bits, inputs, outputs


@settings(max_examples=25)
@given(cases(("loihi1",)))
def test_no_core_holds_more_than_it_has_counted_synapse_by_synapse(case):
    network, chip, site = case
    placement, fit, _ = lay_out(network, chip, site)
    if fit is None:
        return
    wires = wirings(network)
    for parts in by_core(placement).values():
        bits, inputs, outputs = np.sum([taken(network, placement, wires, p) for p in parts], axis=0)
        assert bits <= chip.synapse_bits_per_core
        assert inputs <= chip.input_axons_per_core
        assert outputs <= chip.output_axons_per_core
        slots = 0
        for part in parts:
            incoming = [p for p in network.projections.values() if p.target == part.population]
            longest = max(
                (p.delay_max + int(np.max(network.axonal_delay(p.source))) for p in incoming),
                default=0,
            )
            each = next(n for n in (8, 16, 32, 64, 128) if n > longest + 1 or n == 128)
            slots += part.size * each
        assert slots <= chip.delay_slots_per_core


def shuffled(rng, items):
    keys = [*items]
    return {keys[k]: items[keys[k]] for k in rng.permutation(len(keys))}


@given(cases(), generators())
def test_a_layout_does_not_depend_on_the_order_of_names(case, rng):
    network, chip, site = case
    other = replace(
        network,
        inputs=shuffled(rng, network.inputs),
        populations=shuffled(rng, network.populations),
        projections=shuffled(rng, network.projections),
    )
    first, fit, violations = lay_out(network, chip, site)
    again, same, problems = lay_out(other, chip, site)
    assert first == again
    assert fit == same
    assert sorted(map(str, violations)) == sorted(map(str, problems))
    assert lay_out(network, chip, site)[0] == first


@given(
    st.lists(
        st.builds(Demand, *(st.integers(0, 40) for _ in range(3)), profiles=st.integers(0, 3)),
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_packing_puts_together_only_what_fits(demands, n_cores):
    chip = replace(
        CHIPS["loihi1"],
        neurons_per_core=40,
        synapse_bits_per_core=40,
        input_axons_per_core=40,
        profiles_per_core=3,
    )
    bins = pack(demands, chip, n_cores)
    assert sorted(index for held in bins for index in held) == list(range(len(demands)))
    for held in bins:
        assert held == sorted(held)
        assert not exceeded(sum((demands[index] for index in held), Demand()), chip)
    if len(demands) <= n_cores:
        assert len(bins) == len(demands)


# By hand


FORMAT = SynapseFormat(8, 0, "mixed")


def chain(chip, *stages, source=(8,), delay=0):
    """Populations one after the other, by their operations."""
    populations, projections, before, shape = {}, {}, "in", source
    for k, operations in enumerate(stages):
        for operation in operations:
            shape = operation.output_shape(shape)
        zero = np.zeros(int(np.prod(shape)), dtype=np.int64)
        populations[f"l{k}"] = QuantizedPopulation(shape, 0, 0, 100, zero)
        projections[f"p{k}"] = QuantizedProjection(before, f"l{k}", operations, FORMAT, delay)
        before = f"l{k}"
    return QuantizedNetwork(
        "chain", chip.name, {"in": Input(source)}, populations, projections, (before,)
    )


def dense(outputs, inputs):
    return (Dense(np.zeros((outputs, inputs), dtype=np.int64)),)


def boxes_of(network, chip):
    boxes, problems = partition(Costs.of(network, chip))
    assert not problems
    return boxes


def test_a_dense_layer_fills_cores_one_after_the_other():
    """Loihi 1: 1024 inputs, w words each: 16384 / 1024 = 16 words."""
    chip = CHIPS["loihi1"]
    network = chain(chip, dense(300, 1024), source=(1024,))
    # 64 neurons take 9 words; 54 more 442 bits -> 7 words; 55 would take 8
    assert boxes_of(network, chip)["l0"] == (((0, 118),), ((118, 236),), ((236, 300),))


def test_halves_of_a_core_are_tried_until_slices_fit():
    """S4D's 256 x 256: slices of 127 neurons, for 255 take 16384 words of 16000."""
    chip = CHIPS["loihi2"]
    network = chain(chip, dense(256, 256), source=(256,))
    four = {
        name: replace(p, format=SynapseFormat(4, 0, "mixed"))
        for name, p in network.projections.items()
    }
    network = replace(network, projections=four)
    assert boxes_of(network, chip)["l0"] == (((0, 127),), ((127, 254),), ((254, 256),))


def test_halves_end_at_one_neuron():
    """Two neurons a core; 5 sources take a word each, for one neuron (28 bits) or two (48)."""
    chip = replace(CHIPS["loihi2"], neurons_per_core=2, synapse_bits_per_core=5 * 64 - 1)
    _, problems = partition(Costs.of(chain(chip, dense(3, 5), source=(5,)), chip))
    assert [p.resources for p in problems] == [("synapse_bits",)]
    chip = replace(chip, neurons_per_core=2, synapse_bits_per_core=5 * 64, input_axons_per_core=5)
    boxes = boxes_of(chain(chip, dense(3, 5), source=(5,)), chip)["l0"]
    assert boxes == (((0, 2),), ((2, 3),))
    tight = replace(chip, memory_words_per_core=5 + 5 + 1 + 1)
    assert len(boxes_of(chain(tight, dense(3, 5), source=(5,)), tight)["l0"]) == 3


def test_output_axons_cut_a_source_that_reaches_many_cores():
    """4 targets a core, 8 cores: each source takes 8 output axons of 24, so 3 a core."""
    chip = replace(CHIPS["loihi1"], neurons_per_core=4, output_axons_per_core=24)
    network = chain(chip, dense(8, 2), dense(32, 8), source=(2,))
    boxes = boxes_of(network, chip)
    assert len(boxes["l1"]) == 8
    assert boxes["l0"] == (((0, 3),), ((3, 6),), ((6, 8),))


@pytest.mark.parametrize(("delay", "size"), [(0, 1024), (6, 1024), (7, 512), (14, 512), (62, 128)])
def test_long_delays_take_slots_from_neurons(delay, size):
    """A delay of d steps takes 8, 16, 32 or 64 slots, more than d + 1; a core has 8192."""
    chip = CHIPS["loihi1"]
    network = chain(chip, dense(1024, 1), source=(1,), delay=delay)
    assert boxes_of(network, chip)["l0"][0] == ((0, size),)


def test_convolutions_are_cut_along_x_in_powers_of_two():
    chip = replace(CHIPS["loihi2-2022"], neurons_per_core=200)
    network = chain(chip, (Conv(np.zeros((2, 3, 3, 2), dtype=np.int64)),), source=(22, 12, 2))
    # 20 x 10 places of 2 channels: 20 neurons a column, 8 columns in 200
    assert [box[0] for box in boxes_of(network, chip)["l0"]] == [(0, 8), (8, 16), (16, 20)]


def test_channels_are_cut_where_the_kernels_of_one_place_do_not_fit():
    chip = replace(CHIPS["loihi2"], synapse_bits_per_core=64 * 64)
    network = chain(chip, (Conv(np.zeros((64, 3, 3, 2), dtype=np.int64)),), source=(6, 6, 2))
    # 18 rows: 16 channels take 138 bits -> 3 words: 54; 32 take 266 -> 5: 90 of 64
    assert [box[2] for box in boxes_of(network, chip)["l0"]] == [
        (0, 16),
        (16, 32),
        (32, 48),
        (48, 64),
    ]


def test_what_does_not_fit_is_named_with_its_resource():
    chip = replace(CHIPS["loihi1"], input_axons_per_core=7)
    _, problems = partition(Costs.of(chain(chip, dense(3, 8)), chip))
    assert [(p.population, p.resources) for p in problems] == [("l0", ("input_axons",))]
    assert problems[0].demand.input_axons == 8
    assert chip.memory_words_per_core == UNLIMITED


def test_synapses_of_other_cores_take_nothing():
    """A band of synapses: a core holds the axons of its own sources only."""
    chip = replace(CHIPS["loihi1"], neurons_per_core=10)
    neuron = np.arange(40)
    band = Sparse(np.ones(40, dtype=np.int64), neuron, neuron, (40, 40))
    network = chain(chip, (band,), source=(40,))
    costs = Costs.of(network, chip)
    boxes = boxes_of(network, chip)
    assert [costs.demand("l0", box, boxes).input_axons for box in boxes["l0"]] == [10] * 4
    assert neurons(boxes["l0"][1], (40,)).tolist() == list(range(10, 20))
