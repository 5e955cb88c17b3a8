from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given
from hypothesis import strategies as st

from nmtool.backends import ReferenceBackend
from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import ResetSchedule, compile_program
from nmtool.config import Check, Data, RateEncoding, Readout
from nmtool.errors import ArtifactError, ConfigError, FitError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Dense
from nmtool.quantization import quantize
from nmtool.spikes import SpikeTrain

CHIP = nets.CHIP
DATA = Data(name="digits", encoding=RateEncoding(kind="rate", steps=11))


def small(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "small",
        "inputs": {"input": Input((3,))},
        "populations": {
            "zeta": Population((4,), CubaLif(0.5, 0.3, 0.1), np.full(4, 0.1), axonal_delay=2),
            "alpha": Population((2,), CubaLif(0.5, 0.3, 0.1)),
        },
        "projections": {
            "in": Projection.dense("input", "zeta", rng.normal(size=(4, 3))),
            "out": Projection.dense(
                "zeta", "alpha", rng.normal(size=(2, 4)), np.arange(8).reshape(2, 4)
            ),
            "back": Projection.dense("alpha", "zeta", rng.normal(size=(4, 2)), 5),
        },
        "outputs": ("alpha",),
        "data": DATA,
        "readout": Readout(),
    }
    return Network(**{**fields, **changes})


QUANTIZED = quantize(small(), CHIP)
PROGRAM = compile_program(QUANTIZED, CHIP)


def with_population(name, **changes):
    return replace(
        QUANTIZED,
        populations={
            **QUANTIZED.populations,
            name: replace(QUANTIZED.populations[name], **changes),
        },
    )


def with_projection(name, **changes):
    return replace(
        QUANTIZED,
        projections={
            **QUANTIZED.projections,
            name: replace(QUANTIZED.projections[name], **changes),
        },
    )


def bumped(array, by):
    changed = array.copy()
    changed.flat[-1] += by
    return changed


def test_a_program_knows_its_run():
    assert PROGRAM.reset == ResetSchedule(11, hold=10)
    assert PROGRAM.reset.period == 21
    assert PROGRAM.order == ("zeta", "alpha")
    assert PROGRAM.latency == 1 + (1 + 2)
    assert [bound.population for bound in PROGRAM.bounds] == ["zeta", "alpha"]
    assert compile_program(small(data=None), CHIP).reset.n_steps == 32
    assert compile_program(QUANTIZED, CHIP, n_steps=5).reset.n_steps == 5


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(ConfigError, match=f"found {steps} steps, allowed 1 or more"):
        compile_program(QUANTIZED, CHIP, n_steps=steps)


def test_a_network_for_another_chip_is_refused():
    with pytest.raises(ArtifactError, match="made for loihi2, not loihi1; quantise"):
        compile_program(QUANTIZED, load_chip("loihi1"))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (with_population("zeta", decay_u=4096), "zeta.decay_u: found 4096, allowed 0 to 4095"),
        (with_population("zeta", decay_u=-2), "zeta.decay_u: found -2"),
        (with_population("zeta", decay_v=4097), "zeta.decay_v: found 4097"),
        (with_population("zeta", threshold=131073), "zeta.threshold: found 131073"),
        (with_population("zeta", bias_exponent=8), "zeta.bias_exponent: found 8, allowed 0 to 7"),
        (
            with_population("alpha", bias_mantissa=np.array([0, 4096])),
            "alpha.bias_mantissa: found 4096, allowed -4096 to 4095",
        ),
        (
            with_population("alpha", bias_mantissa=np.array([-4097, 0])),
            "alpha.bias_mantissa: found -4097",
        ),
        (
            with_projection("in", format=SynapseFormat(8, 8, "mixed")),
            "projection in.weight_exponent: found 8, allowed -7 to 7",
        ),
        (
            with_projection("in", format=SynapseFormat(7, 0, "mixed")),
            "projection in.weight_bits: found 7, allowed 1, 2, 3, 4, 5, 6, 8",
        ),
        (
            with_projection("in", format=SynapseFormat(1, 0, "mixed")),
            "projection in: found the weight mantissa",
        ),
        (with_projection("in", delay=63), "projection in.delay: found 63, allowed 0 to 62"),
        (with_projection("out", delay=61), "axonal and a synaptic delay of 63 steps together"),
    ],
)
def test_design_rules_name_what_breaks_them(network, message):
    with pytest.raises(FitError, match=message):
        compile_program(network, CHIP)


def test_all_broken_rules_are_shown_at_once():
    network = replace(
        with_population("zeta", decay_u=5000, threshold=-1),
        projections=with_projection("in", delay=70).projections,
    )
    with pytest.raises(FitError) as caught:
        compile_program(network, CHIP)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "zeta.decay_u",
        "zeta.threshold",
        "projection in.delay",
        "network",
    ]


