"""The stages as functions that take names: what ``import nmtool`` offers."""

from __future__ import annotations

from pathlib import Path

from nmtool.backends import Session, open_session
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.compiler import Program, compile_program
from nmtool.formats import load, save
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork
from nmtool.quantization import quantize as quantize_for

__all__ = ["compile", "load", "open", "quantize", "save"]


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


def open(program: Program | str | Path, hw: str | HardwareConfig) -> Session:
    """Load a program, or the file of one, on a target, by name or YAML file.

    Raises:
        ArtifactError: the program was made for another chip.
        UnsupportedError: the target cannot do something that the program holds.
    """
    from nmtool.formats import load_as

    loaded = program if isinstance(program, Program) else load_as(program, Program)
    return open_session(loaded, hw if isinstance(hw, HardwareConfig) else load_hardware(hw))
