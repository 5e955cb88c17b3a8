"""Golden runs where the process is killed or the disk is full: whole files, or those before."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmtool.regression.golden import load_golden

KILL = "import os, signal\ndef kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
STAGES = {
    "after the run": (
        "import nmtool.regression.check as c, nmtool.cli.golden as g\n"
        "real = c.run_on\n"
        "def run_on(*a):\n    real(*a)\n    kill()\n"
        "c.run_on = g.run_on = run_on\n"
    ),
    "within the file": (
        "import pathlib\n"
        "opened = pathlib.Path.open\n"
        "def open(self, mode='r', *a, **k):\n"
        "    file = opened(self, mode, *a, **k)\n"
        "    if mode != 'wb': return file\n"
        "    file.write(b'half of a golden run'); file.flush(); kill()\n"
        "pathlib.Path.open = open\n"
    ),
    "when the file is whole": "os.fsync = kill\n",
    "before the file takes its place": "import pathlib; pathlib.Path.replace = kill\n",
}


@pytest.fixture
def golden(folder, nmtool):
    """A golden run, in a folder of its own."""
    made = nmtool("golden", "record", "run/program.h5", "--samples", 5, "-o", "golden/small.h5")
    assert made.code == 0, made.err
    return folder / "golden/small.h5"


VERBS = {
    "record": ("record", "run/program.h5", "--samples", 4, "-o", "golden/small.h5", "--force"),
    "accept": ("accept", "golden/small.h5", "--reason", "four samples", "--force"),
    "check": ("check", "golden/small.h5", "--runs", "golden/runs"),
}


def killed(folder, stage, *arguments):
    code = f"{KILL}{STAGES[stage]}from nmtool.cli import main\nmain()\n"
    return subprocess.run(
        [sys.executable, "-c", code, "golden", *map(str, arguments)],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "CI"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("verb", "stage"),
    [
        *((verb, stage) for verb in ("record", "accept") for stage in STAGES),
        ("check", "when the file is whole"),
    ],
)
def test_a_kill_leaves_the_golden_run_as_it_was_and_no_lock(
    nmtool, folder, golden, monkeypatch, verb, stage
):
    monkeypatch.delenv("CI", raising=False)
    before = golden.read_bytes()
    done = killed(folder, stage, *VERBS[verb])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert golden.read_bytes() == before
    assert [path.name for path in golden.parent.rglob("*.h5")] == ["small.h5"]
    assert nmtool("test").code == 0, "what a kill leaves behind is no golden run"
    assert nmtool("golden", *VERBS[verb]).code == 0, "the next one is not locked out"


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


@pytest.mark.parametrize("verb", ["record", "accept"])
def test_a_full_disk_keeps_the_golden_run(shell, folder, golden, unchanged, verb):
    with unchanged(folder):
        done = shell(
            *("golden", *VERBS[verb], "--json"), preexec_fn=small_files_only, env={"CI": ""}
        )
    assert done.code == 9, done.err
    assert "golden/small.h5: cannot be written" in done.err
    assert done.json["exit_code"] == 9
    assert "Traceback" not in done.err


def test_a_full_disk_makes_no_new_golden_run(shell, folder, unchanged):
    record = ("golden", "record", "run/program.h5", "--samples", 5, "-o", "new.h5")
    with unchanged(folder):
        assert shell(*record, preexec_fn=small_files_only).code == 9


def test_a_recording_that_does_not_fit_the_disk_is_told_in_the_reports(shell, folder, golden):
    """The reports are small enough; the recording is not."""
    reports = ("--junit", "j.xml", "--markdown", "s.md", "--json")
    done = shell("golden", *VERBS["check"], *reports, preexec_fn=small_files_only)
    assert done.code == 9, done.err
    (case,) = done.json["cases"]
    assert (case["status"], case["code"]) == ("error", 9)
    assert "small-emulator.h5: cannot be written" in (folder / "s.md").read_text()
    assert "exit code 9" in (folder / "j.xml").read_text()
    assert list((folder / "golden/runs").iterdir()) == []


def test_reports_that_do_not_fit_are_not_there_at_all(shell, folder, golden):
    def tiny():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    check = ("golden", "check", golden, "--junit", "j.xml", "--markdown", "s.md", "--json")
    done = shell(*check, preexec_fn=tiny)
    assert done.code == 9, done.err
    assert "j.xml: cannot be written" in done.err
    assert done.json["exit_code"] == 9
    assert not [path for path in folder.iterdir() if path.name.startswith((".", "j.xml"))]


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("verb", ["record", "accept"])
def test_a_small_file_system(nmtool, folder, golden, unchanged, monkeypatch, verb):
    monkeypatch.delenv("CI", raising=False)
    whole = golden.read_bytes()
    size = -(-len(whole) // 4096) * 4096
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder / "golden")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        (folder / "golden/small.h5").write_bytes(whole)
        with unchanged(folder):
            done = nmtool("golden", *VERBS[verb])
        assert done.code == 9
        assert "No space left on device" in done.err
    finally:
        subprocess.run(["umount", str(folder / "golden")], check=True)


def test_the_first_half_of_a_golden_run_is_refused(nmtool, folder, golden):
    shutil.copy(golden, "half.h5")
    with Path("half.h5").open("rb+") as file:
        file.truncate(golden.stat().st_size // 2)
    with_half = nmtool("golden", "accept", "half.h5", "--reason", "why not", "--force")
    assert (with_half.code, "half.h5: damaged" in with_half.err) == (6, True)
    assert load_golden(golden).n_samples == 5
