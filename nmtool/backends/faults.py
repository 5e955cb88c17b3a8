"""Defects of a digital system for a simulator to act out. Invented, and always labelled so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmtool.chip import Faults, SynapseFormat
from nmtool.compiler import Program
from nmtool.fixedpoint import BoolArray, IntArray

LISTED_WEIGHTS = 1000


@dataclass(frozen=True, eq=False)
class Defects:
    """The defects that one seed gives one program.

    ``dead`` and ``stuck`` are sorted neuron indices by population; ``flips`` has, for every
    projection, the bits of each stored weight that read back inverted (shape of the weights).
    """

    faults: Faults
    dead: Mapping[str, IntArray]
    stuck: Mapping[str, IntArray]
    flips: Mapping[str, IntArray]

    def fire(self, population: str, spikes: BoolArray) -> BoolArray:
        """Spikes (samples, neurons) with the dead neurons silent and the stuck ones spiking."""
        spikes[:, self.dead[population]] = False
        spikes[:, self.stuck[population]] = True
        return spikes

    def deliver(self, spikes: BoolArray, run: int, node: int, step: int) -> BoolArray:
        """The spikes (samples, neurons) of a node that are not lost on their way.

        Whether one is lost depends on the seed and on where and when it is sent, on nothing else.
        ``node`` counts inputs, then populations.
        """
        if not self.faults.spike_loss:
            return spikes
        from nmtool.backends.kernel import chance, lost

        sample, neuron = np.nonzero(spikes)
        gone = lost(
            chance(self.faults.spike_loss), self.faults.seed, run, sample, node, step, neuron
        )
        left = spikes.copy()
        left[sample[gone], neuron[gone]] = False
        return left

    def stored(self, projection: str, mantissa: IntArray, format: SynapseFormat) -> IntArray:
        """What the synapse memory gives back for the mantissas written to it."""
        return read_back(mantissa, self.flips[projection], format)

    def listing(self) -> dict[str, Any]:
        """Every defect by name, for the provenance of a recording."""
        flipped = {
            name: [[*map(int, index), int(bits[tuple(index)])] for index in np.argwhere(bits)]
            for name, bits in self.flips.items()
        }
        return {
            "label": "simulator with invented defects, not a chip",
            **self.faults.model_dump(),
            "dead": {name: index.tolist() for name, index in self.dead.items()},
            "stuck": {name: index.tolist() for name, index in self.stuck.items()},
            "flipped": {name: rows[:LISTED_WEIGHTS] for name, rows in flipped.items()},
            "flipped_weights": {name: len(rows) for name, rows in flipped.items()},
        }


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


def draw(program: Program, faults: Faults) -> Defects:
    """Draw the defects of a program; every kind has a stream of its own under the seed.

    Names are taken in alphabetical order: one fingerprint and one seed give one set of defects.
    """
    dead: dict[str, IntArray] = {}
    stuck: dict[str, IntArray] = {}
    for index, (name, population) in enumerate(sorted(program.network.populations.items())):
        rng = np.random.default_rng([faults.seed, 0, index])
        order = rng.permutation(population.size)
        n_dead = round(faults.dead_neurons * population.size)
        n_stuck = min(round(faults.stuck_neurons * population.size), population.size - n_dead)
        dead[name] = np.sort(order[:n_dead])
        stuck[name] = np.sort(order[n_dead : n_dead + n_stuck])
    flips = {
        name: _flips(
            np.random.default_rng([faults.seed, 1, index]),
            projection.weight_mantissa,
            projection.weight_bits,
            faults.weight_bit_flips,
        )
        for index, (name, projection) in enumerate(sorted(program.network.projections.items()))
    }
    return Defects(faults, dead, stuck, flips)


def _flips(rng: np.random.Generator, weight: IntArray, bits: int, fraction: float) -> IntArray:
    if not fraction:
        return np.zeros_like(weight)
    chosen = rng.random((bits, *weight.shape)) < fraction
    place = (1 << np.arange(bits)).reshape(-1, *[1] * weight.ndim)
    return np.asarray((chosen * place).sum(axis=0), dtype=np.int64)
