"""What no neuron has is refused, not ignored."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import compile_program
from nmtool.compiler.features import features
from nmtool.errors import ConfigError, FitError
from nmtool.network import Input
from nmtool.operations import Conv, Dense, Scale, Sparse, SumPool
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

CHIP = load_chip("loihi2")
ONE = QuantizedPopulation((1,), 0, 0, 0, np.zeros(1, np.int64))


def alone(population, **inputs):
    return QuantizedNetwork("n", "loihi2", inputs, {"a": population}, {}, ("a",))


@pytest.mark.parametrize("model", ["sigma_delta", "delta", "sigma"])
def test_a_bias_drives_cuba_neurons_only(model):
    with pytest.raises(ConfigError, match="found a bias that drives a, allowed for CUBA"):
        alone(replace(ONE, model=model), i=Input((1,), "bias", "a"))


@pytest.mark.parametrize(
    "change",
    [
        {"spike_exponent": -1},
        {"spike_exponent": 20, "state_exponent": 20},
        {"bias_exponent": -1},
        {"spike_exponent": 6, "state_exponent": 6, "bias_exponent": 3},
    ],
)
def test_exponents_that_do_not_fit(change):
    population = replace(ONE, bias_mantissa=np.ones(1, np.int64), model="sigma_delta")
    with pytest.raises(FitError, match=r"^NM-FIT-009 a"):
        compile_program(alone(replace(population, **change)), CHIP)


def test_a_delta_encoder_has_no_bias_and_a_sigma_decoder_no_threshold():
    biased = replace(ONE, model="delta", bias_mantissa=np.ones(1, np.int64))
    with pytest.raises(FitError, match=r"a\.bias_mantissa: found 1, allowed 0 to 0"):
        compile_program(alone(biased), CHIP)
    with pytest.raises(FitError, match=r"a\.threshold: found 5, allowed 0 to 0"):
        compile_program(alone(replace(ONE, model="sigma", threshold=5)), CHIP)


@pytest.mark.parametrize("change", [{"model": "izhikevich"}, {"activation": "tanh"}])
def test_unknown_models_and_activations(change):
    with pytest.raises(ConfigError, match=r"population\.(model|activation): found '"):
        replace(ONE, **change)


def test_values_of_a_graded_input_have_24_bits_and_messages_32():
    sigma = replace(ONE, model="sigma")
    synapse = QuantizedProjection.dense("i", "a", np.full((1, 1), 2), SynapseFormat(8, 0, "mixed"))
    network = replace(alone(sigma, i=Input((1,), "graded")), projections={"j": synapse})
    session = ReferenceBackend().open(compile_program(network, CHIP))
    largest = SpikeTrain.from_raster(np.full((1, 3), 2**23 - 1), graded=True)
    found = session.run(largest).spikes["a"]
    assert found.to_raster().tolist() == [[0, 2**24 - 2, 2**25 - 4]]
    assert found.select([0]).payload.max() == 2**25 - 4
    with pytest.raises(ConfigError, match="allowed up to"):
        session.run(SpikeTrain.from_raster(np.full((1, 3), 2**23), graded=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Scale(0.9), "scale: found weights of type float"),
        (lambda: Dense([[1.0]]), "dense: found weights of type list"),
        (
            lambda: Dense(np.array([["a"]])),
            "dense: found weights of type <U1, allowed real numbers",
        ),
        (lambda: Conv(np.ones((1, 1, 1, 1), complex)), "conv: found weights of type complex128"),
        (
            lambda: Sparse.from_matrix(np.array([[1j]])),
            "sparse: found weights of type complex128, allowed real numbers",
        ),
        (
            lambda: Sparse([1.0], np.zeros(1, int), np.zeros(1, int), (1, 1)),
            "sparse: found weights of type list, allowed a numpy array",
        ),
        (lambda: SumPool(2, 2), r"sum pooling\.kernel: found 2, allowed a pair"),
        (lambda: Conv(np.ones((1, 1, 1, 1)), 2), r"conv\.stride: found 2, allowed a pair"),
        (lambda: Input((1,), "grade"), r"input\.kind: found 'grade', allowed spikes, graded, bias"),
    ],
)
def test_wrong_types_say_what_is_allowed(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_an_array_is_no_spike_train_and_an_operation_no_chain():
    network = alone(ONE, i=Input((1,), "graded", "a"))
    with pytest.raises(ConfigError, match="found a ndarray, allowed a SpikeTrain"):
        ReferenceBackend().open(compile_program(network, CHIP)).run(np.ones((1, 3)))
    synapse = QuantizedProjection("a", "a", Dense(np.ones((1, 1))), SynapseFormat(8, 0, "mixed"))
    with pytest.raises(ConfigError, match="projection j: found operations of type Dense"):
        replace(network, projections={"j": synapse})


def test_a_quantised_network_needs_neurons_and_an_output():
    network = alone(ONE, i=Input((1,), "graded", "a"))
    with pytest.raises(ConfigError, match="network: found no outputs, allowed one or more of a"):
        replace(network, outputs=())
    with pytest.raises(ConfigError, match="network: found no populations"):
        QuantizedNetwork("n", "loihi2", {}, {}, {}, ())


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3"])
def test_steps_are_whole_numbers_from_1(steps):
    network = alone(ONE, i=Input((1,), "graded", "a"))
    with pytest.raises(ConfigError, match=r"compile: found .* steps, allowed whole numbers from 1"):
        compile_program(network, CHIP, n_steps=steps)
    session = ReferenceBackend().open(compile_program(network, CHIP, n_steps=np.int64(3)))
    train = SpikeTrain.from_raster(np.zeros((1, 3), int), graded=True)
    for act in (session.run, session.stream):
        with pytest.raises(ConfigError, match=r"input: found .* steps, allowed whole numbers from"):
            act(train, n_steps=steps)


def test_a_probe_of_nothing_is_refused():
    session = ReferenceBackend().open(compile_program(alone(ONE), CHIP))
    for probe in ("", " , "):
        with pytest.raises(ConfigError, match=r"probe: found '.*', allowed spikes, current"):
            session.run({}, 3, probe)


def test_a_skip_is_not_recurrent_and_a_loop_is():
    format = SynapseFormat(8, 0, "mixed")

    def synapse(source, target):
        return QuantizedProjection.dense(source, target, np.full((1, 1), 2), format)

    skip = {"ia": synapse("i", "a"), "ab": synapse("a", "b"), "bc": synapse("b", "c")}
    skip["ic"] = synapse("i", "c")
    populations = dict.fromkeys(("a", "b", "c"), ONE)
    network = QuantizedNetwork("n", "loihi2", {"i": Input((1,))}, populations, skip, ("c",))
    assert "recurrent projection" not in features(compile_program(network, CHIP))
    loop = replace(network, projections={**skip, "ca": synapse("c", "a")})
    users = features(compile_program(loop, CHIP))["recurrent projection"]
    assert users == ["projection ab", "projection bc", "projection ca"]
