"""scikit-learn's handwritten digits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nmtool.config import Digits
from nmtool.data.samples import Parts, Samples, stratified

SHAPE = (8, 8, 1)
"""Rows, columns, and one channel."""
CLASSES = 10


@lru_cache(maxsize=1)
def images() -> Samples:
    """All 1,797 images of 8 x 8 pixels, as numbers in [0, 1]. Source: scikit-learn, from UCI."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Samples(bunch.data / 16.0, bunch.target.astype(np.int64), SHAPE)


@lru_cache(maxsize=8)
def parts(test: int, validation: int, seed: int) -> Parts:
    """The images of each split.

    Raises:
        ConfigError: parts that leave nothing.
    """
    return stratified(images().labels, {"test": test, "validation": validation}, seed)


def load(data: Digits, split: str) -> Samples:
    """One part of the digits, as raw numbers."""
    return images().pick(parts(data.test, data.validation, data.split_seed)[split])
