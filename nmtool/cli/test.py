"""nmtool test: the checks of an experiment and the golden runs, on every target."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from nmtool.backends import check_runnable
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.cli.common import FILE, Options, emit, note, refuse_same, verb, warn
from nmtool.cli.deploy import check_measured, run
from nmtool.cli.runs import Run, gather_input
from nmtool.cli.suite import Suite, suite_options
from nmtool.compiler import Program, Site, compile_program
from nmtool.config import Experiment, load_experiment
from nmtool.errors import ConfigError, UnsupportedError, UsageError
from nmtool.formats import load_as
from nmtool.measure import measure
from nmtool.network import Network
from nmtool.regression.golden import golden_files, passed_over
from nmtool.regression.policies import Verdict
from nmtool.regression.suite import Case, Evidence, Outcome, run_case


@click.command("test")
@click.argument("experiment", type=FILE, required=False)
@click.option(
    "--hw",
    "targets",
    multiple=True,
    help="Target by name or YAML file; may be given again [default: emulator].",
)
@click.option(
    "--run", "run_folder", type=FILE, help="The experiment's run folder [default: runs/NAME]."
)
@click.option(
    "--golden",
    "folder",
    type=FILE,
    help="Folder of golden runs, with those below it [default: golden, if there is one].",
)
@verb
@suite_options
def command(
    experiment: str | None,
    targets: tuple[str, ...],
    run_folder: str | None,
    folder: str | None,
    suite: Suite,
    options: Options,
) -> None:
    """Run the checks of EXPERIMENT and all golden runs on every target; exits with the worst."""
    overrides = options.hardware_overrides()
    hardware = [load_hardware(name, overrides) for name in targets or ("emulator",)]
    names = [target.name for target in hardware]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--hw: found two targets of the name {', '.join(twice)}, allowed one")
    found, others = golden_files(folder or "golden")
    goldens = [str(path) for path in found]
    if others:
        warn(passed_over(others))
    if folder and not goldens:
        raise ConfigError(f"--golden {folder}: found no golden run there (*.h5, *.hdf5)")
    if experiment and suite.saved:
        raise UsageError("--saved: found an EXPERIMENT, allowed golden runs only: its checks run")
    config = load_experiment(Path(experiment)) if experiment else None
    if config is None and not goldens:
        raise UsageError("test: found no EXPERIMENT and no golden run in golden; give one of them")
    refuse_same([suite.junit, suite.summary], [experiment, *goldens])
    cases: list[Case] = []
    for target in hardware:
        if config:
            source = Run(Path(run_folder) if run_folder else Path("runs") / config.name)
            act = functools.partial(_experiment, config, source, target, options)
            cases.append(Case(config.name, target.name, act))
        cases += suite.golden_cases(goldens, target)
    if options.dry_run:
        text = f"{len(cases)} cases would be run"
        emit(options, "test", {"dry_run": True, "cases": len(cases)}, text)
        return
    suite.run("test", cases)


def _experiment(
    config: Experiment, source: Run, hardware: HardwareConfig, options: Options
) -> Outcome:
    """The checks of an experiment on one target."""
    return run_case(config.name, hardware.name, lambda: _checked(config, source, hardware, options))


def _checked(
    config: Experiment, source: Run, hardware: HardwareConfig, options: Options
) -> Evidence:
    checks = [check for check in config.checks if check.concerns(hardware.name)]
    if not checks:
        named = dict.fromkeys(name for check in config.checks for name in check.on)
        found = f"checks on {', '.join(named)}" if named else "no checks"
        raise UnsupportedError(
            f"{config.name}: found {found}, none for --hw {hardware.name}; name it in a check's "
            "`on:` (a target of your own by its .yaml file), or give another --hw"
        )
    network: Network = load_as(source.network, Network)
    chip = load_chip(hardware.chip)
    site = Site.of(hardware, network.populations)
    program: Program = compile_program(network, chip, hardware.weight_bits, site=site)
    check_runnable(program, hardware)
    given = gather_input(program, None, (), None, False)
    note(options, f"{config.name} on {hardware.name}: {given.source}")
    recording = run(program, hardware, given, None, options)
    measured = measure(recording, program.network.outputs[0], program.network.readout, given.labels)
    results = [check_measured(check, measured) for check in checks]
    verdicts = tuple(
        Verdict(r["metric"], str(r["found"]), r["allowed"], r["passed"]) for r in results
    )
    facts = {
        "program": program.fingerprint,
        "chip": program.chip,
        "backend": recording.backend,
        "samples": given.n_samples,
        "wall_time": recording.wall_time,
        **{k: recording.provenance[k] for k in ("attempts", "models") if k in recording.provenance},
    }
    return Evidence(verdicts, facts)
