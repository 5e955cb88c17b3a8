r"""Cost: the operations of a recording, counted; energy and time from them, modelled.

:func:`count` counts what a placed program did while it was recorded: synaptic operations of every
projection, neuron updates and messages of every population, all of them for each core and step.
:func:`estimate` prices the counts with a cost model of the chip's file, such as ``sana-fe`` of
Loihi 1:

.. math::
    E = \sum_e n_e\,\epsilon_e, \qquad
    T = \sum_t \Big( \max_c \sum_e n_{e,c,t}\,\tau_e + B \Big)

with n events e in core c at step t, :math:`\epsilon` in pJ and :math:`\tau` in ns an event, and the
barrier B at the end of a step. A step's spikes are messages and synaptic operations of that step,
whatever their delays. docs/cost.md has every definition, and what is not in a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np

from nmtool.backends.base import STATES, Recording, input_batch
from nmtool.chip import ChipSpec, CostEvent, CostModel
from nmtool.compiler import Program
from nmtool.compiler.place import Placement, tile_positions
from nmtool.errors import ArtifactError, ConfigError
from nmtool.fixedpoint import BoolArray, FloatArray, IntArray
from nmtool.measure.fanout import FanOut, SynapseKind, fan_out
from nmtool.measure.quantity import Quantity
from nmtool.operations import Conv, Dense, Operation, Sparse, weighted
from nmtool.spikes import SpikeTrain

EVENTS: tuple[CostEvent, ...] = get_args(CostEvent)
NEURON_EVENTS: tuple[CostEvent, ...] = ("neuron_inactive", "neuron_active", "spike", "message_out")
"""What a core does for its own neurons; synapses and ``message_in`` are for those of others."""

UPDATES: tuple[CostEvent, ...] = ("neuron_inactive", "neuron_active")
HOPS: tuple[CostEvent, ...] = ("hop_x", "hop_y")
_SYNAPSE: Mapping[SynapseKind, CostEvent] = {
    "dense": "synapse_dense",
    "sparse": "synapse_sparse",
    "convolution": "synapse_convolution",
}


@dataclass(frozen=True)
class ProjectionCount:
    """Operations of one projection, over all samples and steps.

    ``spikes``: spikes or graded messages of the source. ``operations``: those times the stored
    synapses that each reaches, zero weights included. ``effective``: those times the synapses whose
    weight is not zero.
    """

    projection: str
    kind: SynapseKind
    spikes: int
    operations: int
    effective: int


@dataclass(frozen=True)
class PopulationCount:
    """Operations of one population, over all samples and steps.

    ``updates``: neurons times steps. ``active``: updates that leave u or v other than 0, or spike;
    None where the states were not recorded. ``messages``: spikes times the slices that each
    reaches. ``hops_x``, ``hops_y``: tiles that the messages cross E-W and N-S on the mesh,
    ``crossings``: chips.
    """

    population: str
    neurons: int
    updates: int
    active: int | None
    spikes: int
    messages: int
    hops_x: int
    hops_y: int
    crossings: int

    @property
    def inactive(self) -> int | None:
        """Updates that leave u and v at 0 and do not spike."""
        return None if self.active is None else self.updates - self.active


@dataclass(frozen=True)
class Peak:
    """The most that one core does of something in one step, and where."""

    count: int
    chip: int
    core: int
    sample: int
    step: int


@dataclass(frozen=True, eq=False)
class Counts:
    """The operations of a recording; ``basis`` of all of them is ``counted``.

    ``cores`` lists the (chip, core) in use, with the ``neurons`` of each; ``load`` holds the events
    of every core and step, shape (samples * steps, cores), no neuron updates of either kind where
    states were not recorded. ``inputs`` are the spikes of each input and the messages they are to
    cores; ``weights`` and ``zero_weights`` those of matrices and kernels.
    """

    chip: str
    samples: int
    steps: int
    cores: tuple[tuple[int, int], ...]
    neurons: IntArray
    tiles: int
    projections: tuple[ProjectionCount, ...]
    populations: tuple[PopulationCount, ...]
    inputs: Mapping[str, tuple[int, int]]
    load: Mapping[CostEvent, IntArray]
    weights: int
    zero_weights: int

    @property
    def chips(self) -> int:
        """The number of chips in use."""
        return len({chip for chip, _ in self.cores})

    @property
    def synaptic_operations(self) -> float:
        """Effective operations per sample, as NeuroBench's SynapticOperations counts them."""
        return sum(p.effective for p in self.projections) / self.samples

    @property
    def activation_sparsity(self) -> float:
        """1 - spikes / updates over all populations, inputs not among them (NeuroBench)."""
        updates = sum(p.updates for p in self.populations)
        return 1 - sum(p.spikes for p in self.populations) / updates if updates else 1.0

    @property
    def connection_sparsity(self) -> float:
        """Zero weights / weights of matrices and kernels (NeuroBench); what a list lacks is 0."""
        return self.zero_weights / self.weights if self.weights else 0.0

    @cached_property
    def totals(self) -> dict[CostEvent, int | None]:
        """Every event over all cores, samples and steps; None where it is not known."""
        known: dict[CostEvent, int | None] = {
            event: int(load.sum()) for event, load in self.load.items()
        }
        known["hop_x"] = sum(p.hops_x for p in self.populations)
        known["hop_y"] = sum(p.hops_y for p in self.populations)
        return {event: known.get(event) for event in EVENTS}

    @cached_property
    def peaks(self) -> dict[str, Peak]:
        """The busiest core and step in each kind of operation."""
        synapses = sum((self.load[event] for event in _SYNAPSE.values()), self.load["spike"] * 0)
        loads = {
            "synaptic_operations": synapses,
            "neuron_updates": np.broadcast_to(self.neurons, synapses.shape),
            **{event: self.load[event] for event in ("message_in", "message_out", "spike")},
        }
        return {name: self._peak(load) for name, load in loads.items() if load.size}

    def _peak(self, load: IntArray) -> Peak:
        place, core = np.unravel_index(int(load.argmax()), load.shape)
        sample, step = divmod(int(place), self.steps)
        return Peak(int(load[place, core]), *self.cores[core], sample, step)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What NeuroBench reports of a network, and the events of a sample."""
        per_sample = {
            event: count / self.samples for event, count in self.totals.items() if count is not None
        }
        return {
            "synaptic_operations": Quantity(self.synaptic_operations, "per sample", "counted"),
            "activation_sparsity": Quantity(self.activation_sparsity, "fraction", "counted"),
            "connection_sparsity": Quantity(self.connection_sparsity, "fraction", "counted"),
            **{e: Quantity(value, "per sample", "counted") for e, value in per_sample.items()},
        }

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "basis": "counted",
            "chip": self.chip,
            "samples": self.samples,
            "steps": self.steps,
            "cores": len(self.cores),
            "tiles": self.tiles,
            "projections": [asdict(p) for p in self.projections],
            "populations": [{**asdict(p), "inactive": p.inactive} for p in self.populations],
            "inputs": {n: {"spikes": s, "messages": m} for n, (s, m) in self.inputs.items()},
            "totals": self.totals,
            "peaks": {name: asdict(peak) for name, peak in self.peaks.items()},
            "quantities": {
                name: {"value": q.value, "unit": q.unit, "basis": q.basis}
                for name, q in self.quantities.items()
            },
        }


def count(
    program: Program,
    recording: Recording,
    inputs: SpikeTrain | Mapping[str, SpikeTrain],
    chip: ChipSpec,
) -> Counts:
    """Count the operations of a recording of all populations.

    ``inputs`` is what was run; steps that were not recorded are not counted.

    Raises:
        ArtifactError: a recording of another program, or a program without a placement.
        ConfigError: the spikes of a population were not recorded, or other inputs were run.
    """
    _check(program, recording)
    board = _Board.of(program, chip)
    sent = _sent(program, recording, inputs)
    net = program.network
    samples, steps = _size(sent)
    load = {
        event: np.zeros((samples * steps, len(board.cores)), dtype=np.int64)
        for event in EVENTS
        if event not in HOPS
    }
    fans = {
        name: fan_out(p, net.shapes, board.owner[p.target], len(board.core_of_slice))
        for name, p in net.projections.items()
    }
    reached = {name: _messages(net.projections, fans, name) for name in sent}
    for name, p in net.projections.items():
        _add(load[_SYNAPSE[fans[name].kind]], sent[p.source], fans[name].stored, board)
    for name, train in sent.items():
        _add(load["message_in"], train, reached[name], board)
    active = {name: _active(program, recording, name) for name in net.populations}
    populations = tuple(
        _population(board, load, name, sent[name], reached[name], active[name])
        for name in program.order
    )
    if any(mask is None for mask in active.values()):
        for event in UPDATES:
            del load[event]
    weights = [_weights(weighted(p.operations)) for p in net.projections.values()]
    return Counts(
        chip.name,
        samples,
        steps,
        board.cores,
        board.neurons,
        len({(c, core // chip.cores_per_tile) for c, core in board.cores}),
        tuple(_projection(name, fans[name], sent[p.source]) for name, p in net.projections.items()),
        populations,
        {name: (len(sent[name]), _weighed(sent[name], reached[name])) for name in net.inputs},
        load,
        sum(number for number, _ in weights),
        sum(zeros for _, zeros in weights),
    )


@dataclass(frozen=True, eq=False)
class _Board:
    """Where the neurons are: ``owner`` is the slice of each, ``core_of_slice`` counts in ``cores``.

    ``tile`` (x, y) and ``chip`` are those of every slice, the chips in a row along x.
    """

    cores: tuple[tuple[int, int], ...]
    core_of_slice: IntArray
    owner: Mapping[str, IntArray]
    tile: IntArray
    chip: IntArray

    @classmethod
    def of(cls, program: Program, chip: ChipSpec) -> _Board:
        placement: Placement = program.placement
        cores = tuple(sorted({(s.chip, s.core) for s in placement}))
        shapes = program.network.shapes
        owner = {n: np.zeros(p.size, np.int64) for n, p in program.network.populations.items()}
        for index, part in enumerate(placement):
            owner[part.population][part.neurons(shapes[part.population])] = index
        chips = np.array([part.chip for part in placement], dtype=np.int64)
        core = np.array([part.core for part in placement], dtype=np.int64)
        width = int(max(core.max() + 1, chip.cores))
        positions = tile_positions(chip, width, int(chips.max()) + 1)
        own = np.array([cores.index((s.chip, s.core)) for s in placement], dtype=np.int64)
        return cls(cores, own, owner, positions[chips * width + core], chips)

    @cached_property
    def gather(self) -> Any:
        """Which core holds which slice, scipy.sparse, shape (slices, cores)."""
        import scipy.sparse

        n_slices = self.core_of_slice.size
        entries = (np.ones(n_slices, np.int64), (np.arange(n_slices), self.core_of_slice))
        return scipy.sparse.csr_array(entries, (n_slices, len(self.cores)))

    @cached_property
    def neurons(self) -> IntArray:
        """Neurons of every core."""
        held = np.zeros(len(self.cores), dtype=np.int64)
        for owner in self.owner.values():
            held += np.bincount(self.core_of_slice[owner], minlength=held.size)
        return held

    def apart(self, index: int) -> tuple[IntArray, IntArray, IntArray]:
        """Tiles along x, tiles along y and chips between a slice and every other."""
        between = np.abs(self.tile - self.tile[index])
        return between[:, 0], between[:, 1], np.abs(self.chip - self.chip[index])


def check_placed(program: Program) -> None:
    """Check that a program says which neurons are on which core.

    Raises:
        ArtifactError: it does not.
    """
    if not program.placement:
        raise ArtifactError(
            f"cost: program {program.fingerprint}: found no placement on cores, allowed one that "
            "`nmtool compile` or compile_program made; compile it again"
        )


def _check(program: Program, recording: Recording) -> None:
    if recording.fingerprint != program.fingerprint:
        raise ArtifactError(
            f"cost: found a recording of the program {recording.fingerprint or 'of no name'}, "
            f"allowed one of {program.fingerprint}"
        )
    check_placed(program)
    if missing := [name for name in program.order if name not in recording.spikes]:
        raise ConfigError(
            f"cost: found no spikes of {', '.join(missing)} in the recording, allowed those of all "
            'populations: record with probe "spikes"'
        )


def _sent(
    program: Program, recording: Recording, inputs: SpikeTrain | Mapping[str, SpikeTrain]
) -> dict[str, SpikeTrain]:
    """The trains of all inputs and populations, in the recorded steps."""
    steps = recording.n_steps
    if isinstance(inputs, SpikeTrain):
        inputs = inputs.first_steps(steps)
    elif isinstance(inputs, Mapping):
        inputs = {name: train.first_steps(steps) for name, train in inputs.items()}
    batch = input_batch(program, inputs, steps)
    trains = dict(batch.trains) | {name: recording.spikes[name] for name in program.order}
    found = {train.n_samples for train in trains.values()}
    if len(found) > 1:
        raise ConfigError(
            f"cost: found inputs and populations of {' and '.join(map(str, sorted(found)))} "
            "samples, allowed those of one run"
        )
    return trains


def _size(sent: Mapping[str, SpikeTrain]) -> tuple[int, int]:
    """Samples and steps of a run."""
    train = next(iter(sent.values()))
    return train.n_samples, train.n_steps


def _messages(projections: Mapping[str, Any], fans: Mapping[str, FanOut], name: str) -> Any:
    """The messages of a source neuron to every slice: one for each projection that reaches it."""
    matrices = [fans[key].stored > 0 for key, p in projections.items() if p.source == name]
    return sum(m.astype(np.int64) for m in matrices) if matrices else None


def _events(train: SpikeTrain) -> Any:
    """The spikes of a train as a scipy.sparse matrix (samples * steps, neurons) of ones."""
    import scipy.sparse

    shape = (train.n_samples * train.n_steps, train.n_neurons)
    ones = np.ones(len(train), dtype=np.int64)
    return scipy.sparse.csr_array((ones, train.neuron.astype(np.int64), train.offset), shape)


def _add(load: IntArray, train: SpikeTrain, per_slice: Any, board: _Board) -> None:
    """Add what every spike does in every slice to the load of the slices' cores."""
    if per_slice is not None:
        load += (_events(train) @ (per_slice @ board.gather)).toarray()


