"""What of a program an input exercises: a fault elsewhere cannot show on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmtool.backends import Recording
from nmtool.compiler import Program
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.operations import chain_connections
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class Coverage:
    """Fractions that an input exercises, in all, by population and by projection.

    A neuron is covered where it spikes at least once; a weight where, in one sample, a source of it
    and a target of it spike. It bounds what can be found from above: a fault in a covered weight
    may still change no spike.
    """

    neurons: float
    weights: float
    populations: Mapping[str, float]
    projections: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.neurons:.1%} of the neurons and {self.weights:.1%} of the weights"


class Exercise:
    """Which neurons and weights each sample of a run exercises."""

    def __init__(self, program: Program, inputs: Mapping[str, SpikeTrain], run: Recording) -> None:
        net = program.network
        trains = {**inputs, **run.spikes}
        self._active = {name: _active(train) for name, train in trains.items()}
        self._populations = [name for name in program.order if name in run.spikes]
        self._ways = {
            key: (p, chain_connections(p.operations, net.shapes[p.source]), p.weight_mantissa.size)
            for key, p in net.projections.items()
            if p.source in trains and p.target in trains
        }
        self.n_samples = next(iter(self._active.values())).shape[0]

    def of(self, sample: int) -> dict[tuple[str, str], BoolArray]:
        """What one sample exercises: ("population" or "projection", its name) -> which of it."""
        covered = {("population", name): self._active[name][sample] for name in self._populations}
        for key, (p, ways, size) in self._ways.items():
            source, target = self._active[p.source][sample], self._active[p.target][sample]
            used = np.zeros(size, dtype=np.bool_)
            used[ways.index[source[ways.source] & target[ways.target]]] = True
            covered["projection", key] = used
        return covered

    def coverage(self) -> Coverage:
        """What all samples exercise together."""
        total = self.of(0)
        for sample in range(1, self.n_samples):
            for name, used in self.of(sample).items():
                total[name] = total[name] | used
        parts = {
            what: {name: used for (kind, name), used in total.items() if kind == what}
            for what in ("population", "projection")
        }
        neurons, weights = (_share(_joined(part)) for part in parts.values())
        shares = [{name: _share(u) for name, u in part.items()} for part in parts.values()]
        return Coverage(neurons, weights, *shares)

    def choose(self, count: int) -> IntArray:
        """Samples that together exercise the most: each time the one that adds most (greedy)."""
        left = dict.fromkeys(range(self.n_samples))
        each = {sample: _joined(self.of(sample)) for sample in left}
        covered = np.zeros_like(each[0])
        chosen: list[int] = []
        while left and len(chosen) < count:
            best = max(left, key=lambda sample: int((each[sample] & ~covered).sum()))
            covered |= each[best]
            chosen.append(best)
            del left[best]
        return np.sort(np.array(chosen, dtype=np.int64))


def coverage(program: Program, inputs: Mapping[str, SpikeTrain], run: Recording) -> Coverage | None:
    """What the input of a run exercises; None where not all spikes were recorded."""
    if set(run.spikes) != set(program.order):
        return None
    return Exercise(program, inputs, run).coverage()


def _active(train: SpikeTrain) -> BoolArray:
    """Which neurons spike in each sample, shape (samples, neurons)."""
    active = np.zeros((train.n_samples, train.n_neurons), dtype=np.bool_)
    active[train.sample, train.neuron] = True
    return active


def _joined(parts: Mapping[Any, BoolArray]) -> BoolArray:
    return np.concatenate([np.zeros(0, dtype=np.bool_), *parts.values()])


def _share(used: BoolArray) -> float:
    return float(np.mean(used)) if used.size else 1.0
