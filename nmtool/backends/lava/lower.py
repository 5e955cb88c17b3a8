"""A Program as a LavaJob: which of Lava's processes stands for what.

Dense projections stay dense (a flatten before them permutes their columns), a convolution without
delay becomes Lava's Conv, and every other chain is written out as single synapses. Axonal delays
are folded into the synapses that follow, as Lava knows only those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nmtool.backends.base import Probe
from nmtool.backends.lava.job import (
    LavaConvProjection,
    LavaDelta,
    LavaDrive,
    LavaJob,
    LavaPopulation,
    LavaProbes,
    LavaProjection,
    LavaSigma,
    LavaSigmaDelta,
    LavaSparseProjection,
    Overflow,
    Population,
    Projection,
)
from nmtool.compiler import Program
from nmtool.fixedpoint import IntArray
from nmtool.operations import Connections, Conv, Dense, Flatten, chain_connections
from nmtool.quantization import QuantizedPopulation, QuantizedProjection


@dataclass(frozen=True, eq=False)
class Lowered:
    """One of the Lava projections that stand for a projection.

    ``index`` has the shape of Lava's weights: where each of them lies in the flattened mantissas.
    """

    projection: Projection
    index: IntArray

    def mantissa(self, mantissa: IntArray) -> IntArray:
        """The mantissas of the program in Lava's shape."""
        return mantissa.ravel()[self.index]


def lower(program: Program, *, convolutions: bool = True) -> dict[str, list[Lowered]]:
    """For each projection of a program the Lava projections that stand for it.

    Without ``convolutions`` those are written out as single synapses too.
    """
    return {
        name: _projection(program, name, projection, convolutions)
        for name, projection in program.network.projections.items()
    }


def job(
    program: Program,
    lowered: Mapping[str, list[Lowered]],
    probe: Probe,
    current_overflow: Overflow,
) -> LavaJob:
    """A job without input; the weights are those that the program has now."""
    net = program.network
    projections = [
        replace(
            part.projection, weight_mantissa=part.mantissa(net.projections[name].weight_mantissa)
        )
        for name, parts in lowered.items()
        for part in parts
    ]
    made = LavaJob.network(
        {name: source.size for name, source in net.inputs.items()},
        {name: _population(population) for name, population in net.populations.items()},
        projections,
        LavaProbes(*(tuple(probe.get(q, ())) for q in ("spikes", "current", "voltage"))),
        graded=[name for name, source in net.inputs.items() if source.graded],
        drives=[
            LavaDrive(name, source.drives, "bias" if source.kind == "bias" else "graded")
            for name, source in net.inputs.items()
            if source.drives is not None
        ],
        current_overflow=current_overflow,
    )
    return replace(made, hold=program.reset.hold)


def _population(p: QuantizedPopulation) -> Population:
    if p.model == "sigma":
        return LavaSigma(p.size)
    if p.model == "delta":
        return LavaDelta(p.size, p.threshold, p.spike_exponent, p.state_exponent)
    if p.model == "sigma_delta":
        return LavaSigmaDelta(
            p.size,
            p.threshold,
            p.bias_mantissa,
            p.spike_exponent,
            p.state_exponent,
            activation=p.activation,
        )
    return LavaPopulation(
        p.size,
        p.decay_u,
        p.decay_v,
        p.threshold,
        p.bias_mantissa,
        p.bias_exponent,
        p.reset.interval if p.reset else 0,
        p.reset.offset % p.reset.interval if p.reset else 0,
    )


def _projection(
    program: Program, name: str, p: QuantizedProjection, convolutions: bool
) -> list[Lowered]:
    axonal = np.asarray(program.network.axonal_delay(p.source))
    shape = program.network.shapes[p.source]
    last = p.operations[-1]
    kinds = [type(operation) for operation in p.operations]
    undelayed = not np.any(p.delay) and not np.any(axonal)
    if convolutions and isinstance(last, Conv) and len(kinds) == 1 and undelayed:
        return [_conv(name, p, last, (shape[0], shape[1], shape[2]))]
    if isinstance(last, Dense) and kinds in ([Dense], [Flatten, Dense]):
        index = np.arange(last.weight.size).reshape(last.weight.shape)
        if Flatten in kinds:
            order = np.arange(last.weight.shape[1]).reshape(shape).transpose().ravel()
            index = index[:, np.argsort(order)]
        return [_dense(name, p, index, axonal)]
    return _sparse(name, program, p, axonal)


def _dense(name: str, p: QuantizedProjection, index: IntArray, axonal: IntArray) -> Lowered:
    mantissa = p.weight_mantissa.ravel()[index]
    delay: int | IntArray
    if np.ndim(p.delay) or axonal.ndim:
        per_weight = np.broadcast_to(p.delay, p.weight_mantissa.shape).ravel()[index]
        delay = (per_weight + axonal).astype(np.int64)
    else:
        delay = int(p.delay) + int(axonal)
    format = p.format
    made = LavaProjection(
        p.source, p.target, mantissa, format.exponent, format.bits, format.sign_mode, delay, name
    )
    return Lowered(made, index)


def _conv(name: str, p: QuantizedProjection, conv: Conv, shape: tuple[int, int, int]) -> Lowered:
    made = LavaConvProjection(
        p.source,
        p.target,
        conv.weight,
        shape,
        p.format.exponent,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        name,
    )
    return Lowered(made, np.arange(conv.weight.size).reshape(conv.weight.shape))


def _sparse(name: str, program: Program, p: QuantizedProjection, axonal: IntArray) -> list[Lowered]:
    """Single synapses; a pair of neurons with several takes part in several Lava projections."""
    net = program.network
    ways = chain_connections(p.operations, net.shapes[p.source])
    per_weight = np.broadcast_to(p.delay, p.weight_mantissa.shape).ravel()
    size = (net.sizes[p.target], net.sizes[p.source])
    lowered = []
    for number, part in enumerate(_layers(ways)):
        delay = per_weight[part.index] + np.broadcast_to(axonal, size[1])[part.source]
        made = LavaSparseProjection(
            p.source,
            p.target,
            size,
            part.target,
            part.source,
            p.weight_mantissa.ravel()[part.index],
            p.format.exponent,
            p.format.bits,
            p.format.sign_mode,
            delay.astype(np.int64),
            f"{name} #{number + 1}" if number else name,
        )
        lowered.append(Lowered(made, part.index))
    return lowered


def _layers(ways: Connections) -> list[Connections]:
    """Synapses in groups in which no pair of neurons occurs twice; they are sorted by pair."""
    pair = np.stack([ways.source, ways.target])
    begins = np.ones(ways.source.size, dtype=np.bool_)
    begins[1:] = np.any(pair[:, 1:] != pair[:, :-1], axis=0)
    first = np.maximum.accumulate(np.where(begins, np.arange(begins.size), 0))
    turn = np.arange(begins.size) - first
    chosen = [turn == k for k in range(int(turn.max(initial=0)) + 1)]
    return [Connections(ways.source[c], ways.target[c], ways.index[c]) for c in chosen]
