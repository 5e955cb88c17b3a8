"""Normalisation, dropout, learned decays and delays: lava-dl's results, exported to the bit."""

import numpy as np
import pytest
from pydantic import TypeAdapter
from test_blocks import CHIP, NEURON, PARAMETERS, on_the_grid

from nmtool.backends.reference import ReferenceBackend
from nmtool.compiler import compile_program
from nmtool.config import ExponentialNoise, SigmoidNoise, SlayerSurrogate, Surrogate
from nmtool.errors import FitError, UnsupportedError
from nmtool.network import Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten, Sparse
from nmtool.spikes import SpikeTrain
from nmtool.training.noise import Draw
from nmtool.training.recipe import PopulationRecipe, Recipe

torch = pytest.importorskip("torch")

ENGINES = ("event", "slayer")
STEPS, SAMPLES, LINES = 40, 5, 9
SURROGATE = SlayerSurrogate(tau_grad=0.03, scale_grad=3.0)


@pytest.fixture
def in_float64():
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense(first, last, **hidden):
    """Two dense populations, ``hidden`` with more than neurons."""
    return Network(
        "n",
        {"in": Input((first.shape[1],))},
        {"hidden": Population((len(first),), NEURON, **hidden), "out": Population((8,), NEURON)},
        {
            "first": Projection.dense("in", "hidden", first),
            "last": Projection.dense("hidden", "out", last),
        },
        ("out",),
    )


def drawn(lines=LINES):
    rng = np.random.default_rng(4)
    raster = (rng.random((SAMPLES, lines, STEPS)) < 0.3).astype(np.float64)
    return raster, rng.normal(size=(SAMPLES, 8, STEPS))


def late(raster):
    moved = np.zeros_like(raster)
    moved[..., 1:] = raster[..., :-1]
    return torch.from_numpy(moved)


def make(network, name, recipe, surrogate=SURROGATE, noise=None):
    from nmtool.training.model import make_model

    return make_model(network, CHIP, surrogate, name, noise, recipe)


def engine(network, recipe, name, raster, wanted, values=None, draw=None, **settings):
    """Spikes of the output, and the gradients of all that is learned."""
    model = make(network, name, recipe, **settings)
    if name == "slayer":
        model.double()
    parameters = model.parameters_by_name()
    with torch.no_grad():
        for key, value in (values or {}).items():
            parameters[key].copy_(torch.as_tensor(value))
    model.reseed(5)
    x = torch.from_numpy(raster.astype(np.float64 if name == "slayer" else np.float32))
    spikes = model(x, ("out",), draw)["out"]
    (spikes * torch.from_numpy(wanted).to(spikes.dtype)).sum().backward()
    return spikes.detach().numpy(), {n: p.grad.numpy() for n, p in parameters.items()}, model


def assert_lavas(network, recipe, blocks, expected, values=None, lines=LINES):
    """Both engines have the spikes of lava-dl's ``blocks``, and the gradients ``expected``."""
    raster, wanted = drawn(lines)
    torch.manual_seed(5)
    spikes = blocks(late(raster))
    (spikes * torch.from_numpy(wanted)).sum().backward()
    assert (spikes != 0).sum() > 50
    models = []
    for name in ENGINES:
        found, gradients, model = engine(network, recipe, name, raster, wanted, values)
        np.testing.assert_allclose(found, spikes.detach().numpy(), rtol=1e-6, err_msg=name)
        assert gradients.keys() == expected().keys()
        for key, gradient in expected().items():
            size = np.linalg.norm(gradient)
            assert size > 0, key
            difference = np.linalg.norm(gradients[key].reshape(gradient.shape) - gradient)
            assert difference <= 1e-5 * size, (name, key, difference / size)
        models.append(model)
    return models


