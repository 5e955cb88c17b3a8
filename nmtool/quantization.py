"""Network + ChipSpec -> QuantizedNetwork: real numbers to the integers of the chip.

Every parameter is rounded to the nearest value the chip can hold and the error it took is kept.
A value outside the chip's range is an error that names it; nothing is clipped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from nmtool.chip import ChipSpec, SignMode, SynapseFormat
from nmtool.config import Check, Data, Readout
from nmtool.designrules import Violation, refuse
from nmtool.errors import ConfigError, FitError, UnsupportedError
from nmtool.fixedpoint import (
    ALIGN_BITS,
    CURRENT_DECAY_OFFSET,
    DECAY_ONE,
    STATE_BITS,
    STATE_LIMIT,
    BoolArray,
    IntArray,
    decay,
    round_nearest,
    shift,
)
from nmtool.network import (
    Activation,
    CubaLif,
    Delta,
    Input,
    IntLike,
    Network,
    Neuron,
    PeriodicReset,
    Population,
    Projection,
    RealArray,
    Sigma,
    SigmaDelta,
    check_graph,
    check_per_neuron,
    described_network,
    described_projection,
    shapes,
    sizes,
)
from nmtool.operations import (
    Chain,
    Dense,
    Scale,
    Shape,
    apply_chain,
    count_weighted,
    fold,
    weighted,
    with_weight,
)

WEIGHT_SCALE = 1 << ALIGN_BITS
"""SLAYER's scale: a real weight or threshold of 1 is 64 on the chip."""

STATE_SCALE = WEIGHT_SCALE << ALIGN_BITS
"""A real voltage, current or bias of 1 is 4096 in the units of u and v."""

MESSAGE_BIAS = (-(1 << 15), (1 << 15) - 1)
"""Bias mantissas of sigma-delta neurons: 16 bits (lava-nc 0.10.0, ``lava.proc.sdn.models``)."""

MESSAGE_BASIS = "documented: lava-nc 0.10.0, lava.proc.sdn.models"
GRID_BASIS = "documented: nengo-loihi block.py, lava-nc utils/weightutils.py"


Model: TypeAlias = Literal["cuba", "delta", "sigma_delta", "sigma"]


@dataclass(frozen=True, eq=False)
class QuantizedPopulation:
    """Neurons in the chip's integers.

    ``decay_u`` (the chip decays by decay_u + 1) and ``decay_v`` have 12 bits, ``threshold`` is a
    mantissa of 17 bits (times 2^6), the bias is ``bias_mantissa * 2^bias_exponent`` with one
    mantissa a neuron (13 bits, signed) and one exponent a population (3 bits).

    Neurons of the models ``delta``, ``sigma_delta`` and ``sigma`` have no decays; their threshold
    and bias are scaled by ``2^(spike_exponent + state_exponent)`` (the bias exponent is this sum)
    and the messages they send by ``2^spike_exponent``.
    """

    shape: tuple[int, ...]
    decay_u: int
    decay_v: int
    threshold: int
    bias_mantissa: IntArray
    bias_exponent: int = 0
    axonal_delay: IntLike = 0
    refractory_delay: int = 1
    reset: PeriodicReset | None = None
    model: Model = "cuba"
    activation: Activation = "relu"
    spike_exponent: int = 0
    state_exponent: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("model", Model), ("activation", Activation)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(
                    f"population.{name}: found {getattr(self, name)!r}, "
                    f"allowed {', '.join(get_args(allowed))}"
                )

    @property
    def size(self) -> int:
        """The number of neurons."""
        return int(np.prod(self.shape))

    @property
    def bias(self) -> IntArray:
        """What is added to every voltage at every step."""
        return shift(self.bias_mantissa, self.bias_exponent)

    @property
    def graded(self) -> bool:
        """Whether it sends graded messages instead of spikes."""
        return self.model != "cuba"

    @property
    def effective_threshold(self) -> int:
        """The threshold in the units of the state that it is compared with."""
        align = self.spike_exponent + self.state_exponent if self.graded else ALIGN_BITS
        return self.threshold << align

    def __repr__(self) -> str:
        return (
            f"QuantizedPopulation({self.model}, shape {self.shape}, decay_u {self.decay_u}, "
            f"decay_v {self.decay_v}, threshold {self.threshold})"
        )


