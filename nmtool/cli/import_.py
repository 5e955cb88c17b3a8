"""nmtool import: a file of another tool to a quantised network."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from nmtool import formats
from nmtool.chip import load_chip
from nmtool.cli.common import FILE, Options, emit, table, verb, warn
from nmtool.errors import UsageError
from nmtool.formats.container import refuse_overwrite
from nmtool.formats.netx import load_netx, netx_options, notes
from nmtool.provenance import provenance, sha256
from nmtool.quantization import QuantizedNetwork

WHOLE = click.IntRange(0)


@click.command("import")
@click.argument("source", type=FILE)
@click.option("-o", "--output", type=FILE, help="Network file [default: SOURCE with .h5].")
@click.option("--chip", default="loihi2", show_default=True, help="Chip, by name or YAML file.")
@click.option("--num-layers", type=click.IntRange(1), help="Read only the first layers.")
@click.option("--skip-layers", type=WHOLE, default=0, help="Leave out the first layers of these.")
@click.option(
    "--input-shape",
    type=(int, int, int),
    metavar="X Y CHANNELS",
    help="Shape of the input, where the file does not say it.",
)
@click.option("--reset-interval", type=click.IntRange(1), help="Reset u and v this often.")
@click.option(
    "--reset-offset", type=int, help="Shifts the resets of --reset-interval by steps [default: 0]."
)
@click.option(
    "--spike-exponent",
    type=click.IntRange(0, 16),
    default=6,
    show_default=True,
    help="Scale of sigma-delta messages.",
)
@verb
def command(
    source: str,
    output: str | None,
    chip: str,
    num_layers: int | None,
    skip_layers: int,
    input_shape: tuple[int, int, int] | None,
    reset_interval: int | None,
    reset_offset: int | None,
    spike_exponent: int,
    options: Options,
) -> None:
    """Read SOURCE, a netx file (.net) of lava-dl, and write the quantised network it holds.

    The options have the meaning that they have in lava.lib.dl.netx.hdf5.Network. What is read in
    another way than netx would is a warning.
    """
    options.hardware_overrides()
    path = Path(source)
    target = Path(output) if output else path.with_suffix(".h5")
    if reset_offset is not None and reset_interval is None:
        raise UsageError(
            f"import: found --reset-offset {reset_offset} without --reset-interval, which it "
            "shifts; add --reset-interval STEPS"
        )
    if target.suffix.lower() == ".net":
        raise UsageError(
            f"import: found the output {target}, allowed FILE.h5: import writes nmtool's own "
            "format; `nmtool export SOURCE --format netx` writes netx files"
        )
    reading = netx_options(
        num_layers=num_layers,
        skip_layers=skip_layers,
        input_shape=input_shape,
        reset_interval=reset_interval,
        reset_offset=reset_offset or 0,
        spike_exponent=spike_exponent,
    )
    network = load_netx(path, load_chip(chip), reading)
    if target.resolve() == path.resolve():
        raise UsageError(f"import: found the output {target}, which is SOURCE itself; give -o FILE")
    refuse_overwrite(target, options.force)
    for line in notes(network):
        warn(line)
    if not options.dry_run:
        stamp = provenance(netx_sha256=sha256(path), options=asdict(reading))
        stamped = replace(network, metadata={**network.metadata, "provenance": stamp})
        formats.save(target, stamped)
    document = {
        "network": None if options.dry_run else str(target),
        "chip": network.chip,
        "inputs": {name: asdict(item) for name, item in network.inputs.items()},
        "populations": {
            name: {"shape": p.shape, "model": p.model} for name, p in network.populations.items()
        },
        "projections": {
            name: {
                "source": p.source,
                "target": p.target,
                "operations": [type(op).__name__ for op in p.operations],
                "format": str(p.format),
            }
            for name, p in network.projections.items()
        },
        "notes": notes(network),
    }
    ending = "not written (--dry-run)" if options.dry_run else f"wrote {target}"
    emit(options, "import", document, f"{layers(network)}\n\n{ending}")


def layers(network: QuantizedNetwork) -> str:
    """A table of the populations and what feeds them."""
    rows: list[tuple[object, ...]] = []
    for name, source in network.inputs.items():
        rows.append((name, _shape(source.shape), f"{source.kind} input", "", ""))
    for name, population in network.populations.items():
        into = [p for p in network.projections.values() if p.target == name]
        kinds = ["+".join(type(op).__name__ for op in p.operations) for p in into]
        sources = [f"{p.source}: {kind}" for p, kind in zip(into, kinds, strict=True)]
        sources += [key for key, source in network.inputs.items() if source.drives == name]
        format = ", ".join(str(p.format) for p in into)
        rows.append((name, _shape(population.shape), population.model, "; ".join(sources), format))
    return table(("name", "shape", "kind", "from", "weights"), rows)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
