r"""7. The memory of backpropagation through time grows with the steps, that of local learning not.

The same layer learns the same stream of spikes in two ways. Backpropagation through time keeps what
each step leaves behind until the last one. Local learning (DECOLLE: Kaiser, Mostafa and Neftci,
Frontiers in Neuroscience 14, 2020) has a fixed random readout, an error at every step, and carries
only the traces of the neurons from one step to the next:

.. math::
    q[t] = \beta\, q[t-1] + s^{in}[t], \quad P[t] = \alpha P[t-1] + q[t], \quad v[t] = W P[t]
    - \vartheta r[t] \\
    \Delta W = -\eta\, (G^T e[t]) \odot \sigma'(v[t])\, P[t]^T

with the refractory trace r of the neuron's own spikes. Both have the same forward pass. Counted are
the bytes of all tensors that are alive when the last step is learned, those that autograd has saved
included; the input is made step by step and never held as a whole.

The control learns at the last step only, from a graph that was never cut: a count that misses
nothing must see it grow.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Row, Statement, step

from nmtool.config import FastSigmoidSurrogate
from nmtool.learning.local import random_readout

SAMPLES, INPUTS, NEURONS, CLASSES, RATE, SEED = 16, 64, 64, 10, 0.1, 0
KEEP_Q, KEEP_P, KEEP_R = 0.5, 0.9, 0.65
EMIT = step(FastSigmoidSurrogate(kind="fast_sigmoid", beta=10.0))
STEPS = (25, 50, 100, 200, 400)


def stream(steps: int) -> Iterator[torch.Tensor]:
    """Input spikes of one step after another, shape (samples, inputs)."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        yield (torch.rand(SAMPLES, INPUTS, generator=generator) < RATE).float()


