"""Small networks of every kind of operation, neuron, delay and input, and many of them as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import Program, compile_program
from nmtool.network import Input, PeriodicReset
from nmtool.operations import Chain, Conv, Dense, Flatten, Scale, Sparse, SumPool, chain_shape
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

PLAIN = SynapseFormat(8, 0, "mixed")
LOUD = SynapseFormat(8, 7, "mixed")
EXTREME_U = (0, 1, 4094, 4095)
EXTREME_V = (0, 1, 4094, 4095)
THRESHOLDS = (0, 1, 131070, 131071)


class Builder:
    """A network that grows by populations behind what is there."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[str, Input] = {}
        self.populations: dict[str, QuantizedPopulation] = {}
        self.projections: dict[str, QuantizedProjection] = {}

    def input(self, shape: tuple[int, ...], kind: Any = "spikes", drives: str | None = None) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs[name] = Input(shape, kind, drives)
        return name

    def cuba(self, shape: tuple[int, ...], **registers: Any) -> str:
        zero = np.zeros(int(np.prod(shape)), np.int64)
        usual = {"decay_u": 1023, "decay_v": 128, "threshold": 150, "bias_mantissa": zero}
        return self._add(QuantizedPopulation(shape, **{**usual, **registers}))

    def graded(self, shape: tuple[int, ...], model: Any, **fields: Any) -> str:
        zero = np.zeros(int(np.prod(shape)), np.int64)
        usual = {"threshold": 0 if model == "sigma" else 3, "bias_mantissa": zero, "model": model}
        if model != "sigma":
            usual |= {"spike_exponent": 6, "state_exponent": 6, "bias_exponent": 12}
        if model == "delta":
            usual["activation"] = "unit"
        return self._add(QuantizedPopulation(shape, 0, 0, **{**usual, **fields}))

    def _add(self, population: QuantizedPopulation) -> str:
        name = f"p{len(self.populations)}"
        self.populations[name] = population
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return ({**self.inputs, **self.populations})[name].shape

    def weights(self, shape: tuple[int, ...], format: SynapseFormat = PLAIN) -> Any:
        low, high = format.minimum // format.step, format.maximum // format.step
        return self.rng.integers(low, high + 1, shape) * format.step

    def dense(self, source: str, target: str, format: SynapseFormat = PLAIN, **more: Any) -> str:
        shape = tuple(int(np.prod(self.shape(name))) for name in (target, source))
        return self.join(source, target, (Dense(self.weights(shape, format)),), format, **more)

    def join(
        self,
        source: str,
        target: str,
        operations: Chain,
        format: SynapseFormat = PLAIN,
        delay: Any = 0,
    ) -> str:
        name = f"j{len(self.projections)}"
        self.projections[name] = QuantizedProjection(source, target, operations, format, delay)
        return name

    def behind(self, source: str, operations: Chain, delay: Any = 0, **registers: Any) -> str:
        """A CUBA population behind a chain of operations."""
        target = self.cuba(chain_shape(operations, self.shape(source)), **registers)
        self.join(source, target, operations, delay=delay)
        return target

    def conv(self, channels: int, kernel: tuple[int, int], width: int, **geometry: Any) -> Conv:
        return Conv(self.weights((channels, *kernel, width)), **geometry)

    def network(self) -> QuantizedNetwork:
        outputs = (list(self.populations)[-1],)
        return QuantizedNetwork(
            "kind", "loihi2", self.inputs, self.populations, self.projections, outputs
        )


def sparse(b: Builder) -> None:
    """Single synapses, each with a delay of its own."""
    target, source = np.divmod(b.rng.permutation(40)[:15], 8)
    made = Sparse(b.weights((15,)), target, source, (5, 8))
    b.behind(b.input((8,)), (made,), b.rng.integers(0, 63, 15))


