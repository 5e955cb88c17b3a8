"""Escape noise: probabilities, the same spikes in both engines, nothing that depends on batches."""

import numpy as np
import pytest
from scipy.stats import binom

from nmtool.chip import load_chip
from nmtool.config import Experiment, ExponentialNoise, SigmoidNoise, SlayerSurrogate
from nmtool.errors import ConfigError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.training.noise import (
    Draw,
    compiled,
    fano_factor,
    mismatch,
    noisy_thresholds,
    probability,
)

torch = pytest.importorskip("torch")
CHIP = load_chip("loihi2")
SIGMOID = SigmoidNoise(kind="sigmoid", beta=10.0)
EXPONENTIAL = ExponentialNoise(kind="exponential")
NOISES = [SIGMOID, EXPONENTIAL]
ONE = 4096
"""A real voltage of 1 in chip units."""


def network(seed=4):
    rng = np.random.default_rng(seed)
    neuron = CubaLif(1.25, 0.25, 0.03)
    bias = rng.normal(0.02, 0.02, 300)
    return Network(
        "two",
        {"input": Input((20,))},
        {"h": Population((300,), neuron, bias), "out": Population((4,), neuron)},
        {
            "h": Projection.dense("input", "h", rng.normal(0.03, 0.3, (300, 20))),
            "out": Projection.dense("h", "out", rng.normal(0, 0.1, (4, 300)), 2),
        },
        ("out",),
    )


def raster(samples=7, steps=30):
    return (np.random.default_rng(1).random((samples, 20, steps)) < 0.1).astype(np.float32)


def spikes(engine, noise, x, draw, surrogate=None):
    from nmtool.training.model import make_model

    model = make_model(network(), CHIP, surrogate or SlayerSurrogate(), engine, noise)
    with torch.no_grad():
        return {name: s.numpy() for name, s in model(torch.from_numpy(x), draw=draw).items()}


@pytest.mark.parametrize("noise", NOISES)
def test_neurons_spike_with_the_probability_of_the_escape_function(noise):
    """At each of several voltages, within the 1e-6 quantiles of the binomial distribution."""
    keys = Draw.of_trial(0, 0, np.arange(50)).keys(0)
    levels = noisy_thresholds(noise, keys, 80, (40, 50)).ravel()
    for distance in (-0.6, -0.2, -0.05, 0.0, 0.03, 0.2):
        fired = int((80 * 64 + round(distance * ONE) > levels).sum())
        p = float(probability(noise, round(distance * ONE) / ONE))
        low, high = binom.ppf([1e-6, 1 - 1e-6], levels.size, p)
        assert low <= fired <= high, distance
        assert p > 0.99 or not low <= levels.size * min(1.0, 1.2 * p + 0.01) <= high


@pytest.mark.parametrize("noise", NOISES)
def test_both_engines_have_the_same_spikes(noise):
    draw = Draw.of_update(3, 17, np.arange(7))
    ours = spikes("event", noise, raster(), draw)
    theirs = spikes("slayer", noise, raster(), draw)
    for name, train in ours.items():
        np.testing.assert_array_equal(train, theirs[name], name)
        assert 0.001 < train.mean() < 0.9
    plain = spikes("event", noise, raster(), None)
    assert (plain["h"] != ours["h"]).any()


def test_a_sample_has_the_same_spikes_in_any_batch():
    x = raster()
    whole = spikes("event", SIGMOID, x, Draw.of_update(3, 17, np.arange(7)))
    order = np.array([5, 0, 6, 2])
    part = spikes("event", SIGMOID, x[order], Draw.of_update(3, 17, order))
    for name, train in part.items():
        np.testing.assert_array_equal(train, whole[name][order], name)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Draw.of_update(3, 17, np.arange(7)), Draw.of_update(3, 18, np.arange(7))),
        (Draw.of_update(3, 17, np.arange(7)), Draw.of_update(4, 17, np.arange(7))),
        (Draw.of_update(3, 17, np.arange(7)), Draw.of_trial(3, 17, np.arange(7))),
        (Draw.of_update(3, 17, np.arange(7)), Draw.of_update(3, 17, np.arange(1, 8))),
    ],
)
def test_another_update_seed_purpose_or_sample_has_other_noise(one, two):
    a, b = (noisy_thresholds(SIGMOID, draw.keys(0), 80, (30, 40)) for draw in (one, two))
    assert (a != b).mean() > 0.99