def _weighed(train: SpikeTrain, per_slice: Any) -> int:
    """The sum over all spikes of what each does in all slices."""
    if per_slice is None:
        return 0
    return int(_fired(train) @ np.asarray(per_slice.sum(axis=1)).ravel())


def _fired(train: SpikeTrain) -> IntArray:
    """Spikes of every neuron over all samples and steps."""
    return np.bincount(train.neuron, minlength=train.n_neurons).astype(np.int64)


def _projection(name: str, fan: FanOut, train: SpikeTrain) -> ProjectionCount:
    operations, effective = _weighed(train, fan.stored), _weighed(train, fan.effective)
    return ProjectionCount(name, fan.kind, len(train), operations, effective)


def _population(
    board: _Board,
    load: Mapping[CostEvent, IntArray],
    name: str,
    train: SpikeTrain,
    messages: Any,
    active: BoolArray | None,
) -> PopulationCount:
    """Count one population, and add what it does to the load of its cores."""
    owner, events = board.owner[name], _events(train)
    hops = np.zeros(3, dtype=np.int64)
    for index in np.unique(owner):
        own, core = owner == index, board.core_of_slice[index]
        load["spike"][:, core] += events[:, own].sum(axis=1)
        if active is not None:
            busy = active[:, own].sum(axis=1)
            load["neuron_active"][:, core] += busy
            load["neuron_inactive"][:, core] += int(own.sum()) - busy
        if messages is not None:
            by_slice = messages[own]
            load["message_out"][:, core] += events[:, own] @ np.asarray(by_slice.sum(axis=1))
            total = _fired(train)[own] @ by_slice
            hops += [int(total @ way) for way in board.apart(int(index))]
    return PopulationCount(
        name,
        owner.size,
        owner.size * train.n_samples * train.n_steps,
        None if active is None else int(active.sum()),
        len(train),
        _weighed(train, messages),
        *(int(way) for way in hops),
    )


