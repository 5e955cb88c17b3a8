"""The event engine: the same networks, spikes and gradients as SLAYER's blocks, by events.

The forward pass is the chip's integer arithmetic, step by step, and adds rows of weights for each
spike that there is; the backward pass is SLAYER's in float32. Every sum has the same order whatever
the number of threads, so results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.chip import ChipSpec, SynapseFormat
from nmtool.config import Noise, SlayerSurrogate, Surrogate
from nmtool.errors import FitError, UnsupportedError
from nmtool.fixedpoint import ALIGN_BITS, CURRENT_DECAY_OFFSET, DECAY_ONE
from nmtool.network import Network
from nmtool.quantization import (
    STATE_SCALE,
    QuantizedNetwork,
    QuantizedPopulation,
    dequantize_weights,
    quantize,
)
from nmtool.training import dynamics, kernels
from nmtool.training.events import Events, merged
from nmtool.training.injection import Measured
from nmtool.training.learned import Learned
from nmtool.training.memory import Memory, aligned
from nmtool.training.model import Model, Reach, Stage, States
from nmtool.training.noise import Draw, compiled
from nmtool.training.parts import PARTS, in_parts
from nmtool.training.recipe import WEIGHTS_ONLY, Recipe
from nmtool.training.rounding import Rounded, closest_format, round_to
from nmtool.training.spiking import DETERMINISTIC, POWERS_OF_TWO, Escape
from nmtool.training.surrogates import Derivative, derivative
from nmtool.training.wires import Rows, Wire, joined, one_thread, wire

Array: TypeAlias = npt.NDArray[Any]
Chance: TypeAlias = tuple[Escape, Array, Array]
"""An escape function, keys (populations, samples), thresholds (samples, steps or 0, neurons)."""

THRESHOLD = 2
"""Which of the registers of a layer holds the threshold."""

THRESHOLD_EPSILON = 0.01
"""SLAYER's surrogate sits this much above the threshold, in units of 1/4096 (lava-dl)."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A stage, compiled: its neurons side by side, in the chip's units.

    Attributes:
        slices: which of the neurons each population has.
        incoming, within: its projections.
        registers: keep_u, keep_v, threshold and bias of every neuron, (4, neurons), or of
            ``kernels.PERIOD`` neurons if all are the same.
        shape: of the surrogate derivatives.
        surrogate: centre, slope, peak, keep_u and keep_v in the backward pass, (5, neurons),
            likewise.
    """

    slices: dict[str, slice]
    incoming: tuple[Wire, ...]
    within: tuple[Wire, ...]
    registers: Array
    shape: int
    surrogate: Array

    @property
    def n(self) -> int:
        """Neurons."""
        return int(max(part.stop for part in self.slices.values()))

    @property
    def begins(self) -> Array:
        """The first neuron of each population, and the number of neurons."""
        return np.array([*(part.start for part in self.slices.values()), self.n])

    @property
    def wires(self) -> tuple[Wire, ...]:
        """All projections into the stage."""
        return self.incoming + self.within

    @property
    def is_dense(self) -> bool:
        """Whether one matrix feeds it, and nothing else."""
        return not self.within and [w.kind for w in self.incoming] == ["dense"]

    @property
    def is_one_loop(self) -> bool:
        """Whether one population feeds itself by one matrix."""
        return len(self.slices) == 1 and [w.kind for w in self.within] == ["dense"]

    def block(self, wire: Wire, samples: int) -> int:
        """The length of a row of weights: narrow blocks if there are few samples to share."""
        if not self.is_dense:
            return wire.length
        share = -(-self.n * max(samples, 1) // PARTS)
        return min(kernels.BLOCK, -(-min(self.n, share) // kernels.LANES) * kernels.LANES)

    @cached_property
    def rows(self) -> Rows:
        """What the spikes of all sources do, one projection after the other."""
        parts, first, begin = [], 0, 0
        for w in self.incoming:
            parts.append((w.rows, first, begin, self.slices[w.synapses.target].start, 0))
            first, begin = first + w.size, begin + int(np.prod(w.weight_shape))
        return joined(first, parts)

    @cached_property
    def own_rows(self) -> Rows:
        """What the spikes of its own neurons do."""
        parts, begin = [], 0
        for w in self.within:
            source, target = (
                self.slices[end].start for end in (w.synapses.source, w.synapses.target)
            )
            parts.append((w.rows, source, begin, target, w.synapses.delay))
            begin += int(np.prod(w.weight_shape))
        return joined(self.n, parts)

    @cached_property
    def is_whole(self) -> bool:
        """Whether every source has one row of all neurons, and all of its own one delay."""
        late = self.own_rows.ways[:, 3]
        return (
            self.rows.are_whole(self.n)
            and self.own_rows.are_whole(self.n)
            and bool(np.all(late == self.ahead - 1))
        )

    @property
    def ahead(self) -> int:
        """Steps that are kept for spikes that are in flight within the stage, and this one."""
        return 1 + max((w.synapses.delay for w in self.within), default=0)


def _layer(
    stage: Stage, quantized: QuantizedNetwork, surrogate: Surrogate, noise: Noise | None
) -> Layer:
    slices, begin = {}, 0
    for name in stage.populations:
        slices[name] = slice(begin, begin + quantized.populations[name].size)
        begin = slices[name].stop
    populations = [quantized.populations[name] for name in stage.populations]
    looped = bool(stage.within)
    rho = [
        derivative(surrogate, (p.threshold << ALIGN_BITS) / STATE_SCALE, noise) for p in populations
    ]
    above = THRESHOLD_EPSILON if isinstance(surrogate, SlayerSurrogate) else 0.0
    registers = np.concatenate([_registers(p) for p in populations], axis=1)
    gradients = np.concatenate(
        [_surrogate(p, r, above, looped) for p, r in zip(populations, rho, strict=True)], axis=1
    )
    return Layer(
        slices,
        tuple(wire(s, False) for s in stage.incoming),
        tuple(wire(s, True) for s in stage.within),
        registers if noise else _once(registers),  # noise draws a threshold for every neuron
        int(rho[0].shape),
        gradients if looped else _once(gradients),
    )


def _once(registers: Array) -> Array:
    """Registers of ``PERIOD`` neurons in place of those of more that are all the same."""
    same = bool(np.all(registers == registers[:, :1]))
    return registers[:, : kernels.PERIOD].copy() if same else registers


def _registers(population: QuantizedPopulation) -> Array:
    registers = np.empty((4, population.size), dtype=np.int32)
    registers[0] = DECAY_ONE - population.decay_u - CURRENT_DECAY_OFFSET
    registers[1] = DECAY_ONE - population.decay_v
    registers[THRESHOLD] = population.threshold << ALIGN_BITS
    registers[3] = population.bias
    return registers


def _surrogate(
    population: QuantizedPopulation, rho: Derivative, above: float, looped: bool
) -> Array:
    """As SLAYER's: in a loop it carries gradients by way of spikes only, not of u and v."""
    registers = _registers(population)
    base = np.log2(np.e) if rho.shape in POWERS_OF_TWO else 1.0
    found = np.empty((5, population.size), dtype=np.float32)
    found[0] = (population.threshold << ALIGN_BITS) + rho.center * STATE_SCALE + above
    found[1] = base * rho.slope / STATE_SCALE
    found[2] = rho.peak
    found[3:] = 0 if looped else registers[:2] / DECAY_ONE
    return found


