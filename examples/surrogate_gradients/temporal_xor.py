r"""2. Temporal XOR, one spike an input, is learned by gradient descent through spikes.

Figure 3 of Neftci, Mostafa and Zenke (IEEE Signal Processing Magazine 36, 2019): two inputs spike
once, early or late; the class is whether they differ; the output neuron that spikes *first* says
it. One hidden layer of four neurons. The time of the first spike is

.. math:: t_k = \sum_{t} \prod_{t' \le t} (1 - s_k[t'])

(the steps without a spike so far, counted), the loss the cross-entropy of softmax(-t / 2 steps),
and the gradient goes through every spike by SuperSpike's surrogate. All seeds learn side by side:
their weights share no gradient.

Two controls learn nothing: labels that are shuffled before every update, and spike counts, which
are one an input whatever the class. A network without hidden layer is no control: read by first
spikes it can solve the task, and its row says how often it did.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from common import FloatArray, Lif, Row, Statement, step

from nmtool.config import FastSigmoidSurrogate, Readout
from nmtool.training.losses import first_spike, latencies

SEEDS, HIDDEN, STEPS = 10, 4, 16
EARLY, LATE, JITTER = 2, 9, (-1, 0, 1)
NEURON = Lif(keep_current=0.8, keep_voltage=0.9)
EMIT = step(FastSigmoidSurrogate(kind="fast_sigmoid", beta=10.0))
READOUT = Readout(kind="first_spike", neurons_per_class=1)
UPDATES, SHORT, LEARNING_RATE = 400, 200, 0.02
SOFTNESS = 2.0
"""Steps of difference between first spikes that make one class e times as likely."""

Layers: TypeAlias = list[torch.Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """Input spikes (steps, samples, inputs), classes, and which samples have no jitter."""

    raster: torch.Tensor
    label: torch.Tensor
    plain: torch.Tensor

    @classmethod
    def make(cls) -> Task:
        """All four patterns, each input with all jitters."""
        moves = list(product(JITTER, repeat=2))
        pairs = [(p, m) for p in product((EARLY, LATE), repeat=2) for m in moves]
        raster = torch.zeros(STEPS, len(pairs), 2)
        for sample, (pattern, move) in enumerate(pairs):
            for line in range(2):
                raster[pattern[line] + move[line], sample, line] = 1
        label = torch.tensor([int(p[0] != p[1]) for p, _ in pairs])
        return cls(raster, label, torch.tensor([m == (0, 0) for _, m in pairs]))


def samples(spikes: torch.Tensor) -> torch.Tensor:
    """Spikes (steps, seeds, samples, neurons) as (seeds x samples, neurons, steps)."""
    return spikes.permute(1, 2, 3, 0).flatten(0, 1)


def start(sizes: tuple[int, ...]) -> Layers:
    """Weights (seeds, source, target) of each layer, mostly excitatory."""
    layers = []
    for source, target in pairwise(sizes):
        drawn = [
            torch.randn(source, target, generator=torch.Generator().manual_seed(seed))
            for seed in range(SEEDS)
        ]
        layers.append(((torch.stack(drawn) + 1) * 0.6 / source**0.5).requires_grad_())
    return layers


def run(layers: Layers, raster: torch.Tensor) -> list[torch.Tensor]:
    """Spikes of every layer, shape (steps, seeds, samples, neurons)."""
    sent, spikes = raster[:, None], []
    for weight in layers:
        sent = NEURON.run(sent @ weight, EMIT)
        spikes.append(sent)
    return spikes


def learn(task: Task, hidden: tuple[int, ...], updates: int, shuffled: bool) -> Layers:
    """Train all seeds by Adam; ``shuffled`` gives every update labels in another order."""
    layers = start((2, *hidden, 2))
    adam = torch.optim.Adam(layers, lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(0)
    for _ in range(updates):
        label = task.label[torch.randperm(len(task.label), generator=order)]
        label = (label if shuffled else task.label).repeat(SEEDS)
        output = samples(run(layers, task.raster)[-1])
        adam.zero_grad()
        first_spike(output, label, READOUT, SOFTNESS).backward()
        adam.step()
    return layers


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the seeds reached: whether all four patterns are right, and the share of samples."""

    solved: FloatArray
    accuracy: FloatArray
    spikes: list[torch.Tensor]

    @classmethod
    def of(cls, layers: Layers, task: Task) -> Outcome:
        """Right is a sample whose class spikes strictly before the other."""
        with torch.no_grad():
            spikes = run(layers, task.raster)
        time = latencies(samples(spikes[-1]), READOUT).reshape(SEEDS, -1, 2)
        own = F.one_hot(task.label, 2).bool().expand_as(time)
        right = time[own].reshape(SEEDS, -1) < time[~own].reshape(SEEDS, -1)
        solved = right[:, task.plain].all(dim=1)
        return cls(solved.numpy(), right.double().mean(dim=1).numpy(), spikes)


