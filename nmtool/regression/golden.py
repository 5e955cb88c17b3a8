"""Golden runs: what a program gave when it was known to be right, with all that runs it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.backends import Recording
from nmtool.backends.base import QUANTITIES, Probe, input_batch
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, ConfigError, NmtoolError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.formats import pack, unpack
from nmtool.formats.artifacts import DAMAGE
from nmtool.formats.claims import build
from nmtool.formats.container import Container, is_container, read_container, write_container
from nmtool.formats.trains import get_train, put_train
from nmtool.measure import measure
from nmtool.spikes import SpikeTrain

SCHEMA = "nmtool.golden/v1"


@dataclass(frozen=True, eq=False)
class Golden:
    """One golden run.

    ``inputs`` went into the program (a train for each of its inputs), ``expected`` came out.
    ``policies`` are the texts of what must hold of another run (see ``policies``), ``reason`` says
    why this golden took the place of one before it.
    """

    program: Program
    inputs: Mapping[str, SpikeTrain]
    expected: Recording
    labels: IntArray | None = None
    policies: tuple[str, ...] = ("exact",)
    reason: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.expected.fingerprint != self.program.fingerprint:
            raise ConfigError(
                f"golden: found a recording of the program {self.expected.fingerprint}, allowed "
                f"one of {self.program.fingerprint}"
            )

    @property
    def n_samples(self) -> int:
        """How many samples it holds."""
        return next(iter(self.expected.spikes.values())).n_samples

    @property
    def probe(self) -> Probe:
        """What was recorded, and is again when the golden is checked."""
        found = {quantity: tuple(getattr(self.expected, quantity)) for quantity in QUANTITIES}
        return {quantity: names for quantity, names in found.items() if names}

    @property
    def input_sha256(self) -> str:
        """The digest of its inputs, as recordings have it in their provenance."""
        steps = None if self.inputs else self.expected.n_steps
        return input_batch(self.program, self.inputs, steps).sha256

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why it guards less than it seems to, as was said when it was recorded."""
        found = self.provenance.get("warnings")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy (with labels), latency and rates of the golden run."""
        return metrics(self, self.expected)


def metrics(golden: Golden, recording: Recording) -> dict[str, float]:
    """The counted quantities of a run of a golden's program on its inputs."""
    net = golden.program.network
    output = net.outputs[0]
    measured = measure(recording, output, net.readout, golden.labels).quantities
    found = {name: q.value for name, q in measured.items() if q.basis == "counted"}
    if output in recording.spikes and (latency := mean_latency(golden, recording)) is not None:
        found["latency"] = latency
    return found


def mean_latency(golden: Golden, recording: Recording) -> float | None:
    """Mean of the samples' latencies, in steps; samples without one are left out.

    None where no sample has a latency, or where an output spike precedes the input of its sample:
    such a network spikes by itself, and its first spike answers nothing.
    """
    steps = latencies(golden, recording)
    steps = steps[np.isfinite(steps)]
    return float(steps.mean()) if steps.size and steps.min() >= 0 else None


def latencies(golden: Golden, recording: Recording) -> FloatArray:
    """Steps from every sample's first input spike to the first spike of the first output.

    NaN where one of the two is missing; negative where the output spikes first.
    """
    first_out = first_steps(recording.spikes[golden.program.network.outputs[0]])
    first_in = np.min(
        [first_steps(train) for train in golden.inputs.values()], axis=0, initial=np.inf
    )
    both = np.isfinite(first_in) & np.isfinite(first_out)
    return np.where(both, first_out - np.where(both, first_in, 0), np.nan)


def first_steps(train: SpikeTrain) -> Any:
    """The step of the first spike of every sample, infinite where there is none."""
    first = np.full(train.n_samples, np.inf)
    np.minimum.at(first, train.sample, train.step)
    return first


def save_golden(path: str | Path, golden: Golden) -> None:
    """Write a golden run, whole or not at all.

    Raises:
        WriteError: it cannot be written.
    """
    parts = {"program": pack(golden.program), "expected": pack(golden.expected)}
    arrays = {
        f"{part}/{name}": array
        for part, container in parts.items()
        for name, array in container.arrays.items()
    }
    header: dict[str, Any] = {
        part: {"schema": container.schema, "header": container.header}
        for part, container in parts.items()
    }
    header["inputs"] = {
        name: put_train(train, arrays, f"inputs/{name}") for name, train in golden.inputs.items()
    }
    header |= {
        "policies": list(golden.policies),
        "reason": golden.reason,
        "metrics": golden.metrics,
        "provenance": dict(golden.provenance),
    }
    if golden.labels is not None:
        arrays["labels"] = golden.labels
    write_container(Path(path), Container(SCHEMA, header, arrays))


