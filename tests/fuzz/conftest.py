"""A limit of memory and time for what hostile files may take."""

import contextlib
import resource
import signal
from pathlib import Path

import pytest

from nmtool.errors import NmtoolError

ROOM = 2 << 30
SECONDS = 20


class Hang(BaseException):
    """A file kept its reader busy for too long."""


def _expire(*_):
    raise Hang(f"still busy after {SECONDS} s")


@contextlib.contextmanager
def narrow():
    """Little memory beyond what the process has, and little time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _expire)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def clean():
    """Nothing but errors that a user can cause, in little memory and time."""
    caught = None
    try:
        with narrow():
            yield
    except NmtoolError as error:
        caught = error
    if caught is not None:
        text = str(caught)
        assert 2 <= caught.exit_code <= 9, repr(caught)
        assert text, repr(caught)
        assert "MemoryError" not in text, text
        assert "Unable to allocate" not in text, text


@pytest.fixture(name="clean")
def clean_fixture():
    return clean
