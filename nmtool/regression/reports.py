"""Reports of a suite for a pipeline: JUnit XML, and Markdown for a pull request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from junitparser import (
    Error,
    Failure,
    JUnitXml,
    Properties,
    Property,
    Skipped,
    TestCase,
    TestSuite,
)

from nmtool.formats.container import write_text
from nmtool.regression.suite import Outcome

_WORDS = {
    "passed": "passed",
    "regression": "REGRESSION",
    "error": "error",
    "skipped": "skipped",
    "healed": "healed",
    "still failing": "still failing",
}
_ALWAYS = ("passed", "regression", "error", "skipped")


def write_junit(path: Path, outcomes: Sequence[Outcome], warnings: Sequence[str] = ()) -> None:
    """Write JUnit XML: a regression is a failure, a board's trouble an error.

    Warnings are properties of the first test suite.

    Raises:
        WriteError: it cannot be written.
    """
    xml = JUnitXml("nmtool")
    targets = dict.fromkeys(outcome.target for outcome in outcomes)
    for number, target in enumerate(targets or ["nmtool"]):
        suite = TestSuite(target)
        for text in () if number else warnings:
            suite.add_property("warning", _printable(text))
        for outcome in outcomes:
            if outcome.target == target:
                suite.add_testcase(_testcase(outcome))
        xml.add_testsuite(suite)
    write_text(path, xml.tostring().decode())  # type: ignore[no-untyped-call]


def _testcase(outcome: Outcome) -> TestCase:
    name = str(Path(outcome.case).with_suffix(""))
    case = TestCase(_printable(name), f"nmtool.{outcome.target}", round(outcome.seconds, 3))
    message = _printable(outcome.message)
    if outcome.quarantine:
        message = f"{outcome.quarantine}: {message}" if message else outcome.quarantine
    if outcome.status == "regression":
        case.result = [Failure(message, "regression")]
    elif outcome.status == "error":
        case.result = [Error(message, f"exit code {outcome.code}")]
    elif outcome.status == "skipped":
        case.result = [Skipped(message)]
    properties = Properties()  # type: ignore[no-untyped-call]
    for name, value in outcome.evidence.provenance.items():
        text = value if isinstance(value, str) else json.dumps(value)
        properties.add_property(Property(name, _printable(text)))
    if outcome.quarantine:
        properties.add_property(Property("quarantine", outcome.quarantine))
    if outcome.evidence.not_covered:
        faults = json.dumps([dict(fault) for fault in outcome.evidence.not_covered])
        properties.add_property(Property("not_covered", _printable(faults)))
    case.append(properties)  # type: ignore[no-untyped-call]
    lines = [
        f"{v.policy}: {'passed' if v.passed else 'FAILED'}, found {v.found}, allowed {v.allowed}"
        for v in outcome.evidence.verdicts
    ]
    lines += failed_attempts(outcome)
    if outcome.retried:
        lines.append("passed only on retry")
    if outcome.quarantine:
        lines.append(f"quarantine: {outcome.quarantine}")
    if outcome.evidence.note:
        lines.append(outcome.evidence.note)
    if lines:
        case.system_out = _printable("\n".join(lines))
    return case


def failed_attempts(outcome: Outcome) -> list[str]:
    """Each attempt before the last, why it failed, and what was done about it."""
    return [
        f"attempt {number} failed: {attempt.get('error')}; then {attempt.get('step')}"
        + (f" ({attempt['command']})" if "command" in attempt else "")
        for number, attempt in enumerate(outcome.evidence.attempts, 1)
    ]


def markdown(outcomes: Sequence[Outcome], warnings: Sequence[str] = ()) -> str:
    """A summary for a pull request."""
    found = [outcome.word for outcome in outcomes]
    counts = [
        f"{found.count(word)} {_WORDS[word]}" for word in _WORDS if word in (*_ALWAYS, *found)
    ]
    lines = [
        f"**nmtool**: {', '.join(counts)}",
        "",
        "| case | target | result | found |",
        "|---|---|---|---|",
    ]
    for outcome, message in zip(outcomes, hints_once(outcomes), strict=True):
        detail = message or "; ".join(v.found for v in outcome.evidence.verdicts)
        if outcome.retried:
            detail = f"passed only on retry; {detail}"
        detail = "\n".join([detail, *failed_attempts(outcome)])
        cells = (outcome.case, outcome.target, _WORDS[outcome.word], detail)
        lines.append(f"| {' | '.join(map(_one_line, cells))} |")
    lines += ["", *(f"- warning: {_one_line(text)}" for text in warnings)] if warnings else []
    return _printable("\n".join(lines) + "\n")


def hints_once(outcomes: Sequence[Outcome]) -> list[str]:
    """The messages for people: what stands behind a ``;`` and was said before is not said again."""
    said: set[str] = set()
    messages = []
    for outcome in outcomes:
        found, _, hint = outcome.message.partition("; ")
        messages.append(f"{found}; as above" if hint in said else outcome.message)
        said |= {hint} - {""}
    return messages


def _one_line(text: str) -> str:
    return "<br>".join(text.replace("|", "\\|").splitlines())


def _printable(text: str) -> str:
    """The text without what XML or UTF-8 forbids: control characters, halves of characters."""
    return "".join(c if c in "\n\t" or " " <= c < "\ud800" or c > "\udfff" else "?" for c in text)
