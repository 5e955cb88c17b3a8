"""nmtool export: a quantised network to a file for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from nmtool import formats
from nmtool.chip import load_chip
from nmtool.cli.common import FILE, Options, emit, verb, warn
from nmtool.cli.runs import Run
from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.formats.container import refuse_overwrite
from nmtool.formats.netx_writer import export_netx
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork, quantize


@click.command("export")
@click.argument("source", type=FILE)
@click.option("--format", type=click.Choice(["netx"]), required=True, help="Format of the file.")
@click.option("-o", "--output", type=FILE, help="File [default: SOURCE with .net].")
@click.option(
    "--chip",
    default="loihi2",
    show_default=True,
    help="Chip to quantise for, if SOURCE is not quantised.",
)
@verb
def command(source: str, format: str, output: str | None, chip: str, options: Options) -> None:
    """Write SOURCE (a run folder, network, quantised network or program) as a netx file.

    The file is read back and must give the same spikes on random input before it is kept.
    """
    options.hardware_overrides()
    path = Path(source)
    target = Path(output) if output else path.with_suffix(".net")
    refuse_overwrite(target, options.force or options.dry_run)
    network = _quantized(Run(path).network if path.is_dir() else path, chip)
    if options.dry_run:
        emit(options, "export", {"file": None}, f"{target}: not written (--dry-run)")
        return
    made = export_netx(network, target, load_chip(network.chip))
    if not made.messages:
        warn("no neuron spiked on the random input that was compared")
    document = {
        "file": str(target),
        "format": format,
        "read_with": asdict(made.options),
        "populations": dict(made.populations),
        "messages_compared": made.messages,
    }
    text = f"wrote {target}; read back, {made.messages} spikes are the same on random input"
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
