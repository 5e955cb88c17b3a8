"""The event engine: the same networks, spikes and gradients as SLAYER's blocks, by events.

The forward pass is the chip's integer arithmetic, step by step, and adds a row of weights for each
spike that there is; the backward pass is SLAYER's in float32. Every sum has the same order whatever
the number of threads, so results do not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.chip import ChipSpec, SynapseFormat
from nmtool.config import Surrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import ALIGN_BITS, CURRENT_DECAY_OFFSET, DECAY_ONE
from nmtool.network import Network
from nmtool.quantization import (
    STATE_SCALE,
    WEIGHT_SCALE,
    choose_format,
    exact_exponents,
    quantize,
)
from nmtool.training import kernels
from nmtool.training.model import States, feed

Array: TypeAlias = npt.NDArray[Any]

GUESS = 8
"""Rasters are taken to hold fewer spikes than their size by this; if not, they are read again."""

PARTS = 4
"""Work is cut into so many parts at most, which threads share; no sum is cut."""

CLOSE = 1e-9
"""Squared errors this near to each other, relatively, may come out in another order."""

TAU_FACTOR, SCALE_FACTOR = 100.0, 0.1
"""SLAYER's CUBA neuron widens tau_grad and lowers scale_grad by these (lava-dl, neuron/cuba.py)."""

THRESHOLD_EPSILON = 0.01
"""SLAYER compares with a threshold this much higher, in units of 1/4096 (lava-dl)."""


@dataclass(frozen=True, eq=False)
class Events:
    """The spikes of a batch, by step and by neuron.

    ``neuron[at_step[b, t]:at_step[b, t + 1]]`` spike at step t of sample b, and neuron n spikes at
    ``step[at_neuron[b, n]:at_neuron[b, n + 1]]``.
    """

    neuron: Array
    at_step: Array
    step: Array
    at_neuron: Array

    @classmethod
    def of_rows(cls, raster: Array) -> Events:
        """The spikes of a raster (samples, neurons, steps)."""
        step, at_neuron = _listed(raster)
        neuron, at_step = _turned(step, at_neuron, raster.shape[2])
        return cls(neuron, at_step, step, at_neuron)

    @classmethod
    def of_steps(cls, raster: Array) -> Events:
        """The spikes of a raster (samples, steps, neurons)."""
        neuron, at_step = _listed(raster)
        step, at_neuron = _turned(neuron, at_step, raster.shape[2])
        return cls(neuron, at_step, step, at_neuron)

    @property
    def n_neurons(self) -> int:
        """Sources of a layer."""
        return int(self.at_neuron.shape[1]) - 1

    @property
    def most(self) -> int:
        """The most spikes of one step."""
        return int(np.diff(self.at_step, axis=1).max(initial=0))


def _listed(raster: Array) -> tuple[Array, Array]:
    """Places on the last axis of all that is not 0, and where those of each row begin."""
    samples, rows, places = raster.shape
    bits = np.ascontiguousarray(raster).view(f"i{raster.dtype.itemsize}")
    bits = bits.reshape(samples * rows, places)
    start = np.zeros(samples * rows + 1, dtype=np.int64)

    def part(first: int, last: int) -> tuple[int, int, Array]:
        inner = np.empty((last - first) * places // GUESS, dtype=np.int32)
        found = kernels.list_events(first, last, bits, inner, start)
        if found > inner.size:
            inner = np.empty(found, dtype=np.int32)
            kernels.list_events(first, last, bits, inner, start)
        return first, last, inner[:found]

    listed = in_parts(samples * rows, part)
    for first, last, inner in listed:
        start[first:last] += start[-1]
        start[-1] += inner.size
    begins = np.empty((samples, rows + 1), dtype=np.int64)
    begins[:, :-1] = start[:-1].reshape(samples, rows)
    begins[:, -1] = start[rows::rows] if rows else 0
    found = [inner for _, _, inner in listed]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int32), begins


def _turned(inner: Array, begins: Array, places: int) -> tuple[Array, Array]:
    """Events by row turned into events by place."""
    turned = np.zeros((len(begins), places + 1), dtype=np.int64)
    index = np.empty_like(inner)
    in_parts(
        len(begins), lambda first, last: kernels.turn(first, last, inner, begins, index, turned)
    )
    return index, turned


