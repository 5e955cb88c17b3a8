"""The event engine has SLAYER's gradients, and they do not depend on threads or batches."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from trainable import networks

from nmtool.chip import load_chip
from nmtool.config import ExponentialNoise, SigmoidNoise, SlayerSurrogate, Surrogate
from nmtool.errors import FitError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten, SumPool
from nmtool.training.noise import Draw

CHIP = load_chip("loihi2")


def gradients(model, x, wanted, draw=None):
    """Gradients of ``sum(wanted * spikes)`` over all populations, by projection."""
    spikes = model(x, draw=draw)
    sum((spikes[name] * wanted[name].to(spikes[name].dtype)).sum() for name in spikes).backward()
    grown = {name: model.parameter(name).grad for name in model.trained}
    found = {
        name: np.zeros(1) if g is None else g.numpy().astype(np.float64)
        for name, g in grown.items()
    }
    return found, {name: train.detach().numpy() for name, train in spikes.items()}


def drawn(network, raster, seed):
    """Gradients of the spikes of every population."""
    import torch

    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(size=(len(raster), p.size, raster.shape[2])))
        for name, p in network.populations.items()
    }


def contributions(network, raster, surrogate, wanted):
    """The sums over samples and steps that gradients are, of absolute values, by projection.

    A gradient is a sum over what arrives, of the gradient there times a spike: SLAYER's in float64.
    What arrives is itself a sum over later steps: wanted spikes and unwanted ones are apart.
    """
    import torch

    from nmtool.training.model import make_model

    model = make_model(network, CHIP, surrogate, "slayer").double()
    chain, total = model._chain, dict.fromkeys(model.trained, np.zeros(1))

    def add(s, spikes, weight, arriving):
        with torch.enable_grad():
            own = weight.detach().requires_grad_()
            (part,) = torch.autograd.grad(chain(s, spikes.detach(), own), own, arriving.abs())
        total[s.name] = total[s.name] + part.numpy()

    def watched(s, spikes, weight):
        out = chain(s, spikes, weight)
        if s.trained:
            out.register_hook(lambda arriving: add(s, spikes, weight, arriving))
        return out

    model._chain = watched
    for sign in (1, -1):
        part = {name: (sign * w).clamp(min=0) for name, w in wanted.items()}
        gradients(model, torch.from_numpy(raster.astype(np.float64)), part)
    return total


def two_engines(network, raster, surrogate, seed=0, noise=None, draw=None):
    import torch

    from nmtool.training.model import make_model

    wanted = drawn(network, raster, seed)
    x = torch.from_numpy(raster.astype(np.float32))
    slayer = make_model(network, CHIP, surrogate, "slayer", noise).double()
    events = make_model(network, CHIP, surrogate, "event", noise)
    return gradients(events, x, wanted, draw), gradients(slayer, x.double(), wanted, draw)


def has_loop(network):
    from nmtool.training.model import stages

    return any(stage.within for stage in stages(network))


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


ROUNDINGS = 128
"""Of a contribution on its way into a gradient: the surrogate, the steps and sums behind it.