@dataclass(frozen=True, eq=False)
class Run:
    """What a forward pass left behind; shapes (samples, steps, neurons), an array a stage.

    ``arrived`` are the events behind the relay of every projection, ``spikes`` are of the
    populations that were asked for. ``apart`` are populations whose current and voltage were
    computed apart, ``masks`` dropout's, ``late`` the delayed spikes of populations whose neurons
    have delays of their own. ``memory`` is that of the arrays.
    """

    memory: Memory
    voltage: list[Array] = field(default_factory=list)
    current: list[Array] = field(default_factory=list)
    weight: dict[str, Rounded] = field(default_factory=dict)
    arrived: dict[str, Events] = field(default_factory=dict)
    spikes: dict[str, Array] = field(default_factory=dict)
    apart: dict[str, dynamics.Apart] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)
    late: dict[str, Array] = field(default_factory=dict)


class EventNetwork(Model):
    """A Network whose forward and backward pass are compiled, stage by stage.

    Args:
        network: CUBA populations, one input of spikes.
        chip: its formats are those that the forward pass rounds to.
        surrogate: the surrogate derivative.
        noise: how neurons spike by chance in a forward pass with a draw.
        recipe: what is trained beside the weights.
        formats: of projections whose weights are rounded to one that does not change; others get
            the closest to their weights at every pass.

    Raises:
        UnsupportedError: a network that cannot be trained (``nmtool.training.model.stages``), or
            not by this recipe.
        FitError: a parameter that the chip cannot hold.
    """

    def __init__(
        self,
        network: Network,
        chip: ChipSpec,
        surrogate: Surrogate,
        noise: Noise | None = None,
        recipe: Recipe = WEIGHTS_ONLY,
        formats: Mapping[str, SynapseFormat] = MappingProxyType({}),
    ) -> None:
        super().__init__(network, chip, recipe)
        self._chip, self._noise, self._formats = chip, noise, formats
        self._memory = Memory()
        quantized = quantize(network, chip)
        self.layers = [_layer(stage, quantized, surrogate, noise) for stage in self.stages]
        self._thresholds = {
            name: _registers(p)[THRESHOLD] for name, p in quantized.populations.items()
        }
        fixed = (w for layer in self.layers for w in layer.wires if not w.synapses.trained)
        self._fixed = {w.synapses.name: _fixed(quantized, w) for w in fixed}
        self._sources = {
            name: tuple(by_dropout(layer, recipe))
            for layer in self.layers
            for name in layer.slices
            if not layer.within
        }
        for layer in self.layers:
            _check_loop(layer, recipe)

    def spikes(
        self, x: torch.Tensor, populations: tuple[str, ...], draw: Draw | None
    ) -> dict[str, torch.Tensor]:
        """Spikes of the populations, shape (samples, neurons, steps)."""
        return self._spikes(x, populations, draw, {}, {})

    def injected(
        self,
        x: torch.Tensor,
        populations: tuple[str, ...],
        measured: Mapping[str, Measured],
        healthy: Mapping[str, Array] = MappingProxyType({}),
    ) -> dict[str, torch.Tensor]:
        """``spikes``, with measured ones in place of the model's; see ``training.injection``.

        ``healthy``, by population and of shape (neurons,), is 0 for neurons whose spikes do not
        follow their inputs: no gradient goes through them.
        """
        return self._spikes(x, populations, None, measured, healthy)

    def _spikes(
        self,
        x: torch.Tensor,
        populations: tuple[str, ...],
        draw: Draw | None,
        measured: Mapping[str, Measured],
        healthy: Mapping[str, Array],
    ) -> dict[str, torch.Tensor]:
        self.learned.clamp()
        weights = [self.weight(name) for name in self.trained]
        changing = self.learned.dynamic.values()
        spikes = _Pass.apply(self, populations, x, draw, measured, healthy, *weights, *changing)
        return {name: s.permute(0, 2, 1) for name, s in zip(populations, spikes, strict=True)}

    def states(self, x: torch.Tensor) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, in real units."""
        self.learned.clamp()
        run = self.run(x, tuple(self.network.populations), keep_current=True)
        return {
            name: (
                _real(run.spikes[name], 1),
                _real(run.current[k][..., part], STATE_SCALE),
                _real(run.voltage[k][..., part], STATE_SCALE),
            )
            for k, layer in enumerate(self.layers)
            for name, part in layer.slices.items()
        }

    def watched(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, Reach]]:
        """``Model.watched``, from the whole numbers as they are."""
        self.learned.clamp()
        run = self.run(x, tuple(self.network.populations), keep_current=True)
        reached = {
            name: (_largest(run.current[k][..., part]), _largest(run.voltage[k][..., part]))
            for k, layer in enumerate(self.layers)
            for name, part in layer.slices.items()
        }
        spikes = {name: torch.from_numpy(run.spikes[name]) for name in self.network.populations}
        return {name: s.permute(0, 2, 1).to(torch.float32) for name, s in spikes.items()}, reached

    def run(
        self,
        x: torch.Tensor,
        spikes_of: Sequence[str],
        draw: Draw | None = None,
        keep_current: bool = False,
        measured: Mapping[str, Measured] = MappingProxyType({}),
    ) -> Run:
        """The integer forward pass; ``measured`` is what takes the place of the model's spikes.

        Raises:
            FitError: a state left the numbers that the sums can hold.
        """
        (source,) = self.network.inputs
        sent = {source: Events.of_rows(x.detach().numpy())}
        sources = {p.source for p in self.network.projections.values()}
        masks = {name: m.numpy() for name, m in self.learned.masks(len(x)).items()}
        run = Run(self._memory, masks=masks)
        for layer in self.layers:
            parts = self._apart(layer)
            for fed in [layer] if parts is None else [alone for _, alone in parts]:
                for w in fed.wires:
                    run.weight[w.synapses.name] = self._rounded(w, fed.block(w, len(x)))
            for w in layer.incoming:
                run.arrived[w.synapses.name] = w.arriving(sent[w.synapses.source])
            chance = self._chance(layer, x.shape, draw, measured)
            if parts is None:
                current, voltage, spikes = _run_layer(layer, run, x.shape, chance, keep_current)
            else:
                current, voltage, spikes = self._run_apart(layer, parts, run, x.shape, chance)
            run.voltage.append(voltage)
            run.current.append(current)
            for name, part in layer.slices.items():
                if name in measured:
                    measured[name].put_voltage(voltage[..., part])
                own, sending = self._outgoing(name, spikes[..., part], run)
                if name in spikes_of:
                    run.spikes[name] = own
                if name in sources:
                    sent[name] = Events.of_steps(sending)
            for w in layer.within:
                run.arrived[w.synapses.name] = sent[w.synapses.source]
        return run

    def _chance(
        self,
        layer: Layer,
        size: Sequence[int],
        draw: Draw | None,
        measured: Mapping[str, Measured],
    ) -> Chance:
        """How a layer's neurons spike in a forward pass."""
        samples, _, steps = size
        escape, keys, levels = _certain(layer, samples)
        if draw is not None:
            names = [*self.network.populations]
            escape = compiled(self._noise)
            keys = np.stack([draw.keys(names.index(n)) for n in layer.slices])
        if not measured.keys().isdisjoint(layer.slices):
            levels = np.empty((samples, steps, layer.n), dtype=np.int32)
            for name, part in layer.slices.items():
                threshold = self._thresholds[name]
                known = measured.get(name)
                levels[..., part] = known.levels(threshold) if known else threshold
        return escape, keys, levels

    def _apart(self, layer: Layer) -> tuple[tuple[str, Layer], ...] | None:
        """The sources of a population whose current is computed apart, by dropout; else None."""
        if layer.within:
            return None
        (name,) = layer.slices
        parts = self._sources[name]
        dropped = any(self.learned.scale(source) != 1 for source, _ in parts)
        return parts if dropped or self.learned.recipe.of(name).apart else None

    def _run_apart(
        self,
        layer: Layer,
        parts: Sequence[tuple[str, Layer]],
        run: Run,
        size: Sequence[int],
        chance: Chance,
    ) -> tuple[Array, Array, Array]:
        (name,) = layer.slices
        drives = [
            (self.learned.scale(source), partial(_drive, part, run, size)) for source, part in parts
        ]
        found, voltage, spikes, large = dynamics.forward(
            self.learned, name, drives, _registers, (layer.shape, layer.surrogate), chance
        )
        if large:
            raise _too_large(layer)
        run.apart[name] = found
        return found.current, voltage, spikes

    def _outgoing(self, name: str, spikes: Array, run: Run) -> tuple[Array, Array]:
        """Spikes as they are seen (dropout scales them) and as they are sent (0 or 1, delayed)."""
        own = sending = spikes
        if (mask := run.masks.get(name)) is not None:
            own = spikes * mask[:, None, :]
            sending = spikes * (mask > 0)[:, None, :].astype(np.int8)
        if (delay := self.learned.delay(name)) is not None:
            sending = run.late[name] = dynamics.delayed(sending, delay)
        return own, sending

    def take_back(
        self,
        name: str,
        run: Run,
        wanted: dict[str, Array],
        received: dict[str, Array],
        found: dict[str, torch.Tensor],
    ) -> None:
        """Gradients of a population's spikes from those of what ``_outgoing`` made of them."""
        sent, mask = received.pop(name, None), run.masks.get(name)
        if mask is not None and name in wanted:
            wanted[name] *= mask[:, None, :]
        if sent is None:
            return
        if (delay := self.learned.delay(name)) is not None:
            if (own := self.learned.values.get(f"{name}:delay")) is not None:
                gradient = dynamics.delay_gradient(sent, run.late[name], own.numel())
                found[f"{name}:delay"] = torch.from_numpy(gradient)
            sent = dynamics.undelayed(sent, delay)
        if mask is not None:
            sent = sent * (mask > 0)[:, None, :]
        wanted[name] = np.ascontiguousarray(wanted[name] + sent if name in wanted else sent)

    def _rounded(self, w: Wire, width: int) -> Rounded:
        name = w.synapses.name
        if name in self._fixed:
            return self._fixed[name]
        real = w.to_matrix(self.weight(name).detach().numpy())
        format = self._formats.get(name) or closest_format(
            name, real, self.network.weight_bits, self._chip
        )
        return round_to(real, format, width)


