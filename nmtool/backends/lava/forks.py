"""What the worker does about the processes that Lava forks: how they end, and how it is noticed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
# Looked up before the fork: a child of a process with threads should do little.
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def kill_own_group() -> NoReturn:
    """End this process and everything it started, at once."""
    # Started by hand it may be in somebody else's group; its children then die with it.
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that forked it dies (Linux only)."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def report_exceptions() -> None:
    """Have Lava's processes write their exceptions to standard error, which Lava does not do."""
    import lava.magma.runtime.runtime as lava_runtime

    original = lava_runtime.target_fn

    def target(*args: Any, **keywords: Any) -> None:
        builder = keywords.get("builder")
        try:
            original(*args, **keywords)
        except Exception:
            model = getattr(builder, "proc_model", None) or getattr(builder, "rs_class", None)
            name = getattr(model, "__name__", "a process")
            text = f"Lava process {name}:\n{traceback.format_exc()}"
            os.write(2, text.encode(errors="replace"))
            raise

    lava_runtime.target_fn = target


def a_child_ended() -> bool:
    """Whether a forked child has ended and is not reaped yet; leaves it as it is (Linux only)."""
    ended = False
    if sys.platform == "linux":
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return ended


def wait_for_dead_child(seconds: float) -> None:
    """Wait until a child has ended: Lava reports an exception before its process has told it."""
    deadline = time.monotonic() + seconds
    while not a_child_ended() and time.monotonic() < deadline:
        time.sleep(0.01)
