"""The training loop: the same bits again, selection by validation, warnings, an entry function."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nmtool.data import Samples, encode, load_split
from nmtool.errors import ArtifactError, ConfigError, FitError
from nmtool.measure import predict

torch = pytest.importorskip("torch")


def training(config, network, chip, state=None, on_epoch=None):
    from nmtool.training.trainer import train

    return train(config, network, chip, state, None, on_epoch)


def bits(weights):
    return {name: np.asarray(w).tobytes() for name, w in weights.items()}


def network_bits(network):
    return bits({name: p.weight for name, p in network.projections.items()})


def comparable(state):
    tensors = (state.weights, state.first_moment, state.second_moment, state.best_weights)
    history = [replace(epoch, seconds=0.0) for epoch in state.history]
    return [*map(bits, tensors), state.updates, state.best_accuracy, state.best_epoch, history]


def test_a_training_continued_after_any_epoch_ends_with_the_same_bits(
    experiment, untrained, chip, small_sets, tmp_path
):
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint

    config = experiment()

    def save(state):
        save_checkpoint(tmp_path / f"{len(state.history)}.h5", state, "key")

    whole, state = training(config, untrained(config), chip, on_epoch=save)
    assert len(state.history) == 3
    for epoch in (1, 2, 3):
        loaded = load_checkpoint(tmp_path / f"{epoch}.h5", "key")
        assert len(loaded.history) == epoch
        again, end = training(config, untrained(config), chip, loaded)
        assert network_bits(again) == network_bits(whole)
        assert comparable(end) == comparable(state)


def test_a_checkpoint_of_another_experiment_is_refused(
    experiment, untrained, chip, small_sets, tmp_path
):
    from nmtool.formats import save
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint

    config = experiment(train={"epochs": 1})
    network, state = training(config, untrained(config), chip)
    save_checkpoint(tmp_path / "c.h5", state, "one")
    with pytest.raises(ArtifactError, match="other settings"):
        load_checkpoint(tmp_path / "c.h5", "two")
    save(tmp_path / "n.h5", network)
    with pytest.raises(ArtifactError, match=r"found the schema nmtool\.network/v2"):
        load_checkpoint(tmp_path / "n.h5", "one")
    with pytest.raises(ArtifactError, match="no such file"):
        load_checkpoint(tmp_path / "none.h5", "one")


def test_the_seed_decides_everything_and_threads_nothing(experiment, untrained, chip, small_sets):
    config = experiment(train={"epochs": 2})
    first, _ = training(config, untrained(config), chip)
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.set_num_threads(2)
    try:
        second, _ = training(config, untrained(config), chip)
        assert torch.get_num_threads() == 2, "left as it was found"
    finally:
        torch.set_num_threads(threads)
    assert network_bits(first) == network_bits(second)
    other = experiment(seed=4, train={"epochs": 2})
    assert network_bits(training(other, untrained(config), chip)[0]) != network_bits(first)
    assert network_bits(untrained(other)) != network_bits(untrained(config))


def test_the_best_epoch_is_that_of_the_validation_labels(experiment, untrained, chip, small_sets):
    """Validation labels that are what epoch 1 answers select epoch 1, and change nothing else."""
    from nmtool.training.model import with_weights
    from nmtool.training.record import record

    config = experiment(train={"epochs": 4, "optimizer": {"name": "adam", "lr": 0.02}})
    by_epoch = []
    _, plain = training(
        config, untrained(config), chip, on_epoch=lambda s: by_epoch.append(dict(s.weights))
    )
    values = load_split(config.data, "validation").values[:40]
    network = with_weights(untrained(config), by_epoch[0])
    recording = record(network, chip, encode(values, config.data.encoding))
    answers = predict(recording.spikes["output"], config.network.readout)
    assert len(set(answers)) > 1
    small_sets["validation"] = answers
    chosen, state = training(config, untrained(config), chip)
    assert state.history[0].validation_accuracy == 1.0
    assert max(e.validation_accuracy for e in state.history[1:]) < 1.0
    assert state.best_epoch == 0
    assert network_bits(chosen) == bits(by_epoch[0])
    assert bits(state.weights) == bits(plain.weights), "validation labels train nothing"
    assert [e.loss for e in state.history] == [e.loss for e in plain.history]


def reach(monkeypatch):
    """How far the states of each validation went, as a list that a training fills."""
    from nmtool.training import trainer

    plain, found = trainer.out_of_range, []

    def look(reached):
        found.append(max(most for both in reached.values() for most in both))
        return plain(reached)

    monkeypatch.setattr(trainer, "out_of_range", look)
    return found


def test_the_best_epoch_is_one_that_fits_the_chip(
    experiment, untrained, chip, small_sets, monkeypatch, tmp_path
):
    """With a register that the best epoch's states do not fit into, the next best is kept."""
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint

    config = experiment(train={"epochs": 3, "optimizer": {"name": "sgd", "lr": 30.0}})
    by_epoch, reached = [], reach(monkeypatch)
    _, plain = training(
        config, untrained(config), chip, on_epoch=lambda s: by_epoch.append(dict(s.weights))
    )
    assert plain.best_epoch > 0
    assert max(reached) == max(reached[1:]) > reached[0]
    assert not any(epoch.overflow for epoch in plain.history)

    def train_below(limit):
        monkeypatch.setattr("nmtool.training.record.STATE_LIMIT", limit)
        return training(
            config,
            untrained(config),
            chip,
            on_epoch=lambda s: save_checkpoint(tmp_path / f"{limit}.h5", s, "key"),
        )

    healthy = [*reached]
    limit = int(healthy[plain.best_epoch])
    chosen, state = train_below(limit)
    fits = [r < limit for r in healthy]
    assert [not epoch.overflow for epoch in state.history] == fits
    accuracy = [e.validation_accuracy * fit for e, fit in zip(plain.history, fits, strict=True)]
    assert state.best_accuracy == max(accuracy) > 0
    assert accuracy[state.best_epoch] == max(accuracy)
    assert network_bits(chosen) == bits(by_epoch[state.best_epoch])
    with pytest.raises(FitError, match=r"no epoch of 3 that fits.*allowed below 1:.*lower train"):
        train_below(1)
    left = load_checkpoint(tmp_path / "1.h5", "key")
    assert left.best_epoch == -1
    assert left.best_weights == {}
    with pytest.raises(FitError, match=r"no epoch of 3 that fits.*train afresh with --force"):
        training(config, untrained(config), chip, left)


