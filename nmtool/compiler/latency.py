"""Latency: the first step at which every neuron can spike, counted from the first input spike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nmtool.fixedpoint import FloatArray
from nmtool.operations import apply_chain, with_weight
from nmtool.quantization import QuantizedNetwork, QuantizedProjection

_NEVER = np.inf

Arrivals = Mapping[str, FloatArray]
"""The first step of every neuron of every input and population; infinite where there is none."""


def arrivals(network: QuantizedNetwork) -> Arrivals:
    """When an input spike at step 0 can first reach each neuron: one a projection, plus delays.

    Weights do not count, only where they lead; neurons that a bias alone drives count as never.
    """
    arrival = {name: np.full(size, _NEVER) for name, size in network.sizes.items()}
    for name, source in network.inputs.items():
        arrival[source.drives or name][:] = 0
    pending = True
    while pending:
        pending = False
        for projection in network.projections.values():
            reached = _reached(network, projection, arrival[projection.source])
            earlier = np.minimum(arrival[projection.target], reached)
            pending |= bool(np.any(earlier < arrival[projection.target]))
            arrival[projection.target] = earlier
    return arrival


def first_step(arrival: Arrivals, name: str) -> int | None:
    """The first step at which any neuron of a population can spike; None: no input reaches it."""
    first = float(arrival[name].min())
    return None if first == _NEVER else int(first)


def latency(network: QuantizedNetwork, arrival: Arrivals) -> int:
    """The fewest steps from any input to any output; 0 if there is no way."""
    steps = [first_step(arrival, name) for name in network.outputs]
    return min((step for step in steps if step is not None), default=0)


def _reached(
    network: QuantizedNetwork, projection: QuantizedProjection, leaving: FloatArray
) -> FloatArray:
    """When the first spike reaches each target neuron, if the sources spike at ``leaving``."""
    sent = leaving + network.axonal_delay(projection.source)
    delay = np.broadcast_to(projection.delay, projection.weight_mantissa.shape)
    arrival = np.full(network.sizes[projection.target], _NEVER)
    for steps in np.unique(projection.delay):
        operations = with_weight(projection.operations, (delay == steps).astype(np.float64))
        for time in np.unique(sent[np.isfinite(sent)]):
            spikes = (sent == time).astype(np.float64)[None]
            hit = apply_chain(operations, spikes, network.shapes[projection.source])[0] > 0
            arrival[hit] = np.minimum(arrival[hit], time + 1 + steps)
    return arrival
