"""nmtool compile: trained network to program."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from nmtool import cache, formats
from nmtool.backends import LIMITS, Recording, limits_of
from nmtool.backends.base import refuse_unsupported
from nmtool.cache import Compiled
from nmtool.chip import (
    ChipSpec,
    HardwareConfig,
    backend_hint,
    is_chip,
    load_chip,
    load_hardware,
    shipped,
)
from nmtool.cli.common import FILE, Options, emit, note, refuse_same, verb, warn
from nmtool.cli.explain import explained, support
from nmtool.cli.fitreport import Report
from nmtool.cli.runs import load_network
from nmtool.compiler import DEFAULT_STEPS, Site, compile_program
from nmtool.compiler.activity import activity
from nmtool.compiler.budget import check_budget, most_cores, parse_budget
from nmtool.compiler.cautions import cautions
from nmtool.compiler.features import features
from nmtool.compiler.headroom import headroom
from nmtool.compiler.placement_file import placement_text, read_placement
from nmtool.errors import ArtifactError, ConfigError, UsageError
from nmtool.formats.container import refuse_overwrite, write_text
from nmtool.formats.netx import notes
from nmtool.network import Network
from nmtool.provenance import provenance, sha256
from nmtool.quantization import QuantizedNetwork


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
    "--limits",
    type=click.Choice(["all", "documented"]),
    default="all",
    show_default=True,
    help="documented: what was merely inferred about the chip limits nothing.",
)
@click.option(
    "--budget",
    multiple=True,
    metavar="KEY=NUMBER,...",
    help="What the program may take at most (exit 5 if it takes more): cores, chips, latency, "
    "neurons, synapse_memory (KB), input_axons, output_axons.",
)
@click.option(
    "--placement", type=FILE, help="YAML file of slices and their cores, instead of nmtool's own."
)
@click.option("--placement-out", type=FILE, help="Write the placement to such a file.")
@click.option(
    "--activity",
    type=FILE,
    help="Recording of all populations of this program: place by its spikes.",
)
@click.option("--csv", "csv_file", type=FILE, help="Write the table of layers as CSV.")
@click.option(
    "--map", "map_file", type=FILE, help="Draw which population is on which core (.png .svg .pdf)."
)
@click.option("--no-cache", is_flag=True, help="Compile, whatever was compiled before.")
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
    limits: str,
    budget: tuple[str, ...],
    placement: str | None,
    placement_out: str | None,
    activity: str | None,
    csv_file: str | None,
    map_file: str | None,
    no_cache: bool,
    explain: bool,
    options: Options,
) -> None:
    """Quantise, check, place and compile SOURCE (run folder, network or netx file) for a target.

    Prints what the program takes of the chips; with -v also what became of every parameter.
    """
    if source is None or hw is None:
        if not explain or source is not None or hw is not None:
            missing = "SOURCE, a network" if source is None else "--hw, a target or chip"
            raise UsageError(f"compile: found no {missing}; add it (only --explain runs alone)")
        emit(options, "explain", {"features": support({}, LIMITS)}, explained({}, LIMITS))
        return
    allowed = parse_budget(",".join(budget)) if budget else {}
    hardware, chip = _target(hw, options)
    if limits == "documented":
        chip = chip.documented()
    cores = most_cores(allowed)
    job = Job(Path(source), hw, hardware, chip, limits, steps, placement, activity, cores)
    outputs = Outputs(
        Path(output) if output else job.file.parent / "program.h5",
        *(Path(name) if name else None for name in (csv_file, map_file, placement_out)),
    )
    writes = not (explain or options.dry_run)
    if writes:
        outputs.check(job, options.force)
    compiled = job.compiled(not no_cache, options)
    program = compiled.program
    if explain:
        used = features(program)
        known = {**LIMITS, hardware.name: limits_of(hardware)} if hardware else LIMITS
        emit(options, "explain", {"features": support(used, known)}, explained(used, known))
        return
    if hardware:
        refuse_unsupported(hardware.backend, limits_of(hardware), program)
    check_budget(program, allowed)
    if not writes:  # what is wrong with the network comes first
        outputs.check(job, options.force)
    noted, warned = notes(program.network), cautions(program)
    for line in (*noted, *warned):
        warn(line)
    predicted = hardware is not None and hardware.backend == "lava-loihi"
    report = Report(program, chip, compiled.headroom, limits, allowed, predicted)
    written = outputs.write(report) if writes else []
    document = {
        "program": str(outputs.program) if written else None,
        **report.document(),
        "notes": noted,
        "cautions": warned,
    }
    ending = f"wrote {', '.join(written)}" if written else "not written (--dry-run)"
    emit(options, "compile", document, f"{report.text(options.verbose)}\n\n{ending}")


@dataclass(frozen=True)
class Job:
    """What is compiled, for what, and how."""

    source: Path
    hw: str
    hardware: HardwareConfig | None
    chip: ChipSpec
    limits: str
    steps: int | None
    placement: str | None
    recording: str | None
    core_budget: int | None

    @property
    def file(self) -> Path:
        """The file of the network."""
        return self.source / "network.h5" if self.source.is_dir() else self.source

    def compiled(self, use_cache: bool, options: Options) -> Compiled:
        """The program, from the cache where it has been compiled before."""
        name = self._key() if use_cache else None
        found = cache.find(name, warn) if name else None
        if found:
            if options.verbose:
                note(options, f"from the cache in {cache.folder()}; --no-cache compiles it again")
        else:
            found = self._compile()
            if name and not options.dry_run and name == self._key():  # the files are the same still
                cache.keep(name, found)
        facts = provenance(
            network_sha256=sha256(self.file),
            target=self.hardware.name if self.hardware else self.hw,
            limits=self.limits,
        )
        return replace(found, program=replace(found.program, provenance=facts))

    def _key(self) -> str | None:
        """The key of the cache; None where a file cannot be read, which compiling will say."""
        hardware = self.hardware
        try:
            choices: dict[str, Any] = {
                "netx": self.file.suffix,
                "steps": self.steps,
                "weight_bits": hardware and hardware.weight_bits,
                "chips": hardware and hardware.chips,
                "cores_per_chip": hardware and hardware.cores_per_chip,
                "excluded_cores": hardware and hardware.excluded_cores,
                "probes": hardware and hardware.probes.model_dump(mode="json"),
                "core_budget": self.core_budget,
                "placement": sha256(Path(self.placement)) if self.placement else None,
                "recording": sha256(Path(self.recording)) if self.recording else None,
            }
            return cache.key(self.file, self.chip, choices)
        except OSError:
            return None

    def _compile(self) -> Compiled:
        network = load_network(self.source, self.chip)
        recording = formats.load_as(self.recording, Recording) if self.recording else None
        site = self._site(network, recording)
        bits = self.hardware.weight_bits if self.hardware else None
        program = compile_program(network, self.chip, bits, self.steps, site=site)
        if recording and recording.fingerprint != program.fingerprint:
            raise ArtifactError(
                f"{self.recording}: found a recording of the program "
                f"{recording.fingerprint or '(none)'}, this one is {program.fingerprint}; record "
                "it with `nmtool deploy --probe spikes`, with the same weight bits and steps"
            )
        assert program.fit is not None
        return Compiled(program, headroom(program.network, self.chip, site, program.fit))

    def _site(self, network: Network | QuantizedNetwork, recording: Recording | None) -> Site:
        shapes = {name: p.shape for name, p in network.populations.items()}
        site = Site.of(self.hardware, shapes) if self.hardware else Site()
        site = replace(site, core_budget=self.core_budget)
        if recording:
            site = replace(site, activity=activity(recording.spikes, shapes, str(self.recording)))
        if self.placement:
            given = read_placement(self.placement, shapes, self.chip, site)
            site = replace(site, placement=given)
        return site


@dataclass(frozen=True)
class Outputs:
    """The files that are written."""

    program: Path
    csv: Path | None
    map: Path | None
    placement: Path | None

    def check(self, job: Job, force: bool) -> None:
        """Refuse files that exist, or that are one.

        Raises:
            UsageError: names the file.
            DependencyError: a map without matplotlib.
        """
        paths = [path for path in (self.program, self.csv, self.map, self.placement) if path]
        inputs = [str(job.file), job.placement, job.recording]
        refuse_same([str(path) for path in paths], inputs)
        for path in paths:
            refuse_overwrite(path, force)
        if self.map:
            from nmtool.cli.coremap import check_map

            check_map(self.map)

    def write(self, report: Report) -> list[str]:
        """Write every file, the program last; returns their names.

        Raises:
            WriteError: one cannot be written.
        """
        if self.csv:
            write_text(self.csv, report.csv())
        if self.map:
            from nmtool.cli.coremap import draw_map

            draw_map(self.map, report.program, report.chip)
        if self.placement:
            write_text(self.placement, placement_text(report.program.placement))
        formats.save(self.program, report.program)
        return [str(p) for p in (self.program, self.csv, self.map, self.placement) if p]


def _target(name: str, options: Options) -> tuple[HardwareConfig | None, ChipSpec]:
    """A target and its chip, or a chip alone; a chip with overrides is the emulator's."""
    overrides = options.hardware_overrides()
    if is_chip(name):
        if not overrides:
            return None, load_chip(name)
        hardware = load_hardware("emulator", [f"chip={name}", *overrides])
        return hardware, load_chip(hardware.chip)
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
