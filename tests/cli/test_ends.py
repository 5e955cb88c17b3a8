"""How a command can be ended from outside: signals, --timeout, a full or read-only disk."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from nmtool import formats
from nmtool.backends import Recording
from nmtool.backends.emulator import EmulatorSession
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.reference import ReferenceSession
from nmtool.compiler import Program

GIVEN = ("--input", "spikes.npy")
WRITERS = {
    "compile": ["compile", "run", "--hw", "loihi2", "-o", "new.h5"],
    "deploy": ["deploy", "run/program.h5", "--hw", "reference", "-o", "new.h5", *GIVEN],
    "finetune": ["finetune", "run", "--hw", "reference", "-o", "new"],
}
RUNNERS = {
    "deploy": WRITERS["deploy"],
    "finetune": WRITERS["finetune"],
    "compare": ["compare", "reference", "reference", "--program", "run/program.h5", *GIVEN],
}
KEPT = {"finetune": ("new/fault_free/leg.json", "new/transfer-seed3/leg.json")}
"""What was finished before the end; --resume does not run it again."""
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture(autouse=True)
def given(rasters):
    """Rasters spare most commands the data set, and the import of scikit-learn."""


@pytest.mark.parametrize("number", [*ENDS])
@pytest.mark.parametrize("verb", [*WRITERS])
def test_a_signal_while_a_file_is_written(nmtool, folder, unchanged, monkeypatch, verb, number):
    written = []

    def fsync(handle):
        written.append(os.fstat(handle).st_size)
        signal.raise_signal(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with unchanged(folder):
        done = nmtool(*WRITERS[verb], "--json")
    assert written[0] > 0, "the file was there, and is gone"
    code, says = ENDS[number]
    assert done.code == code
    assert done.err.endswith(f"error: {says}\n")
    assert done.json["exit_code"] == code


@pytest.mark.parametrize("number", [*ENDS])
@pytest.mark.parametrize("verb", [*RUNNERS])
def test_a_signal_while_a_program_runs(nmtool, folder, unchanged, monkeypatch, verb, number):
    plain = ReferenceSession.run

    def run(self, *arguments, **keywords):
        plain(self, *arguments, **keywords)
        signal.raise_signal(number)

    monkeypatch.setattr(ReferenceSession, "run", run)
    with unchanged(folder, KEPT.get(verb, ())):
        assert nmtool(*RUNNERS[verb]).code == ENDS[number][0]


@pytest.mark.parametrize("number", [*ENDS])
def test_a_signal_during_config_check(nmtool, folder, monkeypatch, number):
    monkeypatch.setattr("nmtool.yamlio.parse", lambda *_: signal.raise_signal(number))
    assert nmtool("config", "check", "experiment.yaml").code == ENDS[number][0]


def test_handlers_are_as_before_afterwards(nmtool, folder):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    assert nmtool("config", "check", "experiment.yaml", "--timeout", "5s").code == 0
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.fixture
def long_input(folder):
    """So many steps that a run takes minutes."""
    spikes = np.zeros((1, 64, 2_000_000), dtype=np.bool_)
    np.save(folder / "long.npy", spikes)
    return "long.npy"


def start(folder, mark, *arguments):
    """A process that prints READY when the program is opened on its target, then goes on."""
    code = (
        "import sys, nmtool.cli.deploy as d, nmtool.backends as b, nmtool.learning.study as s\n"
        "real = b.open_session\n"
        "def announced(*a):\n"
        "    session = real(*a)\n"
        "    print('READY', file=sys.stderr, flush=True)\n"
        "    return session\n"
        "d.open_session = s.open_session = announced\n"
        "from nmtool.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "NMTOOL_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "READY" in line:
            return process
    pytest.fail(f"ended before it ran: {process.wait()}")


LIVE = {
    "deploy": (["deploy", "run/program.h5", "--hw", "reference", "-o", "new.h5"], "long"),
    "finetune": (["finetune", "run", "--hw", "reference", "-s", "finetune.rounds=100000"], ""),
}


@pytest.mark.parametrize(
    ("verb", "number"), [("deploy", signal.SIGINT), ("finetune", signal.SIGTERM)]
)
def test_a_signal_to_a_living_process(folder, unchanged, long_input, none_left, verb, number):
    arguments, given = LIVE[verb]
    mark = uuid.uuid4().hex
    ignore = ("run/finetune",)
    with unchanged(folder, ignore):
        process = start(folder, mark, *arguments, *(["--input", long_input] if given else []))
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    code, says = ENDS[number]
    assert process.returncode == code, err
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not [p for p in folder.rglob("*") if p.name.startswith(".")]
    assert none_left(mark)


def test_ctrl_c_ends_golden_check_with_its_reports(folder, nmtool, none_left):
    """In a session of its own, as a terminal starts it: nothing else may take the signal."""
    made = nmtool("golden", "record", "run/program.h5", "--samples", 2, "-o", "g.h5")
    assert made.code == 0, made.err
    code = (
        "import sys, time\n"
        "import nmtool.regression.check as c\n"
        "def forever(*arguments):\n"
        "    print('READY', file=sys.stderr, flush=True)\n"
        "    time.sleep(600)\n"
        "c.run_on = forever\n"
        "from nmtool.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "golden", "check", "g.h5", "--junit", "j.xml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any("READY" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "not finished: interrupted" in out
    assert "Traceback" not in err
    assert (folder / "j.xml").exists()


@pytest.mark.lava
@pytest.mark.skipif(lava_missing() is not None, reason=str(lava_missing()))
@pytest.mark.parametrize(
    "end",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("--timeout", marks=pytest.mark.slow),
    ],
)
def test_lava_leaves_no_process_behind(folder, unchanged, long_input, none_left, end):
    mark = uuid.uuid4().hex
    arguments = ["deploy", "run/program.h5", "--hw", "lava-sim", "--input", long_input]
    limit = ["--timeout", "6s"] if end == "--timeout" else []
    with unchanged(folder):
        process = start(folder, mark, *arguments, "-o", "new.h5", *limit)
        if end != "--timeout":
            time.sleep(2)
            process.send_signal(end)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (124 if end == "--timeout" else ENDS[end][0]), err
    assert none_left(mark)


@pytest.mark.parametrize("verb", [*RUNNERS])
def test_a_timeout(nmtool, folder, unchanged, monkeypatch, verb):
    monkeypatch.setattr(ReferenceSession, "run", lambda *_, **__: time.sleep(30))
    started = time.monotonic()
    with unchanged(folder, KEPT.get(verb, ())):
        done = nmtool(*RUNNERS[verb], "--timeout", "300ms")
    assert time.monotonic() - started < 10
    assert done.code == 124
    assert "--timeout passed" in done.err
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_targets_own_timeout_is_another_thing(nmtool, hardware, long_input):
    path = hardware("timeouts: {run: 300ms}")
    done = nmtool("deploy", "run/program.h5", "--hw", path, "--input", long_input)
    assert done.code == 8
    assert "timeouts.run" in done.err


def test_a_timeout_that_is_long_enough_changes_nothing(nmtool, folder):
    assert nmtool(*WRITERS["compile"], "--timeout", "10m").code == 0


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("verb", ["compile", "finetune"])
def test_a_disk_that_is_full(shell, folder, unchanged, verb):
    with unchanged(folder, KEPT.get(verb, ())):
        done = shell(*WRITERS[verb], "--json", preexec_fn=small_files_only)
    assert done.code == 9, done.err
    assert "new" in done.err
    assert "nothing was changed" in done.err
    assert "Traceback" not in done.err
    assert "Exception ignored" not in done.err
    assert done.json["exit_code"] == 9


def test_a_full_disk_keeps_the_file_that_was_there(shell, folder, unchanged):
    arguments = ["compile", "run", "--hw", "loihi2", "--force"]
    with unchanged(folder):
        assert shell(*arguments, preexec_fn=small_files_only).code == 9


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can mount")
def test_a_small_file_system(nmtool, folder, unchanged):
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        with unchanged(folder):
            done = nmtool("compile", "run", "--hw", "loihi2", "-o", "disk/new.h5")
        assert done.code == 9
        assert "disk/new.h5: cannot be written (No space left on device)" in done.err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["config", "schema"], WRITERS["deploy"]])
def test_stdout_on_a_full_disk(folder, arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nmtool", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 9
    assert done.stderr == "error: output: No space left on device\n"


def test_a_reader_that_goes_away(folder):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nmtool", "config", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 9, "not 1: no check failed"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("verb", [*WRITERS])
def test_a_place_that_cannot_be_written(nmtool, folder, unchanged, verb):
    arguments = [a.replace("new", "experiment.yaml/new") for a in WRITERS[verb]]
    with unchanged(folder):
        done = nmtool(*arguments)
    assert done.code == 9
    assert "experiment.yaml/new" in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def mortal():
    """A command that takes from root the right to pass over permissions; nothing for others."""
    if os.getuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv, or another user than root")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@pytest.fixture
def read_only(folder):
    for each in (folder / "run", folder):
        each.chmod(0o555)
    yield folder
    for each in (folder, folder / "run"):
        each.chmod(0o755)


@pytest.mark.parametrize("verb", ["compile", "deploy"])
def test_a_folder_that_is_read_only(shell, unchanged, read_only, mortal, verb):
    with unchanged(read_only):
        done = shell(*WRITERS[verb], prefix=mortal)
    assert done.code == 9, done.err
    assert "Permission denied" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("code", "file", "arguments"),
    [
        (6, "run/program.h5", ["deploy", "run/program.h5", "--hw", "reference"]),
        (6, "run/network.h5", ["compile", "run", "--hw", "reference", "-o", "new.h5"]),
        (6, "run/experiment.json", ["finetune", "run", "--hw", "reference"]),
        (3, "experiment.yaml", ["config", "check", "experiment.yaml"]),
        (3, "experiment.yaml", ["train", "experiment.yaml"]),
        (3, "experiment.yaml", ["deploy", "run/program.h5", "--hw", "./experiment.yaml"]),
        (3, "spikes.npy", ["deploy", "run/program.h5", "--hw", "reference", "--input", "{}"]),
    ],
)
def test_a_file_that_may_not_be_read(shell, folder, rasters, mortal, code, file, arguments):
    (folder / file).chmod(0)
    done = shell(*(a.format("spikes.npy") for a in arguments), prefix=mortal)
    assert done.code == code, done.err
    assert file in done.err
    assert "ermission denied" in done.err
    assert "Traceback" not in done.err


def test_a_bug_is_called_a_bug(nmtool, folder, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("nmtool.cli.compile_.load_network", fail)
    done = nmtool(*WRITERS["compile"], "--json")
    assert done.code == 70
    assert "Traceback" in done.err
    assert "a bug in nmtool: ZeroDivisionError: by accident" in done.err
    assert done.json["exit_code"] == 70


def test_an_interrupted_study_is_continued_to_the_same_result(nmtool, folder, monkeypatch):
    study = ["finetune", "run", "--hw", "loihi2-faulty", "-s", "finetune.rounds=3"]
    study += ["-s", "finetune.controls=[readout]"]
    assert nmtool(*study, "-o", "whole").code == 0
    plain, count = EmulatorSession.run, []

    def run(self, *arguments, **keywords):
        count.append(1)
        if len(count) == 12:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(EmulatorSession, "run", run)
        assert nmtool(*study, "-o", "parts").code == 143
    assert nmtool(*study, "-o", "parts").code == 2
    assert nmtool(*study, "-o", "parts", "--resume", "-s", "finetune.lr=1").code == 6
    again = nmtool(*study, "-o", "parts", "--resume", "--json")
    assert again.code == 0
    assert again.json["columns"] == json.loads(Path("whole/result.json").read_text())["columns"]
    for name in ("readout-seed7", "loop-seed7"):
        whole = formats.load_as(f"whole/{name}/program.h5", Program)
        assert whole.fingerprint == formats.load_as(f"parts/{name}/program.h5", Program).fingerprint


def test_the_recording_of_a_run_that_ended_well_is_whole(nmtool, folder):
    assert nmtool(*WRITERS["deploy"]).code == 0
    assert formats.load_as("new.h5", Recording).n_steps == 12


SWALLOWED = """
import os, signal, sys, time, click
from nmtool.cli.common import run

class Dying:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0)

@click.command()
def forget():
    Dying()
    print("alive", flush=True)
    time.sleep(30)

sys.exit(run(forget, []))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_destructor_is_not_lost(number):
    code = SWALLOWED.format(number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == ENDS[number][0], done.stderr
    assert done.stdout == "alive\n"
    assert "Traceback" not in done.stderr