Kernels of two weights have up to 2.2 (281 networks of a convolution and a dense layer). Far from
the threshold the surrogate adds more: a rounding of x is x ln 2 of 2^-x, up to 87 for x of 126.
"""


@pytest.mark.parametrize(("second", "ratio"), [(1.0, 1.0), (-0.99, 199.0)])
def test_contributions_are_gradients_where_nothing_cancels(second, ratio):
    """Every sample is there twice; the second time its gradients cancel 99 % of the first's."""
    import torch

    from nmtool.training.model import make_model

    raster = np.random.default_rng(1).random((3, 160, 40)) < 0.2
    raster, whole = np.concatenate([raster, raster]), mixed()
    network = Network(
        "one",
        whole.inputs,
        {"first": whole.populations["first"]},
        {"in": whole.projections["in"]},
        ("first",),
    )
    wanted = np.ones((6, network.populations["first"].size, 40))
    wanted[3:] = second
    chosen = {"first": torch.from_numpy(wanted)}
    model = make_model(network, CHIP, SlayerSurrogate(), "slayer").double()
    found, _ = gradients(model, torch.from_numpy(raster.astype(np.float64)), chosen)
    parts = contributions(network, raster, SlayerSurrogate(), chosen)
    size = np.linalg.norm(found["in"])
    np.testing.assert_allclose(np.linalg.norm(parts["in"]), ratio * size, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    network=networks(),
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 9),
    steps=st.one_of(st.integers(1, 20), st.integers(20, 60)),
    rate=st.sampled_from([0.0, 0.03, 0.3, 0.9]),
    tau_grad=st.sampled_from([0.003, 0.03, 1.0]),
)
def test_gradients_are_slayers(network, seed, samples, steps, rate, tau_grad):
    """To 1e-5, or to ``ROUNDINGS`` of float32 where a sum nearly cancels.

    float32 rounds every contribution to a gradient by up to 2^-24 of itself. Where the
    contributions to the two weights of a small kernel are 218 times what is left of them, the
    rounding is 1.2e-5 of that, which is no fault of the engine's.
    """
    (lines,) = [source.size for source in network.inputs.values()]
    raster = np.random.default_rng(seed).random((samples, lines, steps)) < rate
    surrogate = SlayerSurrogate(tau_grad=tau_grad)
    event("a loop" if has_loop(network) else "feed-forward")
    try:
        (found, spikes), (expected, same) = two_engines(network, raster, surrogate, seed)
    except FitError:
        assume(False)
    for name, train in same.items():
        np.testing.assert_array_equal(spikes[name], train, name)
    for name, gradient in expected.items():
        size = np.linalg.norm(gradient)
        event("a gradient" if size else "no gradient")
        if size > 1e-30:
            difference, allowed = np.linalg.norm(found[name] - gradient), 1e-5 * size
            if difference > allowed:
                event("a gradient that cancels")
                wanted = drawn(network, raster, seed)
                parts = contributions(network, raster, surrogate, wanted)[name]
                allowed = ROUNDINGS * 2.0**-24 * np.linalg.norm(parts)
            assert difference <= allowed, name
        else:
            assert np.linalg.norm(found[name]) <= 1e-30


def wide(n_hidden=300, threshold=1.25):
    """A hidden layer of more targets than are run at once, with delays."""
    rng = np.random.default_rng(5)
    neuron = CubaLif(threshold, 0.25, 0.03)
    return Network(
        "wide",
        {"input": Input((40,))},
        {
            "hidden": Population((n_hidden,), neuron, axonal_delay=2),
            "out": Population((7,), neuron),
        },
        {
            "in": Projection.dense("input", "hidden", rng.normal(0, 0.4, (n_hidden, 40))),
            "on": Projection.dense("hidden", "out", rng.normal(0, 0.1, (7, n_hidden)), 4),
        },
        ("out",),
    )


def test_a_layer_of_several_blocks():
    raster = np.random.default_rng(1).random((6, 40, 50)) < 0.1
    (found, spikes), (expected, same) = two_engines(wide(), raster, SlayerSurrogate())
    assert same["hidden"].sum() > 1000
    assert same["out"].sum() > 50
    np.testing.assert_array_equal(spikes["out"], same["out"])
    for name in expected:
        assert relative(found[name], expected[name]) <= 1e-5


def test_gradients_flow_from_a_hidden_population_alone():
    import torch

    from nmtool.training.model import make_model

    raster = np.random.default_rng(1).random((6, 40, 50)) < 0.1
    model = make_model(wide(), CHIP, SlayerSurrogate(), "event")
    model(torch.from_numpy(raster.astype(np.float32)))["hidden"].sum().backward()
    assert model.parameter("on").grad is None
    assert float(model.parameter("in").grad.abs().sum()) > 0


