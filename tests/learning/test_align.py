"""Where recordings lie: found by correlation, bit for bit where the target is healthy."""

import numpy as np
import pytest

from nmtool.backends.emulator import EmulatorBackend
from nmtool.errors import AlignmentError
from nmtool.faultmodel import Faults
from nmtool.learning.align import WINDOW, _best, align, shifted, simulated
from nmtool.learning.board import Board
from nmtool.learning.diagnosis import probe
from nmtool.learning.patterns import probe_pattern
from nmtool.training.injection import Measured


@pytest.fixture(scope="module")
def program(small_program):
    return small_program(0, n=(16, 14, 10), bias=False, mean=0.1)


def recorded(program, seed=0, **faults):
    inputs = probe_pattern(program, seed)
    with EmulatorBackend(Faults(**faults)).open(program) as session:
        return inputs, Board(session).run(inputs)


def test_a_healthy_target_is_equal_to_the_simulation_bit_for_bit(program):
    inputs, measured = recorded(program)
    found = align(program, inputs, measured)
    assert found.exact
    assert found.offsets == {"hidden": 0, "output": 0}
    assert found.checked() is found
    assert "equal to the simulation bit for bit" in found.text()


@pytest.mark.parametrize("by", [1, 3])
@pytest.mark.parametrize("kind", ["input_offset", "output_offset"])
def test_an_offset_is_found_and_taken_out(program, kind, by):
    inputs, measured = recorded(program, injected=[{"kind": kind, "by": by}])
    found = align(program, inputs, measured)
    assert found.exact
    assert found.offsets == {"hidden": by, "output": by}
    sent = simulated(program, inputs)
    for name, m in found.apply(measured).items():
        assert not m.known[..., -by:].any(), "what fell off the end is not known"
        assert m.known[..., :-by].all()
        expected = sent[name].swapaxes(1, 2).astype(bool)
        np.testing.assert_array_equal(m.spikes[..., :-by], expected[..., :-by])
    assert any((m.spikes != sent[n].swapaxes(1, 2)).any() for n, m in measured.items())


def test_recordings_that_are_early_are_found(program):
    inputs, measured = recorded(program)
    early = {name: shifted(m, 2) for name, m in measured.items()}
    found = align(program, inputs, early)
    assert set(found.offsets.values()) == {-2}
    assert found.exact


def test_one_slow_projection_moves_only_what_is_behind_it(program):
    inputs, measured = recorded(program, injected=[{"kind": "delay", "projection": "b", "by": 2}])
    assert align(program, inputs, measured).offsets == {"hidden": 0, "output": 2}


@pytest.mark.parametrize("seed", [3, 4])
def test_offsets_are_found_through_other_faults(program, seed):
    broken = {"seed": seed, "dead_neurons": 0.15, "stuck_neurons": 0.1, "spike_loss": 0.02}
    fault = {"kind": "output_offset", "by": 1}
    inputs, measured = recorded(program, injected=[fault], **broken)
    found = align(program, inputs, measured)
    assert found.offsets == {"hidden": 1, "output": 1}
    assert not found.exact


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_thresholds_that_differ_do_not_hide_an_offset(small_program, seed, monkeypatch):
    program = small_program(0, n=(16, 14, 10), bias=False, mean=0.3)
    inputs = probe_pattern(program, seed)
    late = [{"kind": "output_offset", "by": 1}]
    faults = Faults(seed=seed, threshold_spread=0.8, spike_loss=0.3, injected=late)
    with EmulatorBackend(faults).open(program) as session:
        measured = Board(session).run(inputs)
    assert align(program, inputs, measured).offsets == {"hidden": 1, "output": 1}
    monkeypatch.setattr("nmtool.learning.align.SCALES", (1.0,))
    with pytest.raises(AlignmentError):
        align(program, inputs, measured)


@pytest.mark.parametrize(("spike_loss", "runs"), [(0.0, 1), (0.6, 2), (0.9, 3)])
def test_more_samples_are_run_where_no_offset_is_clear(program, spike_loss, runs):
    with EmulatorBackend(Faults(spike_loss=spike_loss, seed=1)).open(program) as session:
        board = Board(session)
        if spike_loss < 0.9:
            inputs, records, found = probe(board, 1)
            assert found.offsets == {"hidden": 0, "output": 0}
            assert len(inputs) == len(records["hidden"].spikes)
            assert len(inputs) == len(probe_pattern(program, 1)) * 4 ** (runs - 1)
        else:
            with pytest.raises(AlignmentError, match="5 standard errors"):
                probe(board, 1)
        assert board.spent.runs == runs


