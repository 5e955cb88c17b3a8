"""Network + ChipSpec -> QuantizedNetwork: real numbers to the integers of the chip.

Every parameter is rounded to the nearest value the chip can hold and the error it took is kept.
A value outside the chip's range is an error that names it; nothing is clipped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.chip import ChipSpec, SignMode, SynapseFormat
from nmtool.config import Check, Data, Readout
from nmtool.errors import FitError, UnsupportedError
from nmtool.fixedpoint import (
    ALIGN_BITS,
    CURRENT_DECAY_OFFSET,
    DECAY_ONE,
    STATE_LIMIT,
    IntArray,
    exact_shift,
    round_nearest,
    shift,
)
from nmtool.network import (
    CubaLif,
    Input,
    IntLike,
    Network,
    Population,
    Projection,
    RealArray,
    check_delay_shape,
    check_graph,
    check_shape,
    sizes,
)

WEIGHT_SCALE = 1 << ALIGN_BITS
"""SLAYER's scale: a real weight or threshold of 1 is 64 on the chip."""

STATE_SCALE = WEIGHT_SCALE << ALIGN_BITS
"""A real voltage, current or bias of 1 is 4096 in the units of u and v."""


@dataclass(frozen=True, eq=False)
class QuantizedPopulation:
    """CUBA LIF neurons in the chip's integers.

    ``decay_u`` (the chip decays by decay_u + 1) and ``decay_v`` have 12 bits, ``threshold`` is a
    mantissa of 17 bits (times 2^6), the bias is ``bias_mantissa * 2^bias_exponent`` with one
    mantissa a neuron (13 bits, signed) and one exponent a population (3 bits).
    """

    shape: tuple[int, ...]
    decay_u: int
    decay_v: int
    threshold: int
    bias_mantissa: IntArray
    bias_exponent: int = 0
    axonal_delay: int = 0

    @property
    def size(self) -> int:
        """The number of neurons."""
        return int(np.prod(self.shape))

    @property
    def bias(self) -> IntArray:
        """What is added to every voltage at every step."""
        return shift(self.bias_mantissa, self.bias_exponent)


@dataclass(frozen=True, eq=False)
class QuantizedProjection:
    """Synapses in the chip's integers: weight = ``weight_mantissa * 2^format.exponent``.

    ``weight_mantissa`` (int64) has the shape (target, source) and lies on the grid of ``format``.
    """

    source: str
    target: str
    weight_mantissa: IntArray
    format: SynapseFormat
    delay: IntLike = 0

    @property
    def weight_exponent(self) -> int:
        """The exponent that all weights share."""
        return self.format.exponent

    @property
    def sign_mode(self) -> SignMode:
        """mixed, excitatory or inhibitory."""
        return self.format.sign_mode

    @property
    def weight_bits(self) -> int:
        """Bits per stored weight."""
        return self.format.bits

    @property
    def weight(self) -> IntArray:
        """The weights that act: mantissa times 2^exponent, exact by the choice of the format."""
        return shift(self.weight_mantissa, self.format.exponent)

    @property
    def delay_max(self) -> int:
        """The longest synaptic delay in steps."""
        return int(np.max(self.delay, initial=0))

    @property
    def delay_min(self) -> int:
        """The shortest synaptic delay in steps."""
        return int(np.min(self.delay)) if np.size(self.delay) else 0

    def with_mantissa(self, mantissa: IntArray) -> QuantizedProjection:
        """The same projection with other weights of the same format.

        Raises:
            FitError: a mantissa is not on the grid of the format, or the shape differs.
        """
        check_mantissa(f"{self.source} -> {self.target}", mantissa, self.format)
        if mantissa.shape != self.weight_mantissa.shape:
            raise FitError(
                f"projection {self.source} -> {self.target}: found mantissas of shape "
                f"{mantissa.shape}, allowed {self.weight_mantissa.shape}"
            )
        return replace(self, weight_mantissa=mantissa.astype(np.int64))


