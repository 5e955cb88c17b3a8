"""The stages as functions that take names: what ``import nmtool`` offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nmtool.backends import Session, open_session
from nmtool.chip import ChipSpec, HardwareConfig, chip_called, load_chip
from nmtool.compiler import Program, Site, compile_program
from nmtool.compiler.budget import Budget, check_budget, most_cores
from nmtool.errors import ConfigError
from nmtool.formats import save, unpack
from nmtool.formats.artifacts import Artifact
from nmtool.formats.container import read_container
from nmtool.formats.netx import is_netx, load_netx, netx_options
from nmtool.formats.netx_writer import Export, export_netx
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork
from nmtool.quantization import quantize as quantize_for
from nmtool.regression.golden import SCHEMA as GOLDEN
from nmtool.regression.golden import Golden, unpack_golden

__all__ = ["compile", "export", "load", "open", "quantize", "save"]


def load(path: str | Path, chip: str = "loihi2", **options: Any) -> Artifact | Golden:
    """Read whatever a file holds: Network, QuantizedNetwork, Program, Recording, Golden.

    A netx file (.net) gives a QuantizedNetwork for ``chip``; ``options`` are those of
    :class:`nmtool.formats.netx.NetxOptions`: num_layers, skip_layers, input_shape, reset_interval,
    reset_offset and spike_exponent, with netx's own meaning.

    Raises:
        ArtifactError: missing, damaged, or of an unknown version.
        UnsupportedError: a netx file with a layer that nmtool does not have.
        ConfigError: options that no netx file has, or for a file that is none; no path.
    """
    path = _name("load", path)
    if is_netx(Path(path)):
        return load_netx(path, load_chip(chip), netx_options(**options))
    if options:
        raise ConfigError(
            f"load {path}: found {', '.join(options)}, which are for netx files (.net) only"
        )
    container = read_container(Path(path))
    if container.schema == GOLDEN:
        return unpack_golden(container, path)
    return unpack(container, path)


def quantize(
    network: Network, chip: str = "loihi2", weight_bits: int | None = None
) -> QuantizedNetwork:
    """Quantise a network for a chip, by name or YAML file.

    Raises:
        FitError: a value that the chip cannot hold.
        ConfigError: an unknown chip, or no Network.
    """
    _require("quantize", network, Network)
    return quantize_for(network, load_chip(_name("quantize: chip", chip)), weight_bits)


def compile(
    network: Network | QuantizedNetwork,
    chip: str | None = None,
    weight_bits: int | None = None,
    steps: int | None = None,
    site: Site | HardwareConfig | None = None,
    limits: str = "all",
    budget: Budget | None = None,
) -> Program:
    """Quantise (a Network), check, place and compile for a chip, by name or YAML file.

    ``steps`` is the length of a sample: that of the network's encoding unless given, else 32.
    ``site`` says how many chips and cores there are, what is probed, and what is known of spikes
    and placement (:class:`nmtool.compiler.Site`; else one whole chip), or is a target, which also
    has the chip and the weight bits. Without either the chip is loihi2.
    With ``limits="documented"`` what was merely inferred about the chip limits nothing.
    ``budget`` is what the program may take at most, such as ``{"cores": 24, "latency": 8}``; slices
    share cores to keep to its cores.

    Raises:
        FitError: a value or a network that the chip cannot hold, or that exceeds its budget.
        ConfigError: an unknown chip, limits, or probed population, another chip or more weight
            bits than the target has, or no network.
        UsageError: a key that no budget has.
        ArtifactError: a QuantizedNetwork made for another chip.
    """
    _require("compile", network, Network, QuantizedNetwork)
    target = site if isinstance(site, HardwareConfig) else None
    chip_spec = _chip_for(chip, target)
    if limits not in ("all", "documented"):
        raise ConfigError(f"compile: found the limits {limits!r}, allowed all, documented")
    if limits == "documented":
        chip_spec = chip_spec.documented()
    if target:
        weight_bits = _bits_for(weight_bits, target)
    place = Site.of(site, network.populations) if isinstance(site, HardwareConfig) else site
    place = replace(place or Site(), core_budget=most_cores(budget or {}))
    facts = {"limits": limits}
    program = compile_program(network, chip_spec, weight_bits, steps, facts, place)
    check_budget(program, budget or {})
    return program


def _chip_for(name: str | None, target: HardwareConfig | None) -> ChipSpec:
    """The chip to compile for: the one that is named, which has to be the target's."""
    if name is None:
        return load_chip(target.chip if target else "loihi2")
    chip = load_chip(_name("compile: chip", name))
    if target and (own := load_chip(target.chip)).name != chip.name:
        raise ConfigError(
            f"compile: found the chip {chip.name} and the target {target.name}, which has "
            f"{own.name}, allowed one chip; leave chip out"
        )
    return chip


