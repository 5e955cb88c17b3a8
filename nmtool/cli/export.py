"""nmtool export: a quantised network to a file for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from nmtool import formats
from nmtool.chip import chip_called, load_chip
from nmtool.cli.common import FILE, Options, emit, verb, warn
from nmtool.cli.runs import Run
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, UsageError
from nmtool.formats.container import refuse_overwrite
from nmtool.formats.netx_writer import check_netx, export_netx
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork, quantize

FORMATS = ("netx",)


@click.command("export")
@click.argument("source", type=FILE)
@click.option("--format", metavar="[netx]", help="Format of the file (needed).")
@click.option("-o", "--output", type=FILE, help="File [default: SOURCE with .net].")
@click.option(
    "--chip",
    default="loihi2",
    show_default=True,
    help="Chip to quantise for; the file of SOURCE's own chip, if nmtool ships none of its name.",
)
@verb
def command(
    source: str, format: str | None, output: str | None, chip: str, options: Options
) -> None:
    """Write SOURCE (a run folder, network, quantised network or program) as a netx file.

    The file is read back and must give the same spikes on random input before it is kept; with
    --dry-run too, which only does not keep it.
    """
    if options.hardware_overrides():
        raise UsageError("export: found -s hw...., allowed --chip for the chip; nothing is run")
    if format not in FORMATS:
        found = "no --format" if format is None else f"the format {format!r}"
        raise UsageError(
            f"export: found {found}, allowed {', '.join(FORMATS)}: add --format {FORMATS[0]}"
        )
    path = Path(source)
    target = Path(output) if output else path.with_suffix(".net")
    refuse_overwrite(target, options.force)
    network = _quantized(Run(path).network if path.is_dir() else path, chip)
    run = check_netx if options.dry_run else export_netx
    own = chip_called(network.chip, chip, "--chip FILE.yaml")
    made = run(network, target, load_chip(own))
    if not made.messages:
        warn("no neuron spiked on the random input that was compared")
    if made.not_built:
        warn(
            f"lava-dl's own loader (lava.lib.dl.netx.hdf5.Network) cannot build "
            f"{', '.join(made.not_built)} of this file; nmtool reads it back"
        )
    document = {
        "file": None if options.dry_run else str(target),
        "format": format,
        "read_with": asdict(made.options),
        "populations": dict(made.populations),
        "messages_compared": made.messages,
        "not_built_by_lava_dl": list(made.not_built),
    }
    ending = f"{target} not written (--dry-run)" if options.dry_run else f"wrote {target}"
    text = f"{ending}; read back, {made.messages} spikes are the same on random input"
    if made.options.reset_interval is not None:
        text += (
            f"\nresets are not in the file: read it with reset_interval="
            f"{made.options.reset_interval}, reset_offset={made.options.reset_offset}"
        )
    emit(options, "export", document, text)


def _quantized(path: Path, chip: str) -> QuantizedNetwork:
    artifact = formats.load(path)
    if isinstance(artifact, Program):
        return artifact.network
    if isinstance(artifact, Network):
        return quantize(artifact, load_chip(chip))
    if not isinstance(artifact, QuantizedNetwork):
        raise ArtifactError(
            f"{path}: found a {type(artifact).__name__}, allowed a network or a program"
        )
    return artifact
