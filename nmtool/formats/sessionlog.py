"""Session logs as files: a journal while they are kept, one container once they are whole.

The journal ``FILE.part`` is a row of frames, one for each event: its length in 8 bytes, its
SHA-256, and, compressed, a JSON header and the bytes of its arrays. A frame is complete or it is
cut off by the end of the file, and then it is left out. When the log is whole, the events become
one container, FILE: the arrays of the same name one after the other, and every long list of a
header stored once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.backends.base import QUANTITIES, Recording
from nmtool.backends.replay import (
    Event,
    Marked,
    Opened,
    Ran,
    ReplayTarget,
    Wrote,
)
from nmtool.chip import REPLAY, HardwareConfig, load_chip, load_hardware
from nmtool.errors import ArtifactError, UsageError, WriteError
from nmtool.formats.artifacts import DAMAGE, pack, unpack
from nmtool.formats.claims import MAX_STATES, build, most
from nmtool.formats.container import (
    Array,
    Container,
    is_container,
    read_bytes,
    read_container,
    write_container,
)
from nmtool.formats.hdf5 import EXPANSION, SMALL
from nmtool.provenance import provenance

SCHEMA = "nmtool.sessionlog/v1"

_EVENT = "nmtool.event/v1"
_MAGIC = b"nmtool journal: length, sha256 and content of each frame\n"
_HEAD = struct.Struct("<Q32s")
_SHORT = 8
_PLAIN = {"opened": Opened, "wrote": Wrote, "marked": Marked}


def find_target(name: str, overrides: Sequence[str] = ()) -> HardwareConfig:
    """A target by its name or YAML file, or ``replay:FILE``, one that answers from a log.

    Raises:
        ConfigError: unknown name, or a file that is missing or wrong.
        ArtifactError: the log is missing or damaged.
        UsageError: an override of a log's target, which is as it was; a chip file may be named.
    """
    if not name.startswith(REPLAY):
        return load_hardware(name, overrides)
    path = Path(name.removeprefix(REPLAY))
    about, events = read_log(path)
    target = ReplayTarget.of(_hardware(about, path), path, events)
    for override in overrides:
        key, _, value = override.partition("=")
        if key != "chip":
            raise UsageError(
                f"-s hw.{override}: found an override of {name}, allowed hw.chip=FILE: a log is of "
                "the target as it was"
            )
        target = target.model_copy(update={"chip": value})
    load_chip(target.chip)
    return target


def read_log(path: Path) -> tuple[Mapping[str, Any], list[Event]]:
    """What a log says of its target, and its events; of a journal those that are complete.

    Raises:
        ArtifactError: missing, damaged, or no log.
    """
    if not path.exists() and (part := part_of(path)).exists():
        raise ArtifactError(
            f"{path}: no such file; the log was not finished, what there is of it is {part}"
        )
    if path.exists() and not is_container(path):
        frames = [container for container, _ in _frames(path)]
        if not frames:
            raise ArtifactError(f"{path}: damaged: found a journal without a beginning")
        return frames[0].header, [_unpack(frame, path) for frame in frames[1:]]
    whole = read_container(path)
    if whole.schema != SCHEMA:
        raise ArtifactError(f"{path}: found the schema {whole.schema}, allowed {SCHEMA}")
    try:
        return whole.header["about"], [_unpack(part, path) for part in _split(whole)]
    except DAMAGE as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def part_of(path: Path) -> Path:
    """The journal of a log that is not finished."""
    return path.with_name(f"{path.name}.part")


class LogFile:
    """A log that is being kept, event by event.

    Raises:
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool = False) -> None:
        self.path = path
        self._about = about
        self._part = part_of(path)
        self._events: list[Event] = []
        self._ends: list[int] = []
        if resume and self._part.exists():
            self._go_on()
        else:
            self._start()

    @property
    def name(self) -> str:
        """The file's."""
        return str(self._part)

    @property
    def events(self) -> Sequence[Event]:
        """What is kept so far."""
        return self._events

    def append(self, event: Event) -> None:
        """Keep an event."""
        self._write(_pack(event), self._end)
        self._events.append(event if not isinstance(event, Ran) else _forgotten(event))

    def cut(self, count: int) -> None:
        """Forget all but the first events."""
        del self._events[count:]
        del self._ends[count + 1 :]
        self._tried(lambda: os.truncate(self._part, self._end))

    def finish(self) -> None:
        """Make one container of all events, and remove the journal."""
        frames = [container for container, _ in _frames(self._part)]
        write_container(self.path, _joined(self._about, frames[1:]))
        self._part.unlink()

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else len(_MAGIC)

    def _start(self) -> None:
        def make() -> None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_bytes(_MAGIC)

        self._tried(make)
        self._write(Container(_EVENT, self._about, {}), self._end)

    def _go_on(self) -> None:
        frames = list(_frames(self._part))
        if not frames:
            self._start()
            return
        self._ends = [end for _, end in frames]
        if frames[0][0].header.get("target") != json.loads(json.dumps(self._about["target"])):
            raise ArtifactError(
                f"{self._part}: found the log of another target; use --force to start afresh"
            )
        self._about = frames[0][0].header
        events = [_unpack(frame, self._part) for frame, _ in frames[1:]]
        self._events = [_forgotten(e) if isinstance(e, Ran) else e for e in events]
        self._tried(lambda: os.truncate(self._part, self._end))

    def _write(self, container: Container, at: int) -> None:
        frame = _frame(container)

        def put() -> None:
            with self._part.open("r+b", buffering=0) as file:
                file.truncate(at)
                file.seek(at)
                left = memoryview(frame)
                while left:
                    left = left[file.write(left) :]

        self._tried(put)
        self._ends.append(at + len(frame))

    def _tried(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            reason = error.strerror or str(error)
            raise WriteError(f"{self._part}: cannot be written ({reason})") from None


def about(hardware: HardwareConfig) -> dict[str, Any]:
    """What a log says of its target."""
    kept = hardware.model_dump(mode="json", by_alias=True, exclude={"timeouts", "recovery"})
    return {"target": kept, "provenance": provenance()}


def _hardware(found: Mapping[str, Any], path: Path) -> HardwareConfig:
    try:
        return HardwareConfig.model_validate_json(json.dumps(found["target"]))
    except DAMAGE as error:
        raise ArtifactError(f"{path}: the target: {str(error)[:300]}") from None


def _frames(path: Path) -> Iterator[tuple[Container, int]]:
    """The complete containers of a journal, each with the place where it ends.

    Raises:
        ArtifactError: no journal, or damaged.
    """
    content = read_bytes(path)
    if not content.startswith(_MAGIC):
        raise ArtifactError(f"{path}: damaged, or no log of sessions")
    at = len(_MAGIC)
    while at + _HEAD.size <= len(content):
        size, digest = _HEAD.unpack_from(content, at)
        begin, end = at + _HEAD.size, at + _HEAD.size + size
        if end > len(content):
            return
        if hashlib.sha256(content[begin:end]).digest() != digest:
            raise ArtifactError(f"{path}: damaged: the checksum of an event does not match it")
        try:
            yield _unframed(content[begin:end]), end
        except (*DAMAGE, zlib.error) as error:
            raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None
        at = end


def _frame(container: Container) -> bytes:
    """The frame of a container in a journal."""
    arrays = {name: [array.dtype.str, array.shape] for name, array in container.arrays.items()}
    header = {"schema": container.schema, "header": container.header, "arrays": arrays}
    raw = (array.tobytes() for array in container.arrays.values())
    content = zlib.compress(b"\0".join([json.dumps(header).encode(), b"".join(raw)]), 1)
    return _HEAD.pack(len(content), hashlib.sha256(content).digest()) + content


def _unframed(content: bytes) -> Container:
    """The container of a frame."""
    stream = zlib.decompressobj()
    plain = stream.decompress(content, max(SMALL, EXPANSION * len(content)))
    if not stream.eof:
        raise ValueError("found a frame that does not end")
    text, _, raw = plain.partition(b"\0")
    header, at, arrays = json.loads(text), 0, {}
    for name, (kind, shape) in header["arrays"].items():
        dtype = np.dtype(kind)
        most(f"array {name}", min([math.prod(shape), *shape]), MAX_STATES)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biuf" or at + size > len(raw):
            raise ValueError(f"found an array of {dtype} of shape {shape} in {len(raw)} bytes")
        arrays[name] = np.ndarray(shape, dtype, raw[at : at + size])
        at += size
    if not isinstance(header["header"], dict):
        raise ValueError("found a header of another form, allowed keys and values")
    return Container(str(header["schema"]), header["header"], arrays)


def _forgotten(event: Ran) -> Ran:
    """A run without what came back, which is in the file."""
    return Ran(event.fingerprint, event.input_sha256, event.probe, _not_here)


def _not_here() -> Recording:
    raise AssertionError("an answer that was not kept in memory")


def _pack(event: Event) -> Container:
    if isinstance(event, Ran):
        answer = pack(event.answer())
        header = {
            "kind": "ran",
            "fingerprint": event.fingerprint,
            "input_sha256": event.input_sha256,
            "probe": {quantity: [*names] for quantity, names in event.probe.items()},
            "answer": {"schema": answer.schema, "header": answer.header},
        }
        return Container(_EVENT, header, answer.arrays)
    kind = next(name for name, known in _PLAIN.items() if isinstance(event, known))
    return Container(_EVENT, {"kind": kind, **asdict(event)}, {})


def _unpack(container: Container, path: Path) -> Event:
    """The event of a container; the answer of a run is unpacked when it is asked for.

    Raises:
        ArtifactError: damaged.
    """
    header = dict(container.header)
    try:
        kind = header.pop("kind")
        if kind != "ran":
            event: Event = build(_PLAIN[kind], header)
            return event
        answer = header["answer"]
        if not (isinstance(answer["schema"], str) and isinstance(answer["header"], dict)):
            raise ArtifactError("a run: found an answer of another form, allowed schema and header")
        packed = Container(answer["schema"], answer["header"], container.arrays)
        values = {
            "fingerprint": header["fingerprint"],
            "input_sha256": header["input_sha256"],
            "probe": {quantity: tuple(header["probe"][quantity]) for quantity in header["probe"]},
            "answer": lambda: _answer(packed, path),
        }
        if not set(values["probe"]) <= set(QUANTITIES):
            found = [*values["probe"]]
            raise ArtifactError(f"a run: found the probes {found}, allowed {[*QUANTITIES]}")
        return build(Ran, values)
    except DAMAGE as error:
        if isinstance(error, ArtifactError):
            raise ArtifactError(f"{path}: {error}") from None
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _answer(packed: Container, path: Path) -> Recording:
    found = unpack(packed, path)
    if not isinstance(found, Recording):
        raise ArtifactError(f"{path}: found a {type(found).__name__}, allowed a Recording")
    return found


def _joined(about: Mapping[str, Any], parts: Sequence[Container]) -> Container:
    """Many containers as one."""
    lists: dict[str, int] = {}
    pieces: dict[str, list[Array]] = {}
    events = []
    for part in parts:
        shapes = {}
        for name, array in part.arrays.items():
            pieces.setdefault(name, []).append(array.ravel())
            shapes[name] = array.shape
        events.append({"header": _shared(part.header, lists), "arrays": shapes})
    header = {"about": about, "events": events, "lists": [json.loads(text) for text in lists]}
    return Container(SCHEMA, header, {name: np.concatenate(row) for name, row in pieces.items()})


def _split(whole: Container) -> Iterator[Container]:
    """The containers that were joined."""
    places = dict.fromkeys(whole.arrays, 0)
    lists = whole.header["lists"]
    for event in whole.header["events"]:
        arrays = {}
        for name, shape in event["arrays"].items():
            size, begin = math.prod(shape), places[name]
            most(f"array {name}", min([size, *shape]), MAX_STATES)
            if begin + size > whole.arrays[name].size:
                raise ArtifactError(f"array {name}: found its end, allowed {size} more values")
            arrays[name] = whole.arrays[name][begin : begin + size].reshape(shape)
            places[name] = begin + size
        yield Container(_EVENT, _own(event["header"], lists), arrays)


def _shared(value: Any, lists: dict[str, int]) -> Any:
    """A value with its long lists replaced by their numbers: {"=": number}."""
    if isinstance(value, Mapping) and set(value) != {"="}:
        return {key: _shared(item, lists) for key, item in value.items()}
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and len(value) > _SHORT):
        return {"=": lists.setdefault(json.dumps(value), len(lists))}
    return value


def _own(value: Any, lists: Sequence[Any]) -> Any:
    """The value that ``_shared`` was given."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"="}:
        return lists[value["="]]
    return {key: _own(item, lists) for key, item in value.items()}
