"""The pytest plugin as a project uses it: a pytest of its own, with targets and golden runs."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import regression_networks as nets
from junitparser import JUnitXml

from nmtool import formats
from nmtool.regression.golden import save_golden

FAULTY = """\
schema: nmtool.hardware/v1
name: faulty
chip: loihi2
backend: emulator
faults: {seed: 1, stuck_neurons: 0.1}
"""
SLOW = """\
schema: nmtool.hardware/v1
name: slow
chip: loihi2
backend: reference
timeouts: {load: 1s, run: 1ms}
"""
CHECK = "def test_chip(board, golden):\n    board.check(golden)\n"


@pytest.fixture
def project(pytester, monkeypatch):
    """A project with two golden runs, a program, and targets."""
    folder = pytester.path
    for kind in ("dense", "recurrent"):
        save_golden(folder / f"golden/{kind}.h5", nets.make_golden(nets.make_program(kind)))
    formats.save(folder / "program.h5", nets.make_program("dense"))
    (folder / "faulty.yaml").write_text(FAULTY)
    (folder / "slow.yaml").write_text(SLOW)
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@dataclass(frozen=True)
class Done:
    """How a pytest ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(project, pytester):
    """``run(test, *options)`` with a pytest inside this one; ``alone`` in a process of its own.

    Only what starts workers, or looks at what is imported, needs its own.
    """

    def start(test, *options, alone=False):
        (project / "test_chip.py").write_text(test)
        runs = pytester.runpytest_subprocess if alone else pytester.runpytest_inprocess
        ended = runs("-q", "-rs", "--junit-xml=j.xml", *options)
        cases = []
        if (project / "j.xml").exists():
            cases = [case for suite in JUnitXml.fromfile(project / "j.xml") for case in suite]
        return Done(int(ended.ret), ended.stdout.str(), ended.stderr.str()), cases

    return start


def test_golden_runs_are_checked_on_every_target(project, run):
    done, cases = run(CHECK, "--nmtool-hw", "emulator", "--nmtool-hw", "faulty.yaml")
    assert done.returncode == 1
    failed = {case.name: case.is_failure for case in cases}
    assert len(cases) == 4
    assert all(failed[name] == ("faulty" in name) for name in failed)
    assert "differing spikes" in done.stdout


def test_the_junit_file_says_where_a_verdict_is_from(project, run):
    run(CHECK, "--nmtool-hw", "emulator", "-k", "dense")
    text = (project / "j.xml").read_text()
    fingerprint = nets.make_program("dense").fingerprint
    for name, value in {"target": "emulator", "chip": "loihi2", "program": fingerprint}.items():
        assert f'name="nmtool_{name}" value="{value}"' in text


def test_the_junit_file_says_what_was_said_of_a_golden_run_when_it_was_recorded(project, run):
    golden = nets.make_golden(nets.make_program("dense"))
    facts = {"warnings": ["recorded in a hurry"]}
    save_golden(project / "golden/dense.h5", replace(golden, provenance=facts))
    run(CHECK, "--nmtool-hw", "emulator", "-k", "dense")
    text = (project / "j.xml").read_text()
    assert 'name="nmtool_golden_warnings" value="recorded in a hurry"' in text


def test_without_options_tests_run_on_the_emulator(project, run):
    done, cases = run(CHECK)
    assert done.returncode == 0, done.stdout
    assert sorted(case.name for case in cases) == [
        "test_chip[emulator-dense]",
        "test_chip[emulator-recurrent]",
    ]


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_trouble_with_a_board_is_an_error_and_its_exit_code(project, run, options):
    done, cases = run(CHECK, "--nmtool-hw", "slow.yaml", *options, alone=bool(options))
    assert done.returncode == 8, done.stdout + done.stderr
    assert len(cases) == 2
    assert all(case.is_error and not case.is_failure for case in cases)


def test_a_failure_beside_trouble_blocks(project, run):
    done, _ = run(CHECK, "--nmtool-hw", "slow.yaml", "--nmtool-hw", "faulty.yaml")
    assert done.returncode == 1


def test_it_works_with_xdist(project, run):
    done, cases = run(CHECK, "-n", "2", "--nmtool-hw=emulator", "--nmtool-hw=reference", alone=True)
    assert done.returncode == 0, done.stdout
    assert len(cases) == 4


def test_features_that_a_board_lacks_skip_with_the_reason(project, run):
    test = (
        "import pytest\n"
        "@pytest.mark.nmtool_requires('refractory delay')\n"
        "def test_a(board): pass\n"
        "@pytest.mark.nmtool_requires('conv', 'axonal delay')\n"
        "def test_b(board): pass\n"
        "@pytest.mark.nmtool_requires('chip')\n"
        "def test_c(board): pass\n"
    )
    done, cases = run(test, "--nmtool-hw", "lava-sim")
    assert done.returncode == 0, done.stdout
    assert [case.is_skipped for case in cases] == [True, False, True]
    assert "Lava has a refractory neuron in floating point only" in done.stdout
    assert "lava-sim is a simulator" in done.stdout


