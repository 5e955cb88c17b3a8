"""Every kind of population, projection and drive against equations in plain integers."""

from dataclasses import replace

import numpy as np
import pytest

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
from nmtool.errors import UnsupportedError

SIGN_RANGE = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}


def conv_matrix(p, weights):
    """torch's conv2d as a matrix, synapse by synapse."""
    (x_in, y_in, c_in), (x_out, y_out, c_out) = p.input_shape, p.output_shape
    matrix = np.zeros((x_out, y_out, c_out, x_in, y_in, c_in), np.int64)
    per_group_in, per_group_out = c_in // p.groups, c_out // p.groups
    for o, i, j, c in np.ndindex(*weights.shape):
        channel = o // per_group_out * per_group_in + c
        for x, y in np.ndindex(x_out, y_out):
            at_x = x * p.stride[0] + i * p.dilation[0] - p.padding[0]
            at_y = y * p.stride[1] + j * p.dilation[1] - p.padding[1]
            if 0 <= at_x < x_in and 0 <= at_y < y_in:
                matrix[x, y, o, at_x, at_y, channel] += weights[o, i, j, c]
    return matrix.reshape(x_out * y_out * c_out, x_in * y_in * c_in)


def matrices(p, mantissa=None):
    """Weights as the chip stores them and delays, both (out, in)."""
    given = np.asarray(p.weight_mantissa if mantissa is None else mantissa, np.int64)
    if isinstance(p, LavaConvProjection):
        weights = conv_matrix(p, given)
        return weights, np.zeros_like(weights)
    cut = 8 - p.weight_bits + (p.sign_mode == "mixed")
    sign = -1 if p.sign_mode == "inhibitory" else 1
    values = sign * ((sign * np.clip(given, *SIGN_RANGE[p.sign_mode]) >> cut) << cut)
    delays = np.broadcast_to(p.delay, given.shape)
    if isinstance(p, LavaProjection):
        return values, delays
    weights, wait = np.zeros(p.shape, np.int64), np.zeros(p.shape, np.int64)
    weights[p.post, p.pre], wait[p.post, p.pre] = values, delays
    return weights, wait


def folded(u):
    """Modulo 2^24 into (-2^23, 2^23]."""
    return -((2**23 - u) % 2**24 - 2**23)


def decayed(state, decay):
    return np.sign(state) * (np.abs(state) * (4096 - decay) >> 12)


def lif(p, state, a, extra, t):
    """One step of a LIF population: (sent, u, v)."""
    u, v = state.get("u", np.zeros(p.n, np.int64)), state.get("v", np.zeros(p.n, np.int64))
    if p.reset_interval and (t - p.reset_offset) % p.reset_interval == 0:
        u, v = u * 0, v * 0
    bias = (0 if p.bias_mantissa is None else p.bias_mantissa) + extra
    u = folded(decayed(u, p.decay_u + 1) + (a << 6))
    v = np.clip(decayed(v, p.decay_v) + u + (bias << p.bias_exponent), -(2**23) + 1, 2**23 - 1)
    spike = v > p.threshold << 6
    v = np.where(spike, 0, v)
    state.update(u=u, v=v)
    return spike.astype(np.int64), u, v


def sigma_delta(p, state, a, t):
    """One step of Delta, SigmaDelta or Sigma: (sent, sigma, act)."""
    zeros = np.zeros(p.n, np.int64)
    sigma = state.get("sigma", zeros) + a
    state["sigma"] = sigma
    if isinstance(p, LavaSigma):
        return sigma, sigma, zeros
    scale = p.spike_exp + p.state_exp
    if isinstance(p, LavaDelta):
        act = a << scale
    else:
        act = sigma + ((zeros if p.bias is None else p.bias) << scale)
        act = np.maximum(act, 0) if p.activation == "relu" else act
    change = act - state.get("act", zeros) + state.get("residue", zeros)
    sent = np.where(np.abs(change) >= p.vth << scale, change, 0)
    state.update(act=act, residue=change - sent)
    return sent >> p.state_exp, sigma, act


