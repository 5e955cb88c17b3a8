"""Weights that explain a departing population: flipped bits, stale writes, several at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nmtool.backends.faults import read_back
from nmtool.fixedpoint import CURRENT_DECAY_OFFSET, IntArray, decay, scaled, shift, wrap
from nmtool.regression.equations import arriving, replay
from nmtool.regression.suspect import SCREEN, Cause, Suspect, screening


def stale(suspect: Suspect) -> Iterator[Cause]:
    """Projections with the weights that they had before the last write."""
    if suspect.before is None:
        return
    for key in suspect.projections:
        old = suspect.before.network.projections[key].weight_mantissa
        change = arriving(suspect.program, key, suspect.sent, old) - arriving(
            suspect.program, key, suspect.sent
        )
        if suspect.explains(replay(suspect.population, suspect.arrived + change, suspect.bias)):
            yield Cause("stale write", f"{key} has the weights of before the last write")


def _candidates(suspect: Suspect, neuron: int) -> Iterator[tuple[str, int, int, str]]:
    """Single weights into a neuron and what they could be: (projection, index, mantissa, why)."""
    for key, p in suspect.projections.items():
        flat = p.weight_mantissa.ravel()
        for weight in np.unique(suspect.synapses(key, neuron).index):
            own = flat[weight : weight + 1]
            for bit in range(p.weight_bits):
                flipped = int(read_back(own, np.array([1 << bit]), p.format)[0])
                yield key, int(weight), flipped, f"bit {bit} inverted"
            if suspect.before is not None:
                old = int(suspect.before.network.projections[key].weight_mantissa.flat[weight])
                if old != own[0]:
                    yield key, int(weight), old, "its value before the last write"


def _fitting_weights(suspect: Suspect, neuron: int) -> Iterator[tuple[str, int, int, str]]:
    """Single weights that explain one neuron."""
    candidates = list(_candidates(suspect, neuron))
    samples = screening(suspect, neuron, len(candidates))
    width = max(1, SCREEN // max(1, samples.size * suspect.wrong.shape[1]))
    cut = suspect.found.select([neuron]).of_samples(samples)
    for begin in range(0, len(candidates), width):
        chunk = candidates[begin : begin + width]
        arrived = suspect.arrived[samples][..., [neuron] * len(chunk)].copy()
        for key, p in suspect.projections.items():
            columns = [i for i, entry in enumerate(chunk) if entry[0] == key]
            if not columns:
                continue
            weights = np.array([chunk[i][1] for i in columns])
            unique, inverse = np.unique(weights, return_inverse=True)
            synapses = suspect.synapses(key, neuron)
            per_weight = synapses.contribution(unique, suspect.sent[p.source][samples])
            values = np.array([chunk[i][2] for i in columns]) - p.weight_mantissa.ravel()[weights]
            arrived[..., columns] += per_weight[..., inverse] * shift(values, p.format.exponent)
        bias = suspect.bias[samples][..., [neuron] * len(chunk)]
        trace = replay(suspect.population, arrived, bias)
        fits = ~trace.differs(cut, suspect.masked).any(axis=(0, 1))
        yield from (chunk[i] for i in np.flatnonzero(fits))


def _with_weight(suspect: Suspect, key: str, index: int, mantissa: int) -> IntArray:
    """What arrives at all neurons if one weight is another."""
    weights = suspect.projections[key].weight_mantissa.copy()
    weights.flat[index] = mantissa
    sent = suspect.sent
    change = arriving(suspect.program, key, sent, weights) - arriving(suspect.program, key, sent)
    return np.asarray(suspect.arrived + change)


def _weight_words(suspect: Suspect, key: str, index: int, mantissa: int, why: str) -> str:
    p = suspect.projections[key]
    place = ", ".join(str(int(i)) for i in np.unravel_index(index, p.weight_mantissa.shape))
    own = int(p.weight_mantissa.flat[index])
    return f"weight [{place}] of {key} has the mantissa {mantissa}, not {own}: {why}"


def shared_weight(suspect: Suspect) -> Iterator[Cause]:
    """One weight that explains every departing neuron: shared by them, or of the only one."""
    causes = [
        (why, _weight_words(suspect, key, index, mantissa, why))
        for key, index, mantissa, why in _fitting_weights(suspect, int(suspect.neurons[0]))
        if suspect.explains(
            replay(suspect.population, _with_weight(suspect, key, index, mantissa), suspect.bias)
        )
    ]
    yield from _together(causes, tuple(map(int, suspect.neurons)))


def _together(causes: list[tuple[str, str]], neurons: tuple[int, ...]) -> Iterator[Cause]:
    """Weights that explain the same: one cause of each kind, the others said with it."""
    kinds: dict[str, list[str]] = {}
    for why, words in causes:
        kind = "stale write" if "before" in why else "weight bit flip"
        kinds.setdefault(kind, []).append(words)
    for kind, several in kinds.items():
        yield Cause(kind, "; or ".join(several), neurons)


def single_weight(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    """Only where the first neuron is not explained with all others by one shared weight."""
    place = slice(neuron, neuron + 1)
    causes = []
    for key, index, mantissa, why in _fitting_weights(suspect, neuron):
        arrived = _with_weight(suspect, key, index, mantissa)[..., place]
        trace = replay(suspect.population, arrived, suspect.bias[..., place])
        if suspect.explains(trace, place):
            causes.append((why, _weight_words(suspect, key, index, mantissa, why)))
    yield from ((cause.kind, cause.words) for cause in _together(causes, (neuron,)))


def several_weights(suspect: Suspect, neuron: int) -> Iterator[tuple[str, str]]:
    """Several weights into a neuron, solved for from its measured current."""
    if suspect.found.u is None or suspect.population.reset is not None:
        return
    residual = _residual(suspect, neuron)
    for key, p in suspect.projections.items():
        synapses = suspect.synapses(key, neuron)
        weights = np.unique(synapses.index)
        parts = synapses.contribution(weights, suspect.sent[p.source])
        table = parts.reshape(-1, weights.size).astype(np.float64)
        if table.size > SCREEN:
            continue
        solved, *_ = np.linalg.lstsq(table, residual.ravel().astype(np.float64), rcond=None)
        change = np.rint(solved).astype(np.int64)
        arrived = suspect.arrived[..., [neuron]] + (parts * change).sum(axis=-1, keepdims=True)
        place = slice(neuron, neuron + 1)
        trace = replay(suspect.population, arrived, suspect.bias[..., place])
        count = int(np.count_nonzero(change))
        if count and suspect.explains(trace, place):
            yield (
                "several weights",
                f"{count} weights of {key} into neuron {neuron} are others, as after a write that "
                "did not land",
            )


def _residual(suspect: Suspect, neuron: int) -> IntArray:
    """What arrived at a neuron beyond what should have, from its measured current."""
    assert suspect.found.u is not None
    u = suspect.found.u[..., neuron]
    before = np.zeros_like(u)
    before[:, 1:] = u[:, :-1]
    kept = decay(before, suspect.population.decay_u + CURRENT_DECAY_OFFSET)
    return wrap(u - kept - scaled(suspect.arrived[..., neuron])) >> 6
