"""Locks of boards: one holder, named; gone with its process."""

import gc
import os
import subprocess
import sys

import pytest
import regression_networks as nets

from nmtool.backends.locks import BoardLock, describe, holder, lock_folder
from nmtool.errors import BoardUnavailable, WriteError

HOLD = """
import sys
from nmtool.backends.locks import BoardLock
lock = BoardLock("10.0.0.1")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NMTOOL_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def other():
    """Another process that holds 10.0.0.1."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


@pytest.fixture
def other_worker(monkeypatch):
    """A worker of a pytest-xdist session that holds 10.0.0.1."""
    env = {
        **os.environ,
        "PYTEST_XDIST_TESTRUNUID": "session-1",
        "PYTEST_XDIST_WORKER": "gw3",
        "PYTEST_CURRENT_TEST": "test_chip.py::test_a (call)",
    }
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_a_lock_is_held_until_it_is_released(folder):
    lock = BoardLock("10.0.0.1")
    found = holder("10.0.0.1")
    assert found["pid"] == os.getpid()
    assert set(found) == {"user", "pid", "host", "since", "command", "session"}
    with pytest.raises(BoardUnavailable, match=rf"board 10\.0\.0\.1: held by .*{os.getpid()}"):
        BoardLock("10.0.0.1")
    BoardLock("10.0.0.2").release()
    lock.release()
    lock.release()
    assert holder("10.0.0.1") is None
    BoardLock("10.0.0.1").release()


@pytest.mark.parametrize("own", ["session-1", "session-2", None])
def test_workers_of_one_session_take_turns(other_worker, monkeypatch, own):
    """The holder lets go once it has been asked to; only its siblings wait for that."""
    if own is None:
        monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    else:
        monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", own)
    if own != "session-1":
        with pytest.raises(BoardUnavailable, match=r"held by .*pytest gw3 test_chip\.py::test_a"):
            BoardLock("10.0.0.1", turn=60.0)
        return
    monkeypatch.setattr("time.sleep", lambda _: other_worker.stdin.close())
    BoardLock("10.0.0.1", turn=60.0).release()


def test_a_target_waits_its_turn_as_long_as_a_run_may_take(tmp_path, monkeypatch):
    from nmtool.backends.lava import loihi
    from nmtool.chip import load_hardware

    def taken(*arguments):
        raise BoardUnavailable(repr(arguments))

    monkeypatch.setattr(loihi, "loihi_missing", lambda: None)
    monkeypatch.setattr(loihi, "BoardLock", taken)
    (tmp_path / "mine.yaml").write_text(
        "schema: nmtool.hardware/v1\nname: mine\nchip: loihi2\nbackend: lava-loihi\n"
        "board: {host: 10.0.0.1}\ntimeouts: {run: 7s, lock: 3s}\n"
    )
    backend = loihi.LavaLoihiBackend(load_hardware(str(tmp_path / "mine.yaml")))
    with pytest.raises(BoardUnavailable, match=r"\('10\.0\.0\.1', 3\.0, 7\.0\)"):
        backend.open(nets.make_program("dense"))


def test_no_process_waits_for_itself(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "session-1")
    lock = BoardLock("10.0.0.1")
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)
    with pytest.raises(BoardUnavailable, match=rf"held by .*{os.getpid()}"):
        BoardLock("10.0.0.1", turn=5.0)
    assert len(naps) < 10
    lock.release()


def test_a_turn_that_never_comes_is_given_up(other_worker, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "session-1")
    with pytest.raises(BoardUnavailable, match=r"still after 0\.2 s"):
        BoardLock("10.0.0.1", turn=0.2)


def test_another_process_is_named_and_its_death_frees_the_board(other):
    with pytest.raises(BoardUnavailable, match=f"process {other.pid} on") as caught:
        BoardLock("10.0.0.1", 0.2)
    assert "still after 0.2 s" in str(caught.value)
    assert holder("10.0.0.1")["pid"] == other.pid
    other.kill()
    other.wait()
    assert holder("10.0.0.1") is None
    BoardLock("10.0.0.1").release()


def test_a_lock_that_nobody_holds_any_more_is_free():
    lock = BoardLock("10.0.0.1")
    assert holder("10.0.0.1")
    del lock
    gc.collect()
    assert holder("10.0.0.1") is None


def test_waiting_for_a_board(other):
    other.stdin.close()  # it ends by itself, soon
    BoardLock("10.0.0.1", 60.0).release()


def test_other_users_can_take_a_board(folder):
    old = os.umask(0o077)
    try:
        BoardLock("a/b c").release()
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    (file,) = folder.iterdir()
    assert file.name == "a_b_c.lock"
    assert file.stat().st_mode & 0o777 == 0o666


def test_a_look_makes_nothing(folder):
    assert holder("10.0.0.1") is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NMTOOL_LOCKS", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=r"lock folder .*file: not a folder .* NMTOOL_LOCKS"):
        BoardLock("x")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "x.lock").symlink_to(tmp_path / "file")
    monkeypatch.setenv("NMTOOL_LOCKS", str(tmp_path / "locks"))
    with pytest.raises(WriteError, match=r"lock file .*x\.lock"):
        BoardLock("x")


def test_a_damaged_file_is_no_obstacle(folder):
    lock = BoardLock("x")
    lock.path.write_text("not json")
    with pytest.raises(BoardUnavailable, match="somebody whose lock file says nothing"):
        BoardLock("x")
    assert describe({}) == "somebody whose lock file says nothing"
    lock.release()
    BoardLock("x").release()


def test_the_folder_is_the_same_for_all_users(monkeypatch):
    monkeypatch.delenv("NMTOOL_LOCKS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert str(lock_folder()) == "/tmp/nmtool-locks"
