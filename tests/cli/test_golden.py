"""golden record, check and accept, bisect: what a pipeline sees of them."""

import shutil
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from junitparser import JUnitXml

from nmtool import formats, save
from nmtool.regression.golden import load_golden, save_golden

SOON = date.today() + timedelta(days=30)
BROKEN = "faults: {seed: 1, stuck_neurons: 0.1}"


@pytest.fixture(scope="module")
def recorded(prepared, nmtool, tmp_path_factory):
    """A golden run of the emulator, made once."""
    path = tmp_path_factory.mktemp("golden") / "small.h5"
    done = nmtool("golden", "record", prepared / "run/program.h5", "--samples", 20, "-o", path)
    assert done.code == 0, done.err
    return path


@pytest.fixture
def golden(folder, recorded):
    shutil.copy(recorded, folder / "small.h5")
    return folder / "small.h5"


def test_record_says_what_it_kept(nmtool, folder):
    done = nmtool(
        *("golden", "record", "run/program.h5", "--samples", 5, "--probe", "spikes:output"),
        *("--policy", "jitter=1", "--policy", "accuracy", "-o", "g.h5", "--json"),
    )
    assert done.code == 0, done.err
    assert done.json["samples"] == 5
    assert done.json["policies"] == ["jitter=1", "accuracy=0.95"]
    assert "latency" in done.json["metrics"]
    assert done.json["bytes"] == (folder / "g.h5").stat().st_size


def test_record_overwrites_nothing(nmtool, golden):
    done = nmtool("golden", "record", "run/program.h5", "-o", golden)
    assert (done.code, "--force" in done.err) == (2, True)


def test_record_refuses_a_wrong_policy_before_it_runs(nmtool, folder):
    done = nmtool("golden", "record", "run/program.h5", "--policy", "nearly", "-o", "g.h5")
    assert done.code == 3
    assert "allowed exact, jitter, rate" in done.err
    assert not (folder / "g.h5").exists()


@pytest.mark.parametrize("hw", ["emulator", "reference"])
def test_a_healthy_target_passes(nmtool, golden, hw):
    done = nmtool("golden", "check", golden, "--hw", hw, "--json")
    assert done.code == 0, done.err
    (case,) = done.json["cases"]
    assert (case["status"], case["target"]) == ("passed", hw)
    assert case["provenance"]["samples"] == 20


def test_a_regression_exits_with_1_and_is_a_failure_in_junit(nmtool, golden, hardware, folder):
    target = hardware(BROKEN)
    done = nmtool(
        *("golden", "check", golden, "--hw", target, "--junit", "j.xml", "--markdown", "s.md"),
        *("--runs", "runs"),
    )
    assert done.code == 1
    assert "first in hidden" in done.out
    (suite,) = JUnitXml.fromfile(folder / "j.xml")
    (case,) = suite
    assert case.is_failure
    assert not case.is_error
    assert "differing spikes" in case.result[0].message
    assert "REGRESSION" in (folder / "s.md").read_text()
    assert [path.name for path in (folder / "runs").iterdir()] == ["small-mine.h5"]


def test_a_saved_run_is_judged_again_without_a_target(nmtool, golden, hardware, folder):
    nmtool("golden", "check", golden, "--hw", hardware(BROKEN), "--runs", "runs")
    saved = ("golden", "check", golden, "--run", "runs/small-mine.h5")
    assert nmtool(*saved).code == 1
    assert nmtool(*saved, "--policy", "rate=1000").code == 0
    assert nmtool(*saved, "--policy", "rate=1000", "--policy", "exact").code == 1


def test_a_suite_goes_on_and_ends_with_the_worst(nmtool, golden, folder):
    (folder / "damaged.h5").write_bytes(golden.read_bytes()[:-100])
    done = nmtool("golden", "check", "damaged.h5", golden, "missing.h5", "--json")
    assert [case["status"] for case in done.json["cases"]] == ["error", "passed", "error"]
    assert (done.code, done.json["exit_code"]) == (6, 6)


