"""Synapse memory by hand, against nengo-loihi 1.1.0, and against what Intel's compiler printed."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from nmtool.chip import load_chip
from nmtool.compiler.memory import delay_bits, index_bits, kernel_bits, powers_of_two, row_bits
from nmtool.compiler.wiring import Full, Listed, whole, wiring
from nmtool.network import Input
from nmtool.operations import Conv
from nmtool.quantization import (
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    SynapseFormat,
)

LOIHI1, LOIHI2 = load_chip("loihi1"), load_chip("loihi2")
ONE, TWO = LOIHI1.synapse_memory, LOIHI2.synapse_memory


# Loihi 1: ceil((8 n + 10) / 64) words of 64 bits for every 64 synapses of a row


@pytest.mark.parametrize(
    ("axons", "targets", "bits"),
    [
        (1, 1, 64),  # 8 + 10 = 18 -> 1 word
        (1, 6, 64),  # 48 + 10 = 58 -> 1
        (1, 7, 128),  # 56 + 10 = 66 -> 2
        (10, 10, 1_280),  # 80 + 10 = 90 -> 2, x 10 axons = 20
        (10, 64, 5_760),  # 512 + 10 = 522 -> 9, x 10 = 90
        (10, 65, 6_400),  # 9 for 64 and 1 for the last -> 10, x 10 = 100
        (100, 100, 89_600),  # 9, and 36 x 8 + 10 = 298 -> 5: 14, x 100 = 1400
        (128, 128, 147_456),  # 2 x 9 = 18, x 128 = 2304
        (784, 128, 903_168),  # 18 x 784 = 14112
        (128, 1024, 1_179_648),  # 16 x 9 = 144, x 128 = 18432: more than a core's 16384
        (1024, 1024, 9_437_184),
    ],
)
def test_dense_weights_take_on_loihi_1_what_nengo_loihi_counts(axons, targets, bits):
    assert Full(axons, 8, 0).memory(((0, targets),), LOIHI1) == bits


@pytest.mark.parametrize(
    ("shape", "density", "bits"),
    [
        ((100, 100), 0.1, 12_416),  # 1000 synapses
        ((784, 128), 0.05, 72_576),  # 5018
        ((1024, 1024), 0.1, 950_144),  # 104858
    ],
)
def test_sparse_weights_on_loihi_1_take_their_index_beyond_what_nengo_loihi_counts(
    shape, density, bits
):
    """nengo-loihi stores sparse rows without index bits, so that it counts fewer: the formula is
    its own with 0 bits of index, and nmtool adds the smallest index that counts the targets."""
    matrix = scipy.sparse.random(
        *shape, density=density, random_state=0, format="csr", dtype=np.float32
    )
    lengths = np.diff(matrix.indptr)
    assert row_bits(lengths, 8, ONE).sum() == bits
    source = np.repeat(np.arange(shape[0]), lengths)
    listed = Listed.of(source, matrix.indices.astype(np.int64), ((shape[0],), (shape[1],)), 8, 0)
    index = {100: 7, 128: 7, 1024: 10}[shape[1]]
    found = listed.memory(((0, shape[1]),), LOIHI1)
    assert found == row_bits(lengths, 8 + index, ONE).sum() > bits


def test_a_row_without_synapses_takes_nothing():
    assert row_bits(np.array([0, 1]), 8, ONE).tolist() == [0, 64]
    assert row_bits(np.array([0, 1]), 20, TWO).tolist() == [0, 64]


@pytest.mark.parametrize(
    ("targets", "bits"),
    [(1, 0), (2, 6), (64, 6), (65, 7), (128, 7), (129, 8), (1024, 10), (4096, 12), (4097, None)],
)
def test_the_index_of_loihi_1_is_the_smallest_that_counts_the_targets(targets, bits):
    assert index_bits(targets, ONE) == bits
    assert index_bits(targets, TWO) == 12


def test_delays_take_bits_on_loihi_1():
    assert [delay_bits(d, ONE) for d in (0, 1, 7, 8, 62)] == [0, 1, 3, 4, 6]
    assert delay_bits(62, TWO) == 0
    # 10 axons of 10 synapses of 8 + 6 bits: 140 + 10 = 150 -> 3 words
    assert Full(10, 8, 62).memory(((0, 10),), LOIHI1) == 10 * 3 * 64


# Convolutions on Loihi 1. nengo-loihi counted the bits (Synapse.bits() of a block that was not
# split) for an Ensemble of the source's shape, a Convolution, and pop_type 32.


def window(shape, channels, kernel, stride=(1, 1), padding=(0, 0), chip=LOIHI1, bits=8):
    operation = Conv(np.zeros((channels, *kernel, shape[2]), dtype=np.int64), stride, padding)
    out = operation.output_shape(shape)
    zero = np.zeros(int(np.prod(out)), dtype=np.int64)
    p = QuantizedProjection("in", "out", (operation,), SynapseFormat(bits, 0, "mixed"))
    network = QuantizedNetwork(
        "conv",
        chip.name,
        {"in": Input(shape)},
        {"out": QuantizedPopulation(out, 0, 0, 0, zero)},
        {"p": p},
        ("out",),
    )
    return wiring(network, p), whole(out)


@pytest.mark.parametrize(
    ("shape", "channels", "kernel", "stride", "padding", "bits"),
    [
        # Valid. Along an axis of 4 the inputs see the first, two, the last two and the last of 2
        # outputs: 4 x 4 rows of 1, 2 or 4 synapses of 8 + 6 bits. 4 + 8 + 4 rows of 24, 38 or 66
        # bits -> 1, 1 or 2 words: 12 + 4 x 2 = 20
        ((4, 4, 1), 1, (3, 3), (1, 1), (0, 0), 1_280),
        # Same. First, inner and last input: 3 x 3 rows. Corners 4 (66 bits -> 2 words), edges 6
        # (94 -> 2), the middle 9 (136 -> 3): 4 x 2 + 4 x 2 + 3 = 19
        ((4, 4, 1), 1, (3, 3), (1, 1), (1, 1), 1_216),
        ((5, 5, 1), 2, (3, 3), (2, 2), (0, 0), 1_472),
        ((6, 6, 2), 3, (3, 3), (2, 2), (1, 1), 1_664),
        ((6, 6, 2), 3, (3, 3), (1, 1), (0, 0), 7_936),
        ((6, 6, 2), 3, (3, 3), (1, 1), (1, 1), 4_608),
        ((8, 7, 3), 4, (3, 2), (2, 1), (0, 0), 3_776),
        # Outputs beyond the 256th: 30 rows instead of 25, for the base of an axon counts to 255
        ((10, 10, 2), 8, (3, 3), (1, 1), (0, 0), 31_104),
        ((5, 5, 2), 4, (1, 1), (1, 1), (0, 0), 128),
        ((12, 12, 2), 6, (5, 5), (1, 1), (2, 2), 117_440),
    ],
)
def test_convolutions_take_on_loihi_1_what_nengo_loihi_counts(
    shape, channels, kernel, stride, padding, bits
):
    wired, box = window(shape, channels, kernel, stride, padding)
    assert wired.memory(box, LOIHI1) == bits


def test_channels_of_a_place_share_an_axon_on_loihi_1():
    wired, box = window((6, 6, 2), 3, (3, 3), padding=(1, 1))
    assert wired.input_axons(box, LOIHI1) == 36  # places: nengo-loihi counts 36 as well
    assert wired.slots(whole((6, 6, 2)), box, LOIHI1) == 72  # and 2 slots each
    # Places that no kernel sees take none; nengo-loihi counts 56 here, with the last row of 7
    wired, box = window((8, 7, 3), 4, (3, 2), (2, 1))
    assert wired.input_axons(box, LOIHI1) == 49


# Loihi 2, inferred: a row of n synapses of b bits takes ceil((n (b + 12) + 8) / 64) words


@pytest.mark.parametrize(
    ("axons", "targets", "bits", "words"),
    [
        (256, 200, 8, 16_128),  # 200 x 20 + 8 = 4008 -> 63 words; Oxford, before it was cut
        (200, 256, 8, 16_200),  # 5128 -> 81
        (2560, 100, 3, 61_440),  # 1508 -> 24; PilotNet SNN, before it was cut
        (2560, 100, 4, 66_560),  # 1608 -> 26; PilotNet SDNN
        (100, 50, 4, 1_300),
        (50, 10, 5, 150),
        (784, 50, 8, 12_544),  # 78.40 % of 16000; MNIST
        (256, 127, 4, 8_192),  # 51.20 %; S4D
    ],
)
def test_dense_weights_take_on_loihi_2_what_the_compiler_printed(axons, targets, bits, words):
    assert Full(axons, bits, 0).memory(((0, targets),), LOIHI2) == words * 64


@pytest.mark.parametrize(
    ("channels", "parts"),
    [(1, [4]), (4, [4]), (5, [8]), (24, [16, 8]), (36, [32, 4]), (48, [32, 16]), (64, [64])],
)
def test_channels_are_stored_in_powers_of_two(channels, parts):
    assert powers_of_two(channels, TWO.kernel_channels_min) == parts


@pytest.mark.parametrize(
    ("rows", "channels", "bits", "words"),
    [
        (27, 24, 5, 81),  # 16: 90 bits -> 2 words, 8: 50 -> 1; PilotNet
        (216, 36, 4, 864),  # 32: 138 -> 3, 4: 26 -> 1
        (324, 48, 4, 1620),  # 32: 3, 16: 74 -> 2
        (576, 64, 4, 2880),  # 266 -> 5
        (1152, 128, 5, 12672),  # 650 -> 11; YOLO-KP
    ],
)
def test_kernels_take_on_loihi_2_what_the_compiler_printed(rows, channels, bits, words):
    assert kernel_bits(rows, channels, bits, TWO) == words * 64


# The whole tables


@pytest.fixture(scope="module")
def utilisation():
    folder = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("utilisation", folder / "utilisation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["utilisation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["utilisation"]


@pytest.fixture(scope="module")
def laid_out(utilisation):
    if not utilisation.WHEEL.is_dir():
        pytest.skip("lava-dl is not installed; its wheel brings PilotNet")
    return [(table, utilisation.layers(table)) for table in utilisation.tables()]


EXACT = ["oxford", "pilotnet_snn", "pilotnet_sdnn"]


def test_every_error_above_five_percent_has_a_reason(utilisation, laid_out):
    found = [f for table, fits in laid_out for f in utilisation.compare(table, fits)]
    assert len(found) > 200
    assert [f for f in found if abs(f.error) > utilisation.NOTABLE and not f.why] == []
    wrong = {(f.table, f.layer) for f in found if abs(f.error) > utilisation.NOTABLE}
    assert wrong == {
        ("pilotnet_snn", "layer0"),
        ("mnist", "128"),
        ("scifar", "sum"),
        ("scifar", "out"),
    }
    exact = [f for f in found if f.table in EXACT and not f.why]
    assert len(exact) > 90
    assert [f for f in exact if f.printed != f.reckoned] == []


def test_all_cores_but_those_of_one_layer_are_as_printed(laid_out):
    printed = {t.name: sum(row.cores for row in t.rows) for t, _ in laid_out}
    found = {t.name: sum(fits[row.layer].cores for row in t.rows) for t, fits in laid_out}
    assert printed["pilotnet_snn"] == 74
    assert printed["yolo_kp"] == 574
    assert found == {**printed, "scifar": printed["scifar"] - 2}


def test_the_older_compiler_needs_each_of_its_numbers(utilisation, laid_out):
    """What comes out without: rows of Oxford and PilotNet that are then no longer as printed."""
    older = load_chip("loihi2-2022")
    tables = {table.name: table for table, _ in laid_out}

    def cores(name, **changes):
        fits = utilisation.layers(tables[name], replace(older, **changes))
        return {layer: fit.cores for layer, fit in fits.items()}

    assert cores("oxford") == {"256": 3, "200": 2}
    assert cores("oxford", split_synapse_bits=LOIHI2.split_synapse_bits) == {"256": 2, "200": 2}
    assert cores("pilotnet_snn")["layer7"] == 12
    assert cores("pilotnet_snn", split_weight_bits=None)["layer7"] == 9
    assert cores("pilotnet_snn", slice_widths="any")["layer1"] == 20


def test_the_documentation_has_the_tables_of_the_benchmark(utilisation, laid_out):
    text = (Path(__file__).parents[2] / "docs" / "fit.md").read_text()
    for line in utilisation.markdown(laid_out):
        assert line in text
