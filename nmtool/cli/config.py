"""nmtool config: check config files, print their schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, TypeAdapter

from nmtool import yamlio
from nmtool.chip import ChipChanges, ChipFile, HardwareConfig, load_chip, load_hardware, read_chip
from nmtool.cli.common import FILE, Options, emit, verb, warn
from nmtool.compiler.placement_file import PlacementFile
from nmtool.config import Experiment
from nmtool.data.augment import check_jitter
from nmtool.errors import ConfigError, NmtoolError
from nmtool.quantization import quantize
from nmtool.regression.quarantine import Quarantine
from nmtool.training.build import build_network
from nmtool.training.recipe import check_loss, check_regularizers, recipe_of

SCHEMAS: dict[str, type[BaseModel]] = {
    "nmtool.experiment/v1": Experiment,
    "nmtool.hardware/v1": HardwareConfig,
    "nmtool.chip/v1": ChipFile,
    "nmtool.placement/v1": PlacementFile,
    "nmtool.quarantine/v1": Quarantine,
}
KINDS: dict[str, Any] = {
    "experiment": Experiment,
    "hardware": HardwareConfig,
    "chip": ChipFile | ChipChanges,
    "placement": PlacementFile,
    "quarantine": Quarantine,
}


@click.group("config")
def command() -> None:
    """Check experiment, hardware, chip, placement and quarantine files; print their JSON Schema."""


@command.command("check")
@click.argument("files", nargs=-1, required=True, type=FILE)
@verb
def check(files: tuple[str, ...], options: Options) -> None:
    """Check FILES; every problem is shown as file:line:column."""
    problems: list[str] = []
    found: dict[str, str] = {}
    for file in files:
        try:
            found[file] = _check_file(Path(file), options)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    text = "\n".join(f"{file}: ok ({schema})" for file, schema in found.items())
    emit(options, "config", {"files": found}, text)


def _check_file(path: Path, options: Options) -> str:
    document = yamlio.parse(yamlio.read_text(path), str(path))
    schema = document.data.get("schema") if isinstance(document.data, dict) else None
    if schema not in SCHEMAS:
        row, column = document.where(("schema",))
        raise ConfigError(
            f"{path}:{row}:{column}: schema: found {schema!r}, allowed {', '.join(SCHEMAS)}"
        )
    if SCHEMAS[schema] is ChipFile:
        read_chip(path, options.overrides)
    elif SCHEMAS[schema] is HardwareConfig:
        load_hardware(str(path) if path.suffix else f"./{path}", options.hardware_overrides())
    else:
        for override in options.overrides:
            yamlio.apply_override(document, override)
        model = yamlio.validate(document, SCHEMAS[schema])
        if isinstance(model, Experiment):
            _check_network(model, path, document)
    return str(schema)


def _check_network(experiment: Experiment, path: Path, document: yamlio.Document) -> None:
    """Build the network and quantise it: what only shows when the parts come together."""
    try:
        network = build_network(experiment, path.parent)
        quantize(network, load_chip("loihi2"))
    except NmtoolError as error:
        raise yamlio.located(error, document, ("network",)) from None
    try:
        check_jitter(experiment.data, experiment.train.jitter)
        check_regularizers(network, experiment.train.regularizers, "train")
        check_loss(network, recipe_of(experiment), experiment.train.loss)
    except NmtoolError as error:
        raise yamlio.located(error, document, ("train",)) from None
    try:
        check_regularizers(network, experiment.finetune.regularizers, "finetune")
    except NmtoolError as error:
        raise yamlio.located(error, document, ("finetune",)) from None
    from nmtool.training.noise import mismatch

    if text := mismatch(experiment):
        warn(f"{path}: {text}")


@command.command("schema")
@click.argument("kind", type=click.Choice([*KINDS]), default="experiment")
@verb
def schema(kind: str, options: Options) -> None:  # noqa: ARG001 (every verb has them)
    """Print the JSON Schema of a KIND of file, for editors."""
    click.echo(json.dumps(TypeAdapter(KINDS[kind]).json_schema(by_alias=True), indent=2))
