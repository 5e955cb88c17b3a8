"""Weights rounded to the chip's format, as ``nmtool.quantization`` does, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.chip import ChipSpec, SynapseFormat
from nmtool.quantization import WEIGHT_SCALE, choose_format, exact_exponents
from nmtool.training import kernels
from nmtool.training.memory import aligned
from nmtool.training.parts import in_parts

Array: TypeAlias = npt.NDArray[Any]

CLOSE = 1e-9
"""Squared errors this near to each other, relatively, may come out in another order."""

TOGETHER = 1 << 15
"""Weights that are rounded by one thread at least."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """Weights (target, source) rounded to the chip's format.

    Attributes:
        real: in real units, float32 (target, source).
        rows: in units of 1/64, (blocks of targets, source, target in the block), 16 bits if
            they suffice.
        largest: the largest size in units of 1/64.
    """

    real: Array
    rows: Array
    largest: int

    @cached_property
    def real_rows(self) -> Array:
        """``rows`` in real units, float32, one after the other."""
        return (self.rows.reshape(-1) / np.float32(WEIGHT_SCALE)).astype(np.float32, copy=False)


def closest_format(projection: str, weight: Array, bits: int, chip: ChipSpec) -> SynapseFormat:
    """What ``choose_format`` gives, from the few exponents that can be the best.

    Among exponents that clip no weight the finest has the smallest error, for its numbers hold
    those of the coarser ones. A finer one cannot win once the largest weight alone is clipped by
    more than the best error. Where two errors are as good as equal, ``choose_format`` decides.
    """
    low, high = (float(f(initial=0)) for f in (weight.min, weight.max))
    both = np.isfinite([low, high]).all() and low < 0 < high
    if not (both and bits > 1 and bits in chip.weight_bits):
        return choose_format(projection, weight, bits, chip)
    formats = _formats(bits, tuple(exact_exponents(bits, "mixed", chip)))
    fits = [k for k, f in enumerate(formats) if _clipped(f, low, high) <= _unit(f) / 2]
    errors = dict[int, float]()
    for k in range(min(len(formats) - 1, fits[0] + 1 if fits else len(formats)), -1, -1):
        if errors and _clipped(formats[k], low, high) ** 2 > min(errors.values()) * (1 + CLOSE):
            break
        errors[k] = _squared_error(weight, formats[k])
    best = min(errors, key=lambda k: errors[k])
    near = sum(error <= errors[best] * (1 + CLOSE) for error in errors.values())
    return formats[best] if near == 1 else choose_format(projection, weight, bits, chip)


@cache
def _formats(bits: int, exponents: tuple[int, ...]) -> tuple[SynapseFormat, ...]:
    return tuple(SynapseFormat(bits, e, "mixed") for e in exponents)


def _squared_error(weight: Array, format: SynapseFormat) -> float:
    """Of all weights, rounded to a format."""
    grid, rows = _grid(format), max(1, TOGETHER // weight[0].size)
    parts = in_parts(
        len(weight), lambda first, last: kernels.squared_error(weight[first:last], *grid), rows
    )
    return float(sum(parts))


def _unit(format: SynapseFormat) -> float:
    """The distance between neighbouring weights, in real units."""
    return format.step * 2.0**format.exponent / WEIGHT_SCALE


def _clipped(format: SynapseFormat, low: float, high: float) -> float:
    """By how much the smallest or largest weight lies outside of a format."""
    unit = _unit(format) / format.step
    return max(0.0, high - format.maximum * unit, format.minimum * unit - low)


def _grid(format: SynapseFormat) -> tuple[float, float, float, float]:
    """Scale, lowest and highest number, and unit of a format's grid."""
    ends = (format.minimum // format.step, format.maximum // format.step)
    return 1 / _unit(format), float(ends[0]), float(ends[1]), _unit(format)


def round_to(weight: Array, format: SynapseFormat, width: int) -> Rounded:
    """Weights (target, source) rounded to a format, as ``quantize_weights`` does.

    ``width`` is the number of targets of a block.
    """
    n, sources = weight.shape
    count = -(-n // width)
    unit = format.step * 2.0**format.exponent
    ends = (format.minimum * 2.0**format.exponent, format.maximum * 2.0**format.exponent)
    narrow = ends[0] >= np.iinfo(np.int16).min and ends[1] <= np.iinfo(np.int16).max
    rows = np.zeros((count, sources, width), np.int16 if narrow else np.int32)
    real = aligned((n, sources), np.float32)
    largest = in_parts(
        count,
        lambda first, last: kernels.round_weights(
            first, last, weight, *_grid(format), unit, real, rows
        ),
    )
    return Rounded(real, rows, int(max(largest, default=0)))