@dataclass(frozen=True, eq=False)
class QuantizedProjection:
    """Synapses in the chip's integers: weight = ``weight_mantissa * 2^format.exponent``.

    One of the ``operations`` has weights: mantissas (int64) on the grid of ``format``.
    """

    source: str
    target: str
    operations: Chain
    format: SynapseFormat
    delay: IntLike = 0

    @classmethod
    def dense(
        cls,
        source: str,
        target: str,
        mantissa: IntArray,
        format: SynapseFormat,
        delay: IntLike = 0,
    ) -> QuantizedProjection:
        """A projection of dense weights, shape (target, source)."""
        return cls(source, target, (Dense(mantissa),), format, delay)

    @property
    def weight_mantissa(self) -> IntArray:
        """The mantissas, in the shape that their operation has them."""
        return weighted(self.operations).weight

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

    def with_mantissa(self, mantissa: IntArray, name: str | None = None) -> QuantizedProjection:
        """The same projection with other weights of the same format; errors call it ``name``.

        Raises:
            ConfigError: the shape differs, or these are no numbers.
            FitError: a mantissa is not on the grid of the format.
        """
        name = name or f"{self.source} -> {self.target}"
        mantissa = np.asarray(mantissa)
        if mantissa.dtype.kind not in "biuf":
            raise ConfigError(
                f"projection {name}: found mantissas of type {mantissa.dtype}, allowed integers"
            )
        if mantissa.shape != (allowed := self.weight_mantissa.shape):
            raise ConfigError(
                f"projection {name}: found mantissas of shape {mantissa.shape}, allowed {allowed}"
            )
        check_mantissa(name, mantissa, self.format)
        return replace(self, operations=with_weight(self.operations, mantissa.astype(np.int64)))

    def __repr__(self) -> str:
        return described_projection(self, f"{self.format}")


@dataclass(frozen=True)
class ParameterError:
    """What became of one parameter.

    ``wanted`` and ``got`` are ranges as text, errors are in the units of the real parameter,
    ``clipped`` is the fraction of values outside the format, ``dead_rows`` counts target neurons
    whose weights were not all zero and are now, ``zeroed`` is the fraction of the values other than
    zero that became zero.
    """

    name: str
    wanted: str
    got: str
    max_error: float
    rms_error: float
    clipped: float = 0.0
    dead_rows: int = 0
    zeroed: float = 0.0


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
        for name, population in self.populations.items():
            check_per_neuron(name, "an axonal delay", population.axonal_delay, population.size)
            if np.shape(population.bias_mantissa) != (population.size,):
                raise ConfigError(
                    f"population {name}: found bias mantissas of shape "
                    f"{np.shape(population.bias_mantissa)}, allowed ({population.size},)"
                )
        for name, projection in self.projections.items():
            if count_weighted(projection.operations) != 1:
                raise ConfigError(
                    f"projection {name}: found {count_weighted(projection.operations)} operations "
                    "with weights, allowed 1"
                )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Neurons or spike lines of every input and population."""
        return sizes(self.inputs, self.populations)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input and population."""
        return shapes(self.inputs, self.populations)

    def graded(self, source: str) -> bool:
        """Whether an input or population sends graded messages."""
        if source in self.inputs:
            return self.inputs[source].graded
        return self.populations[source].graded

    def axonal_delay(self, source: str) -> IntLike:
        """The axonal delay of a source; inputs have none."""
        return self.populations[source].axonal_delay if source in self.populations else 0

    @property
    def delay_max(self) -> int:
        """The longest way of a spike beyond its one step: synaptic plus axonal delay."""
        return max(
            (
                p.delay_max + int(np.max(self.axonal_delay(p.source)))
                for p in self.projections.values()
            ),
            default=0,
        )

    def __repr__(self) -> str:
        return described_network(self, self.chip)


