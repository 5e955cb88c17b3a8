"""The folder of a training run, and the data that a deployed program is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from nmtool import formats
from nmtool.chip import ChipSpec
from nmtool.cli.common import FILE, read_array
from nmtool.config import Experiment, experiment_from_json
from nmtool.data import encode, load_split
from nmtool.errors import ArtifactError, ConfigError, UsageError
from nmtool.fixedpoint import IntArray
from nmtool.formats.netx import is_netx, load_netx
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork
from nmtool.spikes import SpikeTrain


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
            text = self.experiment.read_text()
        except OSError as error:
            raise ArtifactError(f"{self.experiment}: cannot be read ({error.strerror})") from None
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
            "input_file",
            type=FILE,
            metavar="FILE.npy",
            help="Rasters ([samples,] neurons, steps), or raw samples with --encode.",
        ),
        click.option(
            "--data", metavar="NAME:SPLIT", help="Data set [default: the program's, test]."
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Given:
    """Input spikes, their labels where known, and where they are from."""

    spikes: SpikeTrain
    labels: IntArray | None
    source: str


def gather_input(
    network: QuantizedNetwork | Network,
    data: str | None,
    input_file: str | None,
    labels_file: str | None,
    encode_raw: bool,
) -> Given:
    """The samples that a command line names: ``--data NAME:split`` or ``--input FILE.npy``.

    Raises:
        UsageError: both, or options that do not go together.
        ConfigError: unknown data, or a file that is missing or wrong.
    """
    if data and input_file:
        raise UsageError("found --data and --input, allowed one of them")
    if input_file is None:
        if labels_file or encode_raw:
            raise UsageError("found --labels or --encode without --input, which they belong to")
        return _from_data_set(network, data)
    values = read_array(input_file, "--input")
    if encode_raw:
        if network.data is None:
            raise ConfigError("--encode: the program holds no encoding, give spike rasters instead")
        spikes = encode(values, network.data.encoding)
    else:
        graded = any(source.graded for source in network.inputs.values())
        spikes = SpikeTrain.from_raster(values, graded)
    labels = _labels(labels_file, network) if labels_file else None
    return Given(spikes, labels, input_file)


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
        raise ConfigError("--data: the program holds no data set, use --input FILE.npy")
    name, _, split = (data or f"{network.data.name}:test").partition(":")
    if name != network.data.name:
        raise ConfigError(
            f"--data: found {name!r}, allowed {network.data.name}, which the program was trained on"
        )
    samples = load_split(network.data, split or "test")
    spikes = encode(samples.values, network.data.encoding)
    return Given(spikes, samples.labels, f"{name}:{split or 'test'}")
