r"""3. In one neuron with escape noise the surrogate gradient is the derivative of what is expected.

A LIF neuron spikes with probability :math:`\sigma_\beta(v[t] - \vartheta)`. Given its history its
voltage is a number, so the expected output at t is that probability, and its derivative is

.. math:: \frac{d}{dw_j} E[S[t] \mid \mathrm{history}] = \sigma_\beta'(v[t] - \vartheta)\, P_j[t]

with the trace :math:`P_j = dv/dw_j`: the surrogate gradient, if the surrogate is the derivative of
the escape function (Neftci, Mostafa and Zenke, IEEE Signal Processing Magazine 36, 2019; Gygax and
Zenke, Neural Computation 37, 2025). Where spikes reset the neuron its history depends on the
weights too, which the surrogate gradient does not see; nor does it see that a loss which is not
linear in the output depends on the output's scatter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import (
    FloatArray,
    Lif,
    Row,
    Statement,
    escape,
    sigmoid,
    sigmoid_slope,
)

from nmtool.config import FastSigmoidSurrogate, SigmoidNoise, Surrogate

BETA, KEEP = 5.0, 0.9
NOISE = SigmoidNoise(kind="sigmoid", beta=BETA)
SUPERSPIKE = FastSigmoidSurrogate(kind="fast_sigmoid", beta=BETA)
NEURON = Lif(keep_current=0.0, keep_voltage=KEEP)
WEIGHT = np.array([0.08, 0.12, 0.06])
STEPS, RATE, SEED = 20, 0.4, 3
WANTED = 6.0
NUDGE = 0.01


def inputs() -> FloatArray:
    """Input spikes, shape (steps, inputs)."""
    return np.asarray(np.random.default_rng(SEED).random((STEPS, len(WEIGHT))) < RATE, dtype=float)


def surrogate_gradient(
    history: FloatArray, seed: int, surrogate: Surrogate | None = None
) -> FloatArray:
    """d(number of spikes)/dweights by backpropagation through one run of drawn spikes."""
    weight = torch.tensor(WEIGHT, requires_grad=True)
    emit = escape(NOISE, torch.Generator().manual_seed(seed), surrogate)
    arriving = (torch.tensor(inputs()) @ weight)[:, None]
    NEURON.run(arriving, emit, torch.tensor(history)[:, None]).sum().backward()
    return np.asarray(weight.grad.numpy())


def closed_form(history: FloatArray) -> tuple[FloatArray, FloatArray]:
    """P(spike) of each step given the history, and its derivative, shape (steps, weights)."""
    trace, traces = np.zeros(len(WEIGHT)), []
    for x, spiked in zip(inputs(), history, strict=True):
        trace = KEEP * trace + x
        traces.append(trace)
        trace = trace * (1 - spiked)
    distance = np.array(traces) @ WEIGHT - NEURON.threshold
    return sigmoid(distance, BETA), sigmoid_slope(distance, BETA)[:, None] * np.array(traces)


def expected_with_reset(history_depends: bool) -> FloatArray:
    """dE[number of spikes]/dweights of the neuron with a hard reset, exactly.

    Sums over the step of the last spike, which is all that the voltage depends on. With
    ``history_depends`` false the probability of each history is held fixed in the derivative: that
    is the expectation of the surrogate gradient.
    """
    weight = torch.tensor(WEIGHT, requires_grad=True)
    voltage, likely = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    expected = torch.zeros(())
    for x in torch.tensor(inputs()) @ weight:
        voltage = KEEP * voltage + x
        p = torch.sigmoid(BETA * (voltage - NEURON.threshold))
        fired = ((likely if history_depends else likely.detach()) * p).sum()
        expected = expected + fired
        likely = torch.cat([likely * (1 - p), (likely * p).sum()[None]])
        voltage = torch.cat([voltage, torch.zeros(1, dtype=torch.float64)])
    expected.backward()
    return np.asarray(weight.grad.numpy())


def sampled(reset: bool, samples: int, seed: int = 0) -> FloatArray:
    """Central differences of the mean number of spikes, both ends with the same random numbers."""
    uniform = np.random.default_rng(seed).random((STEPS, samples))
    ends = [
        [_mean_count(WEIGHT + sign * NUDGE * unit, uniform, reset) for sign in (1, -1)]
        for unit in np.eye(len(WEIGHT))
    ]
    return np.array([(up - down) / (2 * NUDGE) for up, down in ends])


def _mean_count(weight: FloatArray, uniform: FloatArray, reset: bool) -> float:
    voltage, count = np.zeros(uniform.shape[1]), 0
    for x, drawn in zip(inputs() @ weight, uniform, strict=True):
        voltage = KEEP * voltage + x
        spikes = drawn < sigmoid(voltage - NEURON.threshold, BETA)
        count += int(spikes.sum())
        if reset:
            voltage[spikes] = 0
    return float(count / uniform.shape[1])


def squared_loss() -> tuple[FloatArray, FloatArray]:
    r"""True derivative of :math:`E[(N - 6)^2]` without reset, and the surrogate gradient's mean.

    :math:`E[(N-6)^2] = \sum p(1-p) + (\sum p - 6)^2`: the surrogate gradient has the second term.
    """
    p, slope = closed_form(np.zeros(STEPS))
    second = 2 * (p.sum() - WANTED) * slope.sum(axis=0)
    return second + ((1 - 2 * p)[:, None] * slope).sum(axis=0), second


@dataclass(frozen=True, eq=False)
class Case:
    """A surrogate gradient beside the derivative it is held against, both by weight."""

    name: str
    surrogate: FloatArray
    true: FloatArray

    @property
    def error(self) -> float:
        """The largest relative difference."""
        return float(np.abs(self.surrogate / self.true - 1).max())


def measure(short: bool) -> list[Case]:
    """The identity, by formula and by samples, and what breaks it."""
    none, some = np.zeros(STEPS), np.zeros(STEPS)
    some[[4, 9, 15]] = 1
    samples = 100_000 if short else 400_000
    plain, given = (closed_form(h)[1].sum(axis=0) for h in (none, some))
    reset = expected_with_reset(history_depends=False)
    loss, loss_surrogate = squared_loss()
    return [
        Case("no reset, closed form", surrogate_gradient(none, 1), plain),
        Case("given history, closed form", surrogate_gradient(some, 2), given),
        Case("no reset, sampled", surrogate_gradient(none, 3), sampled(False, samples)),
        Case("another surrogate", surrogate_gradient(none, 4, SUPERSPIKE), plain),
        Case("squared loss of the count", loss_surrogate, loss),
        Case("reset, exactly", reset, expected_with_reset(history_depends=True)),
        Case("reset, sampled", reset, sampled(True, samples)),
    ]


def rows(cases: list[Case]) -> list[Row]:
    """The first weight's derivatives and the largest relative difference of all weights."""
    return [
        {
            "case": case.name,
            "surrogate gradient": float(case.surrogate[0]),
            "true derivative": float(case.true[0]),
            "largest relative difference": case.error,
        }
        for case in cases
    ]