def check_mantissa(name: str, mantissa: IntArray, format: SynapseFormat) -> None:
    """Check that mantissas are in the range and on the grid of a synapse format.

    Raises:
        FitError: names the projection, a value found and the values allowed.
    """
    refuse(off_grid(name, mantissa, format))


def off_grid(name: str, mantissa: IntArray, format: SynapseFormat) -> list[Violation]:
    """The first mantissa that is not in the range and on the grid of a synapse format."""
    inside = (mantissa >= format.minimum) & (mantissa <= format.maximum)
    wrong = ~(inside & (mantissa % format.step == 0))
    if not np.any(wrong):
        return []
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return [
        Violation(
            "NM-FIT-004",
            f"projection {name}",
            f"the weight mantissa {mantissa[index]} at {index}",
            f"multiples of {format.step} from {format.minimum} to {format.maximum} ({format})",
            GRID_BASIS,
        )
    ]


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
    return [e for e in range(low, high + 1) if (step * 2.0**e).is_integer()]


def choose_format(
    name: str, weight: RealArray, bits: int, chip: ChipSpec, sign_mode: SignMode | None = None
) -> SynapseFormat:
    """The format of ``bits`` bits with the smallest squared error for real weights.

    A layer whose weights have one sign may take a single-signed format, which has twice the
    resolution. Among equals the mixed sign mode and the exponent nearest to 0 win. A mixed weight
    of one bit is -256 or 0 and can only inhibit: with one bit, weights of which any is positive are
    excitatory, and negative ones become 0.

    Raises:
        FitError: the chip cannot store weights of ``bits`` bits, or the weights are not finite.
    """
    if bits not in chip.weight_bits:
        allowed = ", ".join(map(str, chip.weight_bits))
        found = f"weight_bits {bits}"
        basis = chip.standing("weight_bits")
        refuse([Violation("NM-FIT-003", f"projection {name}", found, allowed, basis)])
    _finite(f"projection {name}.weight", weight)
    modes: tuple[SignMode, ...] = (sign_mode,) if sign_mode else _sign_modes(weight, bits, chip)
    formats = [
        SynapseFormat(bits, e, mode) for mode in modes for e in exact_exponents(bits, mode, chip)
    ]
    real = np.asarray(weight, dtype=np.float64)
    room = np.empty_like(real)
    return min(
        formats,
        key=lambda f: (_squared_error(real, f, room), modes.index(f.sign_mode), abs(f.exponent)),
    )


def _sign_modes(weight: RealArray, bits: int, chip: ChipSpec) -> tuple[SignMode, ...]:
    if bits == 1 and np.max(weight, initial=0) > _finest_excitatory(chip) / 2:
        return ("excitatory",)
    if not np.any(weight):
        return ("mixed",)
    if np.all(weight >= 0):
        return ("mixed", "excitatory")
    if np.all(weight <= 0):
        return ("mixed", "inhibitory")
    return ("mixed",)


def _finest_excitatory(chip: ChipSpec) -> float:
    """The smallest weight above 0 that one bit can hold, in real units."""
    (exponent, *_) = exact_exponents(1, "excitatory", chip)
    return SynapseFormat(1, exponent, "excitatory").step * 2.0**exponent / WEIGHT_SCALE