def _fixed(quantized: QuantizedNetwork, w: Wire) -> Rounded:
    """The weights that are not trained, as the chip has them."""
    projection = quantized.projections[w.synapses.name]
    real = dequantize_weights(projection.weight_mantissa, projection.format).astype(np.float32)
    return round_to(real.reshape(w.matrix), projection.format, w.length)


class _Pass(torch.autograd.Function):
    """All stages at once: spikes of the populations asked for, gradients of every weight."""

    @staticmethod
    def forward(
        ctx: Any,
        network: EventNetwork,
        names: tuple[str, ...],
        x: torch.Tensor,
        draw: Draw | None,
        measured: Mapping[str, Measured],
        healthy: Mapping[str, Array],
        *_: torch.Tensor,
    ) -> Any:
        run = network.run(x, names, draw, measured=measured)
        ctx.network, ctx.run, ctx.names, ctx.healthy = network, run, names, healthy
        ctx.set_materialize_grads(False)
        spikes = tuple(torch.from_numpy(run.spikes[name]).to(torch.float32) for name in names)
        run.spikes.clear()
        return spikes

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        network, run = ctx.network, ctx.run
        wanted = {
            name: run.memory.copy(g.to(torch.float32).numpy())
            for name, g in zip(ctx.names, gradients, strict=True)
            if g is not None
        }
        found: dict[str, torch.Tensor] = {}
        received: dict[str, Array] = {}
        for layer, voltage in zip(reversed(network.layers), reversed(run.voltage), strict=True):
            for name in layer.slices:
                network.take_back(name, run, wanted, received, found)
            gradient = _gathered(layer, wanted, voltage.shape)
            if gradient is not None:
                follow = _following(layer, ctx.healthy)
                arriving = _arriving(layer, gradient, voltage, run, network.learned, found, follow)
                _send_back(layer, arriving, run, network, wanted, received, found)
        names = (*network.trained, *network.learned.dynamic)
        return None, None, None, None, None, None, *(found.get(name) for name in names)


