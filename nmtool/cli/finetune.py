"""nmtool finetune: learn from the spikes that a target really gives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from nmtool import formats
from nmtool.backends import check_runnable
from nmtool.backends.replay import Log, NoLog, Recorder, ReplayTarget
from nmtool.chip import REPLAY, HardwareConfig, load_chip
from nmtool.cli.common import FILE, Options, emit, note, progress, resumable, table, verb, warn
from nmtool.cli.runs import Run
from nmtool.cli.stream import adapt, drift_override, learner_of
from nmtool.compiler import Program, Site, compile_program
from nmtool.compiler.cautions import cautions
from nmtool.config import Experiment
from nmtool.errors import ConfigError, UsageError
from nmtool.formats.container import refuse_overwrite, write_json
from nmtool.formats.sessionlog import LogFile, about, find_target, part_of
from nmtool.network import Network
from nmtool.provenance import provenance, sha256
from nmtool.training import require_torch
from nmtool.yamlio import parse_duration

if TYPE_CHECKING:
    from nmtool.learning.board import Spent
    from nmtool.learning.study import Study, StudyResult

LISTED = 8
"""Lines of each diagnosis in the report."""

MEANING = {
    "examination": "what is wrong with the target",
    "fault_free": "healthy simulator, no training",
    "transfer": "target, no training",
    "simulation": "trained on the healthy simulator",
    "readout": "last layer trained on the target",
    "loop": "all layers trained on the target",
}


@click.command("finetune")
@click.argument("run", type=FILE)
@click.option(
    "--hw", required=True, help="Target by name or YAML file, or replay:FILE, a log of one."
)
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
@click.option("--rule", metavar="NAME", help="Rule of learning (finetune.rule).")
@click.option("--rounds", type=click.IntRange(1), help="Passes over the training samples.")
@click.option(
    "--board-time", metavar="DURATION", help="How long the target may be busy, such as 10m."
)
@click.option("--writes", type=click.IntRange(1), help="How many weights may be written.")
@click.option("--record", type=FILE, help="Keep all that the target answers in this file.")
@verb
def command(
    run: str,
    hw: str,
    program: str | None,
    output: str | None,
    resume: bool,
    stream: bool,
    drift: str | None,
    rule: str | None,
    rounds: int | None,
    board_time: str | None,
    writes: int | None,
    record: str | None,
    options: Options,
) -> None:
    """Fine-tune the network of a RUN folder with the target in the loop.

    Measured spikes come back, a local rule (dcll) changes the weights within the synapse formats
    of the program, and it runs again; the controls of the experiment run beside it. -s
    finetune.KEY=VALUE overrides the experiment that the run was made with. --board-time and
    --writes are for the whole command; the columns that learn on the target share them. With
    --stream (settings finetune.stream.KEY) each sample is classified, and then teaches, before the
    next one comes.
    """
    overrides, hardware_overrides = options.split_overrides()
    folder = Run(Path(run))
    given = [*_limits(rule, rounds, board_time, writes), *drift_override(stream, resume, drift)]
    experiment = _experiment(folder, [*overrides, *given], options)
    hardware = find_target(hw, hardware_overrides)
    kind = "stream" if stream else "finetune"
    target = Path(output) if output else folder.folder / kind / _folder_name(hw, hardware)
    network: Network = formats.load_as(folder.network, Network)
    start = _program(program, network, folder, hardware)
    check_runnable(start, hardware)
    _check_folder(target, options.force or resume, stream)
    if stream:
        _check_alone(rounds, record, hardware)
        learner = learner_of(experiment, start, hardware)
    else:
        _check_record(record, hardware, resume, options)
        study = _prepared(experiment, start, network, hardware, target)
        _check_study(study, begun=resume and any(target.glob("*/state.h5")))
    if options.dry_run:
        emit(options, "finetune", {"dry_run": True}, f"{run} can be fine-tuned on {hardware.name}")
        return
    if stream:
        adapt(experiment, start, hardware, target, learner, options)
        return
    with _log(hardware, record, resume, options) as log:
        _run(study, log, resume, options)


def _check_folder(folder: Path, used: bool, stream: bool) -> None:
    """Refuse what is no folder, and one that holds something unless that may be ``used``."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: found a file or device, allowed the name of a folder")
    if folder.exists() and any(folder.iterdir()) and not used:
        go_on = (
            f"start from its weights with --program {folder}/program.h5 and another -o"
            if stream
            else "use --resume to continue it"
        )
        raise UsageError(f"{folder}: exists already; {go_on}, or --force to replace it")