def count_accuracy(task: Task) -> float:
    """Accuracy of logistic regression on the number of spikes of each input."""
    from sklearn.linear_model import LogisticRegression

    counts = task.raster.sum(dim=0).numpy()
    return float(LogisticRegression().fit(counts, task.label).score(counts, task.label))


@dataclass(frozen=True, eq=False)
class Xor:
    """All outcomes by name, and the accuracy of counts."""

    task: Task
    outcome: dict[str, Outcome]
    counts: float


def measure(short: bool) -> Xor:
    """Train the network, its control, and (not in short) the network without hidden layer."""
    task = Task.make()
    updates = SHORT if short else UPDATES
    kinds: dict[str, tuple[tuple[int, ...], bool]] = {
        "one hidden layer of 4": ((HIDDEN,), False),
        "labels shuffled": ((HIDDEN,), True),
    }
    if not short:
        kinds["no hidden layer"] = ((), False)
    outcome = {
        name: Outcome.of(learn(task, hidden, updates, shuffled), task)
        for name, (hidden, shuffled) in kinds.items()
    }
    return Xor(task, outcome, count_accuracy(task))


def rows(xor: Xor) -> list[Row]:
    """Seeds that solve the task, and the share of samples that are right."""
    networks = [
        {
            "network": name,
            "seeds with all four right": f"{int(o.solved.sum())} of {SEEDS}",
            "samples right": float(o.accuracy.mean()),
        }
        for name, o in xor.outcome.items()
    ]
    counts = {"network": "logistic regression on counts", "seeds with all four right": "-"}
    return [*networks, {**counts, "samples right": xor.counts}]


def claims(xor: Xor) -> dict[str, bool]:
    """What must hold."""
    trained, shuffled = (xor.outcome[n] for n in ("one hidden layer of 4", "labels shuffled"))
    return {
        "at least 9 of 10 seeds learn all four patterns": int(trained.solved.sum()) >= 9,
        "with shuffled labels at most 1 does": int(shuffled.solved.sum()) <= 1,
        "and at most 0.6 of the samples are right": float(shuffled.accuracy.mean()) <= 0.6,
        "spike counts are at chance": xor.counts == 0.5,
    }


def draw(figure: Any, xor: Xor) -> None:
    """Spikes of all layers for the four patterns, in the first seed that solves the task."""
    trained = xor.outcome["one hidden layer of 4"]
    seed = int(np.argmax(trained.solved))
    hidden, out = (s[:, seed].numpy() for s in trained.spikes)
    axes = figure.subplots(1, 4, sharey=True)
    for axis, sample in zip(axes, np.flatnonzero(xor.task.plain.numpy()), strict=True):
        layers = (xor.task.raster.numpy()[:, sample], hidden[:, sample], out[:, sample])
        base = 0
        for raster, color in zip(layers, ("black", "C0", "C1"), strict=True):
            when, who = raster.nonzero()
            axis.scatter(when, who + base, marker="|", color=color, s=80)
            base += raster.shape[1] + 1
        label = int(xor.task.label[sample])
        axis.axhspan(8 + label - 0.5, 8 + label + 0.5, color="C1", alpha=0.15)
        axis.set(title=f"class {label}", xlabel="step", xlim=(-1, STEPS))
    axes[0].set(yticks=[0.5, 4.5, 8, 9], yticklabels=["inputs", "hidden", "class 0", "class 1"])


SCRIPT = Statement(
    "sg-temporal-xor",
    "2. Temporal XOR is learned by gradient descent through spikes, from first spikes",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
