"""Every kind of fault, in every kind of network: is it found, in the right place, by its name?

Each fault is injected into a simulator. A golden check must fail where any probed value differs;
bisect must name the population, the neuron and the first step that differ, and the cause. A fault
that changes nothing on the golden input is not covered by it, and is listed as that.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import regression_networks as nets
from junitparser import JUnitXml, Properties

from nmtool.backends import open_session
from nmtool.chip import load_hardware
from nmtool.measure import compare
from nmtool.regression.bisect import bisect
from nmtool.regression.check import check_golden
from nmtool.regression.golden import save_golden
from nmtool.regression.reports import write_junit

RIGHT_CAUSES = 0.9


@dataclass(frozen=True)
class Fault:
    """An entry of ``faults.injected`` by the kind of network, and what bisect should say of it."""

    name: str
    entry: Callable[[str], dict]
    population: str
    cause: str
    reset: bool = False


def at(kind, name):
    return lambda network: {"kind": kind, "population": name, "neuron": busy(network)[0]}


def of_all(kind, name, by):
    return lambda _: {"kind": kind, "population": name, "by": by}


def of_spike(kind):
    """The fault of one spike of the busiest neuron."""

    def entry(network):
        sample, step = sent(network)
        return {**at(kind, "h")(network), "sample": sample, "step": step}

    return entry


def of_bit(bit):
    """A bit of a weight into the busiest neuron."""

    def entry(network):
        place = [1, 1, 1, 1] if network == "conv" else [busy(network)[0], 5]
        return {"kind": "weight_bit", "projection": "ih", "weight": place, "bit": bit}

    return entry


def delay(name):
    return lambda _: {"kind": "delay", "projection": name, "by": 1}


def unreset(_):
    return {"kind": "missing_reset", "population": "h"}


FAULTS = (
    Fault("dead", at("dead", "h"), "h", "dead neuron"),
    Fault(
        "stuck", lambda _: {"kind": "stuck", "population": "o", "neuron": 2}, "o", "stuck neuron"
    ),
    Fault(
        "threshold of one",
        lambda network: {**of_all("threshold", "h", 1)(network), "neuron": edge(network)},
        "h",
        "threshold offset",
    ),
    Fault("threshold of all", of_all("threshold", "o", 1), "o", "threshold offset"),
    Fault("lost", of_spike("lost_spike"), "h", "lost spike"),
    Fault("late", of_spike("late_spike"), "h", "late spike"),
    Fault("delay in", delay("ih"), "h", "delay"),
    Fault("delay out", delay("ho"), "o", "delay"),
    Fault("reset between samples", unreset, "h", "missing reset"),
    Fault("periodic reset", unreset, "h", "missing reset", reset=True),
    Fault("reset phase", of_all("reset_phase", "h", 1), "h", "reset phase", reset=True),
    Fault("decay_u", of_all("decay_u", "h", 1), "h", "decay"),
    Fault("decay_v", of_all("decay_v", "o", -1), "o", "decay"),
    Fault(
        "swapped",
        lambda network: {"kind": "swapped", "population": "h", "neurons": [*busy(network)]},
        "h",
        "swapped neurons",
    ),
    *(Fault(f"bit {bit}", of_bit(bit), "h", "weight bit flip") for bit in range(8)),
)
BACK = Fault("delay back", delay("hh"), "h", "delay")
"""Of the recurrent network only."""

MATRIX = [
    *((kind, fault) for kind in nets.KINDS for fault in FAULTS),
    ("recurrent", BACK),
]


def target(*entries, backend="reference"):
    from nmtool.faultmodel import Faults

    healthy = load_hardware(backend)
    return healthy.model_copy(
        update={"name": "faulty", "faults": Faults.model_validate({"injected": list(entries)})}
    )


@cache
def golden_of(kind, reset=False):
    program = nets.make_program(kind, nets.EVERY_FOUR if reset else None)
    return nets.make_golden(program, probe=nets.ALL)


@cache
def busy(kind):
    """Two neurons of h that spike, but not alike."""
    counts = golden_of(kind).expected.spikes["h"].counts().sum(axis=0)
    first, second = np.argsort(-counts, kind="stable")[:2]
    return int(first), int(second)


@cache
def sent(kind):
    """Sample and step of a spike of the busiest neuron that is followed by silence."""
    raster = golden_of(kind).expected.spikes["h"].to_raster()[:, busy(kind)[0]]
    sample, step = np.argwhere(raster[:, :-1] & ~raster[:, 1:])[0]
    return int(sample), int(step)


@cache
def edge(kind):
    """A neuron of h that once spikes with v less than one threshold unit above its threshold."""
    golden = golden_of(kind)
    for neuron in range(golden.program.network.sizes["h"]):
        entry = {"kind": "threshold", "population": "h", "neuron": neuron, "by": 1}
        with open_session(golden.program, target(entry, backend="emulator")) as session:
            run = session.run(golden.inputs, probe="spikes:h")
        if run.spikes["h"] != golden.expected.spikes["h"]:
            return neuron
    raise AssertionError("no spike is that close to its threshold")


def first_place(a, b, name):
    """The earliest step at which a population differs in anything, and its first neuron there."""
    parts = [a.spikes[name].to_raster() != b.spikes[name].to_raster()]
    parts += [getattr(a, q)[name] != getattr(b, q)[name] for q in ("current", "voltage")]
    apart = np.any(parts, axis=0)
    step, sample, neuron = np.argwhere(apart.transpose(2, 0, 1))[0]
    return int(sample), int(step), int(neuron)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """For every fault of the matrix: the golden check, the bisection and what truly differs."""
    folder = tmp_path_factory.mktemp("golden")
    found = {}
    for kind, fault in MATRIX:
        golden = golden_of(kind, fault.reset)
        path = folder / f"{kind}-{fault.reset}.h5"
        if not path.exists():
            save_golden(path, golden)
        outcome, run = check_golden(path, target(fault.entry(kind)))
        found[kind, fault.name] = (
            outcome,
            run,
            bisect(golden.program, golden.inputs, golden.expected, run),
        )
    return found


@pytest.mark.parametrize(("kind", "fault"), MATRIX, ids=lambda x: getattr(x, "name", x))
def test_a_fault_that_changes_anything_fails_the_golden_check(results, kind, fault):
    outcome, run, found = results[kind, fault.name]
    expected = golden_of(kind, fault.reset).expected
    differs = any(
        np.any(expected.spikes[n].to_raster() != run.spikes[n].to_raster())
        or np.any(expected.current[n] != run.current[n])
        or np.any(expected.voltage[n] != run.voltage[n])
        for n in expected.spikes
    )
    assert differs, "the golden input does not cover this fault"
    assert (outcome.status, outcome.code) == ("regression", 1)
    assert found.population == fault.population
    if fault.name != "reset between samples":
        place = first_place(expected, run, fault.population)
        assert (found.sample, found.step, found.neuron) == place


def test_the_cause_is_named_in_nine_of_ten_cases(results):
    wrong = {
        (kind, fault.name): [cause.kind for cause in results[kind, fault.name][2].causes]
        for kind, fault in MATRIX
        if [cause.kind for cause in results[kind, fault.name][2].causes][:1] != [fault.cause]
    }
    assert len(wrong) <= (1 - RIGHT_CAUSES) * len(MATRIX), wrong


def test_what_is_said_of_a_fault_does_not_contradict_itself(results):
    """One cause of the whole population explains its neurons too; one of anything has no plural."""
    for kind, fault in MATRIX:
        found = results[kind, fault.name][2]
        assert not any(" 1 steps" in cause.words for cause in found.causes), (kind, fault)
        explained = {neuron for cause in found.causes for neuron in cause.neurons}
        unknown = {d.neuron for d in found.neurons if not d.causes}
        if any("nothing that was tried" in note for note in found.notes):
            assert not unknown & explained, (kind, fault)


def test_a_lost_spike_is_the_cause_and_nothing_else_is_said_of_its_neuron():
    """u and v are right and only the spike is missing: no change of the neuron explains that."""
    kind = "dense"
    golden = golden_of(kind)
    with open_session(golden.program, target(of_spike("lost_spike")(kind))) as session:
        run = session.run(golden.inputs, probe=nets.ALL)
    found = bisect(golden.program, golden.inputs, golden.expected, run)
    assert [cause.kind for cause in found.causes] == ["lost spike"]
    assert (found.neurons, found.notes) == ((), ())


@pytest.mark.parametrize("kind", nets.KINDS)
def test_a_stale_write_is_found(kind):
    """New weights are written, the target keeps the old ones."""
    golden = golden_of(kind)
    rng = np.random.default_rng(3)
    old = golden.program.network.projections["ih"].weight_mantissa
    new = np.clip(old + 16 * rng.integers(-2, 3, old.shape), -256, 254)
    updated = golden.program.with_weights({"ih": new})
    expected = nets.run(updated, golden.inputs)
    entry = {"kind": "stale_write", "projection": "ih"}
    with open_session(golden.program, target(entry)) as session:
        session.write_weights("ih", new)
        run = session.run(golden.inputs, probe=nets.ALL)
    found = bisect(updated, golden.inputs, expected, run, golden.program)
    assert (found.population, found.causes[0].kind) == ("h", "stale write")


@pytest.mark.parametrize("kind", nets.KINDS)
def test_a_truncated_recording_is_a_regression_not_silence(tmp_path, kind):
    path = tmp_path / "g.h5"
    golden = golden_of(kind)
    save_golden(path, golden)
    cut = target({"kind": "truncated", "steps": 20})
    for policies in ((), ("rate=1e9",)):
        outcome, _ = check_golden(path, cut, policies)
        assert (outcome.status, outcome.code) == ("regression", 1)
        assert "ends after 20 of 40 steps" in outcome.message
    with open_session(golden.program, cut) as session:
        run = session.run(golden.inputs, probe=nets.ALL)
    for side, pair in {"B": (golden.expected, run), "A": (run, golden.expected)}.items():
        found = bisect(golden.program, golden.inputs, *pair)
        assert (found.population, found.step, found.side) == (golden.program.order[0], 20, side)
        assert [cause.kind for cause in found.causes] == ["truncated recording"]
        assert {moment.side for moment in found.moments if moment.step >= 20} == {"AB"[side == "A"]}
        found.as_json()


def test_a_fault_before_the_end_of_a_truncated_recording_is_found(tmp_path):
    golden = golden_of("dense")
    dead = {"kind": "dead", "population": "h", "neuron": busiest(golden, 20)}
    with open_session(golden.program, target(dead, {"kind": "truncated", "steps": 20})) as session:
        run = session.run(golden.inputs, probe=nets.ALL)
    found = bisect(golden.program, golden.inputs, golden.expected, run)
    assert found.causes[0].kind == "dead neuron"
    assert "looked at the first 20 steps, where a recording ends" in found.notes


def busiest(golden, steps):
    """The neuron of h that spikes most in the first steps."""
    return int(golden.expected.spikes["h"].first_steps(steps).counts().sum(axis=0).argmax())


@pytest.mark.parametrize("more", [[], [{"kind": "truncated", "steps": 40}]])
def test_what_a_fault_changes_inside_the_tolerance_is_counted(tmp_path, more):
    golden = nets.make_golden(golden_of("dense").program)
    path = tmp_path / "g.h5"
    save_golden(path, golden)
    dead = {"kind": "dead", "population": "h", "neuron": busiest(golden, 40)}
    outcome, run = check_golden(path, target(dead, *more), ["rate=1e9"])
    differing = compare(golden.expected, run, golden.program.order).differing_spikes
    assert differing > 1
    fault = "2 injected faults change" if more else "1 injected fault changes"
    assert outcome.message.startswith(f"{fault} {differing} spikes")
    assert outcome.message.endswith("inside the tolerance")
    assert outcome.as_json()["not_covered"] == []


def test_a_fault_that_nothing_shows_is_called_not_covered(tmp_path):
    """A dead neuron that never spikes anyway, with spikes probed only."""
    golden = nets.make_golden(golden_of("dense").program)
    counts = golden.expected.spikes["h"].counts().sum(axis=0)
    silent = int(np.flatnonzero(counts == 0)[0])
    path = tmp_path / "g.h5"
    save_golden(path, golden)
    outcome, _ = check_golden(path, target({"kind": "dead", "population": "h", "neuron": silent}))
    assert (outcome.status, outcome.code) == ("passed", 0)
    says = "1 injected fault changes nothing: it is not covered by this input: dead"
    assert outcome.message.startswith(says)
    (fault,) = outcome.as_json()["not_covered"]
    assert (fault["kind"], fault["neuron"]) == ("dead", silent)
    write_junit(tmp_path / "j.xml", [outcome])
    ((case,),) = JUnitXml.fromfile(tmp_path / "j.xml")
    stored = {found.name: found.value for found in case.child(Properties)}
    assert json.loads(stored["not_covered"]) == [fault]


def test_faults_that_the_golden_run_has_too_are_not_called_uncovered(tmp_path):
    golden = golden_of("dense")
    dead = target({"kind": "dead", "population": "h", "neuron": busiest(golden, 40)})
    with open_session(golden.program, dead) as session:
        run = session.run(golden.inputs, probe=golden.probe)
    path = tmp_path / "g.h5"
    save_golden(path, replace(golden, expected=run))
    outcome, _ = check_golden(path, dead)
    assert (outcome.status, outcome.message) == ("passed", "")


def test_two_hundred_healthy_runs_raise_no_alarm(tmp_path):
    """In any order, side by side, on the simulators: never a regression, never an error."""
    from concurrent.futures import ThreadPoolExecutor

    paths = {}
    for kind in nets.KINDS:
        paths[kind] = tmp_path / f"{kind}.h5"
        save_golden(paths[kind], golden_of(kind))
    rng = np.random.default_rng(0)
    jobs = [
        (nets.KINDS[int(rng.integers(3))], ("emulator", "reference")[int(rng.integers(5) == 0)])
        for _ in range(200)
    ]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(
            pool.map(lambda job: check_golden(paths[job[0]], load_hardware(job[1]))[0], jobs)
        )
    assert {outcome.status for outcome in outcomes} == {"passed"}
