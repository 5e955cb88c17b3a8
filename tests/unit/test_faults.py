import re
from dataclasses import replace

import numpy as np
import oracle
import pytest
import strategies as nets
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nmtool.backends import check_runnable, open_session
from nmtool.backends.faults import draw, read_back
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat, load_hardware, shipped
from nmtool.compiler import compile_program
from nmtool.errors import ConfigError
from nmtool.faultmodel import Faults
from nmtool.measure import compare
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population, Projection
from nmtool.operations import Dense
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

fractions = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
STEPS = 12


def wide(weight_bits=8):
    """40 inputs, a recurrent population of 30 and one of 21 that come in no order of names."""
    rng = np.random.default_rng(0)
    neuron = CubaLif(1.0, 0.5, 0.2)
    network = Network(
        "wide",
        {"input": Input((40,))},
        {"zeta": Population((30,), neuron, np.full(30, 0.3)), "alpha": Population((21,), neuron)},
        {
            "in": Projection.dense("input", "zeta", rng.normal(0, 0.5, (30, 40))),
            "back": Projection.dense("zeta", "zeta", rng.normal(0, 0.3, (30, 30)), 2),
            "a": Projection.dense("zeta", "alpha", rng.normal(0, 0.5, (21, 30))),
        },
        ("alpha",),
        weight_bits=weight_bits,
    )
    return compile_program(network, nets.CHIP, n_steps=STEPS)


WIDE = wide()
INPUT = nets.random_input(WIDE.network, 5, STEPS, seed=1)


def record(faults, program=WIDE, runs=1):
    with ReferenceBackend(faults).open(program) as session:
        return [nets.arrays_of(session.run(INPUT, probe="spikes,voltage")) for _ in range(runs)]


@given(fractions, fractions, st.integers(0, 50))
def test_counts_are_rounded_and_drawn_without_replacement(dead, stuck, seed):
    defects = draw(WIDE, Faults(seed=seed, dead_neurons=dead, stuck_neurons=stuck))
    for name, population in WIDE.network.populations.items():
        one, other = defects.dead[name], defects.stuck[name]
        assert len(one) == round(dead * population.size)
        assert len(other) == min(round(stuck * population.size), population.size - len(one))
        both = np.concatenate([one, other])
        assert len(set(both.tolist())) == len(both)
        assert set(both.tolist()) <= set(range(population.size))
        assert one.tolist() == sorted(one)
        assert other.tolist() == sorted(other)


EVERYTHING = Faults(
    seed=3, dead_neurons=0.2, stuck_neurons=0.1, weight_bit_flips=0.1, spike_loss=0.1
)


def listed(faults, program=WIDE):
    return draw(program, faults).listing()


def test_one_seed_gives_the_same_defects_and_another_seed_others():
    assert listed(EVERYTHING) == listed(EVERYTHING)
    other = listed(EVERYTHING.model_copy(update={"seed": 4}))
    for key in ("dead", "stuck", "flipped"):
        assert other[key] != listed(EVERYTHING)[key]


def test_defects_belong_to_the_fingerprint_and_not_to_the_order_of_names():
    network = WIDE.network
    turned = replace(
        WIDE,
        network=replace(
            network,
            populations=dict(reversed(network.populations.items())),
            projections=dict(reversed(network.projections.items())),
        ),
    )
    assert turned.fingerprint == WIDE.fingerprint
    assert listed(EVERYTHING, turned) == listed(EVERYTHING)


def test_more_of_one_fault_leaves_the_others_as_they_were():
    more = EVERYTHING.model_copy(update={"spike_loss": 0.5, "weight_bit_flips": 0.0})
    assert listed(more)["dead"] == listed(EVERYTHING)["dead"]
    assert listed(more)["stuck"] == listed(EVERYTHING)["stuck"]
    assert not any(listed(more)["flipped_weights"].values())


def test_dead_neurons_never_spike_and_stuck_ones_always_do():
    faults = Faults(seed=1, dead_neurons=0.3, stuck_neurons=0.2)
    defects = draw(WIDE, faults)
    found, healthy = record(faults)[0], record(None)[0]
    for name in WIDE.network.populations:
        assert healthy["spikes", name][:, defects.dead[name]].any()
        assert not healthy["spikes", name][:, defects.stuck[name]].all()
        assert not found["spikes", name][:, defects.dead[name]].any()
        assert found["spikes", name][:, defects.stuck[name]].all()
        assert not found["voltage", name][:, defects.stuck[name]].any()


def test_no_faults_change_nothing_and_are_labelled_all_the_same():
    nets.assert_same(record(Faults(seed=5))[0], record(None)[0])
    recording = ReferenceBackend(EVERYTHING).open(WIDE).run(INPUT)
    assert recording.backend == "reference with faults"
    assert recording.provenance["faults"]["label"].endswith("not a chip")
    assert recording.provenance["faults"]["dead"] == listed(EVERYTHING)["dead"]
    assert recording.provenance["faults"]["run"] == 0


