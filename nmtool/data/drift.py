"""Samples of a stream whose input changes slowly, from the first one to the last one."""

from __future__ import annotations

import numpy as np

from nmtool.config import Data, Digits, Drift, FadeDrift, JapaneseVowels, RotateDrift
from nmtool.data import japanese_vowels
from nmtool.data.encoding import encode
from nmtool.data.samples import Samples
from nmtool.data.sets import load_split, spikes_of
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.spikes import SpikeTrain

ALLOWED = {"rotate": ("digits",), "fade": ("digits", "japanese_vowels")}
"""The data sets that each drift is for: what it changes is there before the encoding."""


def drifting(
    data: Data, split: str, index: IntArray, drift: Drift | None, rng: np.random.Generator
) -> tuple[SpikeTrain, IntArray]:
    """Spikes and labels of the samples of the given index, as a drift has them in this order.

    A drift grows evenly, from nothing at the first sample to all of it at the last one.

    Raises:
        ConfigError: a drift that is not for this data set.
    """
    check_drift(data, drift)
    samples = load_split(data, split).pick(index)
    if drift is None:
        return spikes_of(samples, data), samples.labels
    if isinstance(data, JapaneseVowels):
        assert isinstance(drift, FadeDrift)
        gain = gains(len(index), japanese_vowels.CHANNELS, drift, rng)
        return japanese_vowels.scaled(data, split, index, gain), samples.labels
    assert isinstance(data, Digits)
    return encode(_changed(samples, drift, rng), data.encoding), samples.labels


def check_drift(data: Data, drift: Drift | None) -> None:
    """Refuse a drift of what a data set does not have.

    Raises:
        ConfigError: a drift that is not for this data set.
    """
    if drift is not None and data.name not in ALLOWED[drift.kind]:
        raise ConfigError(
            f"finetune.stream.drift: found {drift.kind} with the data set {data.name}, "
            f"allowed with {', '.join(ALLOWED[drift.kind])}"
        )


def _changed(samples: Samples, drift: Drift, rng: np.random.Generator) -> FloatArray:
    assert samples.values is not None
    if isinstance(drift, RotateDrift):
        return rotated(samples.values, samples.shape[:2], np.linspace(0, drift.to, len(samples)))
    n_samples, n_pixels = samples.values.shape
    return np.asarray(samples.values * gains(n_samples, n_pixels, drift, rng))


def rotated(values: FloatArray, shape: tuple[int, ...], degrees: FloatArray) -> FloatArray:
    """Images (samples, pixels) turned about their middle, by linear interpolation.

    Nothing comes in at the corners, what leaves the image is gone.
    """
    from scipy.ndimage import rotate

    images = values.reshape(len(values), *shape)
    turned = [
        rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(images, degrees, strict=True)
    ]
    # Linear interpolation stays within its neighbours but for rounding.
    return np.clip(np.reshape(turned, values.shape), 0.0, 1.0)


def gains(
    n_samples: int, n_channels: int, drift: FadeDrift, rng: np.random.Generator
) -> FloatArray:
    """The amplitude of every channel at every sample, shape (samples, channels)."""
    fading = rng.permutation(n_channels) < np.rint(drift.channels * n_channels)
    lost = np.linspace(0, 1 - drift.to, n_samples)
    return np.asarray(1 - lost[:, None] * fading)