def _bits_for(bits: int | None, target: HardwareConfig) -> int | None:
    """The weight bits to compile with: no more than the target stores."""
    most = target.weight_bits
    if bits is not None and most is not None and bits > most:
        raise ConfigError(
            f"compile: found weight_bits {bits}, allowed up to {most}, which the target "
            f"{target.name} stores"
        )
    return most if bits is None else bits


def open(program: Program | str | Path, hw: str | HardwareConfig = "emulator") -> Session:
    """Load a program, or the file of one, on a target, by name, YAML file, or replay:FILE.

    Raises:
        ArtifactError: the program was made for another chip.
        UnsupportedError: the target cannot do something that the program holds.
        ConfigError: an unknown target, or no Program.
    """
    from nmtool.formats import load_as
    from nmtool.formats.sessionlog import find_target

    _require("open", program, Program, str, Path)
    loaded = program if isinstance(program, Program) else load_as(program, Program)
    named = hw if isinstance(hw, HardwareConfig) else find_target(_name("open: hw", hw))
    return open_session(loaded, named)


def export(
    network: QuantizedNetwork | Program,
    path: str | Path,
    format: str = "netx",
    chip: str | None = None,
) -> Export:
    """Write a file for other tools, read it back, and compare spikes on random input.

    ``chip`` is the file of the chip that the network was quantised for, if nmtool ships none of
    its name.

    Raises:
        UnsupportedError: something that the format cannot say, with its name.
        ConfigError: an unknown format or chip, or no quantised network or Program.
        CheckFailed: what was read back gives other spikes; no file is left.
        WriteError: it cannot be written.
    """
    if format != "netx":
        raise ConfigError(f"export: found the format {format!r}, allowed netx")
    _require("export", network, QuantizedNetwork, Program)
    quantized = network.network if isinstance(network, Program) else network
    own = chip_called(quantized.chip, chip, 'chip="FILE.yaml"')
    return export_netx(quantized, Path(path), load_chip(own))


_HINTS: dict[str, Callable[[object], str]] = {
    "compile": lambda found: _loading(found) or "nmtool.load reads one, nmtool.Network makes one",
    "quantize": lambda found: (
        _loading(found)
        or (
            "it is quantised already"
            if isinstance(found, QuantizedNetwork)
            else "nmtool.load reads one, nmtool.Network makes one"
        )
    ),
    "open": lambda found: "nmtool.compile makes a Program of a network",
    "export": lambda found: _loading(found) or "nmtool.quantize makes one of a Network",
}


def _loading(found: object) -> str:
    return "nmtool.load reads a file" if isinstance(found, str | Path) else ""


def _require(stage: str, found: object, *allowed: type[Any]) -> None:
    if not isinstance(found, allowed):
        kinds = " or ".join(kind.__name__ for kind in allowed)
        raise ConfigError(
            f"{stage}: found {_shown(found)}, allowed a {kinds}; {_HINTS[stage](found)}"
        )


def _shown(found: object) -> str:
    return "None" if found is None else f"a {type(found).__name__}"


def _name(what: str, found: object) -> str:
    """A name or path as text."""
    if not isinstance(found, str | Path):
        raise ConfigError(f"{what}: found {_shown(found)}, allowed a name or the path of a file")
    return str(found)
