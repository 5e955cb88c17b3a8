"""The first difference of two runs, its place and its cause, on programs with one change."""

from dataclasses import replace

import numpy as np
import pytest
import regression_networks as nets

from nmtool.backends import open_session
from nmtool.backends.faults import read_back
from nmtool.chip import load_hardware
from nmtool.errors import ConfigError
from nmtool.faultmodel import Faults
from nmtool.measure.equations import all_arriving, measured, messages, replay
from nmtool.regression.bisect import bisect, cut_recording, smallest_input
from nmtool.spikes import SpikeTrain

PROGRAMS = {kind: nets.make_program(kind) for kind in nets.KINDS}
RESETTING = nets.make_program("dense", nets.EVERY_FOUR)


def flipped(program, projection, index, bit):
    p = program.network.projections[projection]
    mantissa = p.weight_mantissa.copy()
    own = mantissa.ravel()[index : index + 1]
    mantissa.flat[index] = read_back(own, np.array([1 << bit]), p.format)[0]
    return program.with_weights({projection: mantissa})


def departed(program, broken, probe=nets.ALL, **options):
    """Bisects a healthy run and that of a broken program."""
    inputs = nets.make_inputs(program)
    healthy = nets.run(program, inputs)
    return bisect(
        program, inputs, healthy, nets.as_of(nets.run(broken, inputs, probe), program), **options
    )


@pytest.mark.parametrize("kind", nets.KINDS)
@pytest.mark.parametrize("probe", ["spikes", nets.ALL])
def test_equal_runs_have_no_difference(kind, probe):
    assert departed(PROGRAMS[kind], PROGRAMS[kind], probe) is None


@pytest.mark.parametrize("kind", nets.KINDS)
def test_the_equations_replay_every_population(kind):
    """Fed with the measured spikes of its sources, a population does what was measured of it."""
    program = PROGRAMS[kind]
    inputs = nets.make_inputs(program)
    healthy = nets.run(program, inputs)
    every = np.arange(4)
    sent = messages(inputs, healthy, every)
    for name, population in program.network.populations.items():
        trace = replay(population, all_arriving(program, name, sent), population.bias)
        assert not trace.differs(measured(healthy, name, every), masked=False).any()


CHANGES = {
    "threshold": ("h", "threshold offset", {"populations": {"h": {"threshold": 81}}}),
    "decay_u": ("h", "decay", {"populations": {"h": {"decay_u": 1024}}}),
    "decay_v": ("o", "decay", {"populations": {"o": {"decay_v": 122}}}),
    "delay in": ("h", "delay", {"projections": {"ih": {"delay": 1}}}),
    "delay out": ("o", "delay", {"projections": {"ho": {"delay": 1}}}),
}


