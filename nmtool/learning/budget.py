"""What a study may take of a target: the time that it is busy, and the weights written to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nmtool.learning.board import Spent

Limit = Literal["board_time", "writes"]


@dataclass(frozen=True)
class Budget:
    """Seconds that a target may be busy, and weights that may be written; None: without limit."""

    seconds: float | None = None
    writes: int | None = None

    def passed(self, seconds: float, writes: int) -> Limit | None:
        """The limit that so much in all would pass."""
        if self.seconds is not None and seconds > self.seconds:
            return "board_time"
        return "writes" if self.writes is not None and writes > self.writes else None

    def share(self, spent: Iterable[Spent], among: int) -> Budget:
        """One of equal shares of what is left."""
        gone = total(spent)
        seconds = self.seconds
        if seconds is not None:
            seconds = max(seconds - gone.seconds, 0.0) / among
        writes = self.writes
        if writes is not None:
            writes = max(writes - gone.writes, 0) // among
        return Budget(seconds, writes)


def total(spent: Iterable[Spent]) -> Spent:
    """All together."""
    each = [*spent]
    return Spent(
        sum(one.runs for one in each),
        sum(one.writes for one in each),
        sum(one.seconds for one in each),
    )


UNLIMITED = Budget()
