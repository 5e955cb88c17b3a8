"""Where a program runs: one Backend for each kind of target."""

from __future__ import annotations

from dataclasses import replace

from nmtool.backends.base import (
    Backend,
    Probe,
    Progress,
    Recording,
    Session,
    refuse_unsupported,
    resolve_probe,
)
from nmtool.backends.injected import check_injected
from nmtool.backends.limits import LIMITS, limits_of
from nmtool.backends.placed import check_placed
from nmtool.backends.replay import ReplayBackend, ReplayTarget
from nmtool.chip import ChipSpec, HardwareConfig, load_chip
from nmtool.compiler import Program, Site, rules
from nmtool.compiler.fit import held_against
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


def get_backend(hardware: HardwareConfig) -> Backend:
    """The backend that a target names.

    Raises:
        UnsupportedError: faults on a backend that cannot act them out.
        DependencyError: the backend needs a package that is not installed.
    """
    if isinstance(hardware, ReplayTarget):
        return ReplayBackend(hardware.player)
    if hardware.backend == "emulator":
        from nmtool.backends.emulator import EmulatorBackend

        return EmulatorBackend(
            hardware.faults,
            hardware.timeouts.run,
            chip=_chip(hardware),
            by_core=hardware.by_core,
        )
    if hardware.backend == "reference":
        from nmtool.backends.reference import ReferenceBackend

        return ReferenceBackend(
            hardware.faults,
            hardware.timeouts.run,
            chip=_chip(hardware),
            by_core=hardware.by_core,
        )
    if hardware.faults is not None:
        raise UnsupportedError(
            f"target {hardware.name}: found faults with the backend {hardware.backend}, "
            "allowed with the backends emulator and reference"
        )
    if hardware.backend == "lava-sim":
        from nmtool.backends.lava.compat import lava_missing
        from nmtool.backends.lava.sim import LavaSimBackend

        if reason := lava_missing():
            raise DependencyError(reason)
        return LavaSimBackend(
            hardware.timeouts.load, hardware.timeouts.run, hardware.current_overflow
        )
    from nmtool.backends.lava.compat import loihi_missing
    from nmtool.backends.lava.loihi import LavaLoihiBackend

    if reason := loihi_missing():
        raise DependencyError(f"target {hardware.name}: {reason}")
    return LavaLoihiBackend(hardware)


def _chip(hardware: HardwareConfig) -> ChipSpec | None:
    """The chip whose registers faults change."""
    return load_chip(hardware.chip) if hardware.faults else None


def check_runnable(program: Program, hardware: HardwareConfig) -> None:
    """Check everything that can be known before a program is run on a target.

    Raises:
        ArtifactError: it was compiled for something else.
        DependencyError: the backend needs a package that is not installed.
        UnsupportedError: the program holds something that the backend cannot do.
        ConfigError: an injected fault that the program or the chip has no place for; a run by core
            of a program that is not placed on cores.
    """
    check_target(program, hardware)
    backend = get_backend(hardware)
    refuse_unsupported(backend.name, backend.limits, program)
    check_injected(program, hardware.faults, _chip(hardware))
    if hardware.by_core:
        check_placed(program)


def open_session(program: Program, hardware: HardwareConfig) -> Session:
    """Load a program on a target.

    Raises:
        ArtifactError: the program was made for another chip, or for other weights.
        UnsupportedError: the target cannot do something that the program holds.
        ConfigError: an injected fault that the program or the chip has no place for; a run by core
            of a program that is not placed on cores.
        BoardUnavailable: no board, or somebody else holds it.
    """
    check_target(program, hardware)
    backend = get_backend(hardware)
    if not hardware.recovery:
        return backend.open(program)
    from nmtool.backends.recovery import RecoveringSession

    return RecoveringSession(program, backend.open, hardware.recovery)


def _site(program: Program, hardware: HardwareConfig) -> Site:
    """Where a placement must fit: the chips of a board, or as many as it names in a simulator."""
    if hardware.backend == "lava-loihi":
        return Site(hardware.chips, hardware.cores_per_chip, excluded=hardware.excluded_cores)
    chips = 1 + max((part.chip for part in program.placement), default=0)
    return Site(chips, excluded=hardware.excluded_cores)


def check_target(program: Program, hardware: HardwareConfig) -> None:
    """Check that a program was compiled for the chip and the weight bits of a target.

    The design rules are held again: a file may come from elsewhere.

    Raises:
        ArtifactError: it was made for something else.
        FitError: it holds something that the chip cannot.
    """
    chip = load_chip(hardware.chip)
    if {program.chip, program.network.chip} != {chip.name}:
        raise ArtifactError(
            f"program {program.fingerprint}: made for the chip {program.chip}, the target "
            f"{hardware.name} has {chip.name}; compile it again for this target, or give a target "
            "of that chip (-s hw.chip=FILE.yaml)"
        )
    site = _site(program, hardware)
    held = chip.documented() if program.provenance.get("limits") == "documented" else chip
    placed = held_against(program.network, held, program.placement, site)
    again = [replace(violation, advice="compile it again for this chip") for violation in placed]
    rules.refuse([*rules.registers(program.network, chip), *again])
    if hardware.weight_bits is None:
        return
    for name, projection in program.network.projections.items():
        if projection.weight_bits > hardware.weight_bits:
            raise ArtifactError(
                f"program {program.fingerprint}: projection {name} has weights of "
                f"{projection.weight_bits} bits, the target {hardware.name} stores "
                f"{hardware.weight_bits}; compile it again for this target"
            )