def _squared_error(weight: RealArray, format: SynapseFormat, room: RealArray) -> float:
    """Of ``dequantize_weights(quantize_weights(weight))``, worked out within ``room``.

    Steps and scales are powers of two: real numbers hold the mantissas exactly.
    """
    unit = format.step * 2.0**format.exponent / WEIGHT_SCALE
    np.divide(weight, unit, out=room)
    np.rint(room, out=room)
    np.clip(room, format.minimum // format.step, format.maximum // format.step, out=room)
    room *= unit
    room -= weight
    room *= room
    return float(np.sum(room))


def quantize(network: Network, chip: ChipSpec, weight_bits: int | None = None) -> QuantizedNetwork:
    """Quantise a network for a chip; ``weight_bits`` replaces what it was trained for.

    Raises:
        FitError: a value that the chip cannot hold, with its name and the range allowed.
    """
    bits = network.weight_bits if weight_bits is None else weight_bits
    errors: list[ParameterError] = []
    shape = shapes(network.inputs, network.populations)
    populations = {
        name: _population(name, population, chip, errors)
        for name, population in network.populations.items()
    }
    projections = {
        name: _projection(name, projection, shape[projection.source], bits, chip, errors)
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
            real_neuron(p),
            _real_bias(p),
            p.axonal_delay,
            p.reset,
            None if p.graded else p.bias_exponent,
        )
        for name, p in network.populations.items()
    }
    projections = {
        name: Projection(
            p.source,
            p.target,
            with_weight(p.operations, dequantize_weights(p.weight_mantissa, p.format)),
            p.delay,
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


def quantize_population(name: str, population: Population, chip: ChipSpec) -> QuantizedPopulation:
    """One population as ``quantize`` gives it.

    Raises:
        FitError: a value that the chip cannot hold, with its name and the range allowed.
    """
    return _population(name, population, chip, [])


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
        chip.standing("decay_bits"),
    )
    _in_range(
        f"{name}.voltage_decay",
        neuron.voltage_decay,
        decay_v,
        (0, chip.decay_max),
        (0, chip.decay_max / DECAY_ONE),
        chip.standing("decay_bits"),
    )
    _in_range(
        f"{name}.threshold",
        neuron.threshold,
        threshold,
        (0, chip.threshold_max),
        (0, chip.threshold_max / WEIGHT_SCALE),
        chip.standing("threshold_bits"),
    )
    return decay_u, decay_v, threshold


def _finite(name: str, real: float | RealArray) -> None:
    if not np.all(np.isfinite(real)):
        raise FitError(f"{name}: found a value that is not a finite number")


def _in_range(
    name: str,
    real: float,
    value: int,
    allowed: tuple[int, int],
    real_range: tuple[float, float],
    basis: str,
    code: str = "NM-FIT-001",
) -> None:
    if not allowed[0] <= value <= allowed[1]:
        found = f"{real:g} (register value {value})"
        span = f"{real_range[0]:g} to {real_range[1]:g} (register {allowed[0]} to {allowed[1]})"
        refuse([Violation(code, name, found, span, basis)])


def quantized_neuron_value(decay_u: int, decay_v: int, threshold: int) -> CubaLif:
    """The real neuron that registers stand for; ``quantize_neuron`` gives them back."""
    return CubaLif(
        threshold / WEIGHT_SCALE,
        (decay_u + CURRENT_DECAY_OFFSET) / DECAY_ONE,
        decay_v / DECAY_ONE,
    )


def real_neuron(p: QuantizedPopulation) -> Neuron:
    """The real neuron that the integers of a population stand for."""
    if p.model == "cuba":
        neuron = quantized_neuron_value(p.decay_u, p.decay_v, p.threshold)
        return replace(neuron, refractory_delay=p.refractory_delay)
    if p.model == "sigma":
        return Sigma()
    threshold = p.threshold / WEIGHT_SCALE
    if p.model == "delta":
        return Delta(threshold, p.spike_exponent, p.state_exponent)
    return SigmaDelta(threshold, p.activation, p.spike_exponent, p.state_exponent)


def _real_bias(p: QuantizedPopulation) -> RealArray | None:
    if not np.any(p.bias_mantissa):
        return None
    return p.bias_mantissa / WEIGHT_SCALE if p.graded else p.bias / STATE_SCALE


def _population(
    name: str, population: Population, chip: ChipSpec, errors: list[ParameterError]
) -> QuantizedPopulation:
    neuron = population.neuron
    _check_delay(f"{name}.axonal_delay", population.axonal_delay, chip)
    if isinstance(neuron, CubaLif):
        quantized = _cuba(name, population, neuron, chip, errors)
    else:
        quantized = _sigma_delta(name, population, neuron, chip, errors)
    _note_delay(f"{name}.axonal_delay", population.axonal_delay, errors)
    return replace(quantized, axonal_delay=population.axonal_delay, reset=population.reset)


def _cuba(
    name: str,
    population: Population,
    neuron: CubaLif,
    chip: ChipSpec,
    errors: list[ParameterError],
) -> QuantizedPopulation:
    decay_u, decay_v, threshold = quantize_neuron(name, neuron, chip)
    got = quantized_neuron_value(decay_u, decay_v, threshold)
    registers = {"threshold": threshold, "current_decay": decay_u, "voltage_decay": decay_v}
    for key, register in registers.items():
        _note_value(f"{name}.{key}", getattr(neuron, key), getattr(got, key), register, errors)
    if not 1 <= neuron.refractory_delay <= chip.refractory_delay_max:
        where, found = f"{name}.refractory_delay", f"{neuron.refractory_delay} steps"
        allowed = f"1 to {chip.refractory_delay_max}"
        basis = chip.standing("refractory_delay_max")
        refuse([Violation("NM-FIT-007", where, found, allowed, basis)])
    mantissa, exponent = _bias(name, population, chip, errors)
    return QuantizedPopulation(
        population.shape,
        decay_u,
        decay_v,
        threshold,
        mantissa,
        exponent,
        refractory_delay=neuron.refractory_delay,
    )


def _sigma_delta(
    name: str,
    population: Population,
    neuron: Delta | SigmaDelta | Sigma,
    chip: ChipSpec,
    errors: list[ParameterError],
) -> QuantizedPopulation:
    if population.bias_exponent is not None:
        raise ConfigError(
            f"{name}.bias_exponent: found {population.bias_exponent}, allowed for CUBA neurons"
        )
    zero = np.zeros(population.size, dtype=np.int64)
    if isinstance(neuron, Sigma):
        return QuantizedPopulation(population.shape, 0, 0, 0, zero, model="sigma")
    align = neuron.spike_exponent + neuron.state_exponent
    if min(neuron.spike_exponent, neuron.state_exponent) < 0 or align >= STATE_BITS:
        found = f"the exponents {neuron.spike_exponent} (spike) and {neuron.state_exponent} (state)"
        allowed = f"from 0, below {STATE_BITS} together"
        basis = chip.standing("state_bits")
        refuse([Violation("NM-FIT-009", name, found, allowed, basis)])
    _finite(f"{name}.threshold", neuron.threshold)
    threshold = int(round_nearest(WEIGHT_SCALE * neuron.threshold))
    limit = (STATE_LIMIT - 1) >> align
    real = threshold / WEIGHT_SCALE
    _in_range(
        f"{name}.threshold",
        neuron.threshold,
        threshold,
        (0, limit),
        (0, limit / WEIGHT_SCALE),
        chip.standing("state_bits"),
        "NM-FIT-009",
    )
    _note_value(f"{name}.threshold", neuron.threshold, real, threshold, errors)
    mantissa = zero if population.bias is None else _message_bias(name, population.bias, errors)
    return QuantizedPopulation(
        population.shape,
        0,
        0,
        threshold,
        mantissa,
        align,
        model="delta" if isinstance(neuron, Delta) else "sigma_delta",
        activation=neuron.activation if isinstance(neuron, SigmaDelta) else "unit",
        spike_exponent=neuron.spike_exponent,
        state_exponent=neuron.state_exponent,
    )


def _message_bias(name: str, bias: RealArray, errors: list[ParameterError]) -> IntArray:
    """The bias of sigma-delta neurons, in 1/64, 16 bits."""
    real = np.asarray(bias, dtype=np.float64)
    _finite(f"{name}.bias", real)
    mantissa = round_nearest(real * WEIGHT_SCALE)
    low, high = MESSAGE_BIAS
    if mantissa.min() < low or mantissa.max() > high:
        allowed = f"{low / WEIGHT_SCALE:g} to {high / WEIGHT_SCALE:g}"
        refuse([Violation("NM-FIT-009", f"{name}.bias", _span(real), allowed, MESSAGE_BASIS)])
    difference = mantissa / WEIGHT_SCALE - real
    rms = float(np.sqrt(np.mean(difference**2)))
    error = float(np.abs(difference).max())
    errors.append(ParameterError(f"{name}.bias", _span(real), _span(mantissa), error, rms))
    return mantissa


def _note_value(
    name: str, wanted: float, value: float, register: int, errors: list[ParameterError]
) -> None:
    error = abs(value - wanted)
    errors.append(ParameterError(name, f"{wanted:g}", str(register), error, error))


def _bias(
    name: str, population: Population, chip: ChipSpec, errors: list[ParameterError]
) -> tuple[IntArray, int]:
    """The smallest exponent at which every mantissa is in range keeps the most precision."""
    first, last = chip.bias_exponent
    if population.bias_exponent is not None:
        if not first <= population.bias_exponent <= last:
            where, found = f"{name}.bias_exponent", str(population.bias_exponent)
            basis = chip.standing("bias_exponent")
            refuse([Violation("NM-FIT-008", where, found, f"{first} to {last}", basis)])
        first = last = population.bias_exponent
    if population.bias is None:
        return np.zeros(population.size, dtype=np.int64), first
    real = np.asarray(population.bias, dtype=np.float64)
    _finite(f"{name}.bias", real)
    low, high = chip.bias_mantissa
    for exponent in range(first, last + 1):
        mantissa = round_nearest(real * STATE_SCALE / (1 << exponent))
        if low <= mantissa.min() and mantissa.max() <= high:
            break
    else:
        largest = (1 << exponent) / STATE_SCALE
        allowed = f"{low * largest:g} to {high * largest:g}"
        basis = chip.standing("bias_mantissa")
        refuse([Violation("NM-FIT-008", f"{name}.bias", _span(real), allowed, basis)])
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
    name: str,
    projection: Projection,
    shape: Shape,
    bits: int,
    chip: ChipSpec,
    errors: list[ParameterError],
) -> QuantizedProjection:
    _check_delay(f"projection {name}.delay", projection.delay, chip)
    _note_delay(f"{name}.delay", projection.delay, errors)
    operations = _one_weight(projection.operations, shape)
    real = np.asarray(weighted(operations).weight, dtype=np.float64)
    format = choose_format(name, real, bits, chip)
    mantissa = quantize_weights(real, format)
    errors.append(weight_error(f"{name}.weight", operations, shape, mantissa, format))
    operations = with_weight(operations, mantissa)
    return QuantizedProjection(
        projection.source, projection.target, operations, format, projection.delay
    )