@dataclass(frozen=True)
class ParameterError:
    """What became of one parameter.

    ``wanted`` and ``got`` are ranges as text, errors are in the units of the real parameter,
    ``clipped`` is the fraction of values outside the format, ``dead_rows`` counts target neurons
    whose weights were not all zero and are now.
    """

    name: str
    wanted: str
    got: str
    max_error: float
    rms_error: float
    clipped: float = 0.0
    dead_rows: int = 0


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network under the same names in integers only, with the error each parameter took."""

    name: str
    chip: str
    inputs: Mapping[str, Input]
    populations: Mapping[str, QuantizedPopulation]
    projections: Mapping[str, QuantizedProjection]
    outputs: tuple[str, ...]
    errors: tuple[ParameterError, ...] = ()
    data: Data | None = None
    readout: Readout | None = None
    checks: tuple[Check, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_graph(self.inputs, self.populations, self.projections, self.outputs)
        for name, projection in self.projections.items():
            check_shape(name, projection.weight_mantissa.shape, projection, self.sizes)
            check_delay_shape(name, projection.weight_mantissa.shape, projection.delay)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Neurons or spike lines of every input and population."""
        return sizes(self.inputs, self.populations)

    @property
    def delay_max(self) -> int:
        """The longest way of a spike beyond its one step: synaptic plus axonal delay."""
        axonal = {name: population.axonal_delay for name, population in self.populations.items()}
        return max(
            (p.delay_max + axonal.get(p.source, 0) for p in self.projections.values()), default=0
        )


def check_mantissa(name: str, mantissa: IntArray, format: SynapseFormat) -> None:
    """Check that mantissas are in the range and on the grid of a synapse format.

    Raises:
        FitError: names the projection, a value found and the values allowed.
    """
    inside = (mantissa >= format.minimum) & (mantissa <= format.maximum)
    wrong = ~(inside & (mantissa % format.step == 0))
    if np.any(wrong):
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise FitError(
            f"projection {name}: found the weight mantissa {mantissa[index]} at {index}, "
            f"allowed multiples of {format.step} from {format.minimum} to {format.maximum} "
            f"({format})"
        )


def quantize_weights(weight: RealArray, format: SynapseFormat) -> IntArray:
    """The mantissas nearest to real weights: ``round(64 w / 2^exponent)`` on the format's grid.

    Values outside the range go to its end; ``choose_format`` and ``ParameterError`` count them.
    """
    unit = format.step * 2.0**format.exponent
    grid = round_nearest(np.asarray(weight, dtype=np.float64) * WEIGHT_SCALE / unit)
    low, high = format.minimum // format.step, format.maximum // format.step
    return np.clip(grid, low, high) * format.step


def dequantize_weights(mantissa: IntArray, format: SynapseFormat) -> RealArray:
    """Real weights (SLAYER's scale) of mantissas: ``mantissa * 2^exponent / 64``."""
    return np.asarray(mantissa * (2.0**format.exponent / WEIGHT_SCALE), dtype=np.float64)


def exact_exponents(bits: int, sign_mode: SignMode, chip: ChipSpec) -> list[int]:
    """The exponents at which the shift of every mantissa of a format is exact.

    Where a shift would drop bits, Lava (which shifts the sum) and other models of the chip (which
    shift each weight) would part.
    """
    low, high = chip.weight_exponent
    step = SynapseFormat(bits, 0, sign_mode).step
    return [e for e in range(low, high + 1) if exact_shift(step, e)]


def choose_format(
    name: str, weight: RealArray, bits: int, chip: ChipSpec, sign_mode: SignMode | None = None
) -> SynapseFormat:
    """The format of ``bits`` bits with the smallest squared error for real weights.

    A layer whose weights have one sign may take a single-signed format, which has twice the
    resolution. Among equals the mixed sign mode and the exponent nearest to 0 win.

    Raises:
        FitError: the chip cannot store weights of ``bits`` bits, or the weights are not finite.
    """
    if bits not in chip.weight_bits:
        allowed = ", ".join(map(str, chip.weight_bits))
        raise FitError(f"projection {name}: found weight_bits {bits}, allowed {allowed}")
    _finite(f"projection {name}.weight", weight)
    modes: tuple[SignMode, ...] = (sign_mode,) if sign_mode else _sign_modes(weight)
    formats = [
        SynapseFormat(bits, e, mode) for mode in modes for e in exact_exponents(bits, mode, chip)
    ]
    return min(
        formats,
        key=lambda f: (_squared_error(weight, f), modes.index(f.sign_mode), abs(f.exponent)),
    )


