"""Costs: counts against a brute force and NeuroBench's figures, models against worked examples."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.chip import HardwareConfig, SynapseFormat, load_chip
from nmtool.compiler import Site, compile_program
from nmtool.compiler.place import Slice
from nmtool.compiler.wiring import wirings
from nmtool.errors import ArtifactError, ConfigError
from nmtool.measure.cost import barrier_time, choose_model, count, estimate
from nmtool.measure.fanout import fan_out
from nmtool.network import Input
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool, chain_connections
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

FORMAT = SynapseFormat(8, 0, "mixed")
LOIHI1 = load_chip("loihi1")
LOIHI2 = load_chip("loihi2")


def population(shape, threshold):
    """Neurons that add up their input: u decays at once, v never."""
    size = int(np.prod(shape))
    return QuantizedPopulation(shape, 4095, 0, threshold, np.zeros(size, np.int64))


def weights(shape, modulus, zero):
    """Some even weights of both signs, every ``zero``-th of them 0."""
    k = np.arange(int(np.prod(shape)))
    values = (k * 7 % modulus) - modulus // 3
    values[k % zero == 0] = 0
    return 2 * values.reshape(shape)


def raster(shape, k):
    """Spikes of shape (samples, steps, ...) that need no random numbers."""
    i = np.arange(int(np.prod(shape)))
    return ((i * i + 3 * i + k) % 7 < 2).reshape(shape)


def network(inputs, layers, chip="loihi1"):
    """A feed-forward network of (name, shape, threshold, operations)."""
    populations, projections, source = {}, {}, "input"
    for name, shape, threshold, operations in layers:
        populations[name] = population(shape, threshold)
        projections[name] = QuantizedProjection(source, name, operations, FORMAT)
        source = name
    shapes = {"input": Input(inputs)}
    return QuantizedNetwork("net", chip, shapes, populations, projections, (source,))


def train(spikes):
    """A train from a raster (samples, steps, ...) and two silent steps after it."""
    flat = spikes.reshape(*spikes.shape[:2], -1)
    silent = np.zeros((flat.shape[0], 2, flat.shape[2]), dtype=bool)
    return SpikeTrain.from_raster(np.concatenate([flat, silent], axis=1).transpose(0, 2, 1))


def record(program, given, probe="spikes,current,voltage"):
    target = HardwareConfig(schema="nmtool.hardware/v1", name="t", chip=program.chip)
    with open_session(program, target) as session:
        return session.run(given, probe=probe)


DENSE = (
    network(
        (12,),
        [
            ("hidden", (9,), 12, (Dense(weights((9, 12), 11, 4)),)),
            ("output", (5,), 10, (Dense(weights((5, 9), 9, 5)),)),
        ],
    ),
    train(raster((4, 10, 12), 1)),
)
CONVOLUTION = (
    network(
        (6, 5, 2),
        [
            ("map", (3, 3, 3), 8, (Conv(weights((3, 3, 3, 2), 11, 4), (2, 2), (1, 1)),)),
            ("output", (4,), 10, (Dense(weights((4, 27), 9, 5)),)),
        ],
    ),
    train(raster((3, 8, 6, 5, 2), 2)),
)


def counted(net, given, chip=None, probe="spikes,current,voltage", **site):
    """Compile, run and count; ``site`` places the program."""
    chip = chip or load_chip(net.chip)
    program = compile_program(net, chip, n_steps=given.n_steps, site=Site(**site))
    recording = record(program, given, probe)
    return count(program, recording, given, chip), program, recording


def narrow(neurons, chip=LOIHI1):
    """The chip with fewer neurons on a core, so that small networks spread."""
    return replace(chip, neurons_per_core=neurons)


@pytest.mark.parametrize(
    ("case", "operations", "activation", "connection"),
    [
        (DENSE, 358.75, 0.6264880952380952, 0.3137),
        (CONVOLUTION, 875.3333333333334, 0.48602150537634403, 0.3086),
    ],
    ids=["dense", "convolution"],
)
def test_the_figures_of_neurobench(case, operations, activation, connection):
    """What NeuroBench 2.3.0 printed for these networks.

    They were built of torch.nn.Linear and Conv2d without bias and an integrate-and-fire module
    (v += x; spike where v > threshold; v = 0), wrapped in TorchModel with that module added as
    activation, and run by Benchmark with batches of 2 and the metrics ConnectionSparsity,
    ActivationSparsity and SynapticOperations: Effective_ACs, as Effective_MACs was 0. Layers of
    torch answer in the same step, nmtool's one later: two silent steps end every sample.
    """
    counts, _, _ = counted(*case)
    assert counts.synaptic_operations == pytest.approx(operations, rel=1e-12)
    assert counts.activation_sparsity == pytest.approx(activation, rel=1e-12)
    assert round(counts.connection_sparsity, 4) == connection


def neurobench_rule(weight, sent, window=None):
    """Operations of one layer: every input that is not 0 times every weight of it that is not 0.

    ``sent`` has the shape (samples, steps, *source); ``window`` is (stride, padding) of a kernel.
    """
    total = 0
    for sample, step in np.ndindex(sent.shape[:2]):
        x = sent[sample, step]
        if window is None:
            total += sum(np.count_nonzero(weight[:, i]) for i in np.flatnonzero(x))
            continue
        (stride, padding), (n_out, kx, ky, _) = window, weight.shape
        for cx, cy in np.ndindex(3, 3):
            for o, i, j in np.ndindex(n_out, kx, ky):
                px, py = cx * stride + i - padding, cy * stride + j - padding
                if 0 <= px < x.shape[0] and 0 <= py < x.shape[1]:
                    total += np.count_nonzero((x[px, py] != 0) & (weight[o, i, j] != 0))
    return total


@pytest.mark.parametrize("case", [DENSE, CONVOLUTION], ids=["dense", "convolution"])
def test_operations_equal_a_brute_force(case):
    net, given = case
    counts, _, recording = counted(net, given)
    trains = {"input": given, **recording.spikes}
    for found, (name, p) in zip(counts.projections, net.projections.items(), strict=True):
        sent = trains[p.source].batch().transpose(0, 2, 1)
        sent = sent.reshape(*sent.shape[:2], *net.shapes[p.source])
        window = (2, 1) if name == "map" else None
        flat = sent if window else sent.reshape(*sent.shape[:2], -1)
        assert found.effective == neurobench_rule(p.weight_mantissa, flat, window), name
        ones = np.ones_like(p.weight_mantissa)
        assert found.operations == neurobench_rule(ones, flat, window), name
        assert found.spikes == len(trains[p.source]) > 0
        assert 0 < found.effective < found.operations
    per_sample = sum(p.effective for p in counts.projections) / given.n_samples
    assert counts.synaptic_operations == per_sample


SPARSE = Sparse(
    np.array([2, 0, -4, 6, 0, 8]),
    np.array([0, 0, 1, 2, 3, 3]),
    np.array([0, 4, 4, 11, 2, 7]),
    (4, 12),
)
CHAINS = {
    "dense": ((12,), (Dense(weights((7, 12), 9, 3)),)),
    "sparse": ((12,), (SPARSE,)),
    "convolution": ((7, 5, 2), (Conv(weights((4, 3, 2, 2), 9, 3), (2, 1), (1, 0)),)),
    "dilated": ((7, 6, 1), (Conv(weights((2, 2, 3, 1), 9, 3), (1, 1), (0, 2), (2, 2)),)),
    "groups": ((5, 5, 4), (Conv(weights((6, 3, 3, 2), 9, 3), (1, 1), (1, 1), (1, 1), 2),)),
    "pool": ((6, 4, 3), (SumPool((2, 2), (2, 2)), Scale(np.array([2])))),
    "overlapping pool": ((5, 5, 2), (SumPool((3, 3), (1, 1), (1, 1)), Scale(np.array([2])))),
    "no weight": ((6, 4, 3), (SumPool((2, 2), (2, 2)), Scale(np.array([0])))),
    "one to one": ((6,), (Scale(np.array([2])),)),
    "flatten": ((3, 2, 2), (Flatten(), Dense(weights((5, 12), 9, 3)))),
    "pool and convolution": (
        (6, 4, 2),
        (SumPool((2, 2), (2, 2)), Conv(weights((2, 2, 2, 2), 9, 3))),
    ),
}


@pytest.mark.parametrize("neurons", [2, 5, 1000])
@pytest.mark.parametrize("name", CHAINS)
def test_the_fan_out_is_that_of_every_single_synapse(name, neurons):
    shape, chain = CHAINS[name]
    target = shape
    for operation in chain:
        target = operation.output_shape(target)
    net = network(shape, [("output", target, 10, chain)])
    program = compile_program(net, narrow(neurons), n_steps=4)
    owner = np.zeros(int(np.prod(target)), np.int64)
    for index, part in enumerate(program.placement):
        owner[part.neurons(target)] = index
    found = fan_out(net.projections["output"], net.shapes, owner, len(program.placement))
    ways = chain_connections(chain, shape)
    stored = np.zeros((int(np.prod(shape)), len(program.placement)), np.int64)
    effective = np.zeros_like(stored)
    pairs = {}
    mantissa = net.projections["output"].weight_mantissa.ravel()
    for s, t, w in zip(ways.source, ways.target, mantissa[ways.index], strict=True):
        pairs[s, t] = pairs.get((s, t), 0) + w
    for (s, t), w in pairs.items():
        stored[s, owner[t]] += 1
        effective[s, owner[t]] += w != 0
    assert np.array_equal(found.stored.toarray(), stored)
    assert np.array_equal(found.effective.toarray(), effective)
    wiring = wirings(net)["output"]
    kinds = {"Full": "dense", "Window": "convolution", "Listed": "sparse"}
    assert found.kind == kinds[type(wiring).__name__]
    for index, part in enumerate(program.placement):
        reached = wiring.sources(part.box)
        assert not np.any((stored[:, index] > 0) & ~reached)


SPREAD = tuple(
    Slice(name, ((start, stop),), chip, core)
    for name, start, stop, chip, core in (
        ("hidden", 0, 2, 0, 0),
        ("hidden", 2, 5, 0, 5),
        ("hidden", 5, 9, 0, 26),
        ("output", 0, 3, 0, 127),
        ("output", 3, 5, 1, 3),
    )
)
"""Slices of the dense network over tiles and chips: cores 0 | 5 | 26 | 127 | 3 of the next chip."""

TILES = {"hidden": [(0, 0), (0, 1), (1, 2)], "output": [(7, 3), (8, 0)]}
"""Where those cores are: four to a tile, tiles numbered along y, chips in a row along x."""


def test_messages_and_hops_of_every_single_spike():
    net, given = DENSE
    counts, _, recording = counted(net, given, chips=2, placement=SPREAD)
    of_neuron = [0, 0, 1, 1, 1, 2, 2, 2, 2]
    messages = hops_x = hops_y = crossings = 0
    for neuron in recording.spikes["hidden"].neuron:
        x, y = TILES["hidden"][of_neuron[neuron]]
        for chip, (tx, ty) in enumerate(TILES["output"]):
            messages += 1
            hops_x += abs(tx - x)
            hops_y += abs(ty - y)
            crossings += chip
    hidden, output = counts.populations
    assert messages > 0
    assert (hidden.messages, hidden.hops_x, hidden.hops_y) == (messages, hops_x, hops_y)
    assert hidden.crossings == crossings
    assert (output.messages, output.hops_x, output.crossings) == (0, 0, 0)
    assert counts.inputs["input"] == (len(given), 3 * len(given))
    assert (counts.tiles, counts.chips, len(counts.cores)) == (5, 2, 5)


def test_hops_are_those_that_the_compiler_reports_of_the_same_spikes():
    net, given = DENSE
    counts, _, recording = counted(net, given, chips=2, placement=SPREAD)
    activity = {n: t.counts().sum(axis=0) for n, t in recording.spikes.items()}
    site = Site(chips=2, placement=SPREAD, activity=activity)
    fit = compile_program(net, LOIHI1, site=site).fit
    assert fit.hops.hops == sum(p.hops_x + p.hops_y for p in counts.populations) > 0
    assert fit.hops.crossings == sum(p.crossings for p in counts.populations) > 0


def test_every_core_and_step_has_its_own_load():
    net, given = DENSE
    counts, _, recording = counted(net, given, chips=2, placement=SPREAD)
    place = {core: index for index, core in enumerate(counts.cores)}
    own = {name: [place[s.chip, s.core] for s in SPREAD if s.population == name] for name in TILES}
    of_neuron = {"hidden": [0, 0, 1, 1, 1, 2, 2, 2, 2], "output": [0, 0, 0, 1, 1]}
    expected = {event: np.zeros_like(load) for event, load in counts.load.items()}
    trains = {"input": given, **recording.spikes}
    for p in net.projections.values():
        sizes = np.bincount(of_neuron[p.target])
        source = trains[p.source]
        for sample, step in zip(source.sample, source.step, strict=True):
            k = sample * given.n_steps + step
            for index, size in enumerate(sizes):
                expected["message_in"][k, own[p.target][index]] += 1
                expected["synapse_dense"][k, own[p.target][index]] += size
    for name, owner in of_neuron.items():
        raster = recording.spikes[name].batch()
        for s, n, t in np.ndindex(raster.shape):
            k, core = s * given.n_steps + t, own[name][owner[n]]
            states = recording.current[name][s, n, t], recording.voltage[name][s, n, t]
            active = bool(raster[s, n, t]) or any(states)
            expected["neuron_active" if active else "neuron_inactive"][k, core] += 1
            expected["spike"][k, core] += raster[s, n, t]
            expected["message_out"][k, core] += 2 * raster[s, n, t] if name == "hidden" else 0
    for event, load in expected.items():
        assert np.array_equal(counts.load[event], load), event
    assert 0 < counts.totals["neuron_inactive"] < counts.totals["neuron_active"]
    for name, event in (("message_in", "message_in"), ("synaptic_operations", "synapse_dense")):
        peak = counts.peaks[name]
        k, core = peak.sample * given.n_steps + peak.step, place[peak.chip, peak.core]
        assert peak.count == expected[event].max() == expected[event][k, core]
    assert counts.peaks["neuron_updates"].count == 4


def test_a_source_of_several_projections_sends_a_message_for_each():
    net, given = DENSE
    again = QuantizedProjection.dense("hidden", "hidden", weights((9, 9), 9, 4), FORMAT)
    net = replace(net, projections={**net.projections, "again": again})
    counts, _, recording = counted(net, given, chips=2, placement=SPREAD)
    hidden, output = counts.populations
    fired = len(recording.spikes["hidden"])
    assert (hidden.messages, output.messages) == (fired * (2 + 3), 0)
    assert counts.totals["message_out"] == hidden.messages
    assert counts.totals["message_in"] == hidden.messages + counts.inputs["input"][1]
    assert [p.operations for p in counts.projections] == [9 * len(given), 5 * fired, 9 * fired]


def test_a_spike_is_active_even_if_it_leaves_nothing_behind():
    """A bias of 64 x 10 lifts v over the threshold at every step; u stays 0, v goes back to 0."""
    net = network((1,), [("output", (2,), 5, (Dense(np.array([[6], [6]])),))])
    biased = replace(net.populations["output"], bias_mantissa=np.array([640, 0]))
    net = replace(net, populations={"output": biased})
    counts, _, recording = counted(net, SpikeTrain.from_raster(np.zeros((1, 1, 4), dtype=bool)))
    assert not recording.voltage["output"].any()
    assert not recording.current["output"].any()
    (population,) = counts.populations
    assert (population.updates, population.active, population.spikes) == (8, 4, 4)
    assert population.inactive == counts.totals["neuron_inactive"] == 4


def test_where_neurons_are_changes_messages_but_no_operation():
    net, given = CONVOLUTION
    together, _, _ = counted(net, given)
    apart, program, _ = counted(net, given, chip=narrow(4))
    assert len(program.placement) > len(together.cores)
    assert apart.projections == together.projections
    assert [p.spikes for p in apart.populations] == [p.spikes for p in together.populations]
    assert apart.totals["message_in"] > together.totals["message_in"]
    assert apart.totals["neuron_active"] == together.totals["neuron_active"]


def test_a_population_that_was_not_recorded_is_an_error_and_not_zero():
    net, given = DENSE
    program = compile_program(net, LOIHI1, n_steps=given.n_steps)
    with pytest.raises(ConfigError, match=r"no spikes of hidden in the recording.*probe"):
        count(program, record(program, given, None), given, LOIHI1)


def test_without_states_active_updates_are_not_known():
    counts, _, _ = counted(*DENSE, probe="spikes")
    assert [p.active for p in counts.populations] == [None, None]
    assert counts.totals["neuron_active"] is None
    assert "neuron_inactive" not in counts.quantities
    assert counts.synaptic_operations == pytest.approx(358.75)
    with pytest.raises(ConfigError, match=r"no count of neuron_inactive.*spikes,current,voltage"):
        estimate(counts, LOIHI1)


def test_what_belongs_to_another_run_is_refused():
    net, given = DENSE
    counts, program, recording = counted(net, given)
    with pytest.raises(ArtifactError, match="recording of the program other"):
        count(program, replace(recording, fingerprint="other"), given, LOIHI1)
    with pytest.raises(ArtifactError, match=r"no placement on cores.*compile it again"):
        count(replace(program, placement=()), recording, given, LOIHI1)
    with pytest.raises(ConfigError, match="2 and 4 samples"):
        count(program, recording, given.select([0, 1]), LOIHI1)
    with pytest.raises(ConfigError, match="input: found spikes for"):
        count(program, recording, {}, LOIHI1)
    with pytest.raises(ArtifactError, match="counts of loihi1"):
        estimate(counts, LOIHI2)


def test_steps_that_were_not_recorded_are_not_counted():
    net, given = DENSE
    _, program, whole = counted(net, given)
    trains = {name: t.first_steps(5) for name, t in whole.spikes.items()}
    states = {n: v[..., :5] for n, v in whole.voltage.items()}
    currents = {n: v[..., :5] for n, v in whole.current.items()}
    short = replace(whole, spikes=trains, voltage=states, current=currents, n_steps=5)
    found = count(program, short, given, LOIHI1)
    alone, _, _ = counted(net, given.first_steps(5))
    assert found.steps == 5
    assert found.as_json() == alone.as_json()


def test_a_single_sample_needs_no_axis():
    net, given = DENSE
    one = given.select([1])
    batched, _, _ = counted(net, one)
    plain, _, _ = counted(net, SpikeTrain.from_raster(one.batch()[0]))
    assert plain.as_json() == batched.as_json()


def graded_network():
    """A sigma-delta population that takes graded messages and passes spikes of 16 bits on."""
    neuron = QuantizedPopulation(
        (3,), 0, 0, 1, np.zeros(3, np.int64), model="sigma_delta", spike_exponent=0
    )
    decoder = replace(neuron, shape=(2,), bias_mantissa=np.zeros(2, np.int64))
    return QuantizedNetwork(
        "graded",
        "loihi2",
        {"input": Input((4,), "graded")},
        {"hidden": neuron, "output": decoder},
        {
            "hidden": QuantizedProjection.dense("input", "hidden", weights((3, 4), 9, 3), FORMAT),
            "output": QuantizedProjection.dense("hidden", "output", weights((2, 3), 9, 4), FORMAT),
        },
        ("output",),
    )


def test_a_graded_message_is_one_event_whatever_it_carries():
    values = np.array([[5, 0, -3, 0, 0], [0, 9, 0, 0, 0], [0, 0, 0, 0, 0], [200, 0, 1, 0, 0]])
    given = SpikeTrain.from_raster(values, graded=True)
    counts, _, recording = counted(graded_network(), given)
    hidden, output = counts.projections
    assert (hidden.spikes, hidden.operations) == (5, 15)
    matrix = weights((3, 4), 9, 3)
    expected = sum(np.count_nonzero(matrix[:, n]) for n in given.neuron)
    assert hidden.effective == expected
    assert output.spikes == np.count_nonzero(recording.spikes["hidden"].to_raster()) > 0


SANA_FE_PLACEMENT = (
    *(
        Slice("hidden", ((start, min(start + 20, 150)),), 0, start // 20)
        for start in range(0, 150, 20)
    ),
    Slice("output", ((0, 20),), 0, 16),
    Slice("output", ((20, 30),), 0, 17),
)


def test_the_energy_and_time_that_sana_fe_prints():
    """SANA-FE 2.2.9 ran this network on its examples/loihi.yaml for 50 steps.

    The neurons were of the type loihi_lif (leak_decay 1, input_decay 0, hard reset to 0) on the
    same cores, the edges loihi_dense_synapse, zero weights among them, the inputs of the type
    loihi_inputs on core 18. It printed: synapse 3.884055e-06 J, soma 7.701552e-07 J, network
    7.445028e-07 J; 109410 synaptic operations, 6416 packets, 2191 neurons fired; sim_time
    1.8939e-04 s with the timing model ``simple``, 2.0166e-04 s with ``detailed``. There inputs are
    neurons whose messages leave a core of the mesh, here they come from outside: their 3512
    messages at 111 pJ, and 439 spikes of 8 hops E-W and 4 N-S, are in its network energy only.
    """
    net = network(
        (32,),
        [
            ("hidden", (150,), 400, (Dense(np.abs(weights((150, 32), 23, 5))),)),
            ("output", (30,), 900, (Dense(np.abs(weights((30, 150), 19, 4))),)),
        ],
    )
    given = train(raster((1, 48, 32), 1))
    counts, _, _ = counted(net, given, placement=SANA_FE_PLACEMENT)
    assert counts.totals["synapse_dense"] == 109410
    assert counts.totals["message_in"] == 6416
    assert counts.totals["spike"] + len(given) == 2191
    modelled = estimate(counts, LOIHI1, "sana-fe")
    pj = modelled.energy
    assert pj["synapse_dense"] == pytest.approx(3.884055e6, rel=1e-9)
    soma = pj["neuron_inactive"] + pj["neuron_active"] + pj["spike"]
    assert soma == pytest.approx(7.701552e5, rel=1e-9)
    inputs = 3512 * 111 + 439 * (8 * 3.0 + 4 * 4.2)
    assert pj["message_out"] + pj["hop_x"] + pj["hop_y"] + inputs == pytest.approx(7.445028e5)
    assert modelled.step_times.sum() == pytest.approx(1.8939e5, rel=1e-9)
    assert modelled.unpriced == ()


def two_neurons():
    """One input into two neurons on cores of two tiles; only the first fires, at step 1."""
    net = network((1,), [("output", (2,), 5, (Dense(np.array([[6], [2]])),))])
    placement = (Slice("output", ((0, 1),), 0, 0), Slice("output", ((1, 2),), 0, 4))
    given = SpikeTrain.from_raster(np.array([[[1, 0, 0]]]))
    return counted(net, given, placement=placement)[0]


def test_a_worked_example_of_sana_fe():
    """Step 0: a message and a synapse a core; step 1: one neuron spikes, the other keeps 2."""
    modelled = estimate(two_neurons(), LOIHI1)
    assert modelled.model == "sana-fe"
    energy = 2 * 35.5 + 3 * 51.2 + 3 * 72.8 + 69.3
    assert sum(modelled.energy.values()) == pytest.approx(energy)
    barrier = 1000.0
    steps = [16.0 + 3.8, 9.7 + 30.0, 9.7]
    assert modelled.step_times == pytest.approx(np.array([steps]) + barrier)
    assert modelled.quantities["energy"].value == pytest.approx(energy * 1e-6)
    assert modelled.quantities["time"].value == pytest.approx((sum(steps) + 3 * barrier) * 1e-3)
    assert {q.basis for q in modelled.quantities.values()} == {"modelled"}


def test_a_worked_example_of_davies_2018():
    modelled = estimate(two_neurons(), LOIHI1, "davies2018")
    energy = 2 * 23.6 + 3 * 52.0 + 3 * 81.0 + 2 * 1.7
    assert sum(modelled.energy.values()) == pytest.approx(energy)
    barrier = 113 + (465 - 113) / 31
    steps = [5.3 + 2.1 + 3.5, 8.4, 8.4]
    assert modelled.step_times == pytest.approx(np.array([steps]) + barrier)
    assert modelled.unpriced == ("spike",)


def test_static_power_stands_alone():
    modelled = estimate(two_neurons(), LOIHI1)
    quantities = modelled.quantities
    assert quantities["static_power"].value == 104
    static = 104e-3 * quantities["time"].value
    assert quantities["static_energy"].value == pytest.approx(static)
    without = estimate(two_neurons(), replace(LOIHI1, static_power=None)).quantities
    assert without["energy"] == quantities["energy"]
    assert not {"static_power", "static_energy"} & {*without}


@pytest.mark.parametrize(
    ("model", "tiles", "time"),
    [
        ("sana-fe", 1, 600),
        ("sana-fe", 3, 1000),
        ("sana-fe", 4, 1400),
        ("sana-fe", 32, 1800),
        ("davies2018", 1, 113),
        ("davies2018", 32, 465),
    ],
)
def test_the_barrier_by_the_tiles_in_use(model, tiles, time):
    assert barrier_time(LOIHI1.cost_models[model], tiles) == time


def test_between_chips_no_time_and_no_energy_is_known():
    counts, _, _ = counted(*DENSE, chips=2, placement=SPREAD)
    modelled = estimate(counts, LOIHI1)
    assert modelled.step_times is None
    assert "barrier between 2 chips" in modelled.as_json()["no_time"]
    assert modelled.unpriced == ("chip crossings",)
    assert not {"time", "static_energy"} & {*modelled.quantities}
    assert modelled.quantities["static_power"].value == 208


def test_models_by_name():
    assert choose_model(LOIHI1) == "sana-fe"
    with pytest.raises(ConfigError, match=r"guess: unknown, allowed for loihi1: sana-fe, davies"):
        choose_model(LOIHI1, "guess")
    for name in (None, "sana-fe"):
        with pytest.raises(
            ConfigError, match=r"no published energy per event for loihi2.*cost\.md"
        ):
            choose_model(LOIHI2, name)


MEASURED = """\
schema: nmtool.chip/v1
extends: loihi2
name: our-loihi2
cost_models:
  ours:
    about: our board, March
    events:
      synapse_dense: {energy_pj: 10, time_ns: 1, standing: measured, source: our bench}
      spike: {energy_pj: 7, standing: user, source: our bench}
