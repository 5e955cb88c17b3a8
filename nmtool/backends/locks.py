"""One process holds a board at a time: a lock file for each board, under ``flock``.

The kernel lets go of the lock when its holder dies, however that happens. The file stays and says
who holds it. Locks are shared by all users of a machine, so they lie in one folder for all.

The workers of one pytest-xdist session take turns: a board that one of them holds is waited for by
the others.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nmtool.errors import BoardUnavailable, WriteError

FOLDER = "NMTOOL_LOCKS"
"""The environment variable that names another folder."""

SESSION = "PYTEST_XDIST_TESTRUNUID"
"""The environment variable in which pytest-xdist names the session of a worker."""

_TRIES, _PAUSE = 3, 0.05


def lock_folder() -> Path:
    """Where the lock files lie: one folder for all users, unless NMTOOL_LOCKS names another."""
    return Path(os.environ.get(FOLDER) or "/tmp/nmtool-locks")


def prepare_folder() -> Path:
    """The folder of the locks, made if it is not there, in which every user may make files.

    Raises:
        WriteError: it cannot be made or written.
    """
    folder = lock_folder()
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(0o1777)
        usable = folder.is_dir() and not folder.is_symlink() and os.access(folder, os.W_OK)
    except OSError as error:
        raise _refused(folder, str(error.strerror)) from None
    if not usable:
        raise _refused(folder, "not a folder that you may write")
    return folder


def _refused(folder: Path, why: str) -> WriteError:
    return WriteError(
        f"lock folder {folder}: {why}; it must be a folder that all users may write (chmod 1777), "
        f"or {FOLDER} the path of another"
    )


class BoardLock:
    """A board that is held by this process until ``release``.

    ``wait`` is for anybody's lock, ``turn`` for that of another worker of the same pytest-xdist
    session, both in seconds; the longer one counts there.

    Raises:
        BoardUnavailable: somebody else holds it, and still did after that time.
        WriteError: the lock file cannot be written.
    """

    def __init__(self, board: str, wait: float = 0.0, turn: float = 0.0) -> None:
        self.board = board
        self.path = prepare_folder() / _file_name(board)
        descriptor = self._acquire(wait, max(wait, turn))
        self.release: Callable[[], None] = weakref.finalize(
            self, _give_back, descriptor, os.getpid()
        )
        """Give the board back; safe to call twice, and done when the lock is collected."""

    def _acquire(self, wait: float, turn: float) -> int:
        descriptor = _opened(self.path)
        started = time.monotonic()
        tries = 0
        # Somebody who only looks at the lock holds it for a moment: one look is not enough.
        while not _flock(descriptor):
            tries += 1
            found = _read(descriptor)
            patience = turn if _sibling(found) else wait
            if tries >= _TRIES and time.monotonic() >= started + patience:
                os.close(descriptor)
                waited = f", still after {patience:g} s" if patience else ""
                raise BoardUnavailable(
                    f"board {self.board}: held by {describe(found)}{waited}; wait for it, or set "
                    "timeouts.lock of the target to wait longer"
                )
            time.sleep(_PAUSE)
        _write(descriptor, _myself())
        return descriptor


def _give_back(descriptor: int, owner: int) -> None:
    # A process that the owner forked shares the lock, and has no right to say that it is free.
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
    os.close(descriptor)


def holder(board: str) -> dict[str, Any] | None:
    """Who holds a board, or None. Makes nothing."""
    path = lock_folder() / _file_name(board)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _flock(descriptor) else _read(descriptor)
    finally:
        os.close(descriptor)


def describe(found: Mapping[str, Any]) -> str:
    """A holder in words."""
    if "pid" not in found:
        return "somebody whose lock file says nothing"
    return (
        f"{found.get('user')} (process {found['pid']} on {found.get('host')}, since "
        f"{found.get('since')}: {found.get('command')})"
    )


def _sibling(found: Mapping[str, Any]) -> bool:
    """Whether a holder is another worker of this process's pytest-xdist session, or may be.

    A holder that is just taking the lock or giving it back has not said who it is. For itself no
    process waits: it would wait in vain.
    """
    session = os.environ.get(SESSION)
    if session is None or found.get("pid") == os.getpid():
        return False
    return bool(found.get("session", session) == session)


def _file_name(board: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", board) + ".lock"


def _opened(path: Path) -> int:
    """A descriptor of the lock file, which is made for all users."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Linux refuses O_CREAT for a file of another user in such a folder (protected_regular).
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(path, flags)
        os.fchmod(descriptor, 0o666)
        return descriptor
    except OSError as error:
        raise WriteError(
            f"lock file {path}: {error.strerror}; remove it, or set {FOLDER} to another folder"
        ) from None


def _flock(descriptor: int) -> bool:
    import fcntl  # POSIX only, as boards are

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _myself() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "user": user,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command()[:200],
        "session": os.environ.get(SESSION),
    }


def _command() -> str:
    """What this process was started as; a worker of pytest-xdist (``-c``) is named by its test."""
    test = os.environ.get("PYTEST_CURRENT_TEST")
    if sys.argv[0] == "-c" and test:
        return f"pytest {os.environ.get('PYTEST_XDIST_WORKER', '')} {test}".replace("  ", " ")
    return " ".join(sys.orig_argv if sys.argv[0] == "-c" else sys.argv)


def _write(descriptor: int, content: Mapping[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)


def _read(descriptor: int) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(os.pread(descriptor, 1 << 16, 0))
        if isinstance(found, dict):
            return found
    return {}
