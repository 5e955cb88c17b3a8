"""The stages as functions that take names: what ``import nmtool`` offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nmtool.backends import Session, open_session
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.compiler import Program, compile_program
from nmtool.errors import ConfigError
from nmtool.formats import load as load_artifact
from nmtool.formats import save
from nmtool.formats.artifacts import Artifact
from nmtool.formats.netx import is_netx, load_netx, netx_options
from nmtool.formats.netx_writer import Export, export_netx
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork
from nmtool.quantization import quantize as quantize_for

__all__ = ["compile", "export", "load", "open", "quantize", "save"]


def load(path: str | Path, chip: str = "loihi2", **options: Any) -> Artifact:
    """Read whatever a file holds: Network, QuantizedNetwork, Program, Recording.

    A netx file (.net) gives a QuantizedNetwork for ``chip``; ``options`` are those of
    :class:`nmtool.formats.netx.NetxOptions`: num_layers, skip_layers, input_shape, reset_interval,
    reset_offset and spike_exponent, with netx's own meaning.

    Raises:
        ArtifactError: missing, damaged, or of an unknown version.
        UnsupportedError: a netx file with a layer that nmtool does not have.
        ConfigError: options that no netx file has, or for a file that is none.
    """
    if is_netx(Path(path)):
        return load_netx(path, load_chip(chip), netx_options(**options))
    if options:
        raise ConfigError(
            f"load {path}: found {', '.join(options)}, which are for netx files (.net) only"
        )
    return load_artifact(path)


def quantize(
    network: Network, chip: str = "loihi2", weight_bits: int | None = None
) -> QuantizedNetwork:
    """Quantise a network for a chip, by name or YAML file.

    Raises:
        FitError: a value that the chip cannot hold.
        ConfigError: an unknown chip.
    """
    return quantize_for(network, load_chip(chip), weight_bits)


def compile(
    network: Network | QuantizedNetwork,
    chip: str = "loihi2",
    weight_bits: int | None = None,
    steps: int | None = None,
) -> Program:
    """Quantise (a Network), check and compile for a chip, by name or YAML file.

    ``steps`` is the length of a sample: that of the network's encoding unless given, else 32.

    Raises:
        FitError: a value or a network that the chip cannot hold.
        ArtifactError: a QuantizedNetwork made for another chip.
    """
    return compile_program(network, load_chip(chip), weight_bits, steps)


def open(program: Program | str | Path, hw: str | HardwareConfig = "emulator") -> Session:
    """Load a program, or the file of one, on a target, by name or YAML file.

    Raises:
        ArtifactError: the program was made for another chip.
        UnsupportedError: the target cannot do something that the program holds.
    """
    from nmtool.formats import load_as

    loaded = program if isinstance(program, Program) else load_as(program, Program)
    return open_session(loaded, hw if isinstance(hw, HardwareConfig) else load_hardware(hw))


def export(network: QuantizedNetwork | Program, path: str | Path, format: str = "netx") -> Export:
    """Write a file for other tools, read it back, and compare spikes on random input.

    Raises:
        UnsupportedError: something that the format cannot say, with its name.
        ConfigError: an unknown format.
        CheckFailed: what was read back gives other spikes; no file is left.
        WriteError: it cannot be written.
    """
    if format != "netx":
        raise ConfigError(f"export: found the format {format!r}, allowed netx")
    quantized = network.network if isinstance(network, Program) else network
    return export_netx(quantized, Path(path), load_chip(quantized.chip))