def two_blocks(first, last, weight_norm=False, **hidden):
    """lava-dl's dense blocks; ``hidden`` are more parameters of the first one's neurons."""
    from lava.lib.dl import slayer

    made = []
    for weight, more in ((first, hidden), (last, {})):
        block = slayer.block.cuba.Dense(
            {**PARAMETERS, **more}, weight.shape[1], len(weight), delay_shift=False
        )
        block.synapse.weight.data.copy_(torch.from_numpy(weight).reshape(block.synapse.shape))
        if weight_norm:
            block.synapse.enable_weight_norm()
        made.append(block.double())
    return made


def weights_of(blocks):
    return {
        name: b.synapse.weight.grad.numpy()[..., 0, 0, 0]
        for name, b in zip(("first", "last"), blocks, strict=True)
    }


@pytest.fixture
def matrices():
    rng = np.random.default_rng(1)
    return on_the_grid(rng, 0.5, (12, LINES)), on_the_grid(rng, 0.5, (8, 12))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_normalisation(in_float64, matrices):
    from lava.lib.dl import slayer

    one, two = two_blocks(*matrices, weight_norm=True)

    def expected():
        found = {}
        for name, synapse in (("first", one.synapse), ("last", two.synapse)):
            found[name] = synapse.weight_v.grad.numpy()[..., 0, 0, 0]
            found[f"{name}:gain"] = synapse.weight_g.grad.numpy().ravel()
        return found

    assert_lavas(
        dense(*matrices),
        Recipe(weight_norm=True),
        lambda x: two(slayer.axon.delay(one(x), 1)),
        expected,
    )


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropout(in_float64, matrices, p):
    from lava.lib.dl import slayer

    blocks = one, two = two_blocks(*matrices, dropout=slayer.neuron.Dropout(p))
    recipe = Recipe(populations={"hidden": PopulationRecipe(dropout=p)})
    models = assert_lavas(
        dense(*matrices),
        recipe,
        lambda x: two(slayer.axon.delay(one(x), 1)),
        lambda: weights_of(blocks),
    )
    for model in models:
        x = torch.from_numpy(drawn()[0]).to(model.parameter("first").dtype)
        model.train(False)
        whole = model(x)["hidden"]
        assert set(np.unique(whole.detach())) == {0, 1}
        model.train(True)
        model.reseed(5)
        dropped = model(x)["hidden"].detach().numpy()
        kept = dropped.any(axis=2)
        assert 0 < kept.mean() < 1
        np.testing.assert_allclose(dropped, whole.detach().numpy() * kept[..., None] / (1 - p))
        again = model(x)["hidden"].detach().numpy()
        assert (again.any(axis=2) != kept).any(), "every forward pass draws its own mask"


def test_batch_normalisation_and_learned_decays(in_float64, matrices):
    from lava.lib.dl import slayer

    blocks = one, two = two_blocks(
        *matrices, norm=slayer.neuron.norm.MeanOnlyBatchNorm, requires_grad=True
    )
    learn = ("current_decay", "voltage_decay")
    recipe = Recipe(populations={"hidden": PopulationRecipe(batch_norm=True, learn=learn)})

    def expected():
        """lava-dl's derivative is by the fraction that is kept, so it has the other sign."""
        decays = {f"hidden:{key}": -getattr(one.neuron, key).grad.numpy() for key in learn}
        return weights_of(blocks) | decays

    models = assert_lavas(
        dense(*matrices), recipe, lambda x: two(slayer.axon.delay(one(x), 1)), expected
    )
    for model in models:
        np.testing.assert_allclose(model.means()["hidden"], one.neuron.norm.running_mean, rtol=1e-5)
        one.train(False)
        model.train(False)
        x = torch.from_numpy(drawn()[0]).to(model.parameter("first").dtype)
        with torch.no_grad():
            np.testing.assert_array_equal(model(x)["hidden"], one(late(drawn()[0])))


