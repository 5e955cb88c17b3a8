"""nmtool golden: record what is right, hold targets against it, replace it with a reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from nmtool import formats
from nmtool.backends import Recording, check_runnable, resolve_probe
from nmtool.chip import HardwareConfig, load_hardware
from nmtool.cli.common import FILE, Options, emit, progress, refuse_same, table, verb, warn
from nmtool.cli.runs import gather_input, input_options
from nmtool.cli.suite import Suite, suite_options
from nmtool.compiler import Program
from nmtool.errors import ConfigError, UsageError
from nmtool.fixedpoint import IntArray
from nmtool.formats.container import refuse_overwrite
from nmtool.network import counted
from nmtool.provenance import provenance
from nmtool.regression.check import doubts, record_golden, run_on, target_name
from nmtool.regression.coverage import Exercise, coverage
from nmtool.regression.golden import Golden, load_golden, save_golden
from nmtool.regression.policies import judge, parse_policy
from nmtool.spikes import SpikeTrain


@click.group("golden")
def command() -> None:
    """Record golden runs, hold targets against them, replace them with a reason."""


_POLICY = click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="What must hold: exact, jitter=STEPS, rate=FRACTION, van_rossum=TAU:DISTANCE, "
    "accuracy[=LEVEL], latency[=STEPS]; several may be given.",
)
_HW = click.option(
    "--hw", default="emulator", show_default=True, help="Target by name or YAML file."
)


@command.command("record")
@click.argument("program", type=FILE)
@_HW
@input_options
@click.option("--labels", type=FILE, metavar="FILE.npy", help="Classes of --input.")
@click.option(
    "--probe",
    default="spikes",
    show_default=True,
    help="What is recorded: spikes,current,voltage, or voltage:NAME.",
)
@click.option("--samples", type=click.IntRange(1), help="The first samples only.")
@click.option(
    "--cover",
    type=click.IntRange(1),
    metavar="COUNT",
    help="So many samples, chosen to exercise as many neurons and weights as they can.",
)
@_POLICY
@click.option("-o", "--output", type=FILE, required=True, help="Golden file.")
@verb
def record(
    program: str,
    hw: str,
    data: str | None,
    input_files: tuple[str, ...],
    encode: bool,
    labels: str | None,
    probe: str,
    samples: int | None,
    cover: int | None,
    policies: tuple[str, ...],
    output: str,
    options: Options,
) -> None:
    """Run PROGRAM on a target and keep program, input and result as a golden run.

    In CI (CI=true) it replaces no file, --force or not; `golden accept` replaces golden runs.
    """
    if samples is not None and cover is not None:
        raise UsageError("golden record: found --samples and --cover, allowed one of them")
    wanted = [str(parse_policy(text)) for text in policies] or ["exact"]
    hardware = load_hardware(hw, options.hardware_overrides())
    loaded: Program = formats.load_as(program, Program)
    given = gather_input(loaded, data, input_files, labels, encode)
    chosen = resolve_probe(loaded, probe)
    if not chosen.get("spikes"):
        raise ConfigError(f"--probe: found {probe}, allowed what includes spikes")
    refuse_same([output], [program, *(name.rpartition("=")[2] for name in input_files), labels])
    _refuse_replacing(output, options)
    check_runnable(loaded, hardware)
    if options.dry_run:
        emit(options, "golden record", {"dry_run": True}, f"{program} can run on {hardware.name}")
        return
    inputs = given.spikes
    known = given.labels
    if samples is not None or cover is not None:
        first = np.arange(min(samples or given.n_samples, given.n_samples))
        picked = _covering(loaded, hardware.chip, inputs, cover) if cover else first
        inputs = {name: train.select(picked) for name, train in inputs.items()}
        known = None if known is None else known[picked]
    with progress(options, f"run on {hardware.name}") as update:
        golden = record_golden(
            loaded, hardware, inputs, known, chosen, wanted, given.source, update
        )
    _check_itself(golden)
    save_golden(output, golden)
    size = Path(output).stat().st_size
    covered = coverage(golden.program, golden.inputs, golden.expected)
    for text in golden.warnings:
        warn(f"{output}: {text}")
    document = {
        "golden": output,
        "bytes": size,
        "target": hardware.name,
        "program": loaded.fingerprint,
        "samples": golden.n_samples,
        "steps": golden.expected.n_steps,
        "policies": list(golden.policies),
        "metrics": golden.metrics,
        "coverage": asdict(covered) if covered else None,
        "warnings": list(golden.warnings),
    }
    rows = [(name, f"{value:.6g}") for name, value in golden.metrics.items()]
    exercised = str(covered) if covered else "not known, for not all spikes are probed"
    text = (
        f"golden run of {loaded.fingerprint} on {hardware.name}: "
        f"{counted(range(golden.n_samples), 'sample')}, "
        f"{golden.expected.n_steps} steps, policies {', '.join(golden.policies)}\n"
        f"{table(('quantity', 'value'), rows)}\ncovers {exercised}\n"
        f"wrote {output} ({size} bytes)"
    )
    emit(options, "golden record", document, text)


def _covering(
    program: Program, chip: str, inputs: Mapping[str, SpikeTrain], count: int
) -> IntArray:
    """The samples to keep, chosen by what they exercise on the emulator of a chip."""
    emulator = load_hardware("emulator").model_copy(update={"chip": chip})
    run = run_on(program, emulator, inputs, resolve_probe(program, "spikes"))
    return Exercise(program, inputs, run).choose(count)


def _check_itself(golden: Golden) -> None:
    """Hold a golden run against its own policies: what it breaks itself, nothing can hold.

    Raises:
        ConfigError: one of its policies does not hold, or cannot be judged.
    """
    for verdict in judge(golden, golden.expected):
        if not verdict.passed:
            raise ConfigError(
                f"golden: the run breaks its own policy {verdict.policy}: found {verdict.found}, "
                f"allowed {verdict.allowed}"
            )


def _in_ci() -> bool:
    """Whether a pipeline runs this, which must not bless what it should judge."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _refuse_replacing(output: str, options: Options) -> None:
    """Refuse to record over a file without --force, and in CI at all.

    Raises:
        UsageError: it exists.
    """
    if _in_ci() and Path(output).exists():
        raise UsageError(
            f"{output}: exists already, and CI is set, where nothing is recorded over a file; to "
            f'replace a golden run: nmtool golden accept {output} --reason "..." --force'
        )
    refuse_overwrite(Path(output), options.force)