def test_noise_is_not_aligned(program):
    """Random spikes fit nowhere: nothing is learned from them."""
    inputs, measured = recorded(program)
    rng = np.random.default_rng(0)
    noise = {name: Measured.whole(rng.random(m.spikes.shape) < 0.2) for name, m in measured.items()}
    with pytest.raises(AlignmentError, match=r"alignment of hidden: .* better than all") as caught:
        align(program, inputs, noise)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("seed", range(3))
def test_outputs_alone_are_aligned_right_or_not_at_all(program, seed):
    """What fails in a population that was not measured makes the offset of the next ambiguous."""
    broken = {"seed": seed, "dead_neurons": 0.15, "stuck_neurons": 0.1}
    inputs, measured = recorded(program, injected=[{"kind": "output_offset", "by": 1}], **broken)
    assert align(program, inputs, measured).offsets["output"] == 1
    alone = {"output": measured["output"]}
    with pytest.raises(AlignmentError, match=r"Not all of hidden was measured.*probes=all"):
        align(program, inputs, alone)


def test_outputs_alone_suffice_where_a_peak_is_unmistakable(program):
    fault = {"kind": "output_offset", "by": 2}
    inputs, measured = recorded(program, injected=[fault], seed=1, spike_loss=0.002)
    found = align(program, inputs, {"output": measured["output"]})
    assert not found.exact
    assert found.offsets == {"output": 2}


def test_samples_that_agree_are_not_enough_where_a_source_was_not_measured():
    """One neuron that a failed source makes late decides nothing."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-4, (2, 32, 8))
    late = np.eye(8)[0] * 0.01
    shares = {0: noise[0], 1: noise[1] + late}
    exact = dict.fromkeys(shares, False)
    assert _best("output", shares, exact) == 1
    with pytest.raises(AlignmentError, match="hidden was measured"):
        _best("output", shares, exact, ("hidden",))


@pytest.mark.parametrize(
    ("scores", "exact", "best"),
    [
        ({0: 0.9, 4: 0.9, 1: 0.1}, {0: True, 4: False, 1: False}, 0),
        ({0: 0.9, 4: 0.9, 1: 0.1}, {0: True, 4: True, 1: False}, None),
        ({0: 0.9, 4: 0.9, 1: 0.1}, {}, None),
        ({0: 0.6, 4: 0.3, 1: 0.1}, {}, 0),
    ],
)
def test_an_offset_must_stand_out(scores, exact, best):
    """Spikes that look the same four steps later cannot be told from late ones."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.002, (3, 32))
    scores = {
        o: (s / 32 + n - n.mean())[:, None] for (o, s), n in zip(scores.items(), noise, strict=True)
    }
    exact = {0: False, 4: False, 1: False, **exact}
    if best is None:
        with pytest.raises(AlignmentError, match=r"\+0 \(0.90\).*better than all"):
            _best("hidden", scores, exact)
    else:
        assert _best("hidden", scores, exact) == best


def test_a_silent_population_takes_the_offset_of_the_others(program):
    inputs, measured = recorded(program, injected=[{"kind": "output_offset", "by": 1}])
    quiet = Measured.whole(np.zeros_like(measured["hidden"].spikes))
    found = align(program, inputs, {**measured, "hidden": quiet})
    assert found.silent[0] == "hidden"
    if "output" in found.offsets:
        assert found.checked().offsets == {"hidden": 1, "output": 1}
    none = {name: Measured.whole(np.zeros_like(m.spikes)) for name, m in measured.items()}
    with pytest.raises(AlignmentError, match="hidden, output: found no spikes to align"):
        align(program, inputs, none).checked()


def test_shifting_keeps_values_and_forgets_the_rest():
    spikes = np.random.default_rng(0).random((2, 3, 9)) < 0.5
    measured = Measured(spikes, np.ones((1, 1, 1), bool), spikes.astype(np.int64))
    for offset in WINDOW:
        moved = shifted(measured, offset)
        for t in range(9):
            inside = 0 <= t + offset < 9
            known = np.broadcast_to(moved.known, spikes.shape)[..., t]
            assert known.all() if inside else not known.any()
            if inside:
                np.testing.assert_array_equal(moved.spikes[..., t], spikes[..., t + offset])
                np.testing.assert_array_equal(moved.voltage[..., t], spikes[..., t + offset])
