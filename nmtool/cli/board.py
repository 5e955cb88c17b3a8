"""nmtool board: the targets there are, what they run, whether they can be had, who holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from nmtool import yamlio
from nmtool.backends import limits_of
from nmtool.backends.boards import reach
from nmtool.backends.locks import describe, holder, prepare_folder
from nmtool.chip import HardwareConfig, load_chip, load_hardware, shipped
from nmtool.cli.common import FILE, Options, emit, table, verb
from nmtool.errors import (
    BoardUnavailable,
    ConfigError,
    DependencyError,
    NmtoolError,
    UsageError,
    WriteError,
)

HERE = Path("hw_configs")


@dataclass(frozen=True)
class Target:
    """A hardware file, and what is known of its target; ``error`` is why it cannot be used now.

    ``decides`` tells whether that is an exit code of ``board check``.
    """

    name: str
    file: str
    backend: str = ""
    chip: str = ""
    board: str = ""
    cannot: tuple[str, ...] = ()
    found: str = ""
    holder: str = ""
    error: NmtoolError | None = None
    decides: bool = True

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "file": self.file,
            "backend": self.backend,
            "chip": self.chip,
            "board": self.board or None,
            "cannot_run": list(self.cannot),
            "reachable": self.error is None,
            "why": str(self.error) if self.error else self.found,
            "held_by": self.holder or None,
            "exit_code": self.error.exit_code if self.error else 0,
            "decides": self.decides,
        }


@click.group("board")
def command() -> None:
    """List targets and check whether they can be used."""


folder_option = click.option(
    "--folder",
    type=FILE,
    metavar="DIR",
    help="Where to look for hardware files beside the shipped ones.  [default: ./hw_configs]",
)


@command.command("list")
@folder_option
@verb
def list_(folder: str | None, options: Options) -> None:
    """List the shipped targets and those of a folder."""
    if options.overrides:
        raise UsageError("-s: nothing to override; nmtool board check NAME takes hw.KEY=VALUE")
    targets = [_look(name, file) for name, file in _files(folder)]
    rows = [
        (t.name, t.backend, t.chip, t.board or "-", _state(t), t.holder or "-") for t in targets
    ]
    header = ("target", "backend", "chip", "board", "usable", "held by")
    lines = [table(header, rows)]
    lines += [f"{t.name}: {t.error}" for t in targets if t.error]
    lines += [f"{t.name} cannot run: {', '.join(t.cannot)}" for t in targets if t.cannot]
    emit(options, "boards", {"targets": [t.as_json() for t in targets]}, "\n".join(lines))


@command.command("check")
@click.argument("name", required=False)
@folder_option
@verb
def check(name: str | None, folder: str | None, options: Options) -> None:
    """Check whether the target NAME (or a .yaml file), or every target, can be used now.

    Without NAME a shipped target that cannot be had here is told and does not decide the exit code:
    the shipped boards are examples to fill in.
    """
    overrides = options.hardware_overrides()
    if name is None:
        if overrides:
            raise UsageError(f"-s hw.{overrides[0]}: found no NAME, allowed for one target only")
        targets = [_judged(_look(target, file)) for target, file in _files(folder)]
    else:
        files = dict(_files(folder))
        targets = [_look(name, files.get(name, Path(name)), overrides, strict=True)]
    text = "\n".join(f"{t.name}: {_state(t)}{f' ({t.found})' if t.found else ''}" for t in targets)
    wrong = [t for t in targets if t.error]
    code = next((t.error.exit_code for t in targets if t.error and t.decides), 0)
    document = {"targets": [t.as_json() for t in targets], "exit_code": code}
    emit(options, "boards", document, text)
    for target in wrong:
        word = "error" if target.decides else "note"
        click.echo(f"{word}: {target.error}", err=True)
    if code:
        raise click.exceptions.Exit(code)


def _judged(target: Target) -> Target:
    """The target as one of all: what a shipped one lacks on this machine does not decide."""
    lacks = isinstance(target.error, DependencyError | BoardUnavailable)
    return replace(target, decides=not (lacks and Path(target.file) in shipped("targets").values()))


def _state(target: Target) -> str:
    return f"no (exit {target.error.exit_code})" if target.error else "yes"


def _files(folder: str | None) -> list[tuple[str, Path]]:
    """Names and files: the shipped targets, then those of the folder; each file once.

    Raises:
        ConfigError: the folder that was asked for is not there.
    """
    found = dict(shipped("targets"))
    seen = {path.resolve() for path in found.values()}
    place = HERE if folder is None else Path(folder)
    if folder is not None and not place.is_dir():
        raise ConfigError(f"--folder {folder}: no such folder")
    for path in sorted(place.glob("*.yaml")) if place.is_dir() else []:
        if path.resolve() not in seen and _is_target(path):
            found[path.stem if path.stem not in found else str(path)] = path
    return list(found.items())


def _is_target(path: Path) -> bool:
    try:
        data = yamlio.parse(yamlio.read_text(path), str(path)).data
    except ConfigError:
        return True  # it is listed, with what is wrong
    return isinstance(data, dict) and data.get("schema") == "nmtool.hardware/v1"


def _look(name: str, file: Path, overrides: Iterable[str] = (), *, strict: bool = False) -> Target:
    """What is known of a target; a wrong file is an error of its own if ``strict``."""
    known = Target(name, str(file))
    try:
        hardware = load_hardware(str(file), [*overrides])
    except ConfigError as error:
        if strict:
            raise
        return replace(known, error=error)
    known = replace(
        known,
        backend=hardware.backend,
        chip=load_chip(hardware.chip).name,
        board=str(hardware.board) if hardware.board else "",
        cannot=tuple(limits_of(hardware)),
        holder=_holder(hardware),
    )
    try:
        return replace(known, found=_usable(hardware))
    except (BoardUnavailable, DependencyError, WriteError) as error:
        return replace(known, error=error)


def _holder(hardware: HardwareConfig) -> str:
    host = hardware.board.host if hardware.board else None
    found = holder(host) if host else None
    return "" if found is None else describe(found)


def _usable(hardware: HardwareConfig) -> str:
    """What is known of a target that can be used.

    Raises:
        DependencyError: a package is missing.
        BoardUnavailable: the board cannot be had, or somebody holds it.
        WriteError: its lock cannot be written.
    """
    from nmtool.backends.lava.compat import lava_missing, loihi_missing

    missing = {"lava-sim": lava_missing, "lava-loihi": loihi_missing}.get(hardware.backend)
    if missing and (reason := missing()):
        raise DependencyError(f"target {hardware.name}: {reason}")
    if hardware.board is None:
        return ""
    if hardware.board.host is not None:
        prepare_folder()
        if held := _holder(hardware):
            raise BoardUnavailable(f"target {hardware.name}: held by {held}")
    found = reach(hardware.board, hardware.timeouts.board)
    if not found.ok:
        raise BoardUnavailable(f"target {hardware.name}: no board ({hardware.board}): {found.why}")
    return found.why