"""


def test_measured_constants_of_a_users_chip_file(tmp_path):
    path = tmp_path / "measured.yaml"
    path.write_text(MEASURED)
    chip = replace(load_chip(str(path)), name="loihi2")
    assert chip.static_power is None
    net, given = DENSE
    counts, _, _ = counted(replace(net, chip="loihi2"), given, chip, probe="spikes")
    modelled = estimate(counts, chip)
    operations, spikes = counts.totals["synapse_dense"], counts.totals["spike"]
    assert modelled.energy == {"synapse_dense": 10.0 * operations, "spike": 7.0 * spikes}
    assert modelled.step_times is None
    assert "no time of a step" in modelled.no_time
    assert modelled.unpriced[:2] == ("neuron_inactive", "neuron_active")
    assert "message_in" in modelled.unpriced


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy_pj: 10", "energy_pj: -1", "energy_pj"),
        ("synapse_dense", "synapse_densse", "synapse_dense"),
        ("standing: measured, ", "", "standing"),
        ("source: our bench}\n      spike", "source: ''}\n      spike", "source"),
        ("energy_pj: 7", "energy_pj: .nan", "energy_pj"),
        (
            "    about:",
            "    barrier: {tiles: [2, 1], time_ns: [1, 2], standing: user, source: x}\n    about:",
            "rising numbers of tiles",
        ),
    ],
)
def test_wrong_constants_name_their_place(tmp_path, old, new, message):
    path = tmp_path / "measured.yaml"
    path.write_text(MEASURED.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_chip(str(path))
    assert "measured.yaml" in str(caught.value)


def test_the_examples_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()
    (chip_file,), (code,) = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("yaml", "python")
    )
    (tmp_path / "measured.yaml").write_text(chip_file)
    assert [*load_chip(str(tmp_path / "measured.yaml")).cost_models] == ["bench"]
    net, given = DENSE
    names = {"program": compile_program(net, LOIHI1, n_steps=given.n_steps), "given": given}
    exec(code, names)
    assert names["modelled"].model == "sana-fe"
    for name, model in LOIHI1.cost_models.items():
        assert f"`{name}`" in text
        for cost in model.events.values():
            assert f"{cost.energy_pj:g} pJ" in text or f"{cost.energy_pj} pJ" in text
            assert f"{cost.time_ns} ns" in text


def test_every_constant_has_a_source_and_a_standing():
    for model in LOIHI1.cost_models.values():
        for part in (*model.events.values(), model.barrier, model.step):
            assert part.source
            assert part.standing in ("paper", "code", "inferred")


def test_documents_are_plain_and_say_what_was_counted_and_what_modelled():
    counts, _, _ = counted(*DENSE)
    document = json.loads(json.dumps([counts.as_json(), estimate(counts, LOIHI1).as_json()]))
    assert [part["basis"] for part in document] == ["counted", "modelled"]
    assert document[1]["model"] == "sana-fe"
    assert document[0]["totals"]["synapse_dense"] == counts.projections[0].operations + (
        counts.projections[1].operations
    )
