"""Programs on lava-loihi, with the stand-in for Intel's package, against the reference."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from networks import make_program, make_spikes

from nmtool.backends import open_session
from nmtool.backends.lava.job import LavaBoard
from nmtool.backends.lava.loihi import reset_plan
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import compile_program
from nmtool.errors import DependencyError, UnsupportedError
from nmtool.measure import compare
from nmtool.network import Input, PeriodicReset
from nmtool.operations import Conv
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

ALL = "spikes,current,voltage"
PLAIN = SynapseFormat(8, 0, "mixed")

pytestmark = pytest.mark.usefixtures("stand_in", "nothing_left")


def reference(program, spikes, probe=ALL):
    with ReferenceBackend().open(program) as session:
        return session.run(spikes, probe=probe)


def assert_equal(expected, found):
    agreement = compare(expected, found)
    assert agreement.equal, agreement.first
    assert not agreement.missing
    assert set(found.spikes) == set(expected.spikes)


def population(n, rng=None, **registers):
    bias = np.zeros(n, np.int64) if rng is None else rng.integers(0, 200, n)
    usual = {"decay_u": 300, "decay_v": 20, "threshold": 150, "bias_mantissa": bias}
    return QuantizedPopulation((n,), **{**usual, "bias_exponent": 4, **registers})


def chain(delays=(1, 2, 0)):
    """Feed-forward, delayed, with a bias where the input arrives: samples fit into one run."""
    rng = np.random.default_rng(0)
    sizes = {"input": 6, "a": 9, "b": 8, "c": 7}
    names = [*sizes]
    projections = {
        f"{source}{target}": QuantizedProjection.dense(
            source,
            target,
            rng.integers(-60, 90, (sizes[target], sizes[source])) * 2,
            PLAIN,
            delay,
        )
        for source, target, delay in zip(names, names[1:], delays, strict=False)
    }
    populations = {"a": population(9, rng), "b": population(8), "c": population(7)}
    network = QuantizedNetwork(
        "chain", "loihi2", {"input": Input((6,))}, populations, projections, ("c",)
    )
    return compile_program(network, load_chip("loihi2"), n_steps=20)


def raster(shape, density=0.6, seed=0):
    return SpikeTrain.from_raster(np.random.default_rng(seed).random(shape) < density)


@pytest.mark.parametrize("seed", [1, 5])
def test_the_contracts_programs_equal_the_reference(board, seed):
    program = make_program(seed)
    spikes = make_spikes(program, seed, samples=2, steps=40)
    with open_session(program, board()) as session:
        found = session.run(spikes, probe=ALL)
    assert_equal(reference(program, spikes), found)
    assert found.backend == "lava-loihi"
    assert found.provenance["samples"] == "loaded anew for each sample"
    assert found.provenance["voltage_masked_at_spikes"] is True
    assert found.provenance["voltage_read_at_spikes"] in ([], [128])


def test_samples_of_a_feed_forward_network_share_a_run(board):
    program, spikes = chain(), raster((5, 6, 20))
    expected = reference(program, spikes)
    assert len(expected.spikes["c"]) > 50
    seen = []
    with open_session(program, board()) as session:
        found = session.run(spikes, probe=ALL, progress=lambda done, total: seen.append(total))
    assert_equal(expected, found)
    assert found.provenance["samples"] == "one run, neurons cleared every 32 steps"
    assert found.provenance["voltage_read_at_spikes"] == [128]
    assert set(seen) <= {5 * 32}
    models = found.provenance["models"]
    assert models["c"] == {"model": "NcL2ModelLifReset", "resource": "Loihi2NeuroCore"}
    assert models["ab"] == {"model": "NcModelDelayDense", "resource": "Loihi2NeuroCore"}
    assert models["bc"]["model"] == "NcModelDense"
    assert models["input"]["resource"] == "CPU"
    assert found.provenance["board"] == "SLURM partition oheogulch"


def test_voltages_alone_need_no_spikes_in_the_answer(board):
    program, spikes = chain(), raster((1, 6, 20))
    with open_session(program, board()) as session:
        found = session.run(spikes, probe="voltage:b")
    assert not found.spikes
    expected = reference(program, spikes, "voltage:b")
    assert np.array_equal(found.voltage["b"], expected.voltage["b"])
    assert expected.voltage["b"].any()


def test_convolutions_become_single_synapses(board):
    rng = np.random.default_rng(1)
    kernel = rng.integers(-30, 60, (3, 3, 3, 2)) * 2
    hidden = QuantizedPopulation((4, 4, 3), 1000, 30, 200, np.zeros(48, np.int64))
    dense = QuantizedProjection.dense("conv", "out", np.zeros((2, 48), np.int64), PLAIN)
    network = QuantizedNetwork(
        "conv",
        "loihi2",
        {"input": Input((6, 6, 2))},
        {"conv": hidden, "out": population(2)},
        {"k": QuantizedProjection("input", "conv", (Conv(kernel),), PLAIN), "d": dense},
        ("out",),
    )
    program = compile_program(network, load_chip("loihi2"), n_steps=12)
    spikes = raster((2, 72, 12), 0.2)
    expected = reference(program, spikes)
    assert len(expected.spikes["conv"]) > 20
    with open_session(program, board()) as session:
        found = session.run(spikes, probe=ALL)
    assert_equal(expected, found)
    assert found.provenance["models"]["k"]["model"] == "NcModelSparse"


def test_a_stream_equals_one_run_and_weights_are_written_between_runs(board):
    program, spikes = chain(), raster((6, 30))
    rasters = spikes.to_raster()
    mantissa = np.zeros_like(program.network.projections["ab"].weight_mantissa)
    with open_session(program, board()) as session:
        pieces = [
            session.stream(SpikeTrain.from_raster(rasters[:, a:b]), probe=ALL)
            for a, b in ((0, 11), (11, 30))
        ]
        with pytest.raises(UnsupportedError, match="found weights for an open stream"):
            session.write_weights("ab", mantissa)
        session.reset()
        assert session.write_weights("ab", mantissa) > 0
        silenced = session.run(spikes, probe=ALL)
    expected = reference(program, spikes)
    for name in program.order:
        joined = np.concatenate([p.spikes[name].to_raster() for p in pieces], axis=1)
        assert np.array_equal(joined, expected.spikes[name].to_raster())
        joined = np.concatenate([p.voltage[name] for p in pieces], axis=1)
        assert np.array_equal(joined, expected.voltage[name])
    assert_equal(reference(program.with_weights({"ab": mantissa}), spikes), silenced)


def test_resets_of_a_network_run_if_they_are_powers_of_two(board):
    def program(interval):
        plain = chain().network
        populations = {**plain.populations, "b": population(8, reset=PeriodicReset(interval, 3))}
        network = QuantizedNetwork(
            "resets", "loihi2", plain.inputs, populations, plain.projections, ("c",)
        )
        return compile_program(network, load_chip("loihi2"), n_steps=20)

    spikes = raster((1, 6, 20))
    with open_session(program(8), board()) as session:
        found = session.run(spikes, probe=ALL)
    assert_equal(reference(program(8), spikes), found)
    assert not compare(reference(chain(), spikes), found).equal
    with pytest.raises(UnsupportedError, match=r"population b: found reset interval not a power"):
        open_session(program(12), board())


def test_what_no_register_holds_is_refused_with_what_would_take_its_place(board):
    program = make_program(1)
    only = ("p0.decay_u: -1 runs on simulators only; lava-loihi would get 0",)
    beyond = type(program)(
        program.network, program.chip, program.reset, program.latency, simulators_only=only
    )
    with pytest.raises(UnsupportedError, match=r"p0\.decay_u: -1 .* lava-loihi would get 0"):
        open_session(beyond, board())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("no-LIF", r"a \(LIF\): found the model PyLifModelBitAcc on CPU"),
        ("no-Dense", r"projection bc \(Dense\): found the model PyDenseModelBitAcc on CPU"),
    ],
)
def test_a_python_model_in_place_of_the_chips_is_an_error(stand_in, board, words, named):
    stand_in(words)
    spikes = raster((1, 6, 20))
    with (
        open_session(chain(), board()) as session,
        pytest.raises(DependencyError, match=named) as caught,
    ):
        session.run(spikes)
    assert "NcL2" not in str(caught.value)
    assert "allow_python_models" in str(caught.value)


def test_python_models_that_are_allowed(stand_in, board):
    stand_in("no-Dense")
    spikes = raster((1, 6, 20))
    with open_session(chain(), board(allow_python_models=["bc"])) as session:
        found = session.run(spikes, probe=ALL)
    assert_equal(reference(chain(), spikes), found)
    model = {"model": "PyDenseModelBitAcc", "resource": "CPU"}
    assert found.provenance["models"]["bc"] == model
    assert LavaBoard(python_models=("*",)).permits("anything")
    assert not LavaBoard(python_models=("ab",)).permits("bc")
    with (
        open_session(chain(), board(allow_python_models=["ab"])) as session,
        pytest.raises(DependencyError, match="projection bc"),
    ):
        session.run(spikes)


def test_measurements_are_the_profilers_or_missing(stand_in, board):
    spikes = raster((1, 6, 20))
    with open_session(chain(), board(measure=["time", "power"])) as session:
        measured = session.run(spikes).provenance["measured"]
        assert measured["time"]["execution_time"] == pytest.approx(2e-6 * 23)
        assert "no power sensor" in measured["power"]["missing"]
        streamed = session.stream(raster((6, 5)))
    assert "one run" in streamed.provenance["measured"]["time"]["missing"]
    stand_in("no-profiler")
    with open_session(chain(), board(measure=["time"])) as session:
        measured = session.run(spikes).provenance["measured"]
    assert measured["time"]["missing"].startswith("no profiler")
    with open_session(chain(), board()) as session:
        assert "measured" not in session.run(spikes).provenance


def merged(program, plan, rasters):
    """All samples in one, each population with the resets of a plan: what a chip would do."""
    net = program.network
    populations = {}
    for name, p in net.populations.items():
        reset = PeriodicReset(plan.period, plan.start[name])
        fields = {k: getattr(p, k) for k in p.__dataclass_fields__}
        populations[name] = type(p)(**{**fields, "reset": reset})
    network = QuantizedNetwork(
        "merged", "loihi2", net.inputs, populations, net.projections, net.outputs
    )
    samples, lines, steps = rasters.shape
    long = np.zeros((lines, samples * plan.period), bool)
    for k in range(samples):
        long[:, k * plan.period : k * plan.period + steps] = rasters[k]
    return compile_program(network, load_chip("loihi2"), n_steps=20), SpikeTrain.from_raster(long)


def test_reset_plans_keep_samples_apart():
    """On the reference: in one run, cleared as planned, each sample is what it is alone."""
    planned = 0
    for seed in range(60):
        program = make_program(seed, recurrent=False, delays=seed % 4)
        plan = reset_plan(program, 20)
        if plan is None:
            continue
        planned += 1
        spikes = make_spikes(program, seed, samples=3, steps=20)
        alone = reference(program, spikes)
        together = reference(*merged(program, plan, spikes.to_raster()))
        for name in program.order:
            found = together.spikes[name].to_raster()
            for k in range(3):
                start = k * plan.period
                window = found[:, start : start + 20].copy()
                window[:, : plan.start[name]] = False
                assert np.array_equal(window, alone.spikes[name].to_raster()[k]), (seed, name)
    assert 10 <= planned < 60
    assert all(reset_plan(make_program(seed), 20) is None for seed in range(12))


@pytest.mark.parametrize(
    ("source", "target", "delay", "starts"),
    [
        ("a", "c", 0, {"a": 0, "b": 1, "c": 2}),  # no spike of a arrives before that
        ("a", "c", 1, {"a": 0, "b": 1, "c": 2}),
        ("a", "c", 2, {"a": 0, "b": 1, "c": 3}),
        ("a", "c", 3, None),  # old spikes of a may arrive later than new ones of b
        ("input", "c", 0, None),  # new spikes arrive a step before c is cleared
        ("input", "c", 1, {"a": 0, "b": 1, "c": 2}),
        ("b", "b", 0, None),
    ],
)
def test_ways_of_different_length(source, target, delay, starts):
    plain = chain((0, 0, 0)).network
    a = {**plain.populations, "a": population(9)}
    shape = (a[target].size, 6 if source == "input" else a[source].size)
    way = QuantizedProjection.dense(source, target, np.full(shape, 2), PLAIN, delay)
    projections = {**plain.projections, "way": way}
    network = QuantizedNetwork("ways", "loihi2", plain.inputs, a, projections, ("c",))
    plan = reset_plan(compile_program(network, load_chip("loihi2"), n_steps=20), 20)
    assert (plan.start if plan else None) == starts
