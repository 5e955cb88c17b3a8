"""QuantizedNetwork + ChipSpec -> Program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nmtool.chip import ChipSpec
from nmtool.compiler import rules
from nmtool.compiler.fit import Fit, Site, lay_out, with_first_steps
from nmtool.compiler.headroom import advised
from nmtool.compiler.latency import arrivals, latency
from nmtool.compiler.program import Program, ResetSchedule
from nmtool.errors import ArtifactError, ConfigError
from nmtool.network import Network
from nmtool.quantization import (
    QuantizedNetwork,
    dequantize,
    quantize,
    state_bounds,
)

__all__ = ["DEFAULT_STEPS", "Fit", "Program", "ResetSchedule", "Site", "compile_program"]

DEFAULT_STEPS = 32


def compile_program(
    network: Network | QuantizedNetwork,
    chip: ChipSpec,
    weight_bits: int | None = None,
    n_steps: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    site: Site | None = None,
) -> Program:
    """Quantise (a Network), check the chip's ranges and limits, and place it on cores.

    ``n_steps`` is the length of a sample: that of the network's encoding unless given. A network
    that is quantised to more than ``weight_bits`` is quantised again.

    Raises:
        FitError: a value or a network that the chip cannot hold.
        ConfigError: fewer than one step, or a number that is not whole.
        ArtifactError: a QuantizedNetwork made for another chip.
    """
    if isinstance(network, Network):
        quantized = quantize(network, chip, weight_bits)
    else:
        quantized = network
        if quantized.chip != chip.name:
            raise ArtifactError(
                f"quantized network {quantized.name}: made for {quantized.chip}, not {chip.name}; "
                + _again(quantized, chip)
            )
        if weight_bits and any(p.weight_bits > weight_bits for p in network.projections.values()):
            quantized = quantize(dequantize(quantized), chip, weight_bits)
    site = site or Site()
    placement, fit, problems = lay_out(quantized, chip, site)
    rules.refuse([*rules.registers(quantized, chip), *advised(problems, quantized, chip, site)])
    if n_steps is not None and (not isinstance(n_steps, int | np.integer) or n_steps < 1):
        raise ConfigError(f"compile: found {n_steps} steps, allowed whole numbers from 1")
    own = quantized.data.n_steps if quantized.data else DEFAULT_STEPS
    steps = own if n_steps is None else int(n_steps)
    arrival = arrivals(quantized)
    return Program(
        quantized,
        chip.name,
        ResetSchedule(steps, hold=quantized.delay_max + 1),
        latency=latency(quantized, arrival),
        bounds=tuple(state_bounds(quantized, steps)),
        simulators_only=tuple(rules.simulators_only(quantized, chip)),
        warnings=tuple(rules.warnings(quantized, chip, site.probed)),
        placement=placement,
        fit=with_first_steps(fit, arrival) if fit else None,
        provenance=dict(provenance or {}),
    )


def _again(network: QuantizedNetwork, chip: ChipSpec) -> str:
    """How a quantised network is made for another chip."""
    if network.metadata.get("source") == "netx":
        return (
            f"import the netx file again for this chip: `nmtool import {network.name}.net --chip "
            f'{chip.name}`, in Python nmtool.load("{network.name}.net", chip="{chip.name}")'
        )
    return "quantise the original network again"
