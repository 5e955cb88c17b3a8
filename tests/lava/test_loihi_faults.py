"""Boards that are not there, hang, die or talk nonsense: the right error, and nothing is left."""

import os
import signal

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.backends.lava import link
from nmtool.backends.locks import holder
from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import compile_program
from nmtool.errors import BoardError, BoardTimeout, BoardUnavailable, DependencyError
from nmtool.network import Input
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

pytestmark = pytest.mark.usefixtures("stand_in", "nothing_left")

PROGRAM = compile_program(
    QuantizedNetwork(
        "small",
        "loihi2",
        {"input": Input((2,))},
        {"out": QuantizedPopulation((3,), 300, 20, 150, np.zeros(3, np.int64))},
        {
            "w": QuantizedProjection.dense(
                "input", "out", np.full((3, 2), 100), SynapseFormat(8, 0, "mixed")
            )
        },
        ("out",),
    ),
    load_chip("loihi2"),
    n_steps=10,
)
SPIKES = SpikeTrain.from_raster(np.ones((2, 10)))
LONG = SpikeTrain.from_raster(np.ones((400, 2, 200)))


def run(target, spikes=SPIKES, **options):
    with open_session(PROGRAM, target) as session:
        return session.run(spikes, **options)


@pytest.mark.parametrize(
    ("sinfo", "says"),
    [
        ("down*", r"partition oheogulch is up, nodes 1 down\*"),
        ("drained", r"partition oheogulch is up, nodes 1 drained"),
        ("broken", r"sinfo: exit code 1: .* Unable to contact slurm controller"),
        ("hang", r"sinfo: killed after 0.5 s"),
    ],
)
def test_a_partition_that_cannot_be_had(stand_in, board, sinfo, says):
    stand_in(sinfo=sinfo)
    with pytest.raises(BoardUnavailable, match=says) as caught:
        run(board(timeouts={"board": "500ms"}))
    assert caught.value.exit_code == 7
    assert "target og: no board (SLURM partition oheogulch)" in str(caught.value)


def test_names_that_slurm_does_not_know(board):
    with pytest.raises(BoardUnavailable, match="no partition nowhere, only cpu, oheogulch"):
        run(board().model_copy(update={"board": slurm(partition="nowhere")}))
    with pytest.raises(BoardUnavailable, match="no node ncl-og-09"):
        run(board().model_copy(update={"board": slurm(node="ncl-og-09")}))
    both = slurm(node="ncl-og-01", partition="cpu")
    with pytest.raises(BoardUnavailable, match="no node ncl-og-01 in partition cpu"):
        run(board().model_copy(update={"board": both}))


def slurm(**where):
    from nmtool.chip import Board

    return Board.model_validate({"slurm": where})


def test_a_machine_without_slurm(board, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BoardUnavailable, match=r"there is no SLURM here \(no sinfo\)"):
        run(board())


def test_a_host_that_does_not_answer(stand_in, board):
    stand_in(ping="1")
    with pytest.raises(BoardUnavailable, match=r"no board \(host 10\.0\.0\.9\): ping: exit code 1"):
        run(board("10.0.0.9"))
    assert holder("10.0.0.9") is None


def test_the_board_is_chosen_inside_of_the_worker_only(board):
    before = dict(os.environ)
    assert len(run(board("10.0.0.9")).spikes["out"])
    assert len(run(board()).spikes["out"])
    assert dict(os.environ) == before


def test_without_intels_package(board, monkeypatch):
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if "stand_in" not in p])
    with pytest.raises(DependencyError, match=r"target og: lava-loihi is not installed; .*INRC"):
        run(board())


def test_a_board_that_hangs(stand_in, board, gone):
    stand_in("hang")
    with open_session(PROGRAM, board(timeouts={"run": "4s"})) as session:
        with pytest.raises(
            BoardTimeout, match=r"SLURM partition oheogulch\) took longer"
        ) as caught:
            session.run(SPIKES)
        assert session._worker.pid is None
    assert "timeouts.run of the target is 4 s" in str(caught.value)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    ("words", "probe", "says"),
    [
        ("garbage", "spikes", r"sent garbage: spikes/out: spikes of \[\d+, \d+\], allowed 0, 1"),
        ("garbage-states", "voltage", r"sent garbage: voltage/out: 32 values of int32, allowed 33"),
        ("crash", "spikes", r"NcL2ModelLif: RuntimeError: the board is on fire"),
    ],
)
def test_a_board_that_talks_nonsense_or_dies(stand_in, board, words, probe, says):
    stand_in(words)
    with pytest.raises(BoardError, match=says) as caught:
        run(board(), probe=probe)
    assert caught.value.exit_code == 8
    assert not isinstance(caught.value, BoardTimeout)


def test_a_worker_that_talks_nonsense(board, monkeypatch):
    code = "import os, sys, time; os.write(int(sys.argv[-1]), b'nonsense' * 9); time.sleep(60)"
    monkeypatch.setattr(link, "_WORKER", ("-c", code))
    with pytest.raises(BoardError, match="worker sent garbage: not a message"):
        run(board())


def test_a_killed_worker(board, gone):
    victims = []
    with open_session(PROGRAM, board("10.0.0.9")) as session:

        def kill(done, total):
            if not victims:
                victims.append(session._worker.pid)
                os.kill(victims[0], signal.SIGKILL)

        with pytest.raises(BoardError, match="signal 9"):
            session.run(LONG, progress=kill)
        assert gone(victims[0])
        assert holder("10.0.0.9")["pid"] == os.getpid()
        assert len(session.run(SPIKES).spikes["out"])
    assert holder("10.0.0.9") is None


def test_one_session_at_a_time_holds_a_host(board):
    with open_session(PROGRAM, board("10.0.0.9")):
        with pytest.raises(BoardUnavailable, match=rf"10\.0\.0\.9: held by .*{os.getpid()}"):
            open_session(PROGRAM, board("10.0.0.9"))
        open_session(PROGRAM, board("10.0.0.8")).close()
        with open_session(PROGRAM, board()), open_session(PROGRAM, board()):
            pass  # SLURM's job is the lock
    open_session(PROGRAM, board("10.0.0.9")).close()


def test_recovery_after_a_crash(stand_in, board, tmp_path, capfd):
    stand_in(f"crash-once={tmp_path / 'burnt'}")
    found = run(board(recovery=["reload", "reset"]))
    assert len(found.spikes["out"])
    (attempt,) = found.provenance["attempts"]
    assert attempt["step"] == "reload"
    assert "the board caught fire once" in attempt["error"]
    assert "attempt 1 of 3 failed" in capfd.readouterr().err
