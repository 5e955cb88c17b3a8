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

_WORDS = {"passed": "passed", "regression": "REGRESSION", "error": "error", "skipped": "skipped"}


def write_junit(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write JUnit XML: a regression is a failure, a board's trouble an error.

    Raises:
        WriteError: it cannot be written.
    """
    xml = JUnitXml("nmtool")
    for target in dict.fromkeys(outcome.target for outcome in outcomes):
        suite = TestSuite(target)
        for outcome in outcomes:
            if outcome.target == target:
                suite.add_testcase(_testcase(outcome))
        xml.add_testsuite(suite)
    write_text(path, xml.tostring().decode())  # type: ignore[no-untyped-call]


def _testcase(outcome: Outcome) -> TestCase:
    name = str(Path(outcome.case).with_suffix(""))
    case = TestCase(name, f"nmtool.{outcome.target}", round(outcome.seconds, 3))
    message = _printable(outcome.message)
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
    case.append(properties)  # type: ignore[no-untyped-call]
    lines = [
        f"{v.policy}: {'passed' if v.passed else 'FAILED'}, found {v.found}, allowed {v.allowed}"
        for v in outcome.evidence.verdicts
    ]
    lines += [f"attempt {i}: {json.dumps(a)}" for i, a in enumerate(outcome.evidence.attempts, 1)]
    if outcome.retried:
        lines.append("passed only on retry")
    if lines:
        case.system_out = _printable("\n".join(lines))
    return case


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A summary for a pull request."""
    counts = [
        f"{sum(outcome.status == status for outcome in outcomes)} {_WORDS[status]}"
        for status in _WORDS
    ]
    lines = [
        f"**nmtool**: {', '.join(counts)}",
        "",
        "| golden run | target | | |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        detail = outcome.message or "; ".join(v.found for v in outcome.evidence.verdicts)
        if outcome.retried:
            detail = f"passed only on retry; {detail}"
        cells = (outcome.case, outcome.target, _WORDS[outcome.status], _one_line(detail))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "<br>".join(text.replace("|", "\\|").splitlines())


def _printable(text: str) -> str:
    """The text without the control characters that XML forbids."""
    return "".join(c if c in "\n\t" or c >= " " else "?" for c in text)