def simulate(job, inputs, steps, rewrite=()):
    """One sample: {(kind, population): (n, steps)}. rewrite: (step, projection, mantissa)."""
    synapses = [matrices(p) for p in job.projections]
    dead = steps + job.longest_delay + 2
    arriving = {k: np.zeros((dead, p.n), np.int64) for k, p in job.populations.items()}
    states = {k: {} for k in job.populations}
    out = {
        (s, k): np.zeros((p.n, steps), np.int64) for k, p in job.populations.items() for s in "suv"
    }
    for t in range(steps):
        for at, number, mantissa in rewrite:
            if at == t:
                synapses[number] = matrices(job.projections[number], mantissa)
        sent = {k: x[:, t].astype(np.int64) for k, x in inputs.items()}
        for k, p in job.populations.items():
            drives = [d for d in job.drives if d.population == k]
            a = arriving[k][t] + sum(sent[d.input] for d in drives if d.kind == "graded")
            extra = sum(sent[d.input] for d in drives if d.kind == "bias")
            done = lif(p, states[k], a, extra, t) if isinstance(p, LavaPopulation) else None
            sent[k], u, v = done or sigma_delta(p, states[k], a, t)
            out["s", k][:, t], out["u", k][:, t], out["v", k][:, t] = sent[k], u, v
        for (weights, wait), p in zip(synapses, job.projections, strict=True):
            for d in np.unique(wait):
                a, e = np.where(wait == d, weights, 0) @ sent[p.source], p.weight_exponent
                arriving[p.target][min(t + 1 + d, dead - 1)] += a << e if e > 0 else a >> -e
    return out


FIELDS = {"s": "spikes", "u": "current", "v": "voltage"}


def everything(populations):
    """Probes of all that there is."""
    return LavaProbes(
        *(
            tuple(k for k, p in populations.items() if field in p.records)
            for field in FIELDS.values()
        )
    )


def compare(job, got, expected, sample=...):
    for kind, field in FIELDS.items():
        for name in getattr(job.probes, field):
            array = getattr(got, field)[name][sample]
            np.testing.assert_array_equal(array, expected[kind, name], f"{field} {name}")


def compare_samples(job, result):
    for sample in range(job.samples):
        inputs = {k: x[sample] for k, x in job.inputs.items()}
        compare(job, result, simulate(job, inputs, job.n_steps), sample)


def as_network(job):
    sizes = {name: raster.shape[1] for name, raster in job.inputs.items()}
    return LavaJob.network(
        sizes,
        job.populations,
        job.projections,
        job.probes,
        graded=[name for name in job.inputs if job.is_graded(name)],
        drives=job.drives,
        current_overflow=job.current_overflow,
    )


def sparse(rng, source, target, n_out, n_in, count, low=-250, high=250, **fields):
    """Random synapses, in no order; the last neurons of both ends often have none."""
    pairs = rng.permutation(n_out * n_in)[:count]
    post, pre = np.divmod(pairs, n_in)
    if fields.get("delay") == "each":
        fields["delay"] = rng.integers(0, 6, count)
    weights = rng.integers(low, high, count)
    return LavaSparseProjection(source, target, (n_out, n_in), post, pre, weights, **fields)


