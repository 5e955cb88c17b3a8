"""What a Lava simulation is told and what it gives back: plain numpy, no Lava.

Populations and projections are in modules of their own and named here as well.

Units and timing are the chip's. ``current`` (u) and ``voltage`` (v) are 24-bit integers; the
threshold is compared as ``threshold << 6``; synaptic input enters u as ``sum << 6``. Input column
t of a sample is sent at step t, and a population at step t adds the spikes sent at t-1-delay.
Column t of a result is step t, so a population at t = 0 has received nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava.populations import (
    LavaDelta,
    LavaPopulation,
    LavaSigma,
    LavaSigmaDelta,
    Population,
)
from nmtool.backends.lava.projections import (
    MAX_DELAY,
    SIGN_RANGE,
    LavaConvProjection,
    LavaProjection,
    LavaSparseProjection,
    Projection,
    check_weights,
)
from nmtool.backends.lava.ranges import require, within
from nmtool.fixedpoint import STATE_LIMIT

__all__ = [
    "MAX_DELAY",
    "SIGN_RANGE",
    "LavaBoard",
    "LavaConvProjection",
    "LavaDelta",
    "LavaDrive",
    "LavaJob",
    "LavaPopulation",
    "LavaProbes",
    "LavaProjection",
    "LavaResult",
    "LavaSigma",
    "LavaSigmaDelta",
    "LavaSparseProjection",
    "Overflow",
    "Population",
    "Projection",
    "check_payloads",
    "check_weights",
]

Overflow = Literal["chip", "lava"]


@dataclass(frozen=True)
class LavaProbes:
    """Which populations' spikes, current (u) and voltage (v, after the reset) come back."""

    spikes: tuple[str, ...] = ()
    current: tuple[str, ...] = ()
    voltage: tuple[str, ...] = ()


@dataclass(frozen=True)
class LavaDrive:
    """An input connected straight to a population of its size, without synapses or their delay.

    What is sent at step t acts at step t. kind "graded": the value arrives as the sum of synapses
    would (``u += value << 6``; a Delta's value to encode). kind "bias", LIF only: the value is
    added to this step's bias mantissa (``v += (bias_mantissa + value) << bias_exponent``).
    """

    input: str
    population: str
    kind: Literal["graded", "bias"] = "graded"


@dataclass(frozen=True)
class LavaBoard:
    """The board that a job runs on: a SLURM partition or node, or the address of a host.

    measure: of "power" and "time"; python_models: the processes of the chip that may have a Python
    model, "*" for all of them.
    """

    partition: str | None = None
    node: str | None = None
    host: str | None = None
    host_binary: str = ""
    loihi_gen: str = "N3B3"
    measure: tuple[str, ...] = ()
    python_models: tuple[str, ...] = ()

    def permits(self, name: str) -> bool:
        """Whether a process of the chip may have a Python model."""
        return "*" in self.python_models or name in self.python_models


