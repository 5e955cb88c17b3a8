"""The networks of benchmarks/training.py in other libraries, layer by layer over all steps.

Every peer has the neuron that is nearest to the chip's: a current that decays by a quarter and a
voltage that decays by 3 % a step, reset to zero. ``make(peer, shape)`` gives a torch module from
spikes (samples, features..., steps) to output spikes per class and the function that turns a raster
into its own layout. Where they differ from nmtool:

- lava-dl: CUBA blocks; the same integers of states, the same surrogate, 8-bit weights at one fixed
  exponent, a step of delay for each block.
- SpikingJelly: CUBALIFNode in multi-step mode, float32, a rectangle as the surrogate, no gradient
  through the reset. And LIFNode, which has a hand-written backward pass but no current: less work,
  and the same voltage decay. Its CuPy and Triton backends need CUDA.
- snnTorch: Synaptic, float32, arc tangent surrogate, reset at once. Its modules know one step.
  torch.compile, which its release notes of 0.8.1 announce, makes that step slower (torch 2.13).
- Norse: LIF, float32, SuperSpike surrogate; its voltage takes 3 % of the current, so that its
  threshold is 3 % of the others'. Also with its step compiled, as its own tests do (1.1).
- Sinabs: LIF with SingleSpike and MembraneReset, float32, exponential surrogate; the current decays
  before the voltage sees it, so that its threshold is three quarters of the others'. Its faster
  EXODUS layers need CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, prod
from typing import Any

import numpy as np
import torch

THRESHOLD, KEEP_U, KEEP_V = 1.25, 0.75, 0.97
"""Of examples/digits: current_decay 0.25 and voltage_decay 0.03."""


@dataclass(frozen=True)
class Dense:
    """All-to-all weights to neurons, which may also reach one another."""

    size: int
    recurrent: bool = False


@dataclass(frozen=True)
class Conv:
    """A convolution that keeps the size of the plane."""

    channels: int
    kernel: int


@dataclass(frozen=True)
class Pool:
    """The mean over squares of so many pixels, without neurons."""

    size: int


@dataclass(frozen=True)
class Shape:
    """A network, its input, and by how much nmtool is to be faster than the fastest peer."""

    name: str
    features: tuple[int, ...]
    layers: tuple[Dense | Conv | Pool, ...]
    batch: int
    steps: int
    bar: float
    density: float = 0.03

    def raster(self) -> Any:
        """Input spikes (samples, features..., steps), float32."""
        rng = np.random.default_rng(1)
        size = (self.batch, *self.features, self.steps)
        return (rng.random(size, dtype=np.float32) < self.density).astype(np.float32)

    def labels(self) -> Any:
        """One of the outputs for each sample."""
        last = self.layers[-1]
        assert isinstance(last, Dense)
        return np.random.default_rng(2).integers(0, last.size, self.batch)

    def sizes(self) -> list[tuple[int, ...]]:
        """Of the input and of what every layer gives."""
        sizes = [self.features]
        for layer in self.layers:
            sizes.append(_after(layer, sizes[-1]))
        return sizes

    def spiking(self) -> list[tuple[int, ...]]:
        """Of every layer that has neurons."""
        layers = zip(self.layers, self.sizes()[1:], strict=True)
        return [size for layer, size in layers if not isinstance(layer, Pool)]

    def weights(self) -> list[Any]:
        """Of every layer: (target, source...), None for pooling; the same for every library.

        Normal, with standard deviation 1 / sqrt(sources): a few percent of the neurons spike.
        """
        rng = np.random.default_rng(3)
        return [
            _weight(layer, before, rng)
            for layer, before in zip(self.layers, self.sizes(), strict=False)
        ]


def _after(layer: Dense | Conv | Pool, before: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, Dense):
        return (layer.size,)
    if isinstance(layer, Conv):
        return (layer.channels, *before[1:])
    return (before[0], before[1] // layer.size, before[2] // layer.size)


def _weight(layer: Any, before: tuple[int, ...], rng: np.random.Generator) -> Any:
    if isinstance(layer, Pool):
        return None
    into = (prod(before),) if isinstance(layer, Dense) else (before[0], *[layer.kernel] * 2)
    n = layer.size if isinstance(layer, Dense) else layer.channels
    return rng.normal(0.0, prod(into) ** -0.5, (n, *into)).astype(np.float32)


def among(n: int) -> torch.Tensor:
    """Weights from n recurrent neurons to themselves (target, source)."""
    weight = np.random.default_rng(4).normal(0.0, 0.3 * n**-0.5, (n, n))
    return torch.from_numpy(weight.astype(np.float32))


Neurons = Callable[[], torch.nn.Module]
Layout = Callable[[torch.Tensor], torch.Tensor]


class Population(torch.nn.Module):
    """Synapses of all steps at once, then neurons step by step; time is one of two first axes."""

    def __init__(self, synapses: torch.nn.Module | None, neurons: torch.nn.Module | None) -> None:
        super().__init__()
        self.synapses, self.neurons = synapses, neurons

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes (a, b, features...) of spikes, where a and b are steps and samples."""
        if isinstance(self.synapses, torch.nn.Linear):
            x = self.synapses(x.flatten(2))
        elif self.synapses is not None:
            x = self.synapses(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x if self.neurons is None else self.neurons(x)


def stack(shape: Shape, neurons: Neurons, recurrent: Callable[[int], Any]) -> torch.nn.Sequential:
    """The populations of a shape, with the neurons of a library."""
    made = []
    for layer, before, weight in zip(shape.layers, shape.sizes(), shape.weights(), strict=False):
        if isinstance(layer, Pool):
            made.append(Population(torch.nn.AvgPool2d(layer.size), None))
            continue
        synapses: Any = torch.nn.Linear(prod(before), weight.shape[0], bias=False)
        if isinstance(layer, Conv):
            kernel = layer.kernel
            synapses = torch.nn.Conv2d(
                before[0], layer.channels, kernel, padding=kernel // 2, bias=False
            )
        synapses.weight.data.copy_(torch.from_numpy(weight))
        again = isinstance(layer, Dense) and layer.recurrent
        made.append(Population(synapses, recurrent(len(weight)) if again else neurons()))
    return torch.nn.Sequential(*made)


def steps_first(raster: torch.Tensor) -> torch.Tensor:
    """(samples, features..., steps) as (steps, samples, features...)."""
    return raster.movedim(-1, 0).contiguous()


def samples_first(raster: torch.Tensor) -> torch.Tensor:
    """(samples, features..., steps) as (samples, steps, features...)."""
    return raster.movedim(-1, 1).contiguous()


class Counts(torch.nn.Module):
    """Output spikes of every neuron over all steps, (samples, neurons)."""

    def __init__(
        self, network: torch.nn.Module, axis: int, reset: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self.network, self.axis, self.reset = network, axis, reset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From a rest state."""
        if self.reset:
            self.reset()
        return self.network(x).sum(self.axis)

    def spikes(self, x: torch.Tensor) -> list[float]:
        """How many spikes every layer with neurons sends."""
        if self.reset:
            self.reset()
        sent = []
        for layer in self.network.children():
            x = layer(x)
            if getattr(layer, "neurons", None) or getattr(layer, "neuron", None):
                sent.append(float(x.detach().sum()))
        return sent


def spikingjelly(shape: Shape, current: bool = True) -> tuple[torch.nn.Module, Layout]:
    """CUBALIFNode, or LIFNode, whose input current does not last."""
    from spikingjelly.activation_based import functional, layer, neuron

    def neurons() -> torch.nn.Module:
        if current:
            node = neuron.CUBALIFNode(KEEP_U, KEEP_V, THRESHOLD, 0.0)
            node.step_mode, node.detach_reset = "m", True
            return node
        rest = THRESHOLD * (1 - KEEP_U)
        return neuron.LIFNode(1 / (1 - KEEP_V), False, rest, 0.0, detach_reset=True, step_mode="m")

    def recurrent(n: int) -> torch.nn.Module:
        node = neurons()
        node.step_mode = "s"
        container = layer.LinearRecurrentContainer(node, n, n, bias=False, step_mode="m")
        container.rc.weight.data.copy_(torch.hstack([torch.eye(n), among(n)]))
        return container

    network = stack(shape, neurons, recurrent)
    return Counts(network, 0, lambda: functional.reset_net(network)), steps_first


def snntorch(shape: Shape) -> tuple[torch.nn.Module, Layout]:
    """Synaptic and RSynaptic, called step by step."""
    from snntorch import RSynaptic, Synaptic

    keep: dict[str, Any] = {"alpha": KEEP_U, "beta": KEEP_V, "threshold": THRESHOLD}
    keep |= {"reset_mechanism": "zero", "reset_delay": False}

    class Steps(torch.nn.Module):
        def __init__(self, cell: Any) -> None:
            super().__init__()
            self.cell = cell
            self.kept = 0 if isinstance(cell, RSynaptic) else 1  # it takes its spikes back too

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = self.kept
            state = (torch.zeros_like(x[0]),) * (3 - kept)
            spikes = []
            for step in x:
                given = self.cell(step, *state)
                spikes.append(given[0])
                state = given[kept:]
            return torch.stack(spikes)

    def recurrent(n: int) -> torch.nn.Module:
        cell = RSynaptic(**keep, all_to_all=True, linear_features=n)
        cell.recurrent.weight.data.copy_(among(n))
        cell.recurrent.bias.data.zero_()
        return Steps(cell)

    return Counts(stack(shape, lambda: Steps(Synaptic(**keep)), recurrent), 0), steps_first


def norse(shape: Shape, compile: bool = False) -> tuple[torch.nn.Module, Layout]:
    """LIF and LIFRecurrent with steps of 1 ms."""
    from norse.torch.functional.lif import LIFParameters
    from norse.torch.module.lif import LIF, LIFRecurrent

    parameters = LIFParameters(
        tau_syn_inv=torch.tensor((1 - KEEP_U) * 1e3),
        tau_mem_inv=torch.tensor((1 - KEEP_V) * 1e3),
        v_th=torch.tensor((1 - KEEP_V) * THRESHOLD),
    )

    class Spikes(torch.nn.Module):
        def __init__(self, neurons: torch.nn.Module) -> None:
            super().__init__()
            self.neurons: Any = neurons
            if compile:
                self.neurons.activation = torch.compile(self.neurons.activation, dynamic=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.neurons(x)[0]

    def recurrent(n: int) -> torch.nn.Module:
        neurons = LIFRecurrent(n, n, p=parameters)
        neurons.input_weights.data = torch.eye(n)
        neurons.input_weights.requires_grad_(False)
        neurons.recurrent_weights.data = among(n)
        return Spikes(neurons)

    return Counts(stack(shape, lambda: Spikes(LIF(p=parameters)), recurrent), 0), steps_first


def sinabs(shape: Shape) -> tuple[torch.nn.Module, Layout]:
    """LIF and LIFRecurrent."""
    from sinabs.activation import MembraneReset, SingleExponential, SingleSpike
    from sinabs.layers import LIF, LIFRecurrent

    kept: dict[str, Any] = {
        "tau_mem": -1 / log(KEEP_V),
        "tau_syn": -1 / log(KEEP_U),
        "spike_threshold": torch.tensor(KEEP_U * THRESHOLD),
        "spike_fn": SingleSpike,
        "reset_fn": MembraneReset(),
        "surrogate_grad_fn": SingleExponential(),
        "norm_input": False,
    }

    def frozen(neurons: Any) -> Any:
        neurons.tau_mem.requires_grad_(False)
        neurons.tau_syn.requires_grad_(False)
        return neurons

    def recurrent(n: int) -> Any:
        connect = torch.nn.Linear(n, n, bias=False)
        connect.weight.data.copy_(among(n))
        return frozen(LIFRecurrent(rec_connect=connect, **kept))

    network = stack(shape, lambda: frozen(LIF(**kept)), recurrent)

    def reset() -> None:
        for module in network.modules():
            if isinstance(module, LIF) and module.is_state_initialised():
                module.reset_states()

    return Counts(network, 1, reset), samples_first


def lava_dl(shape: Shape) -> tuple[torch.nn.Module, Layout]:
    """SLAYER's CUBA blocks."""
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()
    from lava.lib.dl.slayer import block

    neuron = {
        "threshold": THRESHOLD,
        "current_decay": 1 - KEEP_U,
        "voltage_decay": 1 - KEEP_V,
        "tau_grad": 0.03,
        "scale_grad": 3.0,
    }
    made: list[Any] = []
    for layer, before, weight in zip(shape.layers, shape.sizes(), shape.weights(), strict=False):
        if isinstance(layer, Pool):
            made.append(torch.nn.AvgPool3d((layer.size, layer.size, 1)))
            continue
        if isinstance(layer, Conv):
            sizes = (before[0], layer.channels, layer.kernel)
            made.append(block.cuba.Conv(neuron, *sizes, padding=layer.kernel // 2))
            synapse = made[-1].synapse
        elif layer.recurrent:
            own_neuron = {**neuron}  # the block writes into it
            made.append(block.cuba.Recurrent(own_neuron, prod(before), layer.size))
            synapse, own = made[-1].input_synapse, made[-1].recurrent_synapse
            own.weight.data.copy_(among(layer.size).reshape(own.weight.shape))
        else:
            made += [block.cuba.Flatten()] if len(before) > 1 else []
            made.append(block.cuba.Dense(neuron, prod(before), layer.size))
            synapse = made[-1].synapse
        synapse.weight.data.copy_(torch.from_numpy(weight).reshape(synapse.weight.shape))

    def reset() -> None:
        for layer in made:
            if isinstance(layer, block.cuba.Recurrent):
                state = layer.neuron
                state.current_state = torch.zeros_like(state.current_state)
                state.voltage_state = torch.zeros_like(state.voltage_state)

    return Counts(torch.nn.Sequential(*made), -1, reset), lambda raster: raster


PEERS: dict[str, Callable[[Shape], tuple[torch.nn.Module, Layout]]] = {
    "lava-dl": lava_dl,
    "SpikingJelly": spikingjelly,
    "SpikingJelly LIFNode": lambda shape: spikingjelly(shape, current=False),
    "snnTorch": snntorch,
    "Norse": norse,
    "Norse compiled": lambda shape: norse(shape, compile=True),
    "Sinabs": sinabs,
}