def _active(program: Program, recording: Recording, name: str) -> BoolArray | None:
    """Which neurons are active at every step, shape (samples * steps, neurons)."""
    train = recording.spikes[name]
    states = [
        getattr(recording, quantity).get(name)
        for quantity in STATES[program.network.populations[name].model]
    ]
    if any(state is None for state in states):
        return None
    shape = (train.n_samples, train.n_neurons, train.n_steps)
    mask = train.batch() != 0
    for state in states:
        mask = mask | (np.asarray(state).reshape(shape) != 0)
    return np.asarray(mask.transpose(0, 2, 1).reshape(-1, train.n_neurons))


def _weights(operation: Operation) -> tuple[int, int]:
    """Weights of a matrix or kernel, and how many of them are zero; a scale is no layer."""
    if not isinstance(operation, Dense | Sparse | Conv):
        return 0, 0
    number = operation.weight.size
    if isinstance(operation, Sparse):
        number = operation.size[0] * operation.size[1]
    return number, number - int(np.count_nonzero(operation.weight))


@dataclass(frozen=True, eq=False)
class Estimate:
    """Energy and time by a cost model; ``basis`` of all of it is ``modelled``.

    ``energy``: pJ of the whole run by event. ``step_times``: ns, shape (samples, steps), None where
    the model or the placement allows none, for the reason ``no_time``. ``unpriced``: events that
    happened and have no energy in the model. ``static_power`` in mW of the chips in use is the
    chip's own and in no other number.
    """

    model: str
    about: str
    samples: int
    energy: Mapping[CostEvent, float]
    unpriced: tuple[str, ...]
    step_times: FloatArray | None
    no_time: str
    static_power: float | None

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Energy and time of a sample; static power and energy stand alone."""
        result = {
            "energy": Quantity(
                sum(self.energy.values()) / self.samples * 1e-6, "uJ per sample", "modelled"
            )
        }
        if self.step_times is not None:
            per_sample = float(self.step_times.sum(axis=1).mean()) * 1e-3
            longest = float(self.step_times.max()) * 1e-3
            result["time"] = Quantity(per_sample, "us per sample", "modelled")
            result["longest_step"] = Quantity(longest, "us", "modelled")
        if self.static_power is not None:
            result["static_power"] = Quantity(self.static_power, "mW", "modelled")
            if self.step_times is not None:
                static = self.static_power * result["time"].value * 1e-3
                result["static_energy"] = Quantity(static, "uJ per sample", "modelled")
        return result

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "basis": "modelled",
            "model": self.model,
            "about": self.about,
            "quantities": {
                name: {"value": q.value, "unit": q.unit, "basis": q.basis}
                for name, q in self.quantities.items()
            },
            "energy_by_event": {
                event: {"value": pj / self.samples * 1e-6, "unit": "uJ per sample"}
                for event, pj in self.energy.items()
            },
            "not_in_the_model": list(self.unpriced),
            "no_time": self.no_time or None,
        }


def no_model(chip: ChipSpec) -> str:
    """Why there is no cost model for a chip, and what to do."""
    return (
        f"no published energy per event for {chip.name}: give your own measured constants in a "
        "chip file (docs/cost.md)"
    )


def choose_model(chip: ChipSpec, name: str | None = None) -> str:
    """The name of a cost model of a chip: its first, unless one is named.

    Raises:
        ConfigError: no such model, or none at all.
    """
    if not chip.cost_models:
        raise ConfigError(f"cost model {name or 'of ' + chip.name}: {no_model(chip)}")
    if name is not None and name not in chip.cost_models:
        raise ConfigError(
            f"cost model {name}: unknown, allowed for {chip.name}: {', '.join(chip.cost_models)}"
        )
    return name or next(iter(chip.cost_models))


def estimate(counts: Counts, chip: ChipSpec, model: str | None = None) -> Estimate:
    """Energy and time of counted operations, by a model of the chip (its first unless named).

    Raises:
        ConfigError: no such model, or it prices neuron updates and the states were not recorded.
        ArtifactError: counts of another chip.
    """
    if counts.chip != chip.name:
        raise ArtifactError(f"cost: found counts of {counts.chip}, allowed those of {chip.name}")
    name = choose_model(chip, model)
    prices = (chip.cost_models or {})[name]
    if unknown := [e for e in prices.events if counts.totals[e] is None]:
        raise ConfigError(
            f"cost model {name}: found no count of {' and '.join(unknown)}, allowed a recording "
            'with the states of all populations: record with probe "spikes,current,voltage"'
        )
    energy: dict[CostEvent, float] = {}
    for event, cost in prices.events.items():
        if cost.energy_pj is not None:
            energy[event] = float(counts.totals[event] or 0) * cost.energy_pj
    happened = [event for event in EVENTS if counts.totals[event] != 0 and event not in energy]
    crossings = sum(p.crossings for p in counts.populations)
    unpriced = (*happened, *(["chip crossings"] if crossings else []))
    times, reason = _step_times(counts, prices)
    static = None if chip.static_power is None else chip.static_power * counts.chips
    return Estimate(name, prices.about, counts.samples, energy, unpriced, times, reason, static)


def _step_times(counts: Counts, model: CostModel) -> tuple[FloatArray | None, str]:
    """The time of every step in ns, shape (samples, steps), or why there is none."""
    if model.step is None or model.barrier is None:
        return None, "the model has no time of a step or of the barrier"
    if counts.chips > 1:
        return None, f"no figure for the barrier between {counts.chips} chips"
    neurons = np.zeros((counts.samples * counts.steps, len(counts.cores)))
    messages = np.zeros_like(neurons)
    for event, cost in model.events.items():
        if cost.time_ns is None or event not in counts.load:
            continue
        part = neurons if event in NEURON_EVENTS else messages
        part += counts.load[event] * cost.time_ns
    together = neurons + messages if model.step.core == "sum" else np.maximum(neurons, messages)
    times = together.max(axis=1) + barrier_time(model, counts.tiles)
    return times.reshape(counts.samples, counts.steps), ""


def barrier_time(model: CostModel, tiles: int) -> float:
    """The time in ns that the tiles in use take to end a step; beyond a table's ends, its ends."""
    barrier = model.barrier
    if barrier is None:
        return 0.0
    if barrier.between == "linear":
        return float(np.interp(tiles, barrier.tiles, barrier.time_ns))
    below = int(np.searchsorted(barrier.tiles, tiles, side="right"))
    return barrier.time_ns[max(below - 1, 0)]