def test_a_feature_that_is_none_is_a_mistake_not_a_skip(project, run):
    test = "import pytest\n@pytest.mark.nmtool_requires('warp drive')\ndef test_a(board): pass\n"
    done, _ = run(test)
    assert done.returncode != 0
    assert "found 'warp drive'" in done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_misspelt_feature_is_one_error_however_many_tests_ask_for_it(project, run, options):
    test = (
        "import pytest\n"
        "pytestmark = pytest.mark.nmtool_requires('axonal dely', 'chp')\n"
        "@pytest.mark.parametrize('n', range(5))\n"
        "def test_a(board, n): pass\n"
        "def test_b(board): pass\n"
    )
    done, cases = run(
        test, "--nmtool-hw", "emulator", "--nmtool-hw=reference", *options, alone=bool(options)
    )
    assert done.returncode != 0
    assert "found 'axonal dely', 'chp', allowed chip, " in done.stdout
    assert "did you mean 'axonal delay'?" in done.stdout
    assert [case.is_error for case in cases] == [True]


def test_the_program_and_the_board_can_be_used_freely(project, run):
    test = (
        "import numpy as np, nmtool\n"
        "def test_rate(board, program):\n"
        "    spikes = nmtool.SpikeTrain.from_raster(np.ones((20, 40), bool))\n"
        "    assert len(board.run(program, spikes).spikes['o'])\n"
    )
    done, (case,) = run(test, "--nmtool-program", "program.h5")
    assert done.returncode == 0, done.stdout
    assert not case.is_skipped
    done, (case,) = run(test)
    assert case.is_skipped


def test_a_missing_dependency_is_an_error_not_a_regression(project, run):
    done, cases = run(CHECK, "--nmtool-hw", "kapoho-point", alone=True)
    assert done.returncode == 10, done.stdout
    assert all(case.is_error and not case.is_failure for case in cases)
    assert done.stdout.count("DependencyError: target kapoho-point: ") >= 2
    assert "board.check" not in done.stdout  # no line of the test, and no traceback
    assert "plugin.py" not in done.stdout


def test_golden_runs_in_folders_below_are_checked_too(project, run):
    (project / "golden/sub").mkdir()
    (project / "golden/recurrent.h5").rename(project / "golden/sub/dense.hdf5")
    (project / "program.h5").rename(project / "golden/old.bak")
    done, cases = run(CHECK)
    assert done.returncode == 0, done.stdout
    assert {case.name for case in cases} == {
        "test_chip[emulator-dense]",
        "test_chip[emulator-sub/dense]",
    }
    assert "passed over: golden/old.bak: found another ending" in done.stdout


BOARD = """\
schema: nmtool.hardware/v1
name: {name}
chip: loihi2
backend: lava-loihi
board: {{host: {host}}}
"""


GROUPS = """\
def pytest_collection_modifyitems(items):
    with open("groups", "w") as file:
        for item in items:
            mark = item.get_closest_marker("xdist_group")
            print(item.callspec.params["board"], mark.args[0] if mark else "none", file=file)
"""


def test_the_cases_of_a_board_are_one_group_for_xdist(project, run):
    """Two files of one board are one group; simulators are spread over all workers."""
    for name, host in {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.2"}.items():
        (project / f"{name}.yaml").write_text(BOARD.format(name=name, host=host))
    (project / "conftest.py").write_text(GROUPS)
    targets = [*(f"--nmtool-hw={name}.yaml" for name in "abc"), "--nmtool-hw=emulator"]
    done, _ = run("def test_a(board): pass\n", *targets, "--strict-markers")
    assert done.returncode == 0, done.stdout
    groups = dict(line.split(" ", 1) for line in (project / "groups").read_text().splitlines())
    assert groups == {
        "a.yaml": "host 10.0.0.1",
        "b.yaml": "host 10.0.0.1",
        "c.yaml": "host 10.0.0.2",
        "emulator": "none",
    }


def test_a_folder_without_golden_runs_is_not_green(project, run):
    done, _ = run(CHECK, "--nmtool-golden", "nowhere")
    assert done.returncode != 0
    assert "found no golden run there" in done.stdout + done.stderr


def test_a_wrong_target_is_a_usage_error_at_once(project, run):
    done, _ = run(CHECK, "--nmtool-hw", "loihi9")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--nmtool-hw loihi9: target loihi9: unknown" in done.stderr


def test_a_projects_own_fixtures_of_these_names_are_its_own(project, run):
    test = (
        "import pytest\n"
        "@pytest.fixture\n"
        "def golden(): return 'mine'\n"
        "@pytest.fixture\n"
        "def board(): return 'wooden'\n"
        "def test_a(golden, board): assert (golden, board) == ('mine', 'wooden')\n"
    )
    done, cases = run(test, "--nmtool-hw", "emulator")
    assert (done.returncode, len(cases)) == (0, 1), done.stdout


def test_other_tests_do_not_notice_it(project, run):
    done, cases = run("def test_plain(): assert 1 + 1 == 2\n")
    assert (done.returncode, len(cases)) == (0, 1)
    timing = "import sys\ndef test_light(): assert 'numba' not in sys.modules\n"
    assert run(timing, alone=True)[0].returncode == 0


def test_the_golden_runs_of_this_test_spike():
    golden = nets.make_golden(nets.make_program("dense"))
    assert np.all([len(train) for train in golden.expected.spikes.values()])
