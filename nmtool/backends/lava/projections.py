"""The kinds of projections that a job can hold: dense, sparse and convolution.

The sum of a step is shifted by weight_exponent. A dense or sparse projection is clipped to 8 bits,
truncated to weight_bits, and to even values where sign_mode is "mixed", as Lava does it. A delay
is a whole number of steps on top of the one step a spike takes anyway. An empty name becomes
``source->target`` in the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava.ranges import require, within
from nmtool.errors import UnsupportedError
from nmtool.fixedpoint import exact_shift

SIGN_RANGE = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}
MAX_DELAY = 62


@dataclass(frozen=True, eq=False)
class LavaProjection:
    """Dense synapses from an input or a population to a population.

    weight_mantissa is (out, in) as Lava takes it; delay is one for all or (out, in).
    """

    source: str
    target: str
    weight_mantissa: NDArray[Any]
    weight_exponent: int = 0
    weight_bits: int = 8
    sign_mode: str = "mixed"
    delay: int | NDArray[Any] = 0
    name: str = ""

    def __post_init__(self) -> None:
        where, weights = _where(self.source, self.target), self.weight_mantissa
        require(weights.ndim == 2, f"{where}: weight_mantissa must be (out, in)")
        _require_synapses(where, weights, self.sign_mode, self.delay)

    @property
    def shape(self) -> tuple[int, ...]:
        """Neurons of the target and of the source."""
        return self.weight_mantissa.shape

    @property
    def longest_delay(self) -> int:
        """The longest delay in steps."""
        return int(np.max(self.delay, initial=0))

    def check_weights(self, name: str) -> None:
        """Raise UnsupportedError where a mantissa leaves the chip's range."""
        check_weights(name, self.weight_mantissa, self.sign_mode)

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks few)."""
        self.check_weights(name)
        _check_synapses(name, self.weight_exponent, self.weight_bits, self.delay)


@dataclass(frozen=True, eq=False)
class LavaSparseProjection:
    """Single synapses: number i runs from neuron pre[i] of the source to post[i] of the target.

    shape is (out, in); post, pre and weight_mantissa are (synapses,), and so is delay unless it is
    one for all. There is at most one synapse for each pair; none at all is allowed.
    """

    source: str
    target: str
    shape: tuple[int, int]
    post: NDArray[Any]
    pre: NDArray[Any]
    weight_mantissa: NDArray[Any]
    weight_exponent: int = 0
    weight_bits: int = 8
    sign_mode: str = "mixed"
    delay: int | NDArray[Any] = 0
    name: str = ""

    def __post_init__(self) -> None:
        where, weights = _where(self.source, self.target), self.weight_mantissa
        object.__setattr__(self, "shape", _integers(where, "shape", self.shape, 2, 1))
        require(weights.ndim == 1, f"{where}: weight_mantissa must be (synapses,)")
        _require_synapses(where, weights, self.sign_mode, self.delay)
        for what, index, size in (("post", self.post, 0), ("pre", self.pre, 1)):
            require(index.shape == weights.shape, f"{where}: {what} is not (synapses,)")
            require(index.dtype.kind in "iu", f"{where}: {what} must be integer")
            inside = index.size == 0 or 0 <= index.min() <= index.max() < self.shape[size]
            require(inside, f"{where}: {what} leaves 0..{self.shape[size] - 1}")
        pairs = self.post.astype(np.int64) * self.shape[1] + self.pre
        require(np.unique(pairs).size == pairs.size, f"{where}: a pair has several synapses")

    @property
    def longest_delay(self) -> int:
        """The longest delay in steps."""
        return int(np.max(self.delay, initial=0))

    def check_weights(self, name: str) -> None:
        """Raise UnsupportedError where a mantissa leaves the chip's range."""
        check_weights(name, self.weight_mantissa, self.sign_mode)

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks few)."""
        self.check_weights(name)
        _check_synapses(name, self.weight_exponent, self.weight_bits, self.delay)


@dataclass(frozen=True, eq=False)
class LavaConvProjection:
    """A convolution as torch's conv2d does it: the kernel is not flipped.

    weight_mantissa is (c_out, kernel_x, kernel_y, c_in / groups) and input_shape (x, y, c_in);
    stride, padding and dilation are (x, y). Neurons are numbered in C order of (x, y, c) on both
    ends. There is no delay. Lava's Conv neither clips nor truncates weights: the mantissas act as
    they stand, and a weight_exponent below 0 must divide all of them without a rest.
    """

    source: str
    target: str
    weight_mantissa: NDArray[Any]
    input_shape: tuple[int, int, int]
    weight_exponent: int = 0
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        where, weights = _where(self.source, self.target), self.weight_mantissa
        for what, count, least in (
            ("input_shape", 3, 1),
            ("stride", 2, 1),
            ("padding", 2, 0),
            ("dilation", 2, 1),
        ):
            values = _integers(where, what, getattr(self, what), count, least)
            object.__setattr__(self, what, values)
        layout = "(c_out, kernel_x, kernel_y, c_in / groups)"
        require(weights.ndim == 4 and weights.size > 0, f"{where}: weights must be {layout}")
        require(weights.dtype.kind in "iu", f"{where}: weights must be integer")
        c_out, *_, c_in = weights.shape
        fits = self.groups >= 1 and c_out % self.groups == 0
        fits = fits and c_in * self.groups == self.input_shape[2]
        require(fits, f"{where}: {weights.shape} is not {layout} with {self.groups} groups")
        require(min(self.output_shape) >= 1, f"{where}: the kernel is larger than its input")
        cut = f"{where}: weight_exponent {self.weight_exponent} would cut off bits of a weight"
        require(exact_shift(weights, self.weight_exponent), cut)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """The target's neurons as (x, y, c_out)."""
        c_out, *kernel, _ = self.weight_mantissa.shape
        x, y = (
            (self.input_shape[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return x, y, c_out

    @property
    def shape(self) -> tuple[int, int]:
        """Neurons of the target and of the source."""
        return int(np.prod(self.output_shape)), int(np.prod(self.input_shape))

    @property
    def longest_delay(self) -> int:
        """A convolution has no delay."""
        return 0

    def check_weights(self, name: str) -> None:
        """Raise UnsupportedError where a mantissa leaves the chip's range."""
        weights = self.weight_mantissa
        check_weights(name, weights, "mixed")
        odd = bool((weights & 1).any()) and bool(weights.min() < 0 < weights.max())
        if odd:
            raise UnsupportedError(f"{name}: odd weight_mantissa in a kernel of both signs")

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks none)."""
        self.check_weights(name)
        within(name, "weight_exponent", [self.weight_exponent], -8, 7)


Projection = LavaProjection | LavaSparseProjection | LavaConvProjection


def check_weights(name: str, weights: NDArray[Any], sign_mode: str) -> None:
    """Raise UnsupportedError if a weight mantissa leaves the range of its sign mode."""
    within(name, f"weight_mantissa ({sign_mode})", weights, *SIGN_RANGE[sign_mode])


def _where(source: str, target: str) -> str:
    return f"projection {source}->{target}"


def _require_synapses(
    where: str, weights: NDArray[Any], sign_mode: str, delay: int | NDArray[Any]
) -> None:
    require(weights.dtype.kind in "iu", f"{where}: weights must be integer")
    require(sign_mode in SIGN_RANGE, f"{where}: unknown sign_mode {sign_mode!r}")
    if isinstance(delay, np.ndarray):
        require(delay.shape == weights.shape, f"{where}: delay is not shaped as the weights are")
        require(delay.dtype.kind in "iu", f"{where}: delays must be integer")


def _check_synapses(name: str, exponent: int, bits: int, delay: int | NDArray[Any]) -> None:
    within(name, "weight_exponent", [exponent], -8, 7)
    within(name, "weight_bits", [bits], 1, 8)
    within(name, "delay", delay, 0, MAX_DELAY)


def _integers(where: str, what: str, values: Any, count: int, least: int) -> tuple[int, ...]:
    found = tuple(int(value) for value in values)
    fits = len(found) == count and min(found) >= least
    require(fits, f"{where}: {what} must be {count} numbers of at least {least}, got {found}")
    return found
