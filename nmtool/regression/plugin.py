"""The pytest plugin: boards, programs and golden runs as fixtures, features as a marker.

``pytest --nmtool-hw kapoho-point`` runs every test that uses ``board`` on that target; without the
option they run on the emulator. Trouble with a board is an error, not a failure of the test.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nmtool.backends import Recording, Session
    from nmtool.chip import HardwareConfig
    from nmtool.compiler import Program
    from nmtool.regression.golden import Golden

_CODE = "nmtool_exit_code"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of nmtool."""
    group = parser.getgroup("nmtool", "neuromorphic chips (nmtool)")
    group.addoption(
        "--nmtool-hw",
        action="append",
        metavar="TARGET",
        help="Target by name or YAML file for tests that use `board`; may be given again "
        "[default: emulator].",
    )
    group.addoption("--nmtool-program", metavar="FILE.h5", help="What the fixture `program` loads.")
    group.addoption(
        "--nmtool-golden",
        metavar="FOLDER",
        default="golden",
        help="Golden runs, over which the fixture `golden` runs [default: golden].",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and check the targets before anything is collected."""
    config.addinivalue_line(
        "markers",
        "nmtool_requires(feature, ...): skip where the board cannot run a feature "
        "(`nmtool compile --explain` lists them) or is no chip (`chip`)",
    )
    for name in config.getoption("--nmtool-hw") or ():
        _or_usage_error(name)


def _or_usage_error(name: str) -> HardwareConfig:
    from nmtool.chip import load_hardware
    from nmtool.errors import NmtoolError

    try:
        return load_hardware(name)
    except NmtoolError as error:
        raise pytest.UsageError(f"--nmtool-hw {name}: {error}") from None


class Board:
    """A target under test."""

    def __init__(self, hardware: HardwareConfig) -> None:
        self.hardware = hardware

    @property
    def name(self) -> str:
        """The target's name."""
        return self.hardware.name

    def open(self, program: Program) -> Session:
        """Load a program; close the session, or use it in a ``with``."""
        from nmtool.backends import open_session

        return open_session(program, self.hardware)

    def run(self, program: Program, spikes: Any, probe: Any = None) -> Recording:
        """One run of a program, each sample from reset."""
        with self.open(program) as session:
            return session.run(spikes, probe=probe)

    def check(self, golden: Golden, *policies: str) -> Recording:
        """Hold the target against a golden run.

        Raises:
            AssertionError: a policy does not hold; the message says which, and by how much.
        """
        __tracebackhide__ = True
        from nmtool.regression.check import run_on
        from nmtool.regression.policies import judge

        run = run_on(golden.program, self.hardware, golden.inputs, golden.probe)
        failed = [verdict for verdict in judge(golden, run, policies) if not verdict.passed]
        if failed:
            lines = (f"{v.policy}: found {v.found}, allowed {v.allowed}" for v in failed)
            raise AssertionError(f"{self.name}: " + "\n".join(lines))
        return run

    def why_not(self, feature: str) -> str | None:
        """Why the target cannot run a feature; None where it can."""
        from nmtool.backends import limits_of

        if problem := _unknown([feature]):
            raise pytest.UsageError(problem)
        if feature == "chip":
            chip = self.hardware.backend == "lava-loihi"
            return None if chip else f"{self.name} is a simulator ({self.hardware.backend})"
        reasons = {str(name): why for name, why in limits_of(self.hardware).items()}
        return f"{self.name}: {reasons[feature]}" if feature in reasons else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests once for each target and each golden run; a wrong feature is an error here."""
    _check_features(metafunc.definition)
    if _is_ours(metafunc, "board", board):
        names = metafunc.config.getoption("--nmtool-hw") or ["emulator"]
        targets = [pytest.param(name, marks=_group(metafunc.config, name)) for name in names]
        metafunc.parametrize("board", targets, indirect=True, scope="session")
    if _is_ours(metafunc, "golden", golden):
        folder = Path(metafunc.config.getoption("--nmtool-golden"))
        files = _golden_files(folder)
        ids = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
        metafunc.parametrize("golden", files, ids=ids, indirect=True, scope="session")


def _group(config: pytest.Config, name: str) -> list[pytest.MarkDecorator]:
    """The xdist group of a board's tests: with ``--dist loadgroup`` one worker runs all of them."""
    board = _or_usage_error(name).board
    if board is None or not config.pluginmanager.hasplugin("xdist"):
        return []
    return [pytest.mark.xdist_group(str(board))]


def _golden_files(folder: Path) -> list[Path]:
    """The golden runs of a folder and all below it.

    Raises:
        UsageError: there are none.
    """
    from nmtool.regression.golden import ENDINGS, golden_files, passed_over

    files, others = golden_files(folder)
    if others:
        warnings.warn(f"--nmtool-golden {folder}: {passed_over(others)}", stacklevel=2)
    if not files:
        allowed = ", ".join(f"*{ending}" for ending in ENDINGS)
        raise pytest.UsageError(f"--nmtool-golden {folder}: found no golden run there ({allowed})")
    return files


def _check_features(definition: pytest.Item) -> None:
    """Check what the markers of a test ask for.

    Raises:
        CollectError: a feature that nmtool does not know; the file is collected no further.
    """
    marks = definition.iter_markers("nmtool_requires")
    features = list(dict.fromkeys(feature for mark in marks for feature in mark.args))
    if features and (problem := _unknown(features)):
        raise pytest.Collector.CollectError(f"{definition.nodeid}: {problem}")


def _unknown(features: Sequence[Any]) -> str | None:
    """What is wrong with the features of a marker."""
    from nmtool.compiler.features import FEATURES

    known = ["chip", *map(str, FEATURES)]
    wrong = [feature for feature in features if feature not in known]
    if not wrong:
        return None
    close = difflib.get_close_matches(str(wrong[0]), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    found = ", ".join(map(repr, wrong))
    return f"nmtool_requires: found {found}, allowed {', '.join(known)}{hint}"


def _is_ours(metafunc: pytest.Metafunc, name: str, fixture: Any) -> bool:
    """Whether a test uses nmtool's fixture of that name, not one of its own project's."""
    definitions = getattr(metafunc, "_arg2fixturedefs", {}).get(name, ())
    function = getattr(fixture, "_get_wrapped_function", lambda: fixture)()
    return bool(definitions) and definitions[-1].func is function


@pytest.fixture(scope="session")
def board(request: pytest.FixtureRequest) -> Board:
    """The target under test, once for each ``--nmtool-hw``."""
    return Board(_or_usage_error(request.param))


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Program:
    """The program of ``--nmtool-program``."""
    from nmtool import formats
    from nmtool.compiler import Program

    path = request.config.getoption("--nmtool-program")
    if path is None:
        pytest.skip("no --nmtool-program was given")
    loaded: Program = formats.load_as(path, Program)
    return loaded


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Every golden run in the folder of ``--nmtool-golden``."""
    from nmtool.regression.golden import load_golden

    return load_golden(request.param)


@pytest.fixture(autouse=True)
def _nmtool_requires(request: pytest.FixtureRequest) -> None:
    """Skip tests whose features the board lacks, with the reason."""
    marks = list(request.node.iter_markers("nmtool_requires"))
    if not marks:
        return
    if "board" not in request.fixturenames:
        raise pytest.UsageError(f"{request.node.nodeid}: nmtool_requires needs the fixture board")
    under_test: Board = request.getfixturevalue("board")
    for mark in marks:
        for feature in mark.args:
            if reason := under_test.why_not(feature):
                pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Report trouble with a board as an error, and what a target cannot run as skipped."""
    under_test = getattr(item, "funcargs", {}).get("board")
    if call.when == "setup" and isinstance(under_test, Board):
        item.user_properties += _provenance(under_test, item)
    outcome: Any = yield
    if call.excinfo is None:
        return
    from nmtool.errors import (
        BoardError,
        BoardUnavailable,
        CheckFailed,
        DependencyError,
        NmtoolError,
        UnsupportedError,
    )

    report = outcome.get_result()
    error = call.excinfo.value
    if "board" not in getattr(item, "fixturenames", ()) or not isinstance(error, NmtoolError):
        return
    if isinstance(error, UnsupportedError):
        report.outcome = "skipped"
        path, line, _ = item.location
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {error}")
    elif not isinstance(error, CheckFailed):
        if call.when == "call":
            report.when = "setup"  # what pytest and its JUnit file call an error
        if isinstance(error, DependencyError | BoardUnavailable | BoardError):
            report.longrepr = f"{type(error).__name__}: {error}"  # no line of a test is to blame
        setattr(report, _CODE, error.exit_code)


def _provenance(under_test: Board, item: pytest.Item) -> list[tuple[str, str]]:
    """Where a verdict is from, for the JUnit file."""
    hardware = under_test.hardware
    facts = {"target": hardware.name, "backend": hardware.backend, "chip": hardware.chip}
    from nmtool.regression.golden import Golden

    held_against = getattr(item, "funcargs", {}).get("golden")
    if isinstance(held_against, Golden):
        facts["program"] = held_against.program.fingerprint
        facts["golden_recorded"] = str(held_against.provenance.get("time", "unknown"))
        if held_against.warnings:
            facts["golden_warnings"] = "; ".join(held_against.warnings)
    return [(f"nmtool_{name}", value) for name, value in facts.items()]


class _Codes:
    """The exit codes that the failures of a session stand for."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.found.append(getattr(report, _CODE, 1))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Where nothing but boards failed: their exit code, so that a pipeline can try again."""
        from nmtool.regression.suite import BADNESS

        if self.found and 1 not in self.found and session.exitstatus == 1:
            session.exitstatus = max(self.found, key=BADNESS.index)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Watch the reports where they come together: not in the workers of xdist."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Codes(), "nmtool-exit-codes")
