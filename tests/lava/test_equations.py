"""Lava's numbers against the chip's equations, bit for bit."""

import subprocess
import sys
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest

from nmtool.backends.lava.group import worker_environment
from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes, LavaProjection


@pytest.mark.parametrize(("seed", "delays"), [(0, 0), (1, 6), (2, 20), (3, 62)])
def test_random_recurrent_networks(worker, small_job, matches_equations, seed, delays):
    job = small_job(seed, delays=delays)
    result = worker.run(job, timeout=120)
    matches_equations(job, result)
    assert 0 < result.spikes["a"].mean() < 1
    assert 0 < result.spikes["b"].mean() < 1
    assert result.steps == job.samples * (job.n_steps + job.longest_delay + 1)


def test_order_of_samples_does_not_matter(worker, small_job):
    job = small_job(5, samples=4)
    backwards = replace(job, inputs={"in": job.inputs["in"][::-1]})
    one, other = worker.run(job), worker.run(backwards)
    for kind in ("spikes", "current", "voltage"):
        for name, array in getattr(one, kind).items():
            np.testing.assert_array_equal(array, getattr(other, kind)[name][::-1])


def test_longer_hold_changes_nothing(worker, small_job):
    job = small_job(6)
    longer = worker.run(replace(job, hold=job.longest_delay + 17))
    np.testing.assert_array_equal(worker.run(job).voltage["a"], longer.voltage["a"])


def test_u_wraps_and_v_saturates(worker, matches_equations):
    rng = np.random.default_rng(7)
    x = (rng.random((2, 30, 30)) < 0.5).astype(np.uint8)
    weights = rng.integers(-60, 128, (12, 30)) * 2
    # The decay of 0 lets u run over its end again and again.
    populations = {
        "wraps": LavaPopulation(12, 0, 0, 131071),
        "saturates": LavaPopulation(12, 3000, 0, 131071, np.full(12, 4095), 7),
    }
    projections = (
        LavaProjection("in", "wraps", weights, 6),
        LavaProjection("in", "saturates", -np.abs(weights), 5, sign_mode="inhibitory", delay=2),
    )
    names = tuple(populations)
    job = LavaJob({"in": x}, populations, projections, 30, None, LavaProbes(names, names, names))
    result = worker.run(job)
    matches_equations(job, result)
    assert (np.abs(result.current["wraps"]) > 2**22).any()
    assert (np.abs(result.voltage["saturates"]) == 2**23 - 1).any()


@pytest.mark.parametrize(
    ("mode", "bits", "exponent"),
    [("mixed", 8, 0), ("mixed", 5, 1), ("excitatory", 6, -2), ("inhibitory", 3, 2)],
)
def test_weight_bits_and_sign_modes(worker, matches_equations, mode, bits, exponent):
    rng = np.random.default_rng(bits)
    low, high = {"mixed": (-256, 256), "excitatory": (0, 256), "inhibitory": (-255, 1)}[mode]
    weights = rng.integers(low, high, (6, 10))
    x = (rng.random((2, 10, 25)) < 0.3).astype(np.uint8)
    delayed = LavaProjection("in", "a", weights, exponent, bits, mode, np.full((6, 10), 4))
    plain = LavaProjection("in", "a", weights, exponent, bits, mode)
    population = LavaPopulation(6, 1000, 500, 100)
    probes = LavaProbes(("a",), ("a",), ("a",))
    job = LavaJob({"in": x}, {"a": population}, (delayed, plain), 25, None, probes)
    matches_equations(job, worker.run(job))


def test_unconnected_parts_and_no_input(worker, matches_equations):
    probes = LavaProbes(("a", "b", "c"), ("a", "b", "c"), ("a", "b", "c"))
    populations = {
        "a": LavaPopulation(3, 100, 100, 50, np.array([10, 200, 4000]), 3),
        "b": LavaPopulation(2, 4095, 0, 9, np.array([7, 300])),
        "c": LavaPopulation(4, 5, 5, 99),
    }
    loop = LavaProjection("b", "b", np.array([[0, -40], [60, 0]]), delay=3)
    job = LavaJob({}, populations, (loop,), 20, None, probes, samples=2)
    result = worker.run(job)
    matches_equations(job, result)
    assert result.spikes["b"].any()


def test_only_what_was_asked_comes_back(worker, small_job):
    job = replace(small_job(0), probes=LavaProbes(spikes=("b",), voltage=("a",)))
    result = worker.run(job)
    assert (set(result.spikes), set(result.current), set(result.voltage)) == ({"b"}, set(), {"a"})
    assert result.spikes["b"].dtype == bool
    assert result.voltage["a"].dtype == np.int32
    assert result.models["a"] == "HeldLifModel"
    assert result.models["a->b"] == "PyDenseModelBitAcc"
    assert result.models["in->a"] == "PyDelayDenseModelBitAcc"
    assert result.versions["lava-nc"] == "0.10.0"
    assert result.build_seconds > 0
    assert result.run_seconds > 0


STOCK = """
    import sys
    import numpy as np
    from nmtool.backends.lava.compat import prepare_lava
    prepare_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF
    from lava.proc.monitor.process import Monitor
    path, = sys.argv[1:]
    given = np.load(path)
    steps = given["x"].shape[1]
    source = Source(data=given["x"].astype(np.int32))
    dense = Dense(weights=given["w"].astype(np.int32), weight_exp=1)
    lif = LIF(shape=(given["w"].shape[0],), du=700, dv=90, vth=150, bias_mant=25, bias_exp=2)
    sink = Sink(shape=lif.s_out.shape, buffer=steps)
    monitor = Monitor()
    monitor.probe(lif.v, steps)
    source.s_out.connect(dense.s_in)
    dense.a_out.connect(lif.a_in)
    lif.s_out.connect(sink.a_in)
    lif.run(RunSteps(num_steps=steps), Loihi2SimCfg(select_tag="fixed_pt"))
    (process,) = monitor.get_data().values()
    (voltage,) = process.values()
    np.savez(path, s=sink.data.get(), v=voltage.T)
    lif.stop()
"""


def test_one_sample_equals_lavas_own_lif(worker, tmp_path):
    rng = np.random.default_rng(11)
    x = (rng.random((12, 50)) < 0.2).astype(np.uint8)
    weights = rng.integers(-128, 128, (8, 12)) * 2
    path = tmp_path / "stock.npz"
    np.savez(path, x=x, w=weights)
    command = [sys.executable, "-c", dedent(STOCK), str(path)]
    subprocess.run(command, check=True, timeout=120, env=worker_environment())
    stock = np.load(path)
    population = LavaPopulation(8, 700, 90, 150, np.full(8, 25), 2)
    projection = LavaProjection("in", "a", weights, 1)
    probes = LavaProbes(spikes=("a",), voltage=("a",))
    job = LavaJob({"in": x[None]}, {"a": population}, (projection,), 50, None, probes)
    result = worker.run(job)
    assert stock["s"].any()
    np.testing.assert_array_equal(result.spikes["a"][0], stock["s"])
    np.testing.assert_array_equal(result.voltage["a"][0], stock["v"])
