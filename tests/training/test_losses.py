"""Losses against their closed form, and against lava-dl's."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from nmtool.chip import load_chip
from nmtool.config import (
    CountCrossEntropy,
    FirstSpike,
    Loss,
    MaxOverTime,
    Readout,
    Regularizer,
    SlayerSurrogate,
    SpikeRate,
    SpikeTime,
)
from nmtool.errors import ConfigError
from nmtool.measure import predict
from nmtool.network import CubaLif, Input, Network, Population, Projection

torch = pytest.importorskip("torch")


@pytest.fixture
def spikes():
    rng = np.random.default_rng(0)
    return torch.tensor((rng.random((5, 12, 20)) < 0.3).astype(np.float32)), torch.tensor(
        rng.integers(0, 4, 5)
    )


def test_class_sums(spikes):
    from nmtool.training.losses import class_sums

    found = class_sums(spikes[0], Readout(neurons_per_class=3)).numpy()
    counts = spikes[0].numpy().sum(axis=2)
    expected = np.stack([counts[:, 3 * c : 3 * c + 3].sum(axis=1) for c in range(4)], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_count_cross_entropy(spikes):
    from nmtool.training.losses import class_sums, make_loss

    readout = Readout(neurons_per_class=3)
    loss = make_loss(CountCrossEntropy(kind="count_cross_entropy", scale=0.2), readout)
    logits = 0.2 * class_sums(spikes[0], readout).numpy().astype(np.float64)
    chosen = logits[np.arange(5), spikes[1].numpy()]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen)
    assert float(loss(*spikes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("per_class", [1, 3])
def test_spike_rate(spikes, per_class):
    from nmtool.training.losses import make_loss

    config = SpikeRate(kind="spike_rate", true_rate=0.3, false_rate=0.05)
    loss = make_loss(config, Readout(neurons_per_class=per_class))
    rate = spikes[0].numpy().astype(np.float64).mean(axis=2)
    total = 0.0
    for sample, label in enumerate(spikes[1].tolist()):
        for neuron in range(12):
            wanted = 0.3 if neuron // per_class == label else 0.05
            total += (rate[sample, neuron] - wanted) ** 2
    assert float(loss(*spikes)) == pytest.approx(total / 5, rel=1e-5)


def test_spike_rate_is_lavas_over_the_number_of_samples(spikes):
    from lava.lib.dl import slayer

    from nmtool.training.losses import make_loss

    config = SpikeRate(kind="spike_rate", true_rate=0.2, false_rate=0.03)
    ours, theirs = make_loss(config, Readout()), slayer.loss.SpikeRate(0.2, 0.03)
    one, two = (spikes[0].clone().requires_grad_() for _ in range(2))
    mine, yours = ours(one, spikes[1]), theirs(two, spikes[1])
    assert mine.item() * 5 == pytest.approx(yours.item(), rel=1e-5)
    mine.backward()
    yours.backward()
    np.testing.assert_allclose(one.grad.numpy() * 5, two.grad.numpy(), rtol=1e-5, atol=1e-9)


def test_the_right_neurons_are_pushed_up(spikes):
    from nmtool.training.losses import make_loss

    for config in (
        CountCrossEntropy(kind="count_cross_entropy"),
        SpikeRate(kind="spike_rate", true_rate=1.0, false_rate=0.0),
    ):
        output = spikes[0].clone().requires_grad_()
        make_loss(config, Readout(neurons_per_class=3))(output, spikes[1]).backward()
        own = torch.arange(12)[None] // 3 == spikes[1][:, None]
        assert (output.grad.sum(dim=2)[own] < 0).all()
        assert (output.grad.sum(dim=2)[~own] >= 0).all()


@pytest.fixture(autouse=True)
def prepared():
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()


def numerical_gradient(function, at, h=1e-6):
    """Central differences of a function of a float64 tensor."""
    found = torch.zeros_like(at)
    for index in np.ndindex(*at.shape):
        for sign in (1, -1):
            moved = at.clone()
            moved[index] += sign * h
            found[index] += sign * function(moved) / (2 * h)
    return found


TIMED = {
    "spike_time": SpikeTime(kind="spike_time", true_steps=[2, 7], false_steps=[9], tau=3.0),
    "max_over_time": MaxOverTime(kind="max_over_time", tau=3.0, scale=0.7, burn_in=2),
    "first_spike": FirstSpike(kind="first_spike", tau=4.0),
    "count_cross_entropy": CountCrossEntropy(kind="count_cross_entropy", scale=0.2),
    "spike_rate": SpikeRate(kind="spike_rate"),
}


@pytest.mark.parametrize("kind", [*TIMED])
def test_the_gradient_is_that_of_finite_differences(kind):
    """Of the loss as a smooth function of numbers between 0 and 1, in float64."""
    from nmtool.training.losses import make_loss

    rng = np.random.default_rng(5)
    loss = make_loss(TIMED[kind], Readout(neurons_per_class=2))
    values = torch.tensor(rng.uniform(0.05, 0.6, (2, 6, 10)), requires_grad=True)
    labels = torch.tensor([2, 0])
    loss(values, labels).backward()
    expected = numerical_gradient(lambda x: loss(x, labels).detach(), values.detach())
    assert expected.abs().max() > 1e-3
    np.testing.assert_allclose(values.grad.numpy(), expected.numpy(), rtol=1e-5, atol=1e-8)


def test_the_van_rossum_distance_in_closed_form():
    from nmtool.training.losses import van_rossum

    tau = 4.0
    one = torch.zeros((3, 1, 200), dtype=torch.float64)
    two = one.clone()
    one[0, 0, 20], two[0, 0, 20] = 1, 1
    one[1, 0, 20] = 1
    one[2, 0, 20], two[2, 0, 26] = 1, 1
    alone = 1 / (1 - np.exp(-2 / tau)) / tau
    expected = [0, alone, 2 * alone * (1 - np.exp(-6 / tau))]
    np.testing.assert_allclose(van_rossum(one, two, tau).numpy(), expected, rtol=1e-6)


def test_the_van_rossum_distance_is_lavas_over_tau(spikes):
    from lava.lib.dl import slayer

    from nmtool.training.losses import van_rossum

    target = torch.flip(spikes[0], dims=[0])
    ours, theirs = spikes[0].clone().requires_grad_(), spikes[0].clone().requires_grad_()
    mine = van_rossum(ours, target, 5.0).sum()
    yours = slayer.loss.SpikeTime(time_constant=5, length=100)(theirs, target)
    assert mine.item() * 5 == pytest.approx(yours.item(), rel=1e-5)
    mine.backward()
    yours.backward()
    np.testing.assert_allclose(ours.grad.numpy() * 5, theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_target_spike_trains_are_those_of_the_class():
    from nmtool.training.losses import make_loss

    loss = make_loss(TIMED["spike_time"], Readout(neurons_per_class=2))
    right = torch.zeros((1, 6, 10))
    right[0, :, 9] = 1
    right[0, 2:4] = 0
    right[0, 2:4, [2, 7]] = 1
    assert float(loss(right, torch.tensor([1]))) == pytest.approx(0, abs=1e-10)
    assert float(loss(right, torch.tensor([0]))) > 0.1


def test_the_trace_is_the_recursion():
    from nmtool.training.losses import exponential_trace

    spikes = torch.tensor((np.random.default_rng(0).random((2, 3, 50)) < 0.2).astype(np.float64))
    for tau in (0.3, 2.0, 30.0):
        trace, state = exponential_trace(spikes, tau).numpy(), np.zeros((2, 3))
        for t in range(50):
            state = np.exp(-1 / tau) * state + spikes[:, :, t].numpy()
            np.testing.assert_allclose(trace[:, :, t], state, rtol=1e-6, atol=1e-6)


def test_max_over_time_in_closed_form_and_after_burn_in():
    from nmtool.training.losses import max_over_time

    spikes = torch.zeros((1, 2, 6), dtype=torch.float64)
    spikes[0, 0, [0, 1]] = 1
    spikes[0, 1, 4] = 1
    label, one = torch.tensor([1]), Readout()
    early = 1 + np.exp(-1 / 2)
    expected = np.log(1 + np.exp(early - 1))
    assert float(max_over_time(spikes, label, one, 2.0)) == pytest.approx(expected)
    late = early * np.exp(-2 / 2)
    expected = np.log(1 + np.exp(late - 1))
    assert float(max_over_time(spikes, label, one, 2.0, burn_in=3)) == pytest.approx(expected)


def test_a_silent_class_learns_at_every_step_by_its_largest_value():
    """A maximum that went to the first step alone would teach nothing to later ones."""
    from nmtool.training.losses import max_over_time

    spikes = torch.zeros((1, 2, 8), requires_grad=True)
    max_over_time(spikes, torch.tensor([0]), Readout(), tau=2.0).backward()
    assert (spikes.grad[0, 0] < 0).all()
    assert (spikes.grad[0, 1] > 0).all()


def test_latencies_are_the_steps_of_the_first_spikes():
    from nmtool.measure.accuracy import first_spikes
    from nmtool.spikes import SpikeTrain
    from nmtool.training.losses import decide, latencies

    rng = np.random.default_rng(2)
    raster = rng.random((40, 6, 15)) < rng.random((40, 6, 1)) * 0.2
    readout = Readout(kind="first_spike", neurons_per_class=2)
    expected = np.full((40, 3), 15)
    for sample, neuron, step in zip(*raster.nonzero(), strict=True):
        expected[sample, neuron // 2] = min(expected[sample, neuron // 2], step)
    assert (expected == 15).any()
    found = latencies(torch.tensor(raster.astype(np.float32)), readout)
    np.testing.assert_array_equal(found.numpy(), expected)
    train = SpikeTrain.from_raster(raster)
    np.testing.assert_array_equal(first_spikes(train, readout), expected)
    chosen = expected.argmin(axis=1)
    np.testing.assert_array_equal(predict(train, readout), chosen)
    ties = (np.sort(expected, axis=1)[:, 0] == np.sort(expected, axis=1)[:, 1]).sum()
    assert ties > 3
    here = decide(torch.tensor(raster.astype(np.float32)), readout).numpy()
    np.testing.assert_array_equal(here, chosen)


def test_the_gradient_of_a_latency_is_what_one_spike_more_or_less_would_change():
    from nmtool.training.losses import latencies

    raster = torch.zeros((1, 1, 10))
    raster[0, 0, [4, 7]] = 1
    raster.requires_grad_()
    latencies(raster, Readout()).sum().backward()
    expected = np.zeros(10)
    for t in range(10):
        with_, without = raster.detach().clone(), raster.detach().clone()
        with_[0, 0, t], without[0, 0, t] = 1, 0
        expected[t] = float((latencies(with_, Readout()) - latencies(without, Readout())).sum())
    np.testing.assert_array_equal(raster.grad[0, 0].numpy(), expected)
    assert expected.tolist() == [-4, -3, -2, -1, -3, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (
            SpikeTime(kind="spike_time", true_steps=[20]),
            r"train\.loss\.true_steps: found step 20, allowed 0 to 19",
        ),
        (
            MaxOverTime(kind="max_over_time", tau=2.0, burn_in=20),
            r"train\.loss\.burn_in: found 20 steps, allowed fewer than the 20",
        ),
    ],
)
def test_steps_beyond_the_sample_are_refused(spikes, loss, says):
    from nmtool.training.losses import make_loss

    with pytest.raises(ConfigError, match=says):
        make_loss(loss, Readout(neurons_per_class=3))(*spikes)


def regularized(**values):
    return TypeAdapter(Regularizer).validate_python({"weight": 2.0, **values})


def network():
    neuron = CubaLif(1.25, 0.25, 0.03)
    return Network(
        "n",
        {"input": Input((3,))},
        {"a": Population((4,), neuron), "b": Population((2,), neuron)},
        {
            "a": Projection.dense("input", "a", np.ones((4, 3))),
            "b": Projection.dense("a", "b", np.ones((2, 4))),
        },
        ("b",),
    )


@pytest.mark.parametrize("kind", ["upper_rate", "lower_rate", "sparsity"])
def test_regularisers_in_closed_form_and_their_gradients(kind):
    from nmtool.training.losses import make_regularizer

    rng = np.random.default_rng(1)
    raster = (rng.random((3, 4, 10)) < rng.random((3, 4, 1))).astype(np.float64)
    other = np.ones((3, 2, 10))
    penalty = make_regularizer(regularized(kind=kind, rate=0.4, populations=["a"]), network())
    values = torch.tensor(raster, requires_grad=True)
    found = penalty({"a": values, "b": torch.tensor(other)})
    rates = raster.mean(axis=2)
    expected = {
        "upper_rate": np.mean(np.maximum(rates - 0.4, 0) ** 2),
        "lower_rate": np.mean(np.maximum(0.4 - rates, 0) ** 2),
        "sparsity": max(raster.mean() - 0.4, 0) ** 2,
    }[kind]
    assert expected > 0
    assert found.item() == pytest.approx(2 * expected)
    found.backward()
    numeric = numerical_gradient(
        lambda x: penalty({"a": x, "b": torch.tensor(other)}).detach(), values.detach()
    )
    np.testing.assert_allclose(values.grad.numpy(), numeric.numpy(), atol=1e-8)
    everywhere = make_regularizer(regularized(kind=kind, rate=0.4), network())
    both = everywhere({"a": values, "b": torch.tensor(other)}).item()
    beyond = 2 * 0.36 if kind != "lower_rate" else 0.0
    assert both == pytest.approx(2 * expected + beyond)


def test_a_regulariser_of_an_unknown_population_is_refused():
    from nmtool.training.recipe import check_regularizers

    known, unknown = (
        regularized(kind="sparsity", rate=0.1, populations=names) for names in (["a"], ["a", "c"])
    )
    check_regularizers(network(), [known], "train")
    with pytest.raises(ConfigError, match=r"regularizers\.1\.populations: found 'c', allowed a, b"):
        check_regularizers(network(), [known, unknown], "train")


LEARNED = {
    "spike_time": {"kind": "spike_time", "true_steps": [5, 9, 13], "tau": 3.0},
    "max_over_time": {"kind": "max_over_time", "tau": 5.0, "burn_in": 2},
    "first_spike": {"kind": "first_spike", "tau": 2.0},
    "count_cross_entropy": {"kind": "count_cross_entropy", "scale": 0.3},
    "spike_rate": {"kind": "spike_rate", "true_rate": 0.3, "false_rate": 0.0},
}


@pytest.mark.parametrize("kind", [*LEARNED])
def test_every_loss_learns_three_patterns(kind):
    """Three input patterns, three classes, one layer: the loss falls, all are told apart."""
    from nmtool.training.losses import decide, make_loss
    from nmtool.training.model import make_model

    torch.manual_seed(0)
    rng = np.random.default_rng(7)
    neuron = CubaLif(1.25, 0.25, 0.03)
    weight = rng.uniform(-0.2, 0.4, (3, 30))
    net = Network(
        "patterns",
        {"input": Input((30,))},
        {"out": Population((3,), neuron)},
        {"w": Projection.dense("input", "out", weight)},
        ("out",),
    )
    model = make_model(net, load_chip("loihi2"), SlayerSurrogate(), "event")
    x = torch.tensor((rng.random((3, 30, 20)) < 0.1).astype(np.float32))
    labels = torch.arange(3)
    loss = make_loss(TypeAdapter(Loss).validate_python(LEARNED[kind]), Readout())
    optimizer = torch.optim.Adam([model.parameter("w")], lr=0.02)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        value = loss(model(x)["out"], labels)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    readout = Readout(kind="first_spike" if kind == "first_spike" else "count")
    assert min(losses[-20:]) < 0.6 * losses[0], (losses[0], losses[-1])
    assert decide(model(x)["out"], readout).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("kind", "rate"), [("upper_rate", 0.05), ("lower_rate", 0.3)])
def test_regularisers_move_the_rates(kind, rate):
    from nmtool.training.losses import make_regularizer
    from nmtool.training.model import make_model

    rng = np.random.default_rng(7)
    neuron = CubaLif(1.25, 0.25, 0.03)
    net = Network(
        "rates",
        {"input": Input((30,))},
        {"out": Population((6,), neuron)},
        {
            "w": Projection.dense(
                "input", "out", rng.uniform(-0.15, 0.25 if kind == "upper_rate" else 0.15, (6, 30))
            )
        },
        ("out",),
    )
    model = make_model(net, load_chip("loihi2"), SlayerSurrogate(), "event")
    x = torch.tensor((rng.random((4, 30, 40)) < 0.1).astype(np.float32))
    penalty = make_regularizer(regularized(kind=kind, rate=rate), net)
    optimizer = torch.optim.Adam([model.parameter("w")], lr=0.02)
    before = model(x)["out"].mean().item()
    assert (before > rate) == (kind == "upper_rate")
    first = penalty(model(x)).item()
    for _ in range(60):
        optimizer.zero_grad()
        penalty(model(x)).backward()
        optimizer.step()
    with torch.no_grad():
        after = model(x)
    assert (after["out"].mean().item() > before) == (kind == "lower_rate")
    assert penalty(after).item() < 0.2 * first
