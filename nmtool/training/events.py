"""The event engine: the same networks, spikes and gradients as SLAYER's blocks, by events.

The forward pass is the chip's integer arithmetic, step by step, and adds a row of weights for each
spike that there is; the backward pass is SLAYER's in float32. Samples are cut into the same parts
whatever the number of threads, so results do not depend on it.
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

from nmtool.chip import ChipSpec
from nmtool.config import Surrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import ALIGN_BITS, CURRENT_DECAY_OFFSET, DECAY_ONE, IntArray, shift
from nmtool.network import Network
from nmtool.quantization import (
    STATE_SCALE,
    choose_format,
    dequantize_weights,
    quantize,
    quantize_weights,
)
from nmtool.training import kernels
from nmtool.training.model import States, feed

Array: TypeAlias = npt.NDArray[Any]

GUESS = 8
"""Rasters are taken to hold fewer spikes than their size by this; if not, they are read again."""

PARTS = 4
"""A batch is cut into so many parts at most, each with weight gradients of its own."""

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
    samples, rows = raster.shape[:2]
    bits = np.ascontiguousarray(raster).view(f"i{raster.dtype.itemsize}")
    start = np.empty(samples * rows + 1, dtype=np.int64)
    inner = np.empty(raster.size // GUESS, dtype=np.int32)
    found = kernels.list_events(bits, inner, start)
    if found > inner.size:
        inner = np.empty(found, dtype=np.int32)
        kernels.list_events(bits, inner, start)
    begins = np.empty((samples, rows + 1), dtype=np.int64)
    begins[:, :-1] = start[:-1].reshape(samples, rows)
    begins[:, -1] = start[rows::rows] if rows else 0
    return inner[:found], begins


def _turned(inner: Array, begins: Array, places: int) -> tuple[Array, Array]:
    """Events by row turned into events by place."""
    turned = np.zeros((len(begins), places + 1), dtype=np.int64)
    index = np.empty_like(inner)
    kernels.turn(inner, begins, index, turned)
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
        for layer in self.layers:
            real, whole = self._rounded(layer)
            current, voltage, spikes = _run_layer(
                layer, whole, run.events[layer.source], x.shape[2], keep_current
            )
            run.events[layer.name] = Events.of_steps(spikes)
            run.weight.append(real)
            run.current.append(current)
            run.voltage.append(voltage)
            run.spikes.append(spikes)
        return run

    def _rounded(self, layer: Layer) -> tuple[Array, Array]:
        """Weights rounded to the chip's format: real and in units of 1/64, (target, source)."""
        real = self.weight[layer.projection].detach().numpy()
        format = choose_format(layer.projection, real, self.network.weight_bits, self._chip)
        mantissa = quantize_weights(real, format)
        rounded = dequantize_weights(mantissa, format).astype(np.float32)
        return rounded, shift(mantissa, format.exponent)

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
        return tuple(torch.from_numpy(spikes.astype(np.float32)) for spikes in run.spikes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        network, run = ctx.network, ctx.run
        wanted = {
            layer.name: None if g is None else g.numpy().astype(np.float32)
            for layer, g in zip(network.layers, gradients, strict=True)
        }
        found: list[torch.Tensor | None] = [None] * len(network.layers)
        for i, layer in reversed(list(enumerate(network.layers))):
            gradient = wanted[layer.name]
            if gradient is None:
                continue
            arriving = _arriving(layer, np.ascontiguousarray(gradient), run.voltage[i])
            found[i] = torch.from_numpy(_weight_gradient(layer, run.events[layer.source], arriving))
            if layer.source in wanted:
                _send_back(wanted, layer, arriving @ run.weight[i])
        return None, None, *found


def _run_layer(
    layer: Layer, weight: IntArray, events: Events, steps: int, keep_current: bool
) -> tuple[Array, Array, Array]:
    """Current, voltage and spikes of a layer, shape (samples, steps, neurons)."""
    samples, n = len(events.at_step), len(weight)
    if int(np.abs(weight).max(initial=0)) * events.most >= 1 << (kernels.HUGE - ALIGN_BITS):
        raise _too_large(layer)
    blocks = _in_blocks(weight)
    voltage = np.empty((samples, steps, n), dtype=np.int32)
    current = np.empty((samples, steps if keep_current else 0, n), dtype=np.int32)
    spikes = np.empty((samples, steps, n), dtype=np.uint8)
    registers = (np.int32(r) for r in (layer.keep_u, layer.keep_v, layer.threshold))
    fixed = (layer.delay, blocks, *registers, layer.bias, current, voltage, spikes)

    def part(first: int, last: int) -> int:
        return int(kernels.forward(first, last, events.neuron, events.at_step, *fixed))

    if any(in_parts(samples, part)):
        raise _too_large(layer)
    return current, voltage, spikes


def _in_blocks(weight: IntArray) -> Array:
    """Weights (target, source) as (blocks of targets, source, target in the block), 16 bits."""
    n, sources = weight.shape
    blocks = -(-n // kernels.BLOCK)
    narrow = np.iinfo(np.int16).min <= weight.min(initial=0) and weight.max(initial=0) < 1 << 15
    padded = np.zeros((blocks * kernels.BLOCK, sources), np.int16 if narrow else np.int32)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(blocks, kernels.BLOCK, sources).swapaxes(1, 2))


def _arriving(layer: Layer, gradient: Array, voltage: Array) -> Array:
    """The gradients of what arrives at a layer."""
    arriving = np.empty_like(gradient)
    threshold = np.float32(layer.threshold + THRESHOLD_EPSILON)
    keep = np.float32(layer.keep_u / DECAY_ONE), np.float32(layer.keep_v / DECAY_ONE)
    in_parts(
        len(gradient),
        lambda first, last: kernels.backward(
            first, last, gradient, voltage, threshold, layer.slope, layer.peak, *keep, arriving
        ),
    )
    return arriving


def _weight_gradient(layer: Layer, events: Events, arriving: Array) -> Array:
    """The gradient of the weights, shape (target, source): one part after the other is added."""

    def part(first: int, last: int) -> Array:
        total = np.zeros((events.n_neurons, arriving.shape[2]), dtype=np.float32)
        kernels.weight_gradient(
            first, last, events.step, events.at_neuron, layer.delay, arriving, total
        )
        return total

    parts = in_parts(len(arriving), part)
    total = parts[0]
    for other in parts[1:]:
        total += other
    return np.ascontiguousarray(total.T)


def _send_back(wanted: dict[str, Array | None], layer: Layer, gradient: Array) -> None:
    """Add the gradients of a layer's sources, which spiked ``delay`` steps earlier."""
    earlier = np.zeros_like(gradient)
    earlier[:, : -layer.delay] = gradient[:, layer.delay :]
    before = wanted[layer.source]
    wanted[layer.source] = earlier if before is None else before + earlier


def in_parts(samples: int, work: Callable[[int, int], Any]) -> list[Any]:
    """What ``work(first, last)`` gives for every part of a batch, in their order."""
    n = min(PARTS, samples)
    parts = list(pairwise(samples * k // n for k in range(n + 1))) if n else []
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