@given(nets.formats(), st.integers(0, 999))
def test_reading_back_flips_exactly_the_bits_said(format, seed):
    rng = np.random.default_rng(seed)
    mantissa = nets.random_mantissa(format, (4, 5), rng)
    flips = rng.integers(0, 2**format.bits, (4, 5))
    back = read_back(mantissa, flips, format)
    assert np.all((back >= format.minimum) & (back <= format.maximum))
    assert np.all(back % format.step == 0)
    np.testing.assert_array_equal(read_back(back, flips, format), mantissa)
    np.testing.assert_array_equal(read_back(mantissa, flips * 0, format), mantissa)
    mask = 2**format.bits - 1
    stored, changed = np.abs(mantissa) // format.step, np.abs(back) // format.step
    if format.sign_mode == "mixed":
        stored, changed = mantissa // format.step & mask, back // format.step & mask
    np.testing.assert_array_equal(stored ^ changed, flips)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_as_many_bits_flip_as_asked(bits):
    program = wide(bits)
    flips = draw(program, Faults(seed=2, weight_bit_flips=0.1)).flips
    total = sum(f.size for f in flips.values()) * bits
    flipped = sum(sum(int(word).bit_count() for word in f.flat) for f in flips.values())
    assert all(f.max() < 2**bits for f in flips.values())
    assert abs(flipped / total - 0.1) < 5 * np.sqrt(0.09 / total)
    every = draw(program, Faults(weight_bit_flips=1.0)).flips
    assert all(np.all(f == 2**bits - 1) for f in every.values())


def test_flipped_weights_act_whatever_is_written():
    faults = Faults(seed=2, weight_bit_flips=0.05)
    defects = draw(WIDE, faults)
    assert defects.listing()["flipped_weights"]["in"] == np.count_nonzero(defects.flips["in"])

    def stored(program):
        return program.with_weights(
            {
                name: defects.stored(name, p.weight_mantissa, p.format)
                for name, p in program.network.projections.items()
            }
        )

    nets.assert_same(record(faults)[0], record(None, stored(WIDE))[0])
    new = -WIDE.network.projections["in"].weight_mantissa.clip(-254, 254)
    with ReferenceBackend(faults).open(WIDE) as session:
        session.write_weights("in", new)
        written = nets.arrays_of(session.run(INPUT, probe="spikes,voltage"))
        assert session.program.fingerprint == WIDE.with_weights({"in": new}).fingerprint
    nets.assert_same(written, record(None, stored(WIDE.with_weights({"in": new})))[0])


def test_spikes_are_lost_at_the_rate_asked():
    rng = np.random.default_rng(0)
    defects = draw(WIDE, Faults(spike_loss=0.2))
    spikes = rng.random((200, 300)) < 0.5
    kept = defects.deliver(spikes, run=0, node=1, step=2)
    assert not np.any(kept & ~spikes)
    lost = 1 - kept.sum() / spikes.sum()
    assert abs(lost - 0.2) < 5 * np.sqrt(0.16 / spikes.sum())
    everything = record(Faults(spike_loss=1.0))[0]
    assert not any(a.any() for (kind, _), a in everything.items() if kind == "spikes")


def test_a_lost_spike_reaches_neither_its_targets_nor_the_probe():
    """Stuck neurons spike at every step, so what is missing was lost."""
    faults = Faults(seed=1, stuck_neurons=1.0, spike_loss=0.3)
    with ReferenceBackend(faults).open(WIDE) as session:
        recording = session.run(INPUT, probe="spikes,current")
    sent = recording.spikes["zeta"].batch().astype(np.int64)
    assert abs(1 - sent.mean() - 0.3) < 5 * np.sqrt(0.21 / sent.size)
    weight = WIDE.network.projections["a"].weight
    current = np.zeros((5, 21), dtype=np.int64)
    keep = 4096 - (WIDE.network.populations["alpha"].decay_u + 1)
    for t in range(1, STEPS):
        current = np.sign(current) * (np.abs(current) * keep >> 12)
        current = current + (sent[:, :, t - 1] @ weight.T << 6)
        np.testing.assert_array_equal(recording.current["alpha"][:, :, t], current)


def stuck_and_late(rate):
    """Stuck neurons send at every step: what is missing is late, and merges with the next."""
    return record(Faults(seed=1, stuck_neurons=1.0, late_spikes=rate))[0]["spikes", "zeta"]


def test_spikes_are_late_at_the_rate_asked_and_arrive_a_step_later():
    defects = draw(WIDE, Faults(late_spikes=0.2))
    spikes = np.random.default_rng(0).random((200, 300)) < 0.5
    on_time, late = defects.defer(spikes, None, run=0, node=1, step=2)
    np.testing.assert_array_equal(on_time ^ late, spikes)
    assert abs(late.sum() / spikes.sum() - 0.2) < 5 * np.sqrt(0.16 / spikes.sum())
    arrived, _ = defects.defer(np.zeros_like(spikes), late, run=0, node=1, step=3)
    np.testing.assert_array_equal(arrived, late)
    missing = 1 - stuck_and_late(0.3)
    assert missing[:, :, 0].any()
    assert abs(missing[:, :, 1:].mean() - 0.3 * 0.7) < 0.05  # late, and the one before was not
    delayed = stuck_and_late(1.0)
    assert not delayed[:, :, 0].any()
    assert delayed[:, :, 1:].all()


