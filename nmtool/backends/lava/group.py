"""A child process in a group of its own, which is killed as a whole and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_PACKAGE_PARENT = Path(__file__).resolve().parents[3]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def worker_environment() -> dict[str, str]:
    """Make the environment of the worker: the same modules as here, found in the same order.

    Lava starts a process for each population and each projection, so every library keeps to one
    thread.
    """
    environment = dict(os.environ)
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, str(_PACKAGE_PARENT)])
    environment["PYTHONSAFEPATH"] = "1"
    # A user's "error" filter would turn Lava's warnings into failures.
    environment.pop("PYTHONWARNINGS", None)
    environment.update(dict.fromkeys(_ONE_THREAD, "1"))
    return environment


def _lives(group: int) -> bool:
    """Whether a process group has a member that still runs.

    The dead count for the kernel until they are reaped, which is up to process 1 and can take it
    seconds; where there is a /proc, it tells them apart.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():
        return True
    for entry in proc.glob("[0-9]*/stat"):
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError):
            state, _, member_of = entry.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state not in "ZX":
                return True
    return False


class ProcessGroup:
    """A Python child with two pipes and a log, leader of its own session.

    The numbers of its ends of the pipes are its last two arguments: whatever is printed, by Lava or
    at the start of Python, goes to the log and cannot get between the messages. inlet and outlet
    are the file descriptors towards and from the child. ``kill`` ends it and everything it started,
    as often as it is called.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        childs_in, self.inlet = os.pipe()
        self.outlet, childs_out = os.pipe()
        self._owner = os.getpid()
        self.killed = False
        try:
            self._child = subprocess.Popen(
                [sys.executable, *arguments, str(childs_in), str(childs_out)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(childs_in, childs_out),
                cwd=_PACKAGE_PARENT,
                env=worker_environment(),
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(childs_in)
            os.close(childs_out)
        self.pid = self._child.pid
        os.set_blocking(self.inlet, False)
        os.set_blocking(self.outlet, False)

    def log_tail(self, size: int = 1 << 16) -> str:
        """Return the end of what the child and its processes wrote to standard output and error."""
        if self._log.closed:
            return ""
        descriptor = self._log.fileno()
        length = os.fstat(descriptor).st_size
        # pread: the child writes at the position that both share.
        return os.pread(descriptor, size, max(0, length - size)).decode(errors="replace")

    def kill(self) -> None:
        """Kill the group, reap the child, wait until the rest is gone, close every descriptor."""
        # A process that the owner forked inherits this object, and no right to the child.
        if self.killed or os.getpid() != self._owner:
            return
        self.killed = True
        # The child is not reaped yet, so its number cannot belong to anybody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        self._await_the_rest(2.0)
        self._close()

    def _close(self) -> None:
        os.close(self.inlet)
        os.close(self.outlet)
        self._log.close()

    def _await_the_rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while _lives(self.pid) and time.monotonic() < deadline:
            time.sleep(0.005)

    @property
    def return_code(self) -> int | None:
        """How the child ended, once ``kill`` has reaped it: negative is a signal."""
        return self._child.returncode
