"""Raw samples to spikes, as an experiment's encoding says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nmtool.config import DeltaEncoding, Encoding, RandomEncoding, RateEncoding
from nmtool.errors import ConfigError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.spikes import SpikeTrain, latency, rate_random, rate_regular

MAX_RASTER = 1 << 29
"""Samples times features times steps, each a number of 8 bytes on the way."""


def encode(values: npt.ArrayLike, encoding: Encoding) -> SpikeTrain:
    """Spikes of raw samples in [0, 1], shape (samples, features).

    Raises:
        ConfigError: another shape, values outside [0, 1], or more than MAX_RASTER steps in all.
    """
    samples = np.asarray(values)
    if samples.dtype.kind not in "biuf":
        raise ConfigError(f"raw samples: found values of type {samples.dtype}, allowed numbers")
    intensity = samples.astype(np.float64)
    if intensity.ndim != 2:
        raise ConfigError(
            f"raw samples: found shape {intensity.shape}, allowed (samples, features)"
        )
    if not np.all((intensity >= 0) & (intensity <= 1)):
        raise ConfigError(
            f"raw samples: found values from {intensity.min():g} to {intensity.max():g}, "
            "allowed 0 to 1"
        )
    if (size := intensity.size * (encoding.steps + 1)) > MAX_RASTER:
        raise ConfigError(
            f"encoding: found {intensity.shape[0]} samples x {intensity.shape[1]} features x "
            f"{encoding.steps} steps, {size} in all, allowed {MAX_RASTER}; use fewer steps"
        )
    if isinstance(encoding, RateEncoding):
        raster = rate_regular(intensity, encoding.steps, encoding.max_rate)
    elif isinstance(encoding, RandomEncoding):
        raster = rate_random(intensity, encoding.steps, encoding.max_rate, encoding.seed)
    else:
        raster = latency(intensity, encoding.steps)
    return SpikeTrain.from_raster(raster)


def delta_encode(series: FloatArray, frames: IntArray, encoding: DeltaEncoding) -> BoolArray:
    r"""On and off spikes of time series: send-on-delta, one threshold at a step.

    Every channel has a reference r, at first 0. At step t, of frame f = floor(t / hold),

    .. math:: on_t = x_f - r \ge \theta,\quad off_t = r - x_f \ge \theta,\quad
        r \leftarrow r + \theta\,(on_t - off_t) ,

    so that theta times the on spikes less the off spikes follows x to within theta, as fast as
    theta a step. After its last frame a series sends nothing. Source: step-forward encoding, Petro,
    Kasabov and Kiss 2020.

    Args:
        series: (samples, frames, channels), in units of the channels' standard deviations.
        frames: true number of frames of each series, (samples,).
        encoding: threshold theta, hold, and steps.

    Returns:
        (samples, 2 channels, steps); line 2 c is on, 2 c + 1 off of channel c.
    """
    n, longest, channels = series.shape
    spikes = np.zeros((n, channels, 2, encoding.steps), dtype=np.bool_)
    reference = np.zeros((n, channels))
    for step in range(min(encoding.steps, longest * encoding.hold)):
        frame = step // encoding.hold
        change = np.where((frame < frames)[:, None], series[:, frame] - reference, 0.0)
        on, off = change >= encoding.threshold, change <= -encoding.threshold
        spikes[:, :, 0, step], spikes[:, :, 1, step] = on, off
        reference += encoding.threshold * (on.astype(np.float64) - off)
    return spikes.reshape(n, 2 * channels, encoding.steps)