@command.command("check")
@click.argument("goldens", nargs=-1, required=True, type=FILE)
@click.option("--hw", help="Target by name or YAML file [default: emulator].")
@_POLICY
@click.option("--run", type=FILE, help="A saved run to judge; nothing is run.")
@verb
@suite_options
def check(
    goldens: tuple[str, ...],
    hw: str | None,
    policies: tuple[str, ...],
    run: str | None,
    suite: Suite,
    options: Options,
) -> None:
    """Hold a target against golden runs; exits with the worst of them."""
    hardware = load_hardware(hw or "emulator", options.hardware_overrides())
    wanted = tuple(str(parse_policy(text)) for text in policies)
    if run and len(goldens) > 1:
        raise UsageError(f"--run: found {len(goldens)} golden runs, allowed 1 beside a saved run")
    if run and (suite.saved or suite.runs):
        raise UsageError("found --run beside --saved or --runs, allowed one of them")
    refuse_same([suite.junit, suite.summary], [*goldens, run])
    recording = formats.load_as(run, Recording) if run else None
    if run and recording and hw:
        _check_target(run, recording, hw, hardware)
    cases = suite.golden_cases(goldens, hardware, wanted, recording)
    if options.dry_run:
        with suite.gate.opened():
            for path in goldens:
                program = load_golden(path).program
                if not (run or suite.saved):
                    check_runnable(program, hardware)
        emit(options, "golden check", {"dry_run": True}, f"can run on {hardware.name}")
        return
    suite.run("golden check", cases)


