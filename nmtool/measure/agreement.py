"""Agreement of two recordings: how much of them differs, and where the first difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.backends.base import QUANTITIES, Quantity, Recording
from nmtool.errors import ConfigError


@dataclass(frozen=True)
class Difference:
    """The first place where two recordings part.

    ``a`` and ``b`` hold the spike (``message`` of neurons that send graded messages), current and
    voltage there, None where they were not probed. ``threshold`` is in the units of the voltage.
    """

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

    Spikes of ``graded`` neurons are messages, which also differ by their value. ``states`` counts
    differing values of u and v. None: not probed on both sides.
    """

    population: str
    spikes_a: int | None
    spikes_b: int | None
    differing: int | None
    states: int | None
    graded: bool = False


@dataclass(frozen=True)
class Agreement:
    """The comparison of two recordings, populations in data-flow order.

    ``missing`` names what only one side has: populations, or ``quantity:population`` of those that
    are compared in something else.
    """

    populations: tuple[PopulationAgreement, ...]
    first: Difference | None
    missing: tuple[str, ...]

    @property
    def differing_spikes(self) -> int:
        """Spikes that only one side has and messages that differ, over all populations."""
        return sum(p.differing or 0 for p in self.populations)

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
    thresholds: Mapping[str, int | None] | None = None,
) -> Agreement:
    """Compare whatever of spikes, u and v both recordings have of a population.

    The first difference is the one in the earliest population of ``order`` (data flow), and there
    in the lowest sample, then step, then neuron; a spike before a state. ``thresholds`` by
    population are in the units of v.

    Raises:
        ConfigError: nothing in common, or recordings of different shapes.
    """
    recorded = {name: _recorded(a, b, name) for name in _names(a, b)}
    names = [n for n in (order or recorded) if n in recorded and recorded[n].both]
    if not names:
        raise ConfigError(
            f"compare: found recordings of {_shown(a)} and of {_shown(b)}, "
            "allowed recordings with a population in common, of which both have spikes, current "
            "or voltage"
        )
    results: list[PopulationAgreement] = []
    first: Difference | None = None
    for name in names:
        result, place = _population(a, b, name, recorded[name].both)
        results.append(result)
        if place is not None and first is None:
            first = _difference(a, b, name, place, (thresholds or {}).get(name))
    alone = [f"{quantity}:{name}" for name in names for quantity in recorded[name].one]
    missing = (*sorted({*recorded} - {*names}), *alone)
    return Agreement(tuple(results), first, missing)


def joined(parts: Sequence[tuple[int, Agreement]]) -> Agreement:
    """The agreement of whole recordings from those of parts of their samples, in order.

    Each part comes with the number of its first sample; all have the same populations.
    """
    agreements = [part for _, part in parts]
    populations = tuple(map(_sum, zip(*(part.populations for part in agreements), strict=True)))
    names = [p.population for p in populations]
    found = [
        replace(part.first, sample=begin + part.first.sample) for begin, part in parts if part.first
    ]
    first = min(found, key=lambda d: (names.index(d.population), d.sample), default=None)
    return Agreement(populations, first, agreements[0].missing)


def _sum(parts: Sequence[PopulationAgreement]) -> PopulationAgreement:
    def total(key: str) -> int | None:
        counts = [getattr(part, key) for part in parts]
        return None if None in counts else sum(counts)

    return PopulationAgreement(
        parts[0].population,
        total("spikes_a"),
        total("spikes_b"),
        total("differing"),
        total("states"),
        any(part.graded for part in parts),
    )


_Place: TypeAlias = tuple[Quantity, tuple[int, int, int]]


@dataclass(frozen=True)
class _Recorded:
    """The quantities of a population that both recordings have, and those that only one has."""

    both: tuple[Quantity, ...]
    one: tuple[Quantity, ...]


def _names(*recordings: Recording) -> dict[str, None]:
    return dict.fromkeys(n for q in QUANTITIES for r in recordings for n in getattr(r, q))


def _recorded(a: Recording, b: Recording, name: str) -> _Recorded:
    sides = {q: (name in getattr(a, q), name in getattr(b, q)) for q in QUANTITIES}
    return _Recorded(
        tuple(q for q, side in sides.items() if all(side)),
        tuple(q for q, side in sides.items() if any(side) and not all(side)),
    )


def _shown(recording: Recording) -> str:
    found = [f"{q}:{name}" for q in QUANTITIES for name in getattr(recording, q)]
    return ", ".join(found) or "nothing"


def _batch(recording: Recording, quantity: Quantity, name: str) -> npt.NDArray[Any]:
    """A quantity with its sample axis, shape (samples, neurons, steps)."""
    if quantity == "spikes":
        return recording.spikes[name].batch()
    values = np.asarray(getattr(recording, quantity)[name])
    return values.reshape(-1, *values.shape[-2:])


def _graded(name: str, *recordings: Recording) -> bool:
    trains = (r.spikes[name] for r in recordings if name in r.spikes)
    return any(train.payload is not None for train in trains)


def _population(
    a: Recording, b: Recording, name: str, quantities: Sequence[Quantity]
) -> tuple[PopulationAgreement, _Place | None]:
    differing: dict[Quantity, int] = {}
    place: _Place | None = None
    for quantity in quantities:
        left, right = _batch(a, quantity, name), _batch(b, quantity, name)
        if left.shape != right.shape:
            raise ConfigError(
                f"compare: population {name}: found (samples, neurons, steps) {left.shape} and "
                f"{right.shape}, allowed the same on both sides"
            )
        apart = left != right
        differing[quantity] = int(apart.sum())
        place = _earlier(place, _first(apart, quantity))
    sent_a, sent_b = (len(r.spikes[name]) if "spikes" in differing else None for r in (a, b))
    states = [count for quantity, count in differing.items() if quantity != "spikes"]
    count = PopulationAgreement(
        name,
        sent_a,
        sent_b,
        differing.get("spikes"),
        sum(states) if states else None,
        _graded(name, a, b),
    )
    return count, place


def _first(apart: Any, quantity: Quantity) -> _Place | None:
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
    graded = _graded(name, a, b)

    def side(recording: Recording) -> dict[str, int | None]:
        values = {
            q: int(_batch(recording, q, name)[sample, neuron, step])
            if name in getattr(recording, q)
            else None
            for q in QUANTITIES
        }
        return {
            "message" if graded else "spike": values["spikes"],
            "current": values["current"],
            "voltage": values["voltage"],
        }

    word = "messages" if graded and quantity == "spikes" else quantity
    return Difference(name, word, sample, step, neuron, side(a), side(b), threshold)
