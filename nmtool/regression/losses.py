"""Spikes that were sent and did not reach a population, told from what its neurons lack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nmtool.fixedpoint import IntArray, shift
from nmtool.measure.equations import Messages
from nmtool.operations import apply_chain, with_weight
from nmtool.regression.suspect import SCREEN, Cause, Suspect

ROUNDS = 3
"""How often neurons that something else is wrong with are left out and the rest solved again."""


@dataclass(frozen=True, eq=False)
class _Route:
    """A projection whose spikes all take as long: what one spike of each source delivers.

    ``weight`` has the shape (sources, neurons); ``late`` is the number of steps to arrival.
    """

    source: str
    weight: IntArray
    late: int


def lost_arrivals(suspect: Suspect) -> tuple[Cause | None, Messages]:
    """The spikes that did not arrive in words, and what was sent without them.

    At every step the missing part of all neurons' input is solved for the spikes that should have
    arrived; a spike counts as lost if that is what most of its targets show. Neurons with faults
    of their own are outvoted.
    """
    missing: list[tuple[int, int, str, int]] = []
    sent = dict(suspect.sent)
    for route in _routes(suspect):
        lost = _lost_through(suspect, route)
        if lost:
            changed = sent[route.source].copy()
            for sample, step, neuron in lost:
                changed[sample, step, neuron] = 0
                missing.append((step, sample, route.source, neuron))
            sent[route.source] = changed
    if not missing:
        return None, suspect.sent
    step, sample, source, neuron = min(missing)
    due = sum(int(suspect.sent[name].sum()) for name in {source for *_, source, _ in missing})
    words = (
        f"{len(missing)} of {due} spikes were sent and did not reach {suspect.name}, the first of "
        f"neuron {neuron} of {source} in sample {sample} at step {step}"
    )
    return Cause("lost spike", words), sent


def _routes(suspect: Suspect) -> list[_Route]:
    """The only projection into the population from each source, where its delays are all alike."""
    net, found = suspect.program.network, []
    for p in suspect.projections.values():
        delays = np.unique(np.asarray(p.delay)) + np.unique(net.axonal_delay(p.source))
        alone = sum(q.source == p.source for q in suspect.projections.values()) == 1
        sources, neurons = net.sizes[p.source], net.sizes[suspect.name]
        if alone and delays.size == 1 and sources * neurons <= SCREEN and not net.graded(p.source):
            operations = with_weight(p.operations, shift(p.weight_mantissa, p.format.exponent))
            each = np.eye(sources, dtype=np.int64)
            weight = apply_chain(operations, each, net.shapes[p.source]).astype(np.int64)
            found.append(_Route(p.source, weight, 1 + int(delays[0])))
    return found


def _lost_through(suspect: Suspect, route: _Route) -> list[tuple[int, int, int]]:
    """The spikes (sample, step, source) that most of their targets lack."""
    sent, found = suspect.sent[route.source], []
    lacking = (suspect.residual != 0).sum(axis=-1)
    for sample, step in np.argwhere(lacking > 0):
        at = int(step) - route.late
        if at < 0:
            continue
        sources = np.flatnonzero(sent[sample, at])
        lost = _solved(route.weight[sources], -suspect.residual[sample, step])
        found += [(int(sample), at, int(source)) for source in sources[lost]]
    return found


def _solved(weight: IntArray, lack: IntArray) -> IntArray:
    """Which of some spikes (rows of ``weight``) together make up what most neurons lack."""
    reached = (weight != 0).sum(axis=1)
    if not weight.size or 2 * np.count_nonzero(lack) < reached.min():
        return np.zeros(0, dtype=np.int64)
    alone = ((weight == lack) & (weight != 0)).sum(axis=1)
    one = int((alone - reached / 2).argmax())
    if 2 * alone[one] > reached[one] and np.count_nonzero(lack - weight[one]) < lack.size / 4:
        return np.array([one])
    good = np.ones(lack.size, dtype=np.bool_)
    lost = np.zeros(len(weight), dtype=np.int64)
    for _ in range(ROUNDS):
        solved, *_ = np.linalg.lstsq(weight.T[good].astype(np.float64), lack[good], rcond=None)
        lost = np.clip(np.rint(solved), 0, 1).astype(np.int64)
        good = lost @ weight == lack
        if not good.any():
            break
    targets = (weight[lost == 1] != 0).any(axis=0)
    agree = np.count_nonzero(good & targets)
    return np.flatnonzero(lost) if 2 * agree > np.count_nonzero(targets) else np.zeros(0, int)
