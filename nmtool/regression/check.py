"""Recording a golden run, and holding a target against one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from nmtool.measure import compare
from nmtool.network import counted
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
        inputs = same_input({str(path): golden.input_sha256, "the saved run": digest(run)})
        runs.append(run)
        known.update(facts(golden, run))
        if keep is not None and saved is None:
            formats.save(keep, run)
        verdicts = tuple(judge(golden, run, policies))
        effect = fault_effect(golden, run) if all(v.passed for v in verdicts) else Effect()
        said = "; ".join(filter(None, (effect.words, inputs)))
        return Evidence(verdicts, known, said, effect.not_covered)

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


def digest(run: Recording) -> str | None:
    """The digest of the input that a run was given; None where it does not say."""
    found = run.provenance.get("input_sha256")
    return found if isinstance(found, str) else None


def same_input(digests: Mapping[str, str | None]) -> str:
    """Refuse runs of different inputs; ``digests`` are by what holds them.

    Returns what to say of those that do not tell their input.

    Raises:
        ArtifactError: two digests differ.
    """
    known = {name: found for name, found in digests.items() if found}
    if len(set(known.values())) > 1:
        found = ", ".join(f"{name} {value[:12]}" for name, value in known.items())
        raise ArtifactError(
            f"found different inputs (SHA-256 {found}), allowed runs of one input: a difference of "
            "inputs says nothing of the targets"
        )
    silent = [name for name in digests if name not in known]
    if not silent:
        return ""
    return f"{' and '.join(silent)}: of which input is not recorded, so it was not compared"


@dataclass(frozen=True)
class Effect:
    """What injected faults did to a run that passes: in words, and those that did nothing."""

    words: str = ""
    not_covered: tuple[Mapping[str, Any], ...] = ()


def fault_effect(golden: Golden, run: Recording) -> Effect:
    """What the injected faults of a target changed, beside a golden run without faults.

    Where nothing that was recorded changed, none of them is covered. Where something did, it is
    not known which of several did it.
    """
    faults = run.provenance.get("faults")
    injected = faults.get("injected") if isinstance(faults, dict) else None
    if not isinstance(injected, list | tuple) or not injected:
        return Effect()
    if golden.expected.provenance.get("faults"):
        return Effect()
    what, they = counted(injected, "injected fault"), "it is" if len(injected) == 1 else "they are"
    change = "changes" if len(injected) == 1 else "change"
    agreement = compare(golden.expected, run, golden.program.order)
    if agreement.equal:
        named = "; ".join(_fault_words(fault) for fault in injected)
        return Effect(
            f"{what} {change} nothing: {they} not covered by this input: {named}", tuple(injected)
        )
    states = sum(population.states or 0 for population in agreement.populations)
    parts = (range(agreement.differing_spikes), "spike"), (range(states), "state")
    found = " and ".join(counted(items, noun) for items, noun in parts if items)
    return Effect(f"{what} {change} {found}, inside the tolerance")


def _fault_words(fault: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key} {value}" if key != "kind" else str(value) for key, value in fault.items()
    )


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