def mixed():
    """Convolutions behind and before pooling, a loop of two populations, a skip connection."""
    rng = np.random.default_rng(6)
    neuron = CubaLif(1.25, 0.25, 0.03)
    pool = SumPool((2, 2), (2, 2))
    size = {"first": (5, 4, 19), "second": (2, 2, 40), "a": (33,), "b": (18,)}

    def weights(*shape, scale=1.0):
        return rng.normal(0, scale * 1.5 / np.sqrt(np.prod(shape[1:])), shape)

    return Network(
        "mixed",
        {"input": Input((10, 8, 2))},
        {name: Population(shape, neuron) for name, shape in size.items()},
        {
            "in": Projection("input", "first", (pool, Conv(weights(19, 3, 3, 2), padding=(1, 1)))),
            "on": Projection(
                "first",
                "second",
                (
                    pool,
                    Conv(weights(40, 1, 1, 19)),
                ),
                1,
            ),
            "flat": Projection("second", "a", (Flatten(), Dense(weights(33, 160)))),
            "skip": Projection("first", "b", (pool, Flatten(), Dense(weights(18, 76)))),
            "there": Projection.dense("a", "b", weights(18, 33)),
            "back": Projection.dense("b", "a", weights(33, 18), 2),
            "own": Projection.dense("a", "a", weights(33, 33, scale=0.3)),
        },
        ("b",),
    )


def test_a_network_of_all_kinds():
    raster = np.random.default_rng(1).random((9, 160, 60)) < 0.1
    (found, spikes), (expected, same) = two_engines(mixed(), raster, SlayerSurrogate())
    for name, train in same.items():
        assert train.sum() > 100, name
        np.testing.assert_array_equal(spikes[name], train)
    assert found.keys() == expected.keys() == mixed().projections.keys()
    for name in expected:
        assert relative(found[name], expected[name]) <= 1e-5, name


def loop(n=150, delays=(1,)):
    """A dense loop behind pooling, whose windows overlap: a line may come twice at a step."""
    rng = np.random.default_rng(8)
    dense = Dense(rng.normal(0, 0.15, (n, 98)))
    chain = (SumPool((2, 2), (1, 1)), Flatten(), dense)
    own = {
        f"own{k}": Projection.dense("loop", "loop", rng.normal(0, 0.03, (n, n)), delay)
        for k, delay in enumerate(delays)
    }
    return Network(
        "loop",
        {"input": Input((8, 8, 2))},
        {"loop": Population((n,), CubaLif(1.25, 0.25, 0.03))},
        {"in": Projection("input", "loop", chain), **own},
        ("loop",),
    )


@pytest.mark.parametrize("delays", [(0,), (2,), (0, 3)])
def test_dense_loops(delays):
    raster = np.random.default_rng(1).random((5, 128, 40)) < 0.3
    (found, spikes), (expected, same) = two_engines(loop(delays=delays), raster, SlayerSurrogate())
    assert 0.01 < same["loop"].mean() < 0.5
    np.testing.assert_array_equal(spikes["loop"], same["loop"])
    for name in expected:
        assert relative(found[name], expected[name]) <= 1e-5, name


@pytest.mark.parametrize(("sources", "targets"), [(5, 3), (70, 64), (130, 150), (9, 300)])
@pytest.mark.parametrize("delay", [0, 3, 12])
def test_the_weight_gradient_is_the_product_of_spikes_and_what_arrives(sources, targets, delay):
    """Whole numbers, whose sums are exact; with a delay of all steps nothing arrives."""
    from nmtool.training.engine import EventNetwork
    from nmtool.training.events import Events

    rng = np.random.default_rng(sources)
    samples, steps = 3, 12
    weight = rng.normal(size=(targets, sources))
    network = Network(
        "one",
        {"input": Input((sources,))},
        {"out": Population((targets,), CubaLif(1.25, 0.25, 0.03))},
        {"in": Projection.dense("input", "out", weight, delay)},
        ("out",),
    )
    (wire,) = EventNetwork(network, CHIP, SlayerSurrogate()).layers[0].incoming
    spikes = (rng.random((samples, sources, steps)) < 0.6).astype(np.float32)
    arriving = rng.integers(-9, 10, (samples, steps, targets)).astype(np.float32)
    kept = max(steps - wire.synapses.delay, 0)
    expected = np.einsum("bst,btn->ns", spikes[..., :kept], arriving[:, steps - kept :])
    found = wire.weight_gradient(Events.of_rows(spikes), arriving)
    np.testing.assert_array_equal(found, expected)
    assert expected.any() == (kept > 0)


