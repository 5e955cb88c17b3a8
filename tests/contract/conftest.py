"""The targets that the contract is held against."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from nmtool.backends.lava.compat import lava_missing
from nmtool.chip import HardwareConfig, load_hardware

NEEDS_LAVA = pytest.mark.skipif(lava_missing() is not None, reason=str(lava_missing()))


SIMULATORS = ["emulator", "reference", "faultless", "by-core"]
"""nmtool's own: ``faultless`` is the fault model with nothing broken, ``by-core`` runs every slice
of a placement by itself."""


@pytest.fixture(
    params=[*SIMULATORS, pytest.param("lava-sim", marks=[pytest.mark.lava, NEEDS_LAVA])]
)
def target(request: pytest.FixtureRequest) -> HardwareConfig:
    """Every target."""
    return _hardware(request.param)


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> HardwareConfig:
    """Every target but Lava, which takes seconds to start."""
    return _hardware(request.param)


def _hardware(name: str) -> HardwareConfig:
    if name == "by-core":
        return load_hardware("emulator", ["by_core=true"])
    if name == "faultless":
        faulty = load_hardware("loihi2-faulty").model_copy(update={"weight_bits": None})
        return faulty.with_faults(
            dead_neurons=0.0, stuck_neurons=0.0, weight_bit_flips=0.0, spike_loss=0.0
        )
    return load_hardware(name)
