"""``nmtool finetune``: killed and gone on with, recorded and replayed, on boards that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmtool import formats
from nmtool.backends.emulator import EmulatorSession
from nmtool.compiler import Program
from nmtool.errors import BoardError, BoardTimeout, BoardUnavailable

STUDY = ["finetune", "run", "--hw", "loihi2-faulty", "--rounds", "2"]
STUDY += ["-s", "finetune.controls=[transfer]"]
LEG = "loop-seed7"

KILLED = f"""
import os, pathlib, signal, sys
from nmtool.backends.emulator import EmulatorSession
from nmtool.cli import main
plain, count = EmulatorSession.run, []
def run(self, *arguments, **keywords):
    count.extend(pathlib.Path("b/{LEG}").glob("state.h5"))
    if len(count) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *arguments, **keywords)
EmulatorSession.run = run
main()
"""


def killed(*arguments):
    """The command in a process that is killed in round 1, before the third of its four runs."""
    return subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ,
    )


def report(folder, *, seconds=False):
    """What must be the same whenever and wherever it was found out."""
    document = json.loads(Path(folder, "result.json").read_text())
    del document["provenance"], document["timing"]
    for column in document["spent"].values():
        if not seconds:
            del column["seconds"]
    return document


def fingerprint(folder):
    return formats.load_as(f"{folder}/{LEG}/program.h5", Program).fingerprint


@pytest.fixture(scope="module")
def recorded(prepared, tmp_path_factory, nmtool):
    """A study and its log; look, do not touch."""
    folder = tmp_path_factory.mktemp("recorded")
    arguments = [*STUDY[:1], prepared / "run", *STUDY[2:]]
    done = nmtool(*arguments, "-o", folder / "a", "--record", folder / "log.h5")
    assert done.code == 0, done.err
    assert "log.h5; --hw replay:" in done.err
    return folder


def test_a_study_killed_in_a_round_goes_on_to_the_same_report_and_log(folder, nmtool, recorded):
    record = ("-o", "b", "--record", "log.h5")
    done = killed(*STUDY, *record)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("log.h5").exists()
    assert Path("log.h5.part").exists()
    assert not [p for p in Path("b").rglob(".*") if p.stat().st_size], "no half-written file"
    assert nmtool(*STUDY, *record).code == 2
    again = nmtool(*STUDY, *record, "--resume")
    assert again.code == 0, again.err
    assert report("b") == report(recorded / "a")
    assert fingerprint("b") == fingerprint(recorded / "a")
    assert not Path("log.h5.part").exists()
    replay = [*STUDY[:3], "replay:log.h5", *STUDY[4:], "-o", "c"]
    assert nmtool(*replay).code == 0
    assert report("c", seconds=True) == report("b", seconds=True)
    assert fingerprint("c") == fingerprint("b")


def test_what_is_finished_does_not_run_again(folder, nmtool, monkeypatch):
    assert nmtool(*STUDY, "-o", "a").code == 0
    before = report("a", seconds=True)
    Path("a/result.json").unlink()
    monkeypatch.setattr(EmulatorSession, "run", None)
    assert nmtool(*STUDY, "-o", "a", "--resume").code == 0
    assert report("a", seconds=True) == before


def test_a_replay_needs_no_target_and_goes_where_it_hides_nothing(folder, nmtool, recorded):
    arguments = [*STUDY[:3], f"replay:{recorded}/log.h5", *STUDY[4:]]
    done = nmtool(*arguments, "--json")
    assert done.code == 0, done.err
    assert report("run/finetune/replay-log", seconds=True) == report(recorded / "a", seconds=True)
    assert done.json["target"] == "loihi2-faulty"
    assert done.json["provenance"]["replayed"] is True
    assert "a simulator with invented defects, not a chip" in done.err


def test_deploy_answers_from_a_log(folder, nmtool, recorded):
    assert nmtool("compile", "run", "--hw", "loihi2-faulty", "-o", "p.h5").code == 0
    hw = ("--hw", f"replay:{recorded}/log.h5")
    done = nmtool("deploy", "p.h5", *hw, "--probe", "spikes", "-o", "r.h5", "--json")
    assert done.code == 0, done.err
    (transfer,) = report(recorded / "a")["columns"]["transfer"]["seeds"]
    assert done.json["measured"]["accuracy"]["value"] == transfer
    assert nmtool("deploy", "p.h5", *hw, "--probe", "voltage").code == 6
    assert nmtool("deploy", "run/program.h5", *hw).code == 6
    other = nmtool("deploy", "p.h5", *hw, "--data", "digits:validation")
    assert other.code == 6
    assert "the run has the input of SHA-256: recorded" in other.err


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (6, [*STUDY[:3], "replay:{}", *STUDY[4:], "-s", "finetune.lr=0.01"], "the weights of outp"),
        (6, [*STUDY[:3], "replay:none.h5"], "none.h5: no such file"),
        (2, [*STUDY[:3], "replay:{}", "--record", "x.h5"], "found with a log as the target"),
        (2, [*STUDY[:3], "replay:{}", "-s", "hw.faults.seed=8"], "allowed hw.chip=FILE"),
        (3, ["golden", "record", "run/program.h5", "--hw", "replay:{}", "-o", "g.h5"], "a log"),
        (3, ["compile", "run", "--hw", "replay:{}", "-o", "x.h5"], "found a log"),
        (2, [*STUDY, "--board-time", "10"], "--board-time: found '10', allowed a duration"),
        (2, [*STUDY, "--board-time", "0s"], "allowed more than 0"),
        (2, [*STUDY, "--writes", "0"], "--writes"),
        (2, [*STUDY, "--rounds", "0"], "--rounds"),
        (3, [*STUDY, "--rule", "dccl"], "finetune.rule"),
        (2, [*STUDY, "--record", "run/network.h5"], "exists already"),
        (2, [*STUDY, "-o", "run/network.h5", "--force"], "allowed the name of a folder"),
        (2, [*STUDY, "-o", "run"], "use --resume to continue it, or --force"),
        (9, [*STUDY, "-o", "b", "--record", "run/network.h5/log.h5"], "network.h5/log.h5"),
    ],
)
def test_what_is_refused(folder, nmtool, recorded, unchanged, code, arguments, says):
    ignore = ("run/finetune", "b/")
    with unchanged(folder, ignore):
        done = nmtool(*(a.format(recorded / "log.h5") for a in arguments))
    assert done.code == code, done.err
    assert says in done.err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-s", "finetune.burn_in=99"], "finetune.burn_in: found 99 steps, allowed fewer than"),
        (["-s", "finetune.rates={hiden: 0.1}"], "finetune.rates: found the population 'hiden'"),
        (["-s", "finetune.probes=[hiddn]"], "finetune.probes: found the population 'hiddn'"),
        (["--rule", "gone:make"], "finetune.rule gone:make: cannot be imported"),
        (["--writes", "200"], "finetune.writes: found 200, allowed"),
    ],
)
def test_nothing_is_removed_or_begun_for_what_would_fail(
    folder, nmtool, recorded, unchanged, arguments, says, dry
):
    shutil.copytree(recorded / "a", "a")
    with unchanged(folder):
        for output in (["-o", "a", "--force"], ["-o", "b"]):
            done = nmtool(*STUDY, *arguments, *output, *dry)
            assert done.code == 3, done.err
            assert says in done.err


def test_force_removes_the_legs_of_a_study_and_nothing_else(tmp_path):
    from nmtool.learning.study import forget

    own = ["loop-seed7/state.h5", "loop-seed7/program.h5", "fault_free/leg.json", "result.json"]
    others = ["other/program.h5", "other/leg.json", "simulation/program.h5", "loop-seed7/notes.txt"]
    for name in own + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"schema": "nmtool.finetune/v1"}')
    forget(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == sorted(others)
    (tmp_path / "result.json").write_text('{"schema": "mine"}')
    forget(tmp_path)
    assert (tmp_path / "result.json").exists(), "the report of something else"


def test_a_log_with_a_hole_is_not_made_whole(folder, nmtool, monkeypatch):
    plain, count = EmulatorSession.run, []

    def run(self, *arguments, **keywords):
        count.extend(Path(f"b/{LEG}").glob("state.h5"))
        if len(count) == 3:
            raise BoardError("the board has gone")
        return plain(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(EmulatorSession, "run", run)
        assert nmtool(*STUDY, "-o", "b", "--record", "log.h5").code == 8
    assert nmtool(*STUDY, "-o", "b", "--resume").code == 0
    done = nmtool(*STUDY, "-o", "b", "--resume", "--record", "log.h5")
    assert done.code == 6
    assert f"log.h5.part: {LEG}: found" in done.err
    assert "went on without --record; give no --record, or --force" in done.err
    assert not Path("log.h5").exists()


@pytest.mark.parametrize("name", ["leg.json", "state.h5", "program.h5"])
def test_a_leg_that_is_damaged_can_be_run_again(folder, nmtool, recorded, name):
    shutil.copytree(recorded / "a", "a")
    Path("a", LEG, name).write_bytes(b"?")
    if name == "state.h5":
        Path("a", LEG, "leg.json").unlink()
    done = nmtool(*STUDY, "-o", "a", "--resume")
    assert done.code == 6
    removed = Path("a", LEG, name if name == "state.h5" else "leg.json")
    assert f"{LEG}/{name}: " in done.err
    assert f"remove {removed}, and --resume runs that leg again" in done.err
    removed.unlink()
    assert nmtool(*STUDY, "-o", "a", "--resume").code == 0
    assert report("a") == report(recorded / "a")


def test_what_was_clipped_is_said(folder, nmtool):
    few = ("-s", "hw.weight_bits=2")
    said = nmtool("compile", "run", "--hw", "loihi2-faulty", *few, "-o", "p.h5").err
    warned = [line for line in said.splitlines() if "NM-FIT" in line]
    done = nmtool(*STUDY, *few, "--dry-run")
    assert done.code == 0
    assert warned
    assert [line for line in done.err.splitlines() if "NM-FIT" in line] == warned


def test_a_loop_without_hidden_layers_is_the_control_and_said_to_be(folder, nmtool):
    for more in (["-s", "finetune.readout_rounds=2"], ["--rule", "readout"]):
        done = nmtool(*STUDY, *more, "--dry-run")
        assert done.code == 0
        assert "warning: no hidden layer will learn, loop and readout do the same" in done.err
    assert "warning: no hidden layer" not in nmtool(*STUDY, "--dry-run").err


@pytest.mark.parametrize(
    ("error", "code"), [(BoardTimeout, 8), (BoardError, 8), (BoardUnavailable, 7)]
)
def test_a_board_that_fails_in_a_round(folder, nmtool, recorded, monkeypatch, error, code):
    """Before the third of the four runs of round 1."""
    plain, count = EmulatorSession.run, []

    def run(self, *arguments, **keywords):
        count.extend(Path(f"b/{LEG}").glob("state.h5"))
        if len(count) == 3:
            raise error("the board has gone")
        return plain(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(EmulatorSession, "run", run)
        done = nmtool(*STUDY, "-o", "b")
    assert done.code == code
    assert "error: the board has gone" in done.err
    assert "the same command with --resume continues it" in done.err
    assert nmtool(*STUDY, "-o", "b", "--resume").code == 0
    assert report("b") == report(recorded / "a")


def test_the_report_says_what_was_spent(folder, nmtool):
    limits = ("--rounds", "2", "--writes", "1", "--board-time", "10m")
    settings = ("-s", "finetune.lr=0.05", "-s", "finetune.diagnosis=false")
    done = nmtool(*STUDY[:4], *limits, *settings, "-o", "a")
    assert done.code == 0, done.err
    assert "loop: ended by the budget: 1 writes" in done.out
    assert "the columns did not do the same number of rounds" in done.out
    assert "no claim: no hidden layer learned, the loop is the control readout" in done.out
    assert "and the loop has 0" in done.out
    told = report("a")
    assert told["schema"] == "nmtool.finetune/v1"
    assert told["columns"]["loop"]["rounds"] == told["columns"]["loop"]["kept"] == [0]
    assert told["columns"]["loop"]["std"] is None
    assert told["columns"]["simulation"]["rounds"] == [2]
    assert told["columns"]["loop"]["probed"] == 1
    assert told["spent"]["loop"]["writes"] <= 1
    assert told["verdict"]["claim"] == "no claim"
    stored = json.loads(Path("a/result.json").read_text())["provenance"]["experiment"]
    assert stored["finetune"]["board_time"] == "600.0s"
