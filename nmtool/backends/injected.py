"""Single faults by name: checked against a program, and added to its defects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from nmtool.backends.deadcores import kill_cores, names_cores
from nmtool.backends.faults import Defects, draw
from nmtool.chip import ChipSpec, load_chip
from nmtool.compiler import Program
from nmtool.errors import ConfigError
from nmtool.faultmodel import (
    DeadCore,
    Faults,
    FaultyNeuron,
    FaultyRegister,
    Injected,
    LateProjection,
    MissingReset,
    Offset,
    ResetPhase,
    SpikeFault,
    StaleWrite,
    Swapped,
    Truncated,
    WeightBit,
)
from nmtool.fixedpoint import IntArray
from nmtool.network import PeriodicReset
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection


def defects_of(program: Program, faults: Faults | None, chip: ChipSpec | None) -> Defects | None:
    """The defects that faults give a program; ``chip`` is found by its name unless given.

    Raises:
        ConfigError: an injected fault or a dead core that the program or the chip has no place for.
    """
    if not faults:
        return None
    defects = _inject(draw(program, faults, chip), program, chip)
    if not names_cores(faults):
        return defects
    return kill_cores(defects, program, chip or load_chip(program.chip))


def check_injected(program: Program, faults: Faults | None, chip: ChipSpec | None) -> None:
    """Check that a program and a chip have a place for every injected fault and dead core.

    Raises:
        ConfigError: they do not.
    """
    if faults and (faults.injected or faults.dead_cores):
        named = Faults(injected=faults.injected, dead_cores=faults.dead_cores)
        defects_of(program, named, chip)


def _inject(defects: Defects, program: Program, chip: ChipSpec | None) -> Defects:
    for index, fault in enumerate(defects.faults.injected):
        chip = chip or load_chip(program.chip)
        at = _At(f"faults.injected[{index}]", program.network, chip)
        defects = _with_fault(defects, fault, at)
    return defects


@dataclass(frozen=True)
class _At:
    """The place of a fault in the config, and what it may name: a network without faults."""

    place: str
    network: QuantizedNetwork
    chip: ChipSpec

    def fail(self, found: str, allowed: str) -> NoReturn:
        raise ConfigError(f"{self.place}: found {found}, allowed {allowed}")

    def _known(self, what: str, name: str, names: Iterable[str]) -> None:
        names = [*names]
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.fail(f"the {what} {name!r}", f"{', '.join(names) or 'none'}{hint}")

    def population(self, name: str) -> QuantizedPopulation:
        self._known("population", name, self.network.populations)
        return self.network.populations[name]

    def projection(self, name: str) -> QuantizedProjection:
        self._known("projection", name, self.network.projections)
        return self.network.projections[name]

    def neuron(self, population: str, index: int) -> int:
        size = self.population(population).size
        if index >= size:
            self.fail(f"the neuron {index} of {population}", f"0 to {size - 1}")
        return index

    def weight(self, projection: str, index: tuple[int, ...]) -> tuple[int, ...]:
        shape = self.projection(projection).weight_mantissa.shape
        if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
            self.fail(
                f"the weight {list(index)} of {projection}",
                f"an index into its weights of shape {shape}",
            )
        return index

    def in_range(self, what: str, by: int, values: Iterable[int], low: int, high: int) -> None:
        """Check a register that holds ``by`` more; ``values`` are what it holds then."""
        for value in values:
            if not low <= value <= high:
                self.fail(f"by {by}, which makes {what} {value}", f"{low} to {high}")


def _with_fault(defects: Defects, fault: Injected, at: _At) -> Defects:
    """The defects and one more."""
    if isinstance(fault, FaultyNeuron):
        index = [at.neuron(fault.population, fault.neuron)]
        if fault.kind == "dead":
            return replace(defects, dead=_joined(defects.dead, fault.population, index))
        return replace(defects, stuck=_joined(defects.stuck, fault.population, index))
    if isinstance(fault, FaultyRegister):
        return _with_register(defects, fault, at)
    if isinstance(fault, WeightBit):
        return _with_weight_bit(defects, fault, at)
    if isinstance(fault, StaleWrite):
        at.projection(fault.projection)
        mask = defects.stale[fault.projection].copy()
        mask[... if fault.weight is None else at.weight(fault.projection, fault.weight)] = True
        return replace(defects, stale={**defects.stale, fault.projection: mask})
    if isinstance(fault, LateProjection):
        return _with_delay(defects, fault, at)
    if isinstance(fault, Offset):
        return _with_offset(defects, fault, at)
    if isinstance(fault, MissingReset | ResetPhase):
        return _with_wrong_reset(defects, fault, at)
    if isinstance(fault, Swapped):
        return _with_swap(defects, fault, at)
    if isinstance(fault, SpikeFault):
        at.neuron(fault.population, fault.neuron)
        return replace(defects, singles=(*defects.singles, fault))
    if isinstance(fault, DeadCore):
        return defects  # dead cores come last: nothing stirs on them
    assert isinstance(fault, Truncated)
    ends = [fault.steps] if defects.steps is None else [fault.steps, defects.steps]
    return replace(defects, steps=min(ends))


def _joined(neurons: Mapping[str, IntArray], name: str, more: list[int]) -> dict[str, IntArray]:
    return {**neurons, name: np.union1d(neurons[name], more).astype(np.int64)}


def _with_register(defects: Defects, fault: FaultyRegister, at: _At) -> Defects:
    at.population(fault.population)
    held: Mapping[str, IntArray] = getattr(defects, fault.kind)
    values = held[fault.population].copy()
    part = ... if fault.neuron is None else at.neuron(fault.population, fault.neuron)
    values[part] += fault.by
    high = at.chip.threshold_max if fault.kind == "threshold" else at.chip.decay_max
    changed = np.atleast_1d(values[part]).tolist()
    at.in_range(f"the {fault.kind} of {fault.population}", fault.by, changed, 0, high)
    return replace(defects, **{fault.kind: {**held, fault.population: values}})  # type: ignore[arg-type]


def _with_weight_bit(defects: Defects, fault: WeightBit, at: _At) -> Defects:
    place = at.weight(fault.projection, fault.weight)
    bits = at.projection(fault.projection).weight_bits
    if fault.bit >= bits:
        at.fail(f"the bit {fault.bit} of a weight of {fault.projection}", f"0 to {bits - 1}")
    flips = defects.flips[fault.projection].copy()
    flips[place] |= 1 << fault.bit
    return replace(defects, flips={**defects.flips, fault.projection: flips})


def _with_delay(defects: Defects, fault: LateProjection, at: _At) -> Defects:
    at.projection(fault.projection)
    net = defects.network
    projection = net.projections[fault.projection]
    longest = projection.delay_max + int(np.max(net.axonal_delay(projection.source))) + fault.by
    what = f"the longest delay through {fault.projection}"
    at.in_range(what, fault.by, [longest], 0, at.chip.delay_max)
    late = replace(projection, delay=projection.delay + fault.by)
    network = replace(net, projections={**net.projections, fault.projection: late})
    return replace(defects, network=network)


def _with_offset(defects: Defects, fault: Offset, at: _At) -> Defects:
    """Late inputs are late through every projection; late recordings are the probes' alone."""
    if fault.kind == "output_offset":
        return replace(defects, late=defects.late + fault.by)
    for name, source in at.network.inputs.items():
        if source.drives:
            at.fail(
                f"the input {name}, which drives {source.drives} itself",
                "inputs that reach populations through projections",
            )
    for name, projection in at.network.projections.items():
        if projection.source in at.network.inputs:
            late = LateProjection(kind="delay", projection=name, by=fault.by)
            defects = _with_delay(defects, late, at)
    return defects


