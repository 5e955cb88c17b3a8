"""The folder of a training run, and the data that a deployed program is given."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from nmtool import formats
from nmtool.chip import ChipSpec
from nmtool.cli.common import read_array
from nmtool.compiler import Program
from nmtool.config import Digits, Experiment, experiment_from_json
from nmtool.data import encode, load_split, spikes_of
from nmtool.errors import ArtifactError, ConfigError, UsageError
from nmtool.fixedpoint import IntArray
from nmtool.formats.netx import is_netx, load_netx
from nmtool.network import Input, Network
from nmtool.operations import Shape
from nmtool.quantization import QuantizedNetwork
from nmtool.spikes import SpikeTrain
from nmtool.yamlio import read_text


@dataclass(frozen=True)
class Run:
    """The files of a training run."""

    folder: Path

    @property
    def network(self) -> Path:
        """The trained network of the best epoch."""
        return self.folder / "network.h5"

    @property
    def metrics(self) -> Path:
        """Accuracies and the history of the epochs."""
        return self.folder / "metrics.json"

    @property
    def experiment(self) -> Path:
        """The experiment with every default written out."""
        return self.folder / "experiment.json"

    @property
    def provenance(self) -> Path:
        """Versions, git state, hashes and seed."""
        return self.folder / "provenance.json"

    @property
    def checkpoint(self) -> Path:
        """The state after the last epoch, for ``--resume``."""
        return self.folder / "checkpoint.h5"

    def load_experiment(self) -> Experiment:
        """The experiment that made the run.

        Raises:
            ArtifactError: the folder holds no run.
        """
        if not self.experiment.is_file():
            raise ArtifactError(f"{self.folder}: no training run here (no {self.experiment.name})")
        try:
            text = read_text(self.experiment)
        except ConfigError as error:
            raise ArtifactError(str(error)) from None
        return experiment_from_json(text, str(self.experiment))


def load_network(path: Path, chip: ChipSpec | None = None) -> Network | QuantizedNetwork:
    """The network of a run folder or a file; a netx file is read for ``chip``.

    Raises:
        ArtifactError: missing, damaged, or no network.
    """
    if path.is_dir():
        path = Run(path).network
    if chip is not None and is_netx(path):
        return load_netx(path, chip)
    artifact = formats.load(path)
    if not isinstance(artifact, Network | QuantizedNetwork):
        raise ArtifactError(f"{path}: found a {type(artifact).__name__}, allowed a network")
    return artifact


def input_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name the samples a target is given; see ``gather_input``."""
    for option in (
        click.option("--encode", is_flag=True, help="--input holds raw samples for the encoding."),
        click.option(
            "--input",
            "input_files",
            multiple=True,
            metavar="[NAME=]FILE.npy",
            help="Raster ([samples,] neurons, steps) or ([samples,] *shape, steps); of graded and "
            "bias inputs also ([samples,] *shape), held for the program's steps; raw samples with "
            "--encode. Once for each input of the network, by NAME where it has several.",
        ),
        click.option(
            "--data", metavar="NAME:SPLIT", help="Data set [default: the program's, test]."
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Given:
    """What goes into every input, the labels where known, and where they are from."""

    spikes: Mapping[str, SpikeTrain]
    labels: IntArray | None
    source: str

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return next((train.n_samples for train in self.spikes.values()), 1)

    def select(self, samples: IntArray) -> Given:
        """The given samples of a batch."""
        spikes = {name: train.select(samples) for name, train in self.spikes.items()}
        return replace(
            self, spikes=spikes, labels=None if self.labels is None else self.labels[samples]
        )


def gather_input(
    owner: Program | Network,
    data: str | None,
    input_files: Sequence[str],
    labels_file: str | None,
    encode_raw: bool,
) -> Given:
    """The samples that a command line names: ``--data NAME:split`` or ``--input [NAME=]FILE.npy``.

    An array without steps is held for as many steps as the program's samples have, or as the
    rasters beside it; a Network takes none.

    Raises:
        UsageError: both, or options that do not go together.
        ConfigError: unknown data, an unknown or missing input, or a file that is missing or wrong.
    """
    network = owner.network if isinstance(owner, Program) else owner
    if data and input_files:
        raise UsageError("found --data and --input, allowed one of them")
    if not input_files:
        if labels_file or encode_raw:
            raise UsageError("found --labels or --encode without --input, which they belong to")
        if not network.inputs and not data:
            return Given({}, None, "no input")
        return _from_data_set(network, data)
    files = input_names(input_files, network.inputs)
    if encode_raw:
        spikes = _encoded(network, files)
    else:
        spikes = _rasters(
            network, files, owner.reset.n_steps if isinstance(owner, Program) else None
        )
    labels = _labels(labels_file, network) if labels_file else None
    return Given(spikes, labels, ", ".join(input_files))


def input_names(given: Sequence[str], inputs: Mapping[str, Input]) -> dict[str, str]:
    """The file of every input, from ``NAME=FILE.npy``, or from ``FILE.npy`` if there is one input.

    Raises:
        UsageError: an input is named twice.
        ConfigError: an unknown name, none where it is needed, or an input without a file.
    """
    allowed = ", ".join(inputs) or "none (the network has no inputs)"
    files: dict[str, str] = {}
    for item in given:
        name, path = _split_name(item, inputs)
        if name is None and len(inputs) != 1:
            raise ConfigError(
                f"--input {item}: found no name of an input, allowed NAME=FILE.npy with the names "
                f"{allowed}"
            )
        name = name or next(iter(inputs))
        if name not in inputs:
            close = difflib.get_close_matches(name, inputs, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"--input {item}: found the input {name!r}, allowed {allowed}{hint}")
        if name in files:
            raise UsageError(
                f"--input: found {files[name]} and {path} for the input {name}, allowed one file "
                "for each input"
            )
        files[name] = path
    if missing := [name for name in inputs if name not in files]:
        raise ConfigError(
            f"--input: found nothing for {', '.join(missing)}, allowed a file for each of "
            f"{allowed}: add --input {missing[0]}=FILE.npy"
        )
    return {name: files[name] for name in inputs}


def _split_name(item: str, inputs: Mapping[str, Input]) -> tuple[str | None, str]:
    """NAME and FILE; a name or a file may hold a ``=`` itself."""
    known = [name for name in inputs if item.startswith(f"{name}=")]
    if known:
        name = max(known, key=len)
        return name, item.removeprefix(f"{name}=")
    name, sign, path = item.partition("=")
    if not sign or "/" in name or Path(item).exists():
        return None, item
    if not name:
        raise UsageError(f"--input {item}: found no name before the =, allowed [NAME=]FILE.npy")
    return name, path


def _encoded(
    network: QuantizedNetwork | Network, files: Mapping[str, str]
) -> dict[str, SpikeTrain]:
    if network.data is None:
        raise ConfigError("--encode: the program holds no encoding, give spike rasters instead")
    if not isinstance(network.data, Digits):
        raise ConfigError(
            f"--encode: the program's data set {network.data.name} has no encoding of single "
            "numbers, give spike rasters instead"
        )
    encoding = network.data.encoding
    return {name: encode(read_array(path, "--input"), encoding) for name, path in files.items()}


def _rasters(
    network: QuantizedNetwork | Network, files: Mapping[str, str], n_steps: int | None
) -> dict[str, SpikeTrain]:
    """Spike trains of all inputs, of one length; held values are as long as the rasters."""
    rasters: dict[str, Any] = {}
    held: dict[str, Any] = {}
    for name, path in files.items():
        values = read_array(path, "--input")
        reading = read_values(f"--input {path}", name, network.inputs[name], values, n_steps)
        (held if reading.held else rasters)[name] = reading.apply(values)
    lengths = {name: int(raster.shape[-1]) for name, raster in rasters.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} for {name}" for name, length in lengths.items())
        raise ConfigError(f"--input: found steps: {found}; allowed the same number for all inputs")
    steps = next(iter(lengths.values()), n_steps)  # held values are there with n_steps only
    for name, values in held.items():
        rasters[name] = np.repeat(values[..., None], steps or 0, axis=-1)
    return {name: _train(files[name], network.inputs[name], rasters[name]) for name in files}


def _train(path: str, source: Input, raster: Any) -> SpikeTrain:
    try:
        return SpikeTrain.from_raster(raster, source.graded)
    except ConfigError as error:
        raise ConfigError(f"--input {path}: {error}") from None


@dataclass(frozen=True)
class Reading:
    """How an array is understood: with or without samples and steps; its lines have ``size``."""

    batched: bool
    held: bool
    size: int

    def apply(self, values: Any) -> Any:
        """The array with its lines on one axis."""
        samples = values.shape[:1] if self.batched else ()
        steps = () if self.held else values.shape[-1:]
        return values.reshape(*samples, self.size, *steps)


def read_values(what: str, name: str, source: Input, values: Any, n_steps: int | None) -> Reading:
    """How the array of an input is understood, from its shape.

    Rasters are ([samples,] neurons, steps) or ([samples,] *shape, steps). Values of graded and bias
    inputs, ([samples,] *shape), are held for ``n_steps`` steps, if these are known.

    Raises:
        ConfigError: no reading fits, or both a raster and held values do.
    """
    shape, found = source.shape, values.shape
    lines = {(source.size,), shape}
    rasters = [
        Reading(batched, False, source.size)
        for batched in (True, False)
        if any(_fits(found, own, batched, 1) for own in lines)
    ]
    held = [
        Reading(batched, True, source.size)
        for batched in (True, False)
        if source.graded and n_steps is not None and _fits(found, shape, batched, 0)
    ]
    sure = f"(samples, {', '.join(map(str, shape))}, steps)"
    if rasters and held:
        raise ConfigError(
            f"{what}: input {name}: found shape {found}, which is a raster with steps or values "
            f"without them, to be held; allowed without doubt {sure}: add an axis of samples to a "
            "raster, repeat values to be held along a last axis of steps"
        )
    if not rasters and not held:
        raise ConfigError(
            f"{what}: input {name}: found shape {found}, allowed {_shapes_of(source, n_steps)}"
        )
    return (rasters or held)[0]


def _fits(found: Shape, own: Shape, batched: bool, steps: int) -> bool:
    """Whether a shape is ([samples,] *own) with that many axes of steps behind."""
    if len(found) != batched + len(own) + steps:
        return False
    return found[batched : batched + len(own)] == own


def _shapes_of(source: Input, n_steps: int | None) -> str:
    shape = ", ".join(map(str, source.shape))
    allowed = f"([samples,] {source.size}, steps)"
    if len(source.shape) > 1:
        allowed += f" or ([samples,] {shape}, steps)"
    if source.graded and n_steps is not None:
        allowed += f", or ([samples,] {shape}) to be held for {n_steps} steps"
    return allowed


def _labels(path: str, network: QuantizedNetwork | Network) -> IntArray:
    labels = read_array(path, "--labels")
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"--labels {path}: found values of type {labels.dtype}, allowed integers")
    per_class = network.readout.neurons_per_class if network.readout else 1
    last = network.sizes[network.outputs[0]] // per_class - 1
    if labels.min() < 0 or labels.max() > last:
        raise ConfigError(
            f"--labels {path}: found {labels.min()} to {labels.max()}, allowed 0 to {last}"
        )
    return np.asarray(labels, dtype=np.int64)


def _from_data_set(network: QuantizedNetwork | Network, data: str | None) -> Given:
    if network.data is None:
        named = [f"--input {name}=FILE.npy" for name in network.inputs]
        instead = " ".join(named) if len(named) > 1 else "--input FILE.npy"
        raise ConfigError(f"--data: the program holds no data set, use {instead}")
    name, _, split = (data or f"{network.data.name}:test").partition(":")
    if name != network.data.name:
        raise ConfigError(
            f"--data: found {name!r}, allowed {network.data.name}, which the program was trained on"
        )
    if len(network.inputs) != 1:
        raise ConfigError(
            f"--data: found {len(network.inputs)} inputs ({', '.join(network.inputs)}), a data set "
            "feeds 1; use --input NAME=FILE.npy for each"
        )
    samples = load_split(network.data, split or "test")
    spikes = {next(iter(network.inputs)): spikes_of(samples, network.data)}
    return Given(spikes, samples.labels, f"{name}:{split or 'test'}")
