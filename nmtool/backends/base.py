"""Backend, Session and Recording: what every target offers, and what comes back from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from nmtool.compiler import Program
from nmtool.compiler.features import Feature, features
from nmtool.errors import ConfigError, UnsupportedError, UsageError
from nmtool.fixedpoint import BIAS_MANTISSA, STATE_LIMIT, IntArray
from nmtool.quantization import QuantizedNetwork
from nmtool.spikes import SpikeTrain

Quantity = Literal["spikes", "current", "voltage"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Probe: TypeAlias = Mapping[Quantity, tuple[str, ...]]
"""What is recorded: for each quantity the names of the populations."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (steps done, steps in all) while something runs."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run gave back, by population. What was not probed is absent.

    ``spikes`` are SpikeTrains; ``current`` and ``voltage`` are int arrays of shape
    ([samples,] neurons, steps) in the chip's units, taken after the step. The voltage is the one
    after the reset, so it is 0 where a neuron spiked. Of sigma-delta neurons the current is sigma
    and the voltage the activation; a delta encoder has no current, a sigma decoder no voltage.
    ``n_steps`` are the steps recorded of each sample. A recording that ends early has fewer than
    were run, in trains and states as well: what was not measured is not silent.
    """

    spikes: Mapping[str, SpikeTrain]
    current: Mapping[str, IntArray]
    voltage: Mapping[str, IntArray]
    backend: str
    fingerprint: str
    n_steps: int
    wall_time: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        recorded = [
            f"{quantity} of {', '.join(getattr(self, quantity))}"
            for quantity in QUANTITIES
            if getattr(self, quantity)
        ]
        program = f"program {self.fingerprint}" if self.fingerprint else "no program"
        parts = (self.backend, program, f"{self.n_steps} steps", *recorded)
        return f"Recording({'; '.join(parts)})"


M = TypeVar("M", bound="ManagedSession")


class ManagedSession:
    """What sessions have in common: a session adds how checked input runs, and weights are stored.

    Leaving the context closes the session; a closed session runs nothing more.
    """

    program: Program
    _closed = False

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples, each from reset."""
        self._check_open()
        batch = input_batch(self.program, spikes, n_steps)
        return self._run(batch, resolve_probe(self.program, probe), progress)

    def stream(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        probe: str | Probe | None = None,
        n_steps: int | None = None,
    ) -> Recording:
        """Run the next steps of one stream; the state is kept between calls."""
        self._check_open()
        batch = input_batch(self.program, spikes, n_steps)
        return self._go_on(batch, resolve_probe(self.program, probe))

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights within the frozen format; returns how many of them changed."""
        return self.write_all({projection: mantissa})

    def write_all(self, mantissas: Mapping[str, IntArray]) -> int:
        """Write the weights of several projections; returns how many of them changed."""
        self._check_open()
        self.program, changed = changed_weights(self.program, mantissas)
        for projection in changed:
            self._store(projection)
        return sum(changed.values())

    def reset(self) -> None:
        """Clear all states and the spikes in flight of the stream."""
        raise NotImplementedError

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        """Run samples, each from reset."""
        raise NotImplementedError

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        """Run the next steps of the stream."""
        raise NotImplementedError

    def _store(self, projection: str) -> None:
        """Put the weights of a projection of the program into memory."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the target back; safe to call twice."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("session: found a closed one; open the program again")

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Session(Protocol):
    """A program loaded on a target. A context manager that gives the target back at the end."""

    program: Program

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples, each from reset; their order never changes a result.

        A stream that is open goes on afterwards; lava-sim refuses a run in the middle of one.
        """
        ...

    def stream(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        probe: str | Probe | None = None,
        n_steps: int | None = None,
    ) -> Recording:
        """Run the next steps of one stream; the state is kept between calls.

        lava-sim holds one network at a time: there a stream has one sample, records no more than
        the probe of its first call asked for, and is to be ended by ``reset`` before ``run``.

        Raises:
            UnsupportedError: what lava-sim refuses.
        """
        ...

    def write_weights(self, projection: str, mantissa: IntArray) -> int:
        """Write weights within the frozen format; returns how many of them changed.

        In a stream they act on the spikes sent from the next step on.
        """
        ...

    def reset(self) -> None:
        """Clear all states and the spikes in flight of the stream."""
        ...

    def close(self) -> None:
        """Give the target back; safe to call twice."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Backend(Protocol):
    """A kind of target."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def limits(self) -> Mapping[Feature, str]:
        """What of a network the backend cannot do, each with the reason."""
        ...

    def open(self, program: Program) -> Session:
        """Load a program.

        Raises:
            UnsupportedError: the program holds something that the backend cannot do.
        """
        ...


def refuse_unsupported(name: str, limits: Mapping[Feature, str], program: Program) -> None:
    """Raise the reasons why a backend of that name and with these limits cannot run a program.

    Raises:
        UnsupportedError: one line a reason.
    """
    reasons = [
        f"{name}: {', '.join(users)}: found {feature}, which it cannot run: {limits[feature]}"
        for feature, users in features(program).items()
        if feature in limits
    ]
    if "values beyond the chip's registers" in limits:
        reasons += [f"{name}: {line}" for line in program.simulators_only]
    if reasons:
        raise UnsupportedError("\n".join(reasons))


STATES: Mapping[str, tuple[Quantity, ...]] = {
    "cuba": ("current", "voltage"),
    "sigma_delta": ("current", "voltage"),
    "delta": ("voltage",),
    "sigma": ("current",),
}
"""The states that neurons of each model have."""


def resolve_probe(program: Program, probe: str | Probe | None) -> dict[Quantity, tuple[str, ...]]:
    """The populations to record, from ``"spikes,voltage:hidden"`` or a mapping.

    A quantity without a population means all of them; ``None`` means the outputs' spikes.

    Raises:
        ConfigError: an unknown quantity or population, or a text that names none.
    """
    if probe is None:
        return {"spikes": program.network.outputs}
    if not isinstance(probe, str):
        return {_quantity(q, q): _known(program, q, tuple(names)) for q, names in probe.items()}
    result: dict[Quantity, tuple[str, ...]] = {}
    items = [part.strip() for part in probe.split(",") if part.strip()]
    if not items:
        raise ConfigError(
            f"probe: found {probe!r}, allowed {', '.join(QUANTITIES)} or voltage:NAME"
        )
    for item in items:
        word, _, name = item.partition(":")
        quantity = _quantity(item, word)
        names = (name,) if name else _with_state(program, quantity)
        result[quantity] = tuple(dict.fromkeys((*result.get(quantity, ()), *names)))
    return {quantity: _known(program, quantity, names) for quantity, names in result.items()}


def _with_state(program: Program, quantity: Quantity) -> tuple[str, ...]:
    """All populations whose neurons have a quantity."""
    populations = program.network.populations
    return tuple(
        name
        for name in program.order
        if quantity == "spikes" or quantity in STATES[populations[name].model]
    )


def _quantity(item: str, word: str) -> Quantity:
    for quantity in QUANTITIES:
        if quantity == word:
            return quantity
    raise ConfigError(f"probe {item}: found {word!r}, allowed {', '.join(QUANTITIES)}")


def _known(program: Program, quantity: str, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in program.network.populations:
            allowed = ", ".join(program.order)
            raise ConfigError(f"probe: found the population {name!r}, allowed {allowed}")
        model = program.network.populations[name].model
        if quantity != "spikes" and quantity not in STATES[model]:
            raise ConfigError(
                f"probe: found {quantity}:{name}, allowed {', '.join(STATES[model])}: a {model} "
                f"neuron has no {quantity}"
            )
    return tuple(names)


@dataclass(frozen=True, eq=False)
class InputBatch:
    """What goes into every input, all of one length; checked against a program."""

    trains: Mapping[str, SpikeTrain]
    n_samples: int
    n_steps: int
    batched: bool

    @cached_property
    def rasters(self) -> dict[str, npt.NDArray[Any]]:
        """Dense, shape (samples, lines, steps): bool, or int64 for graded values."""
        return {name: train.batch() for name, train in self.trains.items()}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of names, sizes, spikes and values, in the order of the names."""
        digest = hashlib.sha256(f"{self.n_samples} {self.n_steps}".encode())
        for name, train in sorted(self.trains.items()):
            digest.update(f"\0{name}\0{train.n_neurons} {len(train)}\0".encode())
            for array, kind in ((train.offset, "<i8"), (train.neuron, "<i4")):
                digest.update(array.astype(kind, copy=False).tobytes())
            if train.payload is not None:
                digest.update(train.payload.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()


def input_batch(
    program: Program, spikes: SpikeTrain | Mapping[str, SpikeTrain], n_steps: int | None = None
) -> InputBatch:
    """Check what goes into a program and extend it to ``n_steps`` steps.

    A network without inputs takes ``{}`` and needs ``n_steps``.

    Raises:
        ConfigError: a missing or unknown input, another number of neurons or of samples, values
            that the input does not take.
    """
    inputs = program.network.inputs
    if isinstance(spikes, SpikeTrain):
        if len(inputs) != 1:
            raise ConfigError(f"input: found one spike train, allowed one for each of {[*inputs]}")
        spikes = {next(iter(inputs)): spikes}
    if not isinstance(spikes, Mapping):
        raise ConfigError(
            f"input: found a {type(spikes).__name__}, allowed a SpikeTrain (from_raster makes one) "
            "or one for each input by name"
        )
    if set(spikes) != set(inputs):
        raise ConfigError(f"input: found spikes for {[*spikes]}, allowed {[*inputs]}")
    first = next(iter(spikes.values()), None)
    own = 0 if first is None else first.n_steps
    steps = own if n_steps is None else n_steps
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ConfigError(f"input: found {steps} steps, allowed whole numbers from 1")
    steps = int(steps)
    samples, batched = (1, False) if first is None else (first.n_samples, first.batched)
    trains = {}
    for name, train in spikes.items():
        if (train.n_samples, train.batched) != (samples, batched):
            raise ConfigError(
                f"input {name}: found {_samples(train.n_samples, train.batched)}, "
                f"allowed {_samples(samples, batched)} as in the other inputs"
            )
        trains[name] = _checked(program.network, name, train, steps)
    return InputBatch(trains, samples, steps, batched)


def _samples(n_samples: int, batched: bool) -> str:
    count = f"{n_samples} sample" + ("" if n_samples == 1 else "s")
    return count if batched else f"{count} without a sample axis"


def _checked(network: QuantizedNetwork, name: str, train: SpikeTrain, steps: int) -> SpikeTrain:
    """A train as its input takes it, ``steps`` long."""
    source = network.inputs[name]
    if train.n_neurons != source.size:
        flat = "x".join(map(str, source.shape))
        order = f" ({flat}, flattened in C order)" if len(source.shape) > 1 else ""
        raise ConfigError(
            f"input {name}: found {train.n_neurons} neurons, allowed {source.size}{order}"
        )
    if train.n_steps > steps and len(train) and (last := int(train.step.max())) >= steps:
        raise ConfigError(
            f"input {name}: found a spike at step {last}, "
            f"allowed 0 to {steps - 1}; run at least {last + 1} steps"
        )
    if train.payload is not None and not source.graded:
        raise ConfigError(f"input {name}: found graded values, allowed spikes")
    if train.payload is not None and np.any(np.abs(train.payload) >= STATE_LIMIT):
        raise ConfigError(
            f"input {name}: found values of {train.payload.min()} to {train.payload.max()}, "
            f"allowed up to +-{STATE_LIMIT - 1}: messages have 24 bits"
        )
    fit = train.with_steps(steps)
    if source.graded and fit.payload is None:
        fit = replace(fit, payload=np.ones(fit.neuron.shape, dtype=np.int32))
    if source.kind == "bias" and source.drives and fit.payload is not None and len(fit):
        low, high = BIAS_MANTISSA
        bias, payload = network.populations[source.drives].bias_mantissa, fit.payload
        if bias.min() + payload.min() >= low and bias.max() + payload.max() <= high:
            return fit
        mantissa = bias[fit.neuron] + payload
        if mantissa.min() < low or mantissa.max() > high:
            raise ConfigError(
                f"input {name}: found values that make bias mantissas of {mantissa.min()} to "
                f"{mantissa.max()} in {source.drives}, allowed {low} to {high}"
            )
    return fit


def unbatch(array: Any, batched: bool) -> Any:
    """Drop the sample axis again where the input had none."""
    return array if batched else array[0]


def changed_weights(
    program: Program, mantissas: Mapping[str, IntArray]
) -> tuple[Program, dict[str, int]]:
    """A program with new weights, and how many of them changed, of projections where any did.

    Raises:
        ConfigError: no such projection, or weights of another shape.
        FitError: a weight that the frozen format cannot hold.
    """
    before = program.network.projections
    for projection in mantissas:
        if projection not in before:
            allowed = ", ".join(before)
            raise ConfigError(f"write_weights: found {projection!r}, allowed {allowed}")
    updated = program.with_weights({name: np.asarray(m) for name, m in mantissas.items()})
    after = updated.network.projections
    changed = {
        name: int(np.count_nonzero(before[name].weight_mantissa != after[name].weight_mantissa))
        for name in mantissas
    }
    return updated, {name: count for name, count in changed.items() if count}
