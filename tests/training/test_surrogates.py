"""Surrogate derivatives: their closed forms, in both engines and in compiled code."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.integrate import quad

from nmtool.chip import load_chip
from nmtool.config import (
    ExponentialNoise,
    SigmoidNoise,
    SigmoidSurrogate,
    SlayerSurrogate,
    Surrogate,
)
from nmtool.errors import FitError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.training.surrogates import Shape, derivative, escape_derivative

CHIP = load_chip("loihi2")
THETA = 1.25
SIGMOID_SURROGATE = SigmoidSurrogate(kind="sigmoid", beta=4.0)
SIGMOID = SigmoidNoise(kind="sigmoid", beta=10.0)
EXPONENTIAL = ExponentialNoise(kind="exponential", p0=2 / 3, du=0.133)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def exponential_escape(x):
    p = 2 / 3 * np.exp(x / 0.133)
    return np.where(p < 1, p / 0.133, 0.0)


CASES = {
    "slayer": (
        {"kind": "slayer", "tau_grad": 0.03, "scale_grad": 3.0},
        None,
        lambda x: 0.3 / (2 * 3 * THETA) * np.exp(-np.abs(x) / (3 * THETA)),
    ),
    "slayer, narrow": (
        {"kind": "slayer", "tau_grad": 0.2, "scale_grad": 2.0, "tau_factor": 1.0},
        None,
        lambda x: 0.2 / (0.4 * THETA) * np.exp(-np.abs(x) / (0.2 * THETA)),
    ),
    "fast_sigmoid": (
        {"kind": "fast_sigmoid", "beta": 10.0},
        None,
        lambda x: 1 / (1 + 10 * np.abs(x)) ** 2,
    ),
    "sigmoid": (
        {"kind": "sigmoid", "beta": 4.0},
        None,
        lambda x: 4 * logistic(4 * x) * logistic(-4 * x),
    ),
    "triangle": (
        {"kind": "triangle", "gamma": 0.3, "width": 1.0},
        None,
        lambda x: 0.3 * np.maximum(0, 1 - np.abs(x)),
    ),
    "box": ({"kind": "box", "width": 0.8}, None, lambda x: (np.abs(x) < 0.4) / 0.8),
    "arctan": (
        {"kind": "arctan", "alpha": 2.0},
        None,
        lambda x: 1 / (1 + (math.pi * x) ** 2),
    ),
    "straight_through": ({"kind": "straight_through", "scale": 0.7}, None, lambda x: 0.7 + 0 * x),
    "escape, sigmoid": (
        {"kind": "escape"},
        SIGMOID,
        lambda x: 10 * logistic(10 * x) * logistic(-10 * x),
    ),
    "escape, exponential": ({"kind": "escape"}, EXPONENTIAL, exponential_escape),
}


def settings(case):
    values, noise, formula = CASES[case]
    return TypeAdapter(Surrogate).validate_python(values), noise, formula


@pytest.mark.parametrize("case", [*CASES])
def test_the_closed_form(case):
    surrogate, noise, formula = settings(case)
    x = np.linspace(-3, 3, 1201) + 1e-4
    np.testing.assert_allclose(
        derivative(surrogate, THETA, noise)(x), formula(x), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("case", [*CASES])
def test_peak_and_area(case):
    surrogate, noise, _ = settings(case)
    rho = derivative(surrogate, THETA, noise)
    x = np.linspace(-2, 2, 40_001)
    assert rho(x).max() == pytest.approx(rho.peak, rel=1e-3)
    if rho.shape is Shape.CONSTANT:
        assert rho.area == math.inf
        return
    edge = rho.center
    parts = [(-np.inf, edge), (edge, np.inf)]
    if rho.shape in (Shape.BOX, Shape.TRIANGLE):
        parts = [(-1 / rho.slope, 0.0), (0.0, 1 / rho.slope)]
    whole = sum(quad(rho, *part, epsabs=1e-10)[0] for part in parts)
    assert rho.area == pytest.approx(whole, rel=1e-6)


def test_lavas_defaults_are_nearly_flat():
    """lava-dl's own: scale 0.1 / (2 * 100 * tau_grad * threshold)."""
    for tau, scale in ((1.0, 1.0), (0.03, 3.0)):
        rho = derivative(SlayerSurrogate(tau_grad=tau, scale_grad=scale), THETA)
        assert rho.peak == pytest.approx(scale * 0.1 / (2 * 100 * tau * THETA), rel=1e-12)
    flat = derivative(SlayerSurrogate(tau_grad=1.0, scale_grad=1.0), 1.0)
    assert flat.peak == pytest.approx(5e-4)
    assert flat(np.array([1.0]))[0] > 0.98 * flat.peak


