"""The host's side of the loop: shadow weights, local updates, re-quantising."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from nmtool.compiler import Program
from nmtool.config import Noise, Readout, Surrogate
from nmtool.errors import UnsupportedError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.learning.dcll import (
    Afferent,
    LocalReadout,
    class_readout,
    find_suspects,
    gradient,
    presynaptic_trace,
    random_readout,
    replay,
    surrogate,
)
from nmtool.network import beyond_dense_cuba
from nmtool.quantization import WEIGHT_SCALE, quantize_weights
from nmtool.training.surrogates import Derivative, derivative

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Weights = dict[str, FloatArray]


@dataclass
class HostState:
    """Real shadow weights by projection, and Adam's moments of their gradients."""

    shadow: Weights
    first: Weights
    second: Weights
    updates: dict[str, int]

    @classmethod
    def start(cls, weights: Mapping[str, FloatArray]) -> HostState:
        """Shadow weights as given, moments of zero."""
        shadow = {name: np.asarray(w, dtype=np.float64).copy() for name, w in weights.items()}
        zeros = {name: np.zeros_like(w) for name, w in shadow.items()}
        second = {name: np.zeros_like(w) for name, w in shadow.items()}
        return cls(shadow, zeros, second, dict.fromkeys(shadow, 0))


@dataclass(frozen=True, eq=False)
class Host:
    """What stays the same while the host learns: local readouts, surrogate derivatives.

    Raises:
        UnsupportedError: recurrent projections, or more than CUBA neurons, dense weights and one
            delay a projection.
    """

    program: Program
    readouts: Mapping[str, LocalReadout]
    derivatives: Mapping[str, Derivative]
    masks: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        program: Program,
        readout: Readout,
        surrogate: Surrogate,
        scale: float,
        seed: int,
        noise: Noise | None = None,
    ) -> Host:
        """Draw the local readouts of a program.

        The surrogate's height becomes 1: it is part of the learning rate. ``noise`` is what the
        surrogate ``escape`` is the derivative of.
        """
        net = program.network
        _check(program)
        output = net.outputs[0]
        n_classes = net.populations[output].size // readout.neurons_per_class
        readouts: dict[str, LocalReadout] = {}
        for index, name in enumerate(program.order):
            rng = np.random.default_rng([seed, 3, index])
            size = net.populations[name].size
            readouts[name] = (
                class_readout(size, readout.neurons_per_class, scale)
                if name == output
                else random_readout(size, n_classes, scale, rng)
            )
        derivatives = {
            name: replace(
                derivative(surrogate, population.threshold / WEIGHT_SCALE, noise), peak=1.0
            )
            for name, population in net.populations.items()
        }
        return cls(program, readouts, derivatives)

    def update(
        self,
        state: HostState,
        deployed: Program,
        measured: Mapping[str, BoolArray],
        labels: IntArray,
        learning: Collection[str],
        rates: Mapping[str, float],
    ) -> float:
        """One step of local learning from measured spikes; returns the output layer's loss.

        ``measured`` has the spikes of inputs and populations, shape (samples, neurons, steps);
        ``learning`` names the populations whose afferent weights change, at their ``rates``.
        """
        loss = 0.0
        for name in learning:
            population = deployed.network.populations[name]
            afferents = self.afferents(deployed, name, measured)
            voltage = replay(population, list(afferents.values()), measured[name])
            error, loss_here = self.readouts[name].error(measured[name].sum(axis=2), labels)
            if name in deployed.network.outputs:
                loss = loss_here
            slope = surrogate(voltage, population.threshold, self.derivatives[name])
            error = error * self.masks.get(name, 1.0)
            for projection, afferent in afferents.items():
                trace = presynaptic_trace(afferent.spikes, population, afferent.delay)
                change = gradient(error, slope, trace)
                _adam(state, projection, change, rates[name])
                self._keep_in_range(state, projection)
        return loss

    def afferents(
        self, deployed: Program, population: str, measured: Mapping[str, BoolArray]
    ) -> dict[str, Afferent]:
        """What feeds a population, with the measured spikes of every source."""
        net = deployed.network
        return {
            name: Afferent(
                projection,
                measured[projection.source],
                int(net.axonal_delay(projection.source)),
            )
            for name, projection in net.projections.items()
            if projection.target == population
        }

    def suspect(self, deployed: Program, measured: Mapping[str, BoolArray]) -> dict[str, list[int]]:
        """Mask the neurons that look dead or stuck; returns how many of each per population."""
        found: dict[str, list[int]] = {}
        for name in deployed.order:
            population = deployed.network.populations[name]
            afferents = list(self.afferents(deployed, name, measured).values())
            voltage = replay(population, afferents, measured[name])
            suspects = find_suspects(population, voltage, measured[name])
            self.masks[name] = suspects.healthy
            found[name] = [int(suspects.dead.sum()), int(suspects.stuck.sum())]
        return found

    def mantissas(self, state: HostState) -> dict[str, IntArray]:
        """The shadow weights rounded to the frozen format of each projection."""
        return {
            name: quantize_weights(state.shadow[name], projection.format)
            for name, projection in self.program.network.projections.items()
        }

    def _keep_in_range(self, state: HostState, projection: str) -> None:
        format = self.program.network.projections[projection].format
        unit = 2.0**format.exponent / WEIGHT_SCALE
        shadow = state.shadow[projection]
        np.clip(shadow, format.minimum * unit, format.maximum * unit, out=shadow)


def _check(program: Program) -> None:
    net = program.network
    for problem in beyond_dense_cuba(net.inputs, net.populations, net.projections):
        raise UnsupportedError(f"{problem} in dcll")
    place = {name: index for index, name in enumerate(program.order)}
    for name, projection in net.projections.items():
        if place.get(projection.source, -1) >= place[projection.target]:
            raise UnsupportedError(
                f"projection {name}: found a recurrent projection, dcll allows feed-forward ones"
            )


def _adam(state: HostState, name: str, change: FloatArray, rate: float) -> None:
    """Adam (Kingma and Ba 2015)."""
    state.updates[name] += 1
    count = state.updates[name]
    state.first[name] = BETA1 * state.first[name] + (1 - BETA1) * change
    state.second[name] = BETA2 * state.second[name] + (1 - BETA2) * change**2
    first = state.first[name] / (1 - BETA1**count)
    second = state.second[name] / (1 - BETA2**count)
    state.shadow[name] = state.shadow[name] - rate * first / (np.sqrt(second) + EPSILON)
