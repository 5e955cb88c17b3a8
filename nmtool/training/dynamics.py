"""Populations whose current and voltage are computed apart, compiled.

What normalisation, learned decays and dropped inputs need: the current of all samples and steps,
then the voltage. Shapes and units as in ``kernels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from nmtool.fixedpoint import DECAY_ONE
from nmtool.quantization import STATE_SCALE
from nmtool.training import kernels
from nmtool.training.learned import Learned, mean_is_free, rounded_mean
from nmtool.training.parts import PARTS, in_parts
from nmtool.training.spiking import NO_NOISE, Escape, thresholds

Array: TypeAlias = npt.NDArray[Any]
Drive: TypeAlias = Callable[[Array], Array]
"""The current of a population with some keep_u, from the spikes of some of its sources."""

_FAST: Any = {"nogil": True, "error_model": "numpy", "cache": True}


@njit(**_FAST)
def integrate(first: int, last: int, current: Any, keep: Any) -> int:
    """u[t] = keep u[t-1] + x[t] of samples ``first`` to ``last``, in the place of x."""
    u = np.zeros(current.shape[2], dtype=np.int32)
    large = np.int32(0)
    for b in range(first, last):
        u[:] = 0
        for t in range(current.shape[1]):
            row = current[b, t]
            for j in range(u.size):
                state = np.int32(kernels._decayed(u[j], keep[j]) + row[j])
                large = np.int32(large | abs(state))
                u[j] = state
                row[j] = state
    return int(large >> kernels.HUGE)


@njit(**_FAST)
def fire(
    first: int,
    last: int,
    current: Any,
    neuron: Any,
    escape: Any,
    keys: Any,
    levels: Any,
    voltage: Any,
    spikes: Any,
) -> int:
    """Voltages before the reset, and spikes, of samples ``first`` to ``last`` from currents.

    With an ``escape`` function neurons spike by chance, by ``keys`` (1, samples). ``levels``,
    if it has steps, has the thresholds of every step.
    """
    v = np.zeros(current.shape[2], dtype=np.int32)
    large = np.int32(0)
    keep, threshold, bias = neuron[1], neuron[2], neuron[3]
    limit = threshold.copy()
    for b in range(first, last):
        v[:] = 0
        for t in range(current.shape[1]):
            if escape.kind != NO_NOISE:
                thresholds(escape, keys[0, b], t, 0, threshold, limit)
            if levels.shape[1] > 0:
                limit[:] = levels[b, t]
            for j in range(v.size):
                state = np.int32(kernels._decayed(v[j], keep[j]) + current[b, t, j] + bias[j])
                large = np.int32(large | abs(state))
                spiked = state > limit[j]
                v[j] = np.int32(0) if spiked else state
                voltage[b, t, j] = state
                spikes[b, t, j] = np.int8(spiked)
    return int(large >> kernels.HUGE)


@njit(fastmath={"contract"}, **_FAST)
def integrate_back(first: int, last: int, gradient: Any, keep: Any) -> None:
    """g[t] += keep g[t+1] of samples ``first`` to ``last``."""
    for b in range(first, last):
        for t in range(gradient.shape[1] - 2, -1, -1):
            for j in range(gradient.shape[2]):
                gradient[b, t, j] += keep[j] * gradient[b, t + 1, j]


@njit(**_FAST)
def shift(first: int, last: int, raster: Any, by: Any, out: Any) -> None:
    """out[t] = raster[t + by] of samples ``first`` to ``last``, 0 where that is outside."""
    steps = raster.shape[1]
    for b in range(first, last):
        for t in range(steps):
            for j in range(by.size):
                at = t + by[j]
                out[b, t, j] = raster[b, at, j] if 0 <= at < steps else 0


@njit(**_FAST)
def moved(first: int, last: int, gradient: Any, late: Any) -> Any:
    """What ``delay_gradient`` sums over samples ``first`` to ``last``, of every neuron."""
    total = np.zeros(late.shape[2])
    for b in range(first, last):
        for j in range(late.shape[2]):
            total[j] -= gradient[b, 0, j] * late[b, 0, j]
        for t in range(1, late.shape[1]):
            for j in range(late.shape[2]):
                total[j] += gradient[b, t, j] * (late[b, t - 1, j] - late[b, t, j])
    return total


@dataclass(frozen=True, eq=False)
class Apart:
    """What a population left behind in a forward pass.

    Attributes:
        name: of the population.
        current: before the mean is taken off.
        shape, surrogate: as ``kernels.backward`` takes them, with the decays of this pass.
        free: features whose mean has a gradient; None: no mean of a batch was taken off.
    """

    name: str
    current: Array
    shape: int
    surrogate: Array
    free: Array | None


def forward(
    learned: Learned,
    name: str,
    parts: Sequence[tuple[float, Drive]],
    registers: Callable[[Any], Array],
    surrogate: tuple[int, Array],
    chance: tuple[Escape, Array, Array],
) -> tuple[Apart, Array, Array, bool]:
    """A population from the sources in ``parts``, each with what its spikes are multiplied by.

    ``surrogate`` is the shape and the numbers of ``kernels.backward``, ``chance`` the escape
    function, keys and levels of ``fire``.

    Returns:
        What it left behind, voltages, spikes, and whether a state grew too large.
    """
    own = registers(learned.quantized(name))
    current, large = _current(parts, own)
    mean = free = None
    if name in learned.normalized and learned.training:
        count = learned.mean(name).numel()
        exact = current.reshape(-1, count).mean(axis=0, dtype=np.float64) / STATE_SCALE
        learned.observe(name, exact)
        mean, free = rounded_mean(exact), mean_is_free(exact)
        own = registers(learned.quantized(name, mean))
    voltage, spikes = np.empty_like(current), np.empty(current.shape, dtype=np.int8)
    found = in_parts(
        len(current),
        lambda first, last: fire(first, last, current, own, *chance, voltage, spikes),
    )
    shape, numbers = surrogate
    return (
        Apart(name, current, shape, _with_decays(numbers, own), free),
        voltage,
        spikes,
        large or any(found),
    )


def _with_decays(surrogate: Array, registers: Array) -> Array:
    """The numbers of ``kernels.backward`` for every neuron, with the decays of these registers."""
    found = np.empty((5, registers.shape[1]), dtype=np.float32)
    of_each = surrogate.shape[1] == registers.shape[1]
    found[:3] = surrogate[:3] if of_each else surrogate[:3, :1]
    found[3:] = registers[:2] / np.float32(DECAY_ONE)
    return found


def _current(parts: Sequence[tuple[float, Drive]], registers: Array) -> tuple[Array, bool]:
    """The current, and whether it grew too large."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1](registers[0]), False
    none = np.zeros_like(registers[0])
    total = np.trunc(sum(factor * drive(none).astype(np.float64) for factor, drive in parts))
    if np.abs(total).max(initial=0) >= 1 << kernels.HUGE:
        return np.zeros(total.shape, dtype=np.int32), True
    current = total.astype(np.int32)
    found = in_parts(
        len(current), lambda first, last: integrate(first, last, current, registers[0])
    )
    return current, any(found)