def _sign_modes(weight: RealArray) -> tuple[SignMode, ...]:
    if not np.any(weight):
        return ("mixed",)
    if np.all(weight >= 0):
        return ("mixed", "excitatory")
    if np.all(weight <= 0):
        return ("mixed", "inhibitory")
    return ("mixed",)


def _squared_error(weight: RealArray, format: SynapseFormat) -> float:
    difference = dequantize_weights(quantize_weights(weight, format), format) - weight
    return float(np.sum(difference**2))


def quantize(network: Network, chip: ChipSpec, weight_bits: int | None = None) -> QuantizedNetwork:
    """Quantise a network for a chip; ``weight_bits`` replaces what it was trained for.

    Raises:
        FitError: a value that the chip cannot hold, with its name and the range allowed.
    """
    bits = network.weight_bits if weight_bits is None else weight_bits
    errors: list[ParameterError] = []
    populations = {
        name: _population(name, population, chip, errors)
        for name, population in network.populations.items()
    }
    projections = {
        name: _projection(name, projection, bits, chip, errors)
        for name, projection in network.projections.items()
    }
    return QuantizedNetwork(
        network.name,
        chip.name,
        network.inputs,
        populations,
        projections,
        network.outputs,
        tuple(errors),
        network.data,
        network.readout,
        network.checks,
        network.metadata,
    )


def dequantize(network: QuantizedNetwork) -> Network:
    """The real network that the integers stand for; quantising it gives the integers back.

    Weights of different bits keep their values, and the network takes the largest.
    """
    populations = {
        name: Population(
            p.shape,
            quantized_neuron_value(p.decay_u, p.decay_v, p.threshold),
            p.bias / STATE_SCALE if np.any(p.bias) else None,
            p.axonal_delay,
        )
        for name, p in network.populations.items()
    }
    projections = {
        name: Projection.dense(
            p.source, p.target, dequantize_weights(p.weight_mantissa, p.format), p.delay
        )
        for name, p in network.projections.items()
    }
    bits = max((p.weight_bits for p in network.projections.values()), default=8)
    return Network(
        network.name,
        network.inputs,
        populations,
        projections,
        network.outputs,
        network.data,
        network.readout,
        network.checks,
        bits,
        network.metadata,
    )


def quantize_neuron(name: str, neuron: CubaLif, chip: ChipSpec) -> tuple[int, int, int]:
    """``(decay_u, decay_v, threshold)`` of a neuron in the chip's registers.

    decay_u = round(4096 current_decay) - 1, decay_v = round(4096 voltage_decay),
    threshold = round(64 threshold).

    Raises:
        FitError: outside the registers' range.
    """
    for key in ("current_decay", "voltage_decay", "threshold"):
        _finite(f"{name}.{key}", getattr(neuron, key))
    decay_u = int(round_nearest(DECAY_ONE * neuron.current_decay)) - CURRENT_DECAY_OFFSET
    decay_v = int(round_nearest(DECAY_ONE * neuron.voltage_decay))
    threshold = int(round_nearest(WEIGHT_SCALE * neuron.threshold))
    offset = CURRENT_DECAY_OFFSET
    _in_range(
        f"{name}.current_decay",
        neuron.current_decay,
        decay_u,
        (0, chip.decay_max),
        (offset / DECAY_ONE, (chip.decay_max + offset) / DECAY_ONE),
    )
    _in_range(
        f"{name}.voltage_decay",
        neuron.voltage_decay,
        decay_v,
        (0, chip.decay_max),
        (0, chip.decay_max / DECAY_ONE),
    )
    _in_range(
        f"{name}.threshold",
        neuron.threshold,
        threshold,
        (0, chip.threshold_max),
        (0, chip.threshold_max / WEIGHT_SCALE),
    )
    return decay_u, decay_v, threshold


