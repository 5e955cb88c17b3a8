r"""Alignment: by how many steps what was recorded comes after what the model does.

The model's step t is the recording's column t + o. Reading in and out, and projections that are
slower than the program says, add steps; a population's offset o is found by correlating what was
recorded of it with what the program would have done, given what was measured of its sources:

.. math::
    c(o) = \frac{\sum_{s,i,t} (m_{sit+o} - \bar m_i)(p_{sit} - \bar p_i)}
    {\sqrt{\sum (m_{sit+o} - \bar m_i)^2 \sum (p_{sit} - \bar p_i)^2}}

over samples s, neurons i and the steps t that were recorded; m are measured and p predicted
spikes, and each neuron's mean is taken off, so that stuck and busy neurons say nothing. A step too
late looks like a worse network and would be learned around; here it is found and taken out.

Where thresholds are not what they should be, neurons spike earlier or later, each by its own. If no
offset stands out each neuron is therefore given the threshold that fits it best, offset by offset,
and c is the mean of the correlations of single neurons.

How far the best offset is from the others is told by what single samples add to the correlation.
Where a source was not measured single neurons must tell it too: what fails in the source moves a
neuron in all samples alike, which no number of samples averages out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nmtool.backends.emulator import EmulatorBackend
from nmtool.compiler import Program
from nmtool.errors import AlignmentError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.measure.equations import all_arriving, biases, replay
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured

WINDOW = range(-4, 9)
"""Offsets that are tried, in steps; none that leaves less than half of a sample."""

MARGIN = 5.0
"""By how many standard errors, over samples, the correlation at the best offset is above any other,
where no offset fits exactly."""

NEURON_MARGIN = 3.0
"""The same over neurons, where sources were not measured."""

SCALES = (0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.8)
"""By what thresholds are multiplied to see whether an offset stands out that does not otherwise."""

Sent = dict[str, IntArray]


@dataclass(frozen=True)
class Offset:
    """Where the recording of a population lies.

    Attributes:
        population: its name.
        steps: recorded column minus model step; None where either side is silent.
        scores: the correlation at every offset that was tried.
        exact: every spike that was recorded is the model's, and every other step as silent.
    """

    population: str
    steps: int | None
    scores: Mapping[int, float]
    exact: bool

    def __str__(self) -> str:
        best = sorted(self.scores, key=lambda o: -self.scores[o])[:3]
        return ", ".join(f"{o:+d} ({self.scores[o]:.2f})" for o in best)


@dataclass(frozen=True)
class Alignment:
    """The offsets of a target's recordings.

    Attributes:
        offsets: steps by population, of those that can be told.
        found: how they were found, in data-flow order.
    """

    offsets: Mapping[str, int]
    found: tuple[Offset, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether all populations did what the program says, spike for spike."""
        return all(entry.exact for entry in self.found)

    @property
    def silent(self) -> tuple[str, ...]:
        """The populations that could not be aligned by themselves."""
        return tuple(entry.population for entry in self.found if entry.steps is None)

    def checked(self) -> Alignment:
        """The same with an offset for every population: silent ones have the one of all others.

        Raises:
            AlignmentError: there is no such one.
        """
        if not self.silent:
            return self
        known = set(self.offsets.values())
        if len(known) != 1:
            names = ", ".join(self.silent)
            others = ", ".join(f"{n} {o:+d}" for n, o in self.offsets.items()) or "none"
            raise AlignmentError(
                f"alignment of {names}: found no spikes to align, in the recording or in what the "
                f"program would do, and the offsets {others} elsewhere; allowed: silent ones "
                "beside others of one offset. Look at what is wrong with `nmtool bisect`, or give "
                "the populations weights at which they spike, or, where all their cores have "
                "failed, place them on others (hw.excluded_cores)"
            )
        (same,) = known
        return replace(self, offsets={entry.population: same for entry in self.found})

    def apply(self, measured: Mapping[str, Measured]) -> dict[str, Measured]:
        """Recordings at the model's steps; those that were not recorded are not known."""
        return {name: shifted(m, self.offsets.get(name, 0)) for name, m in measured.items()}

    def text(self) -> str:
        """One line for people."""
        if not self.found:
            return "alignment: none needed"
        how = "equal to the simulation bit for bit" if self.exact else "not equal to the simulation"
        listed = ", ".join(f"{name} {o:+d}" for name, o in self.offsets.items()) or "none found"
        silent = f"; silent: {', '.join(self.silent)}" if self.silent else ""
        return f"alignment: {listed} (recorded column - model step), {how}{silent}"

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "offsets": dict(self.offsets),
            "exact": self.exact,
            "silent": list(self.silent),
            "scores": {e.population: {str(o): s for o, s in e.scores.items()} for e in self.found},
        }


