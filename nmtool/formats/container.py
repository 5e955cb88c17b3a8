"""HDF5 containers: one JSON header and named arrays, checksummed, written whole or not at all.

A file starts with a user block of 512 bytes, which HDF5 tools skip: the SHA-256 of all that follows
it. It is verified before the HDF5 library sees a byte, because damage can crash that library; for
the same reason files are put together in memory, where no disk can be full.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from nmtool.errors import ArtifactError, UsageError, WriteError
from nmtool.formats.hdf5 import check_dataset, check_expansion, check_link

Array = npt.NDArray[Any]
MAX_BYTES = 4 << 30
"""More than this is refused before anything is allocated."""
MAX_HEADER = 64 << 20
"""Bytes of the header, which take many times as much as Python objects."""
MAX_NAME = 200

_ALLOWED_KINDS = "biuf"
_BLOCK = 512
_MAGIC = b"nmtool container, sha256 after these 512 bytes: "
_HDF5 = b"\x89HDF"


@dataclass(frozen=True, eq=False)
class Container:
    """What a file holds: its schema (``nmtool.<kind>/v1``), a JSON header, arrays by name."""

    schema: str
    header: Mapping[str, Any]
    arrays: Mapping[str, Array]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without error.

    Raises:
        WriteError: the folder is missing or not writable, the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        reason = error.strerror or str(error).splitlines()[0]
        raise WriteError(f"{path}: cannot be written ({reason}); nothing was changed") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def refuse_overwrite(path: Path, force: bool) -> None:
    """Refuse to write over a file that exists.

    Raises:
        UsageError: it exists and ``force`` is not given.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: found a folder or device, allowed the name of a file")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; use --force to replace it")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_container(path: Path, container: Container) -> None:
    """Write a container; arrays of more than 64 elements are compressed without loss."""
    header = json.dumps(container.header).encode()
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=_BLOCK) as file:
        file.attrs["schema"] = container.schema
        file.create_dataset("header", data=np.frombuffer(header, dtype=np.uint8))
        for name, array in container.arrays.items():
            options = (
                {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                if array.size > 64
                else {}
            )
            file.create_dataset(f"arrays/{name}", data=_stored(array), track_times=False, **options)
    content = image.getvalue()[_BLOCK:]
    with writing(path) as temporary, temporary.open("wb") as target:
        target.write(_user_block(content))
        target.write(content)


def read_container(path: Path) -> Container:
    """Read and verify a container.

    Raises:
        ArtifactError: missing, not such a file, too large, or damaged.
    """
    image = _verified(path)
    try:
        with h5py.File(io.BytesIO(image), "r") as file:
            names, total = _sizes(file)
            check_expansion(total, len(image), MAX_BYTES)
            header = json.loads(bytes(np.asarray(file["header"])))
            if not isinstance(header, dict):
                raise ArtifactError(
                    f"the header: found a {type(header).__name__}, allowed keys and values"
                )
            arrays = {name: np.asarray(file[f"arrays/{name}"]) for name in names}
            return Container(_schema(file), header, arrays)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: damaged ({reason})") from None


_DAMAGE = (
    *(OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError),
    *(MemoryError, OverflowError),
)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of a size that can be worked with.

    Raises:
        ArtifactError: missing, a folder, too large, or not to be read.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: found a folder, allowed a file")
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ArtifactError(f"{path}: found {size} bytes, allowed {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None


def is_container(path: Path) -> bool:
    """Whether a file begins as a container does; whether it is sound, ``read_container`` says."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _verified(path: Path) -> bytes:
    """The bytes of a file whose checksum holds."""
    image = read_bytes(path)
    if image.startswith(_HDF5):
        raise ArtifactError(f"{path}: an HDF5 file, but not one of nmtool's")
    if not image.startswith(_MAGIC):
        raise ArtifactError(f"{path}: damaged, or not one of nmtool's files")
    if image[:_BLOCK] != _user_block(memoryview(image)[_BLOCK:]):
        raise ArtifactError(f"{path}: damaged: its checksum does not match its content")
    return image


def _user_block(content: bytes | memoryview) -> bytes:
    line = _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
    return line.ljust(_BLOCK, b"\0")


def _schema(file: h5py.File) -> str:
    schema = file.attrs["schema"]
    if not isinstance(schema, str) or len(schema) > MAX_NAME:
        raise ArtifactError(f"the schema: found a {type(schema).__name__}, allowed a word")
    return schema


def _sizes(file: h5py.File) -> tuple[list[str], int]:
    """The names of all arrays, and the bytes of everything; only what the file itself holds."""
    names: list[str] = []
    for name in ("header", "arrays"):
        check_link(file, name)
    header = file["header"]
    check_dataset("the header", header)
    if header.dtype != np.uint8:
        raise ValueError(f"the header has the type {header.dtype}")
    if header.nbytes > MAX_HEADER:
        raise ArtifactError(f"the header: found {header.nbytes} bytes, allowed {MAX_HEADER}")
    total = int(header.nbytes)

    def visit(name: str, node: object) -> None:
        nonlocal total
        if isinstance(node, h5py.Dataset):
            check_dataset(f"array {name}", node)
            if node.dtype.kind not in _ALLOWED_KINDS:
                raise ValueError(f"array {name} has the type {node.dtype}")
            names.append(name)
            total += int(node.nbytes)

    if "arrays" in file:
        file["arrays"].visititems(visit)
    return names, total


def _stored(array: Array) -> Array:
    if array.dtype.kind not in _ALLOWED_KINDS:
        raise TypeError(f"arrays of type {array.dtype} are not stored")
    return array
