"""What boxes of neurons take of cores, against the single synapses of the same projection."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import chains, generators

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler.wiring import Full, Listed, Window, count, neurons, whole, wiring
from nmtool.network import Input
from nmtool.operations import Conv, Scale, SumPool, chain_connections, chain_shape
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

LOIHI1, LOIHI2 = load_chip("loihi1"), load_chip("loihi2")
BITS = 8


def wired(shape, operations, bits=BITS):
    """The wiring of a projection from an input of a shape, and the shape of its target."""
    out = chain_shape(operations, shape)
    zero = np.zeros(int(np.prod(out)), dtype=np.int64)
    p = QuantizedProjection("in", "out", operations, SynapseFormat(bits, 0, "mixed"))
    network = QuantizedNetwork(
        "wired",
        "loihi2",
        {"in": Input(shape)},
        {"out": QuantizedPopulation(out, 0, 0, 0, zero)},
        {"p": p},
        ("out",),
    )
    return wiring(network, p), out


def random_box(rng, shape):
    ends = [np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in shape]
    return tuple(map(tuple, ends))


def pairs_into(shape, operations, box):
    """Every (source, target) of a chain whose target lies in a box, each once."""
    found = chain_connections(operations, shape)
    held = np.isin(found.target, neurons(box, chain_shape(operations, shape)))
    pairs = np.stack([found.source[held], found.target[held]], axis=1)
    return np.unique(pairs, axis=0)


@given(chains(), generators())
def test_sources_and_reach_are_those_of_the_synapses(chain, rng):
    shape, operations = chain
    wires, out = wired(shape, operations)
    for _ in range(3):
        target, source = random_box(rng, out), random_box(rng, shape)
        reached = np.unique(pairs_into(shape, operations, target)[:, 0])
        assert np.flatnonzero(wires.sources(target)).tolist() == reached.tolist()
        held = neurons(source, shape)
        assert wires.reach(source, target) == np.isin(held, reached).sum()


@given(chains(), generators())
def test_axons_of_loihi_1_are_those_of_the_synapses(chain, rng):
    """An axon for every source, but one for all channels of a place of a convolution."""
    shape, operations = chain
    wires, out = wired(shape, operations)
    shared = isinstance(wires, Window)
    target, source = random_box(rng, out), random_box(rng, shape)
    ends = np.unique(pairs_into(shape, operations, target)[:, 0])
    axons = np.unique(ends // shape[-1]) if shared else ends
    assert wires.input_axons(target, LOIHI1) == axons.size
    held = np.intersect1d(ends, neurons(source, shape))
    slots = 2 * np.unique(held // shape[-1]).size if shared else held.size
    assert wires.slots(source, target, LOIHI1) == slots


def words(synapses, bits, header=10, block=64):
    """Words of 64 bits of a row, block for block, by the published formula."""
    runs = [min(block, synapses - k) for k in range(0, synapses, block)]
    return sum(-(-(run * bits + header) // 64) for run in runs)


@given(chains(), generators())
def test_rows_of_single_synapses_take_what_they_hold(chain, rng):
    shape, operations = chain
    wires, out = wired(shape, operations)
    if isinstance(wires, Window):
        return
    target = random_box(rng, out)
    pairs = pairs_into(shape, operations, target)
    lengths = np.unique(pairs[:, 0], return_counts=True)[1].tolist()
    needed = (count(target) - 1).bit_length()
    index = 0 if isinstance(wires, Full) or not needed else max(6, needed)
    expected = sum(words(n, BITS + index) for n in lengths) * 64
    assert wires.memory(target, LOIHI1) == expected
    two = sum(-(-(n * (BITS + 12) + 8) // 64) for n in lengths) * 64
    assert wires.memory(target, LOIHI2) == two


def rows_of(shape, operation, box):
    """Bits that the rows of a convolution take, place by place, equal rows once."""
    out = operation.output_shape(shape)
    found = chain_connections((operation,), shape)
    number = np.full(int(np.prod(out)), -1)
    number[neurons(box, out)] = np.arange(count(box))
    held = number[found.target] >= 0
    source, target, index = found.source[held], number[found.target[held]], found.index[held]
    rows, largest = set(), 0
    for place in np.unique(source // shape[2]):
        here = source // shape[2] == place
        first = target[here].min() // 256 * 256
        base = target[here].min() - first
        largest = max(largest, int(target[here].max() - base))
        ways = zip(source[here] % shape[2], target[here] - base, index[here], strict=True)
        rows.add(tuple(sorted((int(c), int(t), int(i)) for c, t, i in ways)))
    bits = max(6, largest.bit_length()) if largest else 0
    return sum(words(len(row), BITS + bits) for row in rows) * 64


@st.composite
def convolutions(draw):
    rng = draw(generators())
    shape = (*rng.integers(1, 13, 2).tolist(), int(rng.integers(1, 4)))
    while True:
        kernel, padding, dilation = (
            rng.integers(1, 4, 2),
            rng.integers(0, 3, 2),
            rng.integers(1, 3, 2),
        )
        if np.all((kernel - 1) * dilation < shape[:2] + 2 * padding):
            break
    channels = int(rng.integers(1, 10))
    weight = np.ones((channels, *kernel, shape[2]), dtype=np.int64)
    stride = rng.integers(1, 4, 2)
    pairs = [tuple(map(int, two)) for two in (stride, padding, dilation)]
    return shape, Conv(weight, *pairs), rng


@given(convolutions())
def test_rows_of_a_convolution_take_what_they_hold(case):
    shape, operation, rng = case
    wires, out = wired(shape, (operation,))
    for box in (whole(out), random_box(rng, out)):
        assert wires.memory(box, LOIHI1) == rows_of(shape, operation, box)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ((SumPool((3, 3), (2, 2), overhang=True), Scale(np.ones(1))), Window),
        ((Conv(np.ones((4, 3, 3, 1)), groups=2),), Window),
        ((Conv(np.ones((4, 3, 3, 2))), SumPool((2, 2), (2, 2))), Listed),
    ],
)
def test_kernels_are_kept_where_one_operation_has_them(operation, kind):
    assert isinstance(wired((8, 8, 2), operation)[0], kind)


def test_groups_hold_their_own_channels_only():
    wires, out = wired((4, 4, 4), (Conv(np.ones((8, 3, 3, 2)), groups=2),))
    half = (*whole(out)[:2], (0, 4))
    # Loihi 2: 9 places x 2 channels, rows of 4 outputs: 4 x 8 + 10 bits -> 1 word
    assert wires.memory(half, LOIHI2) == 18 * 64
    assert wires.memory(whole(out), LOIHI2) == 2 * wires.memory(half, LOIHI2)
    assert np.flatnonzero(wires.sources(half))[:4].tolist() == [0, 1, 4, 5]
    assert wires.reach(whole((4, 4, 4)), half) == 32


def test_boxes_of_a_list_are_found_on_every_axis():
    """16 x 16 places of 2 channels, one synapse each: 3-D boxes that are no ranges of neurons."""
    neuron = np.arange(512)
    wires = Listed.of(neuron[::-1].copy(), neuron, ((512,), (16, 16, 2)), BITS, 0)
    box = ((2, 4), (3, 8), (1, 2))
    held = np.sort(511 - neurons(box, (16, 16, 2)))
    assert np.flatnonzero(wires.sources(box)).tolist() == held.tolist()
    assert wires.input_axons(box, LOIHI1) == 10
    assert wires.memory(box, LOIHI1) == 10 * 64  # 8 + 6 + 10 bits each


def test_an_index_that_no_core_has_does_not_fit():
    n = 4097
    wires = Listed.of(np.zeros(n, dtype=np.int64), np.arange(n), ((1,), (n,)), BITS, 0)
    assert wires.memory(((0, n),), LOIHI1) > LOIHI1.synapse_bits_per_core
    assert wires.memory(((0, 4096),), LOIHI1) == 64 * (64 * words(64, 20))
