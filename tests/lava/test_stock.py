"""Jobs against networks of Lava's own processes, none of nmtool's, in a process of their own."""

import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest

from nmtool.backends.lava.group import worker_environment
from nmtool.backends.lava.job import (
    LavaConvProjection,
    LavaDelta,
    LavaDrive,
    LavaJob,
    LavaPopulation,
    LavaProbes,
    LavaProjection,
    LavaSigma,
    LavaSigmaDelta,
    LavaSparseProjection,
)

STOCK = """
    import sys
    import numpy as np
    from nmtool.backends.lava.compat import prepare_lava
    prepare_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF, LIFReset
    from lava.proc.monitor.process import Monitor
    from lava.proc.sdn.process import ActivationMode, Delta, Sigma, SigmaDelta
    from lava.proc.sparse.process import DelaySparse, Sparse
    from lava.utils.weightutils import SignMode
    from scipy.sparse import csr_matrix

    path, = sys.argv[1:]
    given = dict(np.load(path))
    steps = given["x"].shape[1]
    mixed = {"sign_mode": SignMode.MIXED}
    graded = {**mixed, "num_message_bits": 24}
    sinks = {}

    def synapses(name):
        return csr_matrix(given[name].astype(np.int32))

    def keep(name, port):
        sinks[name] = Sink(shape=port.shape, buffer=steps)
        port.connect(sinks[name].a_in)

    def chain(source, *processes):
        for before, after in zip((source, *processes), processes):
            out = getattr(before, "s_out", None) or before.a_out
            out.connect(getattr(after, "s_in", None) or after.a_in)
        return getattr(processes[-1], "s_out", None) or processes[-1].a_out

    source = Source(data=given["x"])
    delays = csr_matrix(given["delays"].astype(int))
    keep("sparse", chain(source, Sparse(weights=synapses("w"), weight_exp=-1, **mixed)))
    keep("payload", chain(source, Sparse(weights=synapses("w"), **graded)))
    late = DelaySparse(weights=synapses("w"), delays=delays, weight_exp=1, **mixed)
    keep("late", chain(source, late))
    late = DelaySparse(weights=synapses("w"), delays=delays, num_weight_bits=6, **graded)
    keep("late payload", chain(source, late))
    reset = LIFReset(shape=(24,), du=900, dv=300, vth=300, bias_mant=40, bias_exp=3,
                     reset_interval=7, reset_offset=int(given["offset"]))
    keep("reset", chain(source, Sparse(weights=synapses("w"), **graded), reset))
    delta = Delta(shape=(40,), vth=9, spike_exp=1, state_exp=2)
    keep("delta", chain(source, delta))
    relu = SigmaDelta(shape=(24,), vth=30, bias=given["bias"], spike_exp=2, state_exp=1)
    keep("relu", chain(delta, Sparse(weights=synapses("w"), **graded), relu))
    unit = SigmaDelta(shape=(6,), vth=200, act_mode=ActivationMode.UNIT)
    keep("unit", chain(relu, Dense(weights=given["dense"], weight_exp=-2, **graded), unit))
    keep("sigma", chain(unit, Dense(weights=given["dense"][:, :6], **graded), Sigma(shape=(6,))))

    # What is not connected runs on its own.
    shaped = Source(data=given["x"].reshape(5, 4, 2, steps))
    for name, settings in {"conv": {}, "conv payload": {"num_message_bits": 24}}.items():
        process = Conv(weight=given["kernel"][:, ::-1, ::-1].astype(np.int32), groups=2,
                       input_shape=(5, 4, 2), stride=(2, 1), padding=(1, 1), dilation=(2, 1),
                       **settings)
        keep(name, chain(shaped, process))
    large = Source(data=given["large"])
    folds = LIF(shape=(5,), du=0, dv=0, vth=131071)
    keep("folds", chain(large, folds))
    monitor = Monitor()
    monitor.probe(folds.u, steps)
    for start in (delta, shaped, large):
        start.run(RunSteps(num_steps=steps), Loihi2SimCfg(select_tag="fixed_pt"))
    found = {name: sink.data.get() for name, sink in sinks.items()}
    (process,) = monitor.get_data().values()
    (current,) = process.values()
    np.savez(path, current=current.T, **found)
    for start in (delta, shaped, large):
        start.stop()
"""
STEPS = 25
SYNAPSES = ("sparse", "payload", "late", "late payload", "conv", "conv payload")


