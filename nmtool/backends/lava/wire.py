"""Messages between the parent and the worker: a JSON header and raw arrays, never a pickle.

A message is ``magic, u32 header bytes, u64 payload bytes, header, payload``; the header lists the
name, type and shape of each array in the payload.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava.job import (
    LavaBoard,
    LavaConvProjection,
    LavaDelta,
    LavaDrive,
    LavaJob,
    LavaPopulation,
    LavaProbes,
    LavaProjection,
    LavaSigma,
    LavaSigmaDelta,
    LavaSparseProjection,
    Population,
    Projection,
)

Arrays = dict[str, NDArray[Any]]

_MAGIC = b"NMLV"
_PREFIX = struct.Struct("<4sIQ")
_HEADER_LIMIT = 1 << 26
_POPULATIONS = (LavaPopulation, LavaDelta, LavaSigmaDelta, LavaSigma)
_PROJECTIONS = (LavaProjection, LavaSparseProjection, LavaConvProjection)
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*_POPULATIONS, *_PROJECTIONS)}


class WireError(RuntimeError):
    """The bytes on the pipe are not a message."""


def pack(body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[memoryview]:
    """Make the pieces of one message, in order; arrays must be boolean, integer or float."""
    listed, chunks = [], []
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise WireError(f"array {name!r} of type {array.dtype} cannot be sent")
        listed.append([name, array.dtype.str, list(array.shape)])
        if array.size:
            chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    header = json.dumps({"body": body, "arrays": listed}).encode()
    size = sum(len(chunk) for chunk in chunks)
    return [memoryview(_PREFIX.pack(_MAGIC, len(header), size) + header), *chunks]


class Reader:
    """Puts messages together from bytes as they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _PREFIX.size

    @property
    def wanted(self) -> int:
        """How many bytes are missing until ``feed`` can get further."""
        return max(1, self._needed - len(self._buffer))

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], Arrays]]:
        """Take bytes; return the messages they complete."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= self._needed:
            magic, header_size, payload_size = _PREFIX.unpack_from(self._buffer)
            if magic != _MAGIC or header_size > _HEADER_LIMIT:
                raise WireError(f"not a message: {bytes(self._buffer[:16])!r}")
            self._needed = _PREFIX.size + header_size + payload_size
            if len(self._buffer) < self._needed:
                break
            whole = bytes(memoryview(self._buffer)[: self._needed])
            del self._buffer[: self._needed]
            self._needed = _PREFIX.size
            messages.append(_unpack(whole, header_size))
        return messages


def _unpack(message: bytes, header_size: int) -> tuple[dict[str, Any], Arrays]:
    offset = _PREFIX.size + header_size
    header = json.loads(message[_PREFIX.size : offset])
    arrays: Arrays = {}
    for name, descr, shape in header["arrays"]:
        dtype = np.dtype(descr)
        if dtype.kind not in "biuf":
            raise WireError(f"array {name!r} has the type {descr}")
        count = math.prod(shape)
        flat = np.frombuffer(message, dtype, count, offset)
        arrays[name] = flat.reshape(shape)
        offset += count * dtype.itemsize
    body: dict[str, Any] = header["body"]
    return body, arrays


def job_to_message(job: LavaJob) -> tuple[dict[str, Any], Arrays]:
    """Turn a job into a JSON body and its arrays."""
    arrays: Arrays = {}
    for name, raster in job.inputs.items():
        arrays[f"input/{name}"] = raster.astype(job.raster_type(name), copy=False)
    populations = {
        name: _item_body(population, f"population/{name}", arrays)
        for name, population in job.populations.items()
    }
    projections = [
        {**_item_body(projection, f"projection/{number}", arrays), "name": name}
        for number, (name, projection) in enumerate(
            zip(job.projection_names, job.projections, strict=True)
        )
    ]
    body = {
        "inputs": list(job.inputs),
        "populations": populations,
        "projections": projections,
        "drives": [asdict(drive) for drive in job.drives],
        "n_steps": int(job.n_steps),
        "hold": None if job.hold is None else int(job.hold),
        "probes": asdict(job.probes),
        "samples": job.samples,
        "current_overflow": job.current_overflow,
        "board": None if job.board is None else asdict(job.board),
    }
    return body, arrays


def _item_body(item: Population | Projection, where: str, arrays: Arrays) -> dict[str, Any]:
    """The fields of a population or projection; its arrays go to ``arrays`` and are named."""
    body: dict[str, Any] = {"kind": type(item).__name__}
    named = []
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{where}/{field.name}"] = value
            named.append(field.name)
        else:
            body[field.name] = value.item() if isinstance(value, np.generic) else value
    return {**body, "arrays": named}


def _item(body: Mapping[str, Any], where: str, arrays: Arrays) -> Any:
    """Undo :func:`_item_body`."""
    values = {key: value for key, value in body.items() if key not in ("kind", "arrays")}
    found = {name: arrays[f"{where}/{name}"] for name in body["arrays"]}
    return _KINDS[body["kind"]](**values, **found)


def job_from_message(body: Mapping[str, Any], arrays: Arrays) -> LavaJob:
    """Undo :func:`job_to_message`."""
    return LavaJob(
        inputs={name: arrays[f"input/{name}"] for name in body["inputs"]},
        populations={
            name: _item(values, f"population/{name}", arrays)
            for name, values in body["populations"].items()
        },
        projections=tuple(
            _item(values, f"projection/{number}", arrays)
            for number, values in enumerate(body["projections"])
        ),
        n_steps=body["n_steps"],
        hold=body["hold"],
        probes=LavaProbes(**{key: tuple(names) for key, names in body["probes"].items()}),
        samples=body["samples"],
        drives=tuple(LavaDrive(**drive) for drive in body["drives"]),
        current_overflow=body["current_overflow"],
        board=_board(body["board"]),
    )


def _board(body: Mapping[str, Any] | None) -> LavaBoard | None:
    """JSON has lists where a board has tuples."""
    if body is None:
        return None
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
    return LavaBoard(**values)