def claims(cases: list[Case]) -> dict[str, bool]:
    """What must hold."""
    error = {case.name: case.error for case in cases}
    return {
        "the same without reset (1e-9)": error["no reset, closed form"] < 1e-9,
        "the same given the history (1e-9)": error["given history, closed form"] < 1e-9,
        "the same by sampling (0.03)": error["no reset, sampled"] < 0.03,
        "not with another surrogate (0.1)": error["another surrogate"] > 0.1,
        "not for a squared loss (0.1)": error["squared loss of the count"] > 0.1,
        "not with a reset (0.1)": error["reset, exactly"] > 0.1,
        "samples see that too": error["reset, sampled"] > 0.1,
    }


def draw(figure: Any, cases: list[Case]) -> None:
    """Each weight's surrogate gradient over its true derivative."""
    axis = figure.subplots()
    for place, case in enumerate(cases):
        axis.plot(case.surrogate / case.true, [place] * len(case.true), "o")
    axis.axvline(1, color="black", lw=1)
    axis.set(yticks=range(len(cases)), yticklabels=[case.name for case in cases])
    axis.set(xlabel="surrogate gradient / true derivative (one point a weight)")
    axis.invert_yaxis()


SCRIPT = Statement(
    "sg-escape-noise",
    "3. The surrogate gradient of a neuron with escape noise is the derivative of its mean output",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
