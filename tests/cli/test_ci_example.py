"""The workflow of examples/ci, step by step, as a runner would do it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

EXAMPLE = Path(__file__).parents[2] / "examples/ci"
WORKFLOW = YAML(typ="safe").load((EXAMPLE / "chip-regression.yml").read_text())
OWN = {"install"}
"""Steps that are another's work: this environment has nmtool already."""


@pytest.fixture
def checkout(folder, nmtool):
    """A repository with the workflow's files and a golden run."""
    made = nmtool("golden", "record", "run/program.h5", "--samples", 5, "-o", "golden/small.h5")
    assert made.code == 0, made.err
    shutil.copy(EXAMPLE / "on-board.sh", folder)
    tools = folder / "bin"
    tools.mkdir()
    (tools / "nmtool").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nmtool "$@"\n')
    (tools / "nmtool").chmod(0o755)
    return folder


def run_step(checkout, script, **env):
    return subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={
            **os.environ,
            "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(checkout / "step-summary.md"),
            "CI": "true",
            **env,
        },
    )


def steps(job):
    return [
        step for step in WORKFLOW["jobs"][job]["steps"] if "run" in step and step["name"] not in OWN
    ]


@pytest.mark.parametrize("job", WORKFLOW["jobs"])
def test_every_step_of_the_workflow_runs(checkout, job):
    ran = []
    for step in steps(job):
        if step.get("if") == "failure()":
            continue
        done = run_step(checkout, step["run"], NMTOOL_HW="emulator")
        assert done.returncode == 0, f"{step['name']}: {done.stdout}{done.stderr}"
        ran.append(step["name"])
    assert ran[-1] == "summary"
    assert "1 passed" in (checkout / "step-summary.md").read_text() or job == "simulators"


def test_a_regression_blocks_at_once_and_is_bisected(checkout, hardware):
    target = hardware("faults: {seed: 1, stuck_neurons: 0.1}")
    by_name = {step["name"]: step for step in steps("board")}
    check, bisect = by_name["golden runs on the board"], by_name["what differs first"]
    done = run_step(checkout, check["run"], NMTOOL_HW=str(target))
    assert done.returncode == 1
    assert [path.name for path in checkout.glob("board-*.xml")] == ["board-1.xml"]
    done = run_step(checkout, bisect["run"], NMTOOL_HW=str(target))
    assert done.returncode == 0
    assert "stuck neuron" in done.stdout
    assert (checkout / "replay-small.h5").exists()


def test_a_boards_trouble_is_tried_again_and_keeps_its_code(checkout, hardware):
    target = hardware("timeouts: {run: 1ms}")
    done = run_step(checkout, f"sh on-board.sh {target} 3 0")
    assert done.returncode == 8
    assert len(list(checkout.glob("board-*.xml"))) == 3
    assert "attempt 3 of 3" in done.stdout
    summaries = [path.read_text() for path in sorted(checkout.glob("board-*.md"))]
    assert ["1 error" in text for text in summaries] == [True] * 3


def test_a_run_out_of_time_has_a_summary(checkout):
    """The step that shows the summary needs no guard."""
    check, summary = (
        next(step["run"] for step in steps("simulators") if step["name"] == name)
        for name in ("golden runs on the simulators", "summary")
    )
    done = run_step(checkout, check.replace("15m", "1ms"))
    assert done.returncode == 124, done.stderr
    assert run_step(checkout, summary).returncode == 0
    text = (checkout / "step-summary.md").read_text()
    assert "2 error" in text
    assert "not run: --timeout passed" in text


def test_a_pass_on_a_later_attempt_is_said(checkout):
    flaky = "#!/bin/sh\nif [ -e tried ]; then echo ok; exit 0; fi\ntouch tried\nexit 7\n"
    (checkout / "bin/nmtool").write_text(flaky)
    done = run_step(checkout, "sh on-board.sh anything 3 0")
    assert done.returncode == 0
    assert "passed only on attempt 2" in done.stdout