@pytest.mark.parametrize(
    "network",
    [
        with_population("zeta", decay_u=QUANTIZED.populations["zeta"].decay_u + 1),
        with_population("zeta", decay_v=QUANTIZED.populations["zeta"].decay_v + 1),
        with_population("zeta", threshold=QUANTIZED.populations["zeta"].threshold + 1),
        with_population("zeta", axonal_delay=1),
        with_population("zeta", bias_exponent=1),
        with_population(
            "zeta", bias_mantissa=bumped(QUANTIZED.populations["zeta"].bias_mantissa, 1)
        ),
        with_projection(
            "in",
            operations=(Dense(bumped(QUANTIZED.projections["in"].weight_mantissa, -2)),),
        ),
        with_projection("in", format=replace(QUANTIZED.projections["in"].format, exponent=3)),
        with_projection("in", delay=1),
        with_projection("out", delay=bumped(QUANTIZED.projections["out"].delay, 1)),
        replace(QUANTIZED, outputs=("zeta",)),
        replace(QUANTIZED, readout=Readout(neurons_per_class=2)),
        replace(QUANTIZED, readout=None),
        replace(QUANTIZED, data=Data(name="digits", encoding=RateEncoding(kind="rate", steps=12))),
    ],
)
def test_the_fingerprint_changes_with_everything_that_decides_a_spike(network):
    assert replace(PROGRAM, network=network).fingerprint != PROGRAM.fingerprint


@given(st.data())
def test_the_fingerprint_changes_with_any_single_integer(data):
    name = data.draw(st.sampled_from(sorted(QUANTIZED.projections)))
    mantissa = QUANTIZED.projections[name].weight_mantissa.copy()
    place = data.draw(st.integers(0, mantissa.size - 1))
    mantissa.flat[place] += data.draw(st.sampled_from([-2, 2, 4, 256]))
    changed = replace(PROGRAM, network=with_projection(name, operations=(Dense(mantissa),)))
    assert changed.fingerprint != PROGRAM.fingerprint


def test_the_fingerprint_changes_with_the_run():
    assert replace(PROGRAM, chip="loihi1").fingerprint != PROGRAM.fingerprint
    assert replace(PROGRAM, reset=ResetSchedule(12, 10)).fingerprint != PROGRAM.fingerprint
    assert replace(PROGRAM, reset=ResetSchedule(11, 11)).fingerprint != PROGRAM.fingerprint


def test_the_fingerprint_leaves_out_what_decides_no_spike():
    same = [
        replace(PROGRAM, provenance={"time": "today"}),
        replace(PROGRAM, bounds=()),
        replace(PROGRAM, network=replace(QUANTIZED, metadata={"from": "elsewhere"}, errors=())),
        replace(PROGRAM, network=replace(QUANTIZED, name="other")),
        replace(
            PROGRAM,
            network=replace(
                QUANTIZED, checks=(Check(metric="accuracy", min=0.5, on=["reference"]),)
            ),
        ),
        replace(
            PROGRAM,
            network=replace(
                QUANTIZED,
                populations=dict(reversed(QUANTIZED.populations.items())),
                projections=dict(reversed(QUANTIZED.projections.items())),
            ),
        ),
    ]
    assert {program.fingerprint for program in same} == {PROGRAM.fingerprint}
    assert len(PROGRAM.fingerprint) == 16
    assert compile_program(small(), CHIP).fingerprint == PROGRAM.fingerprint


def test_new_weights_make_a_new_program_and_leave_the_old_one():
    before = PROGRAM.network.projections["in"].weight_mantissa.copy()
    changed = PROGRAM.with_weights({"in": before * 0})
    assert changed.fingerprint != PROGRAM.fingerprint
    assert not changed.network.projections["in"].weight_mantissa.any()
    np.testing.assert_array_equal(PROGRAM.network.projections["in"].weight_mantissa, before)
    assert changed.with_weights({"in": before}).fingerprint == PROGRAM.fingerprint


@given(nets.quantized_networks(longest=4))
def test_latency_is_when_the_first_output_spike_comes(network):
    """With weights that always fire and nothing else, the first output spike is that of latency."""
    populations = {
        name: replace(p, threshold=0, bias_mantissa=p.bias_mantissa * 0, decay_u=4095)
        for name, p in network.populations.items()
    }
    format = SynapseFormat(8, 0, "excitatory")
    projections = {
        name: replace(p, format=format, operations=(Dense(np.full_like(p.weight_mantissa, 7)),))
        for name, p in network.projections.items()
    }
    eager = replace(network, populations=populations, projections=projections)
    program = compile_program(eager, CHIP, n_steps=60)
    impulse = {name: np.zeros((s.size, 60)) for name, s in eager.inputs.items()}
    for raster in impulse.values():
        raster[:, 0] = 1
    spikes = {name: SpikeTrain.from_raster(raster) for name, raster in impulse.items()}
    output = ReferenceBackend().open(program).run(spikes).spikes[eager.outputs[0]]
    assert output.step.min() == program.latency
