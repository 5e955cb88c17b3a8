"""nmtool train: experiment file to trained network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nmtool import yamlio
from nmtool.cli.common import FILE, Options, emit, note, progress, resumable, table, verb, warn
from nmtool.cli.runs import Run
from nmtool.config import Engine, Experiment, load_experiment, resolved_json
from nmtool.data.augment import check_jitter
from nmtool.errors import ArtifactError, ConfigError, FitError, UsageError
from nmtool.training import require_torch

if TYPE_CHECKING:
    from nmtool.network import Network
    from nmtool.training.trainer import TrainingState

CHIP = "loihi2"
"""The chip whose synapse formats the forward pass rounds to."""


@click.command("train")
@click.argument("experiment", type=FILE)
@click.option("-o", "--output", type=FILE, help="Run folder [default: runs/NAME].")
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@verb
def command(experiment: str, output: str | None, resume: bool, options: Options) -> None:
    """Train the network of an EXPERIMENT file by surrogate gradients.

    Writes network.h5 (the best epoch by validation accuracy), metrics.json, experiment.json (the
    resolved config), provenance.json and checkpoint.h5 into the run folder.
    """
    overrides, hardware = options.split_overrides()
    if hardware:
        raise UsageError(f"-s hw.{hardware[0]}: train has no target to override")
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    config = load_experiment(experiment, overrides)
    check_jitter(config.data, config.train.jitter)
    run = Run(Path(output or f"runs/{config.name}"))
    if run.network.exists() and not (options.force or resume):
        raise UsageError(f"{run.network}: exists already; use --force to train again, or --resume")
    if resume and not run.checkpoint.exists():
        raise ArtifactError(
            f"{run.checkpoint}: no such file: no epoch of a training in {run.folder} is done; "
            "leave --resume out to start"
        )
    if run.checkpoint.exists() and not (options.force or resume):
        raise UsageError(
            f"{run.checkpoint}: an interrupted training is here; use --resume to continue it, or "
            "--force to start afresh"
        )
    with progress(options, "load torch"):
        _prepare(config.train.engine)
        from nmtool.training.build import build_network
        from nmtool.training.noise import mismatch
        from nmtool.training.trainer import train as _  # noqa: F401

    try:
        network = build_network(config, Path(experiment).parent)
    except ConfigError as error:
        if not str(error).startswith("network.layers."):
            raise
        document = yamlio.read(Path(experiment), overrides)
        raise yamlio.located(error, document, ("network",)) from None
    if text := mismatch(config):
        warn(text)
    if options.dry_run:
        _report_dry_run(options, config, network)
        return
    _train(config, network, run, resume, Path(experiment), options)


def _prepare(engine: Engine) -> None:
    """Check that what the engine needs is installed.

    Raises:
        DependencyError: torch is missing, or lava-dl for the engine slayer.
    """
    if engine == "slayer":
        from nmtool.backends.lava.compat import prepare_slayer

        prepare_slayer()
    require_torch()


def _report_dry_run(options: Options, config: Experiment, network: Network) -> None:
    from nmtool.chip import load_chip
    from nmtool.data import check_files
    from nmtool.training.trainer import prepare

    prepare(config, network, load_chip(CHIP))
    with progress(options, f"look for {config.data.name}"):
        check_files(config.data)
    sizes = [*network.sizes.values()]
    text = f"{config.name}: {'-'.join(map(str, sizes))}, {config.train.epochs} epochs; not trained"
    emit(options, "train", {"name": config.name, "sizes": sizes, "dry_run": True}, text)


def _train(
    config: Experiment, network: Network, run: Run, resume: bool, source: Path, options: Options
) -> None:
    from nmtool import formats
    from nmtool.chip import load_chip
    from nmtool.formats.container import write_json, write_text
    from nmtool.provenance import provenance, sha256
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint
    from nmtool.training.trainer import first_overflow, prepare, train

    chip = load_chip(CHIP)
    prepare(config, network, chip)  # what is refused leaves no run folder
    _load(config, options)
    if not resume and (text := first_overflow(config, network, chip)):
        warn(f"before the first update: {text}, or a smaller network.init_gain")
    resolved = resolved_json(config)
    state = load_checkpoint(run.checkpoint, resolved) if resume else None
    write_text(run.experiment, resolved + "\n")
    if state:
        note(options, f"continuing after epoch {len(state.history)} of {config.train.epochs}")

    def save(current: TrainingState) -> None:
        save_checkpoint(run.checkpoint, current, resolved)
        last = current.history[-1]
        if last.overflow and not any(epoch.overflow for epoch in current.history[:-1]):
            warn(f"epoch {last.epoch + 1} does not fit the chip and is not kept: {last.overflow}")
        if options.verbose:
            note(
                options,
                f"epoch {last.epoch + 1}: loss {last.loss:.4f}, validation "
                f"{last.validation_accuracy:.4f}",
            )

    with (
        progress(options, f"train {config.name}") as update,
        resumable(options, run.checkpoint.exists),
    ):
        trained, state = train(config, network, chip, state, update, save)
        document = _metrics(config, trained, state, chip)
    formats.save(run.network, trained)
    facts = {
        "seed": config.seed,
        "experiment_sha256": sha256(source),
        "network_sha256": sha256(run.network),
    }
    write_json(run.provenance, provenance(**facts))
    write_json(run.metrics, document)
    for text in (*_left_out(state, config.train.epochs), *state.history[-1].warnings):
        warn(text)
    emit(options, "train", {"run": str(run.folder), **document}, _text(run, document, state))


def _left_out(state: TrainingState, epochs: int) -> Iterator[str]:
    """What a training did not get to keep, and why."""
    if unfit := [epoch for epoch in state.history if epoch.overflow]:
        numbers = ", ".join(str(epoch.epoch + 1) for epoch in unfit)
        yield (
            f"{len(unfit)} of {len(state.history)} epochs do not fit the chip and are not kept "
            f"({numbers}); the last of them: {unfit[-1].overflow}"
        )
    if state.stopped:
        yield f"trained {len(state.history)} of {epochs} epochs: {state.stopped}"


def _load(config: Experiment, options: Options) -> None:
    """Load all parts of the data set, and say what a recorded one leaves out."""
    from nmtool.data import SPLITS, load_split

    for split in SPLITS:
        with progress(options, f"load {config.data.name}:{split}"):
            samples = load_split(config.data, split)
        if samples.late is not None and (late := int(samples.late.sum())):
            warn(
                f"{config.data.name}:{split}: {late} events come after step {config.data.n_steps} "
                "and are left out"
            )


def _metrics(
    config: Experiment, trained: Network, state: TrainingState, chip: Any
) -> dict[str, Any]:
    """Accuracies of the best epoch; the test set is looked at here, once, after selection."""
    from dataclasses import asdict

    from nmtool.data import load_split, spikes_of
    from nmtool.quantization import dequantize, quantize
    from nmtool.training.baseline import logistic_regression_accuracy
    from nmtool.training.record import decisions
    from nmtool.training.trainer import stochastic_accuracy

    test = load_split(config.data, "test")
    spikes = spikes_of(test, config.data)

    def accuracy(what: str, network: Network) -> float | None:
        try:
            found = decisions(network, chip, spikes, config.network.readout, config.train.engine)
        except FitError as error:
            warn(f"test accuracy, {what}: not known, a test sample does not fit: {error}")
            return None
        return float((found == test.labels).mean())

    stochastic = (
        {"stochastic": stochastic_accuracy(config, trained, chip, test)}
        if config.train.noise
        else {}
    )
    return {
        "accuracy": {
            "test": accuracy("trained", trained),
            "quantized": accuracy("quantized", dequantize(quantize(trained, chip))),
            "validation": state.best_accuracy,
            "logistic_regression": logistic_regression_accuracy(config.data),
            **stochastic,
        },
        "best_epoch": state.best_epoch,
        "samples": {
            split: len(load_split(config.data, split)) for split in ("train", "validation", "test")
        },
        "epochs": [asdict(epoch) for epoch in state.history],
    }


def _shown(accuracy: float | None) -> str:
    return "not known" if accuracy is None else f"{accuracy:.4f}"


def _text(run: Run, document: dict[str, Any], state: TrainingState) -> str:
    accuracy = document["accuracy"]
    rates = state.history[-1].rates
    rows = [
        ("best epoch (by validation)", document["best_epoch"] + 1),
        ("validation accuracy", f"{accuracy['validation']:.4f}"),
        ("test accuracy", _shown(accuracy["test"])),
        ("test accuracy, quantized", _shown(accuracy["quantized"])),
        *(
            ("test accuracy with the noise of training", f"{value:.4f}")
            for key, value in accuracy.items()
            if key == "stochastic"
        ),
        ("logistic regression, same split", f"{accuracy['logistic_regression']:.4f}"),
        *(
            (f"rate of {name} (spikes per neuron and step)", f"{rate:.4f}")
            for name, rate in rates.items()
        ),
    ]
    return f"{table(('trained', 'value'), rows)}\nwrote {run.network}"
