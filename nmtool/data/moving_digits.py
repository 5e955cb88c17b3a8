r"""scikit-learn's digits before an event camera that makes three saccades, as N-MNIST was made.

The camera sees image I (8 x 8, brightness 0 to 1), enlarged to three quarters of its width by
linear interpolation and moved by p(t). With :math:`A_{xi}(p) = \max(0, 1 - |(x - p)/s - i|)`,

.. math:: L(t) = A(p_x(t))\, I\, A(p_y(t))^\top .

A pixel sends an on event where L has risen by the threshold since its last event, an off event
where it has fallen by as much, at most one in a step (Lichtsteiner et al. 2008, on brightness in
place of its logarithm). The path is a triangle, an edge a saccade (Orchard et al. 2015), turned by
an angle that is drawn for each image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nmtool.config import MovingDigits
from nmtool.data import digits
from nmtool.data.samples import Samples
from nmtool.fixedpoint import BoolArray, FloatArray
from nmtool.spikes import SpikeTrain

CLASSES = digits.CLASSES
PIXELS = 8
DRAWN = 0.75
"""Of the camera's width that the digit takes."""
RADIUS = 0.125
"""Of the camera's width: how far the corners of the path are from its middle."""
ON, OFF = 0, 1


def shape(data: MovingDigits) -> tuple[int, int, int]:
    """(x, y, channel); channel 0 is on, 1 is off."""
    return (data.size, data.size, 2)


def load(data: MovingDigits, split: str) -> Samples:
    """One part: the digits of that part of ``digits``, seen by the camera."""
    index = digits.parts(data.test, data.validation, data.split_seed)[split]
    return _events(data.size, data.steps, data.threshold, data.motion_seed).pick(index)


@lru_cache(maxsize=2)
def _events(size: int, steps: int, threshold: float, seed: int) -> Samples:
    everything = digits.images()
    assert everything.values is not None
    images = everything.values.reshape(-1, PIXELS, PIXELS).transpose(0, 2, 1)  # (x, y)
    path = _path(len(images), steps, RADIUS * size, np.random.default_rng([seed, 3]))
    seen = camera(images, path, size, threshold)
    sample, step, line = np.nonzero(seen.reshape(len(images), steps, -1))
    sizes = (len(images), size * size * 2, steps)
    spikes = SpikeTrain.from_events(sample, step, line, *sizes)
    return Samples(None, everything.labels, (size, size, 2), spikes)


def _path(n: int, steps: int, radius: float, rng: np.random.Generator) -> FloatArray:
    """Where each digit's middle is, (samples, steps + 1, 2) in pixels from the camera's."""
    corner = rng.random((n, 1)) * 2 * np.pi + np.arange(4) * 2 * np.pi / 3
    corners = radius * np.stack([np.cos(corner), np.sin(corner)], axis=-1)
    place = np.linspace(0, 3, steps + 1)
    edge = np.minimum(place.astype(np.int64), 2)
    along = (place - edge)[None, :, None]
    return np.asarray(corners[:, edge] * (1 - along) + corners[:, edge + 1] * along)


def camera(images: FloatArray, path: FloatArray, size: int, threshold: float) -> BoolArray:
    """Events (samples, steps, x, y, on or off) of images (samples, x, y) that move along paths.

    Args:
        images: brightness in [0, 1].
        path: of their middles, (samples, steps + 1, 2); the camera starts at the first.
        size: pixels of the camera in x and y.
        threshold: change of brightness that makes an event.
    """
    steps = path.shape[1] - 1
    events = np.zeros((len(images), steps, size, size, 2), dtype=np.bool_)
    reference = _seen(images, path[:, 0], size)
    for step in range(steps):
        change = _seen(images, path[:, step + 1], size) - reference
        on, off = change >= threshold, change <= -threshold
        events[:, step, ..., ON], events[:, step, ..., OFF] = on, off
        reference = np.where(on | off, reference + change, reference)
    return events


def _seen(images: FloatArray, middle: FloatArray, size: int) -> FloatArray:
    pixels = images.shape[1]
    scale = DRAWN * size / pixels
    place = (np.arange(size) + 0.5 - size / 2 - middle[..., None]) / scale + (pixels - 1) / 2
    hat = np.maximum(0, 1 - np.abs(place[..., None] - np.arange(pixels)))
    return np.asarray(hat[:, 0] @ images @ hat[:, 1].transpose(0, 2, 1))