@dataclass(frozen=True, eq=False)
class LavaJob:
    """A network and the samples to run through it.

    inputs maps each input to its raster (samples, n, n_steps); every input has the same number of
    samples. A raster of bool or unsigned integers holds spikes, 0 or 1; one of signed integers
    holds graded spikes, payloads of 32 bits with 0 for none, by which weights are multiplied. So
    are the messages of the sigma-delta populations.

    Between the samples lie ``hold`` steps in which every population is kept at zero, sends nothing
    and receives what is still on its way; None means the longest delay plus one, the shortest hold
    that leaves nothing in flight.

    current_overflow: "chip" keeps u modulo 2^24 in (-2^23, 2^23] whatever is added to it; "lava"
    is Lava's own code, which folds once and adds in 32 bits.

    board: where it runs, None for Lava's CPU simulation. On a board hold steps are silent, and
    nothing is held: what keeps samples apart there are the resets of the populations, whose steps
    count from the first step of the run.
    """

    inputs: Mapping[str, NDArray[Any]]
    populations: Mapping[str, Population]
    projections: tuple[Projection, ...]
    n_steps: int
    hold: int | None = None
    probes: LavaProbes = field(default_factory=LavaProbes)
    samples: int | None = None
    drives: tuple[LavaDrive, ...] = ()
    current_overflow: Overflow = "chip"
    board: LavaBoard | None = None

    @classmethod
    def network(
        cls,
        input_sizes: Mapping[str, int],
        populations: Mapping[str, Population],
        projections: Iterable[Projection],
        probes: LavaProbes,
        *,
        graded: Iterable[str] = (),
        drives: Iterable[LavaDrive] = (),
        current_overflow: Overflow = "chip",
    ) -> LavaJob:
        """Make a job without input, to be streamed into; input_sizes: name -> number of lines.

        graded names the inputs whose spikes have payloads.
        """
        payloads = set(graded)
        unknown = payloads - set(input_sizes)
        require(not unknown, f"{sorted(unknown)} are graded, but no inputs")
        empty = {
            name: np.zeros((0, n, 0), np.int32 if name in payloads else np.uint8)
            for name, n in input_sizes.items()
        }
        return cls(
            empty,
            populations,
            tuple(projections),
            0,
            None,
            probes,
            drives=tuple(drives),
            current_overflow=current_overflow,
        )

    def __post_init__(self) -> None:
        require(bool(self.populations), "a job needs at least one population")
        both = set(self.inputs) & set(self.populations)
        require(not both, f"{sorted(both)} name both an input and a population")
        overflow = self.current_overflow
        require(overflow in ("chip", "lava"), f"unknown current_overflow {overflow!r}")
        self._check_inputs()
        for number, projection in enumerate(self.projections):
            self._check_projection(number, projection)
        names = self.projection_names
        require(len(set(names)) == len(names), f"projection names repeat: {names}")
        require(len(set(self.drives)) == len(self.drives), f"drives repeat: {self.drives}")
        for drive in self.drives:
            self._check_drive(drive)
        self._check_probes()
        least = self.longest_delay + 1
        require(self.hold is None or self.hold >= least, f"hold {self.hold} is below {least}")

    def _check_inputs(self) -> None:
        counts = set() if self.samples is None else {self.samples}
        for name, raster in self.inputs.items():
            require(raster.ndim == 3, f"input {name!r} must be (samples, n, n_steps)")
            require(raster.dtype.kind in "bui", f"input {name!r} must be integer or bool")
            if self.is_graded(name):
                check_payloads(f"input {name!r}", raster)
            steps = raster.shape[2]
            require(steps == self.n_steps, f"input {name!r} has {steps} steps, not {self.n_steps}")
            counts.add(raster.shape[0])
        require(len(counts) <= 1, f"the inputs differ in samples: {sorted(counts)}")
        object.__setattr__(self, "samples", counts.pop() if counts else 1)

    def _check_projection(self, number: int, projection: Projection) -> None:
        where = f"projection {self.projection_names[number]!r}"
        require(projection.target in self.populations, f"{where}: unknown target")
        if projection.source in self.inputs:
            n_in = self.inputs[projection.source].shape[1]
        else:
            require(projection.source in self.populations, f"{where}: unknown source")
            n_in = self.populations[projection.source].n
        shape = (self.populations[projection.target].n, n_in)
        found = projection.shape
        require(found == shape, f"{where}: weights are {found}, expected {shape}")

    def _check_drive(self, drive: LavaDrive) -> None:
        where = f"drive {drive.input}->{drive.population}"
        require(drive.input in self.inputs, f"{where}: unknown input")
        require(drive.population in self.populations, f"{where}: unknown population")
        population, lines = self.populations[drive.population], self.inputs[drive.input].shape[1]
        require(lines == population.n, f"{where}: {lines} lines for {population.n} neurons")
        require(drive.kind in ("graded", "bias"), f"{where}: unknown kind {drive.kind!r}")
        has_bias = drive.kind != "bias" or isinstance(population, LavaPopulation)
        require(has_bias, f"{where}: only LIF neurons take a bias")

    def _check_probes(self) -> None:
        for kind in ("spikes", "current", "voltage"):
            asked = set(getattr(self.probes, kind))
            unknown = asked - set(self.populations)
            require(not unknown, f"{kind} asked of {sorted(unknown)}: no such population")
            without = [name for name in asked if kind not in self.populations[name].records]
            require(not without, f"{kind} asked of {sorted(without)}, which have none")

    def is_graded(self, name: str) -> bool:
        """Whether an input or a population sends payloads and not just spikes."""
        if name in self.inputs:
            return self.inputs[name].dtype.kind == "i"
        return self.populations[name].graded

    def raster_type(self, name: str) -> type[np.int32] | type[np.uint8]:
        """The type in which an input's values travel."""
        return np.int32 if self.is_graded(name) else np.uint8

    @property
    def projection_names(self) -> tuple[str, ...]:
        """The name of each projection: its own, else source->target, counted where that repeats."""
        names: list[str] = []
        for projection in self.projections:
            base = projection.name or f"{projection.source}->{projection.target}"
            name, count = base, 1
            while name in names and not projection.name:
                count += 1
                name = f"{base}#{count}"
            names.append(name)
        return tuple(names)

    @property
    def longest_delay(self) -> int:
        """The longest delay of any projection, in steps."""
        return max((p.longest_delay for p in self.projections), default=0)

    @property
    def period(self) -> int:
        """Lava steps from one sample's step 0 to the next one's."""
        return self.n_steps + (self.longest_delay + 1 if self.hold is None else self.hold)

    def check(self) -> None:
        """Raise UnsupportedError where a number leaves the chip's range.

        Lava's CPU models check almost none of them and compute something no chip would.
        """
        for name, population in self.populations.items():
            population.check(f"population {name!r}")
        for name, projection in zip(self.projection_names, self.projections, strict=True):
            projection.check(f"projection {name!r}")
        for name, raster in self.inputs.items():
            low, high = (-STATE_LIMIT, STATE_LIMIT - 1) if self.is_graded(name) else (0, 1)
            within(f"input {name!r}", "values", raster, low, high)


@dataclass(frozen=True, eq=False)
class LavaResult:
    """What came back. Arrays are (samples, n, n_steps), or (n, steps) for a piece of a stream.

    spikes is bool, or int32 messages where a population is graded; current (sigma of the
    sigma-delta family) and voltage (act) are int32; a LIF's voltage is after the step's reset.
    steps counts all Lava steps, holds included. models maps each Lava process to the class name of
    the model chosen, resources to what it runs on (boards only); measured is what a board's
    profiler gave.
    """

    spikes: dict[str, NDArray[Any]]
    current: dict[str, NDArray[np.int32]]
    voltage: dict[str, NDArray[np.int32]]
    steps: int
    build_seconds: float
    run_seconds: float
    versions: dict[str, str]
    models: dict[str, str]
    resources: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


def check_payloads(owner: str, raster: NDArray[Any]) -> None:
    """Raise ValueError if graded spikes do not fit into 32 bits."""
    if raster.size and raster.dtype != np.int32:
        fits = raster.min() >= -(1 << 31) and raster.max() < 1 << 31
        require(bool(fits), f"{owner} holds values that do not fit into 32 bits")
