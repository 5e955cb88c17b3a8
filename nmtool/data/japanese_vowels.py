"""Japanese vowels: nine speakers say /ae/; 12 LPC cepstrum coefficients every 6.4 ms.

Kudo, Toyama and Shimbo 1999, UCI Machine Learning Repository. 270 utterances to train and 370 to
test, of 7 to 29 frames. The files are those of the installed package ``aeon``, which is not
imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nmtool.config import FRAMES, JapaneseVowels
from nmtool.data.encoding import delta_encode
from nmtool.data.samples import Samples, stratified
from nmtool.errors import ConfigError, DependencyError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.spikes import SpikeTrain

CLASSES = 9
CHANNELS = 12
SHAPE = (2 * CHANNELS,)
"""On and off of every channel."""
UTTERANCES = {"TRAIN": 270, "TEST": 370}
_FILE = "datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"


@dataclass(frozen=True, eq=False)
class Utterances:
    """Series (samples, frames, channels), 0 after the true number of frames, and speakers."""

    series: FloatArray
    frames: IntArray
    labels: IntArray

    def pick(self, index: IntArray) -> Utterances:
        """The utterances of the given index."""
        return Utterances(self.series[index], self.frames[index], self.labels[index])


def load(data: JapaneseVowels, split: str) -> Samples:
    """One part, as spikes; its raw numbers are all frames one after another.

    Every channel is standardised with mean and standard deviation of the training part's frames.

    Raises:
        DependencyError: the package that holds the files is missing.
        ConfigError: they are damaged, or a validation part that leaves nothing.
    """
    chosen, train = _part(data, split)
    spikes = _encoded(_standardised(chosen, train), chosen, data)
    values = chosen.series.reshape(len(chosen.labels), -1)
    return Samples(values, chosen.labels, SHAPE, spikes)


def noisy(data: JapaneseVowels, rng: np.random.Generator) -> SpikeTrain:
    """Spikes of the training part with ``offset_noise`` and ``frame_noise``, in the order of it."""
    train, _ = _part(data, "train")
    series = _standardised(train, train)
    offset = data.offset_noise * rng.normal(size=(len(series), 1, CHANNELS))
    frame = data.frame_noise * rng.normal(size=series.shape)
    return _encoded(series + offset + frame, train, data)


def scaled(data: JapaneseVowels, split: str, index: IntArray, gain: FloatArray) -> SpikeTrain:
    """Spikes of some utterances whose channels have another amplitude about their mean.

    ``gain`` has the shape (utterances of the index, channels).
    """
    chosen, train = _part(data, split)
    chosen = chosen.pick(index)
    return _encoded(_standardised(chosen, train) * gain[:, None, :], chosen, data)


def _part(data: JapaneseVowels, split: str) -> tuple[Utterances, Utterances]:
    """The utterances of a part, and those of the training part."""
    published = read("TRAIN")
    parts = stratified(published.labels, {"validation": data.validation}, data.split_seed)
    chosen = read("TEST") if split == "test" else published.pick(parts[split])
    return chosen, published.pick(parts["train"])


def _standardised(chosen: Utterances, train: Utterances) -> FloatArray:
    spoken = np.arange(FRAMES) < train.frames[:, None]
    every = train.series[spoken]
    return np.asarray((chosen.series - every.mean(axis=0)) / every.std(axis=0))


def _encoded(series: FloatArray, of: Utterances, data: JapaneseVowels) -> SpikeTrain:
    return SpikeTrain.from_raster(delta_encode(series, of.frames, data.encoding))


@lru_cache(maxsize=2)
def read(part: str) -> Utterances:
    """The published part TRAIN or TEST.

    Raises:
        DependencyError: the package that holds the files is missing.
        ConfigError: they are damaged.
    """
    path = _path(part)
    try:
        return parse(path.read_text(encoding="utf-8"), UTTERANCES[part])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data japanese_vowels: {path}: {error}; reinstall with: pip install --force-reinstall "
            "--no-deps aeon==1.6.0"
        ) from None


def _path(part: str) -> Path:
    package = importlib.util.find_spec("aeon")
    if package is None or not package.submodule_search_locations:
        raise DependencyError(
            "data japanese_vowels: its files come with the package aeon, which is not installed; "
            "install with: pip install --no-deps aeon==1.6.0"
        )
    return Path(package.submodule_search_locations[0]) / _FILE.format(part)


def parse(text: str, utterances: int) -> Utterances:
    """The series of a .ts file: a line an utterance, channels between colons, the speaker last.

    Raises:
        ValueError: another number of utterances, channels or frames, or no numbers.
    """
    _, mark, body = text.partition("@data")
    lines = body.split()
    if not mark or len(lines) != utterances:
        raise ValueError(f"found {len(lines)} utterances, allowed {utterances}")
    series = np.zeros((utterances, FRAMES, CHANNELS))
    frames, labels = np.zeros((2, utterances), dtype=np.int64)
    for index, line in enumerate(lines):
        *channels, speaker = line.split(":")
        values = np.array([[float(x) for x in channel.split(",")] for channel in channels])
        frames[index], labels[index] = values.shape[1], int(speaker) - 1
        if len(values) != CHANNELS or not 1 <= values.shape[1] <= FRAMES:
            raise ValueError(f"utterance {index}: found shape {values.shape}")
        series[index, : values.shape[1]] = values.T
    if not np.isfinite(series).all() or set(labels) != set(range(CLASSES)):
        raise ValueError("found numbers or speakers out of range")
    return Utterances(series, frames, labels)
