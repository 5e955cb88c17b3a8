from dataclasses import replace
from itertools import pairwise

import numpy as np
import oracle
import pytest
import strategies as nets
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmtool.backends.base import input_batch, resolve_probe
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat
from nmtool.compiler import compile_program
from nmtool.errors import BoardTimeout, ConfigError, FitError
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population
from nmtool.operations import Dense, Scale, SumPool
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


@settings(max_examples=200)
@given(nets.any_programs(16), seeds, st.sampled_from([0.1, 0.6]), st.sampled_from([3, 2**23 - 1]))
def test_everything_of_every_kind_equals_the_scalar_oracle(program, seed, density, largest):
    inputs = nets.random_input(program.network, 2, 16, seed, density, largest)
    nets.assert_same(run(program, inputs), wanted(program.network, inputs, 16))


@settings(max_examples=30)
@given(nets.any_programs(90, longest=62), seeds)
def test_long_delays_of_every_kind_equal_the_scalar_oracle(program, seed):
    inputs = nets.random_input(program.network, 1, 90, seed, 0.1)
    nets.assert_same(run(program, inputs), wanted(program.network, inputs, 90))


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


@given(nets.any_programs(STEPS), seeds, st.permutations(range(4)))
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


@given(
    st.one_of(nets.programs(STEPS), nets.any_programs(STEPS)),
    seeds,
    st.lists(st.integers(1, STEPS - 1), max_size=4),
)
@example(compile_program(chain(2, 3), nets.CHIP, n_steps=STEPS), 0, [*range(1, STEPS)])
def test_a_stream_in_chunks_equals_one_run(program, seed, cuts):
    spikes = nets.random_input(program.network, 2, STEPS, seed)
    edges = [0, *sorted(set(cuts)), STEPS]
    with ReferenceBackend().open(program) as session:
        chunks = []
        for low, high in pairwise(edges):
            part = {
                name: SpikeTrain.from_raster(t.batch()[..., low:high], t.payload is not None)
                for name, t in spikes.items()
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
    with pytest.raises(FitError, match="projection ab: found the weight mantissa 3 at"):
        session.write_weights("ab", np.array([[3]]))
    for wrong, found in (([[2, 2]], r"shape \(1, 2\), allowed \(1, 1\)"), (None, "type object")):
        with pytest.raises(ConfigError, match=f"projection ab: found mantissas of {found}"):
            session.write_weights("ab", np.array(wrong))
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
        ({}, set()),
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
        (CHAIN, FIVE, 0, "found 0 steps, allowed whole numbers from 1"),
        (CHAIN, FIVE, 3, "found a spike at step 4, allowed 0 to 2; run at least 5 steps"),
        (TWO_INPUTS, FIVE, None, r"found one spike train, allowed one for each of \['x', 'y'\]"),
        (
            TWO_INPUTS,
            {"x": SpikeTrain.from_raster(np.ones((3, 2, 5))), "y": FIVE},
            None,
            "input y: found 1 sample, allowed 3 samples as in the other inputs",
        ),
        (
            TWO_INPUTS,
            {
                "x": SpikeTrain.from_raster(np.ones((1, 2, 5))),
                "y": SpikeTrain.from_raster(np.ones((1, 5))),
            },
            None,
            "input y: found 1 sample without a sample axis, allowed 1 sample as in the other",
        ),
    ],
)
def test_input_that_does_not_fit_the_program_is_refused(program, spikes, n_steps, message):
    with pytest.raises(ConfigError, match=message):
        input_batch(program, spikes, n_steps)


def test_the_shape_of_an_input_is_said():
    neurons = Population((24,), CubaLif(1.0, 0.25, 0.03))
    image = {"image": Input((4, 3, 2), "bias", "a")}
    program = compile_program(Network("n", image, {"a": neurons}, {}, ("a",)), nets.CHIP)
    with pytest.raises(ConfigError, match=r"allowed 24 \(4x3x2, flattened in C order\)"):
        input_batch(program, SpikeTrain.from_raster(np.ones((6, 5)), graded=True))


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
    with pytest.raises(BoardTimeout, match="reference: not done after 1e-09 s, with 1 of 5 steps"):
        ReferenceBackend(timeout=1e-9).open(CHAIN).run(FIVE)


# What neurons and inputs of each kind do, by hand


def alone(kind="graded", drives="a", reset=None, **registers):
    """One input and one population of one neuron."""
    plain = {"decay_u": 4095, "decay_v": 4096, "threshold": 0, "bias_mantissa": np.zeros(1, int)}
    population = QuantizedPopulation((1,), **{**plain, **registers}, reset=reset)
    return QuantizedNetwork(
        "alone", "loihi2", {"input": Input((1,), kind, drives)}, {"a": population}, {}, ("a",)
    )


def messages(network, *values, **options):
    program = compile_program(network, nets.CHIP, n_steps=len(values))
    train = SpikeTrain.from_raster(np.array([values]), graded=True)
    return {k[0]: a.ravel().tolist() for k, a in run(program, train, **options).items()}


