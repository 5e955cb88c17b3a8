"""What the verbs that run suites share: quarantine, reports, and the worst exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from nmtool.chip import HardwareConfig
from nmtool.cli.common import FILE, Options, emit, refuse_same, warn
from nmtool.errors import CheckFailed, UsageError
from nmtool.formats.container import refuse_overwrite, write_text
from nmtool.regression.quarantine import Quarantine, load_quarantine
from nmtool.regression.reports import markdown, write_junit
from nmtool.regression.suite import Evidence, Outcome, worst


class SuiteFailed(CheckFailed):
    """A suite ended with the exit code of its worst case."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def suite_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of suites; ``Suite`` takes them."""
    for option in (
        click.option("--junit", type=FILE, metavar="FILE.xml", help="Write JUnit XML."),
        click.option(
            "--markdown", "summary", type=FILE, metavar="FILE.md", help="Write a summary."
        ),
        click.option(
            "--quarantine", type=FILE, metavar="FILE.yaml", help="Runs that are known to fail."
        ),
        click.option(
            "--verify-quarantine",
            is_flag=True,
            help="Run those in quarantine only and say which have healed.",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Suite:
    """How a suite is reported, and what of it is in quarantine."""

    options: Options
    junit: str | None
    summary: str | None
    known: Quarantine | None
    verify: bool

    @classmethod
    def of(
        cls,
        options: Options,
        junit: str | None,
        summary: str | None,
        quarantine: str | None,
        verify_quarantine: bool,
    ) -> Suite:
        """From the options of the command line, checked before anything runs."""
        if verify_quarantine and not quarantine:
            raise UsageError("--verify-quarantine: found no --quarantine, which it needs")
        for file in filter(None, (junit, summary)):
            refuse_overwrite(Path(file), options.force)
        refuse_same([junit, summary], [quarantine])
        known = load_quarantine(quarantine) if quarantine else None
        return cls(options, junit, summary, known, verify_quarantine)

    def case(
        self, name: str, hardware: HardwareConfig, act: Callable[[], Outcome]
    ) -> list[Outcome]:
        """The outcome of a case: none where only the quarantine is verified and it is not in it."""
        why = self._quarantined(name, hardware)
        if why is None:
            return [] if self.verify else [act()]
        if self.verify:
            return [act()]
        return [Outcome(name, hardware.name, "skipped", 0, why, 0.0, Evidence())]

    def _quarantined(self, name: str, hardware: HardwareConfig) -> str | None:
        """Why a case is in quarantine; None where it is not, or no longer."""
        entry = self.known.entry(name, hardware.name) if self.known else None
        if entry is None:
            return None
        if entry.expired(date.today()):
            warn(
                f"{name}: its quarantine ended on {entry.expires}; it counts again ({entry.reason})"
            )
            return None
        return f"in quarantine until {entry.expires}: {entry.reason}"

    def report(self, verb: str, outcomes: Sequence[Outcome]) -> None:
        """Print and write how the suite ended.

        Raises:
            SuiteFailed: with the exit code of the worst case.
        """
        if self.junit:
            write_junit(Path(self.junit), outcomes)
        if self.summary:
            write_text(Path(self.summary), markdown(outcomes))
        code = 0 if self.verify else worst(outcomes)
        document = {"exit_code": code, "cases": [outcome.as_json() for outcome in outcomes]}
        if self.verify:
            document["healed"] = [o.case for o in outcomes if o.status == "passed"]
        emit(self.options, verb, document, self._text(outcomes))
        bad = [outcome for outcome in outcomes if outcome.status in ("regression", "error")]
        if code and bad:
            raise SuiteFailed(f"{len(bad)} of {len(outcomes)} cases did not pass", code)
        if code:
            raise SuiteFailed("nothing was tested: every case was skipped", code)

    def _text(self, outcomes: Sequence[Outcome]) -> str:
        words = {"passed": "healed", "regression": "still failing"} if self.verify else {}
        lines = []
        for outcome in outcomes:
            word = words.get(outcome.status, outcome.status)
            retry = " (only on retry)" if outcome.retried else ""
            lines.append(f"{outcome.case} on {outcome.target}: {word}{retry}")
            lines += [
                f"  {v.policy}: {'passed' if v.passed else 'FAILED'}, found {v.found}, allowed "
                f"{v.allowed}"
                for v in outcome.evidence.verdicts
            ]
            if outcome.status != "regression":
                lines += [f"  {line}" for line in outcome.message.splitlines()]
        return "\n".join(lines) or "nothing is in quarantine here"