def _with_wrong_reset(defects: Defects, fault: MissingReset | ResetPhase, at: _At) -> Defects:
    name = fault.population
    if isinstance(fault, ResetPhase):
        return _with_reset(defects, name, _later(defects, fault, at))
    if at.population(name).reset is None:
        return replace(defects, kept=defects.kept | {name})
    return _with_reset(defects, name, None)


def _with_reset(defects: Defects, name: str, reset: PeriodicReset | None) -> Defects:
    net = defects.network
    population = replace(net.populations[name], reset=reset)
    network = replace(net, populations={**net.populations, name: population})
    return replace(defects, network=network)


def _later(defects: Defects, fault: ResetPhase, at: _At) -> PeriodicReset:
    at.population(fault.population)
    reset = defects.network.populations[fault.population].reset
    if reset is None:
        at.fail(f"{fault.population} without a periodic reset", "a population that has one (reset)")
    if reset.interval == 1:
        at.fail(f"a reset of {fault.population} at every step", "one every second step or rarer")
    if fault.by >= reset.interval:
        at.fail(
            f"by {fault.by}",
            f"1 to {reset.interval - 1}: the resets of {fault.population} are {reset.interval} "
            "steps apart",
        )
    return replace(reset, offset=reset.offset + fault.by)


def _with_swap(defects: Defects, fault: Swapped, at: _At) -> Defects:
    one, other = (at.neuron(fault.population, index) for index in fault.neurons)
    if one == other:
        at.fail(f"the neuron {one} twice", "two different neurons")
    line = defects.lines.get(fault.population, np.arange(at.population(fault.population).size))
    swapped = line.copy()
    swapped[[one, other]] = line[[other, one]]
    return replace(defects, lines={**defects.lines, fault.population: swapped})
