"""Where a program runs: one Backend for each kind of target."""

from __future__ import annotations

from nmtool.backends.base import Backend, Probe, Progress, Recording, Session, resolve_probe
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import HardwareConfig
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, DependencyError, UnsupportedError

__all__ = [
    "Backend",
    "Probe",
    "Progress",
    "Recording",
    "Session",
    "get_backend",
    "open_session",
    "resolve_probe",
]


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
        from nmtool.backends.lava.sim import LavaSimBackend

        if reason := lava_missing():
            raise DependencyError(reason)
        return LavaSimBackend(hardware.timeouts.load, hardware.timeouts.run)
    raise UnsupportedError(
        f"target {hardware.name}: found the backend {hardware.backend}, which this version does "
        "not have yet; allowed reference, lava-sim"
    )


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