def test_what_a_target_cannot_run_is_skipped_and_not_green_alone(nmtool, golden, folder, hardware):
    from nmtool import CubaLif, Input, Network, Population, Projection, compile, save

    slow = Population((4,), CubaLif(0.5, 0.3, 0.1, refractory_delay=4))
    weights = np.random.default_rng(0).normal(size=(4, 3))
    net = Network(
        "r", {"i": Input((3,))}, {"o": slow}, {"p": Projection.dense("i", "o", weights)}, ("o",)
    )
    save(folder / "p.h5", compile(net, steps=10))
    np.save(folder / "x.npy", np.random.default_rng(0).random((2, 3, 10)) < 0.5)
    made = nmtool("golden", "record", "p.h5", "--input", "x.npy", "-o", "r.h5")
    assert made.code == 0, made.err
    done = nmtool(
        "golden", "check", "r.h5", golden, "--hw", "lava-sim", "--junit", "j.xml", "--json"
    )
    assert done.json["cases"][0]["status"] == "skipped"
    assert "refractory" in done.json["cases"][0]["message"]
    assert done.code == 0, done.err
    alone = nmtool("golden", "check", "r.h5", "--hw", "lava-sim")
    assert alone.code == 4
    assert "nothing was tested" in alone.err


QUARANTINE = """\
schema: nmtool.quarantine/v1
entries:
  - {{golden: "small*.h5", target: mine, reason: "board 3 has a stuck neuron", expires: {expires}}}
"""


def test_quarantine_skips_until_it_ends(nmtool, golden, hardware, folder):
    target = hardware(BROKEN)
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    check = ("golden", "check", golden, "--hw", target, "--quarantine", "q.yaml")
    done = nmtool(*check, "--json", "--junit", "j.xml")
    assert done.code == 0
    assert done.json["cases"][0]["status"] == "skipped"
    assert "board 3 has a stuck neuron" in done.json["cases"][0]["message"]
    (suite,) = JUnitXml.fromfile(folder / "j.xml")
    assert next(iter(suite)).is_skipped
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2020-01-01"))
    done = nmtool(*check)
    assert done.code == 1
    assert "its quarantine ended on 2020-01-01" in done.err


def test_verify_quarantine_tells_what_has_healed(nmtool, golden, hardware, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    check = ("golden", "check", golden, "--quarantine", "q.yaml", "--verify-quarantine")
    sick = nmtool(*check, "--hw", hardware(BROKEN), "--json")
    assert (sick.code, sick.json["healed"]) == (0, [])
    healed = nmtool(*check, "--hw", hardware(), "--json")
    assert (healed.code, healed.json["healed"]) == (0, [str(golden)])


def test_verify_quarantine_runs_those_too_whose_last_day_is_over(nmtool, golden, hardware, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2020-01-01"))
    check = ("golden", "check", golden, "--quarantine", "q.yaml", "--verify-quarantine")
    for faults, healed, word in (
        ((BROKEN,), [], "still failing"),
        ((), [str(golden)], "healed"),
    ):
        target = hardware(*faults)
        done = nmtool(*check, "--hw", target, "--json")
        assert (done.code, done.json["healed"]) == (0, healed)
        (warning,) = done.json["warnings"]
        assert "its quarantine ended on 2020-01-01" in warning
        assert warning in done.err
        assert f"on mine: {word}" in nmtool(*check, "--hw", target).out
    nothing = nmtool(*check, "--hw", "emulator")
    assert "nothing is in quarantine here" in nothing.out
    assert "entry 1 (golden: small*.h5, target: mine): its target is none of emu" in nothing.err


def test_a_quarantine_entry_that_matches_nothing_is_said_everywhere(nmtool, golden, folder):
    (folder / "q.yaml").write_text(
        "schema: nmtool.quarantine/v1\nentries:\n"
        f"  - {{golden: small.h5, reason: known, expires: {SOON}}}\n"
        f"  - {{golden: smal.h5, reason: known, expires: {SOON}}}\n"
    )
    shutil.copy(golden, folder / "judged.h5")
    done = nmtool(
        *("golden", "check", golden, "judged.h5", "--quarantine", "q.yaml", "-q", "--json"),
        *("--junit", "j.xml", "--markdown", "s.md"),
    )
    assert done.json["cases"][0]["status"] == "skipped"
    (warning,) = done.json["warnings"]
    assert "entry 2 (golden: smal.h5): it matches no golden run here" in warning
    (suite,) = JUnitXml.fromfile(folder / "j.xml")
    assert [(p.name, p.value) for p in suite.properties()] == [("warning", warning)]
    for report in (done.err, (folder / "s.md").read_text()):
        assert f"warning: {warning}" in report


def test_of_several_quarantine_entries_the_last_to_end_counts(nmtool, golden, folder):
    (folder / "q.yaml").write_text(
        "schema: nmtool.quarantine/v1\nentries:\n"
        "  - {golden: small.h5, reason: once, expires: 2020-01-01}\n"
        f"  - {{golden: small.h5, reason: again, expires: {SOON}}}\n"
    )
    shutil.copy(golden, folder / "judged.h5")
    check = ("golden", "check", golden, "judged.h5", "--quarantine", "q.yaml")
    done = nmtool(*check, "--json")
    assert done.json["cases"][0]["message"] == f"in quarantine until {SOON}: again"
    assert done.json["warnings"] == []


def test_a_saved_run_is_in_the_quarantine_of_its_own_target(nmtool, golden, hardware, folder):
    nmtool("golden", "check", golden, "--hw", hardware(BROKEN), "--runs", "runs")
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    saved = ("--run", "runs/small-mine.h5", "--quarantine", "q.yaml", "--json")
    done = nmtool("golden", "check", golden, *saved)
    assert [(c["target"], c["status"]) for c in done.json["cases"]] == [("mine", "skipped")]


def test_config_check_and_schema_know_quarantine_files(nmtool, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    assert "q.yaml: ok (nmtool.quarantine/v1)" in nmtool("config", "check", "q.yaml").out
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="someday"))
    done = nmtool("config", "check", "q.yaml")
    assert (done.code, "q.yaml:3:" in done.err) == (3, True)
    assert "a date such as" in done.err
    schema = nmtool("config", "schema", "quarantine").json
    assert {"golden", "reason", "expires"} <= set(schema["$defs"]["Entry"]["properties"])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{golden: a.h5, expires: 2999-01-01}", "reason"),
        ("{golden: a.h5, reason: because}", "expires"),
        ("{golden: a.h5, reason: '', expires: 2999-01-01}", "reason"),
        ("{golden: a.h5, reason: '  ', expires: 2999-01-01}", "a sentence that says why"),
        ("{golden: a.h5, reason: because, expires: soon}", "a date such as"),
    ],
)
def test_a_quarantine_needs_a_reason_and_an_end(nmtool, golden, folder, entry, says):
    (folder / "q.yaml").write_text(f"schema: nmtool.quarantine/v1\nentries:\n  - {entry}\n")
    done = nmtool("golden", "check", golden, "--quarantine", "q.yaml")
    assert done.code == 3
    assert "q.yaml:3" in done.err
    assert says in done.err