@pytest.fixture
def spiking_job():
    """All projections and drives into LIF populations, several to one and one to several."""
    rng = np.random.default_rng(1)
    shape, steps, samples = (5, 4, 2), 24, 2
    x = (rng.random((samples, 40, steps)) < 0.2).astype(np.uint8)
    g = rng.integers(-60, 60, (samples, 40, steps)) * (rng.random((samples, 40, steps)) < 0.3)
    d = rng.integers(-300, 900, (samples, 12, steps))

    def kernel(c_out, x, y, c_in):
        return rng.integers(-60, 60, (c_out, x, y, c_in)) * 2

    strided = LavaConvProjection("x", "a", kernel(4, 3, 2, 2), shape, 1, (2, 1), (1, 0), (1, 2))
    grouped = LavaConvProjection("g", "a", kernel(4, 2, 3, 1) * 4, shape, -2, (2, 1), groups=2)
    grouped = replace(grouped, padding=(1, 1), dilation=(2, 2))
    populations = {
        "a": LavaPopulation(24, 1200, 200, 150, rng.integers(-200, 600, 24), 2, 7, 12),
        "b": LavaPopulation(12, 4095, 100, 90),
        "c": LavaPopulation(12, -1, 4096, 131072),
        "d": LavaPopulation(1, 500, 60, 70),
    }
    projections = (
        strided,
        grouped,
        LavaConvProjection("a", "b", kernel(3, 2, 1, 4), (3, 2, 4), padding=(1, 0), stride=(1, 2)),
        LavaConvProjection("a", "b", kernel(2, 1, 1, 2), (3, 2, 4), groups=2),
        sparse(rng, "x", "b", 12, 40, 150, weight_exponent=-1, delay="each"),
        sparse(rng, "g", "c", 12, 40, 150, -400, 400, delay="each", weight_exponent=1),
        sparse(rng, "g", "b", 12, 40, 60, -400, 5, sign_mode="inhibitory", weight_bits=5),
        sparse(rng, "b", "b", 12, 12, 40, 0, 400, sign_mode="excitatory", delay=3),
        sparse(rng, "b", "a", 24, 12, 5, -3, 4),
        sparse(rng, "b", "a", 24, 12, 40, -1, 2, delay="each", name="vanishes"),
        sparse(rng, "x", "c", 12, 40, 0, name="empty"),
        sparse(rng, "x", "c", 12, 40, 0, delay=4, name="empty and late"),
        sparse(rng, "b", "d", 1, 12, 12, delay="each"),
        sparse(rng, "d", "b", 12, 1, 12, weight_exponent=2),
        LavaProjection("g", "c", rng.integers(-120, 120, (12, 40)) * 2),
        LavaProjection("g", "c", rng.integers(-99, 99, (12, 40)), 0, 7, "mixed", 2),
        LavaProjection("x", "c", rng.integers(-99, 99, (12, 40)), -1),
        LavaConvProjection("a", "a", kernel(4, 3, 3, 4), (3, 2, 4), -1, padding=(1, 1)),
    )
    drives = (
        LavaDrive("drive", "b", "bias"),
        LavaDrive("drive", "c"),
        LavaDrive("drive", "c", "bias"),
    )
    inputs = {"x": x, "g": g, "drive": d}
    probes = everything(populations)
    return LavaJob(inputs, populations, projections, steps, None, probes, None, drives)


@pytest.fixture
def graded_job():
    """Delta, SigmaDelta and Sigma, connected by every kind of projection, and a LIF at the end."""
    rng = np.random.default_rng(2)
    steps, samples = 20, 3
    values = rng.integers(-120, 120, (samples, 24, steps)).cumsum(axis=2) // 3
    x = (rng.random((samples, 24, steps)) < 0.2).astype(bool)
    populations = {
        "delta": LavaDelta(24, 7, 0, 0),
        "fine": LavaDelta(24, 3, 2, 3),
        "relu": LavaSigmaDelta(16, 90, rng.integers(-400, 400, 16), 1, 2),
        "unit": LavaSigmaDelta(10, 300, None, 0, 0, "unit"),
        "zero": LavaSigmaDelta(10, 0, rng.integers(-40, 40, 10), 3, 0),
        "sigma": LavaSigma(6),
        "lif": LavaPopulation(10, 300, 100, 700, None, 0, 5, 3),
        "alone": LavaDelta(2, 1),
    }
    kernel = rng.integers(-20, 20, (4, 2, 2, 2)) * 2
    projections = (
        LavaConvProjection("delta", "relu", kernel, (4, 3, 2), 0, (2, 2), (0, 1)),
        sparse(rng, "fine", "relu", 16, 24, 90, -9, 9, delay="each"),
        LavaProjection("relu", "unit", rng.integers(-9, 9, (10, 16)) * 2, 0, delay=2),
        LavaProjection("relu", "zero", rng.integers(-9, 9, (10, 16)) * 2, -1),
        sparse(rng, "unit", "sigma", 6, 10, 30, -9, 9),
        sparse(rng, "zero", "unit", 10, 10, 20, -9, 9, weight_exponent=-3),
        LavaProjection("zero", "lif", rng.integers(-9, 9, (10, 10)) * 2),
        LavaProjection("lif", "zero", rng.integers(-9, 9, (10, 10)) * 2, 2),
        LavaProjection("x", "relu", rng.integers(-9, 9, (16, 24)) * 2, 3),
    )
    drives = (LavaDrive("values", "delta"), LavaDrive("values", "fine"), LavaDrive("x", "delta"))
    inputs = {"values": values, "x": x}
    probes = everything(populations)
    return LavaJob(inputs, populations, projections, steps, None, probes, None, drives)


