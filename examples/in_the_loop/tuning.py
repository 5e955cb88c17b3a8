"""What the rules, rates and rounds of this folder's experiments were chosen by.

    python examples/in_the_loop/tuning.py digits finetune.lr=1e-3,finetune.rounds=8

After the name of an experiment file every argument is one setting, KEY=VALUE pairs with commas
between them. Prints the best validation accuracy over the rounds on the families that
``faults.yaml`` allows for tuning, of seeds (networks and defects) that no table has. Test samples
and held-out families have no part in it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from columns import HERE, SEVERITIES, Bench

from nmtool.config import load_experiment

SEEDS = (100, 101, 102, 104, 105, 106)


def best(bench: Bench, family: str) -> dict[str, float]:
    """The best validation accuracy of readout and loop on a target."""
    rounds = bench.study(SEVERITIES.families[family]).rounds
    return {
        name.partition("-")[0]: max(entry.validation_accuracy for entry in entries)
        for name, entries in rounds.items()
    }


def main() -> int:
    """Print a line for every setting."""
    path = HERE / f"{sys.argv[1]}.yaml"
    trained = {s: Bench(load_experiment(path, [f"seed={s}"]), Path()).trained for s in SEEDS}
    for setting in sys.argv[2:]:
        found: dict[str, list[float]] = {}
        for seed, network in trained.items():
            overrides = [*setting.split(","), f"seed={seed}", "finetune.controls=[readout]"]
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(load_experiment(path, overrides), Path(folder), network)
                for family in SEVERITIES.tuning:
                    for column, accuracy in best(bench, family).items():
                        found.setdefault(column, []).append(accuracy)
        means = "  ".join(f"{name} {np.mean(values):.4f}" for name, values in found.items())
        print(f"{means}  {setting}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
