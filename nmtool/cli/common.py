"""What all verbs share: options, exit codes, signals, progress bars, output."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from nmtool.errors import (
    BoardError,
    BoardUnavailable,
    CheckFailed,
    ConfigError,
    NmtoolError,
    UsageError,
    WriteError,
)
from nmtool.yamlio import parse_duration

TIMED_OUT, INTERRUPTED, TERMINATED, BUG = 124, 130, 143, 70
FILE = click.Path(readable=False)
"""A path whose problems are the command's to report: its exit code says what the file was for."""

_LOCATED = re.compile(r"^\S.*:\d+:\d+: ")


class TimedOut(BaseException):
    """``--timeout`` passed."""


class Terminated(BaseException):
    """SIGTERM arrived."""


@dataclass(frozen=True)
class Options:
    """The options that every verb has."""

    overrides: tuple[str, ...]
    seed: int | None
    as_json: bool
    quiet: bool
    verbose: bool
    dry_run: bool
    force: bool

    def split_overrides(self) -> tuple[list[str], list[str]]:
        """Overrides of the experiment, and those of the target (``hw.``) without that prefix."""
        hardware = [o.removeprefix("hw.") for o in self.overrides if o.startswith("hw.")]
        return [o for o in self.overrides if not o.startswith("hw.")], hardware

    def hardware_overrides(self) -> list[str]:
        """Overrides of the target, for verbs that take no others.

        Raises:
            UsageError: an override of something else.
        """
        others, hardware = self.split_overrides()
        if others:
            raise UsageError(
                f"-s {others[0]}: this command has no experiment to override; "
                "allowed hw.KEY=VALUE for the target"
            )
        return hardware


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Add the global options to a command; they arrive as its argument ``options``."""

    @click.option(
        "-s",
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one value; hw.KEY=VALUE is the target's.",
    )
    @click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        envvar="NMTOOL_SEED",
        help="Replaces the experiment's seed.",
    )
    @click.option(
        "--json",
        "as_json",
        is_flag=True,
        envvar="NMTOOL_JSON",
        help="Print the result as one JSON document.",
    )
    @click.option(
        "-q", "--quiet", is_flag=True, envvar="NMTOOL_QUIET", help="No progress and no notes."
    )
    @click.option("-v", "--verbose", is_flag=True, envvar="NMTOOL_VERBOSE", help="More notes.")
    @click.option(
        "--dry-run",
        is_flag=True,
        envvar="NMTOOL_DRY_RUN",
        help="Check everything, run and write nothing.",
    )
    @click.option(
        "--force", is_flag=True, envvar="NMTOOL_FORCE", help="Replace outputs that exist."
    )
    @click.option(
        "--timeout",
        metavar="DURATION",
        envvar="NMTOOL_TIMEOUT",
        help="Give up after this time, such as 90s or 5m (exit 124).",
    )
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        overrides: tuple[str, ...],
        seed: int | None,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        dry_run: bool,
        force: bool,
        timeout: str | None,
        **kwargs: Any,
    ) -> None:
        options = Options(overrides, seed, as_json, quiet, verbose, dry_run, force)
        with _deadline(timeout):
            function(*args, options=options, **kwargs)

    return wrapped


@contextlib.contextmanager
def _deadline(timeout: str | None) -> Iterator[None]:
    if timeout is None:
        yield
        return
    try:
        seconds = parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: found {timeout!r}, allowed {error}") from None
    if seconds <= 0:
        raise UsageError(f"--timeout: found {timeout!r}, allowed more than 0")

    def expire(_number: int, _frame: Any) -> NoReturn:
        raise TimedOut

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _raise_again(lost: Any) -> None:
    """Python drops an exception that is raised inside a destructor or a weakref's callback.

    A signal that arrives just there must still end the command: it is raised again from a timer.
    """
    if not isinstance(lost.exc_value, KeyboardInterrupt | Terminated | TimedOut):
        sys.__unraisablehook__(lost)
        return
    kind = type(lost.exc_value)

    def again(_number: int, _frame: Any) -> NoReturn:
        raise kind

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command; every way it can end has its exit code."""

    def terminate(_number: int, _frame: Any) -> NoReturn:
        raise Terminated

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = _wants_json(arguments)
    previous = signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = _raise_again
    try:
        ended = command.main(args=arguments, prog_name="nmtool", standalone_mode=False)
        sys.stdout.flush()
        if isinstance(ended, int):  # click returns what its Exit holds
            return ended
    except CheckFailed as error:
        return _fail(str(error), error.exit_code, as_json=False)  # the result is printed already
    except NmtoolError as error:
        return _fail(str(error), error.exit_code, as_json)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "nmtool"
        return _fail(f"{error.format_message()} (see {where} --help)", 2, as_json)
    except click.ClickException as error:
        return _fail(error.format_message(), 2, as_json)
    except (BrokenPipeError, SystemExit):  # click exits with 1 when a pipe is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WriteError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED, as_json)
    except TimedOut:
        return _fail("--timeout passed", TIMED_OUT, as_json)
    except Terminated:
        return _fail("terminated", TERMINATED, as_json)
    except OSError as error:
        return _fail(
            f"{error.filename or 'output'}: {error.strerror or error}",
            WriteError.exit_code,
            as_json,
        )
    except Exception as error:
        traceback.print_exc()
        return _fail(
            f"a bug in nmtool: {type(error).__name__}: {error}; please report it with "
            "the lines above",
            BUG,
            as_json,
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
        sys.unraisablehook = sys.__unraisablehook__
    return 0


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors are documents too, as ``--json`` and NMTOOL_JSON say."""
    flag = os.environ.get("NMTOOL_JSON", "").strip().lower()
    return "--json" in arguments or flag in ("1", "true", "t", "yes", "y", "on")


def _fail(message: str, code: int, as_json: bool) -> int:
    for line in message.splitlines():
        click.echo(line if _LOCATED.match(line) else f"error: {line}", err=True)
    if as_json:
        with contextlib.suppress(OSError):
            document = {"schema": "nmtool.error/v1", "exit_code": code, "error": message}
            click.echo(json.dumps(document))
    return code


def note(options: Options, text: str) -> None:
    """A line for people, to stderr."""
    if not options.quiet:
        click.echo(text, err=True)


def warn(text: str) -> None:
    """A warning, to stderr; shown even with ``--quiet``."""
    click.echo(f"warning: {text}", err=True)


def emit(options: Options, schema: str, document: dict[str, Any], text: str) -> None:
    """The result: a JSON document, or text for people, to stdout."""
    if options.as_json:
        click.echo(json.dumps({"schema": f"nmtool.{schema}/v1", **document}, indent=2))
    else:
        click.echo(text)


@contextlib.contextmanager
def progress(options: Options, title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr where that is a terminal.

    Yields ``update(done, total)``, or ``update(done, total, what)`` to say what runs.
    """
    if options.quiet or not sys.stderr.isatty():
        yield lambda done, total, what="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int, what: str = "") -> None:
            text = f"{title}: {what}" if what else title
            bar.update(task, completed=done, total=total, description=text)

        yield update


@contextlib.contextmanager
def resumable(options: Options, is_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Say how to go on where a long command is cut short; ``is_begun``: it has kept something."""
    try:
        yield
    except (KeyboardInterrupt, TimedOut, Terminated, BoardError, BoardUnavailable):
        if is_begun():
            note(options, "what is done is kept; the same command with --resume continues it")
        else:
            note(options, "nothing is kept yet; the same command without --resume starts again")
        raise


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table; columns of numbers are right-aligned."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        parts = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, cells)])


def _is_number(text: str) -> bool:
    return not text or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?(%|s|ms))?", text) is not None


def refuse_same(outputs: Sequence[str | None], inputs: Sequence[str | None]) -> None:
    """Refuse outputs that are one file, or one of the inputs: --force is not meant for that.

    Raises:
        UsageError: two names of one file.
    """
    seen = {os.path.realpath(name): name for name in inputs if name}
    for name in filter(None, outputs):
        real = os.path.realpath(name)
        if real in seen:
            raise UsageError(f"{name}: found as an output, and as {seen[real]} too")
        seen[real] = name


def read_array(path: str, what: str) -> Any:
    """The array of a .npy file without pickled objects.

    Raises:
        ConfigError: missing, not such a file, empty, or holding objects.
    """
    import numpy as np

    try:
        with Path(path).open("rb") as file:
            if file.read(2) == b"PK":
                raise ConfigError(f"{what} {path}: found several arrays (.npz), allowed one (.npy)")
        # A map of the file: a header that claims more than the file holds allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: no such file") from None
    except ConfigError:
        raise
    except _NOT_NPY as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{what} {path}: not a .npy file of numbers ({reason})") from None
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{what} {path}: found values of type {array.dtype}, allowed numbers")
    if not array.size:
        raise ConfigError(f"{what} {path}: found shape {array.shape}, allowed one sample or more")
    return np.array(array)


_NOT_NPY = (
    *(OSError, ValueError, EOFError, MemoryError, TypeError, SyntaxError),
    *(ArithmeticError, RecursionError, tokenize.TokenError),
)
