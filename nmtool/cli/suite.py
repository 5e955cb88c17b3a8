"""What the verbs that run suites share: quarantine, reports, and the worst exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import click

from nmtool.backends import Recording
from nmtool.chip import HardwareConfig
from nmtool.cli.common import (
    FILE,
    INTERRUPTED,
    TERMINATED,
    TIMED_OUT,
    Options,
    Terminated,
    TimedOut,
    emit,
    progress,
    refuse_same,
    warn,
)
from nmtool.errors import CheckFailed, UsageError
from nmtool.formats.container import refuse_overwrite, write_text
from nmtool.regression.check import check_golden, target_name
from nmtool.regression.golden import load_golden
from nmtool.regression.quarantine import Quarantine, load_quarantine
from nmtool.regression.reports import failed_attempts, hints_once, markdown, write_junit
from nmtool.regression.suite import Case, Outcome, worst


class SuiteFailed(CheckFailed):
    """A suite ended with the exit code of its worst case, or was cut short."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


@dataclass(frozen=True)
class End:
    """How a suite was cut short from outside."""

    code: int
    why: str


_ENDS: dict[type[BaseException], End] = {
    KeyboardInterrupt: End(INTERRUPTED, "interrupted"),
    TimedOut: End(TIMED_OUT, "--timeout passed"),
    Terminated: End(TERMINATED, "terminated"),
}


@dataclass
class Gate:
    """Lets SIGINT, SIGTERM and ``--timeout`` through while it is open, else keeps them for later.

    It is open while a case runs: so none of them falls before the first case, between the last one
    and its report, or into a report.
    """

    is_open: bool = False
    arrived: list[int] = field(default_factory=list)
    _before: dict[int, Callable[..., Any]] = field(default_factory=dict)

    def __enter__(self) -> Gate:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._let_in()

    def _signal(self, number: int, frame: Any) -> None:
        if self.is_open:
            self._before[number](number, frame)
        else:
            self.arrived.append(number)

    def _let_in(self) -> None:
        """Act on the first signal that was kept."""
        if self.arrived:
            number = self.arrived[0]
            self.arrived.clear()
            self._before[number](number, None)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Open while the block runs, beginning with what arrived before."""
        try:
            self.is_open = True
            self._let_in()
            yield
        finally:
            self.is_open = False


def suite_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of suites; they arrive as one argument ``suite``. Stands below ``verb``."""

    @click.option(
        "--runs", type=FILE, metavar="FOLDER", help="Keep the recordings of the golden runs here."
    )
    @click.option(
        "--saved",
        type=FILE,
        metavar="FOLDER",
        help="Judge the recordings that --runs kept there; nothing is run.",
    )
    @click.option("--junit", type=FILE, metavar="FILE.xml", help="Write JUnit XML.")
    @click.option("--markdown", "summary", type=FILE, metavar="FILE.md", help="Write a summary.")
    @click.option(
        "--quarantine", type=FILE, metavar="FILE.yaml", help="Runs that are known to fail."
    )
    @click.option(
        "--verify-quarantine",
        is_flag=True,
        help="Run those in quarantine only, ended ones too, and say which have healed.",
    )
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        runs: str | None,
        saved: str | None,
        junit: str | None,
        summary: str | None,
        quarantine: str | None,
        verify_quarantine: bool,
        options: Options,
        **kwargs: Any,
    ) -> None:
        if verify_quarantine and not quarantine:
            raise UsageError("--verify-quarantine: found no --quarantine, which it needs")
        if runs and saved:
            raise UsageError("found --runs and --saved, allowed one of them")
        for file in filter(None, (junit, summary)):
            refuse_overwrite(Path(file), options.force)
        refuse_same([junit, summary], [quarantine])
        known = load_quarantine(quarantine) if quarantine else None
        with Gate() as gate:
            suite = Suite(options, runs, saved, junit, summary, known, verify_quarantine, gate)
            function(*args, suite=suite, options=options, **kwargs)

    return wrapped


