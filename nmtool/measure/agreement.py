"""Agreement of two recordings: how many spikes differ, and where the first one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nmtool.backends.base import Recording
from nmtool.errors import ConfigError
from nmtool.fixedpoint import IntArray


@dataclass(frozen=True)
class Difference:
    """The first place where two recordings part; states are None where they were not probed."""

    population: str
    quantity: str
    sample: int
    step: int
    neuron: int
    a: dict[str, int | None]
    b: dict[str, int | None]
    threshold: int | None


@dataclass(frozen=True)
class PopulationAgreement:
    """Counts of one population: spikes on both sides, spikes that only one side has, and states.

    ``states`` counts differing values of u and v; None where they were not probed on both sides.
    """

    population: str
    spikes_a: int
    spikes_b: int
    differing: int
    states: int | None


@dataclass(frozen=True)
class Agreement:
    """The comparison of two recordings, populations in data-flow order."""

    populations: tuple[PopulationAgreement, ...]
    first: Difference | None
    missing: tuple[str, ...]

    @property
    def differing_spikes(self) -> int:
        """Spikes that only one side has, over all populations."""
        return sum(p.differing for p in self.populations)

    @property
    def equal(self) -> bool:
        """Whether everything compared is the same."""
        return self.first is None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "equal": self.equal,
            "differing_spikes": self.differing_spikes,
            "populations": [asdict(p) for p in self.populations],
            "first": asdict(self.first) if self.first else None,
            "not_compared": list(self.missing),
        }


def compare(
    a: Recording,
    b: Recording,
    order: Sequence[str] | None = None,
    thresholds: dict[str, int] | None = None,
) -> Agreement:
    """Compare the spikes, and u and v where both have them, of two recordings.

    The first difference is the one in the earliest population of ``order`` (data flow), and there
    in the lowest sample, then step, then neuron; a spike before a state. ``thresholds`` are
    mantissas by population.

    Raises:
        ConfigError: nothing in common, or recordings of different shapes.
    """
    names = [n for n in (order or a.spikes) if n in a.spikes and n in b.spikes]
    if not names:
        raise ConfigError(
            f"compare: found spikes of {[*a.spikes]} and of {[*b.spikes]}, "
            "allowed recordings with a population in common"
        )
    missing = tuple(sorted({*a.spikes, *b.spikes} - {*names}))
    results: list[PopulationAgreement] = []
    first: Difference | None = None
    for name in names:
        result, place = _population(a, b, name)
        results.append(result)
        if place is not None and first is None:
            first = _difference(a, b, name, place, (thresholds or {}).get(name))
    return Agreement(tuple(results), first, missing)


_Place = tuple[str, tuple[int, int, int]]


def _population(a: Recording, b: Recording, name: str) -> tuple[PopulationAgreement, _Place | None]:
    left, right = a.spikes[name].batch(), b.spikes[name].batch()
    if left.shape != right.shape:
        raise ConfigError(
            f"compare: population {name}: found (samples, neurons, steps) {left.shape} and "
            f"{right.shape}, allowed the same on both sides"
        )
    apart = left != right
    place = _first(apart, "spikes")
    states: int | None = None
    for quantity in ("current", "voltage"):
        mine, yours = getattr(a, quantity).get(name), getattr(b, quantity).get(name)
        if mine is None or yours is None:
            continue
        unequal = mine.reshape(left.shape) != yours.reshape(left.shape)
        states = (states or 0) + int(unequal.sum())
        place = _earlier(place, _first(unequal, quantity))
    count = PopulationAgreement(
        name, int(np.count_nonzero(left)), int(np.count_nonzero(right)), int(apart.sum()), states
    )
    return count, place


def _first(apart: Any, quantity: str) -> _Place | None:
    if not apart.any():
        return None
    sample, step, neuron = (int(i) for i in np.argwhere(apart.transpose(0, 2, 1))[0])
    return quantity, (sample, step, neuron)


def _earlier(one: _Place | None, other: _Place | None) -> _Place | None:
    if one is None or other is None:
        return one or other
    return other if other[1] < one[1] else one


def _difference(
    a: Recording, b: Recording, name: str, place: _Place, threshold: int | None
) -> Difference:
    quantity, (sample, step, neuron) = place

    def side(recording: Recording) -> dict[str, int | None]:
        spikes = recording.spikes[name].batch()
        shape = spikes.shape
        return {
            "spike": int(spikes[sample, neuron, step]),
            "current": _state(recording.current.get(name), shape, (sample, neuron, step)),
            "voltage": _state(recording.voltage.get(name), shape, (sample, neuron, step)),
        }

    return Difference(name, quantity, sample, step, neuron, side(a), side(b), threshold)


def _state(
    values: IntArray | None, shape: tuple[int, ...], place: tuple[int, int, int]
) -> int | None:
    return None if values is None else int(values.reshape(shape)[place])
