"""The forward pass of both engines is the reference backend, bit for bit; what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import load_chip
from nmtool.compiler import compile_program
from nmtool.config import SlayerSurrogate
from nmtool.errors import FitError, UnsupportedError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Dense, SumPool
from nmtool.quantization import dequantize_weights, quantize
from nmtool.spikes import SpikeTrain

CHIP = load_chip("loihi2")
ENGINES = ("event", "slayer")


def both(network, spikes, engine="event"):
    """The trainer's recording and the reference backend's."""
    from nmtool.training.record import record

    program = compile_program(network, CHIP, None, spikes.n_steps)
    with ReferenceBackend().open(program) as session:
        reference = session.run(spikes, probe="spikes,current,voltage")
    return record(network, CHIP, spikes, engine=engine), reference


def assert_same(trainer, reference):
    assert trainer.spikes.keys() == reference.spikes.keys()
    for name in reference.spikes:
        one, two = trainer.spikes[name].to_raster(), reference.spikes[name].to_raster()
        np.testing.assert_array_equal(one, two, f"spikes of {name}")
        np.testing.assert_array_equal(trainer.current[name], reference.current[name], f"u {name}")
        np.testing.assert_array_equal(trainer.voltage[name], reference.voltage[name], f"v {name}")


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=50, deadline=None)
@given(
    network=networks(),
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 3),
    steps=st.one_of(st.integers(1, 20), st.integers(20, 60)),
    rate=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_the_trainers_spikes_and_states_are_the_reference_backends(
    engine, network, seed, samples, steps, rate
):
    (lines,) = [source.size for source in network.inputs.values()]
    raster = np.random.default_rng(seed).random((samples, lines, steps)) < rate
    try:
        trainer, reference = both(network, SpikeTrain.from_raster(raster), engine)
    except FitError as error:
        event(f"refused: {str(error).split(':')[0][-8:]}")
        assume(False)
    for name, train in reference.spikes.items():
        event(f"{name} {'spikes' if len(train) else 'is silent'}")
    assert_same(trainer, reference)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_a_network_that_really_spikes_at_every_width(bits, engine):
    rng = np.random.default_rng(bits)
    neuron = CubaLif(1.25, 0.25, 0.03)
    network = Network(
        "n",
        {"input": Input((20,))},
        {
            "a": Population((30,), neuron, rng.normal(0, 0.05, 30), 2),
            "b": Population((10,), neuron),
        },
        {
            "a": Projection.dense("input", "a", rng.normal(0.05, 0.4, (30, 20)), 1),
            "b": Projection.dense("a", "b", rng.normal(0.05, 0.4, (10, 30)), 3),
        },
        ("b",),
        weight_bits=bits,
    )
    spikes = SpikeTrain.from_raster(rng.random((8, 20, 40)) < 0.4)
    trainer, reference = both(network, spikes, engine)
    assert_same(trainer, reference)
    if bits > 1:
        assert len(reference.spikes["b"]) > 100


def test_two_axes_and_larger_batches_change_nothing():
    from nmtool.training.record import record

    network = chain()
    raster = np.random.default_rng(0).random((300, 4, 20)) < 0.5
    whole = record(network, CHIP, SpikeTrain.from_raster(raster))
    for part in (slice(0, 3), slice(290, 300)):
        few = record(network, CHIP, SpikeTrain.from_raster(raster[part]))
        np.testing.assert_array_equal(few.voltage["a"], whole.voltage["a"][part])
    one = record(network, CHIP, SpikeTrain.from_raster(raster[200]))
    assert one.voltage["a"].shape == (3, 20)
    np.testing.assert_array_equal(one.voltage["a"], whole.voltage["a"][200])
    np.testing.assert_array_equal(one.spikes["a"].to_raster(), whole.spikes["a"].to_raster()[200])


def chain(weight=1.0, delay=0, bias=None, **neuron):
    values = {"threshold": 1.0, "current_decay": 0.5, "voltage_decay": 0.1, **neuron}
    population = Population((3,), CubaLif(**values), bias)
    return Network(
        "n",
        {"input": Input((4,))},
        {"a": population},
        {"to a": Projection.dense("input", "a", np.full((3, 4), weight), delay)},
        ("a",),
    )


def test_where_the_chip_would_overflow_the_trainer_says_so():
    from nmtool.training.record import record

    network = chain(500.0, current_decay=1 / 4096, threshold=2000.0)
    spikes = SpikeTrain.from_raster(np.ones((1, 4, 60), dtype=np.bool_))
    with pytest.raises(FitError, match=r"a\.(current|voltage): the trainer's forward reached"):
        record(network, CHIP, spikes)


def test_the_forward_pass_uses_the_chips_weights_and_the_gradient_passes_straight():
    import torch

    from nmtool.training.slayer import SlayerNetwork

    weight = np.random.default_rng(0).normal(0.3, 0.5, (3, 4))
    network = replace(chain(), weight_bits=3)
    network = replace(
        network, projections={"to a": network.projections["to a"].with_weight(weight)}
    )
    model = SlayerNetwork(network, CHIP, SlayerSurrogate())
    parameter = model.parameter("to a")
    rounded = model.rounded("to a")
    projection = quantize(network, CHIP).projections["to a"]
    expected = dequantize_weights(projection.weight_mantissa, projection.format)
    np.testing.assert_allclose(rounded.detach().numpy().reshape(3, 4), expected, rtol=1e-6)
    rounded.sum().backward()
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    np.testing.assert_array_equal(model.weights()["to a"], weight.astype(np.float32))


@pytest.mark.parametrize("tau", [0.03, 1.0])
@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("threshold", [1.25, 0.5])
def test_the_peak_and_the_width_of_the_surrogate(tau, scale, threshold):
    import torch

    from nmtool.training.slayer import SlayerNetwork

    surrogate = SlayerSurrogate(tau_grad=tau, scale_grad=scale)
    model = SlayerNetwork(chain(threshold=threshold), CHIP, surrogate)
    neuron = model.neuron("a")
    at = float(neuron.threshold + neuron.threshold_eps)
    distance = torch.tensor([0.0, 0.4, -0.4])
    voltage = (at + distance).reshape(1, 3, 1).requires_grad_()
    neuron.spike(voltage).sum().backward()
    width = 100 * tau * threshold
    peak = scale * 0.1 / (2 * width)
    expected = peak * np.exp(-np.abs(distance.numpy()) / width)
    np.testing.assert_allclose(voltage.grad.numpy().ravel(), expected, rtol=1e-4)


def extended(network, populations=None, projections=None, **changes):
    return replace(
        network,
        populations={**network.populations, **(populations or {})},
        projections={**network.projections, **(projections or {})},
        **changes,
    )


LIF = CubaLif(1.0, 0.5, 0.1)
REFUSED = {
    "a delay for each synapse": (
        chain(delay=np.ones((3, 4), dtype=np.int64)),
        "projection to a: found a delay for each synapse",
    ),
    "two operations with weights": (
        extended(
            chain(),
            projections={"b": Projection("a", "a", (Dense(np.eye(3)), Dense(np.eye(3))))},
        ),
        "projection b: found 2 operations with weights, training allows one",
    ),
    "nothing to train": (
        extended(
            chain(),
            projections={"to a": Projection("input", "a", (SumPool((2, 1), (2, 1)),))},
            inputs={"input": Input((2, 3, 1))},
        ),
        "network: found no weights to train",
    ),
    "graded values": (
        extended(chain(), inputs={"input": Input((4,), "graded")}),
        "input input: found graded values",
    ),
    "two inputs": (
        extended(chain(), inputs={"input": Input((4,)), "other": Input((2,))}),
        "found 2 inputs, training allows 1",
    ),
    "a population that nothing feeds": (
        extended(chain(), {"b": Population((3,), LIF, np.ones(3))}),
        "population b: found no projection into it",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [*REFUSED])
def test_networks_that_training_does_not_support(case, engine):
    from nmtool.training.model import make_model

    network, says = REFUSED[case]
    with pytest.raises(UnsupportedError, match=says):
        make_model(network, CHIP, SlayerSurrogate(), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_value_that_does_not_fit_is_found_before_training(engine):
    from nmtool.training.model import make_model

    with pytest.raises(FitError, match=r"a\.threshold"):
        make_model(chain(threshold=1e7), CHIP, SlayerSurrogate(), engine)
