"""The recovery ladder: which faults climb it, in what order, and what is told."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nmtool
from nmtool.backends import open_session
from nmtool.backends.commands import run_command
from nmtool.backends.recovery import RecoveringSession
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import HardwareConfig, RecoveryCommand, load_hardware
from nmtool.errors import BoardError, BoardTimeout, BoardUnavailable, ConfigError, FitError

NETWORK = nmtool.Network(
    "small",
    {"input": nmtool.Input((2,))},
    {"out": nmtool.Population((3,), nmtool.CubaLif(1.0, 0.25, 0.03))},
    {"w": nmtool.Projection.dense("input", "out", np.full((3, 2), 0.7))},
    ("out",),
)
PROGRAM = nmtool.compile(NETWORK)
SPIKES = nmtool.SpikeTrain.from_raster(np.ones((2, 6)))


class Faulty:
    """Opens sessions of the reference that fail as they are told, and counts what happens."""

    def __init__(self, *, opens=(), runs=()):
        self.opens, self.runs = [*opens], [*runs]
        self.log = []

    def __call__(self, program):
        self.log.append("open")
        if self.opens and (error := self.opens.pop(0)):
            raise error
        session = ReferenceBackend().open(program)
        plain_run, plain_close, plain_reset = session.run, session.close, session.reset

        def run(*arguments):
            self.log.append("run")
            if self.runs and (error := self.runs.pop(0)):
                raise error
            return plain_run(*arguments)

        def close():
            self.log.append("close")
            plain_close()

        def reset():
            self.log.append("reset")
            plain_reset()

        session.run, session.close, session.reset = run, close, reset
        return session


def recovering(faulty, *ladder):
    told = []
    session = RecoveringSession(PROGRAM, faulty, ladder, told.append)
    return session, told


def test_steps_are_climbed_one_by_one():
    faulty = Faulty(runs=[BoardTimeout("silent"), BoardError("garbage"), BoardError("again"), None])
    command = RecoveryCommand(command=f"{sys.executable} -c 'print(1)'", timeout="60s")
    session, told = recovering(faulty, "reload", "reset", command)
    with session:
        found = session.run(SPIKES)
    attempts = found.provenance["attempts"]
    assert [a["step"] for a in attempts] == ["reload", "reset", str(command)]
    assert [a["error"] for a in attempts] == [
        "BoardTimeout: silent",
        "BoardError: garbage",
        "BoardError: again",
    ]
    assert all(a["seconds"] >= 0 for a in attempts)
    assert attempts[2]["command"] == "exit code 0"
    expected = "open run reset run close open run close open run close"
    assert " ".join(faulty.log) == expected
    assert told[0] == "recovery: attempt 1 of 4 failed: silent; next: reload"
    assert len(told) == 4
    with ReferenceBackend().open(PROGRAM) as plain:
        assert np.array_equal(
            found.spikes["out"].to_raster(), plain.run(SPIKES).spikes["out"].to_raster()
        )


def test_a_run_that_passes_at_once_says_nothing():
    faulty = Faulty()
    session, told = recovering(faulty, "reload")
    with session:
        assert "attempts" not in session.run(SPIKES).provenance
    assert not told


def test_the_last_fault_is_raised_with_its_own_class():
    faulty = Faulty(runs=[BoardError("one"), BoardTimeout("two")])
    session, _ = recovering(faulty, "reload")
    with session:
        with pytest.raises(BoardTimeout, match="two; recovery did not help: reload"):
            session.run(SPIKES)
        found = session.run(SPIKES)
    assert "attempts" not in found.provenance
    assert faulty.log.count("open") == 2


def test_a_board_that_comes_back():
    faulty = Faulty(opens=[BoardUnavailable("partition down"), None])
    session, told = recovering(faulty, "reset")
    assert "partition down" in told[0]
    with session:
        assert session.run(SPIKES).provenance["attempts"][0]["step"] == "reset"
    with pytest.raises(BoardUnavailable, match="gone; recovery did not help: reset"):
        recovering(Faulty(opens=[BoardUnavailable("down"), BoardUnavailable("gone")]), "reset")


def test_only_faults_of_the_board_climb():
    for error in (ConfigError("wrong"), FitError("large"), ValueError("bug")):
        faulty = Faulty(runs=[error])
        session, told = recovering(faulty, "reload", "reset")
        with session, pytest.raises(type(error)):
            session.run(SPIKES)
        assert not told


def test_a_stream_is_not_repeated_and_weights_are_kept():
    faulty = Faulty(runs=[BoardError("once")])
    session, _ = recovering(faulty, "reset")
    mantissa = np.zeros_like(PROGRAM.network.projections["w"].weight_mantissa)
    with session:
        assert len(session.stream(SPIKES).spikes["out"])
        assert session.write_weights("w", mantissa) == 6
        assert not len(session.run(SPIKES).spikes["out"])
        assert session.program.fingerprint == PROGRAM.with_weights({"w": mantissa}).fingerprint


def test_any_backend_has_a_ladder(capsys):
    target = load_hardware("reference", ["recovery=[reload]"])
    plain = open_session(PROGRAM, load_hardware("reference"))
    assert not isinstance(plain, RecoveringSession)
    with open_session(PROGRAM, target) as session:
        assert isinstance(session, RecoveringSession)
        assert len(session.run(SPIKES).spikes["out"])
    slow = target.model_copy(update={"timeouts": target.timeouts.model_copy(update={"run": 1e-9})})
    with open_session(PROGRAM, slow) as session, pytest.raises(BoardTimeout, match="did not help"):
        session.run(SPIKES)
    assert "recovery: attempt 1 of 2 failed" in capsys.readouterr().err


def test_a_failed_command_is_told_and_the_run_tried_again():
    faulty = Faulty(runs=[BoardError("one")])
    command = RecoveryCommand(command="/nowhere/mend --now", timeout="5s")
    session, told = recovering(faulty, command)
    with session:
        (attempt,) = session.run(SPIKES).provenance["attempts"]
    assert attempt["command"] == "/nowhere/mend: No such file or directory"
    assert told[-1] == "recovery: /nowhere/mend: No such file or directory"


def test_commands_run_without_a_shell_and_die_as_a_group(tmp_path):
    done = run_command([sys.executable, "-c", "print('$HOME;ls')"], 60)
    assert done.ok
    assert done.output == "$HOME;ls\n"
    done = run_command([sys.executable, "-c", "import sys; sys.exit('no power')"], 60)
    assert (done.code, done.problem) == (1, f"{sys.executable}: exit code 1: no power")
    pid = tmp_path / "pid"
    code = f"sleep 600 & echo $! > {pid}; wait"
    done = run_command(["sh", "-c", code], 1.0)
    assert done.code is None
    assert done.problem == "sh: killed after 1 s"
    deadline = time.monotonic() + 10  # it is dead, and reaped by whom it now belongs to
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(int(pid.read_text()))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def config(**keys):
    head = {"schema": "nmtool.hardware/v1", "name": "x", "chip": "loihi2"}
    return HardwareConfig.model_validate({**head, **keys})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"recovery": ["reboot"]}, "reload"),
        ({"recovery": [{"command": "'unfinished"}]}, "quoting"),
        ({"recovery": [{"command": " "}]}, "one word"),
        ({"board": {"host": "a"}}, "no board with the backend emulator"),
        ({"measure": ["time"]}, "no measure with the backend emulator"),
        ({"allow_python_models": True}, "no allow_python_models with"),
        ({"backend": "lava-loihi"}, "a board with the backend lava-loihi"),
        ({"backend": "lava-loihi", "board": {}}, "either slurm or host"),
        ({"backend": "lava-loihi", "board": {"slurm": {}}}, "a partition, a node, or both"),
        ({"backend": "lava-loihi", "board": {"host": "-f"}}, "pattern"),
        ({"backend": "lava-loihi", "board": {"host": "a", "slurm": {"node": "b"}}}, "one of them"),
    ],
)
def test_wrong_targets_are_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        config(**keys)


def test_right_targets():
    target = config(recovery=["reload", {"command": "mend 'the board'", "timeout": "2m"}])
    assert target.recovery[1].timeout == 120.0
    assert str(target.recovery[1]) == "command mend 'the board'"
    made = config(backend="lava-loihi", board={"slurm": {"partition": "p", "node": "n"}})
    assert str(made.board) == "SLURM partition p node n"