def test_a_refractory_neuron_pauses_while_its_current_goes_on():
    found = messages(alone(refractory_delay=3, decay_u=-1), 1, 0, 0, 0, 0, 0)
    assert found["spikes"] == [1, 0, 0, 1, 0, 0]
    assert found["current"] == [64] * 6
    assert found["voltage"] == [0] * 6


def test_a_periodic_reset_clears_before_the_input_is_added():
    network = alone(decay_u=-1, decay_v=0, threshold=131071, reset=PeriodicReset(3, -1))
    assert messages(network, 1, 1, 1, 1)["current"] == [64, 128, 64, 128]
    sigma = alone(model="sigma", reset=PeriodicReset(2))
    assert messages(sigma, 1, 2, 3, 4)["spikes"] == [1, 3, 3, 7]


def test_a_bias_input_is_added_at_the_step_itself():
    network = alone("bias", bias_exponent=2, bias_mantissa=np.array([1]), threshold=131071)
    assert messages(network, 5, 0, -7)["voltage"] == [24, 4, -24]


def test_a_delta_encoder_keeps_what_it_did_not_send():
    network = alone(model="delta", threshold=3, spike_exponent=1, state_exponent=2)
    found = messages(network, 2, 4, 4, -9)
    assert found["spikes"] == [0, 8, 0, -26]
    assert found["voltage"] == [16, 32, 32, -72]


@pytest.mark.parametrize(("kind", "acts"), [("relu", [2, 0, 0, 3]), ("unit", [2, -1, 0, 3])])
def test_sigma_delta_neurons_send_the_change_of_their_activation(kind, acts):
    found = messages(alone(model="sigma_delta", activation=kind), 2, -3, 1, 3)
    assert found["current"] == [2, -1, 0, 3]
    assert found["voltage"] == acts
    assert np.cumsum(found["spikes"]).tolist() == acts


def test_messages_fall_towards_minus_infinity():
    network = alone(model="sigma_delta", activation="unit", state_exponent=2)
    assert messages(network, 7, -8)["spikes"] == [1, -2]


def test_messages_of_neurons_have_32_bits():
    top = 2**23 - 1
    assert messages(alone(model="sigma"), top, top, top)["spikes"] == [top, 2 * top, 3 * top]
    around = alone(model="delta", spike_exponent=23)
    assert messages(around, 2**8)["voltage"] == [-(2**31)]


def test_pooled_spikes_are_counted():
    pool = (SumPool((2, 2), (2, 2)), Scale(np.full(1, 2)))
    network = alone("spikes", None, threshold=131071)
    network = replace(
        network,
        inputs={"input": Input((2, 2, 1))},
        projections={"p": QuantizedProjection("input", "a", pool, SynapseFormat(8, 0, "mixed"))},
    )
    program = compile_program(network, nets.CHIP, n_steps=2)
    found = run(program, SpikeTrain.from_raster(np.ones((4, 2))))
    assert found["current", "a"].tolist() == [[0, 8 * 64]]


def test_a_network_without_inputs_runs_for_a_number_of_steps():
    network = replace(alone(bias_mantissa=np.array([1])), inputs={})
    program = compile_program(network, nets.CHIP)
    recording = ReferenceBackend().open(program).run({}, n_steps=4)
    assert recording.spikes["a"].to_raster().tolist() == [[True] * 4]
    with pytest.raises(ConfigError, match="input: found 0 steps, allowed whole numbers from 1"):
        ReferenceBackend().open(program).run({})


@pytest.mark.parametrize(
    ("kind", "drives", "raster", "message"),
    [
        ("spikes", None, np.full((1, 2), 3), "input: found graded values, allowed spikes"),
        ("bias", "a", np.full((1, 2), 4096), "bias mantissas of 4096 to 4096 in a, allowed -4096"),
        ("bias", "a", np.full((1, 2), -4097), "bias mantissas of -4097 to -4097"),
    ],
)
def test_values_that_an_input_does_not_take_are_refused(kind, drives, raster, message):
    program = compile_program(alone(kind, drives), nets.CHIP)
    with pytest.raises(ConfigError, match=message):
        input_batch(program, SpikeTrain.from_raster(raster, graded=True))


def test_spikes_into_a_graded_input_are_messages_of_1():
    program = compile_program(alone(model="sigma"), nets.CHIP, n_steps=3)
    assert run(program, SpikeTrain.from_raster(np.ones((1, 3))))["spikes", "a"].tolist() == [
        [[1, 2, 3]]
    ]


@pytest.mark.parametrize(
    ("model", "states", "refused"),
    [
        ("cuba", {"current", "voltage"}, None),
        ("sigma_delta", {"current", "voltage"}, None),
        ("delta", {"voltage"}, "current"),
        ("sigma", {"current"}, "voltage"),
    ],
)
def test_states_that_a_model_has_not_are_left_out_or_refused(model, states, refused):
    program = compile_program(alone(model=model), nets.CHIP)
    found = resolve_probe(program, ALL)
    assert {quantity for quantity, names in found.items() if names} == {"spikes"} | states
    if refused:
        with pytest.raises(
            ConfigError, match=f"found {refused}:a, .*a {model} neuron has no {refused}"
        ):
            resolve_probe(program, f"{refused}:a")
