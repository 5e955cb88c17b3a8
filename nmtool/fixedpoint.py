"""The chip's integer arithmetic. Nothing else in nmtool rounds, wraps, saturates or decays.

State is held in ``int64`` arrays, wide enough that no intermediate result can overflow; the
functions fold results into the chip's registers. Sources: Davies et al., IEEE Micro 38(1), 2018;
the fixed-point LIF model of lava-nc 0.10.0 (``lava.proc.lif.models``), which nmtool equals bit for
bit; nengo-loihi's ``discretize.py`` for the register widths.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

DECAY_BITS = 12
DECAY_ONE = 1 << DECAY_BITS
"""A decay of 1: the state forgets everything in one step."""

ALIGN_BITS = 6
"""Synaptic input and thresholds are shifted left by 6 bits to align with u and v."""

STATE_BITS = 24
STATE_LIMIT = 1 << (STATE_BITS - 1)
"""u lies in (-2^23, 2^23], v in [-(2^23 - 1), 2^23 - 1]."""

BIAS_MANTISSA = (-(1 << 12), (1 << 12) - 1)
"""A bias mantissa has 13 bits, its sign among them."""

CURRENT_DECAY_OFFSET = 1
"""The chip decays the current by ``decay_u + 1``, the voltage by ``decay_v`` (no offset)."""


def round_nearest(x: npt.ArrayLike) -> IntArray:
    """Round to the nearest integer, halves to even (IEEE 754, as numpy and torch do).

    Numbers beyond +-2^62 go to these ends, so that a later range check sees their sign.
    """
    rounded = np.rint(np.asarray(x, dtype=np.float64))
    return np.clip(rounded, -(2.0**62), 2.0**62).astype(np.int64)


def decay(x: npt.ArrayLike, factor: int | IntArray) -> IntArray:
    r"""Decay towards zero: ``sign(x) * ((|x| * (4096 - factor)) >> 12)``.

    ``factor`` is the decay that is applied, 0 to 4096 (0 keeps everything, 4096 clears): one, or
    one for each element.
    """
    if np.min(factor) < 0 or np.max(factor) > DECAY_ONE:
        raise ValueError(f"decay: found factor {factor}, allowed 0 to {DECAY_ONE}")
    product = np.asarray(x, dtype=np.int64) * (DECAY_ONE - factor)
    # Adding 4095 to a negative product makes the shift round towards zero.
    return (product + ((product >> 63) & (DECAY_ONE - 1))) >> DECAY_BITS


def wrap(x: npt.ArrayLike) -> IntArray:
    """Fold into (-2^23, 2^23] modulo 2^24, the overflow rule of the synaptic current."""
    x = np.asarray(x, dtype=np.int64)
    return STATE_LIMIT - ((STATE_LIMIT - x) & ((1 << STATE_BITS) - 1))


def wrap_word(x: npt.ArrayLike) -> IntArray:
    """Fold modulo 2^32 into [-2^31, 2^31): the words in which sigma-delta neurons count."""
    x = np.asarray(x, dtype=np.int64)
    return ((x + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def saturate(x: npt.ArrayLike) -> IntArray:
    """Clip to +-(2^23 - 1), the overflow rule of the voltage."""
    x = np.asarray(x, dtype=np.int64)
    return np.asarray(np.minimum(np.maximum(x, 1 - STATE_LIMIT), STATE_LIMIT - 1))


def shift(x: npt.ArrayLike, exponent: int) -> IntArray:
    """Multiply by ``2**exponent``; a negative exponent shifts right and rounds down (floor)."""
    x = np.asarray(x, dtype=np.int64)
    return x << exponent if exponent >= 0 else x >> -exponent


def exact_shift(x: npt.ArrayLike, exponent: int) -> bool:
    """Whether ``shift(x, exponent)`` drops no bit of any element."""
    if exponent >= 0:
        return True
    mask = (1 << -exponent) - 1
    return not np.any(np.asarray(x, dtype=np.int64) & mask)


def scaled(mantissa: npt.ArrayLike) -> IntArray:
    """A threshold mantissa or a synaptic sum in the units of u and v: ``mantissa << 6``."""
    return np.asarray(mantissa, dtype=np.int64) << ALIGN_BITS


def current_step(u: IntArray, synaptic_input: IntArray, decay_u: int) -> IntArray:
    """``u <- wrap(decay(u, decay_u + 1) + (input << 6))``."""
    return wrap(decay(u, decay_u + CURRENT_DECAY_OFFSET) + scaled(synaptic_input))


def voltage_step(v: IntArray, u: IntArray, bias: IntArray, decay_v: int) -> IntArray:
    """``v <- saturate(decay(v, decay_v) + u + bias)``, before threshold and reset."""
    return saturate(decay(v, decay_v) + u + bias)


def fires(v: IntArray, threshold: int | IntArray) -> BoolArray:
    """A neuron spikes when its voltage is strictly above ``threshold << 6``."""
    return np.asarray(v > (threshold << ALIGN_BITS))


def delta_step(
    activation: IntArray, before: IntArray, residue: IntArray, threshold: int
) -> tuple[IntArray, IntArray]:
    """Delta encoding: ``(message, residue)`` of an activation that was ``before`` a step ago.

    d = activation - before + residue is sent where ``|d| >= threshold`` (not strictly above, and
    the threshold is not shifted), and kept as the residue elsewhere.
    """
    d = wrap_word(activation - before + residue)
    message = np.where(np.abs(d) >= threshold, d, 0)
    return message, d - message
