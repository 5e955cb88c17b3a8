"""Bisection: where two runs of a program part first, on which side, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from nmtool.backends import Recording
from nmtool.compiler import Program
from nmtool.fixedpoint import IntArray
from nmtool.measure import Agreement, Difference, compare
from nmtool.measure.equations import Messages, Trace, measured, messages
from nmtool.network import counted
from nmtool.regression.causes import Diagnosis, explain
from nmtool.regression.suspect import Cause, Suspect
from nmtool.spikes import SpikeTrain

Side = Literal["A", "B"]
Row = Literal["A", "B", "program"]
Inputs = Mapping[str, SpikeTrain]

LARGEST = 30_000_000
"""Neuron steps of one population that are looked at together."""

BEFORE, AFTER = 3, 1
"""Steps before and after the first difference that a report shows."""


@dataclass(frozen=True)
class Moment:
    """One step of the neuron in question; states are None where they were not measured.

    ``program`` is what the equations make of what was measured of the neuron's sources.
    """

    side: Row
    step: int
    spike: int
    u: int | None
    v: int | None


@dataclass(frozen=True)
class Arrival:
    """A spike that reached the neuron at the step in question, and its weight there.

    The weight is its stored mantissa times two to the exponent of the projection.
    """

    projection: str
    source: str
    neuron: int
    sent_at: int
    mantissa: int
    weight: int


@dataclass(frozen=True)
class Bisection:
    """The first difference of two runs: where it is, what it looks like, and what explains it.

    ``side`` departs from the program's equations (None: not known, for something that leads there
    was not measured). ``departing`` counts the neurons that depart, by population; ``neurons`` are
    the first of them one by one, where they share no cause.
    """

    agreement: Agreement
    population: str
    sample: int
    step: int
    neuron: int
    side: Side | None
    causes: tuple[Cause, ...]
    threshold: int | None
    moments: tuple[Moment, ...]
    arrivals: tuple[Arrival, ...]
    departing: Mapping[str, int]
    notes: tuple[str, ...] = ()
    neurons: tuple[Diagnosis, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        own = {k: v for k, v in vars(self).items() if k != "agreement"}
        for key in ("causes", "moments", "arrivals", "neurons"):
            own[key] = [asdict(item) for item in own[key]]
        for diagnosis, row in zip(self.neurons, own["neurons"], strict=True):
            row["sure"] = diagnosis.sure
        return {"equal": False, **own, "agreement": self.agreement.as_json()}


def bisect(
    program: Program, inputs: Inputs, a: Recording, b: Recording, before: Program | None = None
) -> Bisection | None:
    """The first difference of two runs of a program on the same inputs; None where they agree.

    A population departs where it does not do what its equations make of the measured spikes of its
    sources. The first departing population in data-flow order is the place, its earliest step the
    step; that of the lowest sample and neuron if several share it.

    Where one recording ends before the other, and both agree up to there, the end is the place: in
    the first population in data-flow order that both have.

    Raises:
        ConfigError: nothing in common, or recordings of different shapes.
    """
    ends = min(a.n_steps, b.n_steps)
    if ends < max([a.n_steps, b.n_steps, *(train.n_steps for train in inputs.values())]):
        begun = {name: train.first_steps(ends) for name, train in inputs.items()}
        found = _bisect(program, begun, _begun(a, ends), _begun(b, ends), before)
        if found is None:
            return _ended(program, a, b) if a.n_steps != b.n_steps else None
        note = f"looked at the first {counted(range(ends), 'step')}, where a recording ends"
        return replace(found, notes=(*found.notes, note))
    return _bisect(program, inputs, a, b, before)


def _bisect(
    program: Program, inputs: Inputs, a: Recording, b: Recording, before: Program | None
) -> Bisection | None:
    """The first difference of two runs of one length."""
    limits = {name: program.network.populations[name].effective_threshold for name in program.order}
    agreement = compare(a, b, program.order, limits)
    if agreement.first is None:
        return None
    sides = {
        "A": _Evidence(program, inputs, a, agreement.first, before),
        "B": _Evidence(program, inputs, b, agreement.first, before),
    }
    for name in program.order:
        for side in ("B", "A"):
            suspect = sides[side].suspects.get(name)
            if suspect is not None and suspect.neurons.size:
                return _found(agreement, sides, side, suspect)
    return _unexplained(program, agreement, sides)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """One of the runs, in the samples that are looked at."""

    program: Program
    inputs: Inputs
    run: Recording
    first: Difference
    before: Program | None

    @cached_property
    def samples(self) -> IntArray:
        """All samples, or as many as can be looked at together, the first difference included."""
        count = next(iter(self.run.spikes.values())).n_samples
        largest = max(self.program.network.sizes.values()) * self.run.n_steps
        most = max(1, LARGEST // largest)
        begin = 0 if self.first.sample < most else self.first.sample
        return np.arange(begin, min(begin + most, count))

    @cached_property
    def sent(self) -> Messages:
        return messages(self.inputs, self.run, self.samples)

    @cached_property
    def masked(self) -> bool:
        return bool(self.run.provenance.get("voltage_masked_at_spikes"))

    @cached_property
    def suspects(self) -> dict[str, Suspect]:
        """The populations that were measured, and all of whose sources were."""
        net = self.program.network
        return {
            name: Suspect(
                self.program,
                name,
                self.sent,
                measured(self.run, name, self.samples),
                self.masked,
                self.before,
            )
            for name in self.program.order
            if name in self.run.spikes
            and not net.populations[name].graded
            and all(p.source in self.sent for p in net.projections.values() if p.target == name)
        }


def _found(
    agreement: Agreement,
    sides: Mapping[str, _Evidence],
    side: Literal["A", "B"],
    suspect: Suspect,
) -> Bisection:
    sample, step, neuron = suspect.first
    why = explain(suspect)
    departing = {
        name: int(other.neurons.size)
        for name, other in sides[side].suspects.items()
        if other.neurons.size
    }
    notes = []
    if not why.causes:
        notes.append("no single change of the population explains what was measured")
    elif unknown := [d.neuron for d in why.neurons if not d.causes]:
        notes.append(
            f"nothing that was tried explains {', '.join(f'neuron {n}' for n in unknown)} exactly"
        )
    if suspect.found.u is None or suspect.found.v is None:
        notes.append("u or v was not measured: causes are those that explain the spikes alone")
    return Bisection(
        agreement,
        suspect.name,
        int(sides[side].samples[sample]),
        step,
        neuron,
        side,
        why.causes,
        suspect.population.effective_threshold,
        (
            *_moments(sides, suspect.name, sample, step, neuron),
            *_steps("program", suspect.expected.of_samples([sample]), step, neuron),
        ),
        tuple(_arrivals(suspect, sample, step, neuron)),
        departing,
        tuple(notes),
        why.neurons,
    )


def _unexplained(
    program: Program, agreement: Agreement, sides: Mapping[str, _Evidence]
) -> Bisection:
    """Both sides keep to the equations wherever that can be seen."""
    first = agreement.first
    assert first is not None
    unseen = [name for name in program.order if name not in sides["B"].suspects]
    note = (
        f"not looked into: {', '.join(unseen)} (it sends graded messages, or its spikes or those "
        "of what leads there were not measured; probe all spikes)"
        if unseen
        else "both sides keep to the program's equations: they were given different inputs"
    )
    sample = int(np.searchsorted(sides["B"].samples, first.sample))
    return Bisection(
        agreement,
        first.population,
        first.sample,
        first.step,
        first.neuron,
        None,
        (),
        first.threshold,
        tuple(_moments(sides, first.population, sample, first.step, first.neuron)),
        (),
        {},
        (note,),
    )


def _ended(program: Program, a: Recording, b: Recording) -> Bisection:
    """The difference of two runs that agree until one of them ends."""
    side: Side = "A" if a.n_steps < b.n_steps else "B"
    end, asked = sorted((a.n_steps, b.n_steps))
    name = next(n for n in program.order if n in a.spikes and n in b.spikes)
    words = f"{side} ends after {end} of {counted(range(asked), 'step')}, and agrees until then"
    moments: list[Moment] = []
    sides: tuple[tuple[Side, Recording], ...] = (("A", a), ("B", b))
    for row, run in sides:
        moments += _steps(row, measured(run, name, np.arange(1)), end, 0)
    return Bisection(
        compare(_begun(a, end), _begun(b, end), program.order),
        name,
        0,
        end,
        0,
        side,
        (Cause("truncated recording", words),),
        program.network.populations[name].effective_threshold,
        tuple(moments),
        (),
        {},
        ("the neuron is the first of the population: all of them end there",),
    )


def _begun(run: Recording, steps: int) -> Recording:
    """The first steps of a run."""
    return replace(
        run,
        spikes={name: train.first_steps(steps) for name, train in run.spikes.items()},
        current={name: a[..., :steps] for name, a in run.current.items()},
        voltage={name: a[..., :steps] for name, a in run.voltage.items()},
        n_steps=steps,
    )


def _moments(
    sides: Mapping[str, _Evidence], name: str, sample: int, step: int, neuron: int
) -> list[Moment]:
    """The steps around the first difference, on both sides."""
    found: list[Moment] = []
    for side in get_args(Side):
        evidence = sides[side]
        if name in evidence.run.spikes:
            trace = measured(evidence.run, name, evidence.samples[sample : sample + 1])
            found += _steps(side, trace, step, neuron)
    return found


def _steps(side: Row, trace: Trace, step: int, neuron: int) -> list[Moment]:
    """The steps around one step of a neuron in the only sample of a trace."""
    found = []
    for t in range(max(0, step - BEFORE), min(step + AFTER + 1, trace.spikes.shape[1])):
        u, v = (None if x is None else int(x[0, t, neuron]) for x in (trace.u, trace.v))
        found.append(Moment(side, t, int(trace.spikes[0, t, neuron]), u, v))
    return found


def _arrivals(suspect: Suspect, sample: int, step: int, neuron: int) -> list[Arrival]:
    """The spikes that reached the neuron at a step, through weights other than 0."""
    found = []
    for key, p in suspect.projections.items():
        synapses = suspect.synapses(key, neuron)
        weight = p.weight.ravel()
        when = step - synapses.steps
        for i in np.flatnonzero(when >= 0):
            source, at = int(synapses.source[i]), int(when[i])
            index = synapses.index[i]
            if weight[index] and suspect.sent[p.source][sample, at, source]:
                stored, value = int(p.weight_mantissa.flat[index]), int(weight[index])
                found.append(Arrival(key, p.source, source, at, stored, value))
    return found


def smallest_input(
    inputs: Inputs, found: Bisection, shows: Callable[[Inputs], bool] | None, budget: int = 60
) -> tuple[dict[str, SpikeTrain], bool]:
    """The smallest input that still shows a difference, and whether that was tried.

    The sample of the difference, cut after its step, with as many spikes left out as ``budget``
    trials find (halving the pieces that are left out, as delta debugging does). Where it shows only
    behind the samples before, these are kept, without their spikes if it shows all the same.
    ``shows`` runs both sides; without it nothing can be tried, and the sample is only cut.
    """
    cut = {name: _cut(train, [found.sample], found.step + 1) for name, train in inputs.items()}
    if shows is None:
        return cut, False
    if not shows(cut):
        whole = list(range(found.sample + 1))
        cut = {name: _cut(train, whole, train.n_steps) for name, train in inputs.items()}
        if not shows(cut):
            return cut, False
        shorter = {name: _cut(train, whole, found.step + 1) for name, train in cut.items()}
        cut = shorter if shows(shorter) else cut
        emptied = {
            name: _without(train, np.flatnonzero(train.sample < found.sample))
            for name, train in cut.items()
        }
        cut = emptied if shows(emptied) else cut
    for name in cut:
        budget = _thin_out(cut, name, shows, budget)
    return cut, True


def _cut(train: SpikeTrain, samples: list[int], steps: int) -> SpikeTrain:
    raster = train.batch()[samples, :, :steps]
    return SpikeTrain.from_raster(raster, train.payload is not None)


def _thin_out(
    inputs: dict[str, SpikeTrain], name: str, shows: Callable[[Inputs], bool], budget: int
) -> int:
    """Leave out spikes of one input while the difference still shows; returns what is left."""
    pieces = 2
    while budget > 0:
        train = inputs[name]
        chunks = [c for c in np.array_split(np.arange(len(train)), pieces) if c.size]
        for chunk in chunks:
            budget -= 1
            trial = {**inputs, name: _without(train, chunk)}
            if budget >= 0 and shows(trial):
                inputs.update(trial)
                break
        else:
            if pieces >= len(train):
                return budget
            pieces *= 2
    return budget


def _without(train: SpikeTrain, events: IntArray) -> SpikeTrain:
    keep = np.ones(len(train), dtype=np.bool_)
    keep[events] = False
    return SpikeTrain.from_events(
        train.sample[keep],
        train.step[keep],
        train.neuron[keep],
        train.n_samples,
        train.n_neurons,
        train.n_steps,
        None if train.payload is None else train.payload[keep],
        train.batched,
    )


def cut_recording(run: Recording, found: Bisection) -> Recording:
    """What a run has of the sample of a difference, up to its step."""
    steps = found.step + 1
    samples = [found.sample]

    def states(arrays: Mapping[str, IntArray]) -> dict[str, IntArray]:
        whole = {name: a if a.ndim == 3 else a[None] for name, a in arrays.items()}
        return {name: a[samples, :, :steps] for name, a in whole.items()}

    facts = {key: value for key, value in run.provenance.items() if key != "input_sha256"}
    return replace(
        run,
        provenance=facts,
        spikes={name: _cut(train, samples, steps) for name, train in run.spikes.items()},
        current=states(run.current),
        voltage=states(run.voltage),
        n_steps=steps,
    )