def _check_target(run: str, recording: Recording, hw: str, hardware: HardwareConfig) -> None:
    """Refuse a target beside a saved run of another one: nothing would run there.

    Raises:
        UsageError: the run names another target.
    """
    ran = target_name(recording.provenance, hardware.name)
    if ran != hardware.name:
        raise UsageError(
            f"--hw {hw}: found it beside --run {run}, a run on {ran}, which is judged as it is: "
            "leave --hw out, or leave --run out to run on the target"
        )


@command.command("accept")
@click.argument("golden", type=FILE)
@_HW
@click.option("--program", type=FILE, help="Another program to run in place of the golden's.")
@click.option("--reason", required=True, help="Why the new result is the right one.")
@_POLICY
@verb
def accept(
    golden: str,
    hw: str,
    program: str | None,
    reason: str,
    policies: tuple[str, ...],
    options: Options,
) -> None:
    """Run GOLDEN's program and input again and keep the result as the golden run.

    In CI (CI=true) this needs --force: a pipeline must not bless what it should judge.
    """
    if _in_ci() and not options.force:
        raise UsageError(
            "golden accept: found CI in the environment; use --force if a pipeline is to replace "
            f"{golden}"
        )
    if not reason.strip():
        raise UsageError("--reason: found nothing, allowed a sentence that says why")
    hardware = load_hardware(hw, options.hardware_overrides())
    before = load_golden(golden)
    after = _rerun(before, program, hardware, options)
    if options.dry_run:
        emit(options, "golden accept", {"dry_run": True}, f"{golden} would be recorded again")
        return
    wanted = tuple(str(parse_policy(text)) for text in policies) or before.policies
    changes = _changes(before, after)
    earlier = before.provenance.get("history")
    history = [
        *(earlier if isinstance(earlier, list) else ()),
        {"reason": before.reason, "time": before.provenance.get("time")},
    ]
    facts = provenance(
        target=hardware.model_dump(mode="json", by_alias=True),
        input=before.provenance.get("input"),
        chip=after.program.chip,
        history=history,
        warnings=doubts(after.program, hardware, after.inputs, after.expected),
    )
    accepted = replace(after, policies=wanted, reason=reason, provenance=facts)
    _check_itself(accepted)
    save_golden(Path(golden).resolve(), accepted)  # through a link, to the file that it names
    for text in accepted.warnings:
        warn(f"{golden}: {text}")
    lines = [f"{c['policy']}: {c['found']}" for c in changes if not c["passed"]]
    document = {
        "golden": golden,
        "reason": reason,
        "changes": changes,
        "program": after.program.fingerprint,
        "program_before": before.program.fingerprint,
        "metrics": after.metrics,
        "metrics_before": before.metrics,
        "warnings": list(accepted.warnings),
    }
    emit(options, "golden accept", document, "\n".join([*lines, f"wrote {golden}: {reason}"]))


def _changes(before: Golden, after: Golden) -> list[dict[str, Any]]:
    """What of the golden run the new one does not hold."""
    old, new = before.program.fingerprint, after.program.fingerprint
    changes: list[dict[str, Any]] = []
    if old != new:
        changes.append({"policy": "program", "found": f"{new}, was {old}", "passed": False})
    try:
        verdicts = judge(before, after.expected)
    except ConfigError as error:
        return [*changes, {"policy": "comparison", "found": str(error), "passed": False}]
    return changes + [{"policy": v.policy, "found": v.found, "passed": v.passed} for v in verdicts]


def _rerun(
    golden: Golden, program: str | None, hardware: HardwareConfig, options: Options
) -> Golden:
    """The golden's input through its program, or through another one."""
    chosen: Program = formats.load_as(program, Program) if program else golden.program
    check_runnable(chosen, hardware)
    if options.dry_run:
        return golden
    probe = golden.probe
    if program:
        names = ",".join(f"{q}:{n}" for q, ns in probe.items() for n in ns)
        probe = resolve_probe(chosen, names)
    with progress(options, f"run on {hardware.name}") as update:
        run = run_on(chosen, hardware, golden.inputs, probe, update)
    return replace(golden, program=chosen, expected=run)