def test_a_training_that_can_go_no_further_keeps_what_it_has(
    experiment, untrained, chip, small_sets, monkeypatch
):
    from nmtool.training import trainer

    config, plain, updates = experiment(), trainer._update, []

    def update(*arguments):
        updates.append(1)
        if len(updates) > allowed:
            raise FitError("hidden: too large")
        return plain(*arguments)

    monkeypatch.setattr(trainer, "_update", update)
    allowed = 6  # an epoch has four
    _, state = training(config, untrained(config), chip)
    assert (len(state.history), state.best_epoch) == (1, 0)
    assert state.stopped == "epoch 2 could not be trained: hidden: too large"
    updates.clear()
    allowed = 3
    with pytest.raises(FitError, match=r"found no epoch of 3 .*epoch 1 could not be trained"):
        training(config, untrained(config), chip)


def test_both_engines_say_how_far_states_went(experiment, untrained, chip):
    from nmtool.training.model import make_model, reach

    layers = [{"recurrent": 16, "name": "hidden"}, {"dense": 20, "name": "output"}]
    config = experiment(layers=layers)
    values = load_split(config.data, "validation").values[:8]
    x = torch.from_numpy(encode(values, config.data.encoding).to_raster().astype(np.float32))
    found = []
    for engine in ("event", "slayer"):
        model = make_model(untrained(config), chip, config.surrogate, engine)
        with torch.no_grad():
            spikes, reached = model.watched(x)
            states = model.states(x)
        assert reached == reach(states)
        assert all(torch.equal(train, states[name][0].float()) for name, train in spikes.items())
        found.append(reached)
    assert found[0] == found[1]
    assert all(most > 64 for both in found[0].values() for most in both)


