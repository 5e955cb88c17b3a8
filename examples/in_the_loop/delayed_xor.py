"""Delayed XOR of two cues: a task that only a learned hidden layer solves, and a target that fails.

On the healthy target *bptt* is trained by backpropagation through time; *dcll* learns from random
weights by the local rule alone, spikes of the emulator in, weights out; *frozen* does the same with
hidden weights that stay random (``delayed_xor_dcll.yaml``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from columns import Accuracies, Bench, Family, Row, Script, all_columns, means


def measure(bench: Bench, families: Mapping[str, Family]) -> Mapping[str, Accuracies]:
    """The healthy target, trained in three ways, and the five columns of faulty ones."""
    scratch = bench.other("delayed_xor_dcll")
    return {
        "bptt": {"fault_free": bench.accuracy(bench.trained)},
        "dcll": {"fault_free": scratch.learned(scratch.untrained, "all")},
        "frozen": {"fault_free": scratch.learned(scratch.untrained, "readout")},
        **all_columns(bench, families),
    }


def claims(rows: Sequence[Row]) -> Mapping[str, bool]:
    """What must hold: the hidden layer has to learn, here and on the faulty target."""
    found = means(rows)
    healthy = {name: found[name]["fault_free"] for name in ("bptt", "dcll", "frozen")}
    held = {
        "bptt of 97 %": healthy["bptt"] >= 0.97,
        "dcll of 97 %": healthy["dcll"] >= 0.97,
        "frozen hidden layer at most 80 %": healthy["frozen"] <= 0.80,
    }
    if mean := found.get("all"):
        held |= {
            "all: loop within 3 points of fault-free": mean["loop"] >= mean["fault_free"] - 0.03,
            "all: readout is not": mean["readout"] < mean["fault_free"] - 0.03,
        }
    return held


SCRIPT = Script("delayed_xor", "Delayed XOR on a faulty target", ("all",), measure, claims)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
