"""Data sets by what an experiment says: their parts, the shape of a sample, and their classes."""

from __future__ import annotations

import math

from nmtool.config import Data, DelayedXor, Digits, JapaneseVowels, MovingDigits, Recorded
from nmtool.data import delayed_xor, digits, japanese_vowels, moving_digits, recorded
from nmtool.data.encoding import encode
from nmtool.data.samples import SPLITS, Samples, Shape
from nmtool.errors import ConfigError
from nmtool.spikes import SpikeTrain


def load_split(data: Data, split: str) -> Samples:
    """One part of a data set: train, validation or test; the same whenever it is asked for.

    Raises:
        ConfigError: an unknown split, parts that leave nothing, or files that are missing or wrong.
        DependencyError: the package that holds the data is missing.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: found {split!r}, allowed {', '.join(SPLITS)}")
    if isinstance(data, Digits):
        return digits.load(data, split)
    if isinstance(data, JapaneseVowels):
        return japanese_vowels.load(data, split)
    if isinstance(data, DelayedXor):
        return delayed_xor.load(data, split)
    if isinstance(data, MovingDigits):
        return moving_digits.load(data, split)
    return recorded.load(data, split)


def check_files(data: Data) -> None:
    """That the files of a data set are there and as published; none is fetched.

    Raises:
        ConfigError, DependencyError: as ``load_split``.
    """
    if isinstance(data, Recorded):
        recorded.check_archives(data)
    else:
        load_split(data, "train")


def spikes_of(samples: Samples, data: Data) -> SpikeTrain:
    """The spikes of samples: as they are, or as the data set's encoding makes them.

    Raises:
        ConfigError: too many for the encoding.
    """
    if samples.spikes is not None:
        return samples.spikes
    assert isinstance(data, Digits)
    assert samples.values is not None
    return encode(samples.values, data.encoding)


def input_shape(data: Data) -> Shape:
    """The shape of a sample without its steps: (x, y, channel), or (lines,)."""
    if isinstance(data, Digits):
        return digits.SHAPE
    if isinstance(data, JapaneseVowels):
        return japanese_vowels.SHAPE
    if isinstance(data, DelayedXor):
        return delayed_xor.shape(data)
    if isinstance(data, MovingDigits):
        return moving_digits.shape(data)
    return recorded.shape(data)


def n_features(data: Data) -> int:
    """Spike lines that a sample of the data set needs."""
    return math.prod(input_shape(data))


def n_classes(data: Data) -> int:
    """The number of classes of the data set."""
    known = {
        "digits": digits.CLASSES,
        "japanese_vowels": japanese_vowels.CLASSES,
        "delayed_xor": delayed_xor.CLASSES,
        "moving_digits": moving_digits.CLASSES,
        **recorded.CLASSES,
    }
    return known[data.name]
