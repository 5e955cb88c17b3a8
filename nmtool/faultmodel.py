"""The fault model's config: random defects drawn from a seed, and single faults by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from nmtool.yamlio import Fraction, Strict


def _not_zero(value: int) -> int:
    if not value:
        raise ValueError("a whole number other than 0")
    return value


_MOST = (1 << 31) - 1
Counter = Annotated[int, Field(ge=0, lt=1 << 62)]
Index = Annotated[int, Field(ge=0, le=_MOST)]
Steps = Annotated[int, Field(ge=1, le=_MOST)]
Change = Annotated[int, Field(ge=-_MOST, le=_MOST), AfterValidator(_not_zero)]
Place = Annotated[tuple[Index, ...], Field(strict=False)]
"""An index into the ``weight_mantissa`` array of a projection."""


def _is_core(value: object) -> bool:
    pair = list(value) if isinstance(value, list | tuple) else [value, 0]
    return len(pair) == 2 and all(type(n) is int and 0 <= n <= _MOST for n in pair)


def _core(value: object) -> object:
    if not _is_core(value):
        raise ValueError("the number of a core, or [chip, core]")
    return value


def _cores(value: object) -> object:
    if not all(map(_is_core, value if isinstance(value, list | tuple) else [value])):
        raise ValueError("how many cores, or a list of cores, each its number or [chip, core]")
    return value


ChipCore = Annotated[tuple[Index, Index], Field(strict=False)]
CoreName = Annotated[Index | ChipCore, BeforeValidator(_core)]
"""A core: its number, counted through all chips, or [chip, core]."""

Cores = Annotated[
    Index | Annotated[tuple[CoreName, ...], Field(strict=False)], BeforeValidator(_cores)
]
"""Cores by name, or how many."""


class FaultyNeuron(Strict):
    """A neuron that never spikes (``dead``) or spikes at every step (``stuck``)."""

    kind: Literal["dead", "stuck"]
    population: str
    neuron: Index


class DeadCore(Strict):
    """A core whose neurons never spike, whatever else is wrong with them."""

    kind: Literal["dead_core"]
    core: CoreName


class FaultyRegister(Strict):
    """A register that holds ``by`` more: of one neuron, or of a whole population.

    ``threshold`` counts in mantissas (64 units of v); the decays are ``decay_u`` and ``decay_v``.
    """

    kind: Literal["threshold", "decay_u", "decay_v"]
    population: str
    neuron: Index | None = None
    by: Change


class WeightBit(Strict):
    """A stored bit of one weight (bit 0 the lowest) that reads back inverted."""

    kind: Literal["weight_bit"]
    projection: str
    weight: Place
    bit: Index


class StaleWrite(Strict):
    """Weights, one or all of a projection, that stay as they were when the session was opened."""

    kind: Literal["stale_write"]
    projection: str
    weight: Place | None = None


class LateProjection(Strict):
    """A projection through which all spikes arrive ``by`` steps later."""

    kind: Literal["delay"]
    projection: str
    by: Steps


class Offset(Strict):
    """Spikes of all inputs that arrive ``by`` steps late, or recordings that are ``by`` steps late.

    What a late recording (``output_offset``) shows in its first steps is silence, spikes and states
    alike; the last steps of a sample fall off its end.
    """

    kind: Literal["input_offset", "output_offset"]
    by: Steps


class MissingReset(Strict):
    """A population whose periodic reset does not happen.

    Without a periodic reset it is the one between the samples of a run: sample k + 1 begins with
    the u, v and refractory count, and with the spikes in flight to the population, that sample k
    left, as in one long run without the hold between samples.
    """

    kind: Literal["missing_reset"]
    population: str


class ResetPhase(Strict):
    """A periodic reset that happens ``by`` steps later."""

    kind: Literal["reset_phase"]
    population: str
    by: Steps


class Swapped(Strict):
    """Two neurons whose output lines are exchanged: spikes, and the states as probed."""

    kind: Literal["swapped"]
    population: str
    neurons: Annotated[tuple[Index, ...], Field(strict=False, min_length=2, max_length=2)]


class SpikeFault(Strict):
    """One spike that reaches neither targets nor probe, or reaches them one step later.

    A late one merges with a spike that is there already; one of the last step never arrives. If
    the neuron does not spike there, nothing happens. Its v is reset all the same.
    """

    kind: Literal["lost_spike", "late_spike"]
    population: str
    neuron: Index
    sample: Index
    step: Index


class Truncated(Strict):
    """A recording that ends after ``steps`` steps of each sample."""

    kind: Literal["truncated"]
    steps: Steps


Injected = Annotated[
    FaultyNeuron
    | DeadCore
    | FaultyRegister
    | WeightBit
    | StaleWrite
    | LateProjection
    | Offset
    | MissingReset
    | ResetPhase
    | Swapped
    | SpikeFault
    | Truncated,
    Field(discriminator="kind"),
]
"""One named fault."""


class Faults(Strict):
    """Invented defects of a simulator: random ones, all drawn from ``seed``, and ``injected`` ones.

    ``dead_neurons`` never spike and ``stuck_neurons`` spike at every step: fractions of each
    population, rounded to whole neurons, drawn without replacement. ``weight_bit_flips`` and
    ``threshold_bit_flips``: the fraction of the stored bits of weights and thresholds that read
    back inverted, whatever is written. ``stale_writes``: the fraction of the weights on which
    ``write_weights`` has no effect. ``dead_cores``: the cores whose neurons never spike, by number
    or as [chip, core]; or a number, so many of those that a program is placed on. ``spike_loss``:
    the probability that a spike of an input or a neuron reaches neither its targets nor the probe;
    ``late_spikes``: that one of the others reaches them a step later, merged with one that is
    there; one of the last step never arrives. Both are drawn anew in every run, and ``first_run``
    says where that sequence begins.

    ``threshold_spread`` is no defect of a digital chip but analogue mismatch: every threshold is
    multiplied by 1 + threshold_spread z, z standard normal, and held in the range of the register.
    """

    seed: Counter = 0
    dead_neurons: Fraction = 0.0
    stuck_neurons: Fraction = 0.0
    weight_bit_flips: Fraction = 0.0
    threshold_bit_flips: Fraction = 0.0
    stale_writes: Fraction = 0.0
    dead_cores: Cores = 0
    spike_loss: Fraction = 0.0
    late_spikes: Fraction = 0.0
    threshold_spread: Fraction = 0.0
    first_run: Counter = 0
    injected: Annotated[tuple[Injected, ...], Field(strict=False)] = ()

    @property
    def loses(self) -> bool:
        """Whether spikes are lost or late by chance."""
        return bool(self.spike_loss or self.late_spikes)

    @property
    def label(self) -> str:
        """What a simulator with these faults is."""
        if self.threshold_spread:
            return "simulator with invented defects and analogue mismatch, not a chip"
        return "simulator with invented defects, not a chip"
