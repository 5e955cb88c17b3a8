"""Quarantine: golden runs that are known to fail, each with a reason and an end."""

from __future__ import annotations

from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nmtool import yamlio
from nmtool.yamlio import Strict


def _date(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError("a date such as 2027-01-31") from None
    return value


class Entry(Strict):
    """One golden run that is not held against the suite until ``expires`` (that day included).

    ``golden`` is a file name, or a pattern of one; without ``target`` the entry is for all.
    """

    golden: Annotated[str, Field(min_length=1)]
    target: str | None = None
    reason: Annotated[str, Field(min_length=1)]
    expires: Annotated[date, BeforeValidator(_date)]

    def covers(self, path: str, target: str) -> bool:
        """Whether it is for a golden file on a target."""
        return fnmatch(Path(path).name, self.golden) and self.target in (None, target)

    def expired(self, today: date) -> bool:
        """Whether its last day is over."""
        return today > self.expires


class Quarantine(Strict):
    """The schema of a quarantine file."""

    schema_: Literal["nmtool.quarantine/v1"] = Field(alias="schema")
    entries: list[Entry] = []

    def entry(self, path: str, target: str) -> Entry | None:
        """The first entry for a golden file on a target."""
        return next((entry for entry in self.entries if entry.covers(path, target)), None)


def load_quarantine(path: str | Path) -> Quarantine:
    """Read a quarantine file.

    Raises:
        ConfigError: missing, or wrong.
    """
    return yamlio.load(Path(path), Quarantine)