@dataclass(frozen=True)
class Suite:
    """How a suite is run and reported, and what of it is in quarantine.

    ``runs`` is the folder where recordings are kept, ``saved`` the one from which they are taken.
    """

    options: Options
    runs: str | None
    saved: str | None
    junit: str | None
    summary: str | None
    known: Quarantine | None
    verify: bool
    gate: Gate

    def golden_cases(
        self,
        goldens: Sequence[str],
        hardware: HardwareConfig,
        policies: Sequence[str] = (),
        saved: Recording | None = None,
    ) -> list[Case]:
        """A target, or a saved run, beside golden runs.

        Raises:
            UsageError: two golden runs whose recordings would be one file, or one that exists.
        """
        names = _names(goldens) if self.runs or self.saved else dict.fromkeys(goldens, "")
        kept = [_run_file(names[golden], hardware, self.runs) for golden in goldens]
        refuse_same([str(file) for file in kept if file], [*goldens, self.junit, self.summary])
        for file in filter(None, kept):
            refuse_overwrite(file, self.options.force)

        def act(golden: str, keep: Path | None) -> Outcome:
            source = saved or _run_file(names[golden], hardware, self.saved)
            with progress(self.options, f"{golden} on {hardware.name}") as update:
                return check_golden(golden, hardware, policies, source, update, keep)[0]

        target = target_name(saved.provenance, "a saved run") if saved else hardware.name
        return [
            Case(
                golden,
                target,
                functools.partial(act, golden, file),
                readable=functools.partial(load_golden, golden),
            )
            for golden, file in zip(goldens, kept, strict=True)
        ]

    def run(self, verb: str, cases: Sequence[Case]) -> None:
        """Run cases and report how they ended, also where the suite is cut short.

        Raises:
            SuiteFailed: with the exit code of the worst case, or of what cut the suite short.
        """
        today = date.today()
        names = [(case.name, case.target) for case in cases]
        warnings = self.known.warnings(names, today, verify=self.verify) if self.known else []
        for text in warnings:
            warn(text)
        planned = self._planned(cases, today)
        outcomes: list[Outcome] = []
        end = None
        try:
            for case in planned:
                with self.gate.opened():
                    outcomes.append(case.verified() if self.verify else case.run())
        except tuple(_ENDS) as error:
            end = _ENDS[type(error)]
            outcomes += _cut_short(planned[len(outcomes) :], end)
        later = [*_golden_warnings(outcomes), *_nothing_judged(outcomes)]
        for text in later:
            warn(text)
        self._write(outcomes, [*warnings, *later])
        with self.gate.opened():
            self._report(verb, outcomes, [*warnings, *later], end)

    def _planned(self, cases: Sequence[Case], today: date) -> list[Case]:
        """What is to be run: all with what is in quarantine marked, or only what the file names."""
        planned = []
        for case in cases:
            entry = self.known.entry(case.name, case.target) if self.known else None
            if self.verify:
                planned += [case] if entry else []
            elif entry and not entry.expired(today):
                why = f"in quarantine until {entry.expires}: {entry.reason}"
                planned.append(replace(case, quarantined=why))
            else:
                planned.append(case)
        return planned

    def _write(self, outcomes: Sequence[Outcome], warnings: Sequence[str]) -> None:
        if self.junit:
            write_junit(Path(self.junit), outcomes, warnings)
        if self.summary:
            write_text(Path(self.summary), markdown(outcomes, warnings))

    def _report(
        self, verb: str, outcomes: Sequence[Outcome], warnings: Sequence[str], end: End | None
    ) -> None:
        code = end.code if end else worst(outcomes)
        document = {
            "exit_code": code,
            "cases": [outcome.as_json() for outcome in outcomes],
            "warnings": list(warnings),
        }
        if self.verify:
            for word in ("healed", "still failing"):
                found = [outcome.case for outcome in outcomes if outcome.quarantine == word]
                document[word.replace(" ", "_")] = found
        emit(self.options, verb, document, self._text(outcomes))
        bad = [outcome for outcome in outcomes if outcome.status in ("regression", "error")]
        if end:
            unfinished = [outcome for outcome in outcomes if outcome.code == end.code]
            raise SuiteFailed(
                f"{end.why}; {len(unfinished)} of {len(outcomes)} cases did not end", code
            )
        if code and bad:
            raise SuiteFailed(f"{len(bad)} of {len(outcomes)} cases did not pass", code)
        if code:
            raise SuiteFailed("nothing was tested: every case was skipped", code)

    def _text(self, outcomes: Sequence[Outcome]) -> str:
        lines = []
        for outcome, message in zip(outcomes, hints_once(outcomes), strict=True):
            retry = " (only on retry)" if outcome.retried else ""
            lines.append(f"{outcome.case} on {outcome.target}: {outcome.word}{retry}")
            lines += [
                f"  {v.policy}: {'passed' if v.passed else 'FAILED'}, found {v.found}, allowed "
                f"{v.allowed}"
                for v in outcome.evidence.verdicts
            ]
            lines += [f"  {line}" for line in failed_attempts(outcome)]
            told = all(v.passed for v in outcome.evidence.verdicts)  # else the verdicts say it
            text = message if told else outcome.evidence.note
            lines += [f"  {line}" for line in text.splitlines()]
        return "\n".join(lines) or "nothing is in quarantine here"


def _names(goldens: Sequence[str]) -> dict[str, str]:
    """What the recordings of golden runs are called, by golden.

    The golden's own name, with the folders below the common one where several share it.

    Raises:
        UsageError: two golden runs of one name in one folder.
    """
    stems = [Path(golden).stem for golden in goldens]
    places = [Path(golden).resolve().parent for golden in goldens]
    common = os.path.commonpath(places) if places else ""
    found: dict[str, str] = {}
    for golden, stem, place in zip(goldens, stems, places, strict=True):
        name = stem if stems.count(stem) == 1 else str(place.relative_to(common) / stem)
        if name in found:
            raise UsageError(
                f"found the golden runs {found[name]} and {golden}, allowed one of the name "
                f"{name}: their recordings would be one file"
            )
        found[name] = golden
    return {golden: name for name, golden in found.items()}


def _run_file(name: str, hardware: HardwareConfig, folder: str | None) -> Path | None:
    """Where the recording of a golden run on a target is kept."""
    return Path(folder) / f"{name}-{hardware.name}.h5" if folder else None


def _cut_short(left: Sequence[Case], end: End) -> list[Outcome]:
    """The outcomes of the case that ran when a suite was cut short, and of those behind it."""
    return [
        case.cut_short(end.code, f"{'not run' if number else 'not finished'}: {end.why}")
        for number, case in enumerate(left)
    ]


def _nothing_judged(outcomes: Sequence[Outcome]) -> list[str]:
    """What to say of a suite that is green because everything in it is in quarantine."""
    if not outcomes or any(o.status != "skipped" or o.code or o.quarantine for o in outcomes):
        return []
    return [f"NOTHING WAS JUDGED: all cases ({len(outcomes)}) are in quarantine"]


def _golden_warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """What was said of the golden runs when they were recorded, once for each."""
    found = (
        f"{outcome.case}: {text}"
        for outcome in outcomes
        for text in outcome.evidence.provenance.get("golden_warnings", ())
    )
    return list(dict.fromkeys(found))
