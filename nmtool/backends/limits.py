"""What of a network each backend cannot run, with the reason: the one table of it."""

from __future__ import annotations

from collections.abc import Mapping

from nmtool.chip import HardwareConfig
from nmtool.compiler.features import Feature

Limits = Mapping[Feature, str]

LIMITS: Mapping[str, Limits] = {
    "emulator": {},
    "reference": {},
    "lava-sim": {
        "refractory delay": (
            "Lava has a refractory neuron in floating point only (lava.proc.lif.models); the "
            "emulator and the reference run it"
        ),
        "sigma-delta reset": (
            "Lava's sigma-delta models have no reset (lava.proc.sdn.models), and netx ignores it"
        ),
        "sigma-delta exponent above 7": (
            "Lava's spike_exp and state_exp have 3 bits (lava.proc.sdn.models), 0 to 7; the "
            "emulator and the reference run more"
        ),
        "sigma-delta bias beyond 24 bits": (
            "Lava adds the bias, times 2^(spike_exp + state_exp), to a sigma of 24 bits "
            "(lava.proc.sdn.models); the emulator and the reference count in 32"
        ),
    },
    "lava-loihi": {
        "refractory delay": (
            "Lava's only refractory neuron has floating-point models (lava.proc.lif.models)"
        ),
        "reset interval not a power of two": (
            "chips reset neurons every 2^k steps (lava.proc.lif.process.LIFReset on Loihi 2)"
        ),
        "values beyond the chip's registers": "no register of the chip holds them",
        **dict.fromkeys(
            ("delta", "sigma delta", "sigma", "sigma-delta reset", "graded input"),
            "nmtool lays out spikes and CUBA neurons on chips, and no graded messages yet",
        ),
        "bias input": (
            "a bias that changes with every step needs nmtool's own neuron model, and a chip has "
            "models of Lava's own processes only"
        ),
    },
}

FAULT_LIMITS: Limits = dict.fromkeys(
    ("delta", "sigma delta", "sigma", "graded input"),
    "the fault model knows spikes, not graded messages",
)
"""What no simulator runs with faults."""


def limits_of(hardware: HardwareConfig) -> Limits:
    """What of a network a target cannot run, with the reason."""
    limits = LIMITS.get(hardware.backend, {})
    return {**limits, **FAULT_LIMITS} if hardware.faults else limits
