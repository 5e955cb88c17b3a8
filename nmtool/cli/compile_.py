"""nmtool compile: trained network to program."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from nmtool import formats
from nmtool.backends import LIMITS, limits_of
from nmtool.backends.base import refuse_unsupported
from nmtool.backends.limits import Limits
from nmtool.chip import (
    ChipSpec,
    HardwareConfig,
    backend_hint,
    is_chip,
    load_chip,
    load_hardware,
    shipped,
)
from nmtool.cli.common import FILE, Options, emit, table, verb, warn
from nmtool.cli.runs import load_network
from nmtool.compiler import DEFAULT_STEPS, Program, compile_program
from nmtool.compiler.cautions import cautions
from nmtool.compiler.features import FEATURES, Feature, features
from nmtool.errors import ConfigError, UsageError
from nmtool.formats.container import refuse_overwrite
from nmtool.formats.netx import notes
from nmtool.provenance import provenance, sha256


@click.command("compile")
@click.argument("source", type=FILE, required=False)
@click.option("--hw", help="Target, or chip, by name or YAML file.")
@click.option("-o", "--output", type=FILE, help="Program file [default: beside SOURCE].")
@click.option(
    "--steps",
    type=click.IntRange(1, 1_000_000),
    help="Steps of a sample [default: those of the encoding; "
    f"{DEFAULT_STEPS} if there is none, as in netx files].",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Show which layers, neurons and inputs each backend runs, and which SOURCE has.",
)
@verb
def command(
    source: str | None,
    hw: str | None,
    output: str | None,
    steps: int | None,
    explain: bool,
    options: Options,
) -> None:
    """Quantise, check and compile SOURCE (run folder, network or netx file) for a target.

    Prints what became of every parameter.
    """
    if source is None or hw is None:
        if not explain or source is not None or hw is not None:
            missing = "SOURCE, a network" if source is None else "--hw, a target or chip"
            raise UsageError(f"compile: found no {missing}; add it (only --explain runs alone)")
        emit(options, "explain", {"features": support({}, LIMITS)}, _explained({}, LIMITS))
        return
    hardware, chip = _target(hw, options)
    path = Path(source)
    network_file = path / "network.h5" if path.is_dir() else path
    target_file = Path(output) if output else network_file.parent / "program.h5"
    network = load_network(path, chip)
    if not explain:  # which writes nothing
        refuse_overwrite(target_file, options.force)
    bits = hardware.weight_bits if hardware else None
    program = compile_program(
        network,
        chip,
        bits,
        steps,
        provenance(network_sha256=sha256(network_file), target=hardware.name if hardware else hw),
    )
    used = features(program)
    if explain:
        limits = {**LIMITS, hardware.name: limits_of(hardware)} if hardware else LIMITS
        emit(options, "explain", {"features": support(used, limits)}, _explained(used, limits))
        return
    if hardware:
        refuse_unsupported(hardware.backend, limits_of(hardware), program)
    for line in (*notes(program.network), *cautions(program)):
        warn(line)
    if not options.dry_run:
        formats.save(target_file, program)
    document = {
        "program": None if options.dry_run else str(target_file),
        "fingerprint": program.fingerprint,
        "chip": program.chip,
        "latency": program.latency,
        "reset": asdict(program.reset),
        "parameters": [asdict(error) for error in program.network.errors],
        "simulators_only": list(program.simulators_only),
        "notes": notes(program.network),
        "cautions": cautions(program),
        "bounds": [{**asdict(b), "safe": b.safe} for b in program.bounds],
    }
    emit(options, "compile", document, _text(program, target_file, options))


def support(
    used: Mapping[Feature, list[str]], backends: Mapping[str, Limits]
) -> list[dict[str, object]]:
    """For every kind of layer, neuron and input: which backend runs it, and who uses it."""
    return [
        {
            "feature": feature,
            "used_by": used.get(feature, []),
            **{name: limits.get(feature) or True for name, limits in backends.items()},
        }
        for feature in FEATURES
    ]


def _explained(used: Mapping[Feature, list[str]], backends: Mapping[str, Limits]) -> str:
    rows = [
        (
            feature,
            *("no" if feature in limits else "yes" for limits in backends.values()),
            ", ".join(used.get(feature, [])),
        )
        for feature in FEATURES
    ]
    reasons = [
        f"{name}, {feature}: {reason}"
        for name, limits in backends.items()
        for feature, reason in limits.items()
    ]
    header = ("layer, neuron or input", *backends, "in this network" if used else "")
    return "\n".join((table(header, rows), "", *reasons))


def _target(name: str, options: Options) -> tuple[HardwareConfig | None, ChipSpec]:
    """A target and its chip, or a chip alone."""
    overrides = options.hardware_overrides()
    if is_chip(name):
        if overrides:
            raise UsageError(f"-s hw.{overrides[0]}: {name} is a chip, allowed for targets")
        return None, load_chip(name)
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        _check_name(name)
    hardware = load_hardware(name, overrides)
    return hardware, load_chip(hardware.chip)


def _check_name(name: str) -> None:
    known = [*shipped("targets"), *shipped("chips")]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"target or chip {name}: unknown, allowed {', '.join(known)}, or the path of a "
            f".yaml file{backend_hint(name) or hint}"
        )


def _text(program: Program, path: Path, options: Options) -> str:
    net = program.network
    layers = []
    for name in program.order:
        population = net.populations[name]
        incoming = {n: p for n, p in net.projections.items() if p.target == name}
        layers.append(
            (
                name,
                population.size,
                population.decay_u,
                population.decay_v,
                population.threshold,
                _bias(name, program),
                sum(p.weight_mantissa.size for p in incoming.values()),
                ", ".join(str(p.format) for p in incoming.values()) or "none",
                max((p.delay_max for p in incoming.values()), default=0),
            )
        )
    header = (
        "population",
        "neurons",
        "decay_u",
        "decay_v",
        "threshold",
        "bias",
        "weights",
        "format",
        "delay",
    )
    errors = [
        (
            e.name,
            e.wanted,
            e.got,
            f"{e.max_error:.2e}",
            f"{e.rms_error:.2e}",
            f"{e.clipped:.2%}",
            e.dead_rows,
        )
        for e in net.errors
    ]
    error_header = (
        "parameter",
        "wanted",
        "on the chip",
        "max error",
        "rms error",
        "clipped",
        "dead rows",
    )
    bounds = [
        (b.population, b.current, b.voltage, "yes" if b.safe else "NO") for b in program.bounds
    ]
    bound_header = ("population", "worst |u|", "worst |v|", "inside 24 bits")
    only = ", simulators only (see the warnings)" if program.simulators_only else ""
    ending = "not written (--dry-run)" if options.dry_run else f"wrote {path}"
    return "\n".join(
        (
            f"program {program.fingerprint} for {program.chip}{only}: "
            f"latency {program.latency} steps, samples of {program.reset.n_steps} steps, "
            f"reset held {program.reset.hold} between",
            "",
            table(header, layers),
            "",
            table(error_header, errors),
            "",
            table(bound_header, bounds),
            "",
            ending,
        )
    )


def _bias(name: str, program: Program) -> str:
    """The exponent of the bias mantissas of a population that has any."""
    population = program.network.populations[name]
    driven = any(s.drives == name and s.kind == "bias" for s in program.network.inputs.values())
    if driven or np.any(population.bias_mantissa):
        return f"mantissa x 2^{population.bias_exponent}"
    return "none"
