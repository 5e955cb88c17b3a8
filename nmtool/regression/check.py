"""Recording a golden run, and holding a target against one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nmtool.backends import Progress, Recording, check_runnable, open_session
from nmtool.backends.base import Probe
from nmtool.chip import HardwareConfig
from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.fixedpoint import IntArray
from nmtool.provenance import provenance
from nmtool.regression.golden import Golden, load_golden
from nmtool.regression.policies import judge
from nmtool.regression.suite import Evidence, Outcome, run_case
from nmtool.spikes import SpikeTrain


def record_golden(
    program: Program,
    hardware: HardwareConfig,
    inputs: Mapping[str, SpikeTrain],
    labels: IntArray | None,
    probe: Probe,
    policies: Sequence[str],
    source: str,
    progress: Progress | None = None,
) -> Golden:
    """Run a program on a target and keep everything that is needed to run it again."""
    run = run_on(program, hardware, inputs, probe, progress)
    facts = provenance(
        target=hardware.model_dump(mode="json", by_alias=True), input=source, chip=program.chip
    )
    return Golden(program, dict(inputs), run, labels, tuple(policies), "", facts)


def run_on(
    program: Program,
    hardware: HardwareConfig,
    inputs: Mapping[str, SpikeTrain],
    probe: Probe,
    progress: Progress | None = None,
) -> Recording:
    """One run of a program on a target."""
    check_runnable(program, hardware)
    with open_session(program, hardware) as session:
        run = session.run(inputs, probe=probe, progress=progress)
    target = hardware.model_dump(mode="json", by_alias=True)
    return replace(run, provenance={**run.provenance, "target": target})


def check_golden(
    path: str | Path,
    hardware: HardwareConfig,
    policies: Sequence[str] = (),
    saved: Recording | None = None,
    progress: Progress | None = None,
) -> tuple[Outcome, Recording | None]:
    """Hold a target, or a run of it that was saved, against a golden run.

    Returns how it ended, and the run where there was one.
    """
    runs: list[Recording] = []

    def act() -> Evidence:
        golden = load_golden(path)
        run = saved or run_on(golden.program, hardware, golden.inputs, golden.probe, progress)
        if run.fingerprint != golden.program.fingerprint:
            raise ArtifactError(
                f"{path}: holds the program {golden.program.fingerprint}, the saved run is of "
                f"{run.fingerprint}"
            )
        runs.append(run)
        verdicts = tuple(judge(golden, run, policies))
        return Evidence(verdicts, facts(golden, run), _uncovered(run))

    name = hardware.name
    if saved is not None:
        name = saved.provenance.get("target", {}).get("name", "a saved run")
    outcome = run_case(str(path), name, act)
    return outcome, runs[0] if runs else None


def _uncovered(run: Recording) -> str:
    """What to say where a target with injected faults passes."""
    injected = run.provenance.get("faults", {}).get("injected")
    if not injected:
        return ""
    return f"{len(injected)} injected faults change nothing: they are not covered by this input"


def facts(golden: Golden, run: Recording) -> dict[str, Any]:
    """What a report says about where a verdict is from."""
    return {
        "program": golden.program.fingerprint,
        "chip": golden.program.chip,
        "backend": run.backend,
        "nmtool": version("nmtool"),
        "host": platform.node(),
        "target": run.provenance.get("target", {}).get("name", "unknown"),
        "golden_target": golden.provenance.get("target", {}).get("name", "unknown"),
        "golden_recorded": golden.provenance.get("time", "unknown"),
        "golden_reason": golden.reason,
        "samples": golden.n_samples,
        "steps": golden.expected.n_steps,
        "wall_time": run.wall_time,
        **{key: run.provenance[key] for key in ("attempts", "models") if key in run.provenance},
    }
