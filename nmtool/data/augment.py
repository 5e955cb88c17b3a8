"""Samples that differ from epoch to epoch, to train on: moved images, noisy speech."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nmtool.config import Data, JapaneseVowels
from nmtool.data import japanese_vowels
from nmtool.data.samples import Samples
from nmtool.data.sets import input_shape, spikes_of
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.spikes import SpikeTrain

IMAGE_AXES = 3


def check_jitter(data: Data, jitter: int) -> None:
    """Refuse to move what is no image.

    Raises:
        ConfigError: jitter of a data set of lines.
    """
    if jitter and len(input_shape(data)) != IMAGE_AXES:
        raise ConfigError(
            f"train.jitter: found {jitter}, allowed 0: the samples of {data.name} are no images"
        )


def varied(
    samples: Samples, data: Data, jitter: int, rng: np.random.Generator
) -> Callable[[IntArray], SpikeTrain]:
    """The spikes of any of the training samples as an epoch has them.

    Half of the images are moved by up to ``jitter`` pixels; nothing comes in at the edge, what
    moves beyond it is gone. Spoken vowels get the noise that their section says. Spikes are moved
    when they are asked for: a recorded data set is too large to be held twice.
    """
    if isinstance(data, JapaneseVowels) and (data.offset_noise or data.frame_noise):
        return japanese_vowels.noisy(data, rng).select
    if samples.spikes is None:
        moved = Samples(shifted(samples, jitter, rng), samples.labels, samples.shape)
        return spikes_of(moved, data).select
    spikes = samples.spikes
    if not jitter:
        return spikes.select
    moves = _moves(len(samples), jitter, rng)
    return lambda index: _shifted_events(spikes.select(index), samples.shape, moves[index])


def shifted(samples: Samples, jitter: int, rng: np.random.Generator) -> FloatArray:
    """Half of the images moved by up to ``jitter`` pixels in x and y, zeros coming in."""
    assert samples.values is not None
    if not jitter:
        return samples.values
    n, (height, width) = len(samples), samples.shape[:2]
    move = _moves(n, jitter, rng)
    padded = np.pad(samples.values.reshape(n, height, width), ((0, 0), *[(jitter, jitter)] * 2))
    rows = (move[:, :1] + jitter + np.arange(height))[:, :, None]
    columns = (move[:, 1:] + jitter + np.arange(width))[:, None, :]
    return np.asarray(padded[np.arange(n)[:, None, None], rows, columns].reshape(n, -1))


def _moves(n: int, jitter: int, rng: np.random.Generator) -> IntArray:
    """(samples, 2): pixels in x and y."""
    moves = rng.integers(-jitter, jitter + 1, size=(n, 2)) * (rng.random((n, 1)) < 0.5)
    return np.asarray(moves, dtype=np.int64)


def _shifted_events(spikes: SpikeTrain, shape: tuple[int, ...], move: IntArray) -> SpikeTrain:
    x, y, channel = np.unravel_index(spikes.neuron, shape)
    x, y = x + move[spikes.sample, 0], y + move[spikes.sample, 1]
    kept = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
    neuron = np.ravel_multi_index((x[kept], y[kept], channel[kept]), shape)
    sizes = (spikes.n_samples, spikes.n_neurons, spikes.n_steps)
    return SpikeTrain.from_events(spikes.sample[kept], spikes.step[kept], neuron, *sizes)