def _finite(name: str, real: float | RealArray) -> None:
    if not np.all(np.isfinite(real)):
        raise FitError(f"{name}: found a value that is not a finite number")


def _in_range(
    name: str, real: float, value: int, allowed: tuple[int, int], real_range: tuple[float, float]
) -> None:
    if not allowed[0] <= value <= allowed[1]:
        raise FitError(
            f"{name}: found {real:g} (register value {value}), allowed {real_range[0]:g} to "
            f"{real_range[1]:g} (register {allowed[0]} to {allowed[1]})"
        )


def quantized_neuron_value(decay_u: int, decay_v: int, threshold: int) -> CubaLif:
    """The real neuron that registers stand for; ``quantize_neuron`` gives them back."""
    return CubaLif(
        threshold / WEIGHT_SCALE,
        (decay_u + CURRENT_DECAY_OFFSET) / DECAY_ONE,
        decay_v / DECAY_ONE,
    )


def _population(
    name: str, population: Population, chip: ChipSpec, errors: list[ParameterError]
) -> QuantizedPopulation:
    neuron = population.neuron
    decay_u, decay_v, threshold = quantize_neuron(name, neuron, chip)
    got = quantized_neuron_value(decay_u, decay_v, threshold)
    registers = {"threshold": threshold, "current_decay": decay_u, "voltage_decay": decay_v}
    for key, register in registers.items():
        wanted, value = getattr(neuron, key), getattr(got, key)
        error = abs(value - wanted)
        errors.append(ParameterError(f"{name}.{key}", f"{wanted:g}", str(register), error, error))
    mantissa, exponent = _bias(name, population, chip, errors)
    _check_delay(f"{name}.axonal_delay", population.axonal_delay, chip)
    _note_delay(f"{name}.axonal_delay", population.axonal_delay, errors)
    return QuantizedPopulation(
        population.shape, decay_u, decay_v, threshold, mantissa, exponent, population.axonal_delay
    )


def _bias(
    name: str, population: Population, chip: ChipSpec, errors: list[ParameterError]
) -> tuple[IntArray, int]:
    """The smallest exponent at which every mantissa is in range keeps the most precision."""
    if population.bias is None:
        return np.zeros(population.size, dtype=np.int64), 0
    real = np.asarray(population.bias, dtype=np.float64)
    _finite(f"{name}.bias", real)
    low, high = chip.bias_mantissa
    for exponent in range(chip.bias_exponent[0], chip.bias_exponent[1] + 1):
        mantissa = round_nearest(real * STATE_SCALE / (1 << exponent))
        if low <= mantissa.min() and mantissa.max() <= high:
            break
    else:
        raise FitError(
            f"{name}.bias: found {_span(real)}, allowed "
            f"{low * (1 << exponent) / STATE_SCALE:g} to {high * (1 << exponent) / STATE_SCALE:g}"
        )
    difference = shift(mantissa, exponent) / STATE_SCALE - real
    errors.append(
        ParameterError(
            f"{name}.bias",
            _span(real),
            f"{_span(mantissa)} x 2^{exponent}",
            float(np.abs(difference).max()),
            float(np.sqrt(np.mean(difference**2))),
        )
    )
    return mantissa, exponent


def _projection(
    name: str, projection: Projection, bits: int, chip: ChipSpec, errors: list[ParameterError]
) -> QuantizedProjection:
    _check_delay(f"projection {name}.delay", projection.delay, chip)
    _note_delay(f"{name}.delay", projection.delay, errors)
    real = np.asarray(projection.weight, dtype=np.float64)
    format = choose_format(name, real, bits, chip)
    mantissa = quantize_weights(real, format)
    errors.append(_weight_error(f"{name}.weight", real, mantissa, format))
    return QuantizedProjection(
        projection.source, projection.target, mantissa, format, projection.delay
    )


