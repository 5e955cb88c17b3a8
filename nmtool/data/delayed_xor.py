"""Two cues, a delay between them, and a go signal; the class is whether the cues differ."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nmtool.config import DelayedXor
from nmtool.data.samples import SPLITS, Samples
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.spikes import SpikeTrain

CLASSES = 2
GROUPS = 3
"""Lines for a cue of kind 0, for a cue of kind 1, and for the go signal."""


def shape(data: DelayedXor) -> tuple[int]:
    """Its lines, group after group."""
    return (GROUPS * data.lines,)


@lru_cache(maxsize=8)
def load(data: DelayedXor, split: str) -> Samples:
    """One part: every combination of cues as often as any other, but for a rest of three.

    Both cues use the same two groups of lines, so that a line's count tells that a cue was there
    but no sum of counts tells whether the two were different; nor does the count in any interval.
    """
    sizes = {"train": data.train, "validation": data.validation, "test": data.test}
    rng = np.random.default_rng([data.seed, SPLITS.index(split)])
    pair = rng.permutation(np.arange(sizes[split]) % 4)
    cues = np.stack([pair // 2, pair % 2], axis=1)
    spikes = SpikeTrain.from_raster(_draw(data, cues, rng))
    return Samples(None, cues[:, 0] ^ cues[:, 1], shape(data), spikes)


def _draw(data: DelayedXor, cues: IntArray, rng: np.random.Generator) -> BoolArray:
    """Spikes (samples, lines, steps) of cues (samples, 2)."""
    n = len(cues)
    probability = np.full((n, GROUPS, data.n_steps), data.noise)
    signals = np.column_stack([cues, np.full(n, GROUPS - 1)])
    for index, group in enumerate(signals.T):
        begin = index * (data.cue + data.delay)
        probability[np.arange(n), group, begin : begin + data.cue] = data.rate
    chance = np.repeat(probability, data.lines, axis=1)
    return np.asarray(rng.random(chance.shape) < chance)
