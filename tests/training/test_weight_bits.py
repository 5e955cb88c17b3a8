"""From 8 bits of a weight to one: trained, compiled and deployed with the same spikes."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from nmtool.chip import load_chip
from nmtool.quantization import choose_format

CURVE = Path(__file__).parents[2] / "examples/weight_bits/curve.py"
SHORT = (
    "train.epochs=1",
    "data.encoding.steps=8",
    "network.layers=[{dense: 24, name: hidden}, {dense: 20, name: output}]",
    "network.readout.neurons_per_class=2",
)


@pytest.fixture(scope="module")
def curve():
    """The function that makes the points of the example."""
    spec = importlib.util.spec_from_file_location("weight_bits_curve", CURVE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.curve
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def points(curve):
    return {p.bits: p for p in curve(seeds=[0], overrides=SHORT)}


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1])
def test_the_trained_spikes_are_the_deployed_ones(points, bits):
    point = points[bits]
    assert point.equal
    assert point.differing == 0
    assert all(text.startswith(f"{bits} bit ") for text in point.formats.values())
    if bits > 1:
        assert point.trained > 0.3, "three times chance after one epoch"


def test_one_bit_is_to_be_trained_with_not_rounded_to(curve):
    overrides = ["train.epochs=1", "network.init_gain=0.3"]
    (point,) = curve(bits=[1], seeds=[0], overrides=overrides)
    assert point.equal
    assert point.trained > 0.5
    assert point.rounded < 0.4


def test_one_bit_excites_where_it_can():
    """A mixed bit is -256 or 0: a network of them never spikes."""
    chip, rng = load_chip("loihi2"), np.random.default_rng(0)
    for weight in (rng.normal(0, 1, (5, 7)), np.array([[0.3, -40.0]])):
        assert choose_format("p", weight, 1, chip).sign_mode == "excitatory"
        assert choose_format("p", weight, 2, chip).sign_mode == "mixed"
    assert choose_format("p", -np.ones((2, 2)), 1, chip).maximum == 0
    assert choose_format("p", np.array([[1e-9, -1.0]]), 1, chip).sign_mode == "mixed"
