"""Defects of a digital system for a simulator to act out. Invented, and always labelled so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from nmtool.chip import ChipSpec, SynapseFormat, load_chip
from nmtool.compiler import Program
from nmtool.faultmodel import Faults, SpikeFault
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation

LISTED_WEIGHTS = 1000

Core: TypeAlias = tuple[int, int]
"""A core as (chip, core)."""


@dataclass(frozen=True, eq=False)
class Defects:
    """The defects that one seed and the injected faults give one program.

    ``network`` is what was loaded, with the delays and periodic resets that act. ``dead`` and
    ``stuck`` are sorted neuron indices by population; ``flips`` has, for every projection, the bits
    of each stored weight that read back inverted (shape of the weights), ``stale`` where writes do
    not land. ``threshold``, ``decay_u`` and ``decay_v`` are the registers of every neuron as
    written, ``threshold_flips`` the bits of the thresholds that read back inverted.

    ``kept`` are the populations that are not reset between the samples of a run, ``lines`` has the
    output line of each neuron where they are exchanged, ``singles`` are the single spikes that are
    lost or late, ``late`` counts the steps by which recordings are late, and ``steps`` is where the
    recording of a sample ends. ``numbers`` are those of a node and of its neurons by which spikes
    are lost or late by chance, where they are not its own.
    ``failed`` are the dead cores, and how many neurons of which populations each took along.
    ``spread`` are the thresholds of every neuron under analogue mismatch, where there is any.
    """

    faults: Faults
    network: QuantizedNetwork
    dead: Mapping[str, IntArray]
    stuck: Mapping[str, IntArray]
    flips: Mapping[str, IntArray]
    stale: Mapping[str, BoolArray]
    threshold: Mapping[str, IntArray]
    threshold_flips: Mapping[str, IntArray]
    decay_u: Mapping[str, IntArray]
    decay_v: Mapping[str, IntArray]
    kept: frozenset[str] = frozenset()
    lines: Mapping[str, IntArray] = field(default_factory=dict)
    singles: tuple[SpikeFault, ...] = ()
    late: int = 0
    steps: int | None = None
    numbers: Mapping[str, tuple[int, IntArray]] = field(default_factory=dict)
    failed: Mapping[Core, Mapping[str, int]] = field(default_factory=dict)
    spread: Mapping[str, IntArray] = field(default_factory=dict)

    def fire(self, population: str, spikes: BoolArray) -> BoolArray:
        """Spikes (samples, neurons) with the dead neurons silent and the stuck ones spiking."""
        spikes[:, self.dead[population]] = False
        spikes[:, self.stuck[population]] = True
        return spikes

    def displace(
        self, population: str, spikes: BoolArray, step: int, first: int, held: set[int]
    ) -> BoolArray:
        """Spikes (samples, neurons) without those lost or late, and with those that were late.

        ``held`` are the numbers of the late spikes on their way; it is updated. ``first`` is the
        number of the first sample.
        """
        here = [
            (k, single, (single.sample - first, single.neuron))
            for k, single in enumerate(self.singles)
            if single.population == population and 0 <= single.sample - first < len(spikes)
        ]
        left = spikes.copy() if here else spikes
        for k, single, place in here:
            if single.step == step and left[place]:
                left[place] = False
                if single.kind == "late_spike":
                    held.add(k)
        for k, single, place in here:
            if single.step + 1 == step and k in held:
                left[place] = True
                held.discard(k)
        return left

    def deliver(
        self,
        spikes: BoolArray,
        run: int,
        node: int,
        step: int,
        first: int = 0,
        numbers: IntArray | None = None,
    ) -> BoolArray:
        """The spikes (samples, neurons) of a node that are not lost on their way by chance.

        Whether one is lost depends on the seed and on where and when it is sent, on nothing else.
        ``node`` counts inputs, then populations; ``first`` is the number of the first sample and
        ``numbers`` are those of the neurons (None: their places).
        """
        if not self.faults.spike_loss:
            return spikes
        return spikes & ~self._drawn(spikes, False, run, node, step, first, numbers)

    def defer(
        self,
        spikes: BoolArray,
        before: BoolArray | None,
        run: int,
        node: int,
        step: int,
        first: int = 0,
        numbers: IntArray | None = None,
    ) -> tuple[BoolArray, BoolArray | None]:
        """The spikes of a node that arrive at a step, and those that are late by chance.

        ``before`` are those that were late the step before (None: none), and arrive now. The rest
        as for :meth:`deliver`, which comes first: what is lost is not late.
        """
        if not self.faults.late_spikes:
            return spikes, None
        late = self._drawn(spikes, True, run, node, step, first, numbers)
        on_time = spikes & ~late
        return (on_time if before is None else on_time | before), late

    def _drawn(
        self,
        spikes: BoolArray,
        late: bool,
        run: int,
        node: int,
        step: int,
        first: int,
        numbers: IntArray | None,
    ) -> BoolArray:
        """Which of the spikes are lost, or late, by chance."""
        from nmtool.backends.kernel import chance, lost

        sample, neuron = np.nonzero(spikes)
        own = neuron if numbers is None else numbers[neuron]
        fraction = self.faults.late_spikes if late else self.faults.spike_loss
        place = (run, sample + first, node, step, own)
        hit = lost(chance(fraction), self.faults.seed, *place, late=late)
        drawn = np.zeros(spikes.shape, dtype=np.bool_)
        drawn[sample[hit], neuron[hit]] = True
        return drawn

    def stored(self, projection: str, mantissa: IntArray, format: SynapseFormat) -> IntArray:
        """What the synapse memory gives back for the mantissas written to it."""
        loaded = self.network.projections[projection].weight_mantissa
        landed = np.where(self.stale[projection], loaded, mantissa)
        return read_back(landed, self.flips[projection], format)

    def threshold_of(self, population: str) -> IntArray:
        """The threshold mantissa of every neuron, as it reads back."""
        return self.threshold[population] ^ self.threshold_flips[population]

    def listing(self) -> dict[str, Any]:
        """Every defect by name, for the provenance of a recording."""
        flipped = {name: _marked(bits) for name, bits in self.flips.items()}
        stale = {name: np.argwhere(mask).tolist() for name, mask in self.stale.items()}
        return {
            "label": self.faults.label,
            **self.faults.model_dump(mode="json"),
            "dead": {name: index.tolist() for name, index in self.dead.items()},
            "stuck": {name: index.tolist() for name, index in self.stuck.items()},
            "flipped": {name: rows[:LISTED_WEIGHTS] for name, rows in flipped.items()},
            "flipped_weights": {name: len(rows) for name, rows in flipped.items()},
            "flipped_thresholds": {n: _marked(bits) for n, bits in self.threshold_flips.items()},
            "spread_thresholds": {n: drawn.tolist() for n, drawn in self.spread.items()},
            "stale": {name: rows[:LISTED_WEIGHTS] for name, rows in stale.items()},
            "stale_weights": {name: len(rows) for name, rows in stale.items()},
            "failed_cores": [
                {"chip": chip, "core": core, "neurons": dict(held)}
                for (chip, core), held in self.failed.items()
            ],
        }


def _marked(bits: IntArray) -> list[list[int]]:
    """The index of every element that is not 0, and the element behind it."""
    return [[*map(int, index), int(bits[tuple(index)])] for index in np.argwhere(bits)]


def read_back(mantissa: IntArray, flips: IntArray, format: SynapseFormat) -> IntArray:
    """Invert stored bits: a weight is ``mantissa / step`` in ``bits`` bits.

    Mixed weights are stored in two's complement, single-signed ones as magnitudes.
    """
    stored = mantissa // format.step
    if format.sign_mode == "inhibitory":
        return -((-stored ^ flips) * format.step)
    flipped = stored ^ flips
    if format.sign_mode == "mixed":
        half = 1 << (format.bits - 1)
        flipped = ((flipped + half) & (2 * half - 1)) - half
    return np.asarray(flipped * format.step)


def draw(program: Program, faults: Faults, chip: ChipSpec | None = None) -> Defects:
    """Draw the random defects of a program; every kind has a stream of its own under the seed.

    Names are taken in alphabetical order: one fingerprint and one seed give one set of defects.
    ``chip`` is found by its name unless given.
    """
    net, bits = program.network, 0
    spread: dict[str, IntArray] = {}
    if faults.threshold_bit_flips or faults.threshold_spread:
        chip = chip or load_chip(program.chip)
        bits = chip.threshold_bits
    dead: dict[str, IntArray] = {}
    stuck: dict[str, IntArray] = {}
    threshold_flips: dict[str, IntArray] = {}
    for index, (name, population) in enumerate(sorted(net.populations.items())):
        rng = np.random.default_rng([faults.seed, 0, index])
        order = rng.permutation(population.size)
        n_dead = round(faults.dead_neurons * population.size)
        n_stuck = min(round(faults.stuck_neurons * population.size), population.size - n_dead)
        dead[name] = np.sort(order[:n_dead])
        stuck[name] = np.sort(order[n_dead : n_dead + n_stuck])
        threshold_flips[name] = _flips(
            np.random.default_rng([faults.seed, 2, index]),
            (population.size,),
            bits,
            faults.threshold_bit_flips,
        )
        if chip and faults.threshold_spread:
            rng = np.random.default_rng([faults.seed, 5, index])
            spread[name] = _spread(rng, population, faults.threshold_spread, chip)
    flips: dict[str, IntArray] = {}
    stale: dict[str, BoolArray] = {}
    for index, (name, projection) in enumerate(sorted(net.projections.items())):
        shape = projection.weight_mantissa.shape
        rng = np.random.default_rng([faults.seed, 1, index])
        flips[name] = _flips(rng, shape, projection.weight_bits, faults.weight_bit_flips)
        rng = np.random.default_rng([faults.seed, 3, index])
        stale[name] = _flips(rng, shape, 1, faults.stale_writes).astype(np.bool_)
    return Defects(
        faults,
        net,
        dead,
        stuck,
        flips,
        stale,
        {n: spread.get(n, np.full(p.size, p.threshold)) for n, p in net.populations.items()},
        threshold_flips,
        {name: np.full(p.size, p.decay_u) for name, p in net.populations.items()},
        {name: np.full(p.size, p.decay_v) for name, p in net.populations.items()},
        spread=spread,
    )


def _spread(
    rng: np.random.Generator, population: QuantizedPopulation, sigma: float, chip: ChipSpec
) -> IntArray:
    """Threshold mantissas of the neurons under analogue mismatch: threshold (1 + sigma z).

    z is standard normal. What a neuron cannot have is held at the ends of 0 to the chip's largest.
    """
    drawn = population.threshold * (1 + sigma * rng.standard_normal(population.size))
    return np.clip(np.rint(drawn), 0, chip.threshold_max).astype(np.int64)


def _flips(
    rng: np.random.Generator, shape: tuple[int, ...], bits: int, fraction: float
) -> IntArray:
    if not fraction:
        return np.zeros(shape, dtype=np.int64)
    chosen = rng.random((bits, *shape)) < fraction
    place = (1 << np.arange(bits)).reshape(-1, *[1] * len(shape))
    return np.asarray((chosen * place).sum(axis=0), dtype=np.int64)