def shifted(measured: Measured, offset: int) -> Measured:
    """A recording that is ``offset`` steps late at the steps of the model."""
    if not offset:
        return measured
    shape = measured.spikes.shape
    known = _moved(np.broadcast_to(measured.known, shape), offset)
    if measured.voltage is None:
        return Measured(_moved(measured.spikes, offset), known)
    seen = True if measured.voltage_known is None else measured.voltage_known
    return Measured(
        _moved(measured.spikes, offset),
        known,
        _moved(measured.voltage, offset),
        _moved(np.broadcast_to(seen, shape), offset),
    )


def _moved(values: Any, offset: int) -> Any:
    """Columns ``offset`` earlier, zeros where there are none."""
    moved = np.zeros_like(values)
    steps = values.shape[-1]
    if abs(offset) >= steps:
        return moved
    if offset > 0:
        moved[..., :-offset] = values[..., offset:]
    else:
        moved[..., -offset:] = values[..., :offset]
    return moved


def align(program: Program, inputs: BoolArray, measured: Mapping[str, Measured]) -> Alignment:
    """The offset of every population that was measured.

    Args:
        program: with the weights that were on the target.
        inputs: what went in, shape (samples, lines, steps).
        measured: what came back, column by column as recorded.

    Raises:
        AlignmentError: several offsets fit a population about as well.
    """
    sent, found = simulated(program, inputs), list[Offset]()
    for name in program.order:
        if name not in measured:
            continue
        entry = _offset(program, name, sent, measured[name], _unseen(program, name, measured))
        found.append(entry)
        if entry.steps is not None:
            sent[name] = _filled(shifted(measured[name], entry.steps), sent[name])
    offsets = {e.population: e.steps for e in found if e.steps is not None}
    return Alignment(offsets, tuple(found))


def simulated(program: Program, inputs: BoolArray) -> Sent:
    """What goes in and what the program makes of it, shape (samples, steps, neurons)."""
    (entrance,) = program.network.inputs
    with EmulatorBackend().open(program) as session:
        run = session.run(SpikeTrain.from_raster(inputs), probe="spikes")
    trains = {name: by_step(train.batch()) for name, train in run.spikes.items()}
    return {entrance: by_step(inputs), **trains}


def by_step(raster: BoolArray) -> IntArray:
    """(samples, neurons, steps) to (samples, steps, neurons)."""
    return np.ascontiguousarray(raster.swapaxes(1, 2), dtype=np.int64)


def _filled(measured: Measured, otherwise: IntArray) -> IntArray:
    """Measured spikes, and others where nothing is known."""
    known = np.broadcast_to(measured.known, measured.spikes.shape).swapaxes(1, 2)
    return np.where(known, by_step(measured.spikes), otherwise)


def _unseen(program: Program, name: str, measured: Mapping[str, Measured]) -> tuple[str, ...]:
    """The sources of a population of which not all neurons were measured."""
    projections = program.network.projections.values()
    sources = {p.source for p in projections if p.target == name and p.source != name}
    return tuple(
        source
        for source in program.order
        if source in sources
        and not (source in measured and measured[source].known.any(axis=(0, 2)).all())
    )


def _offset(
    program: Program, name: str, sent: Sent, measured: Measured, unseen: tuple[str, ...]
) -> Offset:
    """Where a population lies; ``unseen`` are its sources that were not measured."""
    shares, exact = dict[int, FloatArray](), dict[int, bool]()
    for offset, spikes, known, predicted in _tried(program, name, sent, measured):
        shares[offset] = _correlation(spikes, predicted, known)
        exact[offset] = bool(np.all((spikes == predicted) | ~known))
    try:
        steps = _best(name, shares, exact, unseen)
    except AlignmentError:
        shares = _fitted(program, name, sent, measured)
        steps = _best(name, shares, exact, unseen)
    scores = {offset: float(share.sum()) for offset, share in shares.items()}
    return Offset(name, steps, scores, exact[0 if steps is None else steps])


def _fitted(program: Program, name: str, sent: Sent, measured: Measured) -> dict[int, FloatArray]:
    """What each sample and neuron adds to the mean correlation of neurons, at every offset.

    Each neuron has the threshold of ``SCALES`` that fits it best there, for a lower one alone makes
    it spike earlier.
    """
    best = dict[int, FloatArray]()
    for scale in SCALES:
        for offset, spikes, known, predicted in _tried(program, name, sent, measured, scale):
            found = _correlations(spikes, predicted, known)
            kept = best.setdefault(offset, found)
            better = found.sum(axis=0) > kept.sum(axis=0)
            best[offset] = np.where(better, found, kept)
    return best


