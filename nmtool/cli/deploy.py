"""nmtool deploy: run a program on a target, measure, check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nmtool import formats
from nmtool.backends import Recording, check_runnable, open_session, resolve_probe
from nmtool.backends.base import Probe
from nmtool.chip import HardwareConfig
from nmtool.cli.common import FILE, Options, emit, note, progress, table, verb, warn
from nmtool.cli.costs import Costing, cost_options, costing
from nmtool.cli.runs import Given, gather_input, input_options
from nmtool.compiler import Program
from nmtool.config import Check
from nmtool.errors import CheckFailed
from nmtool.formats.container import refuse_overwrite
from nmtool.formats.sessionlog import find_target
from nmtool.measure import Measurement, measure
from nmtool.network import counted
from nmtool.provenance import provenance


@click.command("deploy")
@click.argument("program", type=FILE)
@click.option(
    "--hw",
    default="emulator",
    show_default=True,
    help="Target by name or YAML file, or replay:FILE, a log of one.",
)
@input_options
@click.option("--labels", type=FILE, metavar="FILE.npy", help="Classes of --input.")
@click.option("--probe", help="What to record: spikes,current,voltage, or voltage:NAME.")
@cost_options
@click.option("-o", "--output", type=FILE, help="Recording file.")
@verb
def command(
    program: str,
    hw: str,
    data: str | None,
    input_files: tuple[str, ...],
    encode: bool,
    labels: str | None,
    probe: str | None,
    cost: bool,
    cost_model: str | None,
    output: str | None,
    options: Options,
) -> None:
    """Run PROGRAM on a target, measure what comes back, and check it."""
    hardware = find_target(hw, options.hardware_overrides())
    costs = costing(cost, cost_model, hardware)
    loaded: Program = formats.load_as(program, Program)
    given = gather_input(loaded, data, input_files, labels, encode)
    if output:
        refuse_overwrite(Path(output), options.force)
    if options.dry_run:
        check_runnable(loaded, hardware)
        _probed(loaded, hardware, probe, costs)
        emit(options, "deploy", {"dry_run": True}, f"{program} can run on {hardware.name}")
        return
    if costs:
        note(options, f"--cost: records the {_listed(costs.probe)} of all populations")
    recording = run(loaded, hardware, given, probe, options, costs)
    if output:
        formats.save(output, recording)
    report(loaded, hardware, given, recording, costs, output, options)


def run(
    program: Program,
    hardware: HardwareConfig,
    given: Given,
    probe: str | None,
    options: Options,
    costs: Costing | None = None,
) -> Recording:
    """Run samples on a target; the recording's provenance says on which."""
    chosen = _probed(program, hardware, probe, costs)
    outputs = dict.fromkeys((*chosen.get("spikes", ()), *program.network.outputs))
    chosen = {**chosen, "spikes": tuple(n for n in program.order if n in outputs)}
    with (
        progress(options, f"run on {hardware.name}") as update,
        open_session(program, hardware) as session,
    ):
        n_steps = None if given.spikes else program.reset.n_steps
        recording = session.run(given.spikes, n_steps, chosen, update)
    facts = provenance(
        target=hardware.model_dump(mode="json", by_alias=True),
        input=given.source,
        state_thresholds=thresholds(program),
        **recording.provenance,
    )
    return replace(recording, provenance=facts)


def thresholds(program: Program) -> dict[str, int | None]:
    """Thresholds by population in the units of v, in data-flow order; sigma decoders have none."""
    populations = {name: program.network.populations[name] for name in program.order}
    return {
        n: None if p.model == "sigma" else p.effective_threshold for n, p in populations.items()
    }


def _listed(probe: str) -> str:
    return " and ".join(probe.replace(",", ", ").rsplit(", ", 1))


def _probed(
    program: Program, hardware: HardwareConfig, probe: str | None, costs: Costing | None
) -> Probe:
    """What is recorded: what ``--probe`` says, else the target, and what costs are counted from."""
    chosen = _asked(program, hardware, probe)
    return costs.probed(program, chosen) if costs else chosen


