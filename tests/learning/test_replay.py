"""The host's re-simulation from measured spikes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.backends import open_session
from nmtool.chip import load_chip, load_hardware
from nmtool.compiler import compile_program
from nmtool.config import SlayerSurrogate
from nmtool.errors import FitError
from nmtool.fixedpoint import fires
from nmtool.learning.replay import replay
from nmtool.learning.twin import Twin
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured

CHIP, REFERENCE = load_chip("loihi2"), load_hardware("reference")


def run(program, seed=0, faults=None, samples=6, rate=0.4):
    """Spikes and states of a program, and of the input that was sent."""
    rng = np.random.default_rng(seed)
    (lines,) = [source.size for source in program.network.inputs.values()]
    sent = rng.random((samples, lines, 24)) < rate
    target = REFERENCE.model_copy(update={"faults": faults})
    with open_session(program, target) as session:
        recording = session.run(SpikeTrain.from_raster(sent), probe="spikes,current,voltage")
    spikes = {"input": sent, **{n: t.to_raster() for n, t in recording.spikes.items()}}
    return recording, spikes


def voltages(program, spikes):
    measured = {name: Measured.whole(spikes[name]) for name in program.order}
    twin = Twin(program, CHIP, SlayerSurrogate())
    return {n: r.voltage for n, r in twin.replay(spikes["input"], measured).items()}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    delays=st.tuples(st.integers(0, 9), st.integers(0, 30)),
    axonal=st.integers(0, 9),
    decays=st.tuples(st.floats(0.001, 1), st.floats(0, 0.99)),
)
def test_on_a_healthy_target_it_is_the_voltage_before_the_reset(
    small_program, seed, delays, axonal, decays
):
    program = small_program(seed, delays, axonal, decays=decays)
    recording, spikes = run(program, seed)
    for name, before in voltages(program, spikes).items():
        fired = spikes[name]
        np.testing.assert_array_equal(np.where(fired, 0, before), recording.voltage[name])
        threshold = program.network.populations[name].threshold
        np.testing.assert_array_equal(fires(before, threshold), fired)


@settings(max_examples=15, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.3, 1.0]))
def test_a_few_steps_at_a_time_it_is_the_engines(network, seed, share):
    """Of any network, whatever part of it was measured."""
    rng, steps = np.random.default_rng(seed), 40
    program = compile_program(network, CHIP, None, steps)
    inputs = rng.random((2, network.sizes["input"], steps)) < 0.4
    measured = {
        name: Measured(rng.random(size) < 0.3, rng.random(size) < share)
        for name, p in network.populations.items()
        if rng.random() < 0.7
        for size in [(2, p.size, steps)]
    }
    twin, names = Twin(program, CHIP, SlayerSurrogate()), [*network.populations]
    try:
        whole = twin.replay(inputs, measured)
    except FitError:
        return
    if max(np.abs(r.voltage).max() for r in whole.values()) >= (1 << 23) - 1:
        return  # the chip saturates there, and the engine goes on
    chunks = [*replay(twin, inputs, measured, names)]
    assert len(chunks) > 1
    for name, expected in whole.items():
        for found, wanted in (("spikes", expected.spikes), ("voltage", expected.voltage)):
            parts = [getattr(chunk, found)[name] for chunk in chunks]
            np.testing.assert_array_equal(np.moveaxis(np.concatenate(parts), 0, -1), wanted)


def test_something_spikes_in_these_programs(small_program):
    rates = [run(small_program(seed), seed)[1]["output"].mean() for seed in range(5)]
    assert min(rates) >= 0
    assert max(rates) > 0.05


def test_it_follows_the_measured_spikes_and_not_its_own_idea(small_program):
    program = small_program(3)
    _, spikes = run(program, 3)
    assert spikes["hidden"].any()
    muted = {**spikes, "hidden": np.zeros_like(spikes["hidden"])}
    before = voltages(program, spikes)
    without = voltages(program, muted)
    assert (without["hidden"] != before["hidden"]).any(), "never reset where nothing was measured"
    bias = program.network.populations["output"].bias
    assert not bias.any()
    assert not without["output"].any(), "no spike was measured that could drive it"


def test_the_delays_of_the_way_are_kept(small_program):
    late = small_program(3, (0, 5), 4)
    spikes = {n: np.zeros((1, size, 24), np.bool_) for n, size in late.network.sizes.items()}
    spikes["hidden"][0, 0, 2] = True
    voltage = voltages(late, spikes)["output"][0]
    first = np.flatnonzero(voltage.any(axis=0))[0]
    assert first == 2 + 1 + 5 + 4
