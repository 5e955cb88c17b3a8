"""Commands of others: without a shell, with a timeout, killed as a group, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TAIL = 2000


@dataclass(frozen=True)
class Done:
    """How a command ended: ``code`` None says that it was killed, or never began."""

    code: int | None
    output: str
    problem: str

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.code == 0


def run_command(
    arguments: Sequence[str],
    timeout: float,
    size: int = _TAIL,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a command; ``output`` is the end of what it wrote, ``problem`` is empty if it ended well.

    It gets no input. Whatever ends the wait, a timeout or an exception, ends its whole group.
    """
    with tempfile.TemporaryFile() as log:
        try:
            child = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            return Done(None, "", f"{arguments[0]}: {error.strerror}")
        ended = False
        try:
            ended = _ended(child, timeout)
        finally:
            # Not reaped yet, so its number is nobody else's; what it started may live on.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        code = child.returncode if ended else None
        output = _tail(log.fileno(), size)
    if code is None:
        return Done(None, output, f"{arguments[0]}: killed after {timeout:g} s")
    if code:
        last = output.strip().splitlines()[-1:] or ["it left no message"]
        return Done(code, output, f"{arguments[0]}: exit code {code}: {last[0]}")
    return Done(0, output, "")


def _ended(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for a child to end, and leave it unreaped."""
    deadline, pause = time.monotonic() + timeout, 0.001
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, child.pid, flags) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return True


def _tail(descriptor: int, size: int) -> str:
    length = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, max(0, length - size)).decode(errors="replace")
