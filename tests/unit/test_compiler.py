from dataclasses import replace

import numpy as np
import oracle
import pytest
import strategies as nets
from hypothesis import given
from hypothesis import strategies as st

from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import ResetSchedule, compile_program
from nmtool.config import Check, Digits, RateEncoding, Readout
from nmtool.errors import ArtifactError, ConfigError, FitError
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population, Projection
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool
from nmtool.quantization import (
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    quantize,
)
from nmtool.spikes import SpikeTrain

CHIP = nets.CHIP
DATA = Digits(name="digits", encoding=RateEncoding(kind="rate", steps=11))


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
    with pytest.raises(ConfigError, match=f"found {steps} steps, allowed whole numbers from 1"):
        compile_program(QUANTIZED, CHIP, n_steps=steps)


def test_a_network_for_another_chip_is_refused():
    with pytest.raises(ArtifactError, match="made for loihi2, not loihi1; quantise"):
        compile_program(QUANTIZED, load_chip("loihi1"))
    imported = replace(QUANTIZED, name="model", metadata={"source": "netx"})
    with pytest.raises(ArtifactError, match=r"nmtool import model\.net --chip loihi1`"):
        compile_program(imported, load_chip("loihi1"))


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
        "NM-FIT-001 zeta.decay_u",
        "NM-FIT-001 zeta.threshold",
        "NM-FIT-005 projection in.delay",
        "NM-FIT-006 network",
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
        replace(
            QUANTIZED, data=Digits(name="digits", encoding=RateEncoding(kind="rate", steps=12))
        ),
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
    with pytest.raises(ConfigError, match="with_weights: found the projection 'inn', allowed in"):
        PROGRAM.with_weights({"inn": before})


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


# Every kind

ZERO = np.zeros(4, dtype=np.int64)
SMALL = SynapseFormat(8, 0, "mixed")
BLOCK = np.arange(4).reshape(1, 2, 2, 1) * 2


def everything(inputs=None, **changes):
    """A driven delta encoder, a convolution to sigma-delta neurons, and what changes."""
    parts = {
        "x": QuantizedPopulation((3, 3, 1), 0, 0, 5, np.tile(ZERO[0], 9), 3, model="delta"),
        "y": QuantizedPopulation((2, 2, 1), 0, 0, 5, ZERO, 0, model="sigma_delta"),
        "z": QuantizedPopulation((4,), 9, 9, 9, ZERO),
        "xy": QuantizedProjection("x", "y", (Conv(BLOCK),), SMALL),
        "yz": QuantizedProjection("y", "z", (Flatten(), Scale(np.full(1, 2))), SMALL),
    }
    parts |= {name: replace(parts[name], **change) for name, change in changes.items()}
    return QuantizedNetwork(
        "everything",
        "loihi2",
        inputs or {"in": Input((3, 3, 1), "graded", "x")},
        {name: parts[name] for name in "xyz"},
        {name: parts[name] for name in ("xy", "yz")},
        ("z",),
    )


DIFFERENT = {
    "nothing": {},
    "refractory": {"z": {"refractory_delay": 2}},
    "reset": {"z": {"reset": PeriodicReset(4)}},
    "reset offset": {"z": {"reset": PeriodicReset(4, 1)}},
    "model": {"y": {"model": "sigma"}},
    "activation": {"y": {"activation": "unit"}},
    "spike exponent": {"y": {"spike_exponent": 1}},
    "state exponent": {"y": {"state_exponent": 1}},
    "axonal delay": {"z": {"axonal_delay": 1}},
    "axonal delays": {"z": {"axonal_delay": np.array([1, 1, 1, 1])}},
    "other axonal delays": {"z": {"axonal_delay": np.array([1, 1, 1, 2])}},
    "weights": {"xy": {"operations": (Conv(BLOCK + 2),)}},
    "weights the other way": {"xy": {"operations": (Conv(BLOCK.transpose(0, 2, 1, 3)),)}},
    "stride and padding": {"xy": {"operations": (Conv(BLOCK, (2, 1), (1, 0)),)}},
    "dilation and padding": {"xy": {"operations": (Conv(BLOCK, (2, 1), (1, 0), (2, 1)),)}},
    "pool": {"xy": {"operations": (SumPool((2, 2), (1, 1)), Scale(np.full(1, 2)))}},
    "pool stride": {"xy": {"operations": (SumPool((1, 1), (2, 2)), Scale(np.full(1, 2)))}},
    "pool after": {"xy": {"operations": (Scale(np.full(1, 2)), SumPool((2, 2), (1, 1)))}},
    "dense": {"yz": {"operations": (Dense(np.eye(4, dtype=int) * 2),)}},
    "flatten": {"yz": {"operations": (Flatten(), Dense(np.eye(4, dtype=int) * 2))}},
    "sparse": {"yz": {"operations": (Sparse(np.full(4, 2), np.arange(4), np.arange(4), (4, 4)),)}},
    "sparse elsewhere": {
        "yz": {"operations": (Sparse(np.full(4, 2), np.arange(4)[::-1], np.arange(4), (4, 4)),)}
    },
    "input shape": {"inputs": {"in": Input((9,), "graded", "x")}},
    "input kind": {"inputs": {"in": Input((4,), "bias", "z")}},
    "input drives": {"inputs": {"in": Input((4,), "graded", "z")}},
    "input drives nothing": {"inputs": {"in": Input((4,), "graded")}},
    "input of spikes": {"inputs": {"in": Input((4,))}},
}