def test_which_loops_add_whole_rows():
    from nmtool.training.engine import EventNetwork

    for network, whole in [(loop(), True), (loop(delays=(0, 3)), False), (mixed(), False)]:
        layers = EventNetwork(network, CHIP, SlayerSurrogate()).layers
        assert all(layer.is_whole == whole for layer in layers if layer.within)


NOISES = {
    "none": None,
    "sigmoid": SigmoidNoise(kind="sigmoid", beta=10.0),
    "exponential": ExponentialNoise(kind="exponential"),
}


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        ("fast_sigmoid", "none"),
        ("sigmoid", "none"),
        ("triangle", "none"),
        ("box", "none"),
        ("arctan", "none"),
        ("straight_through", "none"),
        ("escape", "sigmoid"),
        ("escape", "exponential"),
        ("slayer", "sigmoid"),
        ("fast_sigmoid", "exponential"),
    ],
)
def test_every_surrogate_and_noise_in_a_network_of_all_kinds(kind, noise):
    raster = np.random.default_rng(1).random((5, 160, 30)) < 0.1
    surrogate = TypeAdapter(Surrogate).validate_python({"kind": kind})
    chance = NOISES[noise]
    draw = Draw.of_update(3, 17, np.arange(5)) if chance else None
    (found, spikes), (expected, same) = two_engines(mixed(), raster, surrogate, 0, chance, draw)
    for name, train in same.items():
        assert train.sum() > 100, name
        np.testing.assert_array_equal(spikes[name], train, name)
    for name in expected:
        assert relative(found[name], expected[name]) <= 1e-5, name


def test_every_surrogate_has_its_own_gradients_in_convolutions_and_loops():
    import torch

    from nmtool.training.model import make_model

    raster = torch.from_numpy((np.random.default_rng(1).random((5, 160, 30)) < 0.1).astype("f4"))
    kinds = ("slayer", "fast_sigmoid", "sigmoid", "triangle", "box", "arctan", "straight_through")
    found = []
    for kind in kinds:
        surrogate = TypeAdapter(Surrogate).validate_python({"kind": kind})
        model = make_model(mixed(), CHIP, surrogate, "event")
        model(raster)["b"].sum().backward()
        found.append([model.parameter(name).grad.numpy() for name in ("in", "own")])
    for one, two in combinations(found, 2):
        assert all(relative(a, b) > 0.01 for a, b in zip(one, two, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    network=networks(),
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 5),
    steps=st.integers(1, 40),
    noise=st.sampled_from(["sigmoid", "exponential"]),
)
def test_noisy_spikes_of_any_network_are_the_same_in_both_engines(
    network, seed, samples, steps, noise
):
    import torch

    from nmtool.training.model import make_model

    (lines,) = [source.size for source in network.inputs.values()]
    x = torch.from_numpy(np.random.default_rng(seed).random((samples, lines, steps)) < 0.2)
    draw = Draw.of_update(seed, 0, np.arange(samples))
    event("a loop" if has_loop(network) else "feed-forward")
    shared = (network, CHIP, SlayerSurrogate())
    try:
        ours = make_model(*shared, "event", NOISES[noise])
        theirs = make_model(*shared, "slayer", NOISES[noise]).double()
        with torch.no_grad():
            one, two = ours(x.float(), draw=draw), theirs(x.double(), draw=draw)
    except FitError:
        assume(False)
    for name, train in one.items():
        assert torch.equal(train.double(), two[name].double()), name


