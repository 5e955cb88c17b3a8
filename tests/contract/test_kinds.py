"""Every kind of operation, neuron, delay and input gives the same bits on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kinds import KINDS, LOUD, SOME, Builder, program_of, rasters_for, trains
from test_sessions import ALL, assert_equal

from nmtool.backends import Recording, open_session
from nmtool.backends.emulator import EmulatorBackend
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import HardwareConfig, SynapseFormat, load_chip, load_hardware
from nmtool.compiler import Program, compile_program
from nmtool.compiler.features import FEATURES, features
from nmtool.errors import UnsupportedError, UsageError
from nmtool.operations import Conv, Dense

NEEDS_LAVA = pytest.mark.skipif(lava_missing() is not None, reason=str(lava_missing()))

SPIKING = [name for name in KINDS if name not in ("sigma_delta", "graded_input", "driven")]
"""What the fault model runs."""

FEW = ["conv", "graph", "resets", "sigma_delta"]


def names_for(target: HardwareConfig) -> list[str]:
    return SPIKING if target.faults else [*KINDS]


def some_for(target: HardwareConfig) -> list[str]:
    """Fewer kinds where a run takes long."""
    return FEW if target.backend == "lava-sim" else names_for(target)


def reference(program: Program, rasters: Any) -> Recording:
    with ReferenceBackend().open(program) as session:
        return session.run(trains(program, rasters), probe=ALL)


def test_every_feature_is_among_the_kinds() -> None:
    made = {f for name in (*KINDS, *SOME) for f in features(program_of(name))}
    assert set(FEATURES) - made == {"no input"}


@pytest.mark.parametrize("name", [*KINDS])
def test_every_kind_says_something(name: str) -> None:
    program = program_of(name)
    found = reference(program, rasters_for(program, 0, samples=3, steps=70))
    assert sum(len(train) for train in found.spikes.values()) > 10


def test_overflows_overflow() -> None:
    program = program_of("overflows")
    found = reference(program, rasters_for(program, 0, samples=2, steps=70))
    assert found.provenance["wrapped"] > 10
    assert found.provenance["saturated"] > 10


def test_all_kinds_equal_the_reference(target: HardwareConfig) -> None:
    program = program_of(*names_for(target))
    rasters = rasters_for(program, 0, samples=2, steps=70)
    with open_session(program, target) as session:
        found = session.run(trains(program, rasters), probe=ALL)
    assert_equal(reference(program, rasters), found)


def test_order_of_samples_does_not_matter(target: HardwareConfig) -> None:
    program = program_of(*some_for(target), seed=2)
    rasters = rasters_for(program, 2, samples=3, steps=25)
    order = [2, 0, 1, 2, 1, 0]  # each before and behind both others, one of them first
    with open_session(program, target) as session:
        found = session.run(trains(program, {n: raster[order] for n, raster in rasters.items()}))
    for train in found.spikes.values():
        raster = train.to_raster()
        for sample in range(3):
            first, second = (raster[place] for place, own in enumerate(order) if own == sample)
            assert np.array_equal(first, second)
    alone = {name: raster[2] for name, raster in rasters.items()}
    for name, train in reference(program, alone).spikes.items():
        if name in found.spikes:
            assert np.array_equal(found.spikes[name].to_raster()[0], train.to_raster())


def test_a_stream_in_pieces_equals_one_run(target: HardwareConfig) -> None:
    program = program_of(*some_for(target), seed=3)
    rasters = {n: r[0] for n, r in rasters_for(program, 3, samples=1, steps=70).items()}
    whole = reference(program, rasters)
    with open_session(program, target) as session:
        pieces = []
        for start, stop in ((0, 1), (1, 30), (30, 70)):
            piece = {name: raster[:, start:stop] for name, raster in rasters.items()}
            pieces.append(session.stream(trains(program, piece), probe=ALL))
    for name in program.order:
        joined = np.concatenate([p.spikes[name].to_raster() for p in pieces], axis=1)
        assert np.array_equal(joined, whole.spikes[name].to_raster()), name
        for quantity in ("current", "voltage"):
            if name in getattr(whole, quantity):
                values = np.concatenate([getattr(p, quantity)[name] for p in pieces], axis=1)
                assert np.array_equal(values, getattr(whole, quantity)[name]), name


def test_weights_of_every_operation_are_written(target: HardwareConfig) -> None:
    """All projections, in a stream between two pieces, and before a run."""
    names = [n for n in ("sparse", "conv", "pool", "flatten", "graph") if n in names_for(target)]
    program = program_of(*names, seed=4)
    rng = np.random.default_rng(0)
    written = {
        name: rng.permutation(p.weight_mantissa.ravel()).reshape(p.weight_mantissa.shape) // 4 * 2
        for name, p in program.network.projections.items()
    }
    rasters = {n: r[0] for n, r in rasters_for(program, 4, samples=1, steps=60).items()}
    first = {name: raster[:, :30] for name, raster in rasters.items()}
    second = {name: raster[:, 30:] for name, raster in rasters.items()}

    def run(hardware: HardwareConfig) -> tuple[list[Recording], list[int]]:
        with open_session(program, hardware) as session:
            found = [session.stream(trains(program, first), probe=ALL)]
            counts = [session.write_weights(name, mantissa) for name, mantissa in written.items()]
            found.append(session.stream(trains(program, second), probe=ALL))
            session.reset()
            found.append(session.run(trains(program, rasters), probe=ALL))
            return found, counts

    expected, counts = run(load_hardware("reference"))
    found, same = run(target)
    assert counts == same
    assert all(counts)
    for one, other in zip(expected, found, strict=True):
        assert_equal(one, other)
    assert_equal(reference(program.with_weights(written), rasters), found[2])


def sums_program(exponent: int) -> Program:
    """Messages into decoders through a convolution and, with this exponent, a dense matrix."""
    b = Builder(0)
    source = b.graded((1, 1, 2), "sigma")
    b.input((1, 1, 2), "graded", source)
    b.join(source, b.graded((1, 1, 1), "sigma"), (Conv(np.full((1, 1, 1, 2), 244)),))
    format = SynapseFormat(8, exponent, "mixed")
    b.join(source, b.graded((2,), "sigma"), (Dense(np.full((2, 2), 244)),), format, delay=1)
    return compile_program(b.network(), load_chip("loihi2"), n_steps=4)


@pytest.mark.parametrize("value", [2**15, 2**16, 2**22, 2**23 - 1])
def test_sums_of_messages_are_modulo_32_bits(target: HardwareConfig, value: int) -> None:
    if target.faults:
        pytest.skip("the fault model knows no messages")
    program = sums_program(0)
    rasters = {"in0": np.tile([[value, 7, 0, 0]], (2, 1))}
    with open_session(program, target) as session:
        found = session.run(trains(program, rasters), probe=ALL)
    assert_equal(reference(program, rasters), found)


def test_sums_that_lava_would_cut_before_its_shift_are_refused(target: HardwareConfig) -> None:
    """Lava adds in 32 bits and shifts right afterwards: the reference gives 2^31 and more."""
    if target.faults:
        pytest.skip("the fault model knows no messages")
    program = sums_program(-1)
    small, large = (
        {"in0": np.array([[value, 0, 0, 0], [value - 1, 0, 0, 0]])} for value in (2**22, 2**23 - 1)
    )
    with open_session(program, target) as session:
        assert_equal(
            reference(program, small), session.run(trains(program, small), probe="spikes,current")
        )
        for act in (session.run, session.stream):
            if target.backend != "lava-sim":
                act(trains(program, large))
                continue
            with pytest.raises(UnsupportedError, match=r"j1: found a sum of 4093639972 mantissas"):
                act(trains(program, large))
        if target.backend == "lava-sim":
            with pytest.raises(UsageError, match="ended with an error"):
                session.stream(trains(program, small))
            session.reset()
            streamed = session.stream(trains(program, small), probe="spikes,current")
            assert_equal(reference(program, small), streamed)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_threads_and_batches_do_not_matter(threads: int, samples: int) -> None:
    program = program_of(seed=5)
    rasters = {n: r[:samples] for n, r in rasters_for(program, 5, samples=7, steps=40).items()}
    with EmulatorBackend(threads=threads).open(program) as session:
        found = session.run(trains(program, rasters), probe=ALL)
    assert_equal(reference(program, rasters), found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refractory", "floating point only"),
        ("reset_sigma_delta", "have no reset"),
        ("wide_sigma_delta", r"p0: found sigma-delta exponent above 7(.|\n)*p1: .*beyond 24 bits"),
    ],
)
def test_what_lava_has_not(target: HardwareConfig, name: str, reason: str) -> None:
    program = program_of(name)
    rasters = rasters_for(program, 0, samples=3, steps=70)
    if target.backend == "lava-sim" or (target.faults and name != "refractory"):
        with pytest.raises(UnsupportedError, match=reason if not target.faults else "fault model"):
            open_session(program, target)
        return
    with open_session(program, target) as session:
        found = session.run(trains(program, rasters), probe=ALL)
    assert_equal(reference(program, rasters), found)
    assert len(found.spikes[program.order[0]]) > 10


@pytest.mark.parametrize("seed", range(1, 6))
def test_all_kinds_of_other_seeds(seed: int) -> None:
    program = program_of(*KINDS, "reset_sigma_delta", seed=seed)
    rasters = rasters_for(program, seed, samples=2, steps=70)
    with EmulatorBackend().open(program) as session:
        found = session.run(trains(program, rasters), probe=ALL)
    assert_equal(reference(program, rasters), found)


@pytest.mark.parametrize("name", ["sigma_delta", "graded_input", "driven"])
def test_faults_are_for_spikes_only(name: str) -> None:
    with pytest.raises(UnsupportedError, match="the fault model knows spikes"):
        open_session(program_of(name), load_hardware("loihi2-faulty", ["weight_bits=null"]))


@pytest.mark.lava
@NEEDS_LAVA
def test_lavas_single_fold_of_the_current_is_another() -> None:
    """Beyond three times its range Lava's u leaves 24 bits; the chip's rule is modulo 2^24."""
    builder = Builder(0)
    registers = {"decay_u": 4095, "threshold": 131071}
    weight = np.full((1, 40), 254)
    source, target = builder.input((40,)), builder.cuba((1,), **registers)
    builder.join(source, target, (Dense(weight),), LOUD)
    program = compile_program(builder.network(), load_chip("loihi2"), n_steps=3)
    raster = {"in0": np.repeat(np.array([[1], [0], [0]]).T, 40, axis=0)}
    runs = {}
    for name, options in {
        "emulator": (),
        "lava-sim": (),
        "lava": ("current_overflow=lava",),
    }.items():
        hardware = load_hardware("emulator" if name == "emulator" else "lava-sim", options)
        with open_session(program, hardware) as session:
            runs[name] = session.run(trains(program, raster), probe=ALL)
    assert_equal(runs["emulator"], runs["lava-sim"])
    exact = 40 * 254 * 128 * 64
    u = {name: int(run.current["p0"][0, 1]) for name, run in runs.items()}
    assert u["emulator"] == exact - 5 * 2**24
    assert u["lava"] == exact - 2**24