def _one_weight(operations: Chain, shape: Shape) -> Chain:
    """A chain with exactly one operation that has weights, as synapses have one weight.

    A chain without any gets the weight 1; one with several becomes their product.
    """
    found = count_weighted(operations)
    if found == 0:
        return (*operations, Scale(np.ones(1)))
    return operations if found == 1 else (fold(operations, shape),)


def weight_error(
    name: str, operations: Chain, shape: Shape, mantissa: IntArray, format: SynapseFormat
) -> ParameterError:
    """What became of the weights of a chain: wanted and got, and the error they took."""
    real = np.asarray(weighted(operations).weight, dtype=np.float64)
    difference = dequantize_weights(mantissa, format) - real
    unit = 2.0**format.exponent / WEIGHT_SCALE
    half = format.step * unit / 2
    outside = (real < format.minimum * unit - half) | (real > format.maximum * unit + half)
    alive = fan_in(with_weight(operations, real != 0), shape) > 0
    dead = alive & (fan_in(with_weight(operations, mantissa != 0), shape) == 0)
    return ParameterError(
        name,
        _span(real),
        f"{_span(mantissa)} ({format})",
        float(np.abs(difference).max(initial=0.0)),
        float(np.sqrt(np.mean(difference**2))) if real.size else 0.0,
        float(outside.mean()) if real.size else 0.0,
        int(dead.sum()),
        float(np.mean(mantissa[real != 0] == 0)) if np.any(real) else 0.0,
    )


