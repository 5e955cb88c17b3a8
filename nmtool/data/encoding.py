"""Raw samples to spikes, as an experiment's encoding says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nmtool.config import Encoding, RandomEncoding, RateEncoding
from nmtool.errors import ConfigError
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
