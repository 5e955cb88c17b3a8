r"""1. The true gradient of a spiking classifier is zero almost everywhere, the surrogate's is not.

Along the line from the weights before training to those after it,

.. math:: W(\lambda) = W_0 + \lambda (W_1 - W_0)

the loss of a spiking network is a staircase: it changes where a spike comes or goes and nowhere
else, so that its derivative is 0 wherever there is one (Neftci, Mostafa and Zenke, IEEE Signal
Processing Magazine 36, 2019, Fig. 1). The surrogate gradient's part along the line is not 0, and
summed up along it gives a *virtual surrogate loss*, whose derivative it is. On a line there is
always one; ``closed_loop.py`` shows that in more dimensions there is none.

The control is the same network with graded outputs (the sigmoid in place of the spike): there the
same difference quotients agree with the derivative.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from common import Emit, FloatArray, Lif, Row, Statement, step

from nmtool.config import Digits, RateEncoding, SigmoidSurrogate
from nmtool.data import load_split, spikes_of

DIGITS = Digits(name="digits", encoding=RateEncoding(kind="rate", steps=12))
SAMPLES, HIDDEN, CLASSES, SEED = 200, 32, 10, 0
NEURON = Lif(keep_current=0.5, keep_voltage=0.9)
GRADED_NEURON = replace(NEURON, reset_has_gradient=True)
BETA, COUNT_SCALE = 5.0, 1.0
UPDATES, LEARNING_RATE = 60, 0.01
BEYOND = 0.2
"""How far the line goes on at both ends."""
NUDGES = (1e-2, 1e-6, 1e-8)

Layers: TypeAlias = list[torch.Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Input spikes (steps, samples, inputs) and labels."""

    raster: torch.Tensor
    label: torch.Tensor

    @classmethod
    def digits(cls, samples: int) -> Batch:
        """The first training digits, in double precision."""
        chosen = load_split(DIGITS, "train").pick(np.arange(samples))
        raster = spikes_of(chosen, DIGITS).batch()
        return cls(
            torch.tensor(raster, dtype=torch.float64).permute(2, 0, 1),
            torch.tensor(chosen.labels),
        )


def graded(distance: torch.Tensor) -> torch.Tensor:
    """The control's output: between 0 and 1, with a true derivative."""
    return torch.sigmoid(BETA * distance)


SPIKES = step(SigmoidSurrogate(kind="sigmoid", beta=BETA))


def loss(layers: Layers, batch: Batch, emit: Emit) -> torch.Tensor:
    """Cross-entropy of the output's spike counts."""
    neuron = GRADED_NEURON if emit is graded else NEURON
    sent = batch.raster
    for weight in layers:
        sent = neuron.run(sent @ weight, emit)
    return F.cross_entropy(COUNT_SCALE * sent.sum(dim=0), batch.label)


def start() -> Layers:
    """Weights (source, target) before training."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = ((64, HIDDEN), (HIDDEN, CLASSES))
    return [
        torch.randn(size, generator=generator, dtype=torch.float64) / size[0] ** 0.5
        for size in sizes
    ]


def train(layers: Layers, batch: Batch) -> Layers:
    """The weights after some updates of all samples by Adam."""
    trained = [w.clone().requires_grad_() for w in layers]
    adam = torch.optim.Adam(trained, lr=LEARNING_RATE)
    for _ in range(UPDATES):
        adam.zero_grad()
        loss(trained, batch, SPIKES).backward()
        adam.step()
    return [w.detach() for w in trained]


@dataclass(frozen=True, eq=False)
class Line:
    """The line between two sets of weights, for spikes or graded outputs."""

    before: Layers
    after: Layers
    batch: Batch
    emit: Emit

    def loss(self, place: torch.Tensor) -> torch.Tensor:
        """The loss at a place; 0 is before training, 1 after it."""
        ends = zip(self.before, self.after, strict=True)
        return loss([w + place * (v - w) for w, v in ends], self.batch, self.emit)

    def value(self, place: float) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return float(self.loss(torch.tensor(place, dtype=torch.float64)))

    def backpropagated(self, place: float) -> float:
        """Its derivative by backpropagation: a surrogate's, where spikes are emitted."""
        at = torch.tensor(place, dtype=torch.float64, requires_grad=True)
        self.loss(at).backward()
        return float(at.grad)

    def quotient(self, nudge: float, place: float) -> float:
        """The central difference quotient."""
        return (self.value(place + nudge) - self.value(place - nudge)) / (2 * nudge)