def test_a_quarantine_of_more_than_a_year_is_warned_of(nmtool, golden, folder):
    today = date.today()
    for days, warned in ((360, False), (370, True)):
        text = QUARANTINE.format(expires=today + timedelta(days=days))
        (folder / "q.yaml").write_text(text.replace("mine", "emulator"))
        done = nmtool("golden", "check", golden, "--quarantine", "q.yaml", "--json")
        assert any("more than a year ahead" in text for text in done.json["warnings"]) == warned


def test_a_damaged_golden_run_is_an_error_in_quarantine_too(nmtool, golden, hardware, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    content = golden.read_bytes()
    golden.write_bytes(content[: len(content) // 2])
    check = ("golden", "check", golden, "small2.h5", "--hw", hardware(), "--quarantine", "q.yaml")
    done = nmtool(*check, "--json")
    assert done.code == 6
    assert [case["status"] for case in done.json["cases"]] == ["error", "error"]
    assert "small2.h5: no such file" in done.json["cases"][1]["message"]


def test_where_nothing_was_judged_every_report_says_so(nmtool, golden, hardware, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2999-01-01"))
    shutil.copy(golden, folder / "other.h5")
    check = ("golden", "check", golden, "--hw", hardware(), "--quarantine", "q.yaml", "--force")
    reports = ("--junit", "j.xml", "--markdown", "s.md")
    says = "NOTHING WAS JUDGED: all cases (1) are in quarantine"
    done = nmtool(*check, *reports, "--json")
    assert done.code == 0
    assert f"warning: {says}" in done.err
    assert says in done.json["warnings"]
    assert all(says in (folder / name).read_text() for name in ("j.xml", "s.md"))
    assert says not in nmtool(*check, "other.h5").err


def test_verify_quarantine_is_said_in_every_report(nmtool, golden, hardware, folder):
    (folder / "q.yaml").write_text(QUARANTINE.format(expires="2020-01-01"))
    check = ("golden", "check", golden, "--quarantine", "q.yaml", "--verify-quarantine", "--force")
    for faults, word in (((BROKEN,), "still failing"), ((), "healed")):
        reports = ("--junit", "j.xml", "--markdown", "s.md")
        done = nmtool(*check, "--hw", hardware(*faults), *reports, "--json")
        assert done.code == 0
        assert "counts again" not in done.err
        assert done.json["cases"][0]["quarantine"] == word
        assert done.json["still_failing"] == ([str(golden)] if faults else [])
        assert f"| {word} |" in (folder / "s.md").read_text()
        assert f'name="quarantine" value="{word}"' in (folder / "j.xml").read_text()
        ((case,),) = JUnitXml.fromfile(folder / "j.xml")
        assert (case.is_skipped, case.is_failure, case.is_error) == (bool(faults), False, False)
    lost = nmtool(*check, folder / "small3.h5", "--hw", hardware(), "--json")
    assert lost.code == 6


def test_a_saved_run_of_another_input_is_no_regression(nmtool, golden, folder):
    nmtool("golden", "record", "run/program.h5", "--cover", 20, "-o", "other.h5")
    assert nmtool("golden", "check", "other.h5", "--runs", "runs").code == 0
    run = ("golden", "check", golden, "--run", "runs/other-emulator.h5", "--json")
    done = nmtool(*run)
    assert done.code == 6
    assert "found different inputs" in done.json["cases"][0]["message"]
    old = formats.load("runs/other-emulator.h5")
    save("runs/other-emulator.h5", replace(old, provenance={}))
    done = nmtool(*run)
    assert done.code == 1
    assert "of which input is not recorded" in done.json["cases"][0]["message"]


@pytest.mark.parametrize("verb", ["compare", "bisect"])
def test_options_of_input_beside_a_golden_run_are_refused(nmtool, golden, verb):
    done = nmtool(verb, golden, "emulator", "--data", "digits:test")
    assert done.code == 2
    assert "--data: found it beside a golden run, which has its own input" in done.err


def test_a_target_beside_a_saved_run_of_another_is_refused(nmtool, golden, hardware):
    target = hardware(BROKEN)
    assert nmtool("golden", "check", golden, "--hw", target, "--runs", "runs").code == 1
    run = ("golden", "check", golden, "--run", "runs/small-mine.h5")
    done = nmtool(*run, "--hw", "emulator")
    assert (done.code, "a run on mine, which is judged as it is" in done.err) == (2, True)
    assert nmtool(*run, "--hw", target).code == 1
    assert nmtool(*run).code == 1


def test_accept_through_a_link_replaces_the_file_that_it_names(nmtool, golden, hardware, folder):
    link = folder / "link.h5"
    link.symlink_to(golden.name)
    accept = ("golden", "accept", link, "--hw", hardware(BROKEN), "--reason", "new board")
    assert nmtool(*accept, "--force").code == 0
    assert link.is_symlink()
    assert load_golden(golden).reason == "new board"


def test_a_truncated_recording_is_a_regression_and_bisected(nmtool, golden, hardware, folder):
    target = hardware("faults: {injected: [{kind: truncated, steps: 5}]}")
    done = nmtool("golden", "check", golden, "--hw", target, "--junit", "j.xml")
    assert done.code == 1
    assert "ends after 5 of" in done.out
    ((case,),) = JUnitXml.fromfile(folder / "j.xml")
    assert case.is_failure
    done = nmtool("bisect", golden, target, "-o", "replay.h5")
    assert done.code == 1, done.err
    assert "first difference: population hidden, sample 0, step 5, neuron 0" in done.out
    assert "likely cause: truncated recording: B ends after 5 of" in done.out
    assert nmtool("golden", "check", "replay.h5", "--hw", target).code == 1
    assert nmtool("golden", "check", "replay.h5", "--hw", "reference").code == 0


def test_accept_says_what_another_program_changes(nmtool, golden, folder):
    assert nmtool("compile", "run", "--hw", "loihi2-faulty", "-o", "other.h5").code == 0
    accept = ("golden", "accept", golden, "--program", "other.h5", "--reason", "4 bits", "--json")
    done = nmtool(*accept, "--force")
    assert done.code == 0, done.err
    assert done.json["program"] != done.json["program_before"]
    assert [c["policy"] for c in done.json["changes"] if not c["passed"]] == ["program", "exact"]
    assert done.json["metrics"] != done.json["metrics_before"]


def test_force_does_not_reach_inputs_devices_or_two_reports_in_one_file(
    nmtool, golden, folder, unchanged
):
    with unchanged(folder):
        for command in (
            ("golden", "check", golden, "--junit", golden),
            ("golden", "check", golden, "--junit", "x", "--markdown", "./x"),
            ("golden", "check", golden, "--junit", "/dev/null"),
            ("golden", "record", "run/program.h5", "-o", "run/program.h5"),
            ("bisect", golden, "emulator", "-o", golden),
        ):
            assert nmtool(*command, "--force").code == 2, command


def test_a_saved_run_is_judged_as_its_own_targets(nmtool, golden, hardware, folder):
    nmtool("golden", "check", golden, "--hw", hardware(BROKEN), "--runs", "runs")
    done = nmtool("golden", "check", golden, "--run", "runs/small-mine.h5", "--json")
    assert [case["target"] for case in done.json["cases"]] == ["mine"]


def test_a_golden_run_of_a_faulty_target_is_warned_of_from_then_on(
    nmtool, golden, hardware, folder
):
    sick = hardware(BROKEN)
    done = nmtool("golden", "record", "run/program.h5", "--hw", sick, "-o", "g.h5", "--json", "-q")
    assert done.code == 0
    (warning,) = done.json["warnings"]
    assert "recorded on mine, which has injected faults" in warning
    assert f"warning: g.h5: {warning}" in done.err
    options = ("--junit", "j.xml", "--markdown", "s.md", "--json")
    done = nmtool("golden", "check", "g.h5", golden, "--hw", sick, *options)
    assert done.json["warnings"] == [f"g.h5: {warning}"]
    for report in (done.err, (folder / "s.md").read_text(), (folder / "j.xml").read_text()):
        assert warning in report
    done = nmtool("golden", "accept", "g.h5", "--reason", "healthy again", "--force", "--json")
    assert (done.code, done.json["warnings"]) == (0, [])
    assert nmtool("golden", "check", "g.h5", "--json").json["warnings"] == []
    done = nmtool(
        *("golden", "accept", "g.h5", "--hw", sick, "--reason", "sick", "--force", "--json")
    )
    assert done.json["warnings"] == [warning]
    assert warning in done.err


def test_a_target_whose_faults_are_all_zero_is_healthy(nmtool, folder, hardware):
    target = hardware("faults: {seed: 7, dead_neurons: 0.0}")
    done = nmtool(
        *("golden", "record", "run/program.h5", "--hw", target, "--samples", 5),
        *("-o", "g.h5", "--json"),
    )
    assert done.json["warnings"] == []


def test_a_golden_run_that_guards_nothing_is_warned_of(nmtool, folder):
    np.save(folder / "silent.npy", np.zeros((2, 64, 12), dtype=np.bool_))
    record = ("golden", "record", "run/program.h5", "--input", "silent.npy", "--json")
    done = nmtool(*record, "-o", "g.h5")
    assert done.code == 0
    assert [text.partition(":")[0] for text in done.json["warnings"]] == [
        "no spike of the output output",
        "its input exercises 0 % of the neurons",
        "its input exercises 0 % of the weights",
    ]
    assert done.err.count("warning: g.h5: ") == 3


def test_accept_refuses_what_breaks_the_golden_runs_own_policies(nmtool, golden, hardware):
    before = golden.read_bytes()
    silent = hardware("faults: {dead_neurons: 1.0}")
    accept = ("golden", "accept", golden, "--hw", silent, "--policy", "latency", "--force")
    done = nmtool(*accept, "--reason", "all dead")
    assert (done.code, "policy latency: found no output spike" in done.err) == (3, True)
    assert golden.read_bytes() == before


@pytest.mark.parametrize(
    "provenance", [{"warnings": 3, "target": "mine", "history": 5}, {"target": {"name": [1]}}]
)
def test_an_odd_provenance_is_no_bug(nmtool, golden, provenance):
    kept = load_golden(golden)
    save_golden(golden, replace(kept, provenance=provenance))
    saved = replace(kept.expected, provenance={**provenance, "attempts": 5, "faults": "many"})
    save("odd.h5", saved)
    for more in ((), ("--run", "odd.h5")):
        assert nmtool("golden", "check", golden, *more).code == 0
        assert nmtool("golden", "check", golden, *more, "--json").json["warnings"] == []
    assert nmtool("golden", "accept", golden, "--reason", "odd", "--force").code == 0


def test_record_replaces_nothing_in_ci(nmtool, golden, unchanged, monkeypatch):
    record = ("golden", "record", "run/program.h5", "--samples", 5, "--force")
    monkeypatch.setenv("CI", "true")
    with unchanged(golden.parent):
        done = nmtool(*record, "-o", golden)
    assert done.code == 2
    assert f'nmtool golden accept {golden} --reason "..." --force' in done.err
    assert nmtool(*record, "-o", "new.h5").code == 0
    for unset in ("false", "FALSE", "0", ""):
        monkeypatch.setenv("CI", unset)
        assert nmtool(*record, "-o", golden).code == 0


def test_accept_needs_a_reason_and_refuses_in_ci(nmtool, golden, hardware, monkeypatch, unchanged):
    target = hardware(BROKEN)
    monkeypatch.setenv("CI", "true")
    accept = ("golden", "accept", golden, "--hw", target, "--reason", "the new board is like that")
    with unchanged(golden.parent):
        assert nmtool(*accept).code == 2
        assert nmtool("golden", "accept", golden, "--force").code == 2
        assert nmtool("golden", "accept", golden, "--reason", " ", "--force").code == 2
    assert nmtool("golden", "check", golden, "--hw", target).code == 1
    done = nmtool(*accept, "--force")
    assert done.code == 0, done.err
    assert "differing spikes" in done.out
    after = nmtool("golden", "check", golden, "--hw", target, "--json")
    assert after.code == 0
    assert after.json["cases"][0]["provenance"]["golden_reason"] == "the new board is like that"


def test_bisect_names_the_neuron_and_its_replay_shows_it(nmtool, golden, hardware, folder):
    target = hardware(BROKEN)
    done = nmtool("bisect", golden, target, "-o", "replay.h5", "--json")
    assert done.code == 1
    found = done.json
    assert (found["population"], found["side"]) == ("hidden", "B")
    assert found["causes"][0]["kind"] == "stuck neuron"
    assert found["replay"]["input_spikes"] < 5
    assert nmtool("golden", "check", "replay.h5", "--hw", target).code == 1
    assert nmtool("golden", "check", "replay.h5", "--hw", "reference").code == 0


def test_bisect_of_equal_sides_exits_with_0(nmtool, golden):
    done = nmtool("bisect", golden, "reference", "--json")
    assert (done.code, done.json["equal"]) == (0, True)


def test_bisect_compares_recordings_of_a_program(nmtool, folder, hardware):
    deploy = ("deploy", "run/program.h5", "--probe", "spikes,current,voltage")
    assert nmtool(*deploy, "-o", "a.h5").code == 0
    nmtool(*deploy, "--hw", hardware(BROKEN), "-o", "b.h5")
    done = nmtool("bisect", "a.h5", "b.h5", "--program", "run/program.h5", "--json")
    assert done.code == 1
    assert done.json["causes"][0]["kind"] == "stuck neuron"
    without = nmtool("bisect", "a.h5", "b.h5")
    assert (without.code, "--program" in without.err) == (2, True)


def test_bisect_and_compare_take_the_trainer_and_golden_runs(nmtool, golden):
    assert nmtool("compare", golden, "reference").code == 0
    assert nmtool("bisect", golden, "emulator").code == 0


@pytest.mark.parametrize("steady", [True, False])
def test_bisect_says_where_probes_change_what_runs(nmtool, golden, hardware, monkeypatch, steady):
    """A board stands in for itself: its run with few probes is given, once the same, once not."""
    from nmtool.cli.operands import Operands
    from nmtool.regression.golden import load_golden

    healthy, sick = load_golden(golden), hardware(BROKEN)
    assert nmtool("golden", "check", golden, "--hw", sick, "--runs", "runs").code == 1
    from nmtool import load

    light = load("runs/small-mine.h5") if steady else healthy.expected
    monkeypatch.setattr(
        Operands, "lightly_probed", lambda self, name: light if name == str(sick) else None
    )
    done = nmtool("bisect", golden, sick)
    assert done.code == 1
    assert ("probes change what runs there" in done.err) is not steady
