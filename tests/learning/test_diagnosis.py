"""What is wrong with a target: each kind of fault is told from the others, and a healthy one is."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.backends.emulator import EmulatorBackend
from nmtool.backends.faults import draw
from nmtool.chip import load_chip, load_hardware
from nmtool.compiler import Site, compile_program
from nmtool.errors import AlignmentError, BoardError, FitError
from nmtool.faultmodel import Faults
from nmtool.learning.board import Board, Probes
from nmtool.learning.diagnosis import Finding, diagnose
from nmtool.learning.evidence import Evidence, Hypotheses, Tally
from nmtool.learning.patterns import drawn_weights, probe_pattern
from nmtool.measure.equations import Registers, replay
from nmtool.network import PeriodicReset
from nmtool.spikes import SpikeTrain

SEED = 500


@pytest.fixture(scope="module")
def example():
    folder = Path(__file__).parents[2] / "examples" / "in_the_loop"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("diagnosis")


def kinds():
    return [
        *("healthy", "dead", "stuck", "dead_core", "threshold", "decay_u", "decay_v"),
        *("weight_bit", "stale_write", "stale_write (all)", "swapped", "lost_spike", "late_spike"),
        *("spike_loss", "delay", "input_offset", "output_offset", "reset_phase", "missing_reset"),
        "truncated",
    ]


@pytest.mark.parametrize("kind", kinds())
def test_each_fault_is_found_and_nothing_else(example, kind):
    trial = example.try_one(kind, SEED)
    assert trial.right, trial.text


def test_all_kinds_are_tried(example):
    assert {*kinds(), "several"} == {*example.KINDS}


def test_dead_and_stuck_are_told_among_other_faults(example):
    trial = example.try_one("several", SEED)
    found = [hit for kind, hit in trial.found if kind.split()[0] in ("dead", "stuck")]
    assert len(found) == 8
    assert sum(found) >= 7, trial.text
    assert all(right for *_, right in trial.reported), trial.text


def test_a_score_can_fail(example):
    """Negative control: a fault that was not put in is a wrong report, one not found is missed."""
    trial = example.Trial("dead", 0, (("dead", False),), (("stuck", 1.0, False),), "")
    assert not trial.right
    assert not example.holds([trial])
    (dead, stuck) = example.scores([trial])
    assert (dead.recall, stuck.precision) == (0, 0)


def test_weights_are_put_back_whatever_happens(example):
    program = example.make_program(SEED)
    with EmulatorBackend().open(program) as session:
        board = Board(session)
        diagnose(board)
        assert session.program.fingerprint == program.fingerprint
        assert board.spent.runs == 3
        assert board.spent.writes > 0
        run, calls = session.run, []

        def fail(*arguments, **keywords):
            calls.append(1)
            if len(calls) == 2:
                raise BoardError("gone")
            return run(*arguments, **keywords)

        session.run = fail
        with pytest.raises(BoardError, match="gone"):
            diagnose(Board(session))
        assert session.program.fingerprint == program.fingerprint


def test_masks_cores_and_words(example):
    program = example.make_program(SEED)
    faults = [
        {"kind": "dead_core", "core": 1},
        {"kind": "stuck", "population": "output", "neuron": 2},
    ]
    found = example.look_over(program, {"injected": faults})
    assert not found.healthy["hidden"][16:].any()
    assert found.healthy["hidden"][:16].all()
    assert np.flatnonzero(found.healthy["output"] == 0).tolist() == [2]
    assert found.failed_cores == ((0, 1),)
    assert found.counts() == {"hidden": [16, 0], "output": [0, 1]}
    assert "-s 'hw.excluded_cores=[[0, 1]]'" in found.text()
    assert found.as_json()["failed_cores"] == [[0, 1]]


@pytest.mark.parametrize(("seed", "neuron"), [(0, 11), (1, 26)])
def test_a_neuron_that_never_answers_is_never_healthy(example, seed, neuron):
    """Too few spikes were due among many lost ones to tell that it is dead: it is silent."""
    program = example.make_program(seed)
    drawn = {"dead_neurons": 0.1, "stuck_neurons": 0.05, "weight_bit_flips": 5e-3}
    faults = {"seed": seed, "spike_loss": 0.08, **drawn}
    found = example.look_over(program, faults)
    dead = draw(program, Faults(**faults)).dead
    assert neuron in dead["hidden"]
    named = {n for f in found.findings if f.population == "hidden" for n in f.neurons}
    assert neuron not in named, "negative control: no finding names it"
    assert found.silent == {"hidden": (neuron,)}
    for name, neurons in dead.items():
        assert not found.healthy[name][list(neurons)].any()
    listed = sum(f.kind == "dead" for f in found.findings if f.population == "hidden")
    assert found.counts()["hidden"][0] == listed + 1
    assert f"silent hidden neuron {neuron}: never spiked though spikes were due" in found.text()
    assert found.as_json()["silent"] == {"hidden": [neuron]}


def test_a_layer_on_failed_cores_alone_stops_with_where_to_go(example):
    program = example.make_program(SEED)
    cores = [{"kind": "dead_core", "core": core} for core in range(4)]
    found = example.look_over(program, {"injected": cores})
    with pytest.raises(AlignmentError, match=r"no spikes to align.*all their cores have failed"):
        found.checked()
    details = {"chip": 0, "core": 3, "held": {}}
    known = replace(found, findings=(Finding("dead_core", 1.0, "", "", (), details),))
    with pytest.raises(AlignmentError, match=r"; compile around.*excluded_cores=\[\[0, 3\]\]'$"):
        known.checked()


def test_what_is_not_probed_is_not_judged(example):
    program = example.make_program(SEED)
    fault = {"kind": "dead", "population": "hidden", "neuron": 1}
    with EmulatorBackend(Faults(injected=[fault])).open(program) as session:
        found = diagnose(Board(session, Probes(("output",))))
    assert not [f for f in found.findings if f.population == "hidden"]
    assert len(found.untested["hidden"]) == 32


def test_a_program_placed_around_a_failed_core_is_healthy_on_it(example):
    """The dead core is found, excluded, and the program compiled again gives the right spikes."""
    program = example.make_program(SEED)
    hardware = load_hardware("emulator").model_copy(
        update={"faults": Faults(injected=[{"kind": "dead_core", "core": 1}])}
    )
    with open_session(program, hardware) as session:
        failed = diagnose(Board(session)).failed_cores
    around = hardware.model_copy(update={"excluded_cores": failed})
    chip = load_chip("loihi2")
    with pytest.raises(FitError, match="core 1, which the target excludes"):
        open_session(program, around)
    network = program.network
    site = Site.of(around, network.populations)
    again = compile_program(network, chip, n_steps=program.reset.n_steps, site=site)
    assert {(s.chip, s.core) for s in again.placement}.isdisjoint(failed)
    inputs = SpikeTrain.from_raster(probe_pattern(again, 3))
    with open_session(again, around) as session, EmulatorBackend().open(program) as healthy:
        run, expected = (s.run(inputs, probe="spikes") for s in (session, healthy))
        assert run.spikes == expected.spikes
        assert not diagnose(Board(session)).findings
    plain = compile_program(network, chip, n_steps=program.reset.n_steps)
    assert failed[0] in {(s.chip, s.core) for s in plain.placement}, "negative control"


def test_excluded_cores_leave_less_room(example):
    network, chip = example.make_program(SEED).network, load_chip("loihi2")
    small = replace(chip, cores=3)
    site = Site(excluded=(1, (0, 2)))
    assert site.room(small) == 1
    placed = compile_program(network, small, site=site).placement
    assert {s.core for s in placed} == {0}, "both layers share the only core"
    with pytest.raises(FitError, match="NM-FIT"):
        compile_program(network, small, site=Site(excluded=(0, 1, 2)))


@pytest.mark.parametrize("seed", range(4))
def test_the_compiled_sweep_is_the_equations(example, seed):
    """One neuron under many hypotheses, against numpy's replay; biases and refractory steps too."""
    rng = np.random.default_rng(seed)
    population = replace(
        example.make_program(SEED).network.populations["hidden"],
        refractory_delay=1 + seed,
        reset=PeriodicReset(7, 3) if seed % 2 else None,
    )
    shape = (3, 40, 1)
    arrived = rng.integers(-200, 260, shape) * (1 << (4 * seed))
    bias, found = rng.integers(-500, 900, shape), rng.random(shape) < 0.2
    known, run = rng.random(shape) < 0.9, np.array([0, 1, 1])
    evidence = Evidence(
        example.make_program(SEED), "hidden", population, {}, arrived, bias, found, known, run, ()
    )
    values = rng.integers(0, 4095, 5)
    way, parts = np.array([0, -1, 1, 0, 1]), rng.integers(0, 2, (2, 3, 40))
    change = rng.integers(-90, 90, (5, 2))
    registers = {"decay_u": values, "decay_v": values[::-1].copy(), "threshold": values // 8}
    tally = evidence.sweep(0, Hypotheses(way, change, parts, registers))
    for h in range(5):
        more = parts[way[h]] * change[h, run][:, None] if way[h] >= 0 else 0
        held = Registers(*(int(registers[k][h]) for k in ("decay_u", "decay_v", "threshold")))
        every = arrived + np.broadcast_to(np.asarray(more)[..., None], shape)
        spikes = replay(population, every, bias, held, measured=found & known).spikes
        one = Tally.of(spikes, found, known).pooled()
        for part in ("hits", "missing", "extra", "quiet"):
            assert getattr(one, part) == getattr(tally, part)[h], part


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_random_weights_fit_their_format_and_make_neurons_spike(small_program, bits):
    program = small_program(1, n=(16, 14, 10), bias=False, mean=0.1)
    program = compile_program(program.network, load_chip("loihi2"), bits, 24)
    inputs = probe_pattern(program, 0).swapaxes(1, 2).astype(np.int64)
    weights, sent = drawn_weights(program, {"input": inputs}, 0, 0)
    program.with_weights(weights)  # refuses what the formats cannot hold
    for name in program.order:
        assert sent[name].any(axis=(0, 1)).mean() > 0.8