def test_noise_reaches_every_population_and_another_draw_is_other_noise():
    import torch

    from nmtool.training.model import make_model

    raster = (np.random.default_rng(1).random((5, 160, 30)) < 0.1).astype("f4")
    model = make_model(mixed(), CHIP, SlayerSurrogate(), "event", NOISES["sigmoid"])

    def spikes(draw):
        return model(torch.from_numpy(raster), draw=draw)

    plain, one, two = (
        spikes(draw) for draw in (None, *(Draw.of_update(3, k, np.arange(5)) for k in (0, 1)))
    )
    for name, train in one.items():
        assert (train != plain[name]).any(), name
        assert (train != two[name]).any(), name
    for name, train in spikes(Draw.of_update(3, 0, np.arange(5))).items():
        assert torch.equal(train, one[name]), name


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("make", "lines"), [(wide, 40), (mixed, 160)])
def test_results_do_not_depend_on_threads(monkeypatch, workers, make, lines):
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from nmtool.training import parts
    from nmtool.training.model import make_model

    raster = torch.from_numpy((np.random.default_rng(1).random((7, lines, 50)) < 0.1).astype("f4"))

    def run():
        model = make_model(make(), CHIP, SlayerSurrogate(), "event", NOISES["sigmoid"])
        draw = Draw.of_update(3, 17, np.arange(7))
        (model(raster, draw=draw)[model.network.outputs[0]] * torch.arange(50)).sum().backward()
        return [p.grad.numpy().copy() for p in model.parameters()]

    usual = run()
    with ThreadPoolExecutor(workers) as pool:
        monkeypatch.setattr(parts, "_pool", lambda: pool)
        monkeypatch.setattr(parts, "_others", lambda: workers)
        for found, expected in zip(run(), usual, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_passes_that_are_held_at_once_keep_their_own_states():
    """Two forward passes before the two backward ones, and a third whose memory is used again."""
    import torch

    from nmtool.training.model import make_model

    rng = np.random.default_rng(4)
    one, two = (torch.from_numpy((rng.random((3, 160, 20)) < 0.2).astype("f4")) for _ in range(2))
    model = make_model(mixed(), CHIP, SlayerSurrogate(), "event")

    def loss(x):
        return sum((spikes * torch.arange(20)).sum() for spikes in model(x).values())

    def gradients(value):
        model.zero_grad()
        value.backward()
        return [p.grad.clone() for p in model.parameters()]

    alone = [gradients(loss(x)) for x in (one, two)]
    losses = [loss(one), loss(two)]
    together = [gradients(value) for value in losses]
    for found, expected in zip(together, alone, strict=True):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    assert any((a != b).any() for a, b in zip(*alone, strict=True))


def test_rasters_with_more_spikes_than_were_guessed():
    raster = np.ones((3, 40, 30), dtype=bool)
    (_, spikes), (_, same) = two_engines(wide(), raster, SlayerSurrogate())
    np.testing.assert_array_equal(spikes["out"], same["out"])


def test_events_of_a_raster():
    from nmtool.training.events import Events

    rng = np.random.default_rng(3)
    for shape in [(2, 5, 33), (1, 1, 1), (3, 4, 16), (2, 3, 15), (0, 4, 5)]:
        raster = rng.random(shape) < 0.3
        for events, by_step in (
            (Events.of_rows(raster.astype(np.float32)), raster.swapaxes(1, 2)),
            (Events.of_steps(raster.astype(np.uint8)), raster),
        ):
            for b in range(shape[0]):
                for t, row in enumerate(by_step[b]):
                    part = slice(events.at_step[b, t], events.at_step[b, t + 1])
                    np.testing.assert_array_equal(events.neuron[part], np.flatnonzero(row))
                step, at_neuron = events.by_neuron
                for n, row in enumerate(by_step[b].T):
                    part = slice(at_neuron[b, n], at_neuron[b, n + 1])
                    np.testing.assert_array_equal(step[part], np.flatnonzero(row))


def test_events_of_several_sources_and_behind_pools():
    from nmtool.training.events import Events, Relay, merged

    rng = np.random.default_rng(3)
    one, two = (rng.random((3, size, 20)) < 0.3 for size in (4, 6))
    both = merged(
        [(Events.of_rows(raster.astype(np.float32)), d) for raster, d in ((one, 2), (two, 0))]
    )
    late = np.zeros_like(one)
    late[..., 2:] = one[..., :-2]
    assert_events(both, np.concatenate([late, two], axis=1).astype(int))
    relay = Relay(np.array([0, 2, 2, 3, 4]), np.array([1, 0, 0, 0], dtype=np.int32), 2)
    pooled = np.stack([one[:, 0] * 1 + one[:, 2] + one[:, 3], one[:, 0]], axis=1)
    assert_events(Events.of_rows(one.astype(np.float32)).through(relay), pooled)


def assert_events(events, counts):
    """Events are those of counts (samples, neurons, steps)."""
    found = np.zeros_like(counts)
    for b, t in np.ndindex(counts.shape[0], counts.shape[2]):
        part = slice(events.at_step[b, t], events.at_step[b, t + 1])
        np.add.at(found[b, :, t], events.neuron[part], 1)
    np.testing.assert_array_equal(found, counts)


def test_sums_that_are_too_large_are_refused():
    import torch

    from nmtool.training.model import make_model

    network = wide(threshold=1000.0)
    huge = {name: np.full_like(p.weight, 500.0) for name, p in network.projections.items()}
    model = make_model(network, CHIP, SlayerSurrogate(), "event")
    model.load(huge)
    x = torch.ones((2, 40, 2000))
    with pytest.raises(FitError, match=r"out: found u or v of 2\^30"):
        model(x)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (2, 3), (9, 33), (300, 7)]),
    spread=st.sampled_from([1e-6, 0.02, 0.3, 2.0, 20.0, 1e3]),
    outlier=st.sampled_from([1.0, 3.0, 30.0]),
    grid=st.sampled_from([None, 1 / 64, 1 / 32, 0.5]),
    bits=st.sampled_from(sorted(CHIP.weight_bits)),
    width=st.sampled_from([1, 16, 256]),
)
def test_weights_are_rounded_as_in_quantization(seed, shape, spread, outlier, grid, bits, width):
    from nmtool.quantization import choose_format, dequantize_weights, quantize_weights
    from nmtool.training.rounding import closest_format, round_to

    rng = np.random.default_rng(seed)
    weight = rng.normal(0, spread, shape)
    weight.flat[0] *= outlier
    if grid is not None:  # several exponents without an error
        weight = np.round(weight / grid) * grid
    weight = weight.astype(np.float32)
    format = choose_format("p", weight, bits, CHIP)
    event(f"{format.sign_mode} {format.exponent}")
    assert closest_format("p", weight, bits, CHIP) == format
    mantissa, rounded = quantize_weights(weight, format), round_to(weight, format, width)
    real = dequantize_weights(mantissa, format)
    np.testing.assert_array_equal(rounded.real, real.astype(np.float32))
    blocks = rounded.rows.swapaxes(1, 2).reshape(-1, shape[1])
    np.testing.assert_array_equal(blocks[: shape[0]] / 64, real)
    assert not blocks[shape[0] :].any()
    assert rounded.largest == np.abs(blocks.astype(np.int64)).max()
    assert len(rounded.rows) == -(-shape[0] // width)


def test_weights_that_are_not_finite_are_refused():
    from nmtool.training.rounding import closest_format

    with pytest.raises(FitError, match=r"projection p\.weight"):
        closest_format("p", np.array([[1.0, np.nan]], dtype=np.float32), 8, CHIP)
    with pytest.raises(FitError, match="found weight_bits 9"):
        closest_format("p", np.array([[1.0, -1.0]], dtype=np.float32), 9, CHIP)
