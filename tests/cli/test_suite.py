"""nmtool test: the checks of an experiment and the golden folder, without a test written."""

import pytest
from junitparser import JUnitXml

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


def test_two_targets_of_one_name_are_refused(nmtool, suite):
    done = nmtool("test", "--hw", "emulator", "--hw", "emulator")
    assert (done.code, "two targets of the name emulator" in done.err) == (2, True)


def test_an_experiment_that_was_not_trained_is_an_error_and_the_rest_goes_on(nmtool, suite):
    done = nmtool("test", "experiment.yaml", "--json")
    assert done.code == 6
    assert [case["status"] for case in done.json["cases"]] == ["error", "passed"]