def test_late_spikes_and_lost_ones_are_drawn_from_different_numbers():
    spikes = np.ones((50, 200), dtype=np.bool_)
    defects = draw(WIDE, Faults(spike_loss=0.5, late_spikes=0.5))
    kept = defects.deliver(spikes, run=0, node=1, step=2)
    _, late = defects.defer(spikes, None, run=0, node=1, step=2)
    assert abs(np.mean(kept & late) - 0.25) < 5 * np.sqrt(0.19 / spikes.size)


def test_thresholds_are_spread_around_their_own_and_labelled_analogue():
    drawn = [draw(WIDE, Faults(seed=k, threshold_spread=0.3)) for k in range(40)]
    for name, population in WIDE.network.populations.items():
        ratio = np.concatenate([d.threshold_of(name) for d in drawn]) / population.threshold
        assert abs(ratio.mean() - 1) < 5 * 0.3 / np.sqrt(ratio.size)
        assert abs(ratio.std() - 0.3) < 0.05
    found = drawn[0].listing()
    assert "analogue mismatch" in found["label"]
    assert {name: len(drawn) for name, drawn in found["spread_thresholds"].items()} == {
        name: population.size for name, population in WIDE.network.populations.items()
    }
    assert "analogue" not in listed(EVERYTHING)["label"]
    assert listed(EVERYTHING)["spread_thresholds"] == {}
    widest = np.concatenate(
        [draw(WIDE, Faults(seed=k, threshold_spread=1.0)).threshold_of("zeta") for k in range(9)]
    )
    assert widest.min() == 0  # a threshold register has no sign


def test_losses_are_drawn_anew_in_every_run_and_first_run_continues_them():
    faults = Faults(seed=8, spike_loss=0.1)
    runs = record(faults, runs=4)
    assert any(np.any(runs[0][key] != runs[1][key]) for key in runs[0])
    later = record(faults.model_copy(update={"first_run": 2}), runs=2)
    nets.assert_same(runs[2], later[0])
    nets.assert_same(runs[3], later[1])
    with ReferenceBackend(faults.model_copy(update={"first_run": 2})).open(WIDE) as session:
        assert session.runs == 2
        assert session.run(INPUT).provenance["faults"]["run"] == 2
        assert session.runs == 3


