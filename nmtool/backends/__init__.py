"""Where a program runs: one Backend for each kind of target."""

from __future__ import annotations

from collections.abc import Mapping

from nmtool.backends import reference
from nmtool.backends.base import (
    Backend,
    Probe,
    Progress,
    Recording,
    Session,
    refuse_unsupported,
    resolve_probe,
)
from nmtool.backends.faults import FAULT_LIMITS
from nmtool.backends.lava import sim
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import BackendName, HardwareConfig
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import ArtifactError, DependencyError, UnsupportedError

__all__ = [
    "LIMITS",
    "Backend",
    "Probe",
    "Progress",
    "Recording",
    "Session",
    "check_runnable",
    "get_backend",
    "limits_of",
    "open_session",
    "resolve_probe",
]


LIMITS: Mapping[BackendName, Mapping[Feature, str]] = {
    "reference": reference.LIMITS,
    "lava-sim": sim.LIMITS,
}
"""For each backend what of a network it cannot run, with the reason."""


def limits_of(hardware: HardwareConfig) -> Mapping[Feature, str]:
    """What of a network a target cannot run, with the reason."""
    limits = LIMITS.get(hardware.backend, {})
    return {**limits, **FAULT_LIMITS} if hardware.faults else limits


def get_backend(hardware: HardwareConfig) -> Backend:
    """The backend that a target names.

    Raises:
        UnsupportedError: faults on a backend that cannot act them out, or no such backend yet.
        DependencyError: the backend needs a package that is not installed.
    """
    if hardware.backend == "reference":
        return ReferenceBackend(hardware.faults, hardware.timeouts.run)
    if hardware.faults is not None:
        raise UnsupportedError(
            f"target {hardware.name}: found faults with the backend {hardware.backend}, "
            "allowed with the backend reference"
        )
    if hardware.backend == "lava-sim":
        from nmtool.backends.lava.compat import lava_missing

        if reason := lava_missing():
            raise DependencyError(reason)
        return sim.LavaSimBackend(hardware.timeouts.load, hardware.timeouts.run)
    raise UnsupportedError(
        f"target {hardware.name}: found the backend {hardware.backend}, which this version does "
        "not have yet; allowed reference, lava-sim"
    )


def check_runnable(program: Program, hardware: HardwareConfig) -> None:
    """Check everything that can be known before a program is run on a target.

    Raises:
        ArtifactError: it was compiled for something else.
        DependencyError: the backend needs a package that is not installed.
        UnsupportedError: the program holds something that the backend cannot do.
    """
    check_target(program, hardware)
    backend = get_backend(hardware)
    refuse_unsupported(backend.name, backend.limits, program)


def open_session(program: Program, hardware: HardwareConfig) -> Session:
    """Load a program on a target.

    Raises:
        ArtifactError: the program was made for another chip, or for other weights.
        UnsupportedError: the target cannot do something that the program holds.
    """
    check_target(program, hardware)
    return get_backend(hardware).open(program)


def check_target(program: Program, hardware: HardwareConfig) -> None:
    """Check that a program was compiled for the chip and the weight bits of a target.

    Raises:
        ArtifactError: it was made for something else.
    """
    from nmtool.chip import load_chip

    chip = load_chip(hardware.chip).name
    if program.chip != chip:
        raise ArtifactError(
            f"program {program.fingerprint}: made for the chip {program.chip}, the target "
            f"{hardware.name} has {chip}; compile it again for this target"
        )
    if hardware.weight_bits is None:
        return
    for name, projection in program.network.projections.items():
        if projection.weight_bits > hardware.weight_bits:
            raise ArtifactError(
                f"program {program.fingerprint}: projection {name} has weights of "
                f"{projection.weight_bits} bits, the target {hardware.name} stores "
                f"{hardware.weight_bits}; compile it again for this target"
            )