def _weight_error(
    name: str, real: RealArray, mantissa: IntArray, format: SynapseFormat
) -> ParameterError:
    difference = dequantize_weights(mantissa, format) - real
    unit = 2.0**format.exponent / WEIGHT_SCALE
    half = format.step * unit / 2
    outside = (real < format.minimum * unit - half) | (real > format.maximum * unit + half)
    dead = np.any(real != 0, axis=1) & np.all(mantissa == 0, axis=1)
    return ParameterError(
        name,
        _span(real),
        f"{_span(mantissa)} ({format})",
        float(np.abs(difference).max(initial=0.0)),
        float(np.sqrt(np.mean(difference**2))) if real.size else 0.0,
        float(outside.mean()) if real.size else 0.0,
        int(dead.sum()),
    )


def _span(values: RealArray | IntArray) -> str:
    if not values.size:
        return "none"
    return f"{values.min():.4g} to {values.max():.4g}"


def _note_delay(name: str, delay: IntLike, errors: list[ParameterError]) -> None:
    """Delays are whole steps already: they take no error."""
    if np.any(delay):
        span = _span(np.atleast_1d(delay)) if np.ndim(delay) else f"{int(delay)} steps"
        errors.append(ParameterError(name, span, span, 0.0, 0.0))


def _check_delay(name: str, delay: IntLike, chip: ChipSpec) -> None:
    if not np.issubdtype(np.asarray(delay).dtype, np.integer):
        raise UnsupportedError(f"{name}: found a delay that is not whole steps")
    low, high = int(np.min(delay, initial=0)), int(np.max(delay, initial=0))
    if low < 0 or high > chip.delay_max:
        raise FitError(f"{name}: found {low} to {high} steps, allowed 0 to {chip.delay_max}")


@dataclass(frozen=True)
class StateBound:
    """The farthest that u and v of one population can go within a number of steps.

    ``safe`` means that no input whatever can make u wrap or v saturate, so that models without a
    24-bit register (SLAYER's forward) and the chip cannot part.
    """

    population: str
    current: int
    voltage: int

    @property
    def safe(self) -> bool:
        """Whether both stay inside their registers."""
        return max(self.current, self.voltage) < STATE_LIMIT


def state_bounds(network: QuantizedNetwork, n_steps: int) -> list[StateBound]:
    """Worst-case |u| and |v| over ``n_steps`` steps from reset, by interval arithmetic.

    Every source may spike at every step. The highest u follows from the positive weights alone,
    the lowest from the negative ones; v is bounded above by one step past its threshold.
    """
    return [_state_bound(network, name, n_steps) for name in network.populations]


def _state_bound(network: QuantizedNetwork, name: str, n_steps: int) -> StateBound:
    population = network.populations[name]
    incoming = [p.weight for p in network.projections.values() if p.target == name]
    zero = np.zeros(population.size, dtype=np.int64)
    high = sum((np.maximum(w, 0).sum(axis=1) for w in incoming), zero) << ALIGN_BITS
    low = sum((np.maximum(-w, 0).sum(axis=1) for w in incoming), zero) << ALIGN_BITS
    keep_u = DECAY_ONE - population.decay_u - CURRENT_DECAY_OFFSET
    keep_v = DECAY_ONE - population.decay_v
    bias_up, bias_down = np.maximum(population.bias, 0), np.maximum(-population.bias, 0)
    u_up, u_down, v_down = zero, zero, zero
    for _ in range(n_steps):
        u_up = ((u_up * keep_u) >> 12) + high
        u_down = ((u_down * keep_u) >> 12) + low
        v_down = ((v_down * keep_v) >> 12) + u_down + bias_down
        if u_up.max(initial=0) > 1 << 48 or v_down.max(initial=0) > 1 << 48:
            break
    v_up = (population.threshold << ALIGN_BITS) + u_up + bias_up
    current = max(u_up.max(initial=0), u_down.max(initial=0))
    return StateBound(name, int(current), int(max(v_up.max(initial=0), v_down.max(initial=0))))
