from dataclasses import replace
from itertools import pairwise

import numpy as np
import oracle
import pytest
import strategies as nets
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmtool.backends import ReferenceBackend
from nmtool.backends.base import input_batch, resolve_probe
from nmtool.chip import SynapseFormat
from nmtool.compiler import compile_program
from nmtool.errors import BoardTimeout, ConfigError, FitError
from nmtool.network import Input
from nmtool.operations import Dense
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

STEPS = 20
ALL = "spikes,current,voltage"
seeds = st.integers(0, 9999)


def run(program, spikes, probe=ALL, **options):
    with ReferenceBackend().open(program) as session:
        return nets.arrays_of(session.run(spikes, probe=probe, **options))


def wanted(network, spikes, n_steps=STEPS):
    rasters = {name: train.batch() for name, train in spikes.items()}
    samples = [
        oracle.simulate(network, {name: r[k] for name, r in rasters.items()}, n_steps)
        for k in range(next(iter(rasters.values())).shape[0])
    ]
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


@given(nets.programs(STEPS), seeds, st.sampled_from([0.1, 0.5, 1.0]))
def test_every_spike_u_and_v_equals_the_scalar_oracle(program, seed, density):
    spikes = nets.random_input(program.network, 2, STEPS, seed, density)
    nets.assert_same(run(program, spikes), wanted(program.network, spikes))


@settings(max_examples=20)
@given(nets.programs(90, longest=59), seeds)
def test_long_delays_equal_the_scalar_oracle(program, seed):
    spikes = nets.random_input(program.network, 1, 90, seed, 0.1)
    nets.assert_same(run(program, spikes), wanted(program.network, spikes, 90))


def chain(delay=0, axonal=0, **registers):
    """Two neurons that always repeat what comes in."""
    plain = {"decay_u": 4095, "decay_v": 0, "threshold": 0, "bias_mantissa": np.zeros(1, int)}
    population = QuantizedPopulation((1,), **{**plain, **registers})
    format = SynapseFormat(8, 0, "mixed")
    weight = np.full((1, 1), 2)
    return QuantizedNetwork(
        "chain",
        "loihi2",
        {"input": Input((1,))},
        {"a": replace(population, axonal_delay=axonal), "b": population},
        {
            "in": QuantizedProjection.dense("input", "a", weight, format, delay),
            "ab": QuantizedProjection.dense("a", "b", weight, format, delay),
        },
        ("b",),
    )


@pytest.mark.parametrize(("delay", "axonal"), [(0, 0), (1, 0), (0, 3), (2, 5), (62, 0), (0, 62)])
def test_a_spike_takes_one_step_and_its_delays(delay, axonal):
    program = compile_program(chain(delay, axonal), nets.CHIP, n_steps=200)
    raster = np.zeros((1, 200))
    raster[0, 4] = 1
    recording = ReferenceBackend().open(program).run(SpikeTrain.from_raster(raster), probe="spikes")
    first, second = 4 + 1 + delay, 4 + 1 + delay + axonal + 1 + delay
    assert recording.spikes["a"].step.tolist() == [first]
    assert recording.spikes["b"].step.tolist() == [second]
    assert program.latency == second - 4


@pytest.mark.parametrize(
    ("mantissa", "exponent", "steps"), [(4095, 7, 40), (-4096, 7, 40), (1, 0, 40), (4095, 0, 8)]
)
def test_bias_alone_drives_a_neuron_to_its_register_s_end(mantissa, exponent, steps):
    bias = {"bias_mantissa": np.array([mantissa]), "bias_exponent": exponent}
    network = chain(threshold=131071, **bias)
    spikes = {"input": SpikeTrain.from_raster(np.zeros((1, 1, steps)))}
    program = compile_program(network, nets.CHIP, n_steps=steps)
    found = run(program, spikes)
    nets.assert_same(found, wanted(network, spikes, steps))
    if mantissa == -4096:
        assert found["voltage", "a"].min() == -(2**23) + 1