def _check_alone(rounds: int | None, record: str | None, hardware: HardwareConfig) -> None:
    """Refuse what goes with rounds, but not with a stream."""
    given = {"--rounds": rounds, "--record": record}
    found = [name for name, value in given.items() if value is not None]
    if isinstance(hardware, ReplayTarget):
        found.append("--hw replay:")
    if found:
        raise UsageError(f"--stream: found {', '.join(found)} with it, allowed without --stream")


def _limits(
    rule: str | None, rounds: int | None, board_time: str | None, writes: int | None
) -> list[str]:
    """Options as overrides of the experiment."""
    if board_time is not None:
        try:
            above = parse_duration(board_time) > 0
        except ValueError as error:
            raise UsageError(f"--board-time: found {board_time!r}, allowed {error}") from None
        if not above:
            raise UsageError(f"--board-time: found {board_time!r}, allowed more than 0")
    given = {"rule": rule, "rounds": rounds, "board_time": board_time, "writes": writes}
    return [f"finetune.{key}={value}" for key, value in given.items() if value is not None]


def _folder_name(hw: str, hardware: HardwareConfig) -> str:
    """Where a study goes; one that is replayed is not put beside what it replays."""
    return f"replay-{Path(hw).stem}" if isinstance(hardware, ReplayTarget) else hardware.name


def _check_record(
    record: str | None, hardware: HardwareConfig, resume: bool, options: Options
) -> None:
    """Refuse a log that cannot be kept."""
    if record is None:
        return
    if isinstance(hardware, ReplayTarget):
        raise UsageError(f"--record {record}: found with a log as the target, allowed a target")
    if resume and Path(record).exists():
        raise UsageError(f"{record}: is whole already; give no --record")
    if not resume:
        refuse_overwrite(Path(record), options.force)
        refuse_overwrite(part_of(Path(record)), options.force)


@contextmanager
def _log(
    hardware: HardwareConfig, record: str | None, resume: bool, options: Options
) -> Iterator[Log]:
    """What keeps the answers of the target, or follows a log; whole only at a good end."""
    if isinstance(hardware, ReplayTarget):
        yield hardware.player
        return
    if record is None:
        yield NoLog()
        return
    if not resume:
        Path(record).unlink(missing_ok=True)
    file = LogFile(Path(record), about(hardware), resume)
    yield Recorder(file)
    file.finish()
    note(options, f"wrote {record}; --hw {REPLAY}{record} answers from it")


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
        made = compile_program(network, chip, hardware.weight_bits, provenance=facts, site=site)
        for line in cautions(made):
            warn(line)
        return made
    program: Program = formats.load_as(path, Program)
    if set(program.network.projections) != set(network.projections):
        raise ConfigError(
            f"{path}: found the projections {[*program.network.projections]}, allowed those of "
            f"{folder.network}: {[*network.projections]}"
        )
    return program


def _prepared(
    experiment: Experiment,
    program: Program,
    network: Network,
    hardware: HardwareConfig,
    folder: Path,
) -> Study:
    """The study; nothing has run."""
    require_torch()
    from nmtool.learning.study import Study
    from nmtool.training.model import is_trained

    plain = hardware.plain() if isinstance(hardware, ReplayTarget) else hardware
    healthy = plain.model_copy(update={"backend": "emulator", "faults": None})
    shadow = {
        name: projection.weight.astype(np.float64)
        for name, projection in network.projections.items()
        if is_trained(projection)
    }
    return Study(experiment, program, shadow, hardware, healthy, folder)


def _check_study(study: Study, begun: bool) -> None:
    """Refuse what would fail, before anything of an earlier study is removed.

    What has begun has been rehearsed.
    """
    study.check_budget()
    if not begun:
        study.rehearse()
    if why := study.alike:
        warn(f"no hidden layer will learn, loop and readout do the same: {why}")


def _run(prepared: Study, log: Log, resume: bool, options: Options) -> None:
    from nmtool.learning.study import SCHEMA, forget

    experiment, hardware, folder = prepared.experiment, prepared.hardware, prepared.folder
    if hardware.faults:
        note(options, f"{hardware.name} is a {hardware.faults.label}")
    if not resume:
        forget(folder)
    with progress(options, f"finetune on {hardware.name}") as update, resumable(options):
        study = replace(prepared, progress=update, log=log)
        result = study.run()
    document: dict[str, Any] = {
        "target": hardware.name,
        "program": study.program.fingerprint,
        "rule": experiment.finetune.rule,
        "seeds": study.seeds,
        **result.as_json(),
        "provenance": provenance(
            target=hardware.model_dump(mode="json", by_alias=True),
            experiment=experiment.model_dump(mode="json", by_alias=True),
            replayed=isinstance(hardware, ReplayTarget),
        ),
    }
    write_json(folder / "result.json", {"schema": SCHEMA, **document})
    text = f"{_text(result, hardware, study.seeds, experiment)}\nwrote {folder}/result.json"
    emit(options, "finetune", document, text)