def test_every_field_changes_the_fingerprint():
    base = compile_program(everything(), CHIP)
    prints = {
        name: replace(base, network=everything(**changes)).fingerprint
        for name, changes in DIFFERENT.items()
    }
    assert len(set(prints.values())) == len(prints), prints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": {"refractory_delay": 0}}, "z.refractory_delay: found 0, allowed 1 to 63"),
        ({"z": {"refractory_delay": 64}}, "z.refractory_delay: found 64"),
        ({"z": {"axonal_delay": np.array([0, -1, 0, 0])}}, "z.axonal_delay: found -1, allowed 0"),
        ({"z": {"axonal_delay": np.array([0, 0, 63, 0])}}, "z.axonal_delay: found 63"),
        ({"y": {"axonal_delay": np.array([0, 0, 2, 0])}, "yz": {"delay": 61}}, "63 steps together"),
        ({"y": {"threshold": -1}}, "y.threshold: found -1, allowed 0 to 8388607"),
        ({"y": {"threshold": 2**23}}, "y.threshold: found 8388608"),
        ({"y": {"state_exponent": 4, "threshold": 2**19}}, "allowed 0 to 524287"),
        ({"y": {"state_exponent": 25}}, r"y: found the exponents 0 \(spike\) and 25 \(state\)"),
        ({"y": {"spike_exponent": -1}}, r"found the exponents -1 \(spike\)"),
        ({"y": {"bias_mantissa": ZERO + 2**15}}, "y.bias_mantissa: found 32768, allowed -32768"),
        ({"y": {"bias_mantissa": ZERO - 2**15 - 1}}, "y.bias_mantissa: found -32769"),
        ({"yz": {"operations": (Scale(np.full(1, 3)),)}}, "the weight mantissa 3 at"),
    ],
)
def test_design_rules_cover_every_kind(changes, message):
    if "operations" in changes.get("yz", {}):
        changes = {"yz": {"operations": (Flatten(), *changes["yz"]["operations"])}}
    with pytest.raises(FitError, match=message):
        compile_program(everything(**changes), CHIP)


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [("decay_u", -1, 0), ("decay_v", 4096, 4095), ("threshold", 131072, 131071)],
)
def test_values_for_simulators_are_named_with_what_the_chip_would_get(key, value, instead):
    program = compile_program(everything(z={key: value}), CHIP)
    assert program.simulators_only == (
        f"z.{key}: {value} runs on simulators only; lava-loihi would get {instead}",
    )
    assert compile_program(everything(z={key: instead}), CHIP).simulators_only == ()


@given(nets.any_networks(longest=20))
def test_latency_is_the_first_possible_arrival_of_any_kind(network):
    arrival = {}
    for name, source in network.inputs.items():
        arrival |= {(source.drives or name, i): 0 for i in range(source.size)}
    ways = list(oracle.synapses(network))
    for _ in range(sum(network.sizes.values())):
        for source, i, target, j, steps, _ in ways:
            reached = arrival.get((source, i), np.inf) + steps
            arrival[target, j] = min(arrival.get((target, j), np.inf), reached)
    first = min((t for (name, _), t in arrival.items() if name in network.outputs), default=0)
    assert compile_program(network, CHIP).latency == (0 if first == np.inf else first)