def streamed(worker, job, lengths, rewrite=()):
    """One sample in pieces, with weights replaced between them: one result per piece."""
    parts, start = [], 0
    with worker.open(as_network(job), check=False) as stream:
        for length in lengths:
            for at, number, mantissa in rewrite:
                if at == start:
                    stream.write_weights(number, mantissa)
            piece = {k: x[0][:, start : start + length] for k, x in job.inputs.items()}
            parts.append(stream.stream(piece, timeout=60))
            start += length
    return parts


def compare_stream(job, parts, rewrite=()):
    whole = replace(
        parts[0],
        **{
            field: {
                name: np.concatenate([getattr(part, field)[name] for part in parts], axis=1)
                for name in getattr(parts[0], field)
            }
            for field in FIELDS.values()
        },
    )
    compare(job, whole, simulate(job, {k: x[0] for k, x in job.inputs.items()}, 20, rewrite))


def test_spiking_networks(worker, spiking_job):
    result = worker.run(spiking_job, timeout=120, check=False)
    compare_samples(spiking_job, result)
    for name in "abd":
        assert 0.01 < result.spikes[name].mean() < 0.9, name
    assert not result.spikes["c"].any()
    assert result.spikes["a"].dtype == bool
    models = set(result.models.values())
    assert {"ExactConvModel", "FastDelaySparseModel", "PySparseModelBitAcc"} <= models


def test_sigma_delta_networks(worker, graded_job):
    result = worker.run(graded_job, timeout=120)
    compare_samples(graded_job, result)
    for name in ("delta", "relu", "unit", "zero", "sigma", "lif"):
        assert len(np.unique(result.spikes[name])) > 1, name
    assert result.spikes["relu"].dtype == np.int32
    assert (set(result.current), set(result.voltage)) == (
        {"relu", "unit", "zero", "sigma", "lif"},
        {"delta", "fine", "relu", "unit", "zero", "lif", "alone"},
    )


def test_streams_and_replaced_weights(worker, spiking_job):
    job = replace(
        spiking_job,
        inputs={k: x[:1, :, :20] for k, x in spiking_job.inputs.items()},
        n_steps=20,
        samples=1,
    )
    rng = np.random.default_rng(3)
    numbers = [(6, 0), (6, 1), (6, 4), (13, 5), (13, 7), (13, 8), (13, 14), (13, 10)]
    rewrite = [
        (at, number, rng.integers(0, 30, job.projections[number].weight_mantissa.shape) * 4)
        for at, number in numbers
    ]
    parts = streamed(worker, job, [6, 1, 6, 7], rewrite)
    compare_stream(job, parts, rewrite)
    assert {"LiveSparseModel", "ExactConvModel"} <= set(parts[0].models.values())


def test_a_graded_stream(worker, graded_job):
    parts = streamed(worker, graded_job, [1, 12, 7])
    compare_stream(graded_job, parts)
    assert parts[1].spikes["relu"].shape == (16, 12)


def test_what_a_graded_stream_refuses(worker):
    drives = (LavaDrive("x", "a"),)
    job = LavaJob.network({"x": 1}, {"a": LavaSigma(1)}, (), LavaProbes(("a",)), graded=("x",))
    with worker.open(replace(job, drives=drives)) as stream:
        with pytest.raises(ValueError, match="32 bits"):
            stream.stream({"x": np.full((1, 1), 2**31)})
        with pytest.raises(ValueError, match="integer"):
            stream.stream({"x": np.full((1, 1), 0.5)})
        for expected in (-(2**31), -1):
            result = stream.stream(
                {"x": np.full((1, 1), 2**31 - 1 if expected == -1 else expected)}
            )
            assert result.spikes["a"].tolist() == [[expected]]


