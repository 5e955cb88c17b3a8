"""QuantizedNetwork + ChipSpec -> Program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmtool.chip import ChipSpec
from nmtool.compiler import rules
from nmtool.compiler.program import Program, ResetSchedule
from nmtool.errors import ArtifactError, ConfigError
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork, quantize, state_bounds

__all__ = ["Program", "ResetSchedule", "compile_program"]

DEFAULT_STEPS = 32


def compile_program(
    network: Network | QuantizedNetwork,
    chip: ChipSpec,
    weight_bits: int | None = None,
    n_steps: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Program:
    """Quantise (a Network), check the chip's ranges, and lay out the run.

    ``n_steps`` is the length of a sample: that of the network's encoding unless given.

    Raises:
        FitError: a value or a network that the chip cannot hold.
        ConfigError: fewer than one step.
        ArtifactError: a QuantizedNetwork made for another chip.
    """
    if isinstance(network, Network):
        quantized = quantize(network, chip, weight_bits)
    else:
        quantized = network
        if quantized.chip != chip.name:
            raise ArtifactError(
                f"quantized network {quantized.name}: made for {quantized.chip}, not {chip.name}; "
                "quantise the original network again"
            )
    rules.check(quantized, chip)
    if n_steps is not None and n_steps < 1:
        raise ConfigError(f"compile: found {n_steps} steps, allowed 1 or more")
    steps = n_steps or (quantized.data.encoding.steps if quantized.data else DEFAULT_STEPS)
    return Program(
        quantized,
        chip.name,
        ResetSchedule(steps, hold=quantized.delay_max + 1),
        latency=_latency(quantized),
        bounds=tuple(state_bounds(quantized, steps)),
        provenance=dict(provenance or {}),
    )


def _latency(network: QuantizedNetwork) -> int:
    """The fewest steps from any input to any output: one a projection, plus its delays."""
    arrival = dict.fromkeys(network.inputs, 0)
    pending = True
    while pending:
        pending = False
        for projection in network.projections.values():
            if projection.source not in arrival:
                continue
            source = network.populations.get(projection.source)
            delay = (source.axonal_delay if source else 0) + projection.delay_min
            step = arrival[projection.source] + 1 + delay
            if step < arrival.get(projection.target, step + 1):
                arrival[projection.target] = step
                pending = True
    return min((arrival[name] for name in network.outputs if name in arrival), default=0)