@pytest.mark.parametrize(
    "key",
    [
        *("dead_neurons", "stuck_neurons", "weight_bit_flips", "threshold_bit_flips"),
        *("stale_writes", "spike_loss", "late_spikes", "threshold_spread"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_fractions_outside_zero_to_one_are_refused(key, value):
    with pytest.raises(ValidationError):
        Faults(**{key: value})


def test_a_target_can_have_other_faults_or_none():
    target = load_hardware("loihi2-faulty")
    assert target.with_faults(seed=11).faults == target.faults.model_copy(update={"seed": 11})
    assert target.with_faults().faults is None
    assert target.faults.seed == 7
    for wrong in ({"dead_neuronz": 0.1}, {"dead_neurons": 5.0}):
        with pytest.raises(ValidationError):
            target.with_faults(**wrong)


def test_faults_act_on_one_sample_without_a_sample_axis():
    spikes = SpikeTrain.from_raster(INPUT["input"].batch()[0])
    recording = ReferenceBackend(EVERYTHING).open(WIDE).run(spikes)
    assert recording.spikes["alpha"].to_raster().shape == (21, STEPS)


def chain(**hidden):
    """6 inputs, 8 hidden neurons, 5 outputs; no loop, so that what comes first decides."""
    rng = np.random.default_rng(1)
    format = SynapseFormat(8, 2, "mixed")
    first, second = (nets.random_mantissa(format, shape, rng) for shape in ((8, 6), (5, 8)))
    bias = rng.integers(-200, 400, 8)
    usual = {"decay_u": 1023, "decay_v": 300, "threshold": 600, "bias_mantissa": bias}
    network = QuantizedNetwork(
        "chain",
        "loihi2",
        {"input": Input((6,))},
        {
            "hidden": QuantizedPopulation((8,), **{**usual, "bias_exponent": 3, **hidden}),
            "out": QuantizedPopulation((5,), **{**usual, "bias_mantissa": np.zeros(5, np.int64)}),
        },
        {
            "fc1": QuantizedProjection.dense("input", "hidden", first, format, 1),
            "fc2": QuantizedProjection.dense("hidden", "out", second, format),
        },
        ("out",),
    )
    return compile_program(network, nets.CHIP, n_steps=30)


CHAIN = chain()
RESET = chain(reset=PeriodicReset(7, 2))
RASTER = np.random.default_rng(2).random((2, 6, 30)) < 0.4


def injected(*faults, **random):
    return Faults.model_validate({"injected": faults, **random})


def of_chain(faults, program=CHAIN, raster=RASTER):
    spikes = SpikeTrain.from_raster(raster)
    with ReferenceBackend(faults).open(program) as session:
        return nets.arrays_of(session.run(spikes, probe="spikes,current,voltage"))


def by_oracle(network, rasters=RASTER, source="input"):
    """The samples of a network, each from reset, in Python's own integers."""
    samples = [oracle.simulate(network, {source: raster}, raster.shape[1]) for raster in rasters]
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def with_hidden(network, **fields):
    changed = replace(network.populations["hidden"], **fields)
    return replace(network, populations={**network.populations, "hidden": changed})


def with_projection(network, name, **fields):
    changed = replace(network.projections[name], **fields)
    return replace(network, projections={**network.projections, name: changed})


def behind_hidden(raster):
    """What the output does with given spikes of the hidden neurons."""
    net = CHAIN.network
    alone = replace(
        net,
        inputs={"hidden": Input((8,))},
        populations={"out": net.populations["out"]},
        projections={"fc2": net.projections["fc2"]},
    )
    return by_oracle(alone, raster, "hidden")


HEALTHY = of_chain(None)


def test_the_chain_is_the_oracles_and_spikes_everywhere():
    nets.assert_same(HEALTHY, by_oracle(CHAIN.network))
    assert HEALTHY["spikes", "hidden"].any(axis=(0, 2)).sum() > 5
    assert HEALTHY["spikes", "out"].any()


@pytest.mark.parametrize(("kind", "spikes"), [("dead", 0), ("stuck", 1)])
def test_one_neuron_is_dead_or_stuck(kind, spikes):
    found = of_chain(injected({"kind": kind, "population": "hidden", "neuron": 3}))
    expected = HEALTHY["spikes", "hidden"].copy()
    expected[:, 3] = spikes
    np.testing.assert_array_equal(found["spikes", "hidden"], expected)
    behind = behind_hidden(expected)
    nets.assert_same({key: found[key] for key in behind}, behind)


REGISTERS = [("threshold", -200), ("decay_u", 500), ("decay_u", -1023), ("decay_v", -300)]


@pytest.mark.parametrize(("kind", "by"), REGISTERS)
def test_a_register_of_a_population_holds_something_else(kind, by):
    population = CHAIN.network.populations["hidden"]
    changed = with_hidden(CHAIN.network, **{kind: getattr(population, kind) + by})
    found = of_chain(injected({"kind": kind, "population": "hidden", "by": by}))
    nets.assert_same(found, by_oracle(changed))
    assert np.any(found["spikes", "hidden"] != HEALTHY["spikes", "hidden"])
    two = [{"kind": kind, "population": "hidden", "by": part} for part in (by - 1, 1)]
    if by != 1 and getattr(population, kind) + by > 0:
        nets.assert_same(of_chain(injected(*two)), found)


@pytest.mark.parametrize(("kind", "by"), REGISTERS)
def test_a_register_of_a_neuron_leaves_the_others_alone(kind, by):
    """Hidden neurons do not hear each other."""
    whole = of_chain(injected({"kind": kind, "population": "hidden", "by": by}))
    found = of_chain(injected({"kind": kind, "population": "hidden", "neuron": 3, "by": by}))
    for quantity in ("spikes", "current", "voltage"):
        expected = HEALTHY[quantity, "hidden"].copy()
        expected[:, 3] = whole[quantity, "hidden"][:, 3]
        np.testing.assert_array_equal(found[quantity, "hidden"], expected)
    behind = behind_hidden(found["spikes", "hidden"])
    nets.assert_same({key: found[key] for key in behind}, behind)


def test_a_stored_bit_of_one_weight_reads_back_inverted():
    fault = {"kind": "weight_bit", "projection": "fc1", "weight": [3, 5], "bit": 6}
    weight = CHAIN.network.projections["fc1"].weight_mantissa.copy()
    weight[3, 5] += 128 if weight[3, 5] // 2 & 64 == 0 else -128
    expected = by_oracle(CHAIN.with_weights({"fc1": weight}).network)
    nets.assert_same(of_chain(injected(fault)), expected)
    nets.assert_same(of_chain(injected(fault, fault)), expected)
    assert draw(CHAIN, injected(fault)).flips["fc1"][3, 5] == 0
    with ReferenceBackend(injected(fault)).open(CHAIN) as session:
        facts = session.run(SpikeTrain.from_raster(RASTER)).provenance["faults"]
    assert facts["flipped"]["fc1"] == [[3, 5, 64]]
    assert facts["injected"][0] == fault


@pytest.mark.parametrize("weight", [None, [3, 5]])
def test_a_stale_weight_is_not_written_and_nobody_knows(weight):
    before = CHAIN.network.projections["fc1"].weight_mantissa
    written = np.roll(before, 1)
    acts = before if weight is None else written.copy()
    acts[3, 5] = before[3, 5]
    faults = injected({"kind": "stale_write", "projection": "fc1", "weight": weight})
    with ReferenceBackend(faults).open(CHAIN) as session:
        assert session.write_weights("fc1", written) == np.count_nonzero(before != written)
        assert session.write_weights("fc1", written) == 0
        assert session.program.fingerprint == CHAIN.with_weights({"fc1": written}).fingerprint
        recording = session.run(SpikeTrain.from_raster(RASTER), probe="spikes,current,voltage")
    expected = by_oracle(CHAIN.with_weights({"fc1": acts}).network)
    nets.assert_same(nets.arrays_of(recording), expected)
    assert recording.provenance["faults"]["stale_weights"]["fc1"] == (1 if weight else 48)


def test_stale_weights_are_drawn_by_fraction():
    faults = Faults(seed=3, stale_writes=0.25)
    stale = draw(WIDE, faults).stale
    assert 0.2 < np.mean(np.concatenate([mask.ravel() for mask in stale.values()])) < 0.3
    new = np.roll(WIDE.network.projections["in"].weight_mantissa, 1)
    acts = np.where(stale["in"], WIDE.network.projections["in"].weight_mantissa, new)
    with ReferenceBackend(faults).open(WIDE) as session:
        session.write_weights("in", new)
        found = nets.arrays_of(session.run(INPUT, probe="spikes,voltage"))
    nets.assert_same(found, record(None, WIDE.with_weights({"in": acts}))[0])


def test_bits_of_threshold_registers_flip():
    faults = Faults(seed=3, threshold_bit_flips=0.1)
    defects = draw(CHAIN, faults)
    threshold = defects.threshold_of("hidden")
    assert len(set(threshold.tolist())) > 2
    found = of_chain(faults)
    for neuron, value in enumerate(threshold.tolist()):
        alone = by_oracle(with_hidden(CHAIN.network, threshold=value))
        for quantity in ("spikes", "voltage"):
            mine, other = found[quantity, "hidden"], alone[quantity, "hidden"]
            np.testing.assert_array_equal(mine[:, neuron], other[:, neuron])
    every = draw(CHAIN, Faults(threshold_bit_flips=1.0))
    assert set(every.threshold_of("out")) == {131071 - 600}
    listing = defects.listing()["flipped_thresholds"]["hidden"]
    assert {neuron: 600 ^ bits for neuron, bits in listing} == {
        neuron: value for neuron, value in enumerate(threshold.tolist()) if value != 600
    }


def test_spread_thresholds_act_on_their_own_neurons():
    faults = Faults(seed=3, threshold_spread=0.3)
    found = of_chain(faults)
    thresholds = draw(CHAIN, faults).threshold_of("hidden").tolist()
    assert len(set(thresholds)) > 4
    for neuron, value in enumerate(thresholds):
        alone = by_oracle(with_hidden(CHAIN.network, threshold=value))["spikes", "hidden"]
        np.testing.assert_array_equal(found["spikes", "hidden"][:, neuron], alone[:, neuron])


def test_the_new_random_kinds_leave_the_others_as_they_were():
    more = EVERYTHING.model_copy(update={"threshold_bit_flips": 0.3, "stale_writes": 0.3})
    for key in ("dead", "stuck", "flipped"):
        assert listed(more)[key] == listed(EVERYTHING)[key]


def test_a_projection_is_late():
    late = of_chain(injected({"kind": "delay", "projection": "fc1", "by": 2}))
    nets.assert_same(late, by_oracle(with_projection(CHAIN.network, "fc1", delay=3)))
    delay = np.arange(40).reshape(5, 8) % 3
    each = replace(CHAIN, network=with_projection(CHAIN.network, "fc2", delay=delay))
    late = of_chain(injected({"kind": "delay", "projection": "fc2", "by": 3}), each)
    nets.assert_same(late, by_oracle(with_projection(CHAIN.network, "fc2", delay=delay + 3)))


def test_inputs_are_late():
    late = of_chain(injected({"kind": "input_offset", "by": 2}))
    later = np.zeros_like(RASTER)
    later[..., 2:] = RASTER[..., :-2]
    nets.assert_same(late, of_chain(None, raster=later))


def test_recordings_are_late():
    late = of_chain(
        injected({"kind": "output_offset", "by": 2}, {"kind": "output_offset", "by": 1})
    )
    for key, values in HEALTHY.items():
        assert not late[key][..., :3].any()
        np.testing.assert_array_equal(late[key][..., 3:], values[..., :-3])


def test_a_late_recording_goes_on_from_piece_to_piece_of_a_stream():
    whole = of_chain(injected({"kind": "output_offset", "by": 5}))
    with ReferenceBackend(injected({"kind": "output_offset", "by": 5})).open(CHAIN) as session:
        pieces = [
            session.stream(SpikeTrain.from_raster(part), probe="spikes").spikes["hidden"].batch()
            for part in (RASTER[..., :3], RASTER[..., 3:9], RASTER[..., 9:])
        ]
        np.testing.assert_array_equal(np.concatenate(pieces, axis=2), whole["spikes", "hidden"])
        with pytest.raises(ConfigError, match="probe of the voltage of hidden that begins within"):
            session.stream(SpikeTrain.from_raster(RASTER), probe="voltage:hidden")


def test_a_periodic_reset_is_missing_or_late():
    missing = of_chain(injected({"kind": "missing_reset", "population": "hidden"}), RESET)
    nets.assert_same(missing, HEALTHY)
    fault = {"kind": "reset_phase", "population": "hidden", "by": 6}
    later = with_hidden(RESET.network, reset=PeriodicReset(7, 1))
    nets.assert_same(of_chain(injected(fault), RESET), by_oracle(later))
    assert np.any(of_chain(None, RESET)["voltage", "hidden"] != HEALTHY["voltage", "hidden"])


def test_a_missing_reset_joins_the_samples_of_a_run():
    """Three samples as one long run; what is not named begins anew with every sample."""
    rasters = np.random.default_rng(3).random((3, 6, 10)) < 0.5
    faults = [{"kind": "missing_reset", "population": name} for name in ("hidden", "out")]
    long = by_oracle(CHAIN.network, np.concatenate([*rasters], axis=1)[None])
    joined = of_chain(injected(*faults), raster=rasters)
    for key, array in joined.items():
        np.testing.assert_array_equal(np.concatenate([*array], axis=1), long[key][0], str(key))
    one = of_chain(injected(faults[0]), raster=rasters)
    for quantity in ("spikes", "current", "voltage"):
        np.testing.assert_array_equal(one[quantity, "hidden"], joined[quantity, "hidden"])
    behind = behind_hidden(one["spikes", "hidden"])
    nets.assert_same({key: one[key] for key in behind}, behind)
    assert np.any(one["voltage", "out"] != joined["voltage", "out"])
    with ReferenceBackend(injected(*faults)).open(CHAIN) as session:
        done = []
        runs = [
            nets.arrays_of(session.run(SpikeTrain.from_raster(rasters), progress=lambda *p: None))
            for _ in range(2)
        ]
        session.run(SpikeTrain.from_raster(rasters), progress=lambda *p: done.append(p))
    nets.assert_same(*runs)
    assert done == [(k + 1, 30) for k in range(30)]


def test_two_output_lines_are_exchanged():
    """As if the two neurons had each other's synapses and biases."""
    order = [0, 1, 2, 7, 4, 5, 6, 3]
    p = CHAIN.network.projections["fc1"]
    turned = with_projection(CHAIN.network, "fc1", operations=(Dense(p.weight_mantissa[order]),))
    bias = CHAIN.network.populations["hidden"].bias_mantissa[order]
    expected = by_oracle(with_hidden(turned, bias_mantissa=bias))
    swap = {"kind": "swapped", "population": "hidden", "neurons": [3, 7]}
    nets.assert_same(of_chain(injected(swap)), expected)
    nets.assert_same(of_chain(injected(swap, swap)), HEALTHY)


def test_the_neuron_behind_an_exchanged_line_is_the_one_named():
    swap = {"kind": "swapped", "population": "hidden", "neurons": [3, 7]}
    stuck = {"kind": "stuck", "population": "hidden", "neuron": 3}
    spikes = of_chain(injected(swap, stuck))["spikes", "hidden"]
    assert spikes[:, 7].all()
    assert not spikes[:, 3].all()


def one_spike():
    """A neuron, and a step of sample 1 at which it spikes and does not at the next."""
    spikes = HEALTHY["spikes", "hidden"][1]
    neuron, step = np.argwhere((spikes[:, :-1] == 1) & (spikes[:, 1:] == 0))[0].tolist()
    return {"population": "hidden", "neuron": neuron, "sample": 1, "step": step}


@pytest.mark.parametrize("kind", ["lost_spike", "late_spike"])
def test_one_spike_is_lost_or_late(kind):
    place = one_spike()
    expected = HEALTHY["spikes", "hidden"].copy()
    expected[1, place["neuron"], place["step"]] = 0
    expected[1, place["neuron"], place["step"] + 1] = kind == "late_spike"
    found = of_chain(injected({"kind": kind, **place}))
    np.testing.assert_array_equal(found["spikes", "hidden"], expected)
    np.testing.assert_array_equal(found["voltage", "hidden"], HEALTHY["voltage", "hidden"])
    behind = behind_hidden(expected)
    nets.assert_same({key: found[key] for key in behind}, behind)
    silent = injected({"kind": kind, **place, "step": place["step"] + 1})
    nets.assert_same(of_chain(silent), HEALTHY)
    nets.assert_same(of_chain(injected({"kind": kind, **place, "sample": 5})), HEALTHY)


@pytest.mark.parametrize(
    ("steps", "missing"), [((4,), [4]), ((4, 5), [4]), ((29,), [29]), ((4, 6), [4, 6])]
)
def test_late_spikes_merge_and_the_last_one_never_arrives(steps, missing):
    stuck = {"kind": "stuck", "population": "hidden", "neuron": 3}
    place = {"population": "hidden", "neuron": 3, "sample": 0}
    late = [{"kind": "late_spike", **place, "step": step} for step in steps]
    spikes = of_chain(injected(stuck, *late))["spikes", "hidden"]
    assert np.flatnonzero(spikes[0, 3] == 0).tolist() == missing
    assert spikes[1, 3].all()


def test_a_late_spike_arrives_in_the_next_piece_of_a_stream():
    place = one_spike()
    faults = injected({"kind": "late_spike", **place})
    cut = place["step"] + 1
    whole = of_chain(faults)
    with ReferenceBackend(faults).open(CHAIN) as session:
        pieces = [
            nets.arrays_of(session.stream(SpikeTrain.from_raster(part), probe="spikes,voltage"))
            for part in (RASTER[:, :, :cut], RASTER[:, :, cut:])
        ]
    for key in pieces[0]:
        joined = np.concatenate([piece[key] for piece in pieces], axis=2)
        np.testing.assert_array_equal(joined, whole[key])


def test_a_truncated_recording_is_shorter_and_not_silent():
    faults = injected({"kind": "truncated", "steps": 20}, {"kind": "truncated", "steps": 25})
    spikes = SpikeTrain.from_raster(RASTER)
    with ReferenceBackend(faults).open(CHAIN) as session:
        recording = session.run(spikes, probe="spikes,current,voltage")
        assert session.run(spikes.first_steps(20)).n_steps == 20
        pieces = [session.stream(spikes.first_steps(15), probe="voltage") for _ in range(3)]
        one = session.run(SpikeTrain.from_raster(RASTER[0]), probe="spikes,voltage")
    assert recording.n_steps == 20
    assert {train.n_steps for train in recording.spikes.values()} == {20}
    found = nets.arrays_of(recording)
    nets.assert_same(found, {key: array[..., :20] for key, array in HEALTHY.items()})
    assert [piece.n_steps for piece in pieces] == [15, 5, 0]
    assert [piece.voltage["out"].shape for piece in pieces] == [(2, 5, 15), (2, 5, 5), (2, 5, 0)]
    assert one.spikes["out"].to_raster().shape == one.voltage["out"].shape == (5, 20)
    with pytest.raises(ConfigError, match=r"found \(samples, neurons, steps\)"):
        compare(recording, ReferenceBackend().open(CHAIN).run(spikes))


def test_a_bias_from_outside_is_never_lost():
    network = replace(
        CHAIN.network,
        inputs={"input": Input((6,)), "drive": Input((8,), "bias", "hidden")},
    )
    program = replace(CHAIN, network=network)
    inputs = {
        "input": SpikeTrain.from_raster(RASTER * 0),
        "drive": SpikeTrain.from_raster(np.full((2, 8, 30), 700), graded=True),
    }
    with ReferenceBackend(Faults(spike_loss=1.0)).open(program) as session:
        found = session.run(inputs, probe="spikes,voltage:hidden")
    with ReferenceBackend().open(program) as session:
        healthy = session.run(inputs, probe="spikes,voltage:hidden")
    np.testing.assert_array_equal(found.voltage["hidden"], healthy.voltage["hidden"])
    assert len(healthy.spikes["hidden"])
    assert not len(found.spikes["hidden"])


HIDDEN = {"population": "hidden"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            {"kind": "dead", "population": "hiden", "neuron": 0},
            "found the population 'hiden', allowed hidden, out; did you mean hidden?",
        ),
        (
            {"kind": "stuck", **HIDDEN, "neuron": 8},
            "found the neuron 8 of hidden, allowed 0 to 7",
        ),
        (
            {"kind": "delay", "projection": "fc3", "by": 1},
            "found the projection 'fc3', allowed fc1, fc2; did you mean fc2?",
        ),
        (
            {"kind": "threshold", **HIDDEN, "by": -601},
            "found by -601, which makes the threshold of hidden -1, allowed 0 to 131071",
        ),
        (
            {"kind": "threshold", **HIDDEN, "neuron": 1, "by": 130472},
            "found by 130472, which makes the threshold of hidden 131072, allowed 0 to 131071",
        ),
        (
            {"kind": "decay_u", **HIDDEN, "by": 3073},
            "found by 3073, which makes the decay_u of hidden 4096, allowed 0 to 4095",
        ),
        (
            {"kind": "delay", "projection": "fc1", "by": 62},
            "found by 62, which makes the longest delay through fc1 63, allowed 0 to 62",
        ),
        (
            {"kind": "weight_bit", "projection": "fc1", "weight": [3, 5], "bit": 8},
            "found the bit 8 of a weight of fc1, allowed 0 to 7",
        ),
        (
            {"kind": "weight_bit", "projection": "fc1", "weight": [3, 6], "bit": 0},
            "found the weight [3, 6] of fc1, allowed an index into its weights of shape (8, 6)",
        ),
        (
            {"kind": "stale_write", "projection": "fc1", "weight": [3]},
            "found the weight [3] of fc1, allowed an index into its weights of shape (8, 6)",
        ),
        (
            {"kind": "reset_phase", **HIDDEN, "by": 1},
            "found hidden without a periodic reset, allowed a population that has one (reset)",
        ),
        (
            {"kind": "swapped", **HIDDEN, "neurons": [3, 3]},
            "found the neuron 3 twice, allowed two different neurons",
        ),
        (
            {"kind": "lost_spike", **HIDDEN, "neuron": 8, "sample": 0, "step": 0},
            "found the neuron 8 of hidden, allowed 0 to 7",
        ),
        (
            {"kind": "missing_reset", "population": "elsewhere"},
            "found the population 'elsewhere', allowed hidden, out",
        ),
    ],
)
def test_a_fault_that_has_no_place_is_named(fault, message):
    faults = injected({"kind": "truncated", "steps": 3}, fault)
    expected = re.escape(f"faults.injected[1]: {message}")
    target = load_hardware("reference").model_copy(update={"faults": faults})
    for act in (
        lambda: ReferenceBackend(faults).open(CHAIN),
        lambda: open_session(CHAIN, target.model_copy(update={"backend": "emulator"})),
        lambda: check_runnable(CHAIN, target),
    ):
        with pytest.raises(ConfigError, match=f"^{expected}$"):
            act()


def test_a_phase_beyond_the_interval_is_no_phase():
    fault = injected({"kind": "reset_phase", **HIDDEN, "by": 7})
    with pytest.raises(ConfigError, match="found by 7, allowed 1 to 6: the resets of hidden"):
        ReferenceBackend(fault).open(RESET)
    always = chain(reset=PeriodicReset(1))
    with pytest.raises(ConfigError, match="found a reset of hidden at every step, allowed one"):
        ReferenceBackend(fault).open(always)


def test_the_registers_are_those_of_the_target_s_own_chip(tmp_path):
    """Also of one that has no shipped name."""
    text = shipped("chips")["loihi2"].read_text()
    (tmp_path / "chip.yaml").write_text(text.replace("name: loihi2", "name: mine"))
    (tmp_path / "target.yaml").write_text(
        "schema: nmtool.hardware/v1\nname: t\nchip: chip.yaml\nbackend: emulator\n"
        "faults:\n  threshold_bit_flips: 0.1\n"
        "  injected: [{kind: decay_v, population: hidden, neuron: 1, by: 5}]\n"
    )
    program = replace(CHAIN, chip="mine", network=replace(CHAIN.network, chip="mine"))
    target = load_hardware(str(tmp_path / "target.yaml"))
    check_runnable(program, target)
    with open_session(program, target) as session:
        facts = session.run(SpikeTrain.from_raster(RASTER)).provenance["faults"]
    assert facts["injected"][0]["by"] == 5
    with pytest.raises(ConfigError, match="chip mine: unknown"):
        ReferenceBackend(target.faults).open(program)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("{kind: ded, population: p, neuron: 1}", r"injected\.0\.kind: found 'ded'.*mean dead"),
        ("{kind: dead, population: p, nueron: 1}", r"nueron: found an unknown key.*mean neuron"),
        ("{kind: dead, population: p}", r"injected\.0\.neuron: found nothing, allowed a value"),
        ("{kind: decay_u, population: p, by: 0}", r"by: found 0, allowed a whole number other"),
        ("{kind: decay_u, population: p, by: 1.5}", r"by: found 1\.5, allowed a valid integer"),
        ("{kind: delay, projection: p, by: 0}", r"by: found 0, allowed greater than or equal to 1"),
        (
            "{kind: decay_u, population: p, by: 9999999999999999999999}",
            r"by: found .*, allowed less",
        ),
        ("{kind: swapped, population: p, neurons: [1]}", r"neurons: found a list, allowed"),
        ("{kind: dead, population: p, neuron: -1}", r"neuron: found -1, allowed greater"),
        ("{population: p, neuron: -1}", r"injected\.0\.kind: found nothing, allowed a value"),
    ],
)
def test_a_wrong_fault_names_its_line(tmp_path, fault, message):
    path = tmp_path / "target.yaml"
    text = "schema: nmtool.hardware/v1\nname: t\nchip: loihi2\nfaults:\n  injected:\n    - {}\n"
    path.write_text(text.replace("{}", fault))
    with pytest.raises(ConfigError, match=rf"target\.yaml:6:\d+: faults\..*{message}"):
        load_hardware(str(path))