def _asked(program: Program, hardware: HardwareConfig, probe: str | None) -> Probe:
    """What ``--probe`` says, else the target."""
    if probe is not None:
        return resolve_probe(program, probe)
    wanted = hardware.probes.spikes
    if wanted == "outputs":
        return resolve_probe(program, None)
    if wanted == "all":
        return resolve_probe(program, "spikes")
    return resolve_probe(program, {"spikes": tuple(wanted)})


def report(
    program: Program,
    hardware: HardwareConfig,
    given: Given,
    recording: Recording,
    costs: Costing | None,
    output: str | None,
    options: Options,
) -> None:
    """Print the measurement, and what it costs if that is asked for, and check it.

    Raises:
        CheckFailed: a number is outside what the experiment demands of this target.
    """
    net = program.network
    measured = measure(recording, net.outputs[0], net.readout, given.labels)
    results = [
        check_measured(check, measured) for check in net.checks if check.concerns(hardware.name)
    ]
    for event, what in (
        ("wrapped", "currents wrapped around"),
        ("saturated", "voltages saturated"),
    ):
        if count := recording.provenance.get(event):
            warn(f"{count} {what} at the chip's 24 bits")
    asked = next((train.n_steps for train in given.spikes.values()), program.reset.n_steps)
    if recording.n_steps < asked:
        warn(f"recorded {recording.n_steps} of {asked} steps of each sample")
    if net.checks and not results:
        note(options, f"no check of the program is for {hardware.name}")
    attempts = recording.provenance.get("attempts", [])
    if attempts:
        warn(f"passed only on retry: {len(attempts)} of {len(attempts) + 1} attempts failed")
    if hardware.faults:
        note(options, f"{hardware.name} is a {hardware.faults.label}")
    document = {
        "target": hardware.name,
        "backend": recording.backend,
        "program": program.fingerprint,
        "input": given.source,
        "samples": given.n_samples,
        "steps": recording.n_steps,
        "measured": measured.as_json(),
        "checks": results,
        "attempts": attempts,
        "recording": output,
    }
    text = _text(hardware, given, measured, results, output)
    if costs:
        document["cost"], shown = costs.report(program, recording, given)
        text = f"{text}\n{shown}"
    retried = [f"PASSED ONLY ON RETRY after {a['step']}: {a['error']}" for a in attempts]
    emit(options, "deploy", document, "\n".join([text, *retried]))
    if failed := [r for r in results if not r["passed"]]:
        raise CheckFailed(
            "\n".join(
                f"check {r['metric']} on {hardware.name}: found {r['found']}, "
                f"allowed {r['allowed']}"
                for r in failed
            )
        )


def check_measured(check: Check, measured: Measurement) -> dict[str, Any]:
    """What a check of the experiment says of a measurement."""
    quantity = measured.quantities.get(check.metric)
    low = 0.0 if check.min is None else check.min
    high = 1.0 if check.max is None else check.max
    found = quantity.value if quantity else None
    return {
        "metric": check.metric,
        "found": found if found is not None else "nothing (no labels)",
        "allowed": f"{low:g} to {high:g}",
        "passed": found is not None and low <= found <= high,
    }


def _text(
    hardware: HardwareConfig,
    given: Given,
    measured: Measurement,
    results: list[dict[str, Any]],
    output: str | None,
) -> str:
    rows = [
        (name, f"{q.value:.4g}" if q.unit != "spikes" else int(q.value), q.unit, q.basis)
        for name, q in measured.quantities.items()
    ]
    lines = [
        f"{given.source} on {hardware.name} ({measured.backend}), "
        f"{counted(range(given.n_samples), 'sample')}",
        table(("quantity", "value", "unit", "basis"), rows),
    ]
    lines += [
        f"check {r['metric']}: {'passed' if r['passed'] else 'FAILED'} "
        f"({r['found']}, allowed {r['allowed']})"
        for r in results
    ]
    if output:
        lines.append(f"wrote {output}")
    return "\n".join(lines)
