"""What is wrong with a target, told before anything is learned on it.

Random input runs on the target with the weights that are there and with random ones, which make
every neuron spike; the weights are put back. Each population is then held against its equations,
fed with what was measured of its sources (:mod:`nmtool.learning.evidence`), and every neuron that
departs from them gets the fault that explains it best (:mod:`nmtool.learning.hypotheses`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from nmtool.compiler import Program
from nmtool.errors import AlignmentError
from nmtool.fixedpoint import BoolArray, FloatArray
from nmtool.learning.align import Alignment, align, simulated
from nmtool.learning.board import Board
from nmtool.learning.evidence import LOSS_FLOOR, Evidence, Observed, Tally, collect
from nmtool.learning.hypotheses import judge, judge_population
from nmtool.learning.patterns import drawn_weights, probe_pattern
from nmtool.training.injection import Measured

Kind = Literal[
    "dead",
    "stuck",
    "dead_core",
    "threshold",
    "decay_u",
    "decay_v",
    "weight_bit",
    "stale_write",
    "swapped",
    "lost_spike",
    "late_spike",
    "spike_loss",
    "delay",
    "reset_phase",
    "missing_reset",
    "io_offset",
    "truncated",
    "missing_probe",
    "unexplained",
]

WRITTEN = 2
"""Runs with random weights, beside the one with the weights that are there."""

LONGER = (1, 4, 16)
"""How many times the samples of the probe pattern run, in turn, until the offsets are clear."""

CONFIDENT = 0.5
"""Findings below this are told as unexplained."""

CORE_FAILS = 0.02
"""The chance of a failed core, before anything is known."""

FEWEST = 5
"""Missing spikes that show more than single lost ones."""

UNABLE = ("dead", "stuck", "dead_core")
"""What keeps a neuron from learning."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a target.

    Attributes:
        kind: what.
        confidence: 0 to 1, the posterior of the kind among all that were tried.
        evidence: where exactly and what shows it, for people.
        population: in which; empty where it is no population's own.
        neurons: of the population; empty where all of it is meant.
        details: where exactly, as plain values.
    """

    kind: Kind
    confidence: float
    evidence: str
    population: str = ""
    neurons: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        place = f" {self.population}" if self.population else ""
        listed = ", ".join(map(str, self.neurons[:8]))
        more = f" and {len(self.neurons) - 8} more" if len(self.neurons) > 8 else ""
        neurons = f" neuron {listed}{more}" if self.neurons else ""
        return f"{self.kind}{place}{neurons} ({self.confidence:.0%}): {self.evidence}"


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about a target.

    Attributes:
        findings: what is wrong with it.
        alignment: where its recordings lie.
        sizes: neurons of every population.
        untested: neurons of which nothing can be said: not measured, or nothing makes them spike.
        silent: neurons that never spiked though spikes were due, beside those found dead.
    """

    findings: tuple[Finding, ...]
    alignment: Alignment
    sizes: Mapping[str, int]
    untested: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    silent: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def healthy(self) -> dict[str, FloatArray]:
        """1 for neurons that can learn, 0 for dead, stuck and silent ones and failed cores'."""
        masks = {name: np.ones(size) for name, size in self.sizes.items()}
        for name, neurons in self.silent.items():
            masks[name][list(neurons)] = 0.0
        for finding in self.findings:
            if finding.kind == "dead_core":
                for name, neurons in finding.details["held"].items():
                    masks[name][neurons] = 0.0
            elif finding.kind in UNABLE:
                masks[finding.population][list(finding.neurons)] = 0.0
        return masks

    @property
    def failed_cores(self) -> tuple[tuple[int, int], ...]:
        """Failed cores as (chip, core): what a target's ``excluded_cores`` takes."""
        cores = (f.details for f in self.findings if f.kind == "dead_core")
        return tuple((found["chip"], found["core"]) for found in cores)

    def counts(self) -> dict[str, list[int]]:
        """Dead and stuck neurons of every population; silent ones and failed cores' are dead."""
        found = {name: [len(self.silent.get(name, ())), 0] for name in self.sizes}
        for finding in self.findings:
            if finding.kind == "dead_core":
                for name, neurons in finding.details["held"].items():
                    found[name][0] += len(neurons)
            elif finding.kind in UNABLE:
                found[finding.population][finding.kind == "stuck"] += len(finding.neurons)
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "findings": [
                {
                    "kind": f.kind,
                    "population": f.population,
                    "neurons": list(f.neurons),
                    "confidence": f.confidence,
                    "evidence": f.evidence,
                    "details": dict(f.details),
                }
                for f in self.findings
            ],
            "alignment": self.alignment.as_json(),
            "untested": {name: list(neurons) for name, neurons in self.untested.items()},
            "silent": {name: list(neurons) for name, neurons in self.silent.items()},
            "failed_cores": [list(core) for core in self.failed_cores],
        }

    def text(self) -> str:
        """The same for people, one finding a line."""
        lines = [self.alignment.text()]
        lines += [f"  {finding}" for finding in self.findings]
        for name, neurons in self.silent.items():
            listed = ", ".join(map(str, neurons))
            lines.append(
                f"  silent {name} neuron {listed}: never spiked though spikes were due, too few to "
                "tell a dead neuron; not driven"
            )
        lines = lines if len(lines) > 1 else [*lines, "  nothing is wrong"]
        for name, neurons in self.untested.items():
            lines.append(f"  untested: {len(neurons)} of {self.sizes[name]} neurons of {name}")
        return "\n".join([*lines, *(f"  {advice}" for advice in self.advice)])

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do about failed cores."""
        if not (cores := self.failed_cores):
            return ()
        named = ", ".join(f"[{chip}, {core}]" for chip, core in cores)
        return (f"compile around the failed cores: -s 'hw.excluded_cores=[{named}]'",)

    def checked(self) -> Alignment:
        """The alignment with an offset for every population.

        Raises:
            AlignmentError: there is no such one; says which cores have failed.
        """
        try:
            return self.alignment.checked()
        except AlignmentError as error:
            raise AlignmentError("; ".join((str(error), *self.advice))) from None


def probe(board: Board, seed: int) -> tuple[BoolArray, dict[str, Measured], Alignment]:
    """A probe pattern, what was recorded of it, and where that lies.

    Where no offset stands out, the pattern is run again with more samples.

    Raises:
        AlignmentError: several offsets fit a population about as well, in the most samples too.
        UnsupportedError, BoardError: as ``diagnose``.
    """
    *some, most = LONGER
    for times in some:
        with contextlib.suppress(AlignmentError):
            return _probed(board, seed, times)
    return _probed(board, seed, most)


def _probed(
    board: Board, seed: int, times: int
) -> tuple[BoolArray, dict[str, Measured], Alignment]:
    inputs = probe_pattern(board.program, seed, times)
    records = board.run(inputs)
    return inputs, records, align(board.program, inputs, records)


def diagnose(board: Board, seed: int = 0, write: bool = True) -> Diagnosis:
    """Find out what is wrong with the target of a board. Its alignment is found afresh.

    Args:
        board: what it measures is what can be told.
        seed: of the input and of the random weights.
        write: also run with random weights, which are taken back. Without them neurons that the
            weights never make spike are not tested, and writes that do not land are not found.

    Raises:
        AlignmentError: several offsets fit a population about as well.
        UnsupportedError: the program has another input than one of spikes.
        BoardError: the target failed, or answered something else than was asked.
    """
    program = board.program
    raw = replace(board, alignment=None, spent=board.spent)
    inputs, records, alignment = probe(raw, seed)
    aligned = replace(raw, alignment=alignment)
    runs = [Observed(program, inputs, alignment.apply(records))]
    runs += _with_random_weights(aligned, seed) if write else []
    evidence = collect(runs)
    judged = {name: _judged(entry) for name, entry in evidence.items()}
    findings = [f for found in judged.values() for f in found.findings]
    untested = _untested(program, judged)
    findings = _failed_cores(program, findings, judged)
    findings += _losses(program, judged, findings)
    findings += _offsets(program, alignment, evidence)
    findings += _incomplete(board, records, inputs.shape[2])
    sizes = {name: program.network.sizes[name] for name in program.order}
    silent = _silent(judged, findings)
    return Diagnosis(tuple(_merged(findings)), alignment, sizes, untested, silent)


def _with_random_weights(board: Board, seed: int) -> list[Observed]:
    """Runs with random weights; those that were there are put back, whatever happens."""
    before = {n: p.weight_mantissa for n, p in board.program.network.projections.items()}
    found: list[Observed] = []
    try:
        for index in range(WRITTEN):
            inputs = probe_pattern(board.program, seed + 1000 * (index + 1))
            (entrance,) = board.program.network.inputs
            sent = {entrance: simulated(board.program, inputs)[entrance]}
            weights, _ = drawn_weights(board.program, sent, seed, index)
            board.write(weights)
            found.append(Observed(board.program, inputs, board.run(inputs)))
    finally:
        board.write(before)
    return found


@dataclass(frozen=True, eq=False)
class _Judged:
    """A population, with a fault of all of it taken into account, and what was found in it."""

    evidence: Evidence
    findings: tuple[Finding, ...]
    tested: BoolArray


def _judged(evidence: Evidence) -> _Judged:
    findings: list[Finding] = []
    tested = evidence.tested
    if shared := judge_population(evidence):
        fault, confidence = shared
        details = dict(fault.details)
        findings.append(
            Finding(fault.kind, confidence, fault.words, evidence.name, (), details)  # type: ignore[arg-type]
        )
        evidence = fault.evidence
    findings += _of_neurons(evidence)
    return _Judged(evidence, tuple(findings), tested | evidence.tested)


def _of_neurons(evidence: Evidence) -> Iterator[Finding]:
    """What is wrong with single neurons."""
    floor = evidence.noise.loss <= LOSS_FLOOR
    suspicious = evidence.tally.wrong > 0 if floor else ~evidence.noise.allows(evidence.tally)
    for neuron in np.flatnonzero(suspicious):
        verdict, place = judge(evidence, int(neuron)), (int(neuron),)
        best = verdict.best
        if not best.kind:
            yield from _residual(evidence, int(neuron), verdict.confidence)
        elif verdict.explained and verdict.confidence >= CONFIDENT:
            details = dict(best.details)
            kind: Any = best.kind
            yield Finding(kind, verdict.confidence, best.words, evidence.name, place, details)
        else:
            words = f"nothing explains {int(evidence.tally.wrong[neuron])} residual spikes"
            words += f"; nearest: {best.kind}, {best.words}"
            yield Finding("unexplained", verdict.confidence, words, evidence.name, place)


def _residual(evidence: Evidence, neuron: int, confidence: float) -> Iterator[Finding]:
    """Single spikes of a healthy neuron that are missing, where none are lost by chance."""
    tally = evidence.tally.at(neuron)
    if evidence.noise.loss > LOSS_FLOOR or not tally.wrong:
        return
    missing = evidence.predicted & ~evidence.found & evidence.known
    if tally.extra:
        words = f"{int(tally.wrong)} residual spikes that nothing explains"
        yield Finding("unexplained", confidence, words, evidence.name, (neuron,))
        return
    sample, step = (int(i) for i in np.argwhere(missing[..., neuron])[0])
    words = (
        f"{int(tally.missing)} of {int(tally.due)} spikes are missing, the first of sample "
        f"{sample} at step {step}"
    )
    details = {"sample": sample, "step": step, "count": int(tally.missing)}
    yield Finding("lost_spike", confidence, words, evidence.name, (neuron,), details)


def _untested(program: Program, judged: Mapping[str, _Judged]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in program.order:
        tested = judged[name].tested if name in judged else np.zeros(program.network.sizes[name])
        if neurons := tuple(int(i) for i in np.flatnonzero(~np.asarray(tested, dtype=np.bool_))):
            found[name] = neurons
    return found


def _silent(
    judged: Mapping[str, _Judged], findings: Iterable[Finding]
) -> dict[str, tuple[int, ...]]:
    """Neurons that never spiked though spikes were due, and that are not found dead."""
    dead = {(f.population, n) for f in findings if f.kind == "dead" for n in f.neurons}
    dead |= {
        (name, n)
        for f in findings
        if f.kind == "dead_core"
        for name, held in f.details["held"].items()
        for n in held
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in judged.items():
        tally = entry.evidence.tally
        quiet = np.flatnonzero((tally.due > 0) & (tally.hits + tally.extra == 0))
        if neurons := tuple(int(n) for n in quiet if (name, int(n)) not in dead):
            found[name] = neurons
    return found


def _failed_cores(
    program: Program, findings: list[Finding], judged: Mapping[str, _Judged]
) -> list[Finding]:
    """Dead neurons as failed cores, where all that was tested on a core is dead."""
    dead = {(f.population, n) for f in findings if f.kind == "dead" for n in f.neurons}
    tested = {(n, int(i)) for n, j in judged.items() for i in np.flatnonzero(j.tested)}
    cores: dict[tuple[int, int], dict[str, list[int]]] = {}
    for part in program.placement:
        held = cores.setdefault((part.chip, part.core), {})
        neurons = part.neurons(program.network.shapes[part.population])
        held.setdefault(part.population, []).extend(map(int, neurons))
    failed: list[Finding] = []
    for (chip, core), held in cores.items():
        here = {(name, n) for name, neurons in held.items() for n in neurons} & tested
        if len(here) < 2 or not here <= dead:
            continue
        others = tested - here
        rate = max(len(dead & others) / len(others) if others else 0.0, CORE_FAILS)
        confidence = CORE_FAILS / (CORE_FAILS + rate ** len(here))
        if confidence < CONFIDENT:
            continue
        words = f"chip {chip} core {core}: all {len(here)} neurons on it that were tested are dead"
        details = {"chip": chip, "core": core, "held": held}
        failed.append(Finding("dead_core", confidence, words, "", (), details))
        dead -= here
    alone = [f for f in findings if f.kind != "dead" or (f.population, f.neurons[0]) in dead]
    return [*failed, *alone]


def _losses(
    program: Program, judged: Mapping[str, _Judged], findings: Iterable[Finding]
) -> Iterator[Finding]:
    """Spikes that are lost by chance, told from populations whose sources were all measured."""
    wrong = {(f.population, n) for f in findings for n in f.neurons}
    wrong |= {
        (name, n)
        for f in findings
        if f.kind == "dead_core"
        for name, held in f.details["held"].items()
        for n in held
    }
    inner = [name for name in judged if not _from_inputs(program, name)]
    tallies = [
        _healthy_tally(judged[name], {n for p, n in wrong if p == name}, bool(inner))
        for name in inner or judged
    ]
    missing, due = (
        np.concatenate([getattr(t, part) for t in tallies]) for part in ("missing", "due")
    )
    lost, sent = int(missing.sum()), int(due.sum())
    chance = float(binom.sf(lost - 1, sent, LOSS_FLOOR)) if lost else 1.0
    if lost < FEWEST or chance > 0.01:
        return
    rate = float(np.median(missing / due))
    basis = "sources were all measured" if inner else "inputs may be lost as well: an upper bound"
    words = f"{lost} of {sent} spikes are missing, {rate:.2%} of those of most neurons ({basis})"
    yield Finding("spike_loss", 1 - chance, words, "", (), {"rate": rate})


def _healthy_tally(judged: _Judged, wrong: set[int], inner: bool) -> Tally:
    """Of neurons that nothing is wrong with; where all sources were measured, lost spikes alone."""
    keep = [n for n in range(judged.tested.size) if n not in wrong]
    tally = judged.evidence.tally.at(keep)
    return tally.at((tally.due > 0) & ((3 * tally.extra <= tally.missing) | (not inner)))


def _from_inputs(program: Program, name: str) -> bool:
    net = program.network
    return any(p.target == name and p.source in net.inputs for p in net.projections.values())


def _offsets(
    program: Program, alignment: Alignment, evidence: Mapping[str, Evidence]
) -> Iterator[Finding]:
    """Steps between model and recording: of all that inputs reach, or of one projection."""
    net, offsets = program.network, alignment.offsets
    first = {n: offsets[n] for n in offsets if _from_inputs(program, n)}
    common = set(first.values())
    shared = common.pop() if len(common) == 1 else 0
    if shared:
        words = (
            f"recordings are {abs(shared)} steps {'late' if shared > 0 else 'early'}: the inputs, "
            "the probes, or a projection that all input takes"
        )
        yield Finding("io_offset", 1.0, words, "", (), {"by": shared})
    for name, steps in offsets.items():
        into = {k: p.source for k, p in net.projections.items() if p.target == name}
        before = {offsets.get(source, shared) for source in into.values()}
        expected = before.pop() if len(before) == 1 else shared
        if name in first:
            expected = shared
        if steps != expected and name in evidence:
            words = f"spikes into {name} come {abs(steps - expected)} steps "
            words += "late" if steps > expected else "early"
            details = {
                "projection": next(iter(into)) if len(into) == 1 else None,
                "by": steps - expected,
            }
            yield Finding("delay", 1.0, words, name, (), details)


def _incomplete(board: Board, records: Mapping[str, Measured], steps: int) -> Iterator[Finding]:
    """Recordings that end early, and populations that were asked for and did not come."""
    asked = board.probes.spikes if board.probes else board.program.order
    for name in asked:
        if name not in records:
            words = "was asked for and not recorded: the model's spikes take its place"
            yield Finding("missing_probe", 1.0, words, name)
    ends = {int(m.known.any(axis=(0, 1)).sum()) for m in records.values()}
    if ends and min(ends) < steps:
        words = f"recordings end after {min(ends)} of {steps} steps"
        yield Finding("truncated", 1.0, words, "", (), {"steps": min(ends)})


def _merged(findings: list[Finding]) -> list[Finding]:
    """Findings of one shared weight as one, and exchanged neurons as one pair."""
    kept: dict[Any, Finding] = {}
    for index, f in enumerate(findings):
        key: Any = index
        if f.kind == "swapped":
            key = ("swapped", f.population, frozenset((*f.neurons, f.details["with"])))
        elif "weights" in f.details:
            weights = (tuple(sorted(w.items(), key=str)) for w in f.details["weights"])
            key = (f.kind, f.population, tuple(weights))
        if key in kept:
            before = kept[key]
            neurons = tuple(sorted({*before.neurons, *f.neurons}))
            confidence = max(before.confidence, f.confidence)
            kept[key] = replace(before, neurons=neurons, confidence=confidence)
        else:
            kept[key] = f
    return list(kept.values())
