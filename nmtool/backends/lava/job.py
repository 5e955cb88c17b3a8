"""What a Lava simulation is told and what it gives back: plain numpy, no Lava.

Units and timing are the chip's. ``current`` (u) and ``voltage`` (v) are 24-bit integers; the
threshold is compared as ``threshold << 6``; synaptic input enters u as ``sum << 6``. Input column
t of a sample is sent at step t, and a population at step t adds the spikes sent at t-1-delay.
Column t of a result is step t, so a population at t = 0 has received nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmtool.errors import UnsupportedError

SIGN_RANGE = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}
MAX_DELAY = 62


@dataclass(frozen=True, eq=False)
class LavaPopulation:
    """A population of n LIF neurons with one setting.

    decay_u is Lava's ``du`` (the chip applies decay_u + 1) and decay_v its ``dv``, both of 4096;
    threshold is the mantissa ``vth``; the bias is ``bias_mantissa << bias_exponent``, shape (n,).
    """

    n: int
    decay_u: int
    decay_v: int
    threshold: int
    bias_mantissa: NDArray[Any] | None = None
    bias_exponent: int = 0

    def __post_init__(self) -> None:
        _require(self.n >= 1, f"a population needs at least one neuron, got n={self.n}")
        bias = self.bias_mantissa
        if bias is not None:
            _require(bias.shape == (self.n,), f"bias_mantissa {bias.shape} is not ({self.n},)")
            _require(bias.dtype.kind in "iu", f"bias_mantissa must be integer, not {bias.dtype}")

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks none)."""
        bias = np.zeros(1, np.int64) if self.bias_mantissa is None else self.bias_mantissa
        _within(name, "decay_u", [self.decay_u], 0, 4095)
        _within(name, "decay_v", [self.decay_v], 0, 4096)
        _within(name, "threshold", [self.threshold], 0, 131071)
        _within(name, "bias_mantissa", bias, -4096, 4095)
        _within(name, "bias_exponent", [self.bias_exponent], 0, 7)


@dataclass(frozen=True, eq=False)
class LavaProjection:
    """Dense synapses from an input or a population to a population.

    weight_mantissa is (out, in) as Lava takes it, before its own truncation to weight_bits (and to
    even values where sign_mode is "mixed"); the sum of a step is shifted by weight_exponent. delay
    is a whole number of steps, one for all or (out, in), on top of the one step a spike takes
    anyway. An empty name becomes ``source->target`` in the job.
    """

    source: str
    target: str
    weight_mantissa: NDArray[Any]
    weight_exponent: int = 0
    weight_bits: int = 8
    sign_mode: str = "mixed"
    delay: int | NDArray[Any] = 0
    name: str = ""

    def __post_init__(self) -> None:
        where, weights = f"projection {self.source}->{self.target}", self.weight_mantissa
        _require(weights.ndim == 2, f"{where}: weight_mantissa must be (out, in)")
        _require(weights.dtype.kind in "iu", f"{where}: weights must be integer")
        _require(self.sign_mode in SIGN_RANGE, f"{where}: unknown sign_mode {self.sign_mode!r}")
        if isinstance(self.delay, np.ndarray):
            _require(self.delay.shape == weights.shape, f"{where}: delay is not (out, in)")
            _require(self.delay.dtype.kind in "iu", f"{where}: delays must be integer")

    @property
    def longest_delay(self) -> int:
        """The longest delay in steps."""
        if isinstance(self.delay, np.ndarray):
            return int(self.delay.max(initial=0))
        return int(self.delay)

    def check(self, name: str) -> None:
        """Raise UnsupportedError where a value leaves the chip's range (Lava checks few)."""
        check_weights(name, self.weight_mantissa, self.sign_mode)
        _within(name, "weight_exponent", [self.weight_exponent], -8, 7)
        _within(name, "weight_bits", [self.weight_bits], 1, 8)
        delays = self.delay if isinstance(self.delay, np.ndarray) else [self.delay]
        _within(name, "delay", delays, 0, MAX_DELAY)


