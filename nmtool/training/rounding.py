"""Weights rounded to the chip's format, as ``nmtool.quantization`` does, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, TypeAlias

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

    @property
    def room(self) -> int:
        """How many rows can be added up in the type of ``rows``."""
        return int(np.iinfo(self.rows.dtype).max) // max(self.largest, 1)

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
    grids = _grids(bits, tuple(exact_exponents(bits, "mixed", chip)))
    fits = [k for k, grid in enumerate(grids) if grid.clipped(low, high) <= grid.unit / 2]
    errors = dict[int, float]()
    for k in range(min(len(grids) - 1, fits[0] + 1 if fits else len(grids)), -1, -1):
        if errors and grids[k].clipped(low, high) ** 2 > min(errors.values()) * (1 + CLOSE):
            break
        errors[k] = _squared_error(weight, grids[k])
    best = min(errors, key=lambda k: errors[k])
    near = sum(error <= errors[best] * (1 + CLOSE) for error in errors.values())
    return grids[best].format if near == 1 else choose_format(projection, weight, bits, chip)


class Grid(NamedTuple):
    """The weights of a format: the whole numbers from ``low`` to ``high`` times ``unit``."""

    format: SynapseFormat
    low: float
    high: float
    unit: float

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Scale, lowest and highest number, and unit, as the kernels take them."""
        return 1 / self.unit, self.low, self.high, self.unit

    def clipped(self, low: float, high: float) -> float:
        """By how much the smallest or largest weight lies outside."""
        return max(0.0, high - self.high * self.unit, self.low * self.unit - low)


@cache
def _grids(bits: int, exponents: tuple[int, ...]) -> tuple[Grid, ...]:
    return tuple(_grid(SynapseFormat(bits, e, "mixed")) for e in exponents)


@cache
def _grid(format: SynapseFormat) -> Grid:
    step = format.step
    unit = step * 2.0**format.exponent / WEIGHT_SCALE
    return Grid(format, float(format.minimum // step), float(format.maximum // step), unit)


def _squared_error(weight: Array, grid: Grid) -> float:
    """Of all weights, rounded to a format."""
    rows = max(1, TOGETHER // weight[0].size)
    numbers = grid.numbers
    parts = in_parts(
        len(weight), lambda first, last: kernels.squared_error(weight[first:last], *numbers), rows
    )
    return float(sum(parts))


def round_to(weight: Array, format: SynapseFormat, width: int) -> Rounded:
    """Weights (target, source) rounded to a format, as ``quantize_weights`` does.

    ``width`` is the number of targets of a block.
    """
    n, sources = weight.shape
    count = -(-n // width)
    unit = format.step * 2.0**format.exponent
    ends = (format.minimum * 2.0**format.exponent, format.maximum * 2.0**format.exponent)
    narrow = ends[0] >= np.iinfo(np.int16).min and ends[1] <= np.iinfo(np.int16).max
    rows = aligned((count, sources, width), np.int16 if narrow else np.int32)
    rows[:] = 0
    real = aligned((n, sources), np.float32)
    grid = [weight.dtype.type(number) for number in (*_grid(format).numbers, unit)]
    largest = in_parts(
        count, lambda first, last: kernels.round_weights(first, last, weight, *grid, real, rows)
    )
    return Rounded(real, rows, int(max(largest, default=0)))
