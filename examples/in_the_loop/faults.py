"""Digits on targets with every kind of digital defect: what the loop repairs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from columns import Row, Script, all_columns, means


def claims(rows: Sequence[Row]) -> Mapping[str, bool]:
    """What must hold: the loop repairs, and never loses to what it contains."""
    found = means(rows)
    held = {
        f"{name}: loop at most 1 point below readout": mean["loop"] >= mean["readout"] - 0.01
        for name, mean in found.items()
    }
    if "all" in found:
        mean = found["all"]
        held |= {
            f"all: loop 5 points above {control}": mean["loop"] >= mean[control] + 0.05
            for control in ("transfer", "simulation")
        }
    return held


SCRIPT = Script("digits", "Digits on faulty targets", (), all_columns, claims)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
