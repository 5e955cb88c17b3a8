"""Weights that explain a departing population: flipped bits, stale writes, several at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nmtool.backends.faults import read_back
from nmtool.fixedpoint import IntArray, shift
from nmtool.measure.equations import always, arriving, replay
from nmtool.regression.suspect import SCREEN, Cause, Suspect, screening, shortened


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
    if suspect.found.u is not None:
        yield from _fitting_the_current(suspect, neuron, candidates)
        return
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
            values = np.array([_change(suspect, *chunk[i][:3]) for i in columns])
            arrived[..., columns] += per_weight[..., inverse] * values
        bias = suspect.bias[samples][..., [neuron] * len(chunk)]
        trace = replay(suspect.population, arrived, bias)
        fits = ~trace.differs(cut, suspect.masked, suspect.lossy).any(axis=(0, 1))
        yield from (chunk[i] for i in np.flatnonzero(fits))


def _fitting_the_current(
    suspect: Suspect, neuron: int, candidates: list[tuple[str, int, int, str]]
) -> list[tuple[str, int, int, str]]:
    """The candidates that give the measured u, which tells most of them apart at once."""
    residual = suspect.residual[..., neuron]
    if not residual.any():
        return []
    fit: dict[tuple[str, int], int] = {}
    for key, p in suspect.projections.items():
        synapses = suspect.synapses(key, neuron)
        for weight in np.unique(synapses.index):
            part = synapses.contribution(np.array([weight]), suspect.sent[p.source])[..., 0]
            most = np.unravel_index(part.argmax(), part.shape)
            change = int(residual[most]) // max(1, int(part[most]))
            if change and np.array_equal(part * change, residual):
                fit[key, int(weight)] = change
    return [entry for entry in candidates if fit.get(entry[:2]) == _change(suspect, *entry[:3])]


def _change(suspect: Suspect, key: str, index: int, mantissa: int) -> int:
    """How much more a spike delivers through a weight of another mantissa."""
    p = suspect.projections[key]
    own = int(p.weight_mantissa.flat[index])
    return int(shift(np.array(mantissa), p.format.exponent)) - int(
        shift(np.array(own), p.format.exponent)
    )


def _with_weight(suspect: Suspect, key: str, index: int, mantissa: int) -> IntArray:
    """What arrives at all neurons if one weight is another."""
    weights = suspect.projections[key].weight_mantissa.copy()
    weights.flat[index] = mantissa
    sent = suspect.sent
    change = arriving(suspect.program, key, sent, weights) - arriving(suspect.program, key, sent)
    return np.asarray(suspect.arrived + change)


def _weight_words(suspect: Suspect, key: str, index: int, mantissa: int, why: str) -> str:
    p = suspect.projections[key]
    own = int(p.weight_mantissa.flat[index])
    place = _place(suspect, key, index)
    return f"weight [{place}] of {key} has the mantissa {mantissa}, not {own}: {why}"


def shared_weight(suspect: Suspect) -> Iterator[Cause]:
    """One weight that explains every departing neuron: shared by them, or of the only one."""
    causes = [
        (_kind(why), _weight_words(suspect, key, index, mantissa, why))
        for key, index, mantissa, why in _fitting_weights(suspect, int(suspect.neurons[0]))
        if suspect.explains(
            replay(suspect.population, _with_weight(suspect, key, index, mantissa), suspect.bias)
        )
    ]
    yield from _together(causes, tuple(map(int, suspect.neurons)))


def _together(causes: list[tuple[str, str]], neurons: tuple[int, ...]) -> Iterator[Cause]:
    """Weights that explain the same: one cause of each kind, the others said with it."""
    kinds: dict[str, list[str]] = {}
    for kind, words in causes:
        kinds.setdefault(kind, []).append(words)
    for kind, several in kinds.items():
        yield Cause.one_of(kind, several, neurons)


def _kind(why: str) -> str:
    return "stale write" if "before" in why else "weight bit flip"


def single_weight(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    """Only where the first neuron is not explained with all others by one shared weight."""
    place = slice(neuron, neuron + 1)
    causes = []
    for key, index, mantissa, why in _fitting_weights(suspect, neuron):
        source = suspect.projections[key].source
        part = suspect.synapses(key, neuron).contribution(np.array([index]), suspect.sent[source])
        arrived = suspect.arrived[..., place] + part * _change(suspect, key, index, mantissa)
        words = _weight_words(suspect, key, index, mantissa, why)
        behaviour = _behaviour(suspect, arrived, place)
        if behaviour is not None:
            causes.append(_with(behaviour, neuron, _kind(why), words))
    yield from _together(causes, (neuron,))


_BROKEN = {"dead neuron": "never spikes", "stuck neuron": "spikes at every step"}


def _with(behaviour: str, neuron: int, kind: str, words: str) -> tuple[str, str]:
    """Kind and words of weights that are others in a neuron that is well (""), dead or stuck."""
    if not behaviour:
        return kind, words
    return behaviour, f"neuron {neuron} {_BROKEN[behaviour]}, and {words}"


def _behaviour(suspect: Suspect, arrived: IntArray, neuron: slice) -> str | None:
    """What a neuron does with what arrives: "" if well, dead, stuck, None if it is none of them.

    Where u was measured it shows the weights alone, so a dead or stuck neuron is told as well.
    """
    bias = suspect.bias[..., neuron]
    due = replay(suspect.population, arrived, bias)
    if suspect.explains(due, neuron):
        return ""
    if suspect.found.u is None or suspect.found.v is None:
        return None
    if suspect.explains(replay(suspect.population, arrived, bias, silent=True), neuron):
        return "dead neuron"
    return "stuck neuron" if suspect.explains(always(due), neuron) else None


def several_weights(suspect: Suspect, neuron: int) -> Iterator[Cause]:
    """Several weights into a neuron, solved for from its measured current."""
    if suspect.found.u is None or not suspect.residual[..., neuron].any():
        return
    place = slice(neuron, neuron + 1)
    for key in suspect.projections:
        solved = _solved(suspect, key, neuron)
        if solved is None:
            continue
        words, arrived = solved
        behaviour = _behaviour(suspect, arrived, place)
        if behaviour is not None:
            yield Cause(*_with(behaviour, neuron, "several weights", words), (neuron,))


def _solved(suspect: Suspect, key: str, neuron: int) -> tuple[str, IntArray] | None:
    """The weights that give the measured current: in words, and what arrives with them."""
    p = suspect.projections[key]
    synapses = suspect.synapses(key, neuron)
    weights = np.unique(synapses.index)
    sent, residual = suspect.sent[p.source], suspect.residual[..., neuron]
    samples = screening(suspect, neuron, weights.size, SCREEN)
    parts = synapses.contribution(weights, sent[samples])
    table = parts.reshape(-1, weights.size).astype(np.float64)
    # The normal equations: as many rows as weights, whatever the number of steps.
    wanted = table.T @ residual[samples].ravel()
    solved, *_ = np.linalg.lstsq(table.T @ table, wanted, rcond=None)
    change = np.rint(solved).astype(np.int64)
    changed = np.flatnonzero(change)
    more = synapses.contribution(weights[changed], sent) @ change[changed]
    if not np.array_equal(more, residual):
        return None
    arrived = suspect.arrived[..., [neuron]] + more[..., None]
    named = [f"[{_place(suspect, key, int(weights[i]))}] by {int(change[i]):+d}" for i in changed]
    words = (
        f"{changed.size} weights of {key} into neuron {neuron} are others, as after a write that "
        f"did not land: {shortened(named, ', ')}"
    )
    return words, arrived


def _place(suspect: Suspect, key: str, index: int) -> str:
    shape = suspect.projections[key].weight_mantissa.shape
    return ", ".join(str(int(i)) for i in np.unravel_index(index, shape))