def conv(b: Builder) -> None:
    """Stride, padding, dilation and groups, uneven in x and y; then one with delays."""
    kernel = b.conv(4, (3, 2), 1, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    middle = b.behind(b.input((6, 5, 2)), (kernel,), threshold=100)
    last = b.conv(2, (2, 2), 4)
    b.behind(middle, (last,), b.rng.integers(0, 4, last.weight.shape), axonal_delay=3)


def pool(b: Builder) -> None:
    """Overlapping windows that reach beyond the end, with one weight; and in front of a conv."""
    source = b.input((5, 5, 2))
    over = SumPool((3, 2), (2, 2), (1, 0), overhang=True)
    b.behind(source, (over, Scale(np.array([60]))))
    b.behind(source, (SumPool((2, 2), (1, 1)), b.conv(3, (2, 2), 2)), 2)


def flatten(b: Builder) -> None:
    source = b.input((3, 4, 2))
    b.behind(source, (Flatten(), Dense(b.weights((6, 24)))))
    b.behind(source, (b.conv(2, (3, 3), 2), Flatten()))


def graph(b: Builder) -> None:
    """A chain, a skip, a loop, a way to itself, two ways between a pair; delays of every kind."""
    source = b.input((6,))
    names = [b.cuba((5,), axonal_delay=b.rng.integers(0, 31, 5)), b.cuba((4,), axonal_delay=2)]
    for pair, delay in (
        ((source, names[0]), b.rng.integers(0, 63, (5, 6))),
        ((names[0], names[1]), b.rng.integers(0, 32, (4, 5))),
        ((names[0], names[1]), 1),
        ((source, names[1]), 62),
        ((names[1], names[0]), 0),
        ((names[1], names[1]), 7),
    ):
        b.dense(*pair, delay=delay)


def resets(b: Builder) -> None:
    """One interval in three phases, and a reset at every step."""
    source = b.input((5,))
    for k, reset in enumerate(((9, 0), (9, 4), (9, 22), (1, 0), (7, -3))):
        bias = b.rng.integers(-9, 40, 3)
        population = b.cuba((3,), reset=PeriodicReset(*reset), bias_mantissa=bias, bias_exponent=k)
        b.dense(source, population)


def sigma_delta(b: Builder) -> None:
    """A driven encoder, sigma-delta layers with biases, a decoder, and delays between them."""
    first = b.graded((4, 4, 1), "delta", threshold=2, axonal_delay=1)
    b.input((4, 4, 1), "graded", first)
    bias = b.rng.integers(-200, 200, 18)
    second = b.graded((3, 3, 2), "sigma_delta", bias_mantissa=bias, activation="relu")
    b.join(first, second, (b.conv(2, (2, 2), 1),))
    third = b.graded((5,), "sigma_delta", activation="unit", threshold=20)
    b.join(
        second, third, (Flatten(), Dense(b.weights((5, 18)))), delay=b.rng.integers(0, 4, (5, 18))
    )
    b.dense(third, b.graded((3,), "sigma"))


def graded_input(b: Builder) -> None:
    """Messages and spikes into decoders, messages into spiking neurons."""
    messages = b.input((5,), "graded")
    b.dense(messages, b.graded((4,), "sigma"), delay=2)
    b.dense(b.input((5,)), b.graded((4,), "sigma_delta"))
    b.dense(messages, b.cuba((4,)))


def driven(b: Builder) -> None:
    """Biases from outside, and messages from outside, into spiking neurons."""
    own = b.rng.integers(-50, 50, 6)
    b.input((6,), "bias", b.cuba((6,), bias_mantissa=own, bias_exponent=6))
    b.input((3,), "graded", b.cuba((3,)))


def beyond_registers(b: Builder) -> None:
    """What Lava runs and no register holds: it comes from netx files."""
    source = b.input((5,))
    for registers in ({"decay_u": -1}, {"decay_v": 4096}, {"threshold": 1 << 17}):
        b.dense(source, b.cuba((3,), **registers))
    never = {"decay_u": -1, "decay_v": 4096, "threshold": 1 << 17}
    b.dense(source, b.cuba((3,), **never), LOUD)


def extreme_decays(b: Builder) -> None:
    source = b.input((4,))
    for decay_u in EXTREME_U:
        for decay_v in EXTREME_V:
            b.dense(source, b.cuba((2,), decay_u=decay_u, decay_v=decay_v))


def extreme_thresholds(b: Builder) -> None:
    source = b.input((4,))
    for threshold in THRESHOLDS:
        b.dense(source, b.cuba((3,), threshold=threshold), SynapseFormat(8, 2, "excitatory"))


def overflows(b: Builder) -> None:
    """u around its range many times, v at both ends."""
    source = b.input((40,))
    for mode in ("mixed", "excitatory", "inhibitory"):
        format = SynapseFormat(8, 7, mode)  # type: ignore[arg-type]
        registers = {"decay_u": 0, "decay_v": 0, "threshold": 131071}
        ends = {"bias_mantissa": np.array([4095, -4096, 0]), "bias_exponent": 7}
        b.dense(source, b.cuba((3,), **registers, **ends), format)


def quiet(b: Builder) -> None:
    """All-zero weights, no synapses, no projections, one neuron."""
    source = b.input((3,))
    b.join(source, b.cuba((2,)), (Dense(np.zeros((2, 3), np.int64)),))
    b.cuba((2,), bias_mantissa=np.array([30, -30]), bias_exponent=6)
    none = np.zeros(0, np.int64)
    b.join(source, b.cuba((2,)), (Sparse(none, none, none, (2, 3)),))
    b.dense(b.input((1,)), b.cuba((1,)))


def busy(b: Builder) -> None:
    """Spikes at every step, and an input that nothing takes."""
    b.input((1,))
    always = {"decay_u": 4095, "decay_v": 0, "threshold": 0}
    first = b.cuba((3,), **always, bias_mantissa=np.full(3, 4095), bias_exponent=7)
    b.dense(first, b.cuba((2,), **always))


KINDS = {
    make.__name__: make
    for make in (
        *(sparse, conv, pool, flatten, graph, resets, sigma_delta, graded_input, driven),
        *(beyond_registers, extreme_decays, extreme_thresholds, overflows, quiet, busy),
    )
}


def refractory(b: Builder) -> None:
    for steps in (2, 5, 63):
        b.dense(b.input((4,)), b.cuba((3,), refractory_delay=steps, threshold=50))


def reset_sigma_delta(b: Builder) -> None:
    """A periodic reset of every kind of sigma-delta neuron."""
    source = b.input((5,), "graded")
    for model in ("delta", "sigma_delta", "sigma"):
        b.dense(source, b.graded((3,), model, reset=PeriodicReset(13, 5)))


def wide_sigma_delta(b: Builder) -> None:
    """Exponents above 7, and a bias whose scaled value has more than 24 bits."""
    source = b.input((5,), "graded")
    b.dense(source, b.graded((3,), "delta", spike_exponent=12, state_exponent=0, bias_exponent=0))
    b.dense(source, b.graded((3,), "sigma_delta", bias_mantissa=np.full(3, 2048)))


SOME = {make.__name__: make for make in (refractory, reset_sigma_delta, wide_sigma_delta)}
"""What not every target runs."""


def kind(name: str, seed: int = 0) -> QuantizedNetwork:
    """One network."""
    builder = Builder(seed)
    {**KINDS, **SOME}[name](builder)
    return builder.network()


def union(networks: Mapping[str, QuantizedNetwork]) -> QuantizedNetwork:
    """Many networks side by side as one, so that Lava has to start once."""
    inputs, populations, projections, outputs = {}, {}, {}, []
    for prefix, network in networks.items():
        for name, source in network.inputs.items():
            drives = source.drives and f"{prefix}.{source.drives}"
            inputs[f"{prefix}.{name}"] = replace(source, drives=drives)
        for name, population in network.populations.items():
            populations[f"{prefix}.{name}"] = population
        for name, p in network.projections.items():
            ends = {"source": f"{prefix}.{p.source}", "target": f"{prefix}.{p.target}"}
            projections[f"{prefix}.{name}"] = replace(p, **ends)
        outputs += [f"{prefix}.{name}" for name in network.outputs]
    return QuantizedNetwork("union", "loihi2", inputs, populations, projections, tuple(outputs))


def program_of(*names: str, seed: int = 0) -> Program:
    """The kinds of these names as one program; without names all."""
    networks = {name: kind(name, seed) for name in names or KINDS}
    return compile_program(union(networks), load_chip("loihi2"), n_steps=20)


def rasters_for(program: Program, seed: int, samples: int, steps: int) -> dict[str, Any]:
    """Input for every kind of source; the first sample is empty if there are several."""
    rng = np.random.default_rng([seed, 2])
    rasters = {}
    for name, source in program.network.inputs.items():
        shape = (samples, source.size, steps)
        raster = (rng.random(shape) < rng.uniform(0.1, 0.7)).astype(np.int64)
        if source.graded:
            raster *= rng.integers(-300, 300, shape)
        if samples > 1:
            raster[0] = 0
        rasters[name] = raster
    return rasters


def trains(program: Program, rasters: Mapping[str, Any]) -> dict[str, SpikeTrain]:
    """Rasters as spike trains."""
    inputs = program.network.inputs
    return {n: SpikeTrain.from_raster(r, inputs[n].graded) for n, r in rasters.items()}
