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
    target = hardware("faults: {injected: [{kind: stuck, population: output, neuron: 3}]}")
    made = ("golden", "record", "run/program.h5", "--samples", "2", "--policy", "rate=1e9")
    done = run_step(checkout, f"nmtool {' '.join(made)} -o golden/sub/loose.h5")
    assert done.returncode == 0, done.stderr
    check = next(s for s in steps("board") if s["name"] == "golden runs on the board")
    done = run_step(checkout, check["run"], NMTOOL_HW=str(target))
    assert done.returncode == 1, done.stderr
    assert [path.name for path in checkout.glob("board-*.xml")] == ["board-1.xml"]
    assert "stuck neuron" in done.stdout
    assert [path.name for path in checkout.glob("replay-*")] == ["replay-small.h5"]


def test_all_attempts_and_bisections_end_before_the_job_does(checkout):
    """Every call of nmtool has a timeout, and none is longer than what is left of MINUTES."""
    (checkout / "bin/nmtool").write_text('#!/bin/sh\necho "$*" >> calls\nexit 8\n')
    run_step(checkout, "sh on-board.sh anything 3 0 2")
    calls = (checkout / "calls").read_text().splitlines()
    assert len(calls) == 3
    seconds = [int(call.split("--timeout ")[1].split("s")[0]) for call in calls]
    assert all(0 < value <= 120 for value in seconds)
    job = WORKFLOW["jobs"]["board"]
    check = next(s for s in steps("board") if s["name"] == "golden runs on the board")
    minutes = int(check["run"].split("#")[0].split()[-1])
    assert minutes < job["timeout-minutes"]
    script = (EXAMPLE / "on-board.sh").read_text()
    lines = script.replace("\\\n", "").splitlines()
    running = [line for line in lines if line.lstrip().startswith("nmtool ")]
    assert len(running) == 2
    assert all('--timeout "$(left ' in line for line in running)


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
