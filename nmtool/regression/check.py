"""Recording a golden run, and holding a target against one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nmtool import formats
from nmtool.backends import Progress, Recording, check_runnable, open_session
from nmtool.backends.base import Probe
from nmtool.chip import HardwareConfig
from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.fixedpoint import IntArray
from nmtool.provenance import provenance
from nmtool.regression.coverage import coverage
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
    """Run a program on a target and keep everything that is needed to run it again.

    What makes the run a poor guard stands in its provenance, as ``warnings``.
    """
    run = run_on(program, hardware, inputs, probe, progress)
    facts = provenance(
        target=hardware.model_dump(mode="json", by_alias=True),
        input=source,
        chip=program.chip,
        warnings=doubts(program, hardware, inputs, run),
    )
    return Golden(program, dict(inputs), run, labels, tuple(policies), "", facts)


def doubts(
    program: Program, hardware: HardwareConfig, inputs: Mapping[str, SpikeTrain], run: Recording
) -> list[str]:
    """Why a run would make a poor golden run: it holds defects, or nothing that could be lost."""
    found = []
    if hardware.faults and hardware.faults.model_dump(exclude_defaults=True, exclude={"seed"}):
        found.append(
            f"recorded on {hardware.name}, which has injected faults: what they do counts as right"
        )
    recorded = [name for name in program.network.outputs if name in run.spikes]
    if recorded and not any(len(run.spikes[name]) for name in recorded):
        found.append(f"no spike of the output {', '.join(recorded)}: no answer that could be lost")
    covered = coverage(program, inputs, run)
    if covered:
        shares = {"neurons": covered.neurons, "weights": covered.weights}
        found += [
            f"its input exercises 0 % of the {what}: a fault in one cannot show"
            for what, share in shares.items()
            if not share
        ]
    return found


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
    saved: Recording | Path | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> tuple[Outcome, Recording | None]:
    """Hold a target, or a run of it that was saved, against a golden run.

    A run on the target is written to the file ``keep``. Returns how it ended, and the run where
    there was one.
    """
    runs: list[Recording] = []
    known: dict[str, Any] = {}

    def measured(golden: Golden) -> Recording:
        if isinstance(saved, Path):
            loaded: Recording = formats.load_as(saved, Recording)
            return loaded
        return saved or run_on(golden.program, hardware, golden.inputs, golden.probe, progress)

    def act() -> Evidence:
        golden = load_golden(path)
        run = measured(golden)
        if run.fingerprint != golden.program.fingerprint:
            raise ArtifactError(
                f"{path}: holds the program {golden.program.fingerprint}, the saved run is of "
                f"{run.fingerprint}"
            )
        runs.append(run)
        known.update(facts(golden, run))
        if keep is not None and saved is None:
            formats.save(keep, run)
        return Evidence(tuple(judge(golden, run, policies)), known, _uncovered(run))

    name = hardware.name
    if isinstance(saved, Recording):
        name = target_name(saved.provenance, "a saved run")
    outcome = run_case(str(path), name, act)
    if outcome.status == "error" and known:  # it answered, with something that cannot be judged
        outcome = replace(outcome, evidence=Evidence(provenance=known))
    return outcome, runs[0] if runs else None


def target_name(provenance: Mapping[str, Any], default: str = "unknown") -> str:
    """The target that a file's provenance names."""
    target = provenance.get("target")
    return str(target.get("name", default)) if isinstance(target, dict) else default


def _uncovered(run: Recording) -> str:
    """What to say where a target with injected faults passes."""
    faults = run.provenance.get("faults")
    injected = faults.get("injected") if isinstance(faults, dict) else None
    if not isinstance(injected, list | tuple) or not injected:
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
        "target": target_name(run.provenance),
        "golden_target": target_name(golden.provenance),
        "golden_recorded": golden.provenance.get("time", "unknown"),
        "golden_reason": golden.reason,
        "samples": golden.n_samples,
        "steps": golden.expected.n_steps,
        "wall_time": run.wall_time,
        **({"golden_warnings": list(golden.warnings)} if golden.warnings else {}),
        **{key: run.provenance[key] for key in ("attempts", "models") if key in run.provenance},
    }