def test_what_does_not_fit_before_the_first_update_is_named(experiment, untrained, chip):
    from nmtool.network import CubaLif
    from nmtool.training.trainer import first_overflow

    config = experiment()
    network = untrained(config)
    assert first_overflow(config, network, chip) == ""
    hidden = network.projections["hidden"]
    projections = {**network.projections, "hidden": hidden.with_weight(np.full((16, 64), 500.0))}
    slow = replace(network.populations["hidden"], neuron=CubaLif(500.0, 0.001, 0.0))
    large = replace(
        network, projections=projections, populations={**network.populations, "hidden": slow}
    )
    assert first_overflow(config, large, chip).startswith("hidden.current: the trainer's forward")


def test_training_learns(experiment, untrained, chip, small_sets):
    config = experiment(train={"epochs": 8, "jitter": 0, "optimizer": {"name": "adam", "lr": 0.02}})
    _, state = training(config, untrained(config), chip)
    losses = [epoch.loss for epoch in state.history]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("loss", ["count_cross_entropy", "spike_rate"])
@pytest.mark.parametrize("weight_bits", [2, 8])
def test_every_layer_is_updated(experiment, untrained, chip, small_sets, loss, weight_bits):
    settings = {"epochs": 1, "loss": {"kind": loss}, "weight_bits": weight_bits}
    config = experiment(train=settings)
    before = replace(untrained(config), weight_bits=weight_bits)
    after, state = training(config, before, chip)
    assert state.updates == 4
    for name, projection in before.projections.items():
        moved = projection.weight != after.projections[name].weight
        assert moved.mean() > 0.3, name


def test_silent_and_saturated_layers_are_named(experiment, untrained, chip, small_sets):
    neuron = {"kind": "cuba", "threshold": 0.02, "current_decay": 0.9, "voltage_decay": 0.9}
    layers = [
        {"dense": 8, "name": "loud", "bias": 5.0, "neuron": neuron},
        {"dense": 8, "name": "quiet", "bias": -5.0},
        {"dense": 20, "name": "output"},
    ]
    config = experiment(layers=layers, train={"epochs": 1})
    _, state = training(config, untrained(config), chip)
    warnings = state.history[0].warnings
    assert len(warnings) == 3
    assert warnings[0].startswith("loud: saturated, 1.00 spikes per neuron and step")
    assert warnings[1].startswith("quiet: silent, no spike in the validation set")
    assert warnings[2].startswith("output: silent")
    assert state.history[0].rates["loud"] == pytest.approx(1.0)


def test_a_healthy_network_has_no_warnings(experiment, untrained, chip, small_sets):
    config = experiment(train={"epochs": 1})
    _, state = training(config, untrained(config), chip)
    assert state.history[0].warnings == ()
    assert all(0 < rate < 0.9 for rate in state.history[0].rates.values())


def test_the_learning_rate_falls_as_a_cosine(experiment, untrained, chip, small_sets, monkeypatch):
    from nmtool.training import trainer

    seen, plain = [], trainer._update

    def update(model, optimizer, *rest):
        seen.append(optimizer.param_groups[0]["lr"])
        return plain(model, optimizer, *rest)

    monkeypatch.setattr(trainer, "_update", update)
    config = experiment(train={"epochs": 2})
    training(config, untrained(config), chip)
    expected = 4e-3 * 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(seen, expected)
    seen.clear()
    constant = experiment(train={"epochs": 1, "optimizer": {"name": "adam", "lr": 1e-3}})
    training(constant, untrained(constant), chip)
    assert seen == [1e-3] * 4