def test_normalisation_and_delays_of_channels(in_float64):
    """A convolution has one mean and one delay for a channel, as lava-dl has."""
    from lava.lib.dl import slayer

    rng = np.random.default_rng(7)
    kernel, last = on_the_grid(rng, 0.6, (3, 2, 2, 2)), on_the_grid(rng, 0.5, (8, 36))
    one = slayer.block.cuba.Conv(
        {**PARAMETERS, "norm": slayer.neuron.norm.MeanOnlyBatchNorm}, 2, 3, 2, delay_shift=False
    )
    two = slayer.block.cuba.Dense(dict(PARAMETERS), 36, 8, delay_shift=False)
    one.synapse.weight.data.copy_(torch.from_numpy(kernel).permute(0, 3, 1, 2)[..., None])
    two.synapse.weight.data.copy_(torch.from_numpy(last).reshape(two.synapse.weight.shape))
    axon, steps = slayer.axon.Delay(), np.array([0.3, 2.7, 5.1])
    axon.delay.data, axon.init = torch.from_numpy(steps), True
    network = Network(
        "n",
        {"in": Input((5, 4, 2))},
        {"hidden": Population((4, 3, 3), NEURON), "out": Population((8,), NEURON)},
        {
            "first": Projection("in", "hidden", (Conv(kernel),)),
            "last": Projection("hidden", "out", (Flatten(), Dense(last))),
        },
        ("out",),
    )
    recipe = Recipe(populations={"hidden": PopulationRecipe(batch_norm=True, learn=("delay",))})

    def blocks(x):
        image = x.reshape(SAMPLES, 5, 4, 2, STEPS).permute(0, 3, 1, 2, 4)
        image = axon(slayer.axon.delay(one(image), 1))
        return two(image.permute(0, 1, 3, 2, 4).reshape(SAMPLES, -1, STEPS))

    def expected():
        return {
            "first": one.synapse.weight.grad[..., 0].permute(0, 2, 3, 1).numpy(),
            "last": two.synapse.weight.grad.numpy()[..., 0, 0, 0],
            "hidden:delay": axon.delay.grad.numpy(),
        }

    assert_lavas(network, recipe, blocks, expected, {"hidden:delay": steps}, 40)


def test_learned_delays_behind_dropout(in_float64, matrices):
    from lava.lib.dl import slayer

    blocks = one, two = two_blocks(*matrices, dropout=slayer.neuron.Dropout(0.5))
    axon, steps = slayer.axon.Delay(), np.random.default_rng(3).uniform(0, 6, 12)
    axon.delay.data, axon.init = torch.from_numpy(steps), True
    recipe = Recipe(populations={"hidden": PopulationRecipe(dropout=0.5, learn=("delay",))})
    assert_lavas(
        dense(*matrices),
        recipe,
        lambda x: two(axon(slayer.axon.delay(one(x), 1))),
        lambda: weights_of(blocks) | {"hidden:delay": axon.delay.grad.numpy()},
        {"hidden:delay": steps},
    )


def skipping(loop=False):
    """The output sees the input, a population with dropout and one without."""
    rng = np.random.default_rng(8)
    ends = [("in", "a"), ("a", "b"), ("in", "out"), ("a", "out"), ("b", "out")]
    sizes = {"in": LINES, "a": 10, "b": 11, "out": 8}
    projections = {
        f"{s}{t}": Projection.dense(s, t, on_the_grid(rng, 0.4, (sizes[t], sizes[s])), len(t))
        for s, t in ends
    }
    if loop:
        projections["own"] = Projection.dense("b", "b", on_the_grid(rng, 0.2, (11, 11)))
    populations = {name: Population((sizes[name],), NEURON) for name in ("a", "b", "out")}
    return Network("n", {"in": Input((LINES,))}, populations, projections, ("out",))


FULL = PopulationRecipe(0.5, True, ("current_decay", "voltage_decay", "delay"))


