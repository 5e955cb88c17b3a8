from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nmtool.backends.faults import draw, read_back
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import Faults, load_hardware
from nmtool.compiler import compile_program
from nmtool.network import CubaLif, Input, Network, Population, Projection
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


@pytest.mark.parametrize("key", ["dead_neurons", "stuck_neurons", "weight_bit_flips", "spike_loss"])
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
