"""Dead cores: what a placement put on them never spikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nmtool.backends.faults import Core, Defects
from nmtool.backends.placed import check_placed
from nmtool.chip import ChipSpec
from nmtool.compiler import Program
from nmtool.errors import ConfigError
from nmtool.faultmodel import CoreName, DeadCore, Faults
from nmtool.fixedpoint import IntArray

_STREAM = 4
"""Number of the random stream, behind those of :func:`nmtool.backends.faults.draw`."""


def names_cores(faults: Faults) -> bool:
    """Whether faults kill cores, which only a placed program has."""
    return bool(faults.dead_cores) or any(isinstance(f, DeadCore) for f in faults.injected)


def kill_cores(defects: Defects, program: Program, chip: ChipSpec) -> Defects:
    """The defects with every neuron of the dead cores silent, also those that were stuck.

    Raises:
        ConfigError: a core that is not there, or a program that is not placed on cores.
    """
    dead, stuck = dict(defects.dead), dict(defects.stuck)
    failed: dict[Core, Mapping[str, int]] = {}
    named = _named(defects.faults, program, chip)
    for core in dict.fromkeys((*_drawn(defects.faults, program), *named)):
        held = _neurons_on(program, core)
        failed[core] = {name: neurons.size for name, neurons in held.items()}
        for name, neurons in held.items():
            dead[name] = np.union1d(dead[name], neurons)
            stuck[name] = np.setdiff1d(stuck[name], neurons)
    return replace(defects, dead=dead, stuck=stuck, failed=failed)


def _named(faults: Faults, program: Program, chip: ChipSpec) -> dict[Core, str]:
    """The cores that faults name, each with its place in the target.

    Raises:
        ConfigError: a core that is not there, or that is named twice.
    """
    listed = () if isinstance(faults.dead_cores, int) else faults.dead_cores
    names = {f"faults.dead_cores[{index}]": name for index, name in enumerate(listed)}
    for index, fault in enumerate(faults.injected):
        if isinstance(fault, DeadCore):
            names[f"faults.injected[{index}]"] = fault.core
    found: dict[Core, str] = {}
    for place, name in names.items():
        core = _core(place, name, program, chip)
        if core in found:
            raise ConfigError(
                f"{place}: found the core {_shown(name)}, which {found[core]} names already, "
                "allowed each core once"
            )
        found[core] = place
    return found


def _shown(name: CoreName) -> str:
    """A core as a target's file has it."""
    return str(name if isinstance(name, int) else list(name))


def _drawn(faults: Faults, program: Program) -> list[Core]:
    """So many of the cores that a program is placed on."""
    count = faults.dead_cores
    if not isinstance(count, int) or not count:
        return []
    used = _used("faults.dead_cores", program)
    if count > len(used):
        raise ConfigError(
            f"faults.dead_cores: found {count}, allowed 0 to {len(used)}, as many cores as the "
            f"program {program.fingerprint} is placed on; [core, ...] names other ones"
        )
    order = np.random.default_rng([faults.seed, _STREAM]).permutation(len(used))
    return [used[k] for k in np.sort(order[:count])]


def _used(place: str, program: Program) -> list[Core]:
    """The cores of a placement, in order."""
    check_placed(program, place)
    return sorted({(s.chip, s.core) for s in program.placement})


def _core(place: str, name: CoreName, program: Program, chip: ChipSpec) -> Core:
    """A core by its number, counted through all chips, or as (chip, core)."""
    used = _used(place, program)
    chips = program.fit.chips if program.fit else 1 + used[-1][0]
    core = divmod(name, chip.cores) if isinstance(name, int) else name
    if core[0] >= chips or core[1] >= chip.cores:
        pairs = f"[chip, core] up to [{chips - 1}, {chip.cores - 1}]"
        raise ConfigError(
            f"{place}: found the core {_shown(name)}, allowed 0 to {chips * chip.cores - 1}, or "
            f"{pairs}"
        )
    return core


def _neurons_on(program: Program, core: Core) -> dict[str, IntArray]:
    """The neurons of every population that a core holds."""
    held: dict[str, list[IntArray]] = {}
    for s in program.placement:
        if (s.chip, s.core) == core:
            shape = program.network.shapes[s.population]
            held.setdefault(s.population, []).append(s.neurons(shape))
    return {name: np.concatenate(parts) for name, parts in held.items()}