def _run_layer(
    layer: Layer,
    run: Run,
    size: Sequence[int],
    chance: Chance,
    keep_current: bool,
    registers: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Current, voltage and spikes of a stage, shape (samples, steps, neurons)."""
    samples, _, steps = size
    _check_sums(layer, run)
    voltage = run.memory.empty((samples, steps, layer.n), np.int32)
    current = run.memory.empty((samples, steps if keep_current else 0, layer.n), np.int32)
    spikes = run.memory.empty((samples, steps, layer.n), np.int8)
    registers = layer.registers if registers is None else registers
    kept = (*chance, current, voltage, spikes)
    events, delay = _together(layer, run, samples, steps)
    if layer.is_dense:
        rounded = run.weight[layer.incoming[0].synapses.name]
        weight, room = rounded.rows, rounded.room
        large = in_parts(
            samples * len(weight),
            lambda first, last: kernels.forward_dense(
                first, last, events.neuron, events.at_step, delay, weight, room, registers, *kept
            ),
        )
    else:
        weight, own = (_flat(wires, run.weight) for wires in (layer.incoming, layer.within))
        kind = np.result_type(weight, own)  # of one type, compiled once
        ways = (layer.rows.start, layer.rows.ways, weight.astype(kind, copy=False))
        own_ways = (layer.own_rows.start, layer.own_rows.ways, own.astype(kind, copy=False))
        room = min((run.weight[w.synapses.name].room for w in layer.wires), default=1)
        neurons = (room, layer.ahead, int(layer.is_whole), registers, layer.begins)
        large = in_parts(
            samples,
            lambda first, last: kernels.forward_rows(
                first, last, events.neuron, events.at_step, delay, *ways, *own_ways, *neurons, *kept
            ),
        )
    if any(large):
        raise _too_large(layer)
    return current, voltage, spikes


def _drive(layer: Layer, run: Run, size: Sequence[int], keep_u: Array) -> Array:
    """The current that a layer's sources make."""
    registers = np.zeros((4, layer.n), dtype=np.int32)
    registers[0], registers[THRESHOLD] = keep_u, np.iinfo(np.int32).max
    return _run_layer(layer, run, size, _certain(layer, size[0]), True, registers)[0]


def _certain(layer: Layer, samples: int) -> Chance:
    """Neurons that spike where they are above their threshold."""
    keys = np.zeros((len(layer.slices), samples), dtype=np.uint64)
    return DETERMINISTIC, keys, np.empty((samples, 0, layer.n), dtype=np.int32)


def by_dropout(layer: Layer, recipe: Recipe) -> Iterator[tuple[str, Layer]]:
    """A layer for each dropout of its sources, with one of these sources."""
    by: dict[float, list[Wire]] = {}
    for w in layer.incoming:
        by.setdefault(recipe.of(w.synapses.source).dropout, []).append(w)
    for wires in by.values():
        whole = len(by) == 1
        part = layer if whole else replace(layer, incoming=tuple(wires))
        yield wires[0].synapses.source, part


def _check_loop(layer: Layer, recipe: Recipe) -> None:
    """That no dropped spikes come into a loop.

    Raises:
        UnsupportedError: they do.
    """
    for w in layer.incoming if layer.within else ():
        if recipe.of(w.synapses.source).dropout:
            raise UnsupportedError(
                f"population {w.synapses.source}: found dropout before the loop of "
                f"{' and '.join(layer.slices)}, allowed before populations outside of loops with "
                "train.engine=event; train with -s train.engine=slayer"
            )


def _together(layer: Layer, run: Run, samples: int, steps: int) -> tuple[Events, int]:
    """The events of everything that reaches a stage, and their delay."""
    arrived = [(run.arrived[w.synapses.name], w.synapses.delay) for w in layer.incoming]
    if not arrived:
        none = np.zeros((samples, steps + 1), dtype=np.int64)
        return Events(np.empty(0, dtype=np.int32), none, 0), 0
    return arrived[0] if len(arrived) == 1 else (merged(arrived), 0)


def _flat(wires: Sequence[Wire], weight: Mapping[str, Rounded]) -> Array:
    """The rows of several projections, one after the other."""
    rows = [weight[w.synapses.name].rows.reshape(-1) for w in wires]
    if len(rows) == 1:
        return rows[0]
    return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int16)


