"""Running core by core: every slice of a placement is a population of its own.

A core holds its slices' neurons, and of every projection into them the synapses that end there,
each with the number of the weight that it stores: a row for every source neuron that reaches it.
The spikes of a slice go to every core that has such rows. A simulator runs this program of slices
like any other, and what it records is put together again under the populations' names.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from nmtool.backends.base import (
    InputBatch,
    ManagedSession,
    Probe,
    Progress,
    Recording,
)
from nmtool.backends.faults import Defects
from nmtool.chip import UNLIMITED
from nmtool.compiler import Program
from nmtool.compiler.fit import misplaced, shapes_of
from nmtool.compiler.place import Slice
from nmtool.errors import ArtifactError, ConfigError
from nmtool.fixedpoint import IntArray
from nmtool.network import Input
from nmtool.operations import (
    Chain,
    Dense,
    Flatten,
    Shape,
    Sparse,
    chain_connections,
    weighted,
    with_weight,
)
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True, eq=False)
class Held:
    """The neurons of a population that a core holds, and the lines on which their spikes leave.

    ``lines`` are the neurons' own numbers but where a fault exchanges them.
    """

    name: str
    shape: Shape
    neurons: IntArray
    lines: IntArray


@dataclass(frozen=True, eq=False)
class Rows:
    """The synapses of a projection from one slice, or a whole input, that end in one slice.

    ``places`` are the operations that they make, with the number of each weight among the
    projection's (flattened) in its place.
    """

    name: str
    source: str
    target: str
    places: Chain

    @property
    def index(self) -> IntArray:
        """The numbers of the weights."""
        return np.asarray(weighted(self.places).weight)

    def of(self, whole: QuantizedProjection) -> QuantizedProjection:
        """The part of a projection that these rows are."""
        own = with_weight(self.places, self.part(whole.weight_mantissa))
        delay = self.part(whole.delay) if np.ndim(whole.delay) else whole.delay
        return replace(whole, source=self.source, target=self.target, operations=own, delay=delay)

    def part(self, values: Any) -> Any:
        """The elements of an array of the projection's weights that stand in these rows."""
        return np.asarray(values).ravel()[self.index]


Slices: TypeAlias = Mapping[str, tuple[Held, ...]]


@dataclass(frozen=True, eq=False)
class Split:
    """A placed program as one of slices.

    ``slices`` are those of every population, ``rows`` those of every projection, ``driven`` what
    of an input drives which slice. Inputs that go through projections stay whole.
    """

    program: Program
    slices: Slices
    rows: Mapping[str, tuple[Rows, ...]]
    driven: Mapping[str, tuple[tuple[str, Held], ...]]


def check_placed(program: Program, what: str = "by_core") -> None:
    """Check that every neuron of a program is on a core.

    Raises:
        ConfigError: the program is not placed.
        ArtifactError: a placement that does not hold every neuron once.
    """
    if not program.placement:
        raise ConfigError(
            f"{what}: found the program {program.fingerprint}, which is not placed on cores, "
            "allowed one that is; compile it again"
        )
    shapes = shapes_of(program.network)
    if wrong := misplaced(shapes, program.placement, UNLIMITED, UNLIMITED):
        said = replace(wrong[0][1], advice="compile it again")
        raise ArtifactError(f"program {program.fingerprint}: {said}")


def _parts(program: Program, name: str) -> list[Slice]:
    return [part for part in program.placement if part.population == name]


def split(program: Program, lines: Mapping[str, IntArray] | None = None) -> Split:
    """A placed program as one of slices; ``lines`` are the neurons' output lines if exchanged.

    Raises:
        ConfigError: the program is not placed.
        ArtifactError: a placement that does not hold every neuron once.
    """
    check_placed(program)
    net, lines = program.network, lines or {}
    slices = {name: tuple(_held(program, name, lines.get(name))) for name in net.populations}
    rows = {name: tuple(_rows(net, name, slices)) for name in net.projections}
    driven = {
        name: tuple((_named(name, k), held) for k, held in enumerate(slices[source.drives]))
        for name, source in net.inputs.items()
        if source.drives is not None
    }
    parts = Split(program, slices, rows, driven)
    own = replace(program, network=_network(net, parts), placement=(), fit=None, bounds=())
    return replace(parts, program=own)


