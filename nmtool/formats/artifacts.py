"""The artifacts of every stage as containers: network, quantized network, program, recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from pydantic import TypeAdapter

from nmtool.backends.base import Recording
from nmtool.chip import SynapseFormat
from nmtool.compiler import Fit, Program, ResetSchedule
from nmtool.compiler.fit import LayerFit
from nmtool.compiler.partition import Demand
from nmtool.compiler.place import Hops, Slice
from nmtool.compiler.wiring import Box
from nmtool.config import Check, Data, Readout
from nmtool.designrules import Violation
from nmtool.errors import ArtifactError, NmtoolError
from nmtool.formats.claims import (
    MAX_STATES,
    MAX_STEPS,
    build,
    check_fit,
    check_network,
    check_placement,
    check_violation,
    check_weights,
    most,
)
from nmtool.formats.container import Array, Container, read_container, write_container
from nmtool.formats.trains import Arrays, get_states, get_train, put_states, put_train
from nmtool.network import (
    CubaLif,
    Delta,
    Input,
    Network,
    Neuron,
    PeriodicReset,
    Population,
    Projection,
    Sigma,
    SigmaDelta,
)
from nmtool.operations import Chain, Conv, Dense, Flatten, Operation, Scale, Sparse, SumPool
from nmtool.quantization import (
    ParameterError,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    StateBound,
)

Artifact: TypeAlias = Network | QuantizedNetwork | Program | Recording
T = TypeVar("T")
_WORD = (1 << 31) - 1
_DATA: TypeAdapter[Data] = TypeAdapter(Data)
_OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind for kind in (Dense, Sparse, Conv, SumPool, Flatten, Scale)
}
_NEURONS: dict[str, type[Neuron]] = {
    kind.__name__: kind for kind in (CubaLif, Delta, SigmaDelta, Sigma)
}


def save(path: str | Path, artifact: Artifact) -> None:
    """Write an artifact to an HDF5 file, whole or not at all.

    Raises:
        WriteError: it cannot be written.
        TypeError: not an artifact.
    """
    write_container(Path(path), pack(artifact))


def pack(artifact: Artifact) -> Container:
    """An artifact as a container.

    Raises:
        TypeError: not an artifact.
    """
    schema, write = _format_of(artifact)
    arrays: Arrays = {}
    return Container(schema, write(artifact, arrays), arrays)


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
    return unpack(read_container(Path(path)), path)


def unpack(container: Container, path: str | Path) -> Artifact:
    """The artifact that a container holds; ``path`` is for messages.

    Raises:
        ArtifactError: damaged, or written by a version that this one does not know.
    """
    reader = _READERS.get(container.schema)
    if reader is None:
        raise ArtifactError(
            f"{path}: found the schema {container.schema}, allowed {', '.join(_READERS)}"
        )
    try:
        return reader(container.header, dict(container.arrays))
    except DAMAGE as error:
        if isinstance(error, NmtoolError):
            raise ArtifactError(f"{path}: {error}") from None
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


DAMAGE = (
    *(LookupError, TypeError, ValueError, AttributeError, AssertionError),
    *(ArithmeticError, RecursionError, MemoryError),
)
"""What a reader may run into where a file does not hold what it should."""


@contextmanager
def removable(path: Path, remove: Path | None = None) -> Iterator[None]:
    """Read what one leg of a study left, and say what to do where that is missing or damaged.

    Raises:
        ArtifactError: so it is; ``remove``, the file itself unless given, makes the leg run again.
    """
    try:
        yield
    except DAMAGE as error:
        known = isinstance(error, NmtoolError)
        what = str(error) if known else f"{path}: damaged: {type(error).__name__}: {error}"
        raise ArtifactError(
            f"{what}; remove {remove or path}, and --resume runs that leg again"
        ) from None


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
        "inputs": {name: _plain(source) for name, source in network.inputs.items()},
        "outputs": list(network.outputs),
        "data": network.data.model_dump(mode="json") if network.data else None,
        "readout": network.readout.model_dump(mode="json") if network.readout else None,
        "checks": [check.model_dump(mode="json") for check in network.checks],
        "metadata": dict(network.metadata),
    }


def _read_sections(header: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": header["name"],
        "inputs": {
            name: _make(Input, source, name=f"inputs/{name}")
            for name, source in header["inputs"].items()
        },
        "outputs": tuple(header["outputs"]),
        "data": _DATA.validate_python(header["data"]) if header["data"] else None,
        "readout": Readout.model_validate(header["readout"]) if header["readout"] else None,
        "checks": tuple(Check.model_validate(check) for check in header["checks"]),
        "metadata": header["metadata"],
    }


def _plain(item: Any, arrays: Arrays | None = None, name: str = "") -> dict[str, Any]:
    """The fields of a dataclass for the header; arrays go to ``arrays`` under ``name/field``."""
    found: dict[str, Any] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, np.ndarray) and value.ndim:
            assert arrays is not None
            arrays[f"{name}/{field.name}"] = value
        elif isinstance(value, np.integer | np.ndarray):
            found[field.name] = int(value)
        elif is_dataclass(value):
            found[field.name] = _plain(value)
        else:
            found[field.name] = value
    return found


def _make(
    kind: type[T],
    plain: Mapping[str, Any],
    arrays: Arrays | None = None,
    name: str = "",
) -> T:
    """A dataclass from what ``_plain`` wrote; the fields that are absent are arrays."""
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        if arrays is not None and f"{name}/{field.name}" in arrays:
            values[field.name] = arrays[f"{name}/{field.name}"]
    return build(kind, values, name)


def _put_chain(operations: Chain, arrays: Arrays, name: str) -> list[dict[str, Any]]:
    return [
        {"kind": type(op).__name__, **_plain(op, arrays, f"{name}/{index}")}
        for index, op in enumerate(operations)
    ]


def _get_chain(header: list[dict[str, Any]], arrays: Arrays, name: str) -> Chain:
    def operation(index: int, plain: dict[str, Any]) -> Operation:
        kind = _OPERATIONS[plain.pop("kind")]
        return _make(kind, plain, arrays, f"{name}/{index}")

    return tuple(operation(index, dict(plain)) for index, plain in enumerate(header))


def _reset(plain: dict[str, Any] | None) -> PeriodicReset | None:
    if not plain:
        return None
    reset = _make(PeriodicReset, plain)
    most("reset.interval", reset.interval, _WORD)
    most("reset.offset", abs(reset.offset), _WORD)
    return reset


def _write_network(network: Network, arrays: Arrays) -> dict[str, Any]:
    header = _sections(network)
    header["weight_bits"] = network.weight_bits
    header["populations"] = {
        name: {
            **_plain(replace(p, bias=None), arrays, f"populations/{name}"),
            "model": type(p.neuron).__name__,
        }
        for name, p in network.populations.items()
    }
    for name, population in network.populations.items():
        if population.bias is not None:
            arrays[f"populations/{name}/bias"] = population.bias
    header["projections"] = _put_projections(network.projections, arrays)
    return header


def _put_projections(projections: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    header = {}
    for name, projection in projections.items():
        place = f"projections/{name}"
        plain = _plain(replace(projection, operations=()), arrays, place)
        header[name] = {**plain, "operations": _put_chain(projection.operations, arrays, place)}
    return header


def _read_network(header: Mapping[str, Any], arrays: Arrays) -> Network:
    populations = {}
    for name, plain in header["populations"].items():
        neuron = _make(_NEURONS[plain.pop("model")], plain.pop("neuron"), name=name)
        plain |= {"neuron": neuron, "reset": _reset(plain.pop("reset"))}
        populations[name] = _make(Population, plain, arrays, f"populations/{name}")
    projections = {}
    for name, plain in header["projections"].items():
        place = f"projections/{name}"
        plain["operations"] = _get_chain(plain["operations"], arrays, place)
        projections[name] = _make(Projection, plain, arrays, place)
    values = {
        "populations": populations,
        "projections": projections,
        "weight_bits": header["weight_bits"],
        **_read_sections(header),
    }
    network = build(Network, values)
    check_network(network)
    return network


def _write_quantized(network: QuantizedNetwork, arrays: Arrays) -> dict[str, Any]:
    header = _sections(network)
    header["chip"] = network.chip
    header["errors"] = [asdict(error) for error in network.errors]
    header["populations"] = {
        name: _plain(p, arrays, f"populations/{name}") for name, p in network.populations.items()
    }
    header["projections"] = _put_projections(network.projections, arrays)
    return header


def _read_quantized(header: Mapping[str, Any], arrays: Arrays) -> QuantizedNetwork:
    populations = {}
    for name, plain in header["populations"].items():
        plain["reset"] = _reset(plain["reset"])
        populations[name] = _make(QuantizedPopulation, plain, arrays, f"populations/{name}")
    projections = {}
    for name, plain in header["projections"].items():
        place = f"projections/{name}"
        plain["format"] = _make(SynapseFormat, plain["format"], name=place)
        plain["operations"] = _get_chain(plain["operations"], arrays, place)
        check_weights(name, plain["operations"])
        projections[name] = _make(QuantizedProjection, plain, arrays, place)
    values = {
        "chip": header["chip"],
        "populations": populations,
        "projections": projections,
        "errors": tuple(_make(ParameterError, error) for error in header["errors"]),
        **_read_sections(header),
    }
    network = build(QuantizedNetwork, values)
    check_network(network)
    return network


def _write_program(program: Program, arrays: Arrays) -> dict[str, Any]:
    return {
        "network": _write_quantized(program.network, arrays),
        "chip": program.chip,
        "reset": asdict(program.reset),
        "latency": program.latency,
        "bounds": [asdict(bound) for bound in program.bounds],
        "simulators_only": list(program.simulators_only),
        "warnings": [asdict(warning) for warning in program.warnings],
        "placement": [asdict(part) for part in program.placement],
        "fit": asdict(program.fit) if program.fit else None,
        "provenance": dict(program.provenance),
        "fingerprint": program.fingerprint,
    }


def _read_program(header: Mapping[str, Any], arrays: Arrays) -> Program:
    values = {
        "network": _read_quantized(header["network"], arrays),
        "chip": header["chip"],
        "reset": _schedule(header["reset"]),
        "latency": header["latency"],
        "bounds": tuple(_make(StateBound, bound) for bound in header["bounds"]),
        "simulators_only": tuple(header["simulators_only"]),
        "warnings": tuple(_warning(warning) for warning in header["warnings"]),
        "placement": tuple(_slice(part) for part in header["placement"]),
        "fit": None if header["fit"] is None else _fit(header["fit"]),
        "provenance": header["provenance"],
    }
    program = build(Program, values)
    check_placement(program.network, program.placement)
    if program.fit is not None:
        check_fit(program.network, program.fit)
    if program.fingerprint != header["fingerprint"]:
        raise ArtifactError(
            f"found the fingerprint {header['fingerprint']}, its content has {program.fingerprint}"
        )
    return program


def _warning(plain: Mapping[str, Any]) -> Violation:
    warning = _make(Violation, plain)
    check_violation(warning)
    return warning


def _slice(plain: Mapping[str, Any]) -> Slice:
    return _make(Slice, {**plain, "box": _box(plain["box"])})


def _box(plain: list[list[int]]) -> Box:
    return tuple((start, stop) for start, stop in plain)


def _fit(plain: Mapping[str, Any]) -> Fit:
    layers = tuple(
        _make(
            LayerFit,
            {
                **layer,
                "box": _box(layer["box"]),
                "largest": _make(Demand, layer["largest"]),
                "total": _make(Demand, layer["total"]),
            },
        )
        for layer in plain["layers"]
    )
    return _make(Fit, {**plain, "layers": layers, "hops": _make(Hops, plain["hops"])})


def _schedule(plain: Mapping[str, Any]) -> ResetSchedule:
    schedule = _make(ResetSchedule, plain)
    most("reset.n_steps", schedule.n_steps - 1, MAX_STEPS - 1)
    most("reset.hold", schedule.hold, MAX_STEPS)
    return schedule


def _write_recording(recording: Recording, arrays: Arrays) -> dict[str, Any]:
    for quantity in ("current", "voltage"):
        for name, values in getattr(recording, quantity).items():
            arrays[f"{quantity}/{name}"] = put_states(values)
    sizes = {
        name: put_train(train, arrays, f"spikes/{name}") for name, train in recording.spikes.items()
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
    def dense(quantity: str) -> dict[str, Array]:
        return {name: get_states(arrays[f"{quantity}/{name}"]) for name in header[quantity]}

    spikes = {
        name: get_train(sizes, arrays, f"spikes/{name}") for name, sizes in header["spikes"].items()
    }
    keys = ("backend", "fingerprint", "n_steps", "wall_time", "provenance")
    values = {"spikes": spikes, "current": dense("current"), "voltage": dense("voltage")}
    recording = build(Recording, {**values, **{key: header[key] for key in keys}})
    _check_recording(recording)
    return recording


def _check_recording(recording: Recording) -> None:
    """Check that everything in a recording has the same samples and steps."""
    most("n_steps", recording.n_steps, MAX_STEPS)
    states = [*recording.current.items(), *recording.voltage.items()]
    most("states", sum(array.size for _, array in states), MAX_STATES)
    sizes = {
        (train.n_samples if train.batched else None, train.n_steps)
        for train in recording.spikes.values()
    }
    sizes |= {(a.shape[0] if a.ndim == 3 else None, a.shape[-1]) for _, a in states}
    if len(sizes) > 1 or any(steps != recording.n_steps for _, steps in sizes):
        raise ArtifactError(
            f"found samples and steps {sorted(sizes, key=str)}, allowed the same for all, "
            f"{recording.n_steps} steps"
        )
    for name, values in states:
        train = recording.spikes.get(name)
        if train is not None and values.shape[-2] != train.n_neurons:
            raise ArtifactError(
                f"{name}: found states of {values.shape[-2]} neurons, spikes of {train.n_neurons}"
            )


_FORMATS: tuple[tuple[str, Callable[[Any, Arrays], dict[str, Any]], type[Any]], ...] = (
    ("nmtool.network/v2", _write_network, Network),
    ("nmtool.quantized/v2", _write_quantized, QuantizedNetwork),
    ("nmtool.program/v3", _write_program, Program),
    ("nmtool.recording/v2", _write_recording, Recording),
)
_READERS: dict[str, Callable[[Any, Arrays], Artifact]] = {
    "nmtool.network/v2": _read_network,
    "nmtool.quantized/v2": _read_quantized,
    "nmtool.program/v3": _read_program,
    "nmtool.recording/v2": _read_recording,
}
