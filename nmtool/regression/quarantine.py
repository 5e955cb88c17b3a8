"""Quarantine: golden runs that are known to fail, each with a reason and an end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from nmtool import yamlio
from nmtool.yamlio import Strict

LONGEST = timedelta(days=366)
"""Quarantine that ends later than so far ahead is warned of: it is as good as forever."""


def _sentence(value: str) -> str:
    if not value.strip():
        raise ValueError("a sentence that says why")
    return value


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
    reason: Annotated[str, Field(min_length=1), AfterValidator(_sentence)]
    expires: Annotated[date, BeforeValidator(_date)]

    def covers(self, path: str, target: str) -> bool:
        """Whether it is for a golden file on a target."""
        return fnmatch(Path(path).name, self.golden) and self.target in (None, target)

    def expired(self, today: date) -> bool:
        """Whether its last day is over."""
        return today > self.expires

    def __str__(self) -> str:
        return f"golden: {self.golden}" + (f", target: {self.target}" if self.target else "")


class Quarantine(Strict):
    """The schema of a quarantine file."""

    schema_: Literal["nmtool.quarantine/v1"] = Field(alias="schema")
    entries: list[Entry] = []

    def entry(self, path: str, target: str) -> Entry | None:
        """The entry for a golden file on a target; of several the one that ends last."""
        covering = (entry for entry in self.entries if entry.covers(path, target))
        return max(covering, key=lambda entry: entry.expires, default=None)

    def warnings(
        self, cases: Sequence[tuple[str, str]], today: date, *, verify: bool = False
    ) -> list[str]:
        """Of entries that have ended, end too late, or match none of these (golden file, target).

        Where they are run to see what has healed (``verify``) those that have ended count no more
        than the others.
        """
        return [*self._ended(cases, today, verify), *self._endless(today), *self._unused(cases)]

    def _ended(self, cases: Sequence[tuple[str, str]], today: date, verify: bool) -> list[str]:
        found = ((path, target, self.entry(path, target)) for path, target in cases)
        return [
            f"{path} on {target}: its quarantine ended on {entry.expires}"
            + ("" if verify else "; it counts again")
            + f" ({entry.reason})"
            for path, target, entry in found
            if entry and entry.expired(today)
        ]

    def _endless(self, today: date) -> list[str]:
        return [
            f"quarantine: entry {number} ({entry}): found the last day {entry.expires}, more than "
            "a year ahead; give an earlier one and look again then"
            for number, entry in enumerate(self.entries, 1)
            if entry.expires - today > LONGEST
        ]

    def _unused(self, cases: Sequence[tuple[str, str]]) -> list[str]:
        targets = {target for _, target in cases}
        return [
            f"quarantine: entry {number} ({entry}): "
            + (
                f"its target is none of {', '.join(sorted(targets))}"
                if targets and entry.target not in (None, *targets)
                else "it matches no golden run here; mend its name, or remove it"
            )
            for number, entry in enumerate(self.entries, 1)
            if not any(entry.covers(path, target) for path, target in cases)
        ]


def load_quarantine(path: str | Path) -> Quarantine:
    """Read a quarantine file.

    Raises:
        ConfigError: missing, or wrong.
    """
    return yamlio.load(Path(path), Quarantine)