def test_jitter_moves_half_of_the_images_by_whole_pixels():
    from nmtool.data.augment import shifted

    values = np.random.default_rng(0).random((400, 64))
    samples = Samples(values, np.zeros(400, np.int64), (8, 8))
    assert shifted(samples, 0, np.random.default_rng(1)) is values
    moved = shifted(samples, 2, np.random.default_rng(1))
    assert moved.shape == values.shape
    np.testing.assert_array_equal(moved, shifted(samples, 2, np.random.default_rng(1)))
    same = (moved == values).all(axis=1)
    assert 0.4 < same.mean() < 0.65
    steps = range(-2, 3)
    seen = set()
    for before, after in zip(values[~same][:60], moved[~same][:60], strict=True):
        image = np.zeros((12, 12))
        image[2:10, 2:10] = before.reshape(8, 8)
        fits = [
            (dy, dx)
            for dy in steps
            for dx in steps
            if np.array_equal(image[2 + dy : 10 + dy, 2 + dx : 10 + dx], after.reshape(8, 8))
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 12


ENTRY = """\
import numpy as np
from nmtool import CubaLif, Input, Network, Population, Projection

def make(n_inputs, n_classes, seed):
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-0.4, 0.4, (2 * n_classes, n_inputs))
    return Network(
        "own", {"pixels": Input((n_inputs,))},
        {"out": Population((2 * n_classes,), CubaLif(1.25, 0.25, 0.03), axonal_delay=2)},
        {"w": Projection.dense("pixels", "out", weight, 1)}, ("out",),
    )
"""


def test_a_network_from_an_entry_function(experiment, chip, small_sets, tmp_path, monkeypatch):
    import sys

    from nmtool.training.build import build_network

    (tmp_path / "entry_of_this_test.py").write_text(ENTRY)
    monkeypatch.delitem(sys.modules, "entry_of_this_test", raising=False)
    config = experiment(train={"epochs": 1})
    own = config.network.model_copy(update={"layers": None, "entry": "entry_of_this_test:make"})
    config = config.model_copy(update={"network": own})
    path = list(sys.path)
    network = build_network(config, tmp_path)
    assert sys.path == path
    assert (network.name, network.data, network.readout) == (
        "small",
        config.data,
        config.network.readout,
    )
    trained, _ = training(config, network, chip)
    assert trained.populations["out"].axonal_delay == 2
    assert network_bits(trained) != network_bits(network)
    wrong = own.model_copy(update={"entry": "no_module_of_this_name:make"})
    with pytest.raises(ConfigError, match=r"no_module_of_this_name:make: cannot be imported"):
        build_network(config.model_copy(update={"network": wrong}), tmp_path)


def test_the_baseline_is_a_linear_classifier_on_the_same_split(experiment):
    from nmtool.training.baseline import logistic_regression_accuracy

    data = experiment().data
    assert 0.94 < logistic_regression_accuracy(data) < 0.99
    fewer = data.model_copy(update={"validation": 1400})
    assert logistic_regression_accuracy(fewer) < 0.93


def test_a_forward_pass_without_gradients_holds_what_fits_and_gives_the_same(
    untrained, experiment, chip, monkeypatch
):
    from nmtool.training import record

    config = experiment()
    network = untrained(config)
    test = load_split(config.data, "test")
    spikes = encode(test.values, config.data.encoding)
    whole = record.decisions(network, chip, spikes, config.network.readout)
    assert len(np.unique(whole)) > 2
    assert [len(c) for c in record.batches(network, spikes)][:-1] == [record.BATCH]
    monkeypatch.setattr(record, "RASTER", 100 * sum(network.sizes.values()) * spikes.n_steps)
    chunks = [*record.batches(network, spikes)]
    assert [len(chunk) for chunk in chunks] == [100, 100, 100, 60]
    np.testing.assert_array_equal(np.concatenate(chunks), np.arange(len(test)))
    again = record.decisions(network, chip, spikes, config.network.readout)
    np.testing.assert_array_equal(again, whole)
    recording = record.record(network, chip, spikes)
    np.testing.assert_array_equal(
        predict(recording.spikes["output"], config.network.readout), whole
    )
    monkeypatch.setattr(record, "RASTER", 1)
    assert len(next(record.batches(network, spikes))) == 1


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*/experiment.yaml")), ids=lambda p: p.parent.name
)
def test_every_example_can_be_trained(path, chip):
    """The published data sets are not at hand, but their networks are made, and refused or not."""
    from nmtool.config import load_experiment
    from nmtool.training.build import build_network
    from nmtool.training.trainer import prepare

    config = load_experiment(path)
    model, _ = prepare(config, build_network(config, path.parent), chip)
    assert model.trained
