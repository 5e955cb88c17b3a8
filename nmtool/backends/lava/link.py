"""The connection to one worker process: messages, patience, and what went wrong."""

from __future__ import annotations

import os
import select
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from nmtool.backends.lava import wire
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.lava.group import ProcessGroup
from nmtool.errors import (
    ArtifactError,
    BoardError,
    BoardTimeout,
    BoardUnavailable,
    DependencyError,
    UnsupportedError,
)

Progress = Callable[[int, int], None]

_WORKER = ("-m", "nmtool.backends.lava.worker")
_CHUNK = 1 << 20
_OF_THE_USER: dict[str, type[Exception]] = {
    "dependency": DependencyError,
    "unavailable": BoardUnavailable,
    "unsupported": UnsupportedError,
    "artifact": ArtifactError,
}


@dataclass(frozen=True)
class Patience:
    """When to give up, in seconds.

    silence: no sign of life from the worker, which beats twice a second; stall: signs of life but
    not one more step. Each ends a run even if it has no timeout. subject: who is waited for.
    """

    silence: float = 60.0
    stall: float = 300.0
    subject: str = "Lava's simulation"


class Link:
    """One worker process and the messages to and from it.

    Raises DependencyError if there is no Lava. ``close`` kills the worker with everything that it
    started, and happens by itself when the link is collected or Python exits.
    """

    def __init__(self, patience: Patience) -> None:
        reason = lava_missing()
        if reason is not None:
            raise DependencyError(reason)
        self._patience = patience
        self.group = ProcessGroup(_WORKER)
        self.close = weakref.finalize(self, self.group.kill)
        self._reader = wire.Reader()
        self._phase = "starting"
        self._step = 0
        self._heard = self._moved = time.monotonic()

    def send(
        self, body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], deadline: float | None
    ) -> None:
        """Send one message, as fast as the worker takes it."""
        self._heard = self._moved = time.monotonic()
        for piece in wire.pack(body, arrays):
            rest = piece
            while rest:
                _, writable, _ = select.select([], [self.group.inlet], [], 0.25)
                self._check_time(deadline)
                if writable:
                    rest = rest[self._write(rest[:_CHUNK]) :]

    def _write(self, data: memoryview) -> int:
        try:
            count = os.write(self.group.inlet, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            # Its last words may still be in the other pipe.
            self.receive("", time.monotonic() + 5.0, None)
            raise
        self._heard = time.monotonic()
        return count

    def receive(
        self, awaited: str, deadline: float | None, progress: Progress | None
    ) -> tuple[dict[str, Any], wire.Arrays]:
        """Return the first message whose event is among the awaited ones; reports beats."""
        self._heard = self._moved = time.monotonic()
        for body, arrays in self._messages(deadline):
            if body["event"] in awaited.split():
                return body, arrays
            if body["event"] == "error":
                raise self._failure(body)
            if body["event"] == "beat":
                self._note(body, progress)
        raise self._ended()

    def _messages(self, deadline: float | None) -> Iterator[tuple[dict[str, Any], wire.Arrays]]:
        while True:
            readable, _, _ = select.select([self.group.outlet], [], [], 0.25)
            if readable:
                data = os.read(self.group.outlet, _CHUNK)
                if not data:
                    return
                self._heard = time.monotonic()
                yield from self._understood(data)
            self._check_time(deadline)

    def _understood(self, data: bytes) -> list[tuple[dict[str, Any], wire.Arrays]]:
        try:
            return self._reader.feed(data)
        except (wire.WireError, ValueError, KeyError, TypeError) as error:
            raise BoardError(f"Lava's worker sent garbage: {error}") from None

    def _note(self, body: Mapping[str, Any], progress: Progress | None) -> None:
        phase, step = body["phase"], int(body["step"])
        if (phase, step) != (self._phase, self._step):
            self._phase, self._step, self._moved = phase, step, time.monotonic()
        if progress is not None and phase == "running":
            progress(step, int(body["total"]))

    def _check_time(self, deadline: float | None) -> None:
        now = time.monotonic()
        where = f"it was {self._phase}, {self._step} steps done"
        if deadline is not None and now > deadline:
            raise BoardTimeout(f"{self._patience.subject} took longer than its timeout: {where}")
        if now - self._heard > self._patience.silence:
            raise BoardTimeout(f"Lava's worker was silent for {now - self._heard:.0f} s: {where}")
        if now - self._moved > self._patience.stall:
            stuck = f"{self._patience.subject} is stuck, {now - self._moved:.0f} s"
            raise BoardTimeout(f"{stuck}: {where}")

    def _failure(self, body: Mapping[str, Any]) -> Exception:
        if kind := _OF_THE_USER.get(body["kind"]):
            return kind(body["message"])
        message = f"{self._patience.subject} failed: {body['message']}"
        if body["logged"]:
            message += f": {last_error(self.group.log_tail())}"
        return BoardError(message)

    def _ended(self) -> Exception:
        tail = self.group.log_tail()
        self.close()
        code = self.group.return_code
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return BoardError(f"Lava's worker ended ({how}): {last_error(tail)}")


def last_error(log: str) -> str:
    """Find the line of the last traceback that names the exception, else the last line.

    An exception's text may have several lines, so it is the first one after the frames.
    """
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if starts:
        before = lines[starts[-1] - 1] if starts[-1] else ""
        owner = before if before.startswith("Lava process") else ""
        for line in lines[starts[-1] + 1 :]:
            if line and not line[0].isspace():
                return f"{owner} {line}".strip()
    filled = [line.strip() for line in lines if line.strip()]
    return filled[-1] if filled else "it left no message"