def test_a_current_that_overflows_wraps_and_is_counted():
    format = SynapseFormat(8, 7, "mixed")
    network = chain(decay_u=0)
    projection = replace(
        network.projections["in"], operations=(Dense(np.full((1, 1), 254)),), format=format
    )
    network = replace(network, projections={**network.projections, "in": projection})
    program = compile_program(network, nets.CHIP, n_steps=10)
    spikes = {"input": SpikeTrain.from_raster(np.ones((1, 1, 10)))}
    recording = ReferenceBackend().open(program).run(spikes, probe=ALL)
    assert recording.provenance["wrapped"] > 0
    assert recording.current["a"].min() < 0
    nets.assert_same(nets.arrays_of(recording), wanted(network, spikes, 10))


@given(nets.programs(STEPS), seeds, st.permutations(range(4)))
def test_the_order_of_samples_never_matters(program, seed, order):
    spikes = nets.random_input(program.network, 4, STEPS, seed)
    shuffled = {name: train.select(order) for name, train in spikes.items()}
    everything = run(program, spikes)
    nets.assert_same(run(program, shuffled), {k: a[list(order)] for k, a in everything.items()})
    one = {name: train.select([order[0]]) for name, train in spikes.items()}
    nets.assert_same(run(program, one), {k: a[[order[0]]] for k, a in everything.items()})


@given(nets.programs(STEPS), seeds)
def test_every_run_of_a_session_starts_from_reset(program, seed):
    spikes = nets.random_input(program.network, 2, STEPS, seed)
    with ReferenceBackend().open(program) as session:
        session.stream(spikes)
        first = nets.arrays_of(session.run(spikes, probe=ALL))
        nets.assert_same(first, nets.arrays_of(session.run(spikes, probe=ALL)))
    nets.assert_same(first, run(program, spikes))


@given(nets.programs(STEPS), seeds, st.lists(st.integers(1, STEPS - 1), max_size=4))
@example(compile_program(chain(2, 3), nets.CHIP, n_steps=STEPS), 0, [*range(1, STEPS)])
def test_a_stream_in_chunks_equals_one_run(program, seed, cuts):
    spikes = nets.random_input(program.network, 2, STEPS, seed)
    edges = [0, *sorted(set(cuts)), STEPS]
    with ReferenceBackend().open(program) as session:
        chunks = []
        for low, high in pairwise(edges):
            part = {
                name: SpikeTrain.from_raster(train.batch()[..., low:high])
                for name, train in spikes.items()
            }
            chunks.append(nets.arrays_of(session.stream(part, ALL)))
        session.reset()
        again = nets.arrays_of(session.stream(spikes, ALL))
    whole = run(program, spikes)
    joined = {key: np.concatenate([c[key] for c in chunks], axis=-1) for key in whole}
    nets.assert_same(joined, whole)
    nets.assert_same(again, whole)


@given(nets.programs(STEPS), seeds)
def test_written_weights_act_as_if_compiled(program, seed):
    rng = np.random.default_rng(seed)
    name, projection = next(iter(program.network.projections.items()))
    new = nets.random_mantissa(projection.format, projection.weight_mantissa.shape, rng)
    spikes = nets.random_input(program.network, 2, STEPS, seed)
    with ReferenceBackend().open(program) as session:
        changed = session.write_weights(name, new)
        written = nets.arrays_of(session.run(spikes, probe=ALL))
        assert session.program.fingerprint == program.with_weights({name: new}).fingerprint
    assert changed == np.count_nonzero(new != projection.weight_mantissa)
    nets.assert_same(written, run(program.with_weights({name: new}), spikes))


def test_weights_outside_the_frozen_format_are_refused_and_change_nothing():
    program = compile_program(chain(), nets.CHIP)
    session = ReferenceBackend().open(program)
    with pytest.raises(FitError, match="found the weight mantissa 3 at"):
        session.write_weights("ab", np.array([[3]]))
    with pytest.raises(FitError, match=r"found mantissas of shape \(1, 2\)"):
        session.write_weights("ab", np.array([[2, 2]]))
    with pytest.raises(ConfigError, match="write_weights: found 'ba', allowed in, ab"):
        session.write_weights("ba", np.array([[2]]))
    assert session.program.fingerprint == program.fingerprint
    assert session.write_weights("ab", np.array([[2]])) == 0


