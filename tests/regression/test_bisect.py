"""The first difference of two runs, its place and its cause, on programs with one change."""

from dataclasses import replace

import numpy as np
import pytest
import regression_networks as nets

from nmtool.backends.faults import read_back
from nmtool.errors import ConfigError
from nmtool.regression.bisect import bisect, cut_recording, smallest_input
from nmtool.regression.equations import all_arriving, measured, messages, replay
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
        (replace(nets.EVERY_FOUR, offset=2), "reset phase", "h is reset 1 steps late"),
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