@dataclass(frozen=True)
class LavaProbes:
    """Which populations' spikes, current (u) and voltage (v, after the reset) come back."""

    spikes: tuple[str, ...] = ()
    current: tuple[str, ...] = ()
    voltage: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LavaJob:
    """A network and the samples to run through it.

    inputs maps each input to its raster, 0 or 1, (samples, n, n_steps); every input has the same
    number of samples. Between the samples lie ``hold`` steps in which every population is kept at
    u = v = 0, sends nothing and receives what is still on its way; None means the longest delay
    plus one, the shortest hold that leaves nothing in flight.
    """

    inputs: Mapping[str, NDArray[Any]]
    populations: Mapping[str, LavaPopulation]
    projections: tuple[LavaProjection, ...]
    n_steps: int
    hold: int | None = None
    probes: LavaProbes = field(default_factory=LavaProbes)
    samples: int | None = None

    @classmethod
    def network(
        cls,
        input_sizes: Mapping[str, int],
        populations: Mapping[str, LavaPopulation],
        projections: Iterable[LavaProjection],
        probes: LavaProbes,
    ) -> LavaJob:
        """Make a job without input, to be streamed into; input_sizes: name -> number of lines."""
        empty = {name: np.zeros((0, n, 0), np.uint8) for name, n in input_sizes.items()}
        return cls(empty, populations, tuple(projections), 0, None, probes)

    def __post_init__(self) -> None:
        _require(bool(self.populations), "a job needs at least one population")
        both = set(self.inputs) & set(self.populations)
        _require(not both, f"{sorted(both)} name both an input and a population")
        self._check_inputs()
        for number, projection in enumerate(self.projections):
            self._check_projection(number, projection)
        names = self.projection_names
        _require(len(set(names)) == len(names), f"projection names repeat: {names}")
        for kind in ("spikes", "current", "voltage"):
            unknown = set(getattr(self.probes, kind)) - set(self.populations)
            _require(not unknown, f"{kind} asked of {sorted(unknown)}: no such population")
        least = self.longest_delay + 1
        _require(self.hold is None or self.hold >= least, f"hold {self.hold} is below {least}")

    def _check_inputs(self) -> None:
        counts = set() if self.samples is None else {self.samples}
        for name, raster in self.inputs.items():
            _require(raster.ndim == 3, f"input {name!r} must be (samples, n, n_steps)")
            _require(raster.dtype.kind in "bu", f"input {name!r} must be uint8 or bool")
            steps = raster.shape[2]
            _require(steps == self.n_steps, f"input {name!r} has {steps} steps, not {self.n_steps}")
            counts.add(raster.shape[0])
        _require(len(counts) <= 1, f"the inputs differ in samples: {sorted(counts)}")
        object.__setattr__(self, "samples", counts.pop() if counts else 1)

    def _check_projection(self, number: int, projection: LavaProjection) -> None:
        where = f"projection {self.projection_names[number]!r}"
        _require(projection.target in self.populations, f"{where}: unknown target")
        if projection.source in self.inputs:
            n_in = self.inputs[projection.source].shape[1]
        else:
            _require(projection.source in self.populations, f"{where}: unknown source")
            n_in = self.populations[projection.source].n
        shape = (self.populations[projection.target].n, n_in)
        found = projection.weight_mantissa.shape
        _require(found == shape, f"{where}: weights are {found}, expected {shape}")

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
            _within(f"input {name!r}", "values", raster, 0, 1)


@dataclass(frozen=True, eq=False)
class LavaResult:
    """What came back. Arrays are (samples, n, n_steps), or (n, steps) for a piece of a stream.

    spikes is bool, current and voltage int32; voltage is after the step's reset. steps counts all
    Lava steps, holds included. models maps each Lava process to the class name of the model chosen.
    """

    spikes: dict[str, NDArray[np.bool_]]
    current: dict[str, NDArray[np.int32]]
    voltage: dict[str, NDArray[np.int32]]
    steps: int
    build_seconds: float
    run_seconds: float
    versions: dict[str, str]
    models: dict[str, str]


def check_weights(name: str, weights: NDArray[Any], sign_mode: str) -> None:
    """Raise UnsupportedError if a weight mantissa leaves the range of its sign mode."""
    _within(name, f"weight_mantissa ({sign_mode})", weights, *SIGN_RANGE[sign_mode])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _within(owner: str, what: str, values: Any, low: int, high: int) -> None:
    array = np.asarray(values)
    if array.size == 0:
        return
    least, most = array.min(), array.max()
    if least < low or most > high:
        worst = least if least < low else most
        raise UnsupportedError(f"{owner}: {what} {worst} is outside of {low}..{high}")