ENDINGS = (".h5", ".hdf5")
"""How files of golden runs end."""


def golden_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """The golden runs of a folder and all below it, and nmtool's files there of another ending."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    ours = [path for path in files if path.suffix in ENDINGS]
    return ours, [path for path in files if path.suffix not in ENDINGS and is_container(path)]


def passed_over(paths: list[Path]) -> str:
    """What to say of the files that ``golden_files`` leaves out."""
    return (
        f"passed over: {', '.join(map(str, paths))}: found another ending, allowed "
        f"{' and '.join(ENDINGS)}; rename what is a golden run"
    )


def is_golden(path: str | Path) -> bool:
    """Whether a file is a golden run.

    Raises:
        ArtifactError: missing, or not one of nmtool's files.
    """
    return read_container(Path(path)).schema == SCHEMA


def load_golden(path: str | Path) -> Golden:
    """Read a golden run.

    Raises:
        ArtifactError: missing, damaged, or something else.
    """
    container = read_container(Path(path))
    if container.schema != SCHEMA:
        raise ArtifactError(f"{path}: found the schema {container.schema}, allowed {SCHEMA}")
    return unpack_golden(container, path)


def unpack_golden(container: Container, path: str | Path) -> Golden:
    """The golden run that a container holds.

    Raises:
        ArtifactError: damaged.
    """
    try:
        return _unpack(container, path)
    except DAMAGE as error:
        if isinstance(error, NmtoolError):
            raise ArtifactError(f"{path}: {error}") from None
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def _unpack(container: Container, path: str | Path) -> Golden:
    header, arrays = container.header, dict(container.arrays)

    def part(name: str) -> Any:
        inside = {
            key.removeprefix(f"{name}/"): array
            for key, array in arrays.items()
            if key.startswith(f"{name}/")
        }
        return unpack(Container(header[name]["schema"], header[name]["header"], inside), path)

    program, expected = part("program"), part("expected")
    if not isinstance(program, Program) or not isinstance(expected, Recording):
        raise ValueError("found no program and recording")
    labels = arrays.get("labels")
    sizes = header["inputs"]
    values = {
        "program": program,
        "inputs": {name: get_train(sizes[name], arrays, f"inputs/{name}") for name in sizes},
        "expected": expected,
        "labels": labels,
        "policies": tuple(header["policies"]),
        "reason": header["reason"],
        "provenance": header["provenance"],
    }
    golden = build(Golden, values)
    if not expected.spikes:
        raise ValueError("found no spikes in its recording")
    _check_parts(golden)
    return golden if labels is None else replace(golden, labels=labels.astype(np.int64))


def _check_parts(golden: Golden) -> None:
    """Check that the inputs, the recording and the labels of a golden run belong to its program.

    Raises:
        ConfigError: another number of samples or neurons, an unknown population.
    """
    steps = None if golden.inputs else golden.expected.n_steps
    batch = input_batch(golden.program, golden.inputs, steps)
    net, n_samples = golden.program.network, golden.n_samples
    sizes = {name: train.n_neurons for name, train in golden.expected.spikes.items()}
    for states in (golden.expected.current, golden.expected.voltage):
        sizes |= {name: values.shape[-2] for name, values in states.items()}
    for name, size in sizes.items():
        if name not in net.populations or size != net.sizes[name]:
            raise ConfigError(
                f"golden: found a recording of {size} neurons of {name!r}, allowed the populations "
                f"of its program: { {n: p.size for n, p in net.populations.items()} }"
            )
    if batch.n_samples != n_samples:
        raise ConfigError(
            f"golden: found {batch.n_samples} samples of input, allowed {n_samples} as recorded"
        )
    if golden.labels is not None and golden.labels.shape != (n_samples,):
        raise ConfigError(
            f"golden: found labels of shape {golden.labels.shape}, allowed ({n_samples},)"
        )