def _text(
    result: StudyResult, hardware: HardwareConfig, seeds: list[int], experiment: Experiment
) -> str:
    """The report for people."""
    rows: list[tuple[object, ...]] = [
        (
            name,
            MEANING[name],
            f"{c.mean:.4f}",
            "-" if c.std is None else f"{c.std:.4f}",
            " ".join(f"{value:.4f}" for value in c.seeds),
            _span(c.rounds),
            " ".join(map(str, c.kept)),
            *_taken(c.spent),
            "" if c.probed is None else f"{100 * c.probed:.3g} %",
        )
        for name, c in result.columns.items()
    ]
    apart = ("examination", MEANING["examination"], *[""] * 5, *_taken(result.examined), "")
    header = (
        *("column", "what", "mean", "std", f"seeds {seeds}"),
        *("rounds", "kept", "board", "writes", "probed"),
    )
    rows.insert(result.before_learning, apart)
    lines = [f"test accuracy on {hardware.name}", table(header, rows), _seconds(result)]
    for name, column in result.columns.items():
        if column.ended:
            limits = ", ".join(_named(limit, experiment) for limit in column.ended)
            lines.append(f"{name}: ended by the budget: {limits}")
    if not result.equal_rounds:
        equal = ", ".join(f"{n} {value:.4f}" for n, value in result.at_equal_rounds().items())
        lines.append(
            "the columns did not do the same number of rounds; best validation accuracy up to the "
            f"last round that all did: {equal} (that of simulation on the healthy simulator)"
        )
    if result.hidden_dropped:
        lines.append("loop: no round that was kept has an update of a hidden layer")
    return "\n".join([*lines, *_findings(result), result.verdict.text])


def _taken(spent: Spent) -> tuple[str, int]:
    return f"{spent.seconds:.1f} s", spent.writes


def _findings(result: StudyResult) -> list[str]:
    """What is wrong with each target, by kind, then with place and confidence."""
    lines = []
    for seed, examined in result.targets.items():
        if examined.diagnosis is None:
            continue
        kinds = Counter(finding["kind"] for finding in examined.diagnosis["findings"])
        silent = examined.diagnosis.get("silent", {})
        kinds += Counter({"silent": sum(map(len, silent.values()))})
        found = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        lines.append(f"diagnosis, seed {seed}: {found or 'nothing is wrong'}")
        lines += _listed(examined.told) if found else []
    return lines


def _listed(told: str) -> list[str]:
    """The first lines of a diagnosis below its alignment, and which cores to exclude."""
    every = told.splitlines()[1:]
    more = every[LISTED:]
    cores = [line for line in more if "excluded_cores" in line]
    left = len(more) - len(cores)
    return [*every[:LISTED], *([f"  and {left} more in result.json"] if left else []), *cores]


def _span(rounds: tuple[int, ...]) -> str:
    """Rounds done by the legs of a column."""
    if not rounds:
        return ""
    low, high = min(rounds), max(rounds)
    return str(low) if low == high else f"{low} to {high}"


def _named(limit: str, experiment: Experiment) -> str:
    config = experiment.finetune
    return (
        f"{config.board_time:g} s of board time"
        if limit == "board_time"
        else (f"{config.writes} writes")
    )


def _seconds(result: StudyResult) -> str:
    """Where the time of the rounds on the target went."""
    timings = [
        entry.timing
        for leg, rounds in result.rounds.items()
        if not leg.startswith("simulation")
        for entry in rounds[1:]
    ]
    if not timings:
        return "no round on the target"
    board, gradients, rest = (
        sum(getattr(timing, part) for timing in timings) / len(timings)
        for part in ("board", "gradients", "rest")
    )
    total = board + gradients + rest
    return (
        f"a round on the target took {total:.2f} s: board {100 * board / total:.0f} %, gradients "
        f"{100 * gradients / total:.0f} %, writing and all else {100 * rest / total:.0f} %"
    )