def test_nothing_overflows_on_the_chip(worker):
    """Whatever is added to u, and by whatever way, acts modulo 2^24."""
    rng = np.random.default_rng(4)
    full = rng.integers(-(2**31), 2**31, (2, 12, 15))
    full[1, :, 0] = 2**31 - 1
    large = rng.integers(-(2**23), 2**23, (2, 12, 15))
    large[0, :, :3] = 2**23 - 1
    populations = {
        "driven": LavaPopulation(12, 0, 0, 131071),
        "kept": LavaPopulation(12, -1, 100, 131071),
        "biased": LavaPopulation(12, 0, 0, 131071, np.full(12, 99), 7),
        "conv": LavaPopulation(12, 10, 0, 131071),
        "dense": LavaPopulation(12, 10, 0, 131071),
    }
    kernel = np.full((3, 3, 3, 3), 254)
    kernel[0] = -256
    dense = rng.integers(-128, 128, (12, 12)) * 2
    projections = (
        LavaConvProjection("large", "conv", kernel, (2, 2, 3), 6, padding=(1, 1)),
        LavaConvProjection("full", "conv", kernel, (2, 2, 3), 7, padding=(1, 1)),
        LavaProjection("large", "dense", dense, 7),
        replace(sparse(rng, "large", "dense", 12, 12, 90), weight_exponent=7, delay=2),
        sparse(rng, "large", "dense", 12, 12, 90, weight_exponent=6, name="at once"),
    )
    drives = (
        LavaDrive("full", "driven"),
        LavaDrive("large", "driven"),
        LavaDrive("full", "kept"),
        LavaDrive("full", "biased", "bias"),
    )
    probes = everything(populations)
    inputs = {"full": full, "large": large}
    job = LavaJob(inputs, populations, projections, 15, None, probes, None, drives)
    result = worker.run(job, check=False)
    compare_samples(job, result)
    # The sum of the convolution did leave 32 bits.
    assert (np.abs(conv_matrix(projections[0], kernel) @ large[0, :, 0]) << 6 > 2**31).any()
    assert (np.abs(result.voltage["biased"]) == 2**23 - 1).any()


def test_geometry_beyond_eight_bits(worker):
    rng = np.random.default_rng(5)
    x = (rng.random((1, 260, 6)) < 0.4).astype(np.uint8)

    def projection(name, shape, kernel, **fields):
        weights = rng.integers(-100, 100, kernel) * 2
        return LavaConvProjection("x", name, weights, shape, **fields)

    projections = (
        projection("groups", (1, 2, 130), (130, 1, 2, 1), groups=130),
        projection("padded", (130, 2, 1), (1, 3, 1, 1), padding=(70, 0)),
        projection("dilated", (130, 2, 1), (2, 2, 2, 1), dilation=(129, 1)),
        projection("strided", (130, 2, 1), (1, 1, 2, 1), stride=(129, 1)),
        projection("long", (1, 260, 1), (1, 1, 140, 1), stride=(1, 60)),
    )
    populations = {p.target: LavaPopulation(p.shape[0], 4095, 0, 90) for p in projections}
    job = LavaJob({"x": x}, populations, projections, 6, None, everything(populations))
    compare_samples(job, worker.run(job))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": LavaProbes(current=("delta",))}, "current asked of .'delta'., which have none"),
        ({"probes": LavaProbes(voltage=("sigma",))}, "voltage asked of .'sigma'., which have none"),
        ({"drives": (LavaDrive("x", "relu"),)}, "24 lines for 16 neurons"),
        ({"drives": (LavaDrive("x", "delta", "bias"),)}, "only LIF"),
        ({"drives": (LavaDrive("x", "delta"),) * 2}, "drives repeat"),
        ({"drives": (LavaDrive("no", "delta"),)}, "unknown input"),
        ({"drives": (LavaDrive("x", "no"),)}, "unknown population"),
        ({"drives": (LavaDrive("x", "delta", "no"),)}, "unknown kind"),
        ({"current_overflow": "no"}, "current_overflow 'no'"),
    ],
)
def test_inconsistent_jobs(graded_job, change, message):
    with pytest.raises(ValueError, match=message):
        replace(graded_job, **change)


