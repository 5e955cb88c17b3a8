"""nmtool doctor: what this machine has, what it lacks, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

import nmtool
from nmtool.backends.commands import run_command
from nmtool.backends.locks import FOLDER, lock_folder
from nmtool.cli.common import Options, emit, table, verb
from nmtool.errors import DependencyError, NmtoolError, WriteError

State = Literal["ok", "optional", "missing"]
OLDEST = (3, 10)
PATIENCE = 60.0
"""Seconds that Lava may take to be imported."""


@dataclass(frozen=True)
class Item:
    """One thing: ``optional`` is not there and not needed, ``missing`` is needed."""

    name: str
    state: State
    found: str
    mend: str = ""
    error: type[NmtoolError] = DependencyError


@click.command("doctor")
@verb
def command(options: Options) -> None:
    """Look for everything that nmtool needs, and say how to get what is missing."""
    items = [item for part in PARTS for item in part()]
    wrong = [item for item in items if item.state == "missing"]
    worst = max((item.error for item in wrong), key=lambda kind: kind.exit_code, default=None)
    document = {
        "items": [
            {"name": i.name, "state": i.state, "found": i.found, "mend": i.mend or None}
            for i in items
        ],
        "exit_code": worst.exit_code if worst else 0,
    }
    emit(options, "doctor", document, _text(items))
    if worst is not None:
        # The document is printed already: without --json the error says it again in a line.
        click.echo(f"error: missing: {', '.join(item.name for item in wrong)}", err=True)
        raise click.exceptions.Exit(worst.exit_code)


def _text(items: list[Item]) -> str:
    lines = [table(("what", "state", "found"), [(i.name, i.state, i.found) for i in items])]
    lines += [f"{i.name}: {i.mend}" for i in items if i.mend and i.state != "ok"]
    return "\n".join(lines)


def _python() -> Iterator[Item]:
    wanted = ".".join(map(str, OLDEST))
    good = sys.version_info[:2] >= OLDEST
    found = f"{platform.python_version()} ({sys.executable})"
    yield Item("Python", "ok" if good else "missing", found, f"install Python {wanted} or later")


def _packages() -> Iterator[Item]:
    try:
        version = importlib.metadata.version("nmtool")
        needed = importlib.metadata.requires("nmtool") or []
    except importlib.metadata.PackageNotFoundError:
        folder = Path(nmtool.__file__).parent
        yield Item("nmtool", "missing", f"{folder}, not installed", "pip install . in a checkout")
        return
    yield Item("nmtool", "ok", f"{version} ({Path(nmtool.__file__).parent})")
    for requirement in needed:
        if ";" not in requirement:
            yield _package(requirement)


def _package(requirement: str) -> Item:
    """Whether a package is there in a version that is allowed: ``name>=1.2,<3``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    name = match[0] if match else requirement
    mend = f"pip install '{requirement}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Item(name, "missing", "not installed", mend)
    bounds = re.findall(r"(>=|<=|<|>|==)\s*([0-9.]+)", requirement)
    good = all(_holds(found, how, bound) for how, bound in bounds)
    allowed = requirement[len(name) :]
    return Item(name, "ok" if good else "missing", f"{found} (allowed {allowed})", mend)


def _holds(found: str, how: str, bound: str) -> bool:
    a, b = _numbers(found), _numbers(bound)
    width = max(len(a), len(b))
    a, b = a + (0,) * (width - len(a)), b + (0,) * (width - len(b))
    return {">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b, "==": a == b}[how]


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else (0,)


def _cache() -> Iterator[Item]:
    """Where numba keeps the emulator's machine code, and whether it is there already."""
    mend = "make that folder writable, or set NUMBA_CACHE_DIR to one that is"
    name = "kernel cache"
    if importlib.util.find_spec("numba") is None:
        return
    try:
        from nmtool.backends import kernel

        folder = Path(str(kernel.advance.stats.cache_path))
    except RuntimeError as error:  # numba found no folder that it may write
        yield Item(name, "missing", str(error), mend, WriteError)
        return
    except ImportError as error:
        yield Item(name, "missing", f"numba cannot be imported: {error}", "pip install numba")
        return
    if not _writable(folder):
        yield Item(name, "missing", f"{folder} cannot be written", mend, WriteError)
        return
    warm = "warm" if any(folder.glob("kernel.advance-*.nbi")) else "cold: the first run compiles"
    yield Item(name, "ok", f"{folder} ({warm})")


def _locks() -> Iterator[Item]:
    folder = lock_folder()
    mend = f"chmod 1777 {folder}, or set {FOLDER} to a folder that all users may write"
    if _writable(folder):
        yield Item("lock folder", "ok", str(folder))
    else:
        yield Item("lock folder", "missing", f"{folder} cannot be written", mend, WriteError)


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first. Makes nothing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _lava() -> Iterator[Item]:
    from nmtool.backends.lava.compat import INSTALL, INTEL, lava_missing, loihi_missing
    from nmtool.backends.lava.group import worker_environment

    if reason := lava_missing():
        yield Item("Lava (lava-sim)", "optional", reason.partition(";")[0], INSTALL)
        yield Item("lava-loihi (boards)", "optional", "needs Lava", INTEL)
        return
    code = (
        "from nmtool.backends.lava.compat import prepare_lava; prepare_lava(); "
        "import lava.magma.compiler.compiler"
    )
    done = run_command([sys.executable, "-c", code], PATIENCE, environment=worker_environment())
    version = importlib.metadata.version("lava-nc")
    if done.ok:
        yield Item("Lava (lava-sim)", "ok", f"lava-nc {version}, can be imported")
    else:
        found = f"lava-nc {version} cannot be imported: {done.problem}"
        yield Item("Lava (lava-sim)", "optional", found, INSTALL)
    reason = loihi_missing()
    state: State = "optional" if reason else "ok"
    yield Item("lava-loihi (boards)", state, "not installed" if reason else "installed", INTEL)


def _training() -> Iterator[Item]:
    from nmtool.backends.lava.compat import INSTALL, slayer_missing

    try:
        torch = importlib.metadata.version("torch")
        yield Item("torch (training)", "ok", torch)
    except importlib.metadata.PackageNotFoundError:
        mend = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        yield Item("torch (training)", "optional", "not installed", mend)
    reason = slayer_missing()
    found = reason.partition(";")[0] if reason else importlib.metadata.version("lava-dl")
    yield Item("lava-dl (training)", "optional" if reason else "ok", found, INSTALL)


def _slurm() -> Iterator[Item]:
    if shutil.which("sinfo") is None:
        mend = "install SLURM's client where boards are handed out by SLURM; else give board: host"
        yield Item("SLURM (boards)", "optional", "no sinfo", mend)
        return
    done = run_command(["sinfo"], 10.0)
    if done.ok:
        yield Item("SLURM (boards)", "ok", "sinfo answers")
    else:
        yield Item("SLURM (boards)", "optional", done.problem, "ask who runs SLURM here")


PARTS = (_python, _packages, _cache, _locks, _lava, _training, _slurm)
