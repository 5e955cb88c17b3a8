"""Every kind of fault gives the same bits on both simulators, and does something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from kinds import program_of, rasters_for, trains
from networks import make_program, make_spikes
from placements import placed
from test_sessions import ALL, assert_equal

from nmtool.backends import Recording, open_session
from nmtool.backends.emulator import EmulatorBackend
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import load_hardware
from nmtool.compiler import Program
from nmtool.faultmodel import Faults
from nmtool.network import PeriodicReset
from nmtool.spikes import SpikeTrain

STEPS = 30


def dense(seed: int) -> Program:
    """Feed-forward, with delays and biases."""
    return make_program(seed, recurrent=False)


def recurrent(seed: int) -> Program:
    return make_program(seed)


def conv(seed: int) -> Program:
    return program_of("conv", "pool", seed=seed)


def registers(seed: int) -> Program:
    """Refractory neurons, single synapses, delays of every kind."""
    return program_of("refractory", "sparse", "graph", seed=seed)


MAKERS = (dense, recurrent, conv, registers)


def periodic(program: Program, interval: int = 9) -> Program:
    """The program with a periodic reset in its first population."""
    net = program.network
    name = program.order[0]
    population = replace(net.populations[name], reset=PeriodicReset(interval, 2))
    return replace(program, network=replace(net, populations={**net.populations, name: population}))


@cache
def setting(make: Callable[[int], Program], seed: int) -> tuple[Program, Any, list[Recording]]:
    """A program, its input, and what it does without faults."""
    program = make(seed)
    rasters = rasters_for(program, seed, samples=3, steps=STEPS)
    return program, rasters, run(ReferenceBackend, program, None, rasters)


def spiking(program: Program, healthy: Recording) -> tuple[str, int, int, int]:
    """A population with a spike: its name, the neuron, sample and step, not the last one."""
    for name in program.order:
        train = healthy.spikes[name]
        place = np.flatnonzero(train.step < STEPS - 1)
        if place.size:
            at = place[place.size // 2]
            return name, int(train.neuron[at]), int(train.sample[at]), int(train.step[at])
    raise AssertionError("no spikes")


def run(backend: Any, program: Program, faults: Faults | None, rasters: Any) -> list[Recording]:
    """Two runs, a stream in pieces, a write between them, and a run after it."""
    pieces = ((0, 8), (8, STEPS))
    with backend(faults).open(program) as session:
        found = [session.run(trains(program, rasters), probe=ALL) for _ in range(2)]
        for start, stop in pieces:
            piece = {name: raster[:, :, start:stop] for name, raster in rasters.items()}
            found.append(session.stream(trains(program, piece), probe=ALL))
            for name, p in program.network.projections.items():
                session.write_weights(name, np.roll(p.weight_mantissa, stop))
        found.append(session.run(trains(program, rasters), probe=ALL))
    return found


scattered = cache(placed)
EMULATED_BY_CORE = partial(EmulatorBackend, by_core=True)
REFERENCE_BY_CORE = partial(ReferenceBackend, by_core=True)


def equal_to_the_reference(program: Program, faults: Faults, rasters: Any) -> list[Recording]:
    """What the reference does; the emulator does the same, as a whole and core by core."""
    expected = run(ReferenceBackend, program, faults, rasters)
    for backend, same in (
        (EmulatorBackend, program),
        (EMULATED_BY_CORE, scattered(program)),
    ):
        found = run(backend, same, faults, rasters)
        assert_same(expected, found)
    return expected


def assert_same(expected: list[Recording], found: list[Recording]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert_equal(one, other)
        assert one.n_steps == other.n_steps
        assert one.provenance.get("faults") == other.provenance.get("faults")
    for event in ("wrapped", "saturated"):
        assert expected[0].provenance[event] == found[0].provenance[event]


def of_neuron(kind: str) -> Callable[[Program, Recording], list[dict[str, Any]]]:
    def make(program: Program, healthy: Recording) -> list[dict[str, Any]]:
        population, neuron, _, _ = spiking(program, healthy)
        return [{"kind": kind, "population": population, "neuron": neuron}]

    return make


def of_register(kind: str, whole: bool) -> Callable[[Program, Recording], list[dict[str, Any]]]:
    def make(program: Program, healthy: Recording) -> list[dict[str, Any]]:
        population, neuron, _, _ = spiking(program, healthy)
        held = getattr(program.network.populations[population], kind)
        by = -held // 2 if held > 1 else 300
        fault = {"kind": kind, "population": population, "by": by}
        return [fault if whole else {**fault, "neuron": neuron}]

    return make


def of_weights(kind: str, **more: Any) -> Callable[[Program, Recording], list[dict[str, Any]]]:
    def make(program: Program, _: Recording) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "projection": name, **more, **_place(kind, p.weight_mantissa)}
            for name, p in program.network.projections.items()
        ]

    return make


def _place(kind: str, weight: Any) -> dict[str, Any]:
    return {"weight": [n // 2 for n in weight.shape]} if kind == "weight_bit" else {}


def of_spike(kind: str) -> Callable[[Program, Recording], list[dict[str, Any]]]:
    """The spike that is there, one behind it, and one that need not be there."""

    def make(program: Program, healthy: Recording) -> list[dict[str, Any]]:
        population, neuron, sample, step = spiking(program, healthy)
        place = {"kind": kind, "population": population, "neuron": neuron, "sample": sample}
        return [{**place, "step": at} for at in (step, step + 1, 3)]

    return make


def swapped(program: Program, _: Recording) -> list[dict[str, Any]]:
    """Twice in every population that has three neurons."""
    return [
        {"kind": "swapped", "population": name, "neurons": pair}
        for name, p in program.network.populations.items()
        for pair in ((0, p.size - 1), (1, 0))
        if p.size > 2
    ]


def kept(program: Program, _: Recording) -> list[dict[str, Any]]:
    return [{"kind": "missing_reset", "population": name} for name in program.order[::2]]


def reset_phase(program: Program, _: Recording) -> list[dict[str, Any]]:
    return [{"kind": "reset_phase", "population": program.order[0], "by": 3}]


def truncated(_: Program, __: Recording) -> list[dict[str, Any]]:
    return [{"kind": "truncated", "steps": 12}]


KINDS: dict[str, Callable[[Program, Recording], list[dict[str, Any]]]] = {
    "dead": of_neuron("dead"),
    "stuck": of_neuron("stuck"),
    "threshold": of_register("threshold", whole=True),
    "threshold of one": of_register("threshold", whole=False),
    "decay_u": of_register("decay_u", whole=True),
    "decay_u of one": of_register("decay_u", whole=False),
    "decay_v": of_register("decay_v", whole=True),
    "decay_v of one": of_register("decay_v", whole=False),
    "weight_bit": of_weights("weight_bit", bit=0),
    "stale_write": of_weights("stale_write"),
    "delay": of_weights("delay", by=2),
    "input_offset": lambda *_: [{"kind": "input_offset", "by": 2}],
    "output_offset": lambda *_: [{"kind": "output_offset", "by": 9}],
    "kept": kept,
    "swapped": swapped,
    "lost_spike": of_spike("lost_spike"),
    "late_spike": of_spike("late_spike"),
    "truncated": truncated,
}
PERIODIC = {"missing_reset": kept, "reset_phase": reset_phase}
DELAYS = ("delay", "input_offset")
"""What a program with the longest delays has no room for."""


def differ(found: list[Recording], healthy: list[Recording]) -> bool:
    for one, other in zip(found, healthy, strict=True):
        for quantity in ("spikes", "current", "voltage"):
            for name, values in getattr(one, quantity).items():
                same = getattr(other, quantity)[name]
                equal = values == same if quantity == "spikes" else np.array_equal(values, same)
                if not equal:
                    return True
    return False


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", [*KINDS, *PERIODIC])
def test_every_kind_equals_the_reference(kind: str, make: Callable[[int], Program]) -> None:
    if kind in DELAYS and make is registers:
        pytest.skip("no room for a longer delay")
    acted = False
    for seed in (5, 1):
        program, rasters, healthy = setting(make, seed)
        if kind in PERIODIC:
            program = periodic(program)
            healthy = run(ReferenceBackend, program, None, rasters)
        injected = {**KINDS, **PERIODIC}[kind](program, healthy[0])
        faults = Faults.model_validate({"injected": injected})
        found = equal_to_the_reference(program, faults, rasters)
        acted = differ(found, healthy)
        listed = found[0].provenance["faults"]["injected"]
        assert [fault["kind"] for fault in listed] == [fault["kind"] for fault in injected]
        if acted:
            break
    assert acted


@pytest.mark.parametrize("make", MAKERS)
def test_all_kinds_together_equal_the_reference(make: Callable[[int], Program]) -> None:
    program, rasters, healthy = setting(make, 5)
    kinds = KINDS.keys() - {*DELAYS, "threshold", "decay_u", "decay_v"}
    injected = [fault for kind in sorted(kinds) for fault in KINDS[kind](program, healthy[0])]
    random = {
        "threshold_bit_flips": 0.02,
        "stale_writes": 0.3,
        "spike_loss": 0.1,
        "late_spikes": 0.1,
        "threshold_spread": 0.2,
        "weight_bit_flips": 0.01,
    }
    faults = Faults.model_validate({"seed": 4, **random, "injected": injected})
    expected = equal_to_the_reference(program, faults, rasters)
    if make is not registers:  # whose many delays take the reference long
        assert_same(expected, run(REFERENCE_BY_CORE, scattered(program), faults, rasters))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "kind", ["threshold_bit_flips", "stale_writes", "late_spikes", "threshold_spread"]
)
def test_random_kinds_equal_the_reference(kind: str, make: Callable[[int], Program]) -> None:
    program, rasters, healthy = setting(make, 5)
    faults = Faults.model_validate({"seed": 1, kind: 0.2})
    found = equal_to_the_reference(program, faults, rasters)
    assert differ(found, healthy)


@pytest.mark.parametrize("make", MAKERS)
def test_no_faults_change_nothing(make: Callable[[int], Program]) -> None:
    program, rasters, healthy = setting(make, 5)
    found = equal_to_the_reference(program, Faults(), rasters)
    assert not differ(found, healthy)
    assert not differ(found, run(EmulatorBackend, program, None, rasters))


def test_a_driven_bias_is_no_spike_that_is_lost() -> None:
    program = program_of("driven")
    net = program.network
    inputs = {name: source for name, source in net.inputs.items() if source.kind == "bias"}
    program = replace(program, network=replace(net, inputs=inputs))
    rasters = rasters_for(program, 0, samples=2, steps=STEPS)
    decay = {"kind": "decay_v", "population": "driven.p0", "neuron": 2, "by": 100}
    joined = {"kind": "missing_reset", "population": "driven.p0"}
    for faults in ({"spike_loss": 1.0}, {"injected": [decay, joined]}):
        found = equal_to_the_reference(program, Faults.model_validate(faults), rasters)
        assert np.any(found[0].voltage["driven.p0"])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    program, rasters, healthy = setting(recurrent, 5)
    population, neuron, sample, step = spiking(program, healthy[0])
    single = {"population": population, "neuron": neuron, "sample": sample, "step": step}
    for more in ([], [{"kind": "missing_reset", "population": population}]):
        faults = Faults.model_validate(
            {
                "spike_loss": 0.1,
                "late_spikes": 0.1,
                "injected": [{"kind": "late_spike", **single}, *more],
            }
        )
        with EmulatorBackend(faults, threads=threads).open(program) as session:
            found = session.run(trains(program, rasters), probe=ALL)
        with ReferenceBackend(faults).open(program) as session:
            assert_equal(session.run(trains(program, rasters), probe=ALL), found)


@pytest.mark.parametrize("backend", ["reference", "emulator"])
@pytest.mark.parametrize("kind", ["spike_loss", "late_spikes"])
def test_chance_in_a_stream_does_not_depend_on_its_pieces(backend: str, kind: str) -> None:
    program = make_program(2)
    spikes = make_spikes(program, 2, samples=1, steps=60)
    faulty = load_hardware("loihi2-faulty").model_copy(update={"weight_bits": None})
    target = faulty.model_copy(update={"backend": backend}).with_faults(
        **{"spike_loss": 0.0, kind: 0.2}
    )

    def run(cuts: list[int]) -> list[np.ndarray]:
        raster, start, pieces = spikes.to_raster()[0], 0, []
        with open_session(program, target) as session:
            for width in cuts:
                piece = SpikeTrain.from_raster(raster[:, start : start + width])
                recorded = session.stream(piece, probe="spikes").spikes
                pieces.append([recorded[name].to_raster() for name in program.order])
                start += width
        return [np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True)]

    whole = run([60])
    assert sum(raster.sum() for raster in whole) > 0
    for cuts in ([20, 40], [1, 1, 58], [15, 15, 15, 15]):
        assert all(np.array_equal(a, b) for a, b in zip(whole, run(cuts), strict=True))
