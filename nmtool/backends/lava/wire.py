"""Messages between the parent and the worker: a JSON header and raw arrays, never a pickle.

A message is ``magic, u32 header bytes, u64 payload bytes, header, payload``; the header lists the
name, type and shape of each array in the payload.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes, LavaProjection

Arrays = dict[str, NDArray[Any]]

_MAGIC = b"NMLV"
_PREFIX = struct.Struct("<4sIQ")
_HEADER_LIMIT = 1 << 26


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
        arrays[f"input/{name}"] = raster.astype(np.uint8, copy=False)
    populations = {}
    for name, population in job.populations.items():
        if population.bias_mantissa is not None:
            arrays[f"bias/{name}"] = population.bias_mantissa
        populations[name] = {
            key: int(getattr(population, key))
            for key in ("n", "decay_u", "decay_v", "threshold", "bias_exponent")
        }
    projections = []
    for number, projection in enumerate(job.projections):
        arrays[f"weight/{number}"] = projection.weight_mantissa
        delay = projection.delay
        if isinstance(delay, np.ndarray):
            arrays[f"delay/{number}"] = delay
        projections.append(_projection_body(projection, job.projection_names[number]))
    body = {
        "inputs": list(job.inputs),
        "populations": populations,
        "projections": projections,
        "n_steps": int(job.n_steps),
        "hold": None if job.hold is None else int(job.hold),
        "probes": asdict(job.probes),
        "samples": job.samples,
    }
    return body, arrays


def _projection_body(projection: LavaProjection, name: str) -> dict[str, Any]:
    delay = projection.delay
    return {
        "source": projection.source,
        "target": projection.target,
        "weight_exponent": int(projection.weight_exponent),
        "weight_bits": int(projection.weight_bits),
        "sign_mode": projection.sign_mode,
        "delay": None if isinstance(delay, np.ndarray) else int(delay),
        "name": name,
    }


def job_from_message(body: Mapping[str, Any], arrays: Arrays) -> LavaJob:
    """Undo :func:`job_to_message`."""
    populations = {
        name: LavaPopulation(bias_mantissa=arrays.get(f"bias/{name}"), **fields)
        for name, fields in body["populations"].items()
    }
    projections = []
    for number, fields in enumerate(body["projections"]):
        delay = arrays[f"delay/{number}"] if fields["delay"] is None else fields["delay"]
        rest = {key: value for key, value in fields.items() if key != "delay"}
        weights = arrays[f"weight/{number}"]
        projections.append(LavaProjection(weight_mantissa=weights, delay=delay, **rest))
    return LavaJob(
        inputs={name: arrays[f"input/{name}"] for name in body["inputs"]},
        populations=populations,
        projections=tuple(projections),
        n_steps=body["n_steps"],
        hold=body["hold"],
        probes=LavaProbes(**{key: tuple(names) for key, names in body["probes"].items()}),
        samples=body["samples"],
    )
