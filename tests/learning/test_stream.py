"""Adapting to a stream: what it gains under drift, what it leaves alone, what it keeps to."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.chip import load_chip, load_hardware
from nmtool.compiler import compile_program
from nmtool.config import Digits, Experiment, FadeDrift, JapaneseVowels, RotateDrift
from nmtool.data import load_split, spikes_of
from nmtool.data.drift import drifting, gains, rotated
from nmtool.errors import ConfigError, UnsupportedError
from nmtool.learning.stream import Chunks, Gate, Incoming, Learner, Stream, unit_steps
from nmtool.measure import predict
from nmtool.quantization import check_mantissa
from nmtool.spikes import SpikeTrain

pytest.importorskip("torch")

CHIP = load_chip("loihi2")
EMULATOR = load_hardware("emulator")
ROTATE = {"kind": "rotate", "to": 45.0}


def settings(writes=None, board_time=None, **stream):
    return Experiment.model_validate(
        {
            "schema": "nmtool.experiment/v1",
            "name": "small",
            "seed": 5,
            "data": {
                "name": "digits",
                "test": 600,
                "validation": 60,
                "encoding": {"kind": "rate", "steps": 12},
            },
            "network": {
                "neuron": {
                    "kind": "cuba",
                    "threshold": 1.25,
                    "current_decay": 0.25,
                    "voltage_decay": 0.03,
                },
                "layers": [{"dense": 48, "name": "hidden"}, {"dense": 40, "name": "output"}],
                "readout": {"neurons_per_class": 4},
            },
            "train": {
                "epochs": 6,
                "batch": 32,
                "optimizer": {"name": "adam", "lr": 4e-3},
                "loss": {"kind": "count_cross_entropy", "scale": 0.1},
            },
            "finetune": {
                "scale": 0.3,
                "writes": writes,
                "board_time": board_time,
                "stream": {"lr": 0.01, **stream},
            },
        }
    )


@pytest.fixture(scope="module")
def program():
    """Digits as they stand, trained: what is deployed before anything drifts."""
    from nmtool.training.build import build_network
    from nmtool.training.trainer import train

    experiment = settings()
    network, _ = train(experiment, build_network(experiment, None), CHIP)
    return compile_program(network, CHIP, 8, 12)


def run(program, learns=True, hardware=EMULATOR, **stream):
    experiment = settings(**stream)
    learner = Learner.of(experiment, program, CHIP) if learns else None
    with open_session(program, hardware) as session:
        return Stream(experiment, session, Incoming.of(experiment), learner).run()


def late(course):
    """Accuracy in the last third of the stream."""
    return np.mean(course.correct[-len(course.correct) // 3 :])


@pytest.fixture(scope="module")
def frozen(program):
    return run(program, learns=False, drift=ROTATE)


def test_adapting_beats_the_frozen_network_and_the_gate_saves_writes(program, frozen):
    """Measured in the last third: 0.31 frozen, 0.53 with the gate."""
    gated = run(program, drift=ROTATE)
    every = run(program, drift=ROTATE, updates=1.0)
    print([(late(c), c.accuracy, c.updates, c.spent.writes) for c in (frozen, gated, every)])
    assert late(gated) > late(frozen) + 0.1
    assert late(every) > late(frozen) + 0.1
    assert (frozen.updates, frozen.spent.writes) == (0, 0)
    assert every.updates == 600
    assert gated.updates < 0.5 * every.updates
    assert gated.spent.writes < every.spent.writes
    assert gated.last.fingerprint != program.fingerprint == frozen.last.fingerprint
    for name, projection in gated.last.network.projections.items():
        deployed = program.network.projections[name]
        assert projection.format == deployed.format
        check_mantissa(name, projection.weight_mantissa, projection.format)
        changed = bool((projection.weight_mantissa != deployed.weight_mantissa).any())
        assert changed == (name == "output"), "the last layer learns alone"


def test_a_learner_with_the_wrong_sign_loses(program, frozen):
    """The control: what is measured above can fail."""
    experiment = settings(drift=ROTATE)
    learner = Learner.of(experiment, program, CHIP)
    learner.units = {name: -unit for name, unit in learner.units.items()}
    with open_session(program, EMULATOR) as session:
        wrong = Stream(experiment, session, Incoming.of(experiment), learner).run()
    assert late(wrong) < late(frozen)


def test_without_drift_adapting_does_no_harm(program):
    still, adapting = run(program, learns=False, samples=300), run(program, samples=300)
    print(still.accuracy, adapting.accuracy)
    assert adapting.accuracy > still.accuracy - 0.02


@pytest.mark.parametrize("backend", ["emulator", "reference"])
def test_a_frozen_stream_with_resets_is_a_run(program, backend):
    experiment = settings(samples=40)
    course = run(program, learns=False, hardware=load_hardware(backend), samples=40)
    incoming = Incoming.of(experiment)
    with open_session(program, EMULATOR) as session:
        recording = session.run(SpikeTrain.from_raster(incoming.raster))
    found = predict(recording.spikes["output"], experiment.network.readout)
    assert course.correct == (found == incoming.labels).tolist()


def test_a_pause_keeps_the_states_and_lets_spikes_in_flight_arrive(program):
    experiment = settings(samples=3, pause=4)
    incoming = Incoming.of(experiment)
    assert incoming.raster.shape == (3, 64, 16)
    assert not incoming.raster[:, :, 12:].any()
    with open_session(program, EMULATOR) as session:
        chunks = Chunks(session, kept=True)
        parts = [_voltages(chunks, incoming.raster[k : k + 1]) for k in range(3)]
    whole = np.concatenate([*incoming.raster], axis=1)[None]
    with open_session(program, EMULATOR) as session:
        np.testing.assert_array_equal(np.concatenate(parts, axis=2), _voltages(session, whole))
    with open_session(program, EMULATOR) as session:
        chunks = Chunks(session, kept=False)
        cleared = [_voltages(chunks, incoming.raster[k : k + 1]) for k in range(3)]
    assert (cleared[1] != parts[1]).any()
    np.testing.assert_array_equal(cleared[0], parts[0])


def _voltages(session, raster):
    return session.run(SpikeTrain.from_raster(raster), probe="voltage:output").voltage["output"]


def test_weights_that_are_written_act_on_the_next_sample(program):
    with open_session(program, EMULATOR) as session:
        chunks = Chunks(session, kept=False)
        raster = Incoming.of(settings(samples=1)).raster
        before = _voltages(chunks, raster)
        mantissa = program.network.projections["output"].weight_mantissa
        assert chunks.write_weights("output", np.zeros_like(mantissa)) == (mantissa != 0).sum()
        assert chunks.program.fingerprint == session.program.fingerprint
        assert before.any()
        assert not _voltages(chunks, raster).any()


def test_a_budget_of_writes_ends_learning_and_is_kept_to(program):
    free = run(program, samples=60, drift=ROTATE)
    limit = free.spent.writes // 2
    course = run(program, samples=60, drift=ROTATE, writes=limit)
    assert 0 < course.spent.writes <= limit
    assert "the writes are spent" in course.ended
    assert len(course.correct) == 60
    end = int(course.ended.split(":")[0].removeprefix("sample "))
    assert course.written[:end] == free.written[:end]
    assert set(course.written[end:]) == {-1}
    none = run(program, samples=60, drift=ROTATE, writes=1)
    assert (none.spent.writes, none.last.fingerprint) == (0, program.fingerprint)


def test_a_budget_of_time_ends_the_stream(program):
    course = run(program, samples=60, board_time="0.000001ms")
    assert len(course.correct) == 1
    assert "the board time is spent" in course.ended


def test_nothing_is_learned_from_samples_whose_label_is_unknown(program):
    course = run(program, samples=80, drift=ROTATE, updates=1.0, labelled=0.25)
    known = Incoming.of(settings(samples=80, labelled=0.25)).known
    assert 10 < known.sum() < 30
    np.testing.assert_array_equal(np.array(course.written) >= 0, known)


def test_hidden_layers_learn_where_asked(program):
    course = run(program, samples=60, drift=ROTATE, layers="all", hidden_lr=0.02)
    for name, projection in course.last.network.projections.items():
        deployed = program.network.projections[name].weight_mantissa
        assert (projection.weight_mantissa != deployed).any(), name


def test_the_unit_of_the_rate_does_not_depend_on_the_scale_of_the_gradient(program):
    experiment = settings()
    learner = Learner.of(experiment, program, CHIP)

    class Louder:
        def gradients(self, twin, batch, learning):
            found = learner.rule.gradients(twin, batch, learning)
            return replace(found, weights={n: 7 * g for n, g in found.weights.items()})

    louder = unit_steps(learner.twin, Louder(), experiment, learner.rates)
    assert louder["output"] == pytest.approx(7 * learner.units["output"])
    assert learner.units["output"] > 0


def test_the_unit_is_one_of_samples_as_they_run(program):
    """With their pause: spikes that arrive in it are a part of the gradient."""
    reset, paused = (Learner.of(settings(pause=p), program, CHIP).units for p in (None, 30))
    assert paused["output"] > 1.5 * reset["output"]


def test_the_gate_holds_its_rate():
    rng = np.random.default_rng(0)
    gate = Gate(rate=0.2, gain=0.02, floor=0.0, threshold=0.0)
    passed = np.array([gate.passes(error) for error in rng.random(4000)])
    assert passed[:20].mean() > 0.5, "open at first"
    assert passed[500:].mean() == pytest.approx(0.2, abs=0.01)
    assert gate.threshold == pytest.approx(0.8, abs=0.15)


def test_the_gate_stays_shut_where_nothing_is_wrong_and_open_where_it_is_none():
    gate = Gate(rate=0.2, gain=0.02, floor=0.1, threshold=0.1)
    assert not any(gate.passes(0.05) for _ in range(100))
    assert gate.threshold == 0.1
    none = Gate.of(settings(updates=1.0).finetune.stream)
    assert none.passes(0.0)
    assert none.threshold == 0


def test_a_rotation_grows_from_nothing_and_keeps_the_range():
    images = load_split(settings().data, "test").values[:5]
    turned = rotated(images, (8, 8), np.array([0.0, 90.0, 180.0, 30.0, 60.0]))
    np.testing.assert_allclose(turned[0], images[0], atol=1e-12)
    np.testing.assert_allclose(turned[1].reshape(8, 8), np.rot90(images[1].reshape(8, 8)))
    np.testing.assert_allclose(turned[2], images[2][::-1], atol=1e-12)
    assert turned.min() >= 0
    assert turned.max() <= 1


def test_channels_fade_evenly():
    drift = FadeDrift(kind="fade", to=0.2, channels=0.25)
    found = gains(11, 12, drift, np.random.default_rng(0))
    fading = found[-1] < 1
    assert fading.sum() == 3
    np.testing.assert_allclose(found[:, fading][:, 0], np.linspace(1, 0.2, 11))
    assert (found[:, ~fading] == 1).all()


def test_spikes_of_speech_fade_and_begin_as_they_are():
    data = JapaneseVowels.model_validate(
        {"name": "japanese_vowels", "encoding": {"kind": "delta", "steps": 120}}
    )
    index = np.arange(40)
    drift = FadeDrift(kind="fade", to=0.0)
    spikes, labels = drifting(data, "test", index, drift, np.random.default_rng(0))
    samples = load_split(data, "test").pick(index)
    plain = spikes_of(samples, data).counts().sum(axis=1)
    found = spikes.counts().sum(axis=1)
    np.testing.assert_array_equal(labels, samples.labels)
    assert found[0] == plain[0]
    assert found[-1] == 0
    assert found[20:].sum() < 0.5 * plain[20:].sum()


def test_a_drift_of_what_is_not_there_is_refused():
    data = JapaneseVowels.model_validate(
        {"name": "japanese_vowels", "encoding": {"kind": "delta", "steps": 120}}
    )
    with pytest.raises(ConfigError, match="found rotate with the data set japanese_vowels"):
        drifting(data, "test", np.arange(3), RotateDrift(kind="rotate"), np.random.default_rng(0))


def test_a_rule_without_a_gradient_of_the_weights_themselves_is_refused(program):
    experiment = settings()
    learner = Learner.of(experiment, program, CHIP)

    class Pooled:
        def gradients(self, twin, batch, learning):
            found = learner.rule.gradients(twin, batch, learning)
            return replace(found, weights={n: g[:, ::2] for n, g in found.weights.items()})

    with pytest.raises(UnsupportedError, match="projection output: found a gradient of shape"):
        unit_steps(learner.twin, Pooled(), experiment, learner.rates)


def test_without_a_drift_the_samples_are_the_data_sets():
    experiment = settings(samples=700)
    assert isinstance(experiment.data, Digits)
    incoming = Incoming.of(experiment)
    test = load_split(experiment.data, "test")
    assert len(incoming) == 700
    assert sorted(incoming.labels[:600]) == sorted(test.labels), "each once, then some again"
    assert not np.array_equal(incoming.labels[:100], incoming.labels[600:])
