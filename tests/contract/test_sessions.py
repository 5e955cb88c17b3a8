"""What every backend promises, and that they all give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kinds import union
from networks import make_program, make_spikes

from nmtool.backends import Recording, open_session
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.compiler import Program, compile_program
from nmtool.errors import ArtifactError, ConfigError, FitError, UnsupportedError, UsageError
from nmtool.measure import compare
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation
from nmtool.spikes import SpikeTrain

ALL = "spikes,current,voltage"
NEEDS_LAVA = pytest.mark.skipif(lava_missing() is not None, reason=str(lava_missing()))


def assert_equal(a: Recording, b: Recording) -> None:
    agreement = compare(a, b)
    assert agreement.equal, agreement.first
    assert not agreement.missing
    for quantity in ("current", "voltage"):
        assert set(getattr(a, quantity)) == set(getattr(b, quantity))


def assert_equals_the_reference(program: Program, inputs: Any, target: HardwareConfig) -> None:
    with ReferenceBackend().open(program) as session:
        expected = session.run(inputs, probe=ALL)
    with open_session(program, target) as session:
        found = session.run(inputs, probe=ALL)
    assert_equal(expected, found)
    assert found.fingerprint == program.fingerprint


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_reference(simulator: HardwareConfig, seed: int) -> None:
    program = make_program(seed, delays=62 if seed % 4 == 3 else 5)
    spikes = make_spikes(program, seed, samples=3, steps=80 if seed % 4 == 3 else 40)
    assert_equals_the_reference(program, spikes, simulator)


@pytest.mark.lava
@NEEDS_LAVA
@pytest.mark.parametrize(("rest", "delays", "steps"), [((0, 1, 2), 5, 40), ((3,), 62, 80)])
def test_lava_equals_the_reference(rest: tuple[int, ...], delays: int, steps: int) -> None:
    """The same programs, side by side as one network: Lava starts once."""
    seeds = [seed for seed in range(12) if seed % 4 in rest]
    programs = {f"n{seed}": make_program(seed, delays=delays) for seed in seeds}
    spikes = {
        f"{name}.input": make_spikes(program, seed, samples=3, steps=steps)
        for seed, (name, program) in zip(seeds, programs.items(), strict=True)
    }
    network = union({name: program.network for name, program in programs.items()})
    program = compile_program(network, load_chip("loihi2"), n_steps=20)
    assert_equals_the_reference(program, spikes, load_hardware("lava-sim"))


@pytest.mark.parametrize("seed", [1, 4])
def test_order_of_samples_does_not_matter(target: HardwareConfig, seed: int) -> None:
    program = make_program(seed)
    spikes = make_spikes(program, seed, samples=4, steps=25)
    order = [2, 0, 3, 1]
    with open_session(program, target) as session:
        both = session.run(spikes.select([0, 1, 2, 3, *order]), probe="spikes")
        alone = session.run(SpikeTrain.from_raster(spikes.to_raster()[2]), probe="spikes")
    for name, train in both.spikes.items():
        raster = train.to_raster()
        assert np.array_equal(raster[:4][order], raster[4:])
        assert np.array_equal(raster[2], alone.spikes[name].to_raster())


@pytest.mark.parametrize("cuts", [[40], [1, 39], [13, 13, 14]])
def test_stream_equals_one_run(target: HardwareConfig, cuts: list[int]) -> None:
    program = make_program(5)
    raster = make_spikes(program, 5, samples=1, steps=40).to_raster()[0]
    with open_session(program, target) as session:
        whole = session.run(SpikeTrain.from_raster(raster), probe=ALL)
        start, pieces = 0, []
        for width in cuts:
            piece = SpikeTrain.from_raster(raster[:, start : start + width])
            pieces.append(session.stream(piece, probe=ALL))
            start += width
        session.reset()
        again = session.stream(SpikeTrain.from_raster(raster), probe=ALL)
    for name in program.order:
        joined = np.concatenate([p.spikes[name].to_raster() for p in pieces], axis=1)
        assert np.array_equal(joined, whole.spikes[name].to_raster())
        voltage = np.concatenate([p.voltage[name] for p in pieces], axis=1)
        assert np.array_equal(voltage, whole.voltage[name])
    assert_equal(whole, again)


def test_a_run_leaves_a_stream_alone_or_is_refused(target: HardwareConfig) -> None:
    program = make_program(5)
    raster = make_spikes(program, 5, samples=1, steps=20).to_raster()[0]
    first, second = (SpikeTrain.from_raster(raster[:, part]) for part in (slice(9), slice(9, None)))
    with open_session(program, target) as session:
        whole = session.run(SpikeTrain.from_raster(raster), probe=ALL)
        session.stream(first, probe=ALL)
        if target.backend == "lava-sim":
            with pytest.raises(UnsupportedError, match=r"Lava holds one network .* reset\(\)"):
                session.run(first)
        else:
            session.run(first)
        rest = session.stream(second, probe=ALL)
        for name in program.order:
            assert np.array_equal(rest.voltage[name], whole.voltage[name][:, 9:])
        session.reset()
        assert_equal(whole, session.run(SpikeTrain.from_raster(raster), probe=ALL))


def test_a_stream_records_what_is_probed_or_refuses(target: HardwareConfig) -> None:
    program = make_program(5)
    spikes = make_spikes(program, 5, samples=1, steps=5)
    output = program.network.outputs[0]
    with open_session(program, target) as session:
        session.stream(spikes, probe="spikes")
        later = session.stream(spikes, probe=f"spikes:{output}")
        assert set(later.spikes) == {output}
        assert set(session.stream(spikes).spikes) == {output}
        if target.backend == "lava-sim":
            with pytest.raises(UnsupportedError, match=r"found the probe voltage:p0, .*allowed"):
                session.stream(spikes, probe="voltage:p0")
        else:
            assert set(session.stream(spikes, probe="voltage:p0").voltage) == {"p0"}


def test_lava_streams_one_sample_and_says_why(target: HardwareConfig) -> None:
    program = make_program(5)
    spikes = make_spikes(program, 5, samples=2, steps=5)
    with open_session(program, target) as session:
        if target.backend == "lava-sim":
            with pytest.raises(UnsupportedError, match="2 samples, allowed 1: Lava holds one"):
                session.stream(spikes)
        else:
            streamed = session.stream(spikes).spikes
            assert {train.n_samples for train in streamed.values()} == {2}


def test_a_network_without_inputs_streams(target: HardwareConfig) -> None:
    bias = {"bias_mantissa": np.array([30, 40]), "bias_exponent": 6}
    alone = QuantizedPopulation((2,), 0, 0, 100, **bias)
    network = QuantizedNetwork("alone", "loihi2", {}, {"p0": alone}, {}, ("p0",))
    program = compile_program(network, load_chip("loihi2"))
    with open_session(program, target) as session:
        whole = session.run({}, 12, "voltage")
        pieces = [session.stream({}, "voltage", n_steps=steps) for steps in (5, 7)]
        joined = np.concatenate([piece.voltage["p0"] for piece in pieces], axis=1)
        assert np.array_equal(joined, whole.voltage["p0"])
        with pytest.raises(ConfigError, match="found 0 steps"):
            session.stream({})


def test_written_weights_act(target: HardwareConfig) -> None:
    program = make_program(6)
    spikes = make_spikes(program, 6, samples=2, steps=30)
    mantissa = np.zeros_like(program.network.projections["j0"].weight_mantissa)
    changed = program.with_weights({"j0": mantissa})
    with ReferenceBackend().open(changed) as session:
        expected = session.run(spikes, probe=ALL)
    with open_session(program, target) as session:
        session.run(spikes)
        before = program.network.projections["j0"].weight_mantissa
        assert session.write_weights("j0", mantissa) == np.count_nonzero(before)
        assert session.write_weights("j0", mantissa) == 0
        found = session.run(spikes, probe=ALL)
    assert_equal(expected, found)
    assert found.fingerprint == changed.fingerprint != program.fingerprint


def test_weights_written_in_a_stream_act_on_later_spikes(target: HardwareConfig) -> None:
    program = make_program(5)
    raster = make_spikes(program, 5, samples=1, steps=30).to_raster()[0]
    name = "j0"
    mantissa = np.zeros_like(program.network.projections[name].weight_mantissa)

    def run(hardware: HardwareConfig) -> list[Recording]:
        with open_session(program, hardware) as session:
            first = session.stream(SpikeTrain.from_raster(raster[:, :15]), probe=ALL)
            session.write_weights(name, mantissa)
            return [first, session.stream(SpikeTrain.from_raster(raster[:, 15:]), probe=ALL)]

    for expected, found in zip(run(load_hardware("reference")), run(target), strict=True):
        assert_equal(expected, found)


def test_weights_outside_the_format_are_refused(target: HardwareConfig) -> None:
    program = make_program(7)
    projection = program.network.projections["j0"]
    wrong = projection.weight_mantissa.copy()
    wrong[0, 0] = 257
    with open_session(program, target) as session:
        with pytest.raises(FitError, match=r"257 at \(0, 0\)"):
            session.write_weights("j0", wrong)
        with pytest.raises(ConfigError, match="nowhere"):
            session.write_weights("nowhere", wrong)
        assert session.program.fingerprint == program.fingerprint


def test_unprobed_is_absent(target: HardwareConfig) -> None:
    program = make_program(8)
    spikes = make_spikes(program, 8, samples=1, steps=10)
    with open_session(program, target) as session:
        plain = session.run(spikes)
        one = session.run(spikes, probe="voltage:p0")
    assert set(plain.spikes) == set(program.network.outputs)
    assert not plain.current
    assert not plain.voltage
    assert set(one.voltage) == {"p0"}
    assert not one.spikes


def test_shapes_follow_the_input(target: HardwareConfig) -> None:
    program = make_program(8)
    size = program.network.inputs["input"].size
    out = program.network.outputs[0]
    neurons = program.network.populations[out].size
    with open_session(program, target) as session:
        flat = session.run(SpikeTrain.from_raster(np.zeros((size, 9))), probe=ALL)
        batch = session.run(SpikeTrain.from_raster(np.zeros((2, size, 9))), probe=ALL)
        longer = session.run(SpikeTrain.from_raster(np.zeros((size, 9))), n_steps=15)
    assert flat.spikes[out].to_raster().shape == flat.voltage[out].shape == (neurons, 9)
    assert batch.spikes[out].to_raster().shape == batch.current[out].shape == (2, neurons, 9)
    assert longer.spikes[out].n_steps == longer.n_steps == 15


def test_wrong_input_is_refused(target: HardwareConfig) -> None:
    program = make_program(8)
    size = program.network.inputs["input"].size
    with open_session(program, target) as session:
        with pytest.raises(ConfigError, match="neurons"):
            session.run(SpikeTrain.from_raster(np.zeros((size + 1, 9))))
        with pytest.raises(ConfigError, match="elsewhere"):
            session.run({"elsewhere": SpikeTrain.from_raster(np.zeros((size, 9)))})
        with pytest.raises(ConfigError, match="step 8"):
            session.run(SpikeTrain.from_raster(np.ones((size, 9))), n_steps=5)


def test_a_program_for_another_chip_is_refused(target: HardwareConfig) -> None:
    program = make_program(8)
    other = target.model_copy(update={"chip": "loihi1"})
    with pytest.raises(ArtifactError, match="made for the chip loihi2"):
        open_session(program, other)


def test_closing_twice_is_safe(target: HardwareConfig) -> None:
    program = make_program(8)
    session = open_session(program, target)
    session.run(make_spikes(program, 8, samples=1, steps=5))
    session.close()
    session.close()


def test_a_closed_session_runs_nothing(target: HardwareConfig) -> None:
    program = make_program(0)
    spikes = make_spikes(program, 0, samples=1, steps=5)
    name, projection = next(iter(program.network.projections.items()))
    session = open_session(program, target)
    session.close()
    session.close()
    for act in (
        lambda: session.run(spikes),
        lambda: session.stream(spikes),
        lambda: session.write_weights(name, projection.weight_mantissa),
    ):
        with pytest.raises(UsageError, match="closed"):
            act()