def fan_in(operations: Chain, shape: Shape) -> IntArray:
    """The sum of the weights into every target neuron, shape (target,)."""
    ones = np.ones((1, int(np.prod(shape))), dtype=np.int64)
    whole = with_weight(operations, weighted(operations).weight.astype(np.int64))
    return np.asarray(apply_chain(whole, ones, shape)[0])


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
        found, allowed = f"{low} to {high} steps", f"0 to {chip.delay_max}"
        refuse([Violation("NM-FIT-005", name, found, allowed, chip.standing("delay_max"))])


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
    the lowest from the negative ones; v is bounded above by a step from its threshold. Neurons
    that receive graded messages, and sigma-delta neurons, have no such bound and are left out.
    """
    graded = {p.target for p in network.projections.values() if network.graded(p.source)}
    graded |= {source.drives for source in network.inputs.values() if source.drives}
    return [
        _state_bound(network, name, n_steps)
        for name, population in network.populations.items()
        if name not in graded and not population.graded
    ]


def _state_bound(network: QuantizedNetwork, name: str, n_steps: int) -> StateBound:
    population = network.populations[name]
    high, low = _arriving(network, name, 1), _arriving(network, name, -1)
    keep_u = DECAY_ONE - population.decay_u - CURRENT_DECAY_OFFSET
    keep_v = DECAY_ONE - population.decay_v
    bias_up, bias_down = np.maximum(population.bias, 0), np.maximum(-population.bias, 0)
    u_up = u_down = v_down = np.zeros(population.size, dtype=np.int64)
    for _ in range(n_steps):
        u_up = ((u_up * keep_u) >> 12) + high
        u_down = ((u_down * keep_u) >> 12) + low
        v_down = ((v_down * keep_v) >> 12) + u_down + bias_down
        if u_up.max(initial=0) > 1 << 48 or v_down.max(initial=0) > 1 << 48:
            break
    v_up = ((population.effective_threshold * keep_v) >> 12) + u_up + bias_up
    current = max(u_up.max(initial=0), u_down.max(initial=0))
    return StateBound(name, int(current), int(max(v_up.max(initial=0), v_down.max(initial=0))))


def never_firing(network: QuantizedNetwork, name: str, n_steps: int) -> BoolArray:
    """Which CUBA neurons cannot spike in ``n_steps`` steps from reset, whatever spikes arrive.

    An upper bound of v: every positive weight delivers at every step, and v never falls below 0
    before a step. It holds where u cannot leave its 24 bits (``state_bounds``).
    """
    population = network.populations[name]
    high = _arriving(network, name, 1)
    u = v = np.zeros(population.size, dtype=np.int64)
    never = np.ones(population.size, dtype=np.bool_)
    for _ in range(n_steps):
        before = u, v
        u = np.minimum(decay(u, population.decay_u + CURRENT_DECAY_OFFSET) + high, 1 << 40)
        v = np.minimum(decay(np.maximum(v, 0), population.decay_v) + u + population.bias, 1 << 40)
        never &= v <= population.effective_threshold
        if not never.any() or (np.array_equal(u, before[0]) and np.array_equal(v, before[1])):
            break
    return never


def _arriving(network: QuantizedNetwork, name: str, sign: int) -> IntArray:
    """The most that can arrive in one step from weights of one sign, in units of u."""
    total = np.zeros(network.populations[name].size, dtype=np.int64)
    for p in network.projections.values():
        if p.target == name:
            operations = with_weight(p.operations, np.maximum(sign * p.weight, 0))
            total += fan_in(operations, network.shapes[p.source])
    return total << ALIGN_BITS
