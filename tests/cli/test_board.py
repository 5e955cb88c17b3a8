"""nmtool board and nmtool doctor; deploy on a board, with the stand-in for Intel's package."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.locks import BoardLock

STAND_IN = Path(__file__).parents[1] / "loihi_stand_in"
NEEDS_LAVA = pytest.mark.skipif(lava_missing() is not None, reason=str(lava_missing()))
DEPLOY = ("deploy", "run/program.h5", "--input", "spikes.npy", "--hw")


@pytest.fixture
def boards(folder, monkeypatch):
    """A machine with SLURM and ping and without lava-loihi; ``boards(loihi=True)`` installs it."""
    monkeypatch.setenv("PATH", str(STAND_IN / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("NMTOOL_LOCKS", str(folder / "locks"))

    def make(*, loihi=False, words="", sinfo="idle", ping="0"):
        monkeypatch.setenv("STAND_IN", words)
        monkeypatch.setenv("STAND_IN_SINFO", sinfo)
        monkeypatch.setenv("STAND_IN_PING", ping)
        if loihi:
            monkeypatch.syspath_prepend(str(STAND_IN))

    make()
    return make


@pytest.fixture
def mine(folder):
    """./hw_configs/mine.yaml, a board by its host, beside files that are wrong or no targets."""
    place = folder / "hw_configs"
    place.mkdir()
    head = "schema: nmtool.hardware/v1\nchip: loihi2\n"
    board = "backend: lava-loihi\nboard: {host: 10.0.0.9}\n"
    (place / "mine.yaml").write_text(f"{head}name: mine\n{board}")
    (place / "wrong.yaml").write_text(f"{head}name: wrong\nbackend: lava-lohi\n")
    (place / "other.yaml").write_text("schema: nmtool.experiment/v1\n")
    return place / "mine.yaml"


def targets(done):
    assert done.json["schema"] == "nmtool.boards/v1"
    return {target["name"]: target for target in done.json["targets"]}


def test_list_shows_shipped_targets_and_those_of_the_folder(nmtool, boards, mine, unchanged):
    with unchanged(Path()):
        done = nmtool("board", "list", "--json")
    assert done.code == 0
    found = targets(done)
    shipped = {"emulator", "reference", "lava-sim", "loihi2-faulty", "oheo-gulch", "kapoho-point"}
    assert set(found) == {*shipped, "mine", "wrong"}
    assert found["emulator"] | {"file": ""} == {
        "name": "emulator",
        "file": "",
        "backend": "emulator",
        "chip": "loihi2",
        "board": None,
        "cannot_run": [],
        "reachable": True,
        "why": "",
        "held_by": None,
        "exit_code": 0,
        "decides": True,
    }
    assert found["mine"]["board"] == "host 10.0.0.9"
    assert "refractory delay" in found["mine"]["cannot_run"]
    assert found["mine"]["exit_code"] == 10
    assert found["wrong"]["exit_code"] == 3
    assert "wrong.yaml:4:1" in found["wrong"]["why"]


def test_list_looks_where_it_is_told(nmtool, boards, mine):
    there = nmtool("board", "list", "--folder", mine.parent)
    assert "mine" in there.out
    assert "SLURM partition oheogulch" in there.out
    mine.unlink()
    assert "mine" not in nmtool("board", "list").out
    done = nmtool("board", "list", "--folder", "nowhere")
    assert (done.code, "--folder nowhere: no such folder" in done.err) == (3, True)
    assert nmtool("board", "list", "-s", "hw.chip=loihi1").code == 2


def test_check_of_one_target(nmtool, boards, mine):
    assert nmtool("board", "check", "emulator").code == 0
    done = nmtool("board", "check", "mine", "--json")
    assert done.code == 10
    assert "INRC" in done.err
    assert targets(done)["mine"]["reachable"] is False
    assert nmtool("board", "check", "nothing").code == 3
    assert nmtool("board", "check", "wrong").code == 3
    assert nmtool("board", "check", mine).code == 10
    assert nmtool("board", "check").code != 0
    assert nmtool("board", "check", "-s", "hw.chip=loihi1").code == 2


def test_shipped_boards_are_told_and_decide_nothing_unless_named(nmtool, boards, mine):
    mine.unlink()
    (mine.parent / "wrong.yaml").unlink()
    done = nmtool("board", "check", "--json")
    assert done.code == 0, done.err
    found = targets(done)
    assert (found["kapoho-point"]["exit_code"], found["kapoho-point"]["decides"]) == (10, False)
    assert "note: target kapoho-point: " in done.err
    assert "error" not in done.err
    assert nmtool("board", "check", "kapoho-point").code == 10
    text = "schema: nmtool.hardware/v1\nname: own\nchip: loihi2\nbackend: lava-loihi\n"
    (mine.parent / "own.yaml").write_text(f"{text}board: {{host: 10.0.0.9}}\n")
    done = nmtool("board", "check", "--json")
    assert (done.code, targets(done)["own"]["decides"]) == (10, True)


@NEEDS_LAVA
def test_check_asks_slurm_and_hosts(nmtool, boards, mine):
    boards(loihi=True)
    done = nmtool("board", "check", "oheo-gulch")
    assert done.code == 0, done.err
    assert "partition oheogulch is up, nodes 1 idle" in done.out
    assert nmtool("board", "check", "mine").code == 0
    boards(sinfo="down", ping="1")
    done = nmtool("board", "check", "oheo-gulch")
    assert done.code == 7
    assert "nodes 1 down" in done.err
    assert nmtool("board", "check", "mine").code == 7
    override = "hw.board.slurm.partition=cpu"
    assert nmtool("board", "check", "oheo-gulch", "-s", override).code == 0
    (mine.parent.parent / "locks").rmdir()
    (mine.parent.parent / "locks").write_text("")
    assert nmtool("board", "check", "mine").code == 9


@NEEDS_LAVA
def test_a_holder_is_named(nmtool, boards, mine, rasters):
    boards(loihi=True)
    lock = BoardLock("10.0.0.9")
    done = nmtool("board", "check", "mine", "--json")
    assert done.code == 7
    assert f"process {os.getpid()}" in targets(done)["mine"]["held_by"]
    done = nmtool(*DEPLOY, mine)
    assert done.code == 7
    assert "10.0.0.9: held by" in done.err
    lock.release()
    assert targets(nmtool("board", "check", "mine", "--json"))["mine"]["held_by"] is None


@NEEDS_LAVA
@pytest.mark.lava
def test_deploy_says_what_passed_only_on_retry(nmtool, boards, folder, hardware, rasters):
    path = hardware(
        "board: {slurm: {partition: oheogulch}}", "recovery: [reload]", backend="lava-loihi"
    )
    boards(loihi=True, words=f"crash-once={folder / 'burnt'}")
    done = nmtool(*DEPLOY, path, "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert attempt["step"] == "reload"
    assert "passed only on retry: 1 of 2 attempts failed" in done.err
    assert done.json["backend"] == "lava-loihi"
    assert nmtool(*DEPLOY, path, "--dry-run").code == 0


@NEEDS_LAVA
@pytest.mark.parametrize(
    ("state", "code"),
    [({"sinfo": "down"}, 7), ({"words": "no-Dense"}, 10), ({"words": "crash"}, 8)],
)
def test_exit_codes_of_deploy(nmtool, boards, hardware, rasters, unchanged, state, code):
    path = hardware("board: {slurm: {partition: oheogulch}}", backend="lava-loihi")
    boards(loihi=True, **state)
    with unchanged(Path()):
        done = nmtool(*DEPLOY, path, "-o", "out.h5", "--json")
    assert done.code == code, done.err
    assert done.json["exit_code"] == code


def test_doctor(nmtool, boards, unchanged):
    with unchanged(Path()):
        done = nmtool("doctor", "--json")
    assert done.code == 0, done.out
    items = {item["name"]: item for item in done.json["items"]}
    assert {"Python", "nmtool", "numpy", "numba", "h5py", "kernel cache", "lock folder"} <= set(
        items
    )
    assert items["numpy"]["state"] == "ok"
    assert items["SLURM (boards)"]["found"] == "sinfo answers"
    assert items["lava-loihi (boards)"]["state"] == "optional"
    assert "INRC" in items["lava-loihi (boards)"]["mend"]
    text = nmtool("doctor").out
    assert all(name in text for name in items)
    if lava_missing() is None:
        assert "can be imported" in items["Lava (lava-sim)"]["found"]


def test_doctor_finds_what_is_missing(nmtool, boards, monkeypatch):
    plain = importlib.metadata.version

    def version(name):
        if name == "h5py":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numpy": "1.9.9", "pydantic": "3.1"}.get(name) or plain(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    done = nmtool("doctor", "--json")
    assert done.code == 10
    missing = {item["name"]: item for item in done.json["items"] if item["state"] == "missing"}
    assert set(missing) == {"h5py", "numpy", "pydantic"}
    assert missing["numpy"]["mend"] == "pip install 'numpy>=1.26'"
    assert missing["numpy"]["found"].startswith("1.9.9")
    assert "error: missing: " in done.err


def test_doctor_finds_folders_that_cannot_be_written(nmtool, boards, folder, monkeypatch):
    (folder / "locks").write_text("")
    done = nmtool("doctor", "--json")
    assert done.code == 9
    (item,) = [item for item in done.json["items"] if item["state"] == "missing"]
    assert item["name"] == "lock folder"
    assert "chmod 1777" in item["mend"]


def test_doctor_without_lava(nmtool, boards, monkeypatch):
    plain = importlib.metadata.version

    def version(name):
        if name in ("lava-nc", "lava-dl", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("STAND_IN_SINFO", "broken")
    done = nmtool("doctor", "--json")
    assert done.code == 0
    items = {item["name"]: item for item in done.json["items"]}
    for name in ("Lava (lava-sim)", "lava-loihi (boards)", "torch (training)", "SLURM (boards)"):
        assert items[name]["state"] == "optional"
        assert items[name]["mend"]
    assert sys.version.split()[0] in items["Python"]["found"]
