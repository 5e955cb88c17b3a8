"""Measurement: named quantities, each with its unit and the basis of its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Basis = Literal["counted", "measured", "modelled"]


@dataclass(frozen=True)
class Quantity:
    """A number, its unit, and whether it was counted, measured or modelled."""

    value: float
    unit: str
    basis: Basis


@dataclass(frozen=True)
class Measurement:
    """Named quantities of one recording."""

    backend: str
    quantities: Mapping[str, Quantity]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            name: {"value": q.value, "unit": q.unit, "basis": q.basis}
            for name, q in self.quantities.items()
        }