CHAIN = compile_program(chain(), nets.CHIP, n_steps=5)
FIVE = SpikeTrain.from_raster(np.ones((1, 1, 5)))


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        (None, {("spikes", "b")}),
        ("", set()),
        ("spikes", {("spikes", "a"), ("spikes", "b")}),
        ("voltage:a", {("voltage", "a")}),
        ("current:b, spikes:a", {("current", "b"), ("spikes", "a")}),
        ("voltage:a,voltage:b", {("voltage", "a"), ("voltage", "b")}),
        ({"current": ("a",)}, {("current", "a")}),
    ],
)
def test_what_was_not_probed_is_absent(probe, found):
    assert set(run(CHAIN, FIVE, probe)) == found


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("voltages", "found 'voltages', allowed spikes, current, voltage"),
        ("voltage:c", "found the population 'c', allowed a, b"),
        ({"spike": ("a",)}, "found 'spike', allowed spikes"),
        ({"spikes": ("c",)}, "found the population 'c'"),
    ],
)
def test_unknown_probes_are_refused(probe, message):
    with pytest.raises(ConfigError, match=message):
        resolve_probe(CHAIN, probe)


def test_a_single_sample_has_no_sample_axis():
    recording = (
        ReferenceBackend().open(CHAIN).run(SpikeTrain.from_raster(np.ones((1, 5))), probe=ALL)
    )
    assert recording.spikes["b"].to_raster().shape == (1, 5)
    assert recording.voltage["a"].shape == recording.current["a"].shape == (1, 5)
    assert recording.voltage["a"].dtype == np.int64
    assert (recording.n_steps, recording.backend) == (5, "reference")
    assert recording.fingerprint == CHAIN.fingerprint
    assert recording.wall_time >= 0
    assert "faults" not in recording.provenance


def test_steps_beyond_the_input_are_silent_steps():
    longer = run(CHAIN, FIVE, n_steps=9)
    padded = np.zeros((1, 1, 9))
    padded[..., :5] = 1
    nets.assert_same(longer, run(CHAIN, SpikeTrain.from_raster(padded)))


TWO_INPUTS = compile_program(
    QuantizedNetwork(
        "two",
        "loihi2",
        {"x": Input((2,)), "y": Input((1,))},
        chain().populations,
        {},
        ("b",),
    ),
    nets.CHIP,
)


@pytest.mark.parametrize(
    ("program", "spikes", "n_steps", "message"),
    [
        (CHAIN, SpikeTrain.from_raster(np.ones((2, 5))), None, "input: found 2 neurons, allowed 1"),
        (CHAIN, {"inptu": FIVE}, None, r"found spikes for \['inptu'\], allowed \['input'\]"),
        (CHAIN, {}, None, r"found spikes for \[\], allowed"),
        (CHAIN, FIVE, 0, "found 0 steps, allowed 1 or more"),
        (CHAIN, FIVE, 3, "found a spike at step 4, allowed 0 to 2; run at least 5 steps"),
        (TWO_INPUTS, FIVE, None, r"found one spike train, allowed one for each of \['x', 'y'\]"),
        (
            TWO_INPUTS,
            {"x": SpikeTrain.from_raster(np.ones((3, 2, 5))), "y": FIVE},
            None,
            "input y: found 1 samples, allowed 3",
        ),
    ],
)
def test_input_that_does_not_fit_the_program_is_refused(program, spikes, n_steps, message):
    with pytest.raises(ConfigError, match=message):
        input_batch(program, spikes, n_steps)


def test_a_stream_keeps_its_number_of_samples():
    session = ReferenceBackend().open(CHAIN)
    session.stream(FIVE)
    three = SpikeTrain.from_raster(np.ones((3, 1, 5)))
    with pytest.raises(ConfigError, match="stream: found 3 samples, allowed 1"):
        session.stream(three)
    session.reset()
    assert session.stream(three).spikes["b"].n_samples == 3


def test_progress_and_timeout():
    seen = []
    session = ReferenceBackend().open(CHAIN)
    session.run(FIVE, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]
    with pytest.raises(BoardTimeout, match="reference: not done after 1e-09 s at step 1 of 5"):
        ReferenceBackend(timeout=1e-9).open(CHAIN).run(FIVE)