@pytest.fixture(scope="module")
def given():
    """Numbers for both sides. The first row and column of w are empty."""
    rng = np.random.default_rng(8)
    weights = rng.integers(-128, 128, (24, 40)) * 2 * (rng.random((24, 40)) < 0.2)
    weights[0], weights[:, 0] = 0, 0
    x = rng.integers(-40, 41, (40, STEPS)).cumsum(axis=1) * (rng.random((40, STEPS)) < 0.6)
    return {
        "x": x.astype(np.int32),
        "w": weights,
        "delays": rng.integers(0, 7, (24, 40)) * (weights != 0),
        "dense": rng.integers(-20, 20, (6, 24)).astype(np.int32) * 2,
        "bias": rng.integers(-90, 90, 24).astype(np.int32),
        "kernel": rng.integers(-50, 50, (4, 2, 3, 1)) * 2,
        "large": rng.integers(-(2**27), 2**27, (5, STEPS)).astype(np.int32),
        # Lava counts steps from 1, a job from 0.
        "offset": np.array(11),
    }


@pytest.fixture(scope="module")
def stock(given, tmp_path_factory):
    path = tmp_path_factory.mktemp("stock") / "stock.npz"
    np.savez(path, **given)
    command = [sys.executable, "-c", dedent(STOCK), str(path)]
    subprocess.run(command, check=True, timeout=120, env=worker_environment())
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(scope="module")
def result(worker, given):
    """The same as one job: what arrives at "plain" neurons is their current."""
    w = given["w"]
    post, pre = np.nonzero(w)
    listed = (24, 40), post, pre, w[post, pre]
    late = given["delays"][post, pre]
    conv = {"stride": (2, 1), "padding": (1, 1), "dilation": (2, 1), "groups": 2}
    bias = given["bias"].astype(np.int64)
    populations = {
        **{
            name: LavaPopulation(48 if "conv" in name else 24, 4095, 0, 131071) for name in SYNAPSES
        },
        "reset": LavaPopulation(24, 900, 300, 300, np.full(24, 40), 3, 7, 10),
        "delta": LavaDelta(40, 9, 1, 2),
        "relu": LavaSigmaDelta(24, 30, bias, 2, 1),
        "unit": LavaSigmaDelta(6, 200, activation="unit"),
        "sigma": LavaSigma(6),
        "folds": LavaPopulation(5, 0, 0, 131071),
    }
    geometry = (5, 4, 2)
    projections = (
        LavaSparseProjection("binary", "sparse", *listed, -1),
        LavaSparseProjection("x", "payload", *listed),
        LavaSparseProjection("binary", "late", *listed, 1, delay=late),
        LavaSparseProjection("x", "late payload", *listed, 0, 6, delay=late),
        LavaSparseProjection("x", "reset", *listed),
        LavaSparseProjection("delta", "relu", *listed),
        LavaProjection("relu", "unit", given["dense"], -2),
        LavaProjection("unit", "sigma", given["dense"][:, :6]),
        LavaConvProjection("binary", "conv", given["kernel"], geometry, **conv),
        LavaConvProjection("x", "conv payload", given["kernel"], geometry, **conv),
    )
    x, large = given["x"][None], given["large"][None]
    drives = (LavaDrive("x", "delta"), LavaDrive("large", "folds"))
    inputs = {"x": x, "binary": x != 0, "large": large}
    lif = ("folds", *SYNAPSES)
    probes = LavaProbes(("reset", "delta", "relu", "unit", "sigma"), lif)
    job = LavaJob(
        inputs, populations, projections, STEPS, None, probes, None, drives, current_overflow="lava"
    )
    return worker.run(job, check=False)


@pytest.mark.parametrize("name", SYNAPSES)
def test_synapses(stock, result, name):
    arrived = result.current[name][0] >> 6
    np.testing.assert_array_equal(arrived, stock[name].reshape(-1, STEPS))
    assert arrived.any(axis=0)[7:].all()


@pytest.mark.parametrize("name", ["reset", "delta", "relu", "unit", "sigma"])
def test_populations(stock, result, name):
    np.testing.assert_array_equal(result.spikes[name][0], stock[name])
    assert len(np.unique(stock[name])) > 1


def test_current_overflows_as_lavas(stock, result, given):
    np.testing.assert_array_equal(result.current["folds"][0], stock["current"])
    # And not as the chip's.
    assert (np.abs(stock["current"]) > 2**23).any()