EVERYTHING = Recipe(
    True,
    {"a": FULL, "b": PopulationRecipe(0.2, learn=("delay",)), "out": PopulationRecipe(0.5)},
)
NOISES = {
    "none": None,
    "sigmoid": SigmoidNoise(kind="sigmoid"),
    "exponential": ExponentialNoise(kind="exponential"),
}


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        ("slayer", "none"),
        ("fast_sigmoid", "none"),
        ("triangle", "none"),
        ("box", "none"),
        ("escape", "sigmoid"),
        ("slayer", "exponential"),
        ("fast_sigmoid", "sigmoid"),
    ],
)
def test_everything_at_once_is_the_same_in_both_engines(in_float64, kind, noise):
    settings = {
        "surrogate": TypeAdapter(Surrogate).validate_python({"kind": kind}),
        "noise": NOISES[noise],
        "draw": Draw.of_update(3, 17, np.arange(SAMPLES)) if NOISES[noise] else None,
    }
    raster, wanted = drawn()
    (spikes, one, model), (same, two, other) = (
        engine(skipping(), EVERYTHING, name, raster, wanted, **settings) for name in ENGINES
    )
    np.testing.assert_array_equal(spikes, same)
    assert spikes.max() == 2
    assert {"a:delay", "a:voltage_decay", "b:delay", "aout:gain"} < one.keys() == two.keys()
    for name, gradient in two.items():
        assert np.linalg.norm(gradient) > 0, name
        assert np.linalg.norm(one[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name
    np.testing.assert_allclose(model.means()["a"], other.means()["a"], rtol=1e-6)
    assert model.means()["a"].any()


@pytest.mark.parametrize("name", ENGINES)
def test_the_noise_of_a_population_with_a_mean_is_its_draws(name):
    """Another draw is other noise, the same draw the same, and none is what the chip does."""
    recipe = Recipe(populations={"a": PopulationRecipe(batch_norm=True)})
    model = make(skipping(), name, recipe, noise=NOISES["sigmoid"])
    x = torch.from_numpy(drawn()[0].astype(np.float32))
    draws = [Draw.of_update(3, update, np.arange(SAMPLES)) for update in (0, 1, 0)]
    one, two, again, plain = (model(x, ("a",), draw)["a"] for draw in (*draws, None))
    assert one.any()
    assert (one != two).any()
    assert (one != plain).any()
    assert torch.equal(one, again)


def test_a_mean_of_more_neurons_than_share_registers(in_float64):
    """Registers of equal neurons are kept once for each 1,024 of them."""
    rng = np.random.default_rng(2)
    first, last = on_the_grid(rng, 0.5, (1100, LINES)), on_the_grid(rng, 0.1, (8, 1100))
    own = PopulationRecipe(batch_norm=True, learn=("voltage_decay",))
    recipe, (raster, wanted) = Recipe(populations={"hidden": own}), drawn()
    (spikes, one, _), (same, two, _) = (
        engine(dense(first, last), recipe, name, raster, wanted) for name in ENGINES
    )
    np.testing.assert_array_equal(spikes, same)
    assert spikes.any()
    for name, gradient in two.items():
        assert np.linalg.norm(one[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def test_before_and_in_a_loop_the_engines_agree(in_float64):
    own = PopulationRecipe(batch_norm=True, learn=("current_decay", "voltage_decay", "delay"))
    recipe = Recipe(True, {"a": own})
    raster, wanted = drawn()
    (spikes, one, _), (same, two, _) = (
        engine(skipping(loop=True), recipe, name, raster, wanted) for name in ENGINES
    )
    np.testing.assert_array_equal(spikes, same)
    assert spikes.any()
    for name, gradient in two.items():
        assert np.linalg.norm(one[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def test_a_decays_gradient_is_the_equations():
    """Against torch's derivative of y[t] = (1 - a) y[t-1] + x[t]."""
    from nmtool.quantization import STATE_SCALE
    from nmtool.training.dynamics import _decay_gradient, integrate_back

    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(2, 3, 7, 4))
    decay = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    states, y = [], torch.zeros(3, 4, dtype=torch.float64)
    for t in range(7):
        y = (1 - decay) * y + torch.from_numpy(x[:, t])
        states.append(y)
    state = torch.stack(states, dim=1)
    (state * torch.from_numpy(weight)).sum().backward()
    gradient = weight.astype(np.float32)
    integrate_back(0, 3, gradient, np.full(4, 0.7, dtype=np.float32))
    found = _decay_gradient(gradient, state.detach().numpy() * STATE_SCALE)
    np.testing.assert_allclose(found, [decay.grad.item()], rtol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_exported_spikes_as_what_was_trained(name):
    from nmtool.training.record import record

    rng = np.random.default_rng(9)
    recipe = Recipe(True, {"a": FULL, "b": FULL})
    raster, wanted = drawn()
    _, gradients, model = engine(skipping(), recipe, name, raster, wanted)
    with torch.no_grad():
        for key, parameter in model.parameters_by_name().items():
            step = 0.02 if "decay" in key else 4.0 if "delay" in key else 0.1
            parameter.add_(step * torch.from_numpy(rng.normal(size=parameter.shape)))
    model.train(False)
    model.float()
    trained = model(torch.from_numpy(raster.astype(np.float32)))
    network = model.export()
    program = compile_program(network, CHIP, None, STEPS)
    spikes = SpikeTrain.from_raster(raster > 0)
    with ReferenceBackend().open(program) as session:
        deployed = session.run(spikes, probe="spikes").spikes
    recorded = record(network, CHIP, spikes, engine=name).spikes
    for population, train in trained.items():
        raster = train.detach().numpy() > 0
        assert raster.any()
        np.testing.assert_array_equal(deployed[population].to_raster(), raster, population)
        np.testing.assert_array_equal(recorded[population].to_raster(), raster, population)
    a, before = network.populations["a"], skipping().populations["a"]
    assert a.bias.any()
    assert np.unique(a.axonal_delay).size > 2
    assert a.neuron.current_decay != before.neuron.current_decay
    assert gradients["a:delay"].any()


def test_learned_values_stay_in_the_chips_registers(matrices):
    own = PopulationRecipe(learn=("current_decay", "voltage_decay", "delay"), max_delay=6)
    model = make(dense(*matrices), "event", Recipe(populations={"hidden": own}))
    for value, expected in ((-9.0, (1 / 4096, 0, 0)), (99.0, (1, 4095 / 4096, 6))):
        with torch.no_grad():
            for parameter in model.learned.values.values():
                parameter.fill_(value)
        model(torch.zeros(1, LINES, 4))
        hidden = model.export().populations["hidden"]
        neuron = hidden.neuron
        assert (neuron.current_decay, neuron.voltage_decay) == expected[:2]
        np.testing.assert_array_equal(hidden.axonal_delay, expected[2])


LEARNS_DELAY = PopulationRecipe(learn=("delay",))
REFUSED = {
    "dropout in a loop": (True, Recipe(populations={"b": PopulationRecipe(0.5)}), "dropout in a"),
    "a mean in a loop": (
        True,
        Recipe(populations={"b": PopulationRecipe(batch_norm=True, learn=("delay",))}),
        "population b: found batch_norm and learn delay in a loop",
    ),
    "a delay of outputs": (
        False,
        Recipe(populations={"out": LEARNS_DELAY}),
        "population out: found a learned delay, allowed where its spikes reach another",
    ),
    "delays that differ within a channel": (
        np.arange(18) // 4,
        Recipe(populations={"a": LEARNS_DELAY}),
        "population a: found axonal delays that differ within a channel",
    ),
    "no such population": (False, Recipe(populations={"x": FULL}), "found the population 'x'"),
}


def channels(delay):
    """A convolution whose neurons have axonal delays."""
    populations = {
        "a": Population((3, 3, 2), NEURON, axonal_delay=delay),
        "out": Population((8,), NEURON),
    }
    projections = {
        "in": Projection("in", "a", (Conv(np.ones((2, 2, 2, 1))),)),
        "out": Projection("a", "out", (Flatten(), Dense(np.ones((8, 18))))),
    }
    return Network("n", {"in": Input((4, 4, 1))}, populations, projections, ("out",))


def test_learned_delays_begin_at_the_channels_delays():
    recipe = Recipe(populations={"a": LEARNS_DELAY})
    model = make(channels(np.tile([3, 5], 9)), "event", recipe)
    np.testing.assert_array_equal(model.learned.values["a:delay"].detach(), [3.5, 5.5])
    np.testing.assert_array_equal(model.export().populations["a"].axonal_delay, [3, 5] * 9)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses(case, name):
    loop, recipe, says = REFUSED[case]
    network = skipping(loop) if isinstance(loop, bool) else channels(loop)
    with pytest.raises(UnsupportedError, match=says):
        make(network, name, recipe)


def test_dropout_before_a_loop_needs_lava_dls_blocks(in_float64):
    recipe = Recipe(populations={"a": PopulationRecipe(0.5)})
    with pytest.raises(UnsupportedError, match=r"before the loop of b.*train\.engine=slayer"):
        make(skipping(loop=True), "event", recipe)
    spikes, _, _ = engine(skipping(loop=True), recipe, "slayer", *drawn())
    assert spikes.any()


def test_weights_without_a_norm_and_delays_that_do_not_fit(matrices):
    first, last = matrices
    zero = first.copy()
    zero[3] = 0
    sparse = Network(
        "n",
        {"in": Input((LINES,))},
        {"out": Population((12,), NEURON)},
        {"w": Projection("in", "out", (Sparse.from_matrix(first),))},
        ("out",),
    )
    for network, says in (
        (dense(zero, last), "projection first: found weights of output 3 that are all 0"),
        (sparse, "projection w: found Sparse weights with weight_norm"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            make(network, "event", Recipe(True))
    longer = PopulationRecipe(learn=("delay",), max_delay=63)
    with pytest.raises(FitError, match=r"hidden\.max_delay: found 63 steps, allowed up to 62"):
        make(dense(first, last), "event", Recipe(populations={"hidden": longer}))
    late = dense(first, last, axonal_delay=9)
    shorter = PopulationRecipe(learn=("delay",), max_delay=6)
    with pytest.raises(FitError, match=r"hidden\.axonal_delay: found 9 steps, allowed up to 6"):
        make(late, "event", Recipe(populations={"hidden": shorter}))


LAYERS = [
    {
        "dense": 16,
        "name": "hidden",
        "dropout": 0.2,
        "batch_norm": True,
        "learn": ["current_decay", "voltage_decay", "delay"],
        "max_delay": 3,
    },
    {"dense": 20, "name": "output", "batch_norm": True, "learn": ["voltage_decay"]},
]


@pytest.mark.parametrize("noise", [None, {"kind": "sigmoid"}])
@pytest.mark.parametrize("name", ENGINES)
def test_an_experiment_with_everything_resumes_to_the_same_bits(
    name, noise, experiment, untrained, chip, small_sets, tmp_path
):
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint
    from nmtool.training.trainer import train

    settings = {"epochs": 2, "weight_norm": True, "engine": name, "noise": noise}
    config = experiment(layers=LAYERS, train=settings)
    whole, state = train(
        config,
        untrained(config),
        chip,
        on_epoch=lambda s: save_checkpoint(tmp_path / f"{len(s.history)}.h5", s, "key"),
    )
    again, _ = train(config, untrained(config), chip, load_checkpoint(tmp_path / "1.h5", "key"))
    hidden, same = whole.populations["hidden"], again.populations["hidden"]
    assert hidden.neuron == same.neuron != untrained(config).populations["hidden"].neuron
    np.testing.assert_array_equal(hidden.bias, same.bias)
    np.testing.assert_array_equal(hidden.axonal_delay, same.axonal_delay)
    np.testing.assert_array_equal(
        whole.projections["output"].weight, again.projections["output"].weight
    )
    assert state.means["hidden"].any()
    assert state.means["output"].any()


def test_decays_and_delays_have_learning_rates_of_their_own(
    experiment, untrained, chip, small_sets
):
    """Adam's first update is the learning rate, whatever the size of a gradient."""
    from nmtool.training.trainer import train

    rates = {"name": "adam", "lr": 1e-3, "decay_lr": 2e-3, "delay_lr": 0.25}
    layers = [{**LAYERS[0], "batch_norm": False}, LAYERS[1]]
    config = experiment(layers=layers, train={"epochs": 1, "batch": 64, "optimizer": rates})
    _, state = train(config, untrained(config), chip)
    assert state.updates == 1
    moved = np.abs(state.weights["hidden:delay"] - 0.5)
    np.testing.assert_allclose(moved[moved > 0], 0.25, rtol=0.02)
    assert moved.any()
    decay = state.weights["hidden:current_decay"]
    np.testing.assert_allclose(np.abs(decay - 0.25), 2e-3, rtol=1e-3)


def test_decays_and_delays_have_no_weight_decay(matrices):
    """With gradients of 0 nothing but the weight decay moves a parameter."""
    from nmtool.config import Sgd
    from nmtool.training.optimizers import make_optimizer

    own = PopulationRecipe(learn=("current_decay", "voltage_decay", "delay"))
    model = make(dense(*matrices), "event", Recipe(True, {"hidden": own}))
    parameters = model.parameters_by_name()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    settings = Sgd(name="sgd", lr=0.5, delay_lr=2.0, weight_decay=0.5)
    optimizer = make_optimizer(settings, parameters)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        left = 0.75 if name.partition(":")[2] in {"", "gain"} else 1.0
        np.testing.assert_allclose(parameter.detach(), left * before[name], err_msg=name)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(parameters["hidden:delay"])] == 2.0
    assert rates[id(parameters["hidden:current_decay"])] == 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "adamax", "sgd", "rmsprop"])
def test_every_optimizer_moves_all_that_is_learned(
    optimizer, experiment, untrained, chip, small_sets
):
    from nmtool.training.trainer import prepare, train

    settings = {"name": optimizer, "lr": 1e-3, "decay_lr": 0.01, "delay_lr": 2.0}
    config = experiment(layers=LAYERS, train={"epochs": 1, "optimizer": settings})
    _, state = train(config, untrained(config), chip)
    first, _ = prepare(config, untrained(config), chip)
    for name, parameter in first.parameters_by_name().items():
        assert (state.weights[name] != parameter.detach().numpy()).any(), name


def test_first_spikes_are_not_scaled_by_dropout(experiment, untrained, chip):
    """A latency is that of spikes of 1, so the output has no dropout; populations before it may."""
    from nmtool.training.trainer import prepare

    loss = {"loss": {"kind": "first_spike", "tau": 5.0}}
    output = {"dense": 20, "name": "output"}
    config = experiment(layers=[LAYERS[0], output], train=loss)
    prepare(config, untrained(config), chip)
    config = experiment(layers=[LAYERS[0], {**output, "dropout": 0.5}], train=loss)
    with pytest.raises(
        UnsupportedError, match=r"population output: found dropout 0\.5 .*first_spike"
    ):
        prepare(config, untrained(config), chip)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"learn": ["delay", "delay"]}, "learn with every parameter once; found delay, delay"),
        ({"learn": ["threshold"]}, "learn"),
        ({"max_delay": 3}, "max_delay in a layer that learns its delay"),
    ],
)
def test_keys_that_are_wrong(layer, says, experiment):
    with pytest.raises(ValueError, match=says):
        experiment(layers=[{"dense": 16, "name": "hidden", **layer}])
    with pytest.raises(ValueError, match="a name for a pool with neurons; found batch_norm"):
        experiment(layers=[{"pool": 2, "batch_norm": True}])
    rates = {"name": "adam", "lr": 1e-3, "delay_lr": 0.1}
    with pytest.raises(ValueError, match="a layer that learns delay, for its learning rate delay"):
        experiment(train={"optimizer": rates})
