"""One CUBA neuron under many hypotheses, compiled: what each leaves unexplained.

The arithmetic is that of :mod:`nmtool.fixedpoint`, as :func:`nmtool.measure.equations.replay` has
it in numpy; the tests hold the two against each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from nmtool.fixedpoint import ALIGN_BITS, STATE_BITS, STATE_LIMIT

_FAST: Any = {"nogil": True, "error_model": "numpy", "cache": True}
_MASK = (1 << STATE_BITS) - 1


@njit(inline="always", **_FAST)
def _decayed(state: int, keep: int) -> int:
    """Towards zero: ``sign(x) ((|x| keep) >> 12)``."""
    if state < 0:
        return -((-state * keep) >> 12)
    return (state * keep) >> 12


@njit(**_FAST)
def residuals(
    arrived: Any,
    bias: Any,
    parts: Any,
    way: Any,
    change: Any,
    run: Any,
    registers: Any,
    refractory: int,
    interval: int,
    offset: int,
    found: Any,
    known: Any,
) -> Any:
    """Counts (hypotheses, 4) of steps with a spike predicted and found, predicted, found, neither.

    Args:
        arrived: weighted sums that reach the neuron, shape (samples, steps).
        bias: likewise.
        parts: spikes that arrive through single weights, shape (weights, samples, steps).
        way: of each hypothesis the weight that is another, -1 for none.
        change: what it adds more for each spike, shape (hypotheses, runs).
        run: of each sample.
        registers: keep_u, keep_v and threshold (in units of v) of each hypothesis, shape (3, ...).
        refractory: steps for which v is held at 0 from a spike on.
        interval: steps between periodic resets, 0 for none.
        offset: the step of the first of them.
        found: where the neuron was measured to spike, shape (samples, steps).
        known: where it was measured, likewise.
    """
    hypotheses, (samples, steps) = way.size, arrived.shape
    counts = np.zeros((hypotheses, 4), dtype=np.int64)
    for h in range(hypotheses):
        keep_u, keep_v, level = registers[0, h], registers[1, h], registers[2, h]
        w = way[h]
        for s in range(samples):
            more = change[h, run[s]] if w >= 0 else 0
            u, v, paused = 0, 0, 0
            for t in range(steps):
                if interval > 0 and t % interval == offset % interval:
                    u, v, paused = 0, 0, 0
                total = arrived[s, t]
                if more != 0:
                    total += more * parts[w, s, t]
                u = _decayed(u, keep_u) + (total << ALIGN_BITS)
                u = STATE_LIMIT - ((STATE_LIMIT - u) & _MASK)
                v = _decayed(v, keep_v) + u + bias[s, t]
                v = min(max(v, 1 - STATE_LIMIT), STATE_LIMIT - 1)
                if paused > 0:
                    v = 0
                fired = v > level and paused == 0
                here = known[s, t]
                spiked = here and found[s, t]
                if here:
                    counts[h, (0 if spiked else 1) if fired else (2 if spiked else 3)] += 1
                if fired or spiked:
                    v = 0
                    paused = refractory - 1
                elif paused > 0:
                    paused -= 1
    return counts
