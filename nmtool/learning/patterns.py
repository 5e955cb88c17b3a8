"""What a target is looked over with: random input spikes, and random weights that make it spike."""

from __future__ import annotations

import numpy as np

from nmtool.chip import SynapseFormat
from nmtool.compiler import Program
from nmtool.errors import UnsupportedError
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.measure.equations import Messages, arriving, biases, replay
from nmtool.quantization import QuantizedProjection
from nmtool.training.model import is_trained

RATES = (0.05, 0.1, 0.2, 0.4)
"""Spikes for each line and step, from sample to sample."""

SILENT_LINES = 0.5
"""The share of lines that are silent in every second sample, so that inputs can be told apart."""

NEURON_STEPS = 1024
"""Steps of all samples together for which every neuron is watched in one run."""

WANTED_RATE = 0.15
"""Spikes for each neuron and step that test weights aim at."""

MEANS = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5)
"""Mean weights that are tried, as shares of the largest."""

SPREAD = 0.3
"""Standard deviation of test weights, as a share of the largest."""


def probe_pattern(program: Program, seed: int, times: int = 1) -> BoolArray:
    """Random input spikes, shape (samples, lines, steps), of samples as long as the program's.

    There are ``times`` as many samples as usual.

    Raises:
        UnsupportedError: another input than one of spikes.
    """
    net, steps = program.network, program.reset.n_steps
    if len(net.inputs) != 1 or net.graded(next(iter(net.inputs))):
        raise UnsupportedError(
            f"network {net.name}: found the inputs {', '.join(net.inputs) or 'none'}, allowed one "
            "of spikes to align and diagnose a target with"
        )
    (entrance,) = net.inputs
    samples = times * max(2 * len(RATES), -(-NEURON_STEPS // steps))
    rng = np.random.default_rng([seed, 7])
    rate = np.resize(RATES, samples)[:, None, None]
    raster = rng.random((samples, net.sizes[entrance], steps)) < rate
    silent = rng.random((samples, net.sizes[entrance], 1)) < SILENT_LINES
    silent[:: 2 * len(RATES)] = False
    silent[np.arange(samples) // len(RATES) % 2 == 0] = False
    return np.asarray(raster & ~silent)


def written_projections(program: Program) -> tuple[str, ...]:
    """The projections with a matrix or a kernel of weights of their own."""
    return tuple(name for name, p in program.network.projections.items() if is_trained(p))


def drawn_weights(
    program: Program, sent: Messages, seed: int, index: int
) -> tuple[dict[str, IntArray], Messages]:
    """Random weights within the frozen formats that make every population spike.

    For each population in data-flow order the mean is taken with which most neurons spike, at a
    rate near 15 % of the steps. Returns the mantissas, and what the program then sends; ``sent``
    has the inputs, shape (samples, steps, lines).
    """
    known, found = dict(sent), dict[str, IntArray]()
    own = written_projections(program)
    for position, name in enumerate(program.order):
        incoming = [n for n in own if program.network.projections[n].target == name]
        seeds = [seed, 8, index, position]
        tries = [_tried(program, name, known, _drawn(program, incoming, m, seeds)) for m in MEANS]
        _, weights, spikes = max(tries, key=lambda entry: entry[0])
        found |= weights
        known[name] = spikes
    return found, known


def _drawn(
    program: Program, names: list[str], mean: float, seeds: list[int]
) -> dict[str, IntArray]:
    """Normal weights of a mean, on the grid of each format and within it."""
    rng = np.random.default_rng(seeds)
    projections = program.network.projections
    return {n: _normal(projections[n], mean, rng) for n in names}


def _normal(p: QuantizedProjection, mean: float, rng: np.random.Generator) -> IntArray:
    form: SynapseFormat = p.format
    top = max(form.maximum, -form.minimum)
    real = top * (mean + SPREAD * rng.standard_normal(p.weight_mantissa.shape))
    steps = np.rint(real / form.step).astype(np.int64) * form.step
    return np.asarray(np.clip(steps, form.minimum, form.maximum))


def _tried(
    program: Program, name: str, sent: Messages, weights: dict[str, IntArray]
) -> tuple[float, dict[str, IntArray], IntArray]:
    """How well weights make a population spike, the weights, and the spikes.

    What the population, or one behind it, sends back to it is left out.
    """
    population = program.network.populations[name]
    samples, steps, _ = next(iter(sent.values())).shape
    arrived = np.zeros((samples, steps, population.size), dtype=np.int64)
    for key, p in program.network.projections.items():
        if p.target == name and p.source in sent:
            arrived += arriving(program, key, sent, weights.get(key))
    spikes = replay(population, arrived, biases(program, name, sent)).spikes
    active = float(spikes.any(axis=(0, 1)).mean())
    score = active - abs(float(spikes.mean()) - WANTED_RATE)
    return score, weights, spikes.astype(np.int64)
