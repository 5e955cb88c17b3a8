"""What is allowed, and likely not meant: said when a program is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from nmtool.compiler.program import Program
from nmtool.fixedpoint import BIAS_MANTISSA, DECAY_ONE
from nmtool.network import counted
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, never_firing

MOST_ZEROED = 1 / 3
"""More weights than this that become 0 are worth a word; 4 bits make a fifth of them 0."""


Caution: TypeAlias = tuple[str, str]
"""The code of a design rule, and what was found."""


def cautions(program: Program) -> list[str]:
    """One line for each thing about a program that a user would want to know before running it.

    Each begins with the code of its rule (``nmtool.designrules``).
    """
    found = [
        *(("NM-FIT-060", line) for line in program.simulators_only),
        *_lost_values(program.network),
        *_silent(program.network),
        *_never_firing(program),
        *_beyond_state(program),
    ]
    return [*map(str, program.warnings), *(f"{code} {text}" for code, text in found)]


def _lost_values(network: QuantizedNetwork) -> Iterator[Caution]:
    for error in network.errors:
        if error.clipped:
            yield (
                "NM-FIT-061",
                (
                    f"{error.name}: {100 * error.clipped:.3g} % of the values were clipped, wanted "
                    f"{error.wanted}, on the chip {error.got}; scale them and the threshold down, "
                    "or train within the range"
                ),
            )
        if error.zeroed > MOST_ZEROED:
            yield (
                "NM-FIT-062",
                (
                    f"{error.name}: {error.zeroed:.0%} of the values became 0 ({error.wanted} in "
                    f"{error.got}); a few large ones set the scale of all: limit them, or "
                    "use more bits"
                ),
            )
        if error.dead_rows:
            lost = counted(range(error.dead_rows), "target neuron")
            yield (
                "NM-FIT-063",
                (
                    f"{error.name}: all weights of {lost} were rounded to 0; use more weight bits, "
                    "or a smaller range of weights"
                ),
            )


def _silent(network: QuantizedNetwork) -> Iterator[Caution]:
    fed = {projection.target for projection in network.projections.values()}
    driven = {source.drives: name for name, source in network.inputs.items() if source.drives}
    for name, population in network.populations.items():
        if population.graded or name in fed:
            continue
        source = driven.get(name)
        if source is None and not np.any(population.bias_mantissa):
            yield (
                "NM-FIT-064",
                f"{name}: found no projection, input or bias that feeds it: it never spikes",
            )
        elif source is not None and network.inputs[source].kind == "bias":
            yield from _too_weak(name, population, source)


def _never_firing(program: Program) -> Iterator[Caution]:
    fed = {projection.target for projection in program.network.projections.values()}
    for bound in program.bounds:
        if bound.population not in fed or not bound.safe:
            continue
        never = never_firing(program.network, bound.population, program.reset.n_steps)
        if count := int(never.sum()):
            yield (
                "NM-FIT-065",
                (
                    f"{bound.population}: {count} of {never.size} neurons can never spike, "
                    "whatever their sources send: v stays at or below the threshold in all "
                    f"{program.reset.n_steps} steps"
                ),
            )


def _too_weak(name: str, population: QuantizedPopulation, source: str) -> Iterator[Caution]:
    """V under a constant bias b settles at b / decay; without decay it grows without end."""
    strongest = BIAS_MANTISSA[1] << population.bias_exponent
    settled = strongest * DECAY_ONE // population.decay_v if population.decay_v else np.inf
    if settled <= population.effective_threshold:
        yield (
            "NM-FIT-064",
            (
                f"{name}: found the bias exponent {population.bias_exponent}, with which no value "
                f"of the input {source} drives v beyond {settled}, and the threshold is "
                f"{population.effective_threshold}: it never spikes; give the population a larger "
                "bias_exponent"
            ),
        )


def _beyond_state(program: Program) -> Iterator[Caution]:
    for bound in program.bounds:
        if not bound.safe:
            yield (
                "NM-FIT-066",
                (
                    f"{bound.population}: some input could drive u to {bound.current} or v to "
                    f"{bound.voltage}, beyond the chip's 2^23; no such input is known"
                ),
            )
