"""Measured spikes in place of the model's: forward the measurement, backward the model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.chip import load_chip
from nmtool.config import SlayerSurrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import DECAY_ONE, current_step, fires, voltage_step
from nmtool.network import CubaLif, Input, Network, Population, Projection, shapes
from nmtool.operations import apply_chain, with_weight
from nmtool.quantization import STATE_SCALE, quantize
from nmtool.training.injection import Measured

CHIP = load_chip("loihi2")
SAMPLES, STEPS = 3, 11


def replayed(network, inputs, measured):
    """Spikes and voltages before the reset, (samples, neurons, steps), one step at a time."""
    quantized = quantize(network, CHIP)
    source_shape = shapes(network.inputs, network.populations)
    samples, _, steps = inputs.shape
    spikes = {"input": inputs} | {
        name: np.zeros((samples, p.size, steps), bool) for name, p in quantized.populations.items()
    }
    voltage = {name: np.zeros_like(spikes[name], np.int64) for name in quantized.populations}
    u = {name: np.zeros((samples, p.size), np.int64) for name, p in quantized.populations.items()}
    v = {name: zero.copy() for name, zero in u.items()}
    for t in range(steps):
        for name, population in quantized.populations.items():
            drive = np.zeros_like(u[name])
            for projection in (p for p in quantized.projections.values() if p.target == name):
                source = projection.source
                sent = t - 1 - int(projection.delay) - int(quantized.axonal_delay(source))
                if sent >= 0:
                    chain = with_weight(projection.operations, projection.weight)
                    arriving = spikes[source][..., sent].astype(np.int64)
                    drive += apply_chain(chain, arriving, source_shape[source])
            u[name] = current_step(u[name], drive, population.decay_u)
            v[name] = voltage_step(v[name], u[name], population.bias, population.decay_v)
            voltage[name][..., t] = v[name]
            fired = fires(v[name], population.threshold)
            if name in measured:
                known = np.broadcast_to(measured[name].known, spikes[name].shape)[..., t]
                fired = np.where(known, measured[name].spikes[..., t], fired)
            spikes[name][..., t] = fired
            v[name] = np.where(fired, 0, v[name])
    return spikes, voltage


def make_model(network):
    from nmtool.training.engine import EventNetwork

    return EventNetwork(network, CHIP, SlayerSurrogate())


def as_input(raster):
    import torch

    return torch.from_numpy(raster.astype(np.float32))


@settings(max_examples=15, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.3, 1.0]))
def test_the_forward_pass_is_the_measurement_and_the_model_elsewhere(network, seed, share):
    rng = np.random.default_rng(seed)
    inputs = rng.random((SAMPLES, network.sizes["input"], STEPS)) < 0.4
    measured = {
        name: Measured(rng.random(size) < 0.3, rng.random(size) < share)
        for name, p in network.populations.items()
        if rng.random() < 0.7
        for size in [(SAMPLES, p.size, STEPS)]
    }
    spikes, voltage = replayed(network, inputs, measured)
    if max(np.abs(v).max() for v in voltage.values()) >= (1 << 23) - 1:
        return  # the chip saturates there, and the engine goes on
    model = make_model(network)
    try:
        run = model.run(as_input(inputs), tuple(network.populations), measured=measured)
    except FitError:
        return
    for k, layer in enumerate(model.layers):
        for name, part in layer.slices.items():
            np.testing.assert_array_equal(run.spikes[name].swapaxes(1, 2), spikes[name])
            np.testing.assert_array_equal(run.voltage[k][..., part].swapaxes(1, 2), voltage[name])


@settings(max_examples=10, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_without_measurements_it_is_plain_training_to_the_bit(network, seed):
    import torch

    model, rng = make_model(network), np.random.default_rng(seed)
    x = as_input(rng.random((SAMPLES, network.sizes["input"], STEPS)) < 0.4)
    weights = [model.parameter(name) for name in model.trained]
    found = []
    for spikes in (model(x), model.injected(x, tuple(network.populations), {})):
        total = sum((s * (k + 1)).sum() for k, s in enumerate(spikes.values()))
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        found.append([np.zeros(1) if g is None else g.numpy() for g in gradients])
        found[-1] += [s.detach().numpy() for s in spikes.values()]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def small(recurrent):
    rng = np.random.default_rng(3)
    size = {"input": 6, "hidden": 8, "output": 4}
    ends = [("input", "hidden", 0), ("hidden", "output", 2)]
    ends += [("hidden", "hidden", 1)] if recurrent else []
    return Network(
        "small",
        {"input": Input((6,))},
        {
            "hidden": Population((8,), CubaLif(1.0, 0.4, 0.2), rng.uniform(-0.1, 0.2, 8)),
            "output": Population((4,), CubaLif(1.0, 0.3, 0.1)),
        },
        {
            f"{a}-{b}": Projection.dense(a, b, rng.normal(0.1, 0.5, (size[b], size[a])), delay)
            for a, b, delay in ends
        },
        ("output",),
    )


@pytest.mark.parametrize("size", [8, 1000], ids=["one-piece", "several-pieces"])
def test_measured_spikes_in_a_loop_of_whole_rows(size):
    """Dense loops add whole rows of weights, and have their registers in pieces of ``PERIOD``."""
    from nmtool.training.kernels import PERIOD

    rng = np.random.default_rng(3)
    hidden = Population((size,), CubaLif(1.0, 0.4, 0.2))
    into, back = (rng.normal(0.02, 4 / n, (size, n)) for n in (6, size))
    network = Network(
        "loop",
        {"input": Input((6,))},
        {"hidden": hidden},
        {
            "in": Projection.dense("input", "hidden", 20 * into),
            "back": Projection.dense("hidden", "hidden", 5 * back, delay=2),
        },
        ("hidden",),
    )
    inputs = rng.random((SAMPLES, 6, STEPS)) < 0.4
    seen = (SAMPLES, size, STEPS)
    measured = {"hidden": Measured(rng.random(seen) < 0.3, rng.random(seen) < 0.5)}
    model = make_model(network)
    (layer,) = model.layers
    assert layer.is_whole
    assert layer.registers.shape[1] == min(size, PERIOD)
    free, _ = replayed(network, inputs, {})
    spikes, voltage = replayed(network, inputs, measured)
    assert 0.01 < free["hidden"].mean() < 0.9
    assert (spikes["hidden"] != free["hidden"])[~measured["hidden"].known].any()
    run = model.run(as_input(inputs), ("hidden",), measured=measured)
    np.testing.assert_array_equal(run.spikes["hidden"].swapaxes(1, 2), spikes["hidden"])
    np.testing.assert_array_equal(run.voltage[0].swapaxes(1, 2), voltage["hidden"])


def explicit(network, inputs, measured, voltage, wanted, healthy):
    """Gradients of ``sum(wanted * output spikes)``, in float64, by torch, step by step.

    As in training the reset is left out, and in a loop the gradient goes by way of spikes only.
    """
    import torch

    model, quantized = make_model(network), quantize(network, CHIP)
    weights = {
        name: torch.tensor(
            p.weight / 64, dtype=torch.float64, requires_grad=True
        )  # 64 weight units are 1
        for name, p in quantized.projections.items()
    }
    spikes = {"input": torch.tensor(inputs, dtype=torch.float64).unbind(2)}
    looped = {p.source for p in network.projections.values() if p.source == p.target}
    for name in ("hidden", "output"):
        population = quantized.populations[name]
        keep_u = 1 - (population.decay_u + 1) / DECAY_ONE
        keep_v = 1 - population.decay_v / DECAY_ONE
        rho = model.layers[["hidden", "output"].index(name)].surrogate
        peak, tau = float(rho[2, 0]), 1 / (float(rho[1, 0]) * STATE_SCALE * np.log(2))
        u = v = torch.zeros(inputs.shape[0], population.size, dtype=torch.float64)
        spikes[name] = []
        mask = torch.tensor(healthy.get(name, np.ones(population.size)))
        for t in range(inputs.shape[2]):
            drive = torch.zeros_like(u)
            for key, p in ((k, p) for k, p in network.projections.items() if p.target == name):
                sent = t - 1 - p.delay
                if sent >= 0:
                    drive = drive + spikes[p.source][sent] @ weights[key].T
            u = keep_u * (u.detach() if name in looped else u) + drive
            v = keep_v * (v.detach() if name in looped else v) + u
            at = torch.tensor(voltage[name][..., t] / STATE_SCALE)
            slope = peak * torch.exp(-(at - float(rho[0, 0]) / STATE_SCALE).abs() / tau) * mask
            own = torch.tensor(measured[name].spikes[..., t], dtype=torch.float64)
            spikes[name].append(own + slope * (v - v.detach()))
    (torch.stack(spikes["output"], dim=2) * wanted).sum().backward()
    return {name: w.grad.numpy() for name, w in weights.items()}


@pytest.mark.parametrize("recurrent", [False, True], ids=["dense", "recurrent"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_gradient_is_that_of_the_explicit_graph(recurrent, masked):
    import torch

    network, rng = small(recurrent), np.random.default_rng(0)
    inputs = rng.random((4, 6, 15)) < 0.4
    measured = {
        name: Measured.whole(rng.random((4, p.size, 15)) < 0.3)
        for name, p in network.populations.items()
    }
    healthy = {"hidden": np.array([1.0, 0, 1, 1, 0, 1, 1, 1])} if masked else {}
    _, voltage = replayed(network, inputs, measured)
    wanted = torch.tensor(rng.normal(size=(4, 4, 15)))
    expected = explicit(network, inputs, measured, voltage, wanted, healthy)
    model = make_model(network)
    spikes = model.injected(as_input(inputs), ("output",), measured, healthy)["output"]
    np.testing.assert_array_equal(spikes.detach().numpy(), measured["output"].spikes)
    (spikes * wanted.to(torch.float32)).sum().backward()
    for name, gradient in expected.items():
        found = model.parameter(name).grad.numpy()
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(found, gradient, rtol=0, atol=2e-5 * np.abs(gradient).max())
        if masked and name.endswith("-hidden"):
            assert not found[[1, 4]].any()


def test_a_measured_voltage_is_taken_but_where_a_spike_hid_it():
    network, rng = small(False), np.random.default_rng(0)
    inputs = rng.random((4, 6, 15)) < 0.4
    spikes, voltage = replayed(network, inputs, {})
    hidden = spikes["hidden"]
    probed = rng.integers(-5000, 5000, hidden.shape)
    seen = rng.random(hidden.shape) < 0.5
    known = np.ones((1, 1, 1), dtype=np.bool_)
    measured = {"hidden": Measured(hidden, known, probed, seen)}
    model = make_model(network)
    run = model.run(as_input(inputs), ("output",), measured=measured)
    expected = np.where(seen & ~hidden, probed, voltage["hidden"])
    assert hidden.any()
    np.testing.assert_array_equal(run.voltage[0].swapaxes(1, 2), expected)
    np.testing.assert_array_equal(run.spikes["output"].swapaxes(1, 2), spikes["output"])


def test_some_steps_of_a_measurement():
    rng = np.random.default_rng(0)
    spikes, voltage = rng.random((2, 3, 9)) < 0.5, rng.integers(0, 9, (2, 3, 9))
    part = slice(4, 7)
    whole = Measured.whole(spikes, voltage).steps(part)
    np.testing.assert_array_equal(whole.spikes, spikes[..., 4:7])
    np.testing.assert_array_equal(whole.voltage, voltage[..., 4:7])
    assert whole.known.all()
    assert whole.voltage_known is None
    some = Measured(spikes, spikes, voltage, ~spikes).steps(part)
    np.testing.assert_array_equal(some.known, spikes[..., 4:7])
    np.testing.assert_array_equal(some.voltage_known, ~spikes[..., 4:7])
