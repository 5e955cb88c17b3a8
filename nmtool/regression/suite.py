"""Cases and their outcomes: a regression, a board's trouble, or nothing to say; and the worst."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from nmtool.errors import CheckFailed, NmtoolError, UnsupportedError, WriteError
from nmtool.regression.policies import Verdict

Status: TypeAlias = Literal["passed", "regression", "error", "skipped"]

BADNESS = (0, 7, 8, 4, 1, 5, 6, 3, 10, 9, 2, 70)
"""Exit codes from harmless to worst: what can be retried counts less than what must block."""


@dataclass(frozen=True)
class Evidence:
    """What a case measured; ``note`` is said of it, ``not_covered`` are faults that did nothing."""

    verdicts: tuple[Verdict, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    not_covered: tuple[Mapping[str, Any], ...] = ()

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """What the target failed at before it answered."""
        found = self.provenance.get("attempts")
        return [a for a in found if isinstance(a, dict)] if isinstance(found, list) else []


@dataclass(frozen=True)
class Outcome:
    """How one case ended on one target; ``code`` is the exit code that it stands for.

    ``quarantine`` is what was found where those in quarantine were run to see if they have healed.
    """

    case: str
    target: str
    status: Status
    code: int
    message: str
    seconds: float
    evidence: Evidence = Evidence()
    quarantine: Literal["", "healed", "still failing"] = ""

    @property
    def word(self) -> str:
        """How it ended, in a word or two."""
        return self.quarantine or self.status

    @property
    def retried(self) -> bool:
        """Whether it passed, but not at once."""
        return self.status == "passed" and bool(self.evidence.attempts)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "case": self.case,
            "target": self.target,
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "seconds": round(self.seconds, 3),
            "verdicts": [asdict(verdict) for verdict in self.evidence.verdicts],
            "attempts": self.evidence.attempts,
            "passed_only_on_retry": self.retried,
            "quarantine": self.quarantine or None,
            "not_covered": [dict(fault) for fault in self.evidence.not_covered],
            "provenance": dict(self.evidence.provenance),
        }


@dataclass(frozen=True)
class Case:
    """One thing that a target is held against, not run yet.

    ``quarantined`` says why it is not to be run, where it is in quarantine; ``readable`` raises
    where its file cannot be read, which is an error even there.
    """

    name: str
    target: str
    act: Callable[[], Outcome]
    quarantined: str = ""
    readable: Callable[[], object] = lambda: None

    def run(self) -> Outcome:
        """How it ends; in quarantine it is skipped if its file can be read."""
        if not self.quarantined:
            return self.act()
        read = run_case(self.name, self.target, self._read)
        return read if read.status == "error" else self._skipped()

    def verified(self) -> Outcome:
        """How it ends, as news of its quarantine: what still fails is skipped."""
        outcome = self.act()
        if outcome.status == "passed":
            return replace(outcome, quarantine="healed")
        if outcome.status == "regression":
            return replace(outcome, status="skipped", code=0, quarantine="still failing")
        return outcome

    def _read(self) -> Evidence:
        self.readable()
        return Evidence()

    def cut_short(self, code: int, why: str) -> Outcome:
        """How it ends where the suite does before it: an error with the suite's exit code."""
        if self.quarantined:
            return self._skipped()
        return Outcome(self.name, self.target, "error", code, why, 0.0)

    def _skipped(self) -> Outcome:
        return Outcome(self.name, self.target, "skipped", 0, self.quarantined, 0.0)


def run_case(case: str, target: str, act: Callable[[], Evidence]) -> Outcome:
    """Run one case; whatever goes wrong is its outcome, and the suite goes on."""
    started = time.monotonic()

    def ended(status: Status, code: int, message: str, evidence: Evidence = Evidence()) -> Outcome:
        return Outcome(case, target, status, code, message, time.monotonic() - started, evidence)

    try:
        evidence = act()
    except UnsupportedError as error:
        return ended("skipped", error.exit_code, f"not supported: {error}")
    except NmtoolError as error:
        return ended("error", error.exit_code, str(error), Evidence(provenance=_facts(error)))
    except OSError as error:
        text = f"{error.filename or case}: {error.strerror or error}"
        return ended("error", WriteError.exit_code, text)
    except Exception as error:
        text = f"a bug in nmtool: {type(error).__name__}: {error}; report it with these lines"
        return ended("error", NmtoolError.exit_code, f"{text}\n{traceback.format_exc()}")
    failed = [verdict for verdict in evidence.verdicts if not verdict.passed]
    if failed:
        lines = [f"{v.policy}: found {v.found}, allowed {v.allowed}" for v in failed]
        lines += [evidence.note] if evidence.note else []
        return ended("regression", CheckFailed.exit_code, "\n".join(lines), evidence)
    return ended("passed", 0, evidence.note, evidence)


def _facts(error: NmtoolError) -> dict[str, Any]:
    return {"attempts": attempts} if (attempts := getattr(error, "attempts", None)) else {}


def worst(outcomes: Sequence[Outcome]) -> int:
    """The exit code of a suite: that of its worst case.

    Skipped cases count only where nothing else ran: a suite that tested nothing is not green.
    """
    ran = [outcome.code for outcome in outcomes if outcome.status != "skipped"]
    codes = ran or [outcome.code for outcome in outcomes]
    return max(codes, key=BADNESS.index, default=0)
