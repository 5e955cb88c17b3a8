"""nmtool finetune: learn from the spikes that a target really gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from nmtool import formats
from nmtool.backends import check_runnable
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.cli.common import FILE, Options, emit, note, progress, resumable, table, verb
from nmtool.cli.runs import Run
from nmtool.cli.stream import adapt, check_stream, drift_override
from nmtool.compiler import Program, Site, compile_program
from nmtool.config import Experiment
from nmtool.errors import ConfigError, UsageError
from nmtool.formats.container import write_json
from nmtool.network import Network
from nmtool.provenance import provenance, sha256

MEANING = {
    "fault_free": "healthy simulator, no training",
    "transfer": "target, no training",
    "simulation": "trained on the healthy simulator",
    "readout": "last layer trained on the target",
    "loop": "all layers trained on the target",
}


@click.command("finetune")
@click.argument("run", type=FILE)
@click.option("--hw", required=True, help="Target by name or YAML file.")
@click.option(
    "--program",
    type=FILE,
    help="Program to start from [default: RUN compiled for the target].",
)
@click.option("-o", "--output", type=FILE, help="Folder [default: RUN/finetune/TARGET].")
@click.option("--resume", is_flag=True, help="Continue an interrupted study.")
@click.option("--stream", is_flag=True, help="Adapt while samples arrive one after the other.")
@click.option(
    "--drift",
    metavar="KIND[:TO]",
    help="How the stream's input changes: rotate:60 (degrees), fade:0.2 (amplitude).",
)
@verb
def command(
    run: str,
    hw: str,
    program: str | None,
    output: str | None,
    resume: bool,
    stream: bool,
    drift: str | None,
    options: Options,
) -> None:
    """Fine-tune the network of a RUN folder with the target in the loop.

    Measured spikes come back, a local rule (dcll) changes the weights within the synapse formats
    of the program, and it runs again; the controls of the experiment run beside it. -s
    finetune.KEY=VALUE overrides the experiment that the run was made with. With --stream (settings
    finetune.stream.KEY) each sample is classified, and then teaches, before the next one comes.
    """
    overrides, hardware_overrides = options.split_overrides()
    folder = Run(Path(run))
    of_drift = drift_override(stream, resume, drift)
    experiment = _experiment(folder, [*overrides, *of_drift], options)
    hardware = load_hardware(hw, hardware_overrides)
    kind = "stream" if stream else "finetune"
    target = Path(output) if output else folder.folder / kind / hardware.name
    network: Network = formats.load_as(folder.network, Network)
    start = _program(program, network, folder, hardware)
    check_runnable(start, hardware)
    if target.exists() and any(target.iterdir()) and not (options.force or resume):
        raise UsageError(f"{target}: exists already; use --resume to continue it, or --force")
    if stream:
        check_stream(experiment, hardware)
    if options.dry_run:
        emit(options, "finetune", {"dry_run": True}, f"{run} can be fine-tuned on {hardware.name}")
        return
    if not resume:
        _forget(target)
    if stream:
        adapt(experiment, start, hardware, target, options)
        return
    _study(experiment, start, network, hardware, target, options)


def _experiment(folder: Run, overrides: list[str], options: Options) -> Experiment:
    """The run's experiment; only its fine-tuning may be overridden."""
    from nmtool import yamlio

    folder.load_experiment()  # says so where there is no run
    for override in overrides:
        if not override.startswith("finetune."):
            raise UsageError(f"-s {override}: allowed finetune.KEY=VALUE and hw.KEY=VALUE")
    document = yamlio.Document(str(folder.experiment), json.loads(folder.experiment.read_text()))
    for override in overrides:
        yamlio.apply_override(document, override)
    if options.seed is not None:
        document.data["seed"] = options.seed
    return yamlio.validate(document, Experiment)


def _program(path: str | None, network: Network, folder: Run, hardware: HardwareConfig) -> Program:
    if path is None:
        chip = load_chip(hardware.chip)
        facts = provenance(network_sha256=sha256(folder.network), target=hardware.name)
        site = Site.of(hardware, network.populations)
        return compile_program(network, chip, hardware.weight_bits, provenance=facts, site=site)
    program: Program = formats.load_as(path, Program)
    if set(program.network.projections) != set(network.projections):
        raise ConfigError(
            f"{path}: found the projections {[*program.network.projections]}, allowed those of "
            f"{folder.network}: {[*network.projections]}"
        )
    return program


def _forget(folder: Path) -> None:
    """Remove the checkpoints of an earlier study (``--force``)."""
    for path in [
        *folder.glob("*/state.h5"),
        *folder.glob("*/program.h5"),
        *folder.glob("result.json"),
    ]:
        path.unlink()


def _study(
    experiment: Experiment,
    program: Program,
    network: Network,
    hardware: HardwareConfig,
    folder: Path,
    options: Options,
) -> None:
    from nmtool.learning.study import Study

    if hardware.faults:
        note(options, f"{hardware.name} is a simulator with invented defects, not a chip")
    healthy = hardware.model_copy(update={"backend": "emulator", "faults": None})
    shadow = {
        name: projection.weight.astype(np.float64)
        for name, projection in network.projections.items()
    }
    with progress(options, f"finetune on {hardware.name}") as update, resumable(options):
        study = Study(experiment, program, shadow, hardware, healthy, folder, update)
        result = study.run()
    document: dict[str, Any] = {
        "target": hardware.name,
        "program": program.fingerprint,
        "seeds": study.seeds,
        **result.as_json(),
        "provenance": provenance(
            target=hardware.model_dump(mode="json", by_alias=True),
            experiment=experiment.model_dump(mode="json", by_alias=True),
        ),
    }
    write_json(folder / "result.json", document)
    rows = [
        (
            name,
            MEANING[name],
            f"{c.mean:.4f}",
            f"{c.std:.4f}",
            " ".join(f"{value:.4f}" for value in c.seeds),
        )
        for name, c in result.columns.items()
    ]
    header = ("column", "what", "mean", "std", f"seeds {study.seeds}")
    text = f"test accuracy on {hardware.name}\n{table(header, rows)}\nwrote {folder}/result.json"
    emit(options, "finetune", document, text)