def test_random_numbers_of_neighbours_are_unrelated():
    """Populations, samples, neurons and steps: no correlation between any two neighbours."""
    draw = Draw.of_trial(0, 0, np.arange(40))
    levels = np.stack(
        [noisy_thresholds(SIGMOID, draw.keys(k), 0, (40, 40)) for k in range(3)]
    ).astype(float)
    for axis in range(4):
        a = np.delete(levels, 0, axis).ravel()
        b = np.delete(levels, -1, axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


def test_extreme_escape_functions_stay_whole_numbers():
    keys = Draw.of_trial(0, 0, np.arange(2)).keys(0)
    flat = noisy_thresholds(SigmoidNoise(kind="sigmoid", beta=1e-300), keys, 80, (50, 20))
    assert (np.abs(flat) > 1 << 29).all()
    assert 0.4 < (flat < 0).mean() < 0.6
    sharp = noisy_thresholds(SigmoidNoise(kind="sigmoid", beta=1e300), keys, 80, (50, 20))
    assert set(np.unique(sharp)) <= {80 * 64 - 1, 80 * 64}
    assert compiled(None).kind == 0


def stochastic(experiment, layers=None, gain=1.0, steps=8, **train):
    """The small experiment with escape noise, and the surrogate that follows from it."""
    values = experiment(train=train, layers=layers).model_dump(by_alias=True, exclude={"surrogate"})
    values["train"]["noise"] = {"kind": "sigmoid", "beta": 10.0}
    values["network"]["init_gain"] = gain
    values["data"]["encoding"]["steps"] = steps
    return Experiment.model_validate(values)


def test_the_surrogate_is_the_escape_derivative_unless_another_is_given(experiment):
    config = stochastic(experiment)
    assert config.surrogate.kind == "escape"
    assert mismatch(config) is None
    assert mismatch(experiment()) is None
    values = config.model_dump(by_alias=True)
    same = {**values, "surrogate": {"kind": "sigmoid", "beta": 10.0}}
    assert mismatch(Experiment.model_validate(same)) is None
    for other in ({"kind": "sigmoid", "beta": 5.0}, {"kind": "fast_sigmoid"}, {"kind": "slayer"}):
        found = mismatch(Experiment.model_validate({**values, "surrogate": other}))
        assert found.startswith(f"surrogate: found {other['kind']} with escape noise sigmoid")


def test_a_stochastic_network_trains_and_its_counts_vary(experiment, untrained, chip, small_sets):
    from nmtool.data import encode, load_split
    from nmtool.training.record import record
    from nmtool.training.trainer import stochastic_accuracy, stochastic_spikes, train

    layers = [{"dense": 48, "name": "hidden"}, {"dense": 20, "name": "output"}]
    config = stochastic(
        experiment,
        layers,
        gain=2.0,
        steps=16,
        epochs=16,
        jitter=0,
        loss={"kind": "count_cross_entropy", "scale": 0.3},
        optimizer={"name": "adam", "lr": 0.02},
    )
    network, state = train(config, untrained(config), chip)
    losses = [epoch.loss for epoch in state.history]
    assert losses[-1] < 0.5 * losses[0]
    whole = load_split(config.data, "validation")
    few = type(whole)(whole.values[:40], whole.labels[:40], whole.shape)
    assert stochastic_accuracy(config, network, chip, few) > 0.5
    counts = np.stack(
        [stochastic_spikes(config, network, chip, few, k).sum(dim=2) for k in range(8)]
    )
    assert fano_factor(counts) > 0.1
    again = stochastic_spikes(config, network, chip, few, 3).sum(dim=2)
    np.testing.assert_array_equal(again, counts[3])
    spikes_in = encode(few.values, config.data.encoding)
    fixed = np.stack([record(network, chip, spikes_in).spikes["output"].counts() for _ in range(3)])
    assert fano_factor(fixed) == 0
    with pytest.raises(ConfigError, match=r"train\.noise: found none"):
        stochastic_spikes(experiment(), network, chip, few)


def test_a_stochastic_training_continues_with_the_same_bits(
    experiment, untrained, chip, small_sets, tmp_path
):
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint
    from nmtool.training.trainer import train

    config = stochastic(experiment, epochs=2)

    def save(state):
        save_checkpoint(tmp_path / f"{len(state.history)}.h5", state, "key")

    whole, _ = train(config, untrained(config), chip, on_epoch=save)
    again, _ = train(config, untrained(config), chip, load_checkpoint(tmp_path / "1.h5", "key"))
    for name, projection in whole.projections.items():
        np.testing.assert_array_equal(projection.weight, again.projections[name].weight)


def test_fano_factor():
    rng = np.random.default_rng(0)
    assert fano_factor(rng.poisson(4.0, (20_000, 5))) == pytest.approx(1.0, abs=0.03)
    assert fano_factor(np.full((9, 3), 7)) == 0
    assert np.isnan(fano_factor(np.zeros((9, 3))))