def _named(name: str, k: int) -> str:
    """Names of parts are their own: all nodes have a number, and no two nodes one name."""
    return f"{name}[{k}]"


def _held(program: Program, name: str, line: IntArray | None) -> Iterator[Held]:
    shape = program.network.shapes[name]
    for k, part in enumerate(_parts(program, name)):
        neurons = part.neurons(shape)
        own = tuple(stop - start for start, stop in part.box)
        yield Held(_named(name, k), own, neurons, neurons if line is None else line[neurons])


def _whole(net: QuantizedNetwork, name: str) -> Held:
    """An input, from which every core receives what it has rows for."""
    lines = np.arange(net.sizes[name])
    return Held(_named(name, 0), net.shapes[name], lines, lines)


def _rows(net: QuantizedNetwork, name: str, slices: Slices) -> Iterator[Rows]:
    """The rows of one projection on all cores; none where no synapse is."""
    projection = net.projections[name]
    sources = slices.get(projection.source) or (_whole(net, projection.source),)
    targets = slices[projection.target]
    ends = ((source, target) for source in sources for target in targets)
    chains = _chains(net, projection, sources, targets)
    found = (
        (source.name, target.name, chain)
        for (source, target), own in zip(ends, chains, strict=True)
        for chain in own
    )
    for k, (source, target, chain) in enumerate(found):
        yield Rows(_named(name, k), source, target, chain)


def _chains(
    net: QuantizedNetwork,
    projection: QuantizedProjection,
    sources: tuple[Held, ...],
    targets: tuple[Held, ...],
) -> Iterator[list[Chain]]:
    """Operations from every source to every target, with the numbers of their weights."""
    shape, operations = net.shapes[projection.source], projection.operations
    weights = projection.weight_mantissa
    index = np.arange(weights.size).reshape(weights.shape)
    plain = all(np.array_equal(s.lines, np.arange(net.sizes[projection.source])) for s in sources)
    if len(sources) == len(targets) == 1 and plain:
        yield [with_weight(operations, index)]
    elif isinstance(operations[-1], Dense) and all(isinstance(o, Flatten) for o in operations[:-1]):
        column = chain_connections(operations[:-1], shape).target
        for source in sources:
            for target in targets:
                yield [(Dense(index[np.ix_(target.neurons, column[source.lines])]),)]
    else:
        yield from _listed(operations, shape, sources, targets)