@dataclass
class State:
    """What the layer carries from one step to the next."""

    q: torch.Tensor = field(default_factory=lambda: torch.zeros(SAMPLES, INPUTS))
    p: torch.Tensor = field(default_factory=lambda: torch.zeros(SAMPLES, INPUTS))
    r: torch.Tensor = field(default_factory=lambda: torch.zeros(SAMPLES, NEURONS))

    def step(self, weight: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:
        """One step of the layer; its spikes, shape (samples, neurons)."""
        self.q = KEEP_Q * self.q + arriving
        self.p = KEEP_P * self.p + self.q
        spikes = EMIT(self.p @ weight - self.r - 1)
        self.r = KEEP_R * self.r + spikes
        return spikes

    def cut(self) -> None:
        """Forget how the state came about."""
        self.q, self.p, self.r = self.q.detach(), self.p.detach(), self.r.detach()


@dataclass
class Layer:
    """Weights that learn, and the readout and labels that they learn from."""

    weight: torch.Tensor
    readout: torch.Tensor
    label: torch.Tensor

    @classmethod
    def make(cls) -> Layer:
        """The layer before learning."""
        rng = np.random.default_rng(SEED)
        weight = rng.normal(0.05, 0.1, (INPUTS, NEURONS)).astype(np.float32)
        readout = random_readout(NEURONS, CLASSES, 1.0, rng).weight.astype(np.float32)
        label = torch.tensor(rng.integers(0, CLASSES, SAMPLES))
        return cls(torch.tensor(weight, requires_grad=True), torch.tensor(readout), label)

    def loss(self, spikes: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the readout of one step's spikes."""
        return F.cross_entropy(spikes @ self.readout.T, self.label)


class Held:
    """Counts bytes that are alive: tensors in reach, and those that autograd has saved."""

    def __init__(self) -> None:
        self._saved: Counter[int] = Counter()
        self._size: dict[int, int] = {}
        gc.collect()
        self._before = self._alive()

    def watch(self) -> Any:
        """A context in which autograd's saved tensors are counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        kept = _Saved(tensor.detach())
        place = tensor.untyped_storage().data_ptr()
        self._size[place] = tensor.untyped_storage().nbytes()
        self._saved[place] += 1
        weakref.finalize(kept, self._drop, place)
        return kept

    def _drop(self, place: int) -> None:
        self._saved[place] -= 1

    def bytes(self) -> int:
        """What is alive now and was not at the beginning."""
        return self._alive() - self._before

    def _alive(self) -> int:
        """All bytes, each storage once."""
        found = {place: self._size[place] for place, count in self._saved.items() if count}
        for item in gc.get_objects():
            if type(item) in (torch.Tensor, torch.nn.Parameter):
                storage = item.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())


@dataclass(eq=False)
class _Saved:
    tensor: torch.Tensor


def bptt(steps: int) -> int:
    """Bytes alive at the end of the forward pass of backpropagation through time."""
    held = Held()
    layer, state, total = Layer.make(), State(), torch.zeros(())
    with held.watch():
        for arriving in stream(steps):
            total = total + layer.loss(state.step(layer.weight, arriving))
        found = held.bytes()
        total.backward()
    return found


def local(steps: int, cut: bool = True) -> int:
    """Bytes alive at the last step of local learning; not ``cut``, the graph of all is kept."""
    held = Held()
    layer, state = Layer.make(), State()
    sgd = torch.optim.SGD([layer.weight], lr=1e-3)
    with held.watch():
        for t, arriving in enumerate(stream(steps)):
            loss = layer.loss(state.step(layer.weight, arriving))
            if t == steps - 1:
                return held.bytes()
            if cut:
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                state.cut()
    raise ValueError("at least one step")


def fit(steps: list[int], held: list[int]) -> tuple[float, float]:
    """Bytes per step of a straight line, and the R2 of the line."""
    line = np.polyfit(steps, held, 1)
    values = np.array(held, dtype=np.float64)
    rest = np.sum((np.polyval(line, steps) - values) ** 2)
    spread = np.sum((values - values.mean()) ** 2)
    return float(line[0]), float(1 - rest / spread) if spread else 0.0


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes by way of learning and number of steps."""

    steps: list[int]
    held: dict[str, list[int]]


def measure(short: bool) -> Memory:
    """All ways of learning, for all numbers of steps."""
    steps = [*STEPS[: 3 if short else None]]
    ways: dict[str, Callable[[int], int]] = {
        "backpropagation through time": bptt,
        "local learning": local,
        "local, graph not cut": lambda n: local(n, cut=False),
    }
    return Memory(steps, {name: [way(n) for n in steps] for name, way in ways.items()})


def rows(memory: Memory) -> list[Row]:
    """Bytes by number of steps, and the line through them."""
    found: list[Row] = []
    for name, held in memory.held.items():
        slope, r2 = fit(memory.steps, held)
        by_steps = {f"{n} steps": h for n, h in zip(memory.steps, held, strict=True)}
        found.append({"bytes held by": name, **by_steps, "per step": slope, "R2": r2})
    return found


def claims(memory: Memory) -> dict[str, bool]:
    """What must hold."""
    through_time, local_bytes, uncut = memory.held.values()
    slope, r2 = fit(memory.steps, through_time)
    return {
        "backpropagation through time: a straight line (R2 > 0.99)": slope > 0 and r2 > 0.99,
        "local learning: the same bytes for any number of steps": len({*local_bytes}) == 1,
        "a graph that is not cut is seen to grow": uncut[-1] > 2 * uncut[0],
    }


def draw(figure: Any, memory: Memory) -> None:
    """Bytes over steps."""
    axis = figure.subplots()
    for (name, held), style in zip(memory.held.items(), ("o-", "o-", "--"), strict=True):
        axis.plot(memory.steps, np.array(held) / 1e6, style, label=name)
    axis.set(xlabel="steps", ylabel="held at the last step (MB)", ylim=(0, None))
    axis.legend(fontsize=8)


SCRIPT = Statement(
    "sg-memory",
    "7. The memory of backpropagation through time grows with the steps, of local learning not",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
