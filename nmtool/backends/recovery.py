"""What to do after a fault of the board: the ladder of a target, one step before each new attempt.

Only faults climb it (BoardError, BoardUnavailable); a wrong answer is an answer. Nothing is hidden:
every attempt is told on stderr and stands in the provenance of the recording.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from nmtool.backends.base import ManagedSession, Probe, Progress, Recording, Session
from nmtool.backends.commands import run_command
from nmtool.chip import RecoveryCommand, RecoveryStep
from nmtool.compiler import Program
from nmtool.errors import BoardError, BoardUnavailable
from nmtool.fixedpoint import IntArray
from nmtool.spikes import SpikeTrain

T = TypeVar("T")
Attempt = dict[str, Any]


def tell(text: str) -> None:
    """Say something on stderr."""
    print(text, file=sys.stderr, flush=True)


class RecoveringSession(ManagedSession):
    """A session that is opened and run again after a fault of the board.

    ``opener`` loads a program. Steps: ``reload`` loads the program again on the same target,
    ``reset`` first gives the board back and takes it anew, a command is run in between. A stream
    has lost its state by then and is not repeated.
    """

    def __init__(
        self,
        program: Program,
        opener: Callable[[Program], Session],
        ladder: Sequence[RecoveryStep],
        report: Callable[[str], None] = tell,
    ) -> None:
        self.program = program
        self._opener = opener
        self._ladder = tuple(ladder)
        self._report = report
        self._session: Session | None = None
        self._attempts: list[Attempt] = []
        self._try(self._opened)

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples; after a fault climb the ladder and run them again, all of them."""
        self._check_open()
        recording = self._try(lambda: self._opened().run(spikes, n_steps, probe, progress))
        attempts, self._attempts = self._attempts, []
        if not attempts:
            return recording
        return replace(recording, provenance={**recording.provenance, "attempts": attempts})

    def stream(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        probe: str | Probe | None = None,
        n_steps: int | None = None,
    ) -> Recording:
        """Run the next steps of one stream, once."""
        self._check_open()
        return self._opened().stream(spikes, probe, n_steps)

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights; they are there again after a new start."""
        self._check_open()
        session = self._opened()
        changed = session.write_weights(projection, mantissa)
        self.program = session.program
        return changed

    def reset(self) -> None:
        """End the stream."""
        if self._session is not None:
            self._session.reset()

    def close(self) -> None:
        """Give the target back; safe to call twice."""
        super().close()
        self._drop()

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._opener(self.program)
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _try(self, action: Callable[[], T]) -> T:
        """The result of an action, with a step of the ladder before each repetition.

        Raises:
            BoardError: the last one, when the ladder has no step left.
            BoardUnavailable: the same.
        """
        for number in range(len(self._ladder) + 1):
            started = time.monotonic()
            try:
                return action()
            except (BoardError, BoardUnavailable) as error:
                failed, seconds = error, time.monotonic() - started
            if number == len(self._ladder):
                self._drop()
                self._give_up(failed)
            self._climb(number, failed, seconds)
        raise AssertionError("unreachable")

    def _give_up(self, failed: Exception) -> NoReturn:
        attempts, self._attempts = self._attempts, []
        if not attempts:
            raise failed
        steps = ", ".join(attempt["step"] for attempt in attempts)
        last = type(failed)(f"{failed}; recovery did not help: {steps}")
        vars(last)["attempts"] = attempts
        raise last from failed

    def _climb(self, number: int, failed: Exception, seconds: float) -> None:
        """Do a step after a fault, and write both down."""
        step = self._ladder[number]
        attempt: Attempt = {
            "step": str(step),
            "error": f"{type(failed).__name__}: {failed}",
            "seconds": round(seconds, 3),
        }
        self._attempts.append(attempt)
        count = f"attempt {number + 1} of {len(self._ladder) + 1} failed: {failed}"
        self._report(f"recovery: {count}; next: {step}")
        # Whatever failed may have left the program half loaded: every step loads it anew.
        if step == "reload" and self._session is not None:
            try:
                self._session.reset()
            except (BoardError, BoardUnavailable):
                self._drop()
        else:
            self._drop()
        if isinstance(step, RecoveryCommand):
            done = run_command(shlex.split(step.command), step.timeout)
            attempt["command"] = done.problem or "exit code 0"
            self._report(f"recovery: {attempt['command']}")