def backward(
    apart: Apart, learned: Learned, gradient: Array, voltage: Array
) -> tuple[Array, dict[str, Array]]:
    r"""Gradients of what arrives, in place of those of the spikes, and of the decays.

    With y the current or the voltage before its reset, and g its gradient, a decay has

    .. math:: \partial L / \partial \alpha = -\sum_t g[t+1]\, y[t]

    over all samples and neurons (the reset has no gradient), and a mean has the gradient of
    everything that it was taken off.
    """
    samples, _, n = gradient.shape
    width = min(kernels.BLOCK, max(1, -(-n * samples // PARTS)))
    only_voltage = apart.surrogate.copy()
    only_voltage[3] = 0
    in_parts(
        samples * -(-n // width),
        lambda first, last: kernels.backward(
            first, last, width, gradient, voltage, apart.shape, only_voltage
        ),
    )
    found = {"voltage_decay": _decay_gradient(gradient, voltage)}
    if apart.free is not None:
        rows = gradient.reshape(-1, len(apart.free))
        rows -= (rows.mean(axis=0, dtype=np.float64) * apart.free).astype(np.float32)
    keep = apart.surrogate[3]
    in_parts(samples, lambda first, last: integrate_back(first, last, gradient, keep))
    found["current_decay"] = _decay_gradient(gradient, apart.current)
    wanted = learned.recipe.of(apart.name).learn
    return gradient, {f"{apart.name}:{key}": found[key] for key in found if key in wanted}


def _decay_gradient(gradient: Array, state: Array) -> Array:
    late = gradient[:, 1:].astype(np.float64).ravel()
    total = np.vdot(late, state[:, :-1].astype(np.float64).ravel())
    return np.array([-total / STATE_SCALE], dtype=np.float32)


def delayed(spikes: Array, delay: Array) -> Array:
    """Spikes (samples, steps, neurons), those of every neuron so many steps later."""
    return _shifted(spikes, -delay)


def undelayed(gradient: Array, delay: Array) -> Array:
    """The gradient of spikes from that of ``delayed`` ones."""
    return _shifted(gradient, delay)


def _shifted(raster: Array, by: Array) -> Array:
    out = np.empty(raster.shape, dtype=raster.dtype)
    in_parts(len(raster), lambda first, last: shift(first, last, raster, by, out))
    return out


def delay_gradient(gradient: Array, late: Array, count: int) -> Array:
    r"""The gradient of the delays: :math:`\sum_t g[t] (s[t-1] - s[t])` of delayed spikes s.

    ``count`` delays are shared by the neurons in turn. Source: Shrestha and Orchard, NeurIPS 2018;
    lava-dl's ``axon.Delay``.
    """
    parts = in_parts(len(late), lambda first, last: moved(first, last, gradient, late))
    total = sum(parts, np.zeros(late.shape[2]))
    return np.asarray(total.reshape(-1, count).sum(axis=0), dtype=np.float32)
