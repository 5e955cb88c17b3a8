"""The artifacts of every stage as containers: network, quantized network, program, recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from nmtool.backends.base import Recording
from nmtool.chip import SynapseFormat
from nmtool.compiler import Program, ResetSchedule
from nmtool.config import Check, Data, Readout
from nmtool.errors import ArtifactError, NmtoolError
from nmtool.formats.container import Array, Container, read_container, write_container
from nmtool.network import CubaLif, Input, IntLike, Network, Population, Projection
from nmtool.quantization import (
    ParameterError,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    StateBound,
)
from nmtool.spikes import SpikeTrain

Artifact: TypeAlias = Network | QuantizedNetwork | Program | Recording
Arrays: TypeAlias = dict[str, Array]
_AXES = ("sample", "step", "neuron")


def save(path: str | Path, artifact: Artifact) -> None:
    """Write an artifact to an HDF5 file, whole or not at all.

    Raises:
        WriteError: it cannot be written.
        TypeError: not an artifact.
    """
    schema, write = _format_of(artifact)
    arrays: Arrays = {}
    write_container(Path(path), Container(schema, write(artifact, arrays), arrays))


def _format_of(artifact: object) -> tuple[str, Callable[[Any, Arrays], dict[str, Any]]]:
    for schema, write, kind in _FORMATS:
        if isinstance(artifact, kind):
            return schema, write
    allowed = ", ".join(kind.__name__ for _, _, kind in _FORMATS)
    raise TypeError(f"save: found a {type(artifact).__name__}, allowed {allowed}")


def load(path: str | Path) -> Artifact:
    """Read whatever artifact a file holds.

    Raises:
        ArtifactError: missing, damaged, or written by a version that this one does not know.
    """
    container = read_container(Path(path))
    reader = _READERS.get(container.schema)
    if reader is None:
        raise ArtifactError(
            f"{path}: found the schema {container.schema}, allowed {', '.join(_READERS)}"
        )
    try:
        return reader(container.header, dict(container.arrays))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, NmtoolError):
            raise ArtifactError(f"{path}: {error}") from None
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def load_as(path: str | Path, kind: type[Any]) -> Any:
    """Read an artifact that must be of one kind.

    Raises:
        ArtifactError: missing, damaged, or of another kind.
    """
    artifact = load(path)
    if not isinstance(artifact, kind):
        raise ArtifactError(f"{path}: found a {type(artifact).__name__}, allowed a {kind.__name__}")
    return artifact


def _sections(network: Network | QuantizedNetwork) -> dict[str, Any]:
    return {
        "name": network.name,
        "inputs": {name: list(source.shape) for name, source in network.inputs.items()},
        "outputs": list(network.outputs),
        "data": network.data.model_dump(mode="json") if network.data else None,
        "readout": network.readout.model_dump(mode="json") if network.readout else None,
        "checks": [check.model_dump(mode="json") for check in network.checks],
        "metadata": dict(network.metadata),
    }


def _read_sections(header: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": header["name"],
        "inputs": {name: Input(tuple(shape)) for name, shape in header["inputs"].items()},
        "outputs": tuple(header["outputs"]),
        "data": Data.model_validate(header["data"]) if header["data"] else None,
        "readout": Readout.model_validate(header["readout"]) if header["readout"] else None,
        "checks": tuple(Check.model_validate(check) for check in header["checks"]),
        "metadata": header["metadata"],
    }


def _put_delay(arrays: Arrays, name: str, delay: IntLike) -> int | None:
    """A delay per synapse is an array, one for all a number in the header."""
    if isinstance(delay, int | np.integer):
        return int(delay)
    arrays[f"{name}/delay"] = delay
    return None


def _get_delay(arrays: Arrays, name: str, delay: int | None) -> IntLike:
    return arrays[f"{name}/delay"] if delay is None else delay


def _write_network(network: Network, arrays: Arrays) -> dict[str, Any]:
    header = _sections(network)
    header["weight_bits"] = network.weight_bits
    header["populations"] = {
        name: {"shape": list(p.shape), "neuron": asdict(p.neuron), "axonal_delay": p.axonal_delay}
        for name, p in network.populations.items()
    }
    for name, population in network.populations.items():
        if population.bias is not None:
            arrays[f"populations/{name}/bias"] = population.bias
    header["projections"] = {
        name: {
            "source": p.source,
            "target": p.target,
            "delay": _put_delay(arrays, f"projections/{name}", p.delay),
        }
        for name, p in network.projections.items()
    }
    for name, projection in network.projections.items():
        arrays[f"projections/{name}/weight"] = projection.weight
    return header


def _read_network(header: Mapping[str, Any], arrays: Arrays) -> Network:
    populations = {
        name: Population(
            tuple(p["shape"]),
            CubaLif(**p["neuron"]),
            arrays.get(f"populations/{name}/bias"),
            p["axonal_delay"],
        )
        for name, p in header["populations"].items()
    }
    projections = {
        name: Projection.dense(
            p["source"],
            p["target"],
            arrays[f"projections/{name}/weight"],
            _get_delay(arrays, f"projections/{name}", p["delay"]),
        )
        for name, p in header["projections"].items()
    }
    return Network(
        populations=populations,
        projections=projections,
        weight_bits=header["weight_bits"],
        **_read_sections(header),
    )


def _write_quantized(network: QuantizedNetwork, arrays: Arrays) -> dict[str, Any]:
    header = _sections(network)
    header["chip"] = network.chip
    header["errors"] = [asdict(error) for error in network.errors]
    registers = ("decay_u", "decay_v", "threshold", "bias_exponent", "axonal_delay")
    header["populations"] = {
        name: {"shape": list(p.shape), **{key: int(getattr(p, key)) for key in registers}}
        for name, p in network.populations.items()
    }
    for name, population in network.populations.items():
        arrays[f"populations/{name}/bias_mantissa"] = population.bias_mantissa
    header["projections"] = {
        name: {
            "source": p.source,
            "target": p.target,
            "format": asdict(p.format),
            "delay": _put_delay(arrays, f"projections/{name}", p.delay),
        }
        for name, p in network.projections.items()
    }
    for name, projection in network.projections.items():
        arrays[f"projections/{name}/weight_mantissa"] = projection.weight_mantissa
    return header


def _read_quantized(header: Mapping[str, Any], arrays: Arrays) -> QuantizedNetwork:
    populations = {
        name: QuantizedPopulation(
            shape=tuple(p.pop("shape")),
            bias_mantissa=arrays[f"populations/{name}/bias_mantissa"],
            **p,
        )
        for name, p in header["populations"].items()
    }
    projections = {
        name: QuantizedProjection(
            p["source"],
            p["target"],
            arrays[f"projections/{name}/weight_mantissa"],
            SynapseFormat(**p["format"]),
            _get_delay(arrays, f"projections/{name}", p["delay"]),
        )
        for name, p in header["projections"].items()
    }
    return QuantizedNetwork(
        chip=header["chip"],
        populations=populations,
        projections=projections,
        errors=tuple(ParameterError(**error) for error in header["errors"]),
        **_read_sections(header),
    )


def _write_program(program: Program, arrays: Arrays) -> dict[str, Any]:
    return {
        "network": _write_quantized(program.network, arrays),
        "chip": program.chip,
        "reset": asdict(program.reset),
        "latency": program.latency,
        "bounds": [asdict(bound) for bound in program.bounds],
        "placement": dict(program.placement),
        "provenance": dict(program.provenance),
        "fingerprint": program.fingerprint,
    }


def _read_program(header: Mapping[str, Any], arrays: Arrays) -> Program:
    program = Program(
        _read_quantized(header["network"], arrays),
        header["chip"],
        ResetSchedule(**header["reset"]),
        header["latency"],
        tuple(StateBound(**bound) for bound in header["bounds"]),
        header["placement"],
        header["provenance"],
    )
    if program.fingerprint != header["fingerprint"]:
        raise ArtifactError(
            f"found the fingerprint {header['fingerprint']}, its content has {program.fingerprint}"
        )
    return program


def _write_recording(recording: Recording, arrays: Arrays) -> dict[str, Any]:
    for name, train in recording.spikes.items():
        for axis in _AXES:
            arrays[f"spikes/{name}/{axis}"] = getattr(train, axis).astype(np.int32)
    for quantity in ("current", "voltage"):
        for name, values in getattr(recording, quantity).items():
            arrays[f"{quantity}/{name}"] = values.astype(np.int32)
    sizes = {
        name: [train.n_samples, train.n_neurons, train.n_steps, train.batched]
        for name, train in recording.spikes.items()
    }
    keys = ("backend", "fingerprint", "n_steps", "wall_time")
    return {
        "spikes": sizes,
        "current": list(recording.current),
        "voltage": list(recording.voltage),
        "provenance": dict(recording.provenance),
        **{key: getattr(recording, key) for key in keys},
    }


def _read_recording(header: Mapping[str, Any], arrays: Arrays) -> Recording:
    def wide(name: str) -> Array:
        return arrays[name].astype(np.int64)

    def dense(quantity: str) -> dict[str, Array]:
        return {name: wide(f"{quantity}/{name}") for name in header[quantity]}

    def train(name: str, size: list[Any]) -> SpikeTrain:
        sample, step, neuron = (wide(f"spikes/{name}/{axis}") for axis in _AXES)
        n_samples, n_neurons, n_steps, batched = size
        return SpikeTrain(
            sample, step, neuron, n_samples, n_neurons, n_steps, batched=bool(batched)
        )

    spikes = {name: train(name, size) for name, size in header["spikes"].items()}
    return Recording(
        spikes,
        dense("current"),
        dense("voltage"),
        header["backend"],
        header["fingerprint"],
        header["n_steps"],
        header["wall_time"],
        header["provenance"],
    )


_FORMATS: tuple[tuple[str, Callable[[Any, Arrays], dict[str, Any]], type[Any]], ...] = (
    ("nmtool.network/v1", _write_network, Network),
    ("nmtool.quantized/v1", _write_quantized, QuantizedNetwork),
    ("nmtool.program/v1", _write_program, Program),
    ("nmtool.recording/v1", _write_recording, Recording),
)
_READERS: dict[str, Callable[[Any, Arrays], Artifact]] = {
    "nmtool.network/v1": _read_network,
    "nmtool.quantized/v1": _read_quantized,
    "nmtool.program/v1": _read_program,
    "nmtool.recording/v1": _read_recording,
}