@pytest.mark.parametrize("kind", nets.KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_register_or_delay_is_named(kind, change):
    population, cause, changes = CHANGES[change]
    found = departed(PROGRAMS[kind], nets.altered(PROGRAMS[kind], **changes))
    assert (found.population, found.side) == (population, "B")
    assert found.causes[0].kind == cause


@pytest.mark.parametrize("kind", nets.KINDS)
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_weight_bit_is_named_with_its_weight(kind, bit):
    found = departed(PROGRAMS[kind], flipped(PROGRAMS[kind], "ih", 17, bit))
    place = ", ".join(
        str(int(i))
        for i in np.unravel_index(
            17, PROGRAMS[kind].network.projections["ih"].weight_mantissa.shape
        )
    )
    assert found.population == "h"
    assert found.causes[0].kind == "weight bit flip"
    assert f"weight [{place}] of ih" in found.causes[0].words
    assert f"bit {bit} inverted" in found.causes[0].words


def test_the_place_is_the_first_step_at_which_the_state_parts():
    program = PROGRAMS["dense"]
    broken = flipped(program, "ih", 17, 6)
    inputs = nets.make_inputs(program)
    a, b = nets.run(program, inputs), nets.run(broken, inputs)
    apart = a.current["h"] != b.current["h"]
    steps = np.where(apart.any(axis=(0, 1)))[0]
    found = departed(program, broken)
    assert (found.step, found.neuron) == (steps[0], 0)
    assert apart[found.sample, 0, found.step]
    (arrived,) = [x for x in found.arrivals if x.neuron == 17]
    assert arrived.weight == program.network.projections["ih"].weight[0, 17]
    now = [m for m in found.moments if m.step == found.step]
    by_side = {m.side: m for m in now}
    assert by_side["program"].u == by_side["A"].u == a.current["h"][found.sample, 0, found.step]
    assert by_side["B"].u == b.current["h"][found.sample, 0, found.step]


def test_a_difference_on_the_other_side_is_a_departure_of_that_side():
    program = PROGRAMS["dense"]
    inputs = nets.make_inputs(program)
    broken = nets.run(nets.altered(program, populations={"o": {"threshold": 90}}), inputs)
    found = bisect(program, inputs, nets.as_of(broken, program), nets.run(program, inputs))
    assert (found.population, found.side) == ("o", "A")
    assert found.causes[0].kind == "threshold offset"


@pytest.mark.parametrize(
    ("reset", "cause", "words"),
    [
        (None, "missing reset", "h is not reset every 4 steps"),
        (replace(nets.EVERY_FOUR, offset=2), "reset phase", "h is reset 1 step late"),
        (replace(nets.EVERY_FOUR, offset=0), "reset phase", "3 steps late, or 1 early"),
    ],
)
def test_a_missing_or_moved_reset_is_named(reset, cause, words):
    found = departed(RESETTING, nets.altered(RESETTING, populations={"h": {"reset": reset}}))
    assert (found.population, found.causes[0].kind) == ("h", cause)
    assert words in found.causes[0].words


def edited(program, change, probe=nets.ALL):
    """Bisects a healthy run and that run with its recording of ``h`` changed."""
    inputs = nets.make_inputs(program)
    healthy = nets.run(program, inputs)
    raster = healthy.spikes["h"].to_raster().copy()
    change(raster)
    spikes = {**healthy.spikes, "h": SpikeTrain.from_raster(raster)}
    run = replace(healthy, spikes=spikes)
    if probe == "spikes":
        run = replace(run, current={}, voltage={})
    return bisect(program, inputs, healthy, run)


def with_room(raster):
    """A spike after which its neuron is silent for a step."""
    quiet = ~raster[:, :, 1:] & raster[:, :, :-1]
    return tuple(int(i) for i in np.argwhere(quiet)[5])


def test_a_spike_that_only_the_probe_lost_shows_in_the_state():
    place = []

    def lose(raster):
        place.extend(with_room(raster))
        raster[tuple(place)] = False

    found = edited(PROGRAMS["dense"], lose)
    assert (found.population, found.sample, found.neuron, found.step) == ("h", *place)
    assert found.causes[0].kind == "lost spike"
    assert found.departing["h"] == 1


def test_a_late_spike_is_told_from_a_lost_one():
    def delay(raster):
        sample, neuron, step = with_room(raster)
        raster[sample, neuron, step], raster[sample, neuron, step + 1] = False, True

    found = edited(PROGRAMS["dense"], delay)
    assert found.causes[0].kind == "late spike"


def test_stuck_and_swapped_neurons_are_named():
    def stick(raster):
        raster[:, 7] = True

    found = edited(PROGRAMS["dense"], stick, "spikes")
    assert (found.neuron, found.causes[0].kind) == (7, "stuck neuron")

    def swap(raster):
        raster[:, [3, 8]] = raster[:, [8, 3]]

    found = edited(PROGRAMS["dense"], swap, "spikes")
    assert found.causes[0].kind == "swapped neurons"
    assert found.causes[0].neurons == (3, 8)


def test_weights_of_before_a_write_are_named_when_the_program_before_is_known():
    program = PROGRAMS["dense"]
    rng = np.random.default_rng(5)
    old = program.network.projections["ih"].weight_mantissa
    new = program.with_weights({"ih": np.clip(old + 2 * rng.integers(-4, 5, old.shape), -256, 254)})
    found = departed(new, program, before=program)
    assert "stale write" in [cause.kind for cause in found.causes]
    found = departed(new, program)
    assert {cause.kind for cause in found.causes} <= {"several weights", "weight bit flip"}


def test_unmeasured_sources_are_said_not_guessed():
    program = PROGRAMS["dense"]
    broken = nets.altered(program, populations={"h": {"threshold": 95}})
    inputs = nets.make_inputs(program)
    a, b = (nets.run(p, inputs, "spikes:o") for p in (program, broken))
    found = bisect(program, inputs, a, nets.as_of(b, program))
    assert (found.population, found.side, found.causes) == ("o", None, ())
    assert "not looked into: h, o" in found.notes[0]


def test_recordings_of_different_shapes_are_refused():
    program = PROGRAMS["dense"]
    a = nets.run(program, nets.make_inputs(program))
    b = nets.run(program, nets.make_inputs(program, samples=2))
    with pytest.raises(ConfigError, match="allowed the same on both sides"):
        bisect(program, nets.make_inputs(program), a, b)


@pytest.mark.parametrize("kind", nets.KINDS)
def test_the_smallest_input_still_shows_the_difference_and_is_small(kind):
    program = PROGRAMS[kind]
    broken = nets.altered(program, populations={"h": {"threshold": 81}})
    inputs = nets.make_inputs(program)

    def shows(trial):
        a, b = nets.run(program, trial), nets.run(broken, trial)
        return bisect(program, trial, a, nets.as_of(b, program)) is not None

    found = departed(program, broken)
    smallest, tried = smallest_input(inputs, found, shows, budget=200)
    assert tried
    assert shows(smallest)
    train = smallest["i"]
    assert (train.n_samples, train.n_steps) == (1, found.step + 1)
    whole = SpikeTrain.from_raster(inputs["i"].to_raster()[found.sample, :, : found.step + 1])
    assert len(train) < len(whole)
    for event in range(len(train)):
        fewer = train.to_raster().copy()
        fewer[train.sample[event], train.neuron[event], train.step[event]] = False
        assert not shows({"i": SpikeTrain.from_raster(fewer)})


def test_without_targets_the_input_is_cut_to_the_sample_and_step():
    program = PROGRAMS["dense"]
    found = departed(program, nets.altered(program, populations={"h": {"threshold": 81}}))
    inputs = nets.make_inputs(program)
    cut, tried = smallest_input(inputs, found, None)
    assert not tried
    assert np.array_equal(
        cut["i"].to_raster()[0], inputs["i"].to_raster()[found.sample, :, : found.step + 1]
    )
    run = nets.run(program, inputs)
    short = cut_recording(run, found)
    again = nets.run(program, cut)
    assert dict(short.spikes) == dict(again.spikes)
    assert np.array_equal(short.voltage["h"], again.voltage["h"])


def faulty(program, inputs, probe=nets.ALL, **faults):
    """A run of the emulator with faults, and what they are."""
    target = load_hardware("emulator").model_copy(update={"faults": Faults(**faults)})
    with open_session(program, target) as session:
        run = session.run(inputs, probe=probe)
    return run, run.provenance["faults"]


MANY = {
    "seed": 7,
    "dead_neurons": 0.1,
    "stuck_neurons": 0.05,
    "weight_bit_flips": 0.002,
    "spike_loss": 0.02,
}


def with_faults(seed, probe=nets.ALL):
    program = PROGRAMS["dense"]
    inputs = nets.make_inputs(program)
    run, truth = faulty(program, inputs, probe, **{**MANY, "seed": seed})
    return bisect(program, inputs, nets.run(program, inputs, probe), run), truth


@pytest.mark.parametrize("seed", range(6))
def test_many_faults_at_once_are_told_apart_neuron_by_neuron(seed):
    found, truth = with_faults(seed)
    assert found.population == "h"
    assert "lost spike" in [cause.kind for cause in found.causes]
    flipped_rows = {row[0] for row in truth["flipped"]["ih"]}
    broken = {*truth["dead"]["h"], *truth["stuck"]["h"]} | flipped_rows
    assert found.neurons
    for diagnosis in found.neurons:
        assert diagnosis.neuron in broken
        kinds = {cause.kind for cause in diagnosis.causes}
        assert diagnosis.exact
        assert ("stuck neuron" in kinds) == (diagnosis.neuron in truth["stuck"]["h"])
        if "dead neuron" in kinds:
            assert diagnosis.neuron in truth["dead"]["h"]
        if "weight bit flip" in kinds:
            assert diagnosis.neuron in flipped_rows
        assert diagnosis.sure.startswith("exact")


def test_losses_hide_nothing_where_only_spikes_were_measured():
    """Nothing fits exactly; a neuron that spikes nearly always is called likely, no more."""
    found, truth = with_faults(7, "spikes")
    near = [d for d in found.neurons if d.causes and not d.exact]
    assert {d.neuron for d in near} <= set(truth["stuck"]["h"])
    assert near
    assert {d.sure for d in near} == {"likely, but not exact"}
    assert all(cause.kind != "stuck neuron" for cause in found.causes)
    unknown = [d for d in found.neurons if not d.causes]
    assert all(d.sure == "nothing that was tried explains it exactly" for d in unknown)


def test_two_weights_of_a_dead_neuron_are_named_with_it():
    program = PROGRAMS["dense"]
    inputs = nets.make_inputs(program)
    two = [{"kind": "weight_bit", "projection": "ih", "weight": [3, k], "bit": 5} for k in (2, 9)]
    run, _ = faulty(
        program, inputs, injected=[*two, {"kind": "dead", "population": "h", "neuron": 3}]
    )
    found = bisect(program, inputs, nets.run(program, inputs), run)
    (diagnosis,) = found.neurons
    (cause,) = diagnosis.causes
    assert cause.kind == "dead neuron"
    assert "2 weights of ih into neuron 3" in cause.words
    assert "[3, 2]" in cause.words
    assert "[3, 9]" in cause.words


def test_several_weights_are_solved_for_through_periodic_resets():
    broken = flipped(flipped(RESETTING, "ih", 17, 5), "ih", 4, 3)
    found = departed(RESETTING, broken)
    assert [cause.kind for cause in found.causes] == ["several weights"]
    assert "2 weights of ih into neuron 0" in found.causes[0].words


def test_synapses_of_weight_0_are_no_arrivals():
    program = PROGRAMS["dense"]
    mantissa = program.network.projections["ih"].weight_mantissa.copy()
    mantissa[:, :17] = mantissa[:, 18:] = 0
    program = program.with_weights({"ih": mantissa})
    found = departed(program, flipped(program, "ih", 17, 6))
    sent = nets.make_inputs(program)["i"].to_raster()[found.sample, :, found.step - 1]
    assert np.count_nonzero(sent) > 1
    assert [arrival.neuron for arrival in found.arrivals] == [17]


def test_long_lists_of_alternatives_are_shortened_in_words_only():
    """Only spikes were measured, so that many weights of a neuron fit."""
    found = departed(PROGRAMS["dense"], flipped(PROGRAMS["dense"], "ih", 39, 6), "spikes")
    cause = next(c for c in found.causes if len(c.alternatives) > 3)
    assert cause.words.endswith(f"and {len(cause.alternatives) - 3} more")
    assert all(words in cause.words for words in cause.alternatives[:3])
    assert cause.alternatives[3] not in cause.words
    stored = found.as_json()["causes"]
    assert len(stored[found.causes.index(cause)]["alternatives"]) == len(cause.alternatives)


def test_the_samples_before_are_kept_without_spikes_where_the_number_of_the_sample_counts():
    program = PROGRAMS["dense"]
    inputs = nets.make_inputs(program)
    healthy = nets.run(program, inputs)
    raster = healthy.spikes["h"].to_raster()
    neuron, step = (int(i) for i in np.argwhere(raster[2])[-1])
    lost = {"kind": "lost_spike", "population": "h", "neuron": neuron, "sample": 2, "step": step}

    def broken(trial):
        return faulty(program, trial, injected=[lost])[0]

    def shows(trial):
        return bisect(program, trial, nets.run(program, trial), broken(trial)) is not None

    found = bisect(program, inputs, healthy, broken(inputs))
    smallest, tried = smallest_input(inputs, found, shows, budget=300)
    train = smallest["i"]
    assert tried
    assert shows(smallest)
    assert (train.n_samples, train.n_steps) == (3, step + 1)
    assert set(train.sample) == {2}
    assert len(train) < inputs["i"].to_raster()[2, :, : step + 1].sum()


def test_what_the_sample_before_left_keeps_the_spikes_that_it_needs():
    program = PROGRAMS["dense"]
    inputs = nets.make_inputs(program)

    def broken(trial):
        return faulty(program, trial, injected=[{"kind": "missing_reset", "population": "h"}])[0]

    def shows(trial):
        return bisect(program, trial, nets.run(program, trial), broken(trial)) is not None

    found = bisect(program, inputs, nets.run(program, inputs), broken(inputs))
    smallest, tried = smallest_input(inputs, found, shows, budget=300)
    assert tried
    assert shows(smallest)
    assert smallest["i"].n_samples == found.sample + 1
    assert 0 < len(smallest["i"]) < len(inputs["i"]) / 4
