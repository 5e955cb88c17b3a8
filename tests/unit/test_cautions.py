from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st

from nmtool.backends.reference import ReferenceBackend
from nmtool.compiler import compile_program
from nmtool.compiler.cautions import cautions
from nmtool.compiler.features import features
from nmtool.errors import ConfigError, FitError
from nmtool.network import CubaLif, Delta, Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten
from nmtool.quantization import dequantize, quantize
from nmtool.spikes import SpikeTrain

LIF = CubaLif(0.5, 0.3, 0.1)


def network(populations, projections=(), inputs=(), outputs=("a",)):
    return Network("small", dict(inputs), dict(populations), dict(projections), outputs)


def program(*args, **kwargs):
    return compile_program(network(*args, **kwargs), nets.CHIP)


def fed(weight):
    return program(
        {"a": Population((2,), LIF)},
        {"fc": Projection.dense("i", "a", weight)},
        {"i": Input((2,))},
    )


def test_a_network_with_nothing_odd_has_no_cautions():
    assert cautions(fed(np.full((2, 2), 0.25))) == []


def test_neurons_that_lost_all_weights_are_named():
    line, *_ = cautions(fed(np.array([[1.0, 1.0], [1e-6, 0.0]])))
    assert line.startswith("NM-FIT-063 fc.weight: all weights of 1 target neuron were rounded to 0")


def test_clipped_weights_are_named():
    lines = cautions(fed(np.full((2, 2), 1e6)))
    assert any(
        line.startswith("NM-FIT-061 fc.weight: 100 % of the values were clipped") for line in lines
    )


def test_a_few_clipped_weights_are_not_none():
    made = fed(np.full((2, 2), 0.25))
    few = tuple(replace(error, clipped=2.5e-6) for error in made.network.errors)
    lines = cautions(replace(made, network=replace(made.network, errors=few)))
    assert all(": 0.00025 % of the values were clipped" in line for line in lines)
    assert len(lines) == len(few)


def test_a_population_that_nothing_feeds_is_named():
    lonely = {"a": Population((2,), LIF), "b": Population((3,), LIF, bias=np.full(3, 0.1))}
    (line,) = cautions(program(lonely))
    assert line.startswith("NM-FIT-064 a: found no projection, input or bias that feeds it")


def driven(exponent, threshold=0.5):
    population = Population((2,), CubaLif(threshold, 0.3, 0.5), bias_exponent=exponent)
    return program({"a": population}, inputs={"i": Input((2,), "bias", "a")})


@pytest.mark.parametrize("threshold", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("exponent", [None, 0, 1, 3, 6, 7])
def test_a_bias_too_weak_for_the_threshold_is_named_exactly_where_it_is(exponent, threshold):
    made = driven(exponent, threshold)
    strongest = SpikeTrain.from_raster(np.full((2, 60), 4095), graded=True)
    with ReferenceBackend().open(made) as session:
        silent = len(session.run(strongest).spikes["a"]) == 0
    warned = [line for line in cautions(made) if "a: found the bias exponent" in line]
    assert bool(warned) == silent


def test_the_bias_exponent_can_be_set_and_survives_dequantizing():
    made = driven(6).network
    assert made.populations["a"].bias_exponent == 6
    again = quantize(dequantize(made), nets.CHIP)
    assert again.populations["a"].bias_exponent == 6


@pytest.mark.parametrize("exponent", [-1, 8])
def test_a_bias_exponent_that_the_chip_has_not_is_refused(exponent):
    with pytest.raises(FitError, match=rf"a.bias_exponent: found {exponent}, allowed 0 to 7"):
        driven(exponent)


def test_a_bias_that_its_exponent_cannot_hold_is_refused():
    population = Population((2,), LIF, bias=np.full(2, 2.0), bias_exponent=0)
    with pytest.raises(FitError, match=r"a\.bias: found 2"):
        program({"a": population})


def test_a_bias_exponent_of_other_neurons_is_refused():
    population = Population((2,), Delta(0.5), bias_exponent=6)
    with pytest.raises(ConfigError, match=r"a\.bias_exponent: found 6, allowed for CUBA neurons"):
        program({"a": population}, inputs={"i": Input((2,), "graded", "a")})


def test_features_name_convolutions_chains_and_joins():
    rng = np.random.default_rng(0)
    kernel = Conv(rng.normal(size=(2, 2, 2, 1)), groups=2, dilation=(2, 2))
    made = program(
        {"c": Population((2, 2, 2), LIF), "a": Population((8,), LIF, np.full(8, 0.1))},
        {
            "conv": Projection("i", "c", (kernel,)),
            "out": Projection("c", "a", (Flatten(), Dense(rng.normal(size=(8, 8))))),
            "skip": Projection("i", "a", (Flatten(), Dense(rng.normal(size=(8, 32))))),
        },
        {"i": Input((4, 4, 2))},
    )
    used = features(made)
    assert used["conv with groups"] == used["conv with dilation"] == ["projection conv"]
    assert used["chain of several operations"] == ["projection out", "projection skip"]
    assert used["several projections into one population"] == ["population a"]
    assert used["bias"] == ["population a"]


@pytest.mark.parametrize(
    ("weight", "threshold", "never"),
    [(-1.0, 0.5, 2), (0.0, 0.5, 2), (0.1, 400.0, 2), (1.0, 0.5, 0)],
)
def test_neurons_that_no_input_can_make_spike_are_counted(weight, threshold, never):
    made = compile_program(
        network(
            {"a": Population((2,), CubaLif(threshold, 0.3, 0.9))},
            {"fc": Projection.dense("i", "a", np.full((2, 2), weight))},
            {"i": Input((2,))},
        ),
        nets.CHIP,
        n_steps=30,
    )
    with ReferenceBackend().open(made) as session:
        most = session.run(SpikeTrain.from_raster(np.ones((2, 30), dtype=bool))).spikes["a"]
    assert len(set(most.neuron.tolist())) == 2 - never
    said = [line for line in cautions(made) if "can never spike" in line]
    assert bool(said) == bool(never)
    if never:
        assert said[0].startswith(f"NM-FIT-065 a: {never} of 2 neurons can never spike")


@given(nets.programs(n_steps=12), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_neuron_that_spikes_was_never_called_silent(made, seed):
    from nmtool.quantization import never_firing

    rng = np.random.default_rng(seed)
    rasters = {
        name: SpikeTrain.from_raster(rng.random((3, source.size, 12)) < 0.7)
        for name, source in made.network.inputs.items()
    }
    with ReferenceBackend().open(made) as session:
        run = session.run(rasters, probe="spikes")
    for bound in made.bounds:
        if bound.safe:
            never = never_firing(made.network, bound.population, 12)
            assert not np.any(never[run.spikes[bound.population].neuron])


def test_one_large_weight_that_makes_the_others_zero_is_named():
    weight = np.random.default_rng(0).normal(0, 0.3, (20, 20))

    def said():
        populations, inputs = {"a": Population((20,), LIF)}, {"i": Input((20,))}
        made = program(populations, {"fc": Projection.dense("i", "a", weight)}, inputs)
        return [line for line in cautions(made) if "became 0" in line]

    assert said() == []
    weight[0, 0] = 100.0
    (line,) = said()
    assert line.startswith("NM-FIT-062 fc.weight: ")