def test_a_threshold_of_0_has_no_slayer_surrogate():
    with pytest.raises(FitError, match="surrogate slayer: found a threshold that the chip rounds"):
        derivative(SlayerSurrogate(), 0.0)
    assert derivative(SIGMOID_SURROGATE, 0.0).peak == 1.0


@pytest.mark.parametrize("noise", [SIGMOID, EXPONENTIAL])
def test_the_escape_derivative_is_that_of_the_escape_function(noise):
    from nmtool.training.noise import probability

    x, h = np.linspace(-1, 1, 2001) + 1e-5, 1e-6
    slope = (probability(noise, x + h) - probability(noise, x - h)) / (2 * h)
    kink = np.abs(x - escape_derivative(noise).center) < 2 * h
    np.testing.assert_allclose(escape_derivative(noise)(x)[~kink], slope[~kink], atol=1e-7)


def one_neuron(weights):
    """A neuron for each weight, without memory, whose voltage is its weight at the second step."""
    neuron = CubaLif(THETA, 1.0, 1.0 - 1 / 4096)
    return Network(
        "n",
        {"input": Input((1,))},
        {"a": Population((len(weights),), neuron)},
        {"w": Projection.dense("input", "a", np.asarray(weights)[:, None])},
        ("a",),
    )


@pytest.mark.parametrize("engine", ["event", "slayer"])
@pytest.mark.parametrize("case", [*CASES])
def test_the_backward_pass_is_the_closed_form(case, engine):
    """One spike into memoryless neurons: dS/dw = rho(v), the voltage being the weight."""
    import torch

    from nmtool.training.model import make_model

    surrogate, noise, formula = settings(case)
    weights = np.arange(-120, 122, 2) / 64.0
    model = make_model(one_neuron(weights), CHIP, surrogate, engine, noise)
    x = torch.tensor([[[1.0, 0.0]]])
    fired, _, voltage = model.states(x)["a"]
    at = voltage[0, :, 1].detach().numpy().astype(np.float64)
    np.testing.assert_array_equal(at, weights)
    np.testing.assert_array_equal(fired[0, :, 1].detach().numpy(), at > THETA)
    model(x)["a"][..., 1].sum().backward()
    found = model.parameter("w").grad.numpy().ravel()
    epsilon = 0.01 / 4096 if isinstance(surrogate, SlayerSurrogate) else 0.0
    expected = formula(at - THETA - epsilon)
    assert np.ptp(expected) > 0 or case == "straight_through"
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_another_width_is_another_gradient():
    """The comparison above can fail: a surrogate 1 % wider is outside of its tolerance."""
    x = np.linspace(-1, 1, 101)
    one = derivative(SigmoidSurrogate(kind="sigmoid", beta=4.0), THETA)(x)
    two = derivative(SigmoidSurrogate(kind="sigmoid", beta=4.04), THETA)(x)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("case", [*CASES])
def test_both_engines_have_the_same_gradients(case):
    import torch

    from nmtool.training.model import make_model

    surrogate, noise, _ = settings(case)
    rng = np.random.default_rng(4)
    neuron = CubaLif(THETA, 0.25, 0.03)
    network = Network(
        "two",
        {"input": Input((20,))},
        {"h": Population((15,), neuron), "out": Population((4,), neuron)},
        {
            "h": Projection.dense("input", "h", rng.normal(0, 0.5, (15, 20))),
            "out": Projection.dense("h", "out", rng.normal(0, 0.5, (4, 15)), 2),
        },
        ("out",),
    )
    x = torch.tensor((rng.random((5, 20, 30)) < 0.1).astype(np.float32))
    wanted = torch.tensor(rng.normal(size=(5, 4, 30)))
    grads = []
    for engine in ("event", "slayer"):
        model = make_model(network, CHIP, surrogate, engine, noise)
        model = model.double() if engine == "slayer" else model
        spikes = model(x.double() if engine == "slayer" else x)["out"]
        (spikes * wanted.to(spikes.dtype)).sum().backward()
        grads.append([model.parameter(p).grad.numpy().ravel() for p in ("h", "out")])
    for one, two in zip(*grads, strict=True):
        assert np.linalg.norm(two) > 0
        assert np.linalg.norm(one - two) <= 1e-5 * np.linalg.norm(two)


def test_kernel_constants_are_the_shapes():
    from nmtool.training import spiking

    for shape in Shape:
        assert getattr(spiking, shape.name) == shape
