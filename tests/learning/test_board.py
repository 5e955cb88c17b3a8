"""What a target answers: partial, short and missing recordings are unknown, garbage is refused."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.emulator import EmulatorBackend
from nmtool.config import Finetune, SlayerSurrogate
from nmtool.errors import BoardError, ConfigError
from nmtool.faultmodel import Faults
from nmtool.learning.board import Board, Probes, probed_share
from nmtool.learning.patterns import probe_pattern
from nmtool.learning.twin import Twin
from nmtool.spikes import SpikeTrain


@pytest.fixture(scope="module")
def program(small_program):
    return small_program(0, n=(16, 14, 10), bias=False, mean=0.1)


class Changed:
    """A session whose recordings are changed on their way back."""

    def __init__(self, session, change):
        self.session, self.change = session, change

    @property
    def program(self):
        return self.session.program

    def run(self, *arguments, **keywords):
        return self.change(self.session.run(*arguments, **keywords))


def run(program, config=None, change=None, inputs=None, **faults):
    inputs = probe_pattern(program, 0) if inputs is None else inputs
    probes = Probes.of(program, Finetune(**config), 7) if config else None
    with EmulatorBackend(Faults(**faults)).open(program) as session:
        return Board(Changed(session, change) if change else session, probes).run(inputs)


def test_everything_is_measured_by_default(program):
    measured = run(program)
    assert set(measured) == {"hidden", "output"}
    assert probed_share(program, measured) == 1
    assert run(program, {})["hidden"].known.all()


def test_outputs_only(program):
    measured = run(program, {"probes": "outputs"})
    assert set(measured) == {"output"}
    assert probed_share(program, measured) == pytest.approx(10 / 24)
    assert set(run(program, {"probes": ["hidden"]})) == {"hidden", "output"}


def test_a_fraction_of_the_hidden_neurons(program):
    measured = run(program, {"probed": 0.5})
    known = np.broadcast_to(measured["hidden"].known, measured["hidden"].spikes.shape)
    each = known.all(axis=(0, 2))
    assert each.sum() == 7
    assert known.any(axis=(0, 2)).sum() == 7
    assert not measured["hidden"].spikes[:, ~each].any()
    assert measured["output"].known.all(), "accuracy needs every output"
    assert probed_share(program, measured) == pytest.approx(17 / 24)
    again = run(program, {"probed": 0.5})["hidden"].known
    np.testing.assert_array_equal(again, measured["hidden"].known)


def test_what_was_not_probed_is_the_models_in_the_twin(program, chip):
    """Dead neurons that nobody sees stay as the model has them; those that are seen are dead."""
    dead = [{"kind": "dead", "population": "hidden", "neuron": n} for n in range(14)]
    measured = run(program, {"probed": 0.5}, injected=dead)
    twin = Twin(program, chip, SlayerSurrogate())
    inputs = probe_pattern(program, 0)
    free = twin.replay(inputs, {})["hidden"].spikes
    done = twin.replay(inputs, measured)["hidden"].spikes
    seen = measured["hidden"].known[0, :, 0]
    assert free[:, seen].any()
    assert not done[:, seen].any()
    np.testing.assert_array_equal(done[:, ~seen], free[:, ~seen])


def test_recordings_that_end_early_are_unknown_behind_their_end(program):
    measured = run(program, injected=[{"kind": "truncated", "steps": 10}])
    for m in measured.values():
        assert m.known[..., :10].all()
        assert not m.known[..., 10:].any()
        assert m.spikes.shape[2] == 24
    assert probed_share(program, measured) == pytest.approx(10 / 24)


def test_a_population_that_does_not_come_back_is_left_out(program):
    def lose(name):
        return lambda r: replace(r, spikes={n: t for n, t in r.spikes.items() if n != name})

    assert set(run(program, change=lose("hidden"))) == {"output"}
    with pytest.raises(BoardError, match="no spikes of output, allowed outputs that are measured"):
        run(program, change=lose("output"))


def test_voltages_come_where_they_are_asked_for(program):
    measured = run(program, {"probe_voltage": True})
    assert measured["hidden"].voltage.shape == measured["hidden"].spikes.shape
    assert not measured["hidden"].voltage[measured["hidden"].spikes].any()
    assert run(program, {})["hidden"].voltage is None


def with_hidden(change):
    return lambda r: replace(r, spikes={**r.spikes, "hidden": change(r.spikes["hidden"].batch())})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_hidden(lambda s: SpikeTrain.from_raster(s[1:])), "samples, 14 neurons, 24 steps"),
        (with_hidden(lambda s: SpikeTrain.from_raster(s[:, 1:])), "13 neurons, 24 steps"),
        (with_hidden(lambda s: SpikeTrain.from_raster(s[..., 1:])), "14 neurons, 23 steps"),
        (with_hidden(lambda s: SpikeTrain.from_raster(3 * s.astype(int), True)), "graded spikes"),
        (lambda r: replace(r, n_steps=25), "25 steps of each sample, allowed up to 24"),
        (lambda r: replace(r, n_steps=0), "no step"),
        (lambda r: replace(r, fingerprint="0" * 16), "the program 0000000000000000"),
        (
            lambda r: replace(r, spikes={**r.spikes, "other": r.spikes["output"]}),
            "population other",
        ),
        (lambda r: replace(r, voltage={"hidden": np.zeros((2, 2))}), r"the shape \(2, 2\)"),
        (lambda r: replace(r, voltage={"output": np.full((43, 10, 24), 1 << 40)}), "voltages of"),
    ],
)
def test_garbage_is_refused(program, change, words):
    with pytest.raises(BoardError, match=words) as caught:
        run(program, change=change)
    assert caught.value.exit_code == 8


def test_unknown_populations_are_refused(program):
    with pytest.raises(ConfigError, match=r"finetune\.probes: found the population 'hiden'"):
        Probes.of(program, Finetune(probes=["hiden"]), 0)


@pytest.fixture(scope="module")
def chip():
    from nmtool.chip import load_chip

    return load_chip("loihi2")