def _listed(
    operations: Chain, shape: Shape, sources: tuple[Held, ...], targets: tuple[Held, ...]
) -> Iterator[list[Chain]]:
    """Any chain as single synapses; several between one pair of neurons are several chains."""
    ways = chain_connections(operations, shape)
    first = np.ones(ways.source.size, dtype=np.bool_)
    first[1:] = (ways.source[1:] != ways.source[:-1]) | (ways.target[1:] != ways.target[:-1])
    begin = np.flatnonzero(first)
    way = np.arange(first.size) - np.repeat(begin, np.diff(np.append(begin, first.size)))
    source, row = _located([held.lines for held in sources])
    target, place = _located([held.neurons for held in targets])
    pair = source[ways.source] * len(targets) + target[ways.target]
    order = np.lexsort((way, pair))
    cuts = np.searchsorted(pair[order], np.arange(len(sources) * len(targets) + 1))
    for k, (start, stop) in enumerate(itertools.pairwise(cuts)):
        own = order[start:stop]
        size = (targets[k % len(targets)].neurons.size, sources[k // len(targets)].lines.size)
        parts = np.split(own, np.flatnonzero(np.diff(way[own])) + 1) if own.size else []
        yield [
            (Sparse(ways.index[at], place[ways.target[at]], row[ways.source[at]], size),)
            for at in parts
        ]


def _located(parts: list[IntArray]) -> tuple[IntArray, IntArray]:
    """In which of some parts every number from 0 on is, and where in it."""
    numbers = np.concatenate(parts)
    owner, place = np.empty_like(numbers), np.empty_like(numbers)
    owner[numbers] = np.repeat(np.arange(len(parts)), [part.size for part in parts])
    place[numbers] = np.concatenate([np.arange(part.size) for part in parts])
    return owner, place


def _network(net: QuantizedNetwork, parts: Split) -> QuantizedNetwork:
    """A network, the split program's or one with other delays and resets, as one of slices."""
    inputs = {}
    for name, source in net.inputs.items():
        if source.drives is None:
            inputs[_named(name, 0)] = source
        for own, held in parts.driven.get(name, ()):
            inputs[own] = Input((held.neurons.size,), source.kind, held.name)
    return replace(
        net,
        inputs=inputs,
        populations={
            held.name: _population(net.populations[name], held)
            for name, slices in parts.slices.items()
            for held in slices
        },
        projections={
            rows.name: rows.of(net.projections[name])
            for name, all_rows in parts.rows.items()
            for rows in all_rows
        },
        outputs=tuple(held.name for name in net.outputs for held in parts.slices[name]),
        data=None,
        readout=None,
        checks=(),
    )


def _population(p: QuantizedPopulation, held: Held) -> QuantizedPopulation:
    delay = p.axonal_delay
    return replace(
        p,
        shape=held.shape,
        bias_mantissa=p.bias_mantissa[held.neurons],
        axonal_delay=np.asarray(delay)[held.lines] if np.ndim(delay) else delay,
    )


def split_defects(defects: Defects, parts: Split) -> Defects:
    """The same defects of the same neurons, weights and spikes, by slices."""
    net = defects.network
    every = [(name, held) for name, slices in parts.slices.items() for held in slices]
    rows = [(name, own) for name, all_rows in parts.rows.items() for own in all_rows]

    def of_neurons(values: Mapping[str, IntArray]) -> dict[str, IntArray]:
        return {held.name: values[name][held.neurons] for name, held in every}

    def places(neurons: Mapping[str, IntArray]) -> dict[str, IntArray]:
        return {
            held.name: np.flatnonzero(np.isin(held.neurons, neurons[name])) for name, held in every
        }

    node = {name: k for k, name in enumerate((*net.inputs, *net.populations))}
    numbers = {held.name: (node[name], held.neurons) for name, held in every}
    for name, source in net.inputs.items():
        if source.drives is None:
            numbers[_named(name, 0)] = (node[name], np.arange(source.size))
    singles = [
        single.model_copy(
            update={
                "population": held.name,
                "neuron": int(np.argmax(held.neurons == single.neuron)),
            }
        )
        for single in defects.singles
        for held in parts.slices[single.population]
        if single.neuron in held.neurons
    ]
    return replace(
        defects,
        network=_network(net, parts),
        dead=places(defects.dead),
        stuck=places(defects.stuck),
        flips={own.name: own.part(defects.flips[name]) for name, own in rows},
        stale={own.name: own.part(defects.stale[name]) for name, own in rows},
        threshold=of_neurons(defects.threshold),
        threshold_flips=of_neurons(defects.threshold_flips),
        decay_u=of_neurons(defects.decay_u),
        decay_v=of_neurons(defects.decay_v),
        kept=frozenset(held.name for name, held in every if name in defects.kept),
        lines={},
        singles=tuple(singles),
        numbers=numbers,
    )


Load: TypeAlias = Callable[[Program, Defects | None], ManagedSession]


def by_core(load: Load, program: Program, defects: Defects | None) -> PlacedSession:
    """Load a placed program slice by slice, with the defects that it has as a whole.

    Raises:
        ConfigError: the program is not placed.
        ArtifactError: a placement that does not hold every neuron once.
    """
    parts = split(program, defects.lines if defects else None)
    own = split_defects(defects, parts) if defects else None
    return PlacedSession(program, defects, parts, load(parts.program, own))


class PlacedSession(ManagedSession):
    """A program that a simulator runs slice by slice; it looks like the program run as a whole."""

    def __init__(
        self, program: Program, defects: Defects | None, parts: Split, session: ManagedSession
    ) -> None:
        self.program = program
        self._defects = defects
        self._parts = parts
        self._session = session

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        """Run samples on all cores."""
        started = time.monotonic()
        own = self._entering(batch.trains), batch.n_steps, self._by_slice(probes)
        return self._joined(self._session.run(*own, progress), batch, probes, started)

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        """Run the next steps of the stream on all cores."""
        started = time.monotonic()
        own = self._entering(batch.trains), self._by_slice(probes), batch.n_steps
        return self._joined(self._session.stream(*own), batch, probes, started)

    def _store(self, projection: str) -> None:
        """Write weights into the rows of every core that has some."""
        written = self.program.network.projections[projection].weight_mantissa
        parts = self._parts.rows[projection]
        self._session.write_all({rows.name: rows.part(written) for rows in parts})

    def reset(self) -> None:
        """Forget the stream."""
        self._session.reset()

    def close(self) -> None:
        """Give back what the simulator holds."""
        super().close()
        self._session.close()

    def _by_slice(self, probes: Probe) -> Probe:
        """What of the slices is recorded."""
        return {
            quantity: tuple(held.name for name in names for held in self._parts.slices[name])
            for quantity, names in probes.items()
        }

    def _joined(
        self, found: Recording, batch: InputBatch, probes: Probe, started: float
    ) -> Recording:
        """What the slices recorded, by population."""
        return replace(
            found,
            spikes={n: self._train(n, found.spikes) for n in probes.get("spikes", ())},
            current={n: self._states(n, found.current) for n in probes.get("current", ())},
            voltage={n: self._states(n, found.voltage) for n in probes.get("voltage", ())},
            fingerprint=self.program.fingerprint,
            wall_time=time.monotonic() - started,
            provenance={**self._facts(found), "input_sha256": batch.sha256},
        )

    def _entering(self, trains: Mapping[str, SpikeTrain]) -> dict[str, SpikeTrain]:
        """What goes into the inputs of the slices."""
        entering = {}
        for name, train in trains.items():
            if self.program.network.inputs[name].drives is None:
                entering[_named(name, 0)] = train
            for own, held in self._parts.driven.get(name, ()):
                entering[own] = _of_neurons(train, held.neurons)
        return entering

    def _train(self, name: str, found: Mapping[str, SpikeTrain]) -> SpikeTrain:
        """The spikes of a population from those of its slices."""
        slices = self._parts.slices[name]
        trains = [found[held.name] for held in slices]
        size = self.program.network.sizes[name]
        if len(slices) == 1 and np.array_equal(slices[0].lines, np.arange(size)):
            return trains[0]
        neuron = np.concatenate([h.lines[t.neuron] for h, t in zip(slices, trains, strict=True)])
        column = np.concatenate([_columns(train) for train in trains])
        order = np.argsort(column * size + neuron, kind="stable")  # fast on runs in order
        payloads = [train.payload for train in trains if train.payload is not None]
        return replace(
            trains[0],
            offset=sum((train.offset for train in trains[1:]), trains[0].offset),
            neuron=neuron[order].astype(np.int32),
            n_neurons=size,
            payload=np.concatenate(payloads)[order] if payloads else None,
        )

    def _states(self, name: str, found: Mapping[str, IntArray]) -> IntArray:
        """The states of a population, shape ([samples,] neurons, steps), from its slices'."""
        slices = self._parts.slices[name]
        joined = np.concatenate([found[held.name] for held in slices], axis=-2)
        lines = np.concatenate([held.lines for held in slices])
        return joined[..., np.argsort(lines), :]

    def _facts(self, found: Recording) -> dict[str, Any]:
        """The provenance of the slices' run, with the faults as the whole program has them."""
        cores = len({(part.chip, part.core) for part in self.program.placement})
        facts = {**found.provenance, "by_core": {"cores": cores}}
        if self._defects:
            run = found.provenance["faults"]["run"]
            facts["faults"] = {**self._defects.listing(), "run": run}
        return facts


def _columns(train: SpikeTrain) -> IntArray:
    """The step of every spike, counted through all samples."""
    return np.repeat(np.arange(train.offset.size - 1), np.diff(train.offset))


def _of_neurons(train: SpikeTrain, neurons: IntArray) -> SpikeTrain:
    """The spikes of some neurons, in rising order, which count from 0 then."""
    place = np.full(train.n_neurons, -1)
    place[neurons] = np.arange(neurons.size)
    own = place[train.neuron]
    kept = own >= 0
    return SpikeTrain.from_events(
        train.sample[kept],
        train.step[kept],
        own[kept],
        train.n_samples,
        neurons.size,
        train.n_steps,
        None if train.payload is None else train.payload[kept],
        train.batched,
    )
