"""Cache of compiled programs, by the content of everything that decides them.

The key is a SHA-256 over the network's file, the numbers of the chip, the options, and nmtool's own
sources. Entries are written whole or not at all, so that any number of compilers can share a
folder; what is damaged or of somebody else counts as not there. A folder that cannot be read or
written makes nothing fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler import Program
from nmtool.compiler.headroom import Headroom, Nearest, Saving
from nmtool.errors import ArtifactError, NmtoolError
from nmtool.formats import pack, unpack
from nmtool.formats.claims import build
from nmtool.formats.container import Container, read_container, write_container

SCHEMA = "nmtool.cached/v1"
MAX_BYTES = 1 << 30
"""Of a folder: the entries that were used least recently are deleted beyond it."""

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Compiled:
    """What a compiler gives: the program and its headroom."""

    program: Program
    headroom: Headroom


def folder() -> Path | None:
    """NMTOOL_CACHE, else ``nmtool/programs`` in XDG_CACHE_HOME, else in ``~/.cache``.

    None for a user without a home.
    """
    if own := os.environ.get("NMTOOL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path("~/.cache").expanduser()) / "nmtool" / "programs"
    except RuntimeError:
        return None


def key(content: Path, chip: ChipSpec, options: Mapping[str, Any]) -> str:
    """The key of a network's file, compiled for a chip with options that JSON can say."""
    numbers = {
        field.name: getattr(chip, field.name) for field in fields(chip) if field.name != "facts"
    }
    parts = [SCHEMA, _sources(), np.__version__, numbers, options]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode())
    digest.update(content.read_bytes())
    return digest.hexdigest()


@cache
def _sources() -> str:
    """A SHA-256 over the sources of nmtool: other code may compile another program."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find(name: str, say: Say) -> Compiled | None:
    """What was compiled for a key; ``say`` is told of an entry that is of no use."""
    path = _entry(name)
    try:
        if path is None or not path.exists():
            return None
        compiled = _read(path, name)
        with contextlib.suppress(OSError):
            os.utime(path)
    except (NmtoolError, OSError) as error:
        say(f"cache: {error}; ignored, compiled again")
        return None
    return compiled


def keep(name: str, compiled: Compiled, most: int = MAX_BYTES) -> None:
    """Write what was compiled for a key, and delete what is beyond ``most`` bytes.

    A folder that cannot be written stays as it is.
    """
    path = _entry(name)
    if path is None:
        return
    program = pack(compiled.program)
    header = {
        "key": name,
        "schema": program.schema,
        "program": program.header,
        "headroom": asdict(compiled.headroom),
    }
    with contextlib.suppress(OSError):
        write_container(path, Container(SCHEMA, header, program.arrays))
        _shrink(path.parent, most)


def _entry(name: str) -> Path | None:
    where = folder()
    return where / f"{name}.h5" if where else None


def _read(path: Path, name: str) -> Compiled:
    container = read_container(path)
    header = container.header
    if container.schema != SCHEMA or header.get("key") != name:
        raise ArtifactError(f"{path}: found something else than was compiled for this key")
    try:
        inner = Container(header["schema"], header["program"], container.arrays)
        program, headroom = unpack(inner, path), _headroom(header["headroom"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, NmtoolError):
            raise
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    if not isinstance(program, Program):
        raise ArtifactError(f"{path}: found a {type(program).__name__}, allowed a Program")
    return Compiled(program, headroom)


def _headroom(plain: Mapping[str, Any]) -> Headroom:
    savings = tuple(build(Saving, saving) for saving in plain["savings"])
    nearest = build(Nearest, plain["nearest"]) if plain["nearest"] else None
    return build(Headroom, {**plain, "savings": savings, "nearest": nearest})


def _shrink(where: Path, most: int) -> None:
    """Delete the files that were used least recently until the rest is no more than ``most``."""
    found = []
    for path in where.glob("*.h5*"):
        with contextlib.suppress(OSError):  # another compiler may have deleted it
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