@dataclass(frozen=True, eq=False)
class Layer:
    """A population with the one projection that feeds it, in the chip's units."""

    name: str
    projection: str
    source: str
    delay: int
    keep_u: int
    keep_v: int
    threshold: int
    bias: Array
    tau: float
    scale: float

    @property
    def slope(self) -> np.float32:
        """Of the surrogate's exponent, per unit of v, for powers of 2."""
        return np.float32(np.log2(np.e) / (self.tau * STATE_SCALE))

    @property
    def peak(self) -> np.float32:
        """The largest value of the surrogate: scale / (2 tau)."""
        return np.float32(self.scale / (2 * self.tau))


class EventNetwork(torch.nn.Module):
    """A Network whose forward and backward pass are compiled, in data-flow order.

    Args:
        network: every population is fed by one projection from an input or an earlier population.
        chip: its formats are those that the forward pass rounds to.
        surrogate: SLAYER's surrogate derivative.

    Raises:
        UnsupportedError: recurrent or converging projections, or more than CUBA neurons, dense
            weights and one delay a projection.
        FitError: a parameter that the chip cannot hold.
    """

    def __init__(self, network: Network, chip: ChipSpec, surrogate: Surrogate) -> None:
        super().__init__()
        self.network, self.feed, self._chip = network, feed(network), chip
        registers = quantize(network, chip).populations
        self.layers = [
            self._layer(name, projection, registers[name], surrogate)
            for name, projection in self.feed.items()
        ]
        self.weight = torch.nn.ParameterDict(
            {
                p: torch.nn.Parameter(
                    torch.from_numpy(np.array(network.projections[p].weight, np.float32))
                )
                for p in self.feed.values()
            }
        )

    def _layer(self, name: str, projection: str, registers: Any, surrogate: Surrogate) -> Layer:
        edge = self.network.projections[projection]
        source = self.network.populations.get(edge.source)
        axonal = int(source.axonal_delay) if source else 0
        threshold = registers.threshold << ALIGN_BITS
        return Layer(
            name,
            projection,
            edge.source,
            1 + int(edge.delay) + axonal,
            DECAY_ONE - registers.decay_u - CURRENT_DECAY_OFFSET,
            DECAY_ONE - registers.decay_v,
            threshold,
            registers.bias.astype(np.int32),
            surrogate.tau_grad * TAU_FACTOR * threshold / STATE_SCALE,
            surrogate.scale_grad * SCALE_FACTOR,
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Spikes of every population, shape (samples, neurons, steps), from input spikes."""
        weights = [self.weight[layer.projection] for layer in self.layers]
        spikes = _Pass.apply(self, x, *weights)
        return {
            layer.name: fired.permute(0, 2, 1)
            for layer, fired in zip(self.layers, spikes, strict=True)
        }

    def states(self, x: torch.Tensor) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, in real units."""
        run = self.run(x, keep_current=True)
        arrays = zip(self.layers, run.spikes, run.current, run.voltage, strict=True)
        return {
            layer.name: (_real(spikes, 1), _real(current, STATE_SCALE), _real(voltage, STATE_SCALE))
            for layer, spikes, current, voltage in arrays
        }

    def run(self, x: torch.Tensor, keep_current: bool = False) -> Run:
        """The integer forward pass.

        Raises:
            FitError: a state left the numbers that the sums can hold.
        """
        (source,) = self.network.inputs
        run = Run({source: Events.of_rows(x.detach().numpy())}, [], [], [], [])
        sources = {layer.source for layer in self.layers}
        for layer in self.layers:
            rounded = self._rounded(layer)
            current, voltage, spikes = _run_layer(
                layer, rounded, run.events[layer.source], x.shape[2], keep_current
            )
            if layer.name in sources:
                run.events[layer.name] = Events.of_steps(spikes)
            run.weight.append(rounded.real)
            run.current.append(current)
            run.voltage.append(voltage)
            run.spikes.append(spikes)
        return run

    def _rounded(self, layer: Layer) -> Rounded:
        real = self.weight[layer.projection].detach().numpy()
        format = closest_format(layer.projection, real, self.network.weight_bits, self._chip)
        return round_to(real, format)

    def parameter(self, projection: str) -> torch.nn.Parameter:
        """The real weights of a projection before rounding, shape (target, source)."""
        return self.weight[projection]

    def load(self, weights: dict[str, Any]) -> None:
        """Take over real weights by projection, shape (target, source)."""
        with torch.no_grad():
            for name, parameter in self.weight.items():
                parameter.copy_(torch.as_tensor(np.asarray(weights[name], dtype=np.float32)))

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The real weights by projection, shape (target, source), before rounding."""
        return {name: p.detach().numpy().copy() for name, p in self.weight.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """What a forward pass left behind, layer by layer; shapes (samples, steps, neurons)."""

    events: dict[str, Events]
    weight: list[Array]
    current: list[Array]
    voltage: list[Array]
    spikes: list[Array]


class _Pass(torch.autograd.Function):
    """All layers at once: spikes of every population, gradients of every weight."""

    @staticmethod
    def forward(ctx: Any, network: EventNetwork, x: torch.Tensor, *_weights: torch.Tensor) -> Any:
        run = network.run(x)
        ctx.network, ctx.run = network, run
        ctx.set_materialize_grads(False)
        return tuple(torch.from_numpy(spikes) for spikes in run.spikes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        network, run = ctx.network, ctx.run
        wanted = {
            layer.name: None if g is None else np.ascontiguousarray(g.numpy(), dtype=np.float32)
            for layer, g in zip(network.layers, gradients, strict=True)
        }
        found: list[torch.Tensor | None] = [None] * len(network.layers)
        for i, layer in reversed(list(enumerate(network.layers))):
            gradient = wanted[layer.name]
            if gradient is None:
                continue
            arriving = _arriving(layer, gradient, run.voltage[i])
            found[i] = torch.from_numpy(_weight_gradient(layer, run.events[layer.source], arriving))
            if layer.source in wanted:
                _send_back(wanted, layer, arriving, run.weight[i])
        return None, None, *found


@dataclass(frozen=True, eq=False)
class Rounded:
    """Weights rounded to the chip's format.

    Attributes:
        real: in real units, float32 (target, source).
        blocks: in units of 1/64, (blocks of targets, source, target in the block), 16 bits if
            they suffice.
        largest: the largest size in units of 1/64.
    """

    real: Array
    blocks: Array
    largest: int


def closest_format(projection: str, weight: Array, bits: int, chip: ChipSpec) -> SynapseFormat:
    """What ``choose_format`` gives, from the few exponents that can be the best.

    Among exponents that clip no weight the finest has the smallest error, for its numbers hold
    those of the coarser ones. A finer one cannot win once the largest weight alone is clipped by
    more than the best error. Where two errors are as good as equal, ``choose_format`` decides.
    """
    low, high = (float(f(initial=0)) for f in (weight.min, weight.max))
    if not (np.isfinite([low, high]).all() and low < 0 < high and bits in chip.weight_bits):
        return choose_format(projection, weight, bits, chip)
    formats = [SynapseFormat(bits, e, "mixed") for e in exact_exponents(bits, "mixed", chip)]
    fits = [k for k, f in enumerate(formats) if _clipped(f, low, high) <= _unit(f) / 2]
    errors = dict[int, float]()
    for k in range(min(len(formats) - 1, fits[0] + 1 if fits else len(formats)), -1, -1):
        if errors and _clipped(formats[k], low, high) ** 2 > min(errors.values()) * (1 + CLOSE):
            break
        errors[k] = kernels.squared_error(weight, *_grid(formats[k]))
    best = min(errors, key=lambda k: errors[k])
    near = sum(error <= errors[best] * (1 + CLOSE) for error in errors.values())
    return formats[best] if near == 1 else choose_format(projection, weight, bits, chip)


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


def round_to(weight: Array, format: SynapseFormat) -> Rounded:
    """Weights (target, source) rounded to a format, as ``quantize_weights`` does."""
    n, sources = weight.shape
    count = -(-n // kernels.BLOCK)
    width = min(kernels.BLOCK, -(-n // kernels.LANES) * kernels.LANES)
    unit = format.step * 2.0**format.exponent
    ends = (format.minimum * 2.0**format.exponent, format.maximum * 2.0**format.exponent)
    narrow = ends[0] >= np.iinfo(np.int16).min and ends[1] <= np.iinfo(np.int16).max
    blocks = np.zeros((count, sources, width), np.int16 if narrow else np.int32)
    real = np.empty((n, sources), dtype=np.float32)
    largest = in_parts(
        count,
        lambda first, last: kernels.round_weights(
            first, last, weight, *_grid(format), unit, real, blocks
        ),
    )
    return Rounded(real, blocks, int(max(largest, default=0)))


def _run_layer(
    layer: Layer, weight: Rounded, events: Events, steps: int, keep_current: bool
) -> tuple[Array, Array, Array]:
    """Current, voltage and spikes of a layer, shape (samples, steps, neurons)."""
    samples, n = len(events.at_step), len(weight.real)
    if weight.largest * events.most >= 1 << (kernels.HUGE - ALIGN_BITS):
        raise _too_large(layer)
    voltage = np.empty((samples, steps, n), dtype=np.int32)
    current = np.empty((samples, steps if keep_current else 0, n), dtype=np.int32)
    spikes = np.empty((samples, steps, n), dtype=np.float32)
    registers = (np.int32(r) for r in (layer.keep_u, layer.keep_v, layer.threshold))
    fixed = (layer.delay, weight.blocks, *registers, layer.bias, current, voltage, spikes)

    def part(first: int, last: int) -> int:
        return int(kernels.forward(first, last, events.neuron, events.at_step, *fixed))

    if any(in_parts(samples * len(weight.blocks), part)):
        raise _too_large(layer)
    return current, voltage, spikes


def _arriving(layer: Layer, gradient: Array, voltage: Array) -> Array:
    """The gradients of what arrives at a layer."""
    arriving = np.empty_like(gradient)
    threshold = np.float32(layer.threshold + THRESHOLD_EPSILON)
    keep = np.float32(layer.keep_u / DECAY_ONE), np.float32(layer.keep_v / DECAY_ONE)
    in_parts(
        len(gradient) * -(-gradient.shape[2] // kernels.BLOCK),
        lambda first, last: kernels.backward(
            first, last, gradient, voltage, threshold, layer.slope, layer.peak, *keep, arriving
        ),
    )
    return arriving


def _weight_gradient(layer: Layer, events: Events, arriving: Array) -> Array:
    """The gradient of the weights, shape (target, source)."""
    gradient = np.empty((arriving.shape[2], events.n_neurons), dtype=np.float32)
    in_parts(
        -(-events.n_neurons // kernels.SOURCES),
        lambda first, last: kernels.weight_gradient(
            first, last, events.step, events.at_neuron, layer.delay, arriving, gradient
        ),
    )
    return gradient


def _send_back(
    wanted: dict[str, Array | None], layer: Layer, arriving: Array, weight: Array
) -> None:
    """Add the gradients of a layer's sources, which spiked ``delay`` steps earlier."""
    samples, steps, _ = arriving.shape
    earlier = np.empty((samples, steps, weight.shape[1]), dtype=np.float32)
    kept = max(steps - layer.delay, 0)
    earlier[:, kept:] = 0
    np.matmul(arriving[:, layer.delay :], weight, out=earlier[:, :kept])
    before = wanted[layer.source]
    wanted[layer.source] = earlier if before is None else before + earlier


def in_parts(count: int, work: Callable[[int, int], Any]) -> list[Any]:
    """What ``work(first, last)`` gives for every part of so many things, in their order."""
    n = min(PARTS, count)
    parts = list(pairwise(count * k // n for k in range(n + 1))) if n else []
    if len(parts) < 2:
        return [work(*part) for part in parts]
    return list(_pool().map(lambda part: work(*part), parts))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(PARTS, len(os.sched_getaffinity(0))), "nmtool-training")


def _too_large(layer: Layer) -> FitError:
    return FitError(
        f"{layer.name}: found u or v of 2^{kernels.HUGE} or more in the trainer's forward pass, "
        "allowed below the chip's 2^23; train with smaller weights or a faster decay"
    )


def _real(whole: Array, scale: int) -> torch.Tensor:
    """Whole numbers (samples, steps, neurons) in real units, (samples, neurons, steps)."""
    return torch.from_numpy(np.ascontiguousarray(whole.swapaxes(1, 2), np.float64) / scale)