def _tried(
    program: Program, name: str, sent: Sent, measured: Measured, scale: float = 1.0
) -> Iterator[tuple[int, BoolArray, BoolArray, BoolArray]]:
    """Every offset, the recording there, what is known, and what the program does with its input.

    All three have the shape (samples, steps, neurons). ``scale`` multiplies the thresholds. A
    population that feeds itself is given its own measured spikes, at the offset that is tried.
    """
    whole, bias = program.network.populations[name], biases(program, name, sent)
    population = replace(whole, threshold=round(scale * whole.threshold))
    looped = any(p.source == p.target == name for p in program.network.projections.values())
    predicted = None
    steps = measured.spikes.shape[2]
    for offset in (o for o in WINDOW if 2 * abs(o) <= steps):
        own = shifted(measured, offset)
        if predicted is None or looped:
            given = {**sent, name: _filled(own, sent[name])} if looped else sent
            arrived = all_arriving(program, name, given)
            predicted = replay(population, arrived, bias).spikes
        known = np.broadcast_to(own.known, own.spikes.shape).swapaxes(1, 2)
        yield offset, own.spikes.swapaxes(1, 2), known, predicted


def _correlation(found: BoolArray, predicted: BoolArray, known: BoolArray) -> FloatArray:
    """What each sample and neuron adds to the correlation; 0 where either side is constant."""
    m, p = _centred(found, known), _centred(predicted, known)
    size = float(np.sqrt((m * m).sum() * (p * p).sum()))
    return np.asarray((m * p).sum(axis=1) / (size or 1.0))


def _correlations(found: BoolArray, predicted: BoolArray, known: BoolArray) -> FloatArray:
    """What each sample and neuron adds to the mean of the correlations of single neurons."""
    m, p = _centred(found, known), _centred(predicted, known)
    sizes = np.sqrt((m * m).sum(axis=(0, 1)) * (p * p).sum(axis=(0, 1)))
    return np.asarray((m * p).sum(axis=1) / np.where(sizes > 0, sizes, 1.0) / sizes.size)


def _centred(spikes: BoolArray, known: BoolArray) -> FloatArray:
    """Spikes less the mean of their neuron, of what is known; 0 elsewhere."""
    seen = np.where(known, spikes, 0).astype(np.float64)
    mean = seen.sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
    return np.where(known, seen - mean, 0.0)


def _best(
    name: str,
    shares: Mapping[int, FloatArray],
    exact: Mapping[int, bool],
    unseen: tuple[str, ...] = (),
) -> int | None:
    """The offset that stands out; None where there is nothing to correlate.

    ``shares`` are what each sample and neuron adds to the correlation at each offset, ``unseen``
    the sources that were not measured.

    Raises:
        AlignmentError: none does.
    """
    scores = {offset: float(share.sum()) for offset, share in shares.items()}
    if not any(scores.values()):
        return None
    fitting = [o for o in scores if exact[o] and scores[o] > 0]
    if len(fitting) == 1:
        return fitting[0]
    best = min(scores, key=lambda o: (-scores[o], abs(o)))
    apart = [shares[best] - shares[o] for o in scores if o != best]
    if not fitting and all(_clear(differences, bool(unseen)) for differences in apart):
        return best
    raise AlignmentError(
        f"alignment of {name}: found the correlations {Offset(name, None, scores, False)} of "
        f"recorded and simulated spikes at offsets of {min(scores):+d} to {max(scores):+d} steps, "
        "allowed: one offset that fits exactly, or one that is better than all others by "
        f"{MARGIN:g} standard errors. {_advice(name, unseen)}"
    )


def _clear(differences: FloatArray, unseen: bool) -> bool:
    """Whether the best offset is above another one; differences of shape (samples, neurons)."""
    if _standard_errors(differences.sum(axis=1)) < MARGIN:
        return False
    return not unseen or _standard_errors(differences.sum(axis=0)) >= NEURON_MARGIN


def _advice(name: str, unseen: tuple[str, ...]) -> str:
    """What to do about a population that no offset fits."""
    look = (
        "ook at what is wrong with `nmtool bisect`, or mend the target before anything is learned"
    )
    if not unseen:
        return f"L{look}"
    sources = ", ".join(unseen)
    return (
        f"Not all of {sources} was measured, which feeds {name}, and its dead or stuck neurons "
        f"would change every spike of {name}: probe it too (-s finetune.probes=all), or more of it "
        f"(finetune.probed). If that does not help, l{look}"
    )


def _standard_errors(differences: FloatArray) -> float:
    """How far the mean of the differences is from 0."""
    error = float(differences.std(ddof=1)) / np.sqrt(differences.size)
    return float(differences.mean()) / error if error else 0.0
