"""The kinds of populations that a job can hold: LIF, and Lava's sigma-delta family.

Each kind says whether its messages are graded (int32 payloads, 0 for none) or spikes (0 or 1), and
which quantities it records: "spikes" is what it sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava.ranges import require, within
from nmtool.fixedpoint import STATE_LIMIT

ACTIVATIONS = ("relu", "unit")


@dataclass(frozen=True, eq=False)
class LavaPopulation:
    """A population of n LIF neurons with one setting.

    decay_u is Lava's ``du`` (the chip applies decay_u + 1) and decay_v its ``dv``, both of 4096;
    threshold is the mantissa ``vth``; the bias is ``bias_mantissa << bias_exponent``, shape (n,).
    Unless reset_interval is 0, u and v are set to 0 at each step k with k % reset_interval ==
    reset_offset % reset_interval, before it integrates; k counts from 0 at the start of each
    sample, and of a stream.

    Outside of the chip's range, and so only with check=False, decay_u = -1 keeps u without decay,
    decay_v = 4096 forgets v, and the threshold 131072 is never crossed.
    """

    graded: ClassVar[bool] = False
    records: ClassVar[tuple[str, ...]] = ("spikes", "current", "voltage")

    n: int
    decay_u: int
    decay_v: int
    threshold: int
    bias_mantissa: NDArray[Any] | None = None
    bias_exponent: int = 0
    reset_interval: int = 0
    reset_offset: int = 0

    def __post_init__(self) -> None:
        _require_size(self.n)
        _require_per_neuron("bias_mantissa", self.bias_mantissa, self.n)
        if self.bias_mantissa is not None:
            bias = int(np.abs(self.bias_mantissa.astype(np.int64)).max())
            fits = bias << max(0, self.bias_exponent) < 1 << 30
            require(fits, f"the bias {bias} << {self.bias_exponent} does not fit into 31 bits")
        require(self.reset_interval >= 0, f"reset_interval {self.reset_interval} is below 0")

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks none)."""
        bias = np.zeros(1, np.int64) if self.bias_mantissa is None else self.bias_mantissa
        within(name, "decay_u", [self.decay_u], 0, 4095)
        within(name, "decay_v", [self.decay_v], 0, 4095)
        within(name, "threshold", [self.threshold], 0, 131071)
        within(name, "bias_mantissa", bias, -4096, 4095)
        within(name, "bias_exponent", [self.bias_exponent], 0, 7)


@dataclass(frozen=True, eq=False)
class LavaDelta:
    """Lava's Delta: sends a change of its input once it amounts to vth, and keeps the rest.

    The input is ``a_in << (spike_exp + state_exp)``, and vth is scaled alike; messages are
    ``change >> state_exp``. Records: spikes (the messages) and voltage (the input, scaled).
    """

    graded: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("spikes", "voltage")

    n: int
    vth: int
    spike_exp: int = 0
    state_exp: int = 0

    def __post_init__(self) -> None:
        _require_size(self.n)
        _require_scaled("vth", self.vth, self.spike_exp, self.state_exp)

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the range of 24-bit states."""
        _check_encoder(name, self.vth, self.spike_exp, self.state_exp)


@dataclass(frozen=True, eq=False)
class LavaSigmaDelta:
    """Lava's SigmaDelta: sums its input, adds a bias, activates, and sends as LavaDelta does.

    vth and bias (shape (n,)) are scaled by ``<< (spike_exp + state_exp)``, the input is not.
    activation is "relu" or "unit". Records: spikes (the messages), current (the sum, sigma) and
    voltage (the activation, act).
    """

    graded: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("spikes", "current", "voltage")

    n: int
    vth: int
    bias: NDArray[Any] | None = None
    spike_exp: int = 0
    state_exp: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        _require_size(self.n)
        _require_per_neuron("bias", self.bias, self.n)
        _require_scaled("vth", self.vth, self.spike_exp, self.state_exp)
        if self.bias is not None:
            largest = int(np.abs(self.bias.astype(np.int64)).max())
            _require_scaled("bias", largest, self.spike_exp, self.state_exp)
        require(self.activation in ACTIVATIONS, f"unknown activation {self.activation!r}")

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the range of 24-bit states."""
        _check_encoder(name, self.vth, self.spike_exp, self.state_exp)
        if self.bias is not None:
            scaled = self.bias.astype(np.int64) << (self.spike_exp + self.state_exp)
            within(name, "scaled bias", scaled, -STATE_LIMIT, STATE_LIMIT - 1)


@dataclass(frozen=True, eq=False)
class LavaSigma:
    """Lava's Sigma: sums its input and sends the sum at every step.

    Records: spikes (the messages) and current (the sum), which are the same.
    """

    graded: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("spikes", "current")

    n: int

    def __post_init__(self) -> None:
        _require_size(self.n)

    def check(self, name: str) -> None:
        """Nothing to check: there are no settings."""


Population = LavaPopulation | LavaDelta | LavaSigmaDelta | LavaSigma


def _require_size(n: int) -> None:
    require(n >= 1, f"a population needs at least one neuron, got n={n}")


def _require_per_neuron(what: str, values: NDArray[Any] | None, n: int) -> None:
    if values is not None:
        require(values.shape == (n,), f"{what} {values.shape} is not ({n},)")
        require(values.dtype.kind in "iu", f"{what} must be integer, not {values.dtype}")


def _require_scaled(what: str, value: int, spike_exp: int, state_exp: int) -> None:
    require(spike_exp >= 0 and state_exp >= 0, "spike_exp and state_exp must not be below 0")
    fits = value << (spike_exp + state_exp) < 1 << 31
    require(fits, f"{what} {value} << {spike_exp + state_exp} does not fit into 32 bits")


def _check_encoder(name: str, vth: int, spike_exp: int, state_exp: int) -> None:
    within(name, "spike_exp", [spike_exp], 0, 7)
    within(name, "state_exp", [state_exp], 0, 7)
    within(name, "scaled vth", [vth << (spike_exp + state_exp)], 0, STATE_LIMIT - 1)
