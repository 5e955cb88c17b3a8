"""nmtool test: the checks of an experiment and the golden folder, without a test written."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from junitparser import JUnitXml

from nmtool.regression import check

CHECKS = """
checks:
  - {{metric: accuracy, min: {least}, on: [emulator, mine.yaml]}}
"""


@pytest.fixture
def suite(folder, nmtool, hardware):
    """An experiment with a check, a golden folder, a healthy and a faulty target."""
    (folder / "experiment.yaml").open("a").write(CHECKS.format(least=0.0))
    hardware("faults: {seed: 1, stuck_neurons: 0.1}", name="sick")
    made = nmtool(
        *("golden", "record", "run/program.h5", "--cover", 4, "-o", "golden/small.h5", "--json")
    )
    assert made.code == 0, made.err
    assert made.json["samples"] == 4
    assert 0 < made.json["coverage"]["weights"] <= 1
    return folder


def test_checks_and_golden_runs_are_run_on_every_target(nmtool, suite):
    done = nmtool(
        *("test", "experiment.yaml", "--run", "run", "--hw", "emulator", "--hw", "sick.yaml"),
        *("--junit", "j.xml", "--json"),
    )
    found = {(case["case"], case["target"]): case["status"] for case in done.json["cases"]}
    assert found == {
        ("small", "emulator"): "passed",
        ("golden/small.h5", "emulator"): "passed",
        ("small", "sick"): "skipped",
        ("golden/small.h5", "sick"): "regression",
    }
    assert done.code == 1
    names = {suite.name: len(list(suite)) for suite in JUnitXml.fromfile(suite / "j.xml")}
    assert names == {"emulator": 2, "sick": 2}


def test_an_experiment_that_breaks_its_check_is_a_regression(nmtool, suite):
    text = (suite / "experiment.yaml").read_text()
    (suite / "experiment.yaml").write_text(text.replace("min: 0.0", "min: 0.99"))
    done = nmtool("test", "experiment.yaml", "--run", "run", "--json")
    assert done.code == 1
    assert [case["status"] for case in done.json["cases"]] == ["regression", "passed"]


def test_golden_runs_alone_are_enough_and_nothing_is_too_little(nmtool, suite):
    assert nmtool("test").code == 0
    done = nmtool("test", "experiment.yaml", "--golden", "nowhere")
    assert (done.code, "--golden nowhere: found no golden run" in done.err) == (3, True)
    (suite / "golden/small.h5").unlink()
    assert nmtool("test").code == 2


def test_an_experiment_without_a_check_for_the_target_names_those_it_has(nmtool, suite):
    done = nmtool("test", "experiment.yaml", "--run", "run", "--hw", "sick.yaml", "--json")
    message = done.json["cases"][0]["message"]
    assert "found checks on emulator, mine.yaml, none for --hw sick" in message


def test_recordings_are_kept_and_judged_again_without_a_target(nmtool, suite, monkeypatch):
    hw = ("--hw", "emulator", "--hw", "sick.yaml")
    assert nmtool("test", *hw, "--runs", "runs").code == 1
    kept = sorted(path.name for path in (suite / "runs").iterdir())
    assert kept == ["small-emulator.h5", "small-sick.h5"]
    again = nmtool("test", *hw, "--runs", "runs")
    assert (again.code, "exists already" in again.err) == (2, True)
    monkeypatch.setattr("nmtool.regression.check.open_session", None)
    for command in (("test", *hw), ("golden", "check", "golden/small.h5", "--hw", "sick.yaml")):
        done = nmtool(*command, "--saved", "runs", "--json")
        assert done.code == 1
        assert done.json["cases"][-1]["status"] == "regression"
    assert done.json["cases"][0]["provenance"]["target"] == "sick"
    missing = nmtool("test", "--saved", "nowhere")
    assert (missing.code, "nowhere/small-emulator.h5: no such file" in missing.out) == (6, True)
    assert nmtool("test", "experiment.yaml", "--saved", "runs").code == 2
    assert nmtool("test", "--saved", "runs", "--runs", "more").code == 2


def test_golden_runs_of_one_name_keep_a_recording_each(nmtool, suite):
    shutil.copytree("golden", "golden/sub/deep")
    assert nmtool("test", "--runs", "runs").code == 0
    names = {str(path.relative_to(suite / "runs")) for path in (suite / "runs").rglob("*.h5")}
    assert names == {"small-emulator.h5", "sub/deep/small-emulator.h5"}
    done = nmtool("test", "--saved", "runs", "--json")
    assert (done.code, len(done.json["cases"])) == (0, 2)
    both = ("golden", "check", "golden/small.h5", "golden/sub/deep/small.h5", "--saved", "runs")
    assert nmtool(*both).code == 0


def test_two_recordings_of_one_name_are_refused(nmtool, suite, unchanged):
    shutil.copy("golden/small.h5", "golden/small.hdf5")
    with unchanged(suite):
        done = nmtool("test", "--runs", "runs")
    assert done.code == 2
    assert "found the golden runs golden/small.h5 and golden/small.hdf5" in done.err


def test_golden_runs_below_the_folder_count_and_others_are_told(nmtool, suite):
    (suite / "golden/sub").mkdir()
    shutil.copy("golden/small.h5", "golden/sub/zebra.hdf5")
    shutil.copy("golden/small.h5", "golden/sub/old.bak")
    (suite / "golden/README.md").write_text("not a golden run, and not taken for one")
    done = nmtool("test", "--json")
    assert [case["case"] for case in done.json["cases"]] == [
        "golden/small.h5",
        "golden/sub/zebra.hdf5",
    ]
    assert "passed over: golden/sub/old.bak: found another ending" in done.err
    assert "README" not in done.err


def test_a_recording_that_cannot_be_kept_is_an_error_of_its_case(nmtool, suite):
    (suite / "runs").write_text("no folder")
    shutil.copy("golden/small.h5", "golden/zebra.h5")
    done = nmtool("test", "--runs", "runs", "--json")
    assert done.code == 9
    assert [case["code"] for case in done.json["cases"]] == [9, 9]


def test_a_bug_in_one_case_is_its_error_and_the_suite_goes_on(nmtool, suite, monkeypatch):
    shutil.copy("golden/small.h5", "golden/zebra.h5")
    real, calls = check.judge, []

    def judge(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyError("a slip")
        return real(*arguments)

    monkeypatch.setattr(check, "judge", judge)
    done = nmtool("test", "--json", "--junit", "j.xml")
    assert done.code == 70
    assert [case["status"] for case in done.json["cases"]] == ["error", "passed"]
    assert "a bug in nmtool: KeyError: 'a slip'" in done.json["cases"][0]["message"]
    assert "Traceback" in (suite / "j.xml").read_text()


def test_what_to_do_about_a_missing_package_is_said_once(nmtool, suite):
    shutil.copy("golden/small.h5", "golden/zebra.h5")
    hw = ("--hw", "kapoho-point", "--hw", "oheo-gulch")
    done = nmtool("test", *hw, "--markdown", "s.md", "--json")
    assert done.code == 10
    hint = "inrc_interest@intel.com"
    assert all(hint in case["message"] for case in done.json["cases"])
    text = nmtool("test", *hw)
    for report in (text.out, (suite / "s.md").read_text()):
        assert report.count(hint) == 1
        assert report.count("lava-loihi is not installed; as above") == 3


def test_every_failed_attempt_is_in_every_report(nmtool, suite, hardware):
    target = hardware("timeouts: {run: 1ms}", "recovery: [reload, reset]")
    command = ("test", "--hw", target, "--force", "--junit", "j.xml", "--markdown", "s.md")
    done = nmtool(*command, "--json")
    assert done.code == 8
    steps = [attempt["step"] for attempt in done.json["cases"][0]["attempts"]]
    assert steps == ["reload", "reset"]
    out = nmtool(*command).out
    (case,) = next(iter(JUnitXml.fromfile(suite / "j.xml")))
    for report in (case.system_out, (suite / "s.md").read_text(), out):
        assert "attempt 1 failed: BoardTimeout: " in report
        assert "; then reload" in report
        assert "attempt 2 failed: BoardTimeout: " in report
        assert "; then reset" in report


def test_attempts_before_an_answer_that_cannot_be_judged_are_kept(nmtool, suite, monkeypatch):
    def short(*arguments):
        run = run_on(*arguments)
        attempts = [{"step": "reload", "error": "BoardError: dead", "seconds": 1.0}]
        spikes = {name: train.first_steps(3) for name, train in run.spikes.items()}
        facts = {**run.provenance, "attempts": attempts}
        return replace(run, spikes=spikes, n_steps=3, provenance=facts)

    run_on = check.run_on
    monkeypatch.setattr(check, "run_on", short)
    done = nmtool("test", "--json")
    assert done.code == 1
    (case,) = done.json["cases"]
    assert "a truncated recording" in case["message"]
    assert [attempt["error"] for attempt in case["attempts"]] == ["BoardError: dead"]


def test_the_markdown_table_has_a_header_for_every_column(nmtool, suite):
    assert nmtool("test", "--markdown", "s.md").code == 0
    lines = (suite / "s.md").read_text().splitlines()
    assert "| case | target | result | found |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {5}


CUTS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGALRM: (124, "--timeout passed"),
}


@pytest.fixture
def three(suite):
    """Three golden runs, of which the last is in quarantine."""
    for name in ("tiger", "zebra"):
        shutil.copy("golden/small.h5", f"golden/{name}.h5")
    entry = "{golden: zebra.h5, reason: it is known, expires: 2999-01-01}"
    (suite / "q.yaml").write_text(f"schema: nmtool.quarantine/v1\nentries: [{entry}]\n")
    return suite


REPORTS = ("--junit", "j.xml", "--markdown", "s.md", "--timeout", "10m", "--json")
SUITES = {
    "test": ("test",),
    "golden check": ("golden", "check", *(f"golden/{n}.h5" for n in ("small", "tiger", "zebra"))),
}


@pytest.mark.parametrize("number", [*CUTS])
@pytest.mark.parametrize("verb", [*SUITES])
def test_a_suite_that_is_cut_short_reports_what_it_has(nmtool, three, monkeypatch, verb, number):
    def run_on(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(number)
        return real(*arguments)

    real, calls = check.run_on, []
    monkeypatch.setattr(check, "run_on", run_on)
    shutil.copy("golden/zebra.h5", "golden/zoo.h5")
    more = ("golden/zoo.h5",) if verb == "golden check" else ()
    done = nmtool(*SUITES[verb], *more, *REPORTS, "--quarantine", "q.yaml")
    code, why = CUTS[number]
    assert done.code == done.json["exit_code"] == code
    assert [(case["status"], case["code"], case["message"]) for case in done.json["cases"]] == [
        ("passed", 0, ""),
        ("error", code, f"not finished: {why}"),
        ("skipped", 0, "in quarantine until 2999-01-01: it is known"),
        ("error", code, f"not run: {why}"),
    ]
    assert done.err.endswith(f"error: {why}; 2 of 4 cases did not end\n")
    cases = list(next(iter(JUnitXml.fromfile(three / "j.xml"))))
    assert [case.is_error for case in cases] == [False, True, False, True]
    assert f"not run: {why}" in (three / "s.md").read_text()
    assert len(calls) == 2


@pytest.mark.parametrize("number", [*CUTS])
def test_a_signal_waits_for_the_reports(nmtool, three, monkeypatch, number):
    """It arrives while the first report is written: both are there, whole."""
    real, written = os.fsync, []

    def fsync(handle):
        written.append(handle)
        if len(written) == 1:
            signal.raise_signal(number)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert nmtool(*SUITES["test"], *REPORTS).code == CUTS[number][0]
    assert len(list(next(iter(JUnitXml.fromfile(three / "j.xml"))))) == 3
    assert "3 passed" in (three / "s.md").read_text()
    assert not [path for path in three.iterdir() if path.name.startswith(".")]


def test_handlers_are_as_before_after_a_suite(nmtool, suite):
    before = [signal.getsignal(number) for number in CUTS]
    assert nmtool("test").code == 0
    assert [signal.getsignal(number) for number in CUTS] == before


def test_two_targets_of_one_name_are_refused(nmtool, suite):
    done = nmtool("test", "--hw", "emulator", "--hw", "emulator")
    assert (done.code, "two targets of the name emulator" in done.err) == (2, True)


def test_an_experiment_that_was_not_trained_is_an_error_and_the_rest_goes_on(nmtool, suite):
    done = nmtool("test", "experiment.yaml", "--json")
    assert done.code == 6
    assert [case["status"] for case in done.json["cases"]] == ["error", "passed"]