def test_payloads_have_32_bits():
    with pytest.raises(ValueError, match="32 bits"):
        LavaJob({"x": np.full((1, 1, 1), 2**31)}, {"a": LavaSigma(1)}, (), 1)
    LavaJob({"x": np.full((1, 1, 1), -(2**31))}, {"a": LavaSigma(1)}, (), 1)
    job = LavaJob({"x": np.full((1, 1, 1), 2**23)}, {"a": LavaSigma(1)}, (), 1)
    with pytest.raises(UnsupportedError, match="8388608"):
        job.check()


CONV = LavaConvProjection("x", "a", np.zeros((4, 2, 3, 1), int), (5, 4, 2), groups=2)
SINGLE = LavaSparseProjection("x", "a", (2, 3), np.array([0, 1]), np.array([2, 0]), np.ones(2, int))


@pytest.mark.parametrize(
    ("projection", "change", "message"),
    [
        (CONV, {"groups": 3}, "3 groups"),
        (CONV, {"groups": 1}, "1 groups"),
        (CONV, {"stride": (0, 1)}, "stride must be 2 numbers of at least 1"),
        (CONV, {"input_shape": (5, 4)}, "input_shape must be 3"),
        (CONV, {"dilation": (5, 1)}, "larger than its input"),
        (CONV, {"weight_exponent": -1, "weight_mantissa": CONV.weight_mantissa + 1}, "cut off"),
        (CONV, {"weight_mantissa": CONV.weight_mantissa + 0.5}, "integer"),
        (SINGLE, {"post": np.array([0, 2])}, "post leaves 0..1"),
        (SINGLE, {"pre": np.array([-1, 2])}, "pre leaves 0..2"),
        (SINGLE, {"pre": np.array([1])}, r"pre is not \(synapses,\)"),
        (SINGLE, {"post": np.zeros(2, int), "pre": np.zeros(2, int)}, "several synapses"),
        (SINGLE, {"delay": np.zeros(3, int)}, "delay is not"),
        (SINGLE, {"sign_mode": "no"}, "unknown sign_mode"),
    ],
)
def test_impossible_projections(projection, change, message):
    with pytest.raises(ValueError, match=message):
        replace(projection, **change)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (replace(SINGLE, delay=63), "delay 63"),
        (replace(SINGLE, weight_mantissa=np.array([1, 300])), "300"),
        (replace(CONV, weight_mantissa=CONV.weight_mantissa + 256), "256"),
        (replace(CONV, weight_mantissa=np.arange(24).reshape(4, 2, 3, 1) - 3), "odd"),
        (replace(CONV, weight_exponent=8), "weight_exponent 8"),
        (LavaDelta(1, 1, 8), "spike_exp 8"),
        (LavaDelta(1, 1 << 22, 0, 1), "scaled vth 8388608"),
        (LavaSigmaDelta(1, 1, np.array([-(1 << 23) - 1])), "scaled bias -8388609"),
        (LavaPopulation(1, -1, 0, 0), "decay_u -1"),
    ],
)
def test_what_the_chip_cannot_hold(item, message):
    with pytest.raises(UnsupportedError, match=message):
        item.check("it")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LavaDelta(1, 1 << 30, 1), "32 bits"),
        (lambda: LavaDelta(1, 1, -1), "below 0"),
        (lambda: LavaSigmaDelta(2, 1, np.zeros(3, int)), "bias"),
        (lambda: LavaSigmaDelta(2, 1, np.array([0, -(1 << 31)])), "32 bits"),
        (lambda: LavaSigmaDelta(2, 1, activation="tanh"), "tanh"),
        (lambda: LavaSigma(0), "at least one"),
        (lambda: LavaPopulation(1, 0, 0, 0, reset_interval=-1), "reset_interval -1"),
        (lambda: LavaPopulation(1, 0, 0, 0, np.array([1 << 28]), 3), "31 bits"),
    ],
)
def test_impossible_populations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