def _check_sums(layer: Layer, run: Run) -> None:
    """That no sum of weights can leave its 32 bits.

    Raises:
        FitError: it could.
    """
    largest = 0
    for w in layer.wires:
        name = w.synapses.name
        spikes = w.size if w in layer.within else run.arrived[name].most
        largest += w.most(spikes) * run.weight[name].largest
    if largest >= 1 << (kernels.HUGE - ALIGN_BITS):
        raise _too_large(layer)


def _gathered(layer: Layer, wanted: dict[str, Array], size: tuple[int, ...]) -> Array | None:
    """The gradients of the spikes of a stage; None if there are none."""
    found = {name: wanted.pop(name) for name in layer.slices if name in wanted}
    if not found:
        return None
    if len(layer.slices) == 1:
        return next(iter(found.values()))
    gradient = aligned(size, np.float32)
    gradient[:] = 0
    for name, part in found.items():
        gradient[..., layer.slices[name]] = part
    return gradient


def _following(layer: Layer, healthy: Mapping[str, Array]) -> Array | None:
    """1 for neurons that follow their inputs, and 0 for others; None if all do."""
    if healthy.keys().isdisjoint(layer.slices):
        return None
    follow = np.ones(layer.n, dtype=np.float32)
    for name, part in layer.slices.items():
        follow[part] = healthy.get(name, 1)
    return follow