@dataclass(frozen=True, eq=False)
class Path:
    """What was found at places along the line."""

    place: FloatArray
    loss: FloatArray
    surrogate: FloatArray
    quotient: dict[float, FloatArray]
    graded: FloatArray
    graded_quotient: dict[float, FloatArray]

    @property
    def virtual_loss(self) -> FloatArray:
        """The surrogate's derivative summed up, from the loss at the start."""
        mean = (self.surrogate[1:] + self.surrogate[:-1]) / 2
        summed = np.concatenate([[0], np.cumsum(mean * np.diff(self.place))])
        return np.asarray(summed + self.loss[0])


def measure(short: bool) -> Path:
    """Losses, their difference quotients and backpropagated derivatives along the line."""
    batch = Batch.digits(SAMPLES // 2 if short else SAMPLES)
    before = start()
    after = train(before, batch)
    spikes, smooth = (Line(before, after, batch, emit) for emit in (SPIKES, graded))
    place = np.linspace(-BEYOND, 1 + BEYOND, 31 if short else 71)

    def quotients(line: Line) -> dict[float, FloatArray]:
        return {h: np.array([*map(partial(line.quotient, h), place)]) for h in NUDGES}

    return Path(
        place,
        np.array([*map(spikes.value, place)]),
        np.array([*map(spikes.backpropagated, place)]),
        quotients(spikes),
        np.array([*map(smooth.backpropagated, place)]),
        quotients(smooth),
    )


def rows(path: Path) -> list[Row]:
    """How many quotients are exactly 0, by nudge."""
    return [
        {
            "half distance of the quotient": nudge,
            "exactly 0, spikes": float((path.quotient[nudge] == 0).mean()),
            "exactly 0, graded": float((path.graded_quotient[nudge] == 0).mean()),
        }
        for nudge in NUDGES
    ]


def claims(path: Path) -> dict[str, bool]:
    """What must hold."""
    finest = NUDGES[-1]
    error = np.abs(path.graded_quotient[1e-6] - path.graded)
    return {
        "spikes: the true derivative is 0 at 95 % of the places or more": (
            float((path.quotient[finest] == 0).mean()) >= 0.95
        ),
        "yet the loss is not the same everywhere": bool(np.ptp(path.loss) > 0.5),
        "the surrogate derivative is 0 nowhere": bool((path.surrogate != 0).all()),
        "the virtual surrogate loss falls from 0 to 1, as the loss does": (
            _fall(path, path.virtual_loss) > 0 and _fall(path, path.loss) > 0
        ),
        "graded outputs: no quotient is 0": bool((path.graded_quotient[finest] != 0).all()),
        "and they agree with backpropagation (1e-5 of the largest)": bool(
            error.max() < 1e-5 * np.abs(path.graded).max()
        ),
    }


def _fall(path: Path, values: FloatArray) -> float:
    before, after = np.interp([0, 1], path.place, values)
    return float(before - after)


def draw(figure: Any, path: Path) -> None:
    """The loss and the virtual surrogate loss; the derivatives."""
    left, right = figure.subplots(1, 2)
    left.plot(path.place, path.loss, color="black", drawstyle="steps-mid", label="loss of spikes")
    left.plot(path.place, path.virtual_loss, label="virtual surrogate loss")
    left.set(xlabel="from before (0) to after training (1)", ylabel="cross-entropy")
    left.legend(fontsize=8)
    finest = path.quotient[NUDGES[-1]]
    right.plot(path.place, finest, ".", ms=3, color="black", label="true derivative")
    right.plot(path.place, path.surrogate, label="surrogate derivative")
    right.set(xlabel="from before (0) to after training (1)", ylabel="derivative along the line")
    low, high = path.surrogate.min(), max(path.surrogate.max(), 0)
    right.set(ylim=(low - 0.2 * (high - low), high + 0.2 * (high - low)))
    right.legend(fontsize=8)


SCRIPT = Statement(
    "sg-interpolation",
    "1. The true gradient of spikes is zero almost everywhere, the surrogate gradient is not",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