def _arriving(
    layer: Layer,
    gradient: Array,
    voltage: Array,
    run: Run,
    learned: Learned,
    found: dict[str, torch.Tensor],
    follow: Array | None,
) -> Array:
    """The gradients of what arrives at a stage, in place of those of its spikes."""
    if follow is not None:
        gradient *= follow
    if layer.within:
        _through_loop(layer, gradient, voltage, run.weight, follow)
        return gradient
    if (apart := run.apart.get(next(iter(layer.slices)))) is not None:
        arriving, decays = dynamics.backward(apart, learned, gradient, voltage)
        found.update({name: torch.from_numpy(decay) for name, decay in decays.items()})
        return arriving
    samples = len(gradient)
    width = min(kernels.WIDE, max(1, -(-layer.n * samples // PARTS)))
    in_parts(
        samples * -(-layer.n // width),
        lambda first, last: kernels.backward(
            first, last, width, gradient, voltage, layer.shape, layer.surrogate
        ),
    )
    return gradient


def _through_loop(
    layer: Layer,
    gradient: Array,
    voltage: Array,
    weight: Mapping[str, Rounded],
    follow: Array | None,
) -> None:
    """``_arriving`` where spikes come back: the gradient of a spike is that of all it brought."""
    if layer.is_one_loop:
        (w,) = layer.within
        matrix, every = weight[w.synapses.name].real, np.empty(0, dtype=np.float32)
        in_parts(
            len(gradient),
            lambda first, last: kernels.backward_loop(
                first,
                last,
                w.synapses.delay,
                matrix,
                every if follow is None else follow,
                gradient,
                voltage,
                layer.shape,
                layer.surrogate,
            ),
        )
        return
    steps = gradient.shape[1]
    g_u, g_v = np.zeros((2, len(gradient), layer.n), dtype=np.float32)
    ways = [
        (
            w.synapses.delay,
            w.step_back(weight[w.synapses.name]),
            _by_step(gradient[..., layer.slices[w.synapses.source]]),
            _by_step(gradient[..., layer.slices[w.synapses.target]]),
        )
        for w in layer.within
    ]
    with one_thread():
        for t in range(steps - 1, -1, -1):
            for delay, add, sent, came in ways:
                if t + delay < steps:
                    add(sent[t], came[t + delay])
            if follow is not None:
                gradient[:, t] *= follow
            kernels.backward_step(t, gradient, voltage, layer.shape, layer.surrogate, g_u, g_v)


def _by_step(gradient: Array) -> tuple[torch.Tensor, ...]:
    """Gradients (samples, neurons) of every step."""
    return tuple(torch.from_numpy(gradient).unbind(1))


def _send_back(
    layer: Layer,
    arriving: Array,
    run: Run,
    model: EventNetwork,
    wanted: dict[str, Array],
    received: dict[str, Array],
    found: dict[str, torch.Tensor],
) -> None:
    """Gradients of the weights into a stage, and of the spikes that came from earlier ones.

    ``received`` are those of spikes that were dropped or delayed by neuron.
    """
    for w in layer.wires:
        name, source = w.synapses.name, w.synapses.source
        part = arriving[..., layer.slices[w.synapses.target]]
        if not part.flags.c_contiguous:
            part = run.memory.copy(part)
        if (scale := model.learned.scale(source)) != 1:
            part = part * np.float32(scale)
        if w.synapses.trained:
            found[name] = torch.from_numpy(w.weight_gradient(run.arrived[name], part))
        if source in model.network.populations and source not in layer.slices:
            earlier = w.back(part, run.weight[name], run.memory)
            into = received if source in run.masks or source in run.late else wanted
            if source in into:
                into[source] += earlier
            else:
                into[source] = earlier


def _too_large(layer: Layer) -> FitError:
    return FitError(
        f"{' and '.join(layer.slices)}: found u or v of 2^{kernels.HUGE} or more in the trainer's "
        "forward pass, allowed below the chip's 2^23; train with smaller weights or a faster decay"
    )


def _largest(whole: Array) -> float:
    """The largest absolute value of whole numbers."""
    return float(max(whole.max(), -int(whole.min()))) if whole.size else 0.0


def _real(whole: Array, scale: int) -> torch.Tensor:
    """Whole numbers (samples, steps, neurons) in real units, (samples, neurons, steps)."""
    return torch.from_numpy(np.ascontiguousarray(whole.swapaxes(1, 2), np.float64) / scale)
