"""Streaming keeps the state; weights can be replaced on the way."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes, LavaProjection
from nmtool.errors import UnsupportedError


def as_network(job):
    return replace(
        job,
        inputs={"in": np.zeros((0, job.inputs["in"].shape[1], 0), np.uint8)},
        n_steps=0,
        samples=0,
    )


def pieces(raster, lengths):
    ends = np.cumsum(lengths)
    return [raster[:, end - length : end] for end, length in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("delays", [0, 9])
def test_pieces_equal_one_long_run(worker, small_job, delays):
    job = small_job(21, samples=1, n_steps=60, delays=delays)
    whole = worker.run(job)
    with worker.open(as_network(job)) as stream:
        parts = [
            stream.stream({"in": piece}, timeout=60)
            for piece in pieces(job.inputs["in"][0], [1, 5, 1, 30, 23])
        ]
    for kind in ("spikes", "current", "voltage"):
        for name in job.populations:
            joined = np.concatenate([getattr(part, kind)[name] for part in parts], axis=1)
            np.testing.assert_array_equal(joined, getattr(whole, kind)[name][0])
    assert parts[0].spikes["a"].shape == (14, 1)
    assert parts[0].models["a->b"] == "LiveDenseModel"


def test_a_piece_longer_than_the_tape(worker):
    rng = np.random.default_rng(3)
    steps = 1500
    x = (rng.random((4, steps)) < 0.3).astype(np.uint8)
    projection = LavaProjection("in", "a", rng.integers(-40, 100, (3, 4)) * 2)
    population = LavaPopulation(3, 500, 100, 90)
    probes = LavaProbes(("a",), ("a",))
    with worker.open(LavaJob.network({"in": 4}, {"a": population}, [projection], probes)) as stream:
        streamed = stream.stream({"in": x})
    job = LavaJob({"in": x[None]}, {"a": population}, (projection,), steps, None, probes)
    whole = worker.run(job)
    np.testing.assert_array_equal(streamed.spikes["a"], whole.spikes["a"][0])
    np.testing.assert_array_equal(streamed.current["a"], whole.current["a"][0])


@pytest.mark.parametrize("delays", [0, 5])
def test_replaced_weights_act_from_the_next_step(worker, small_job, equations, delays):
    job = small_job(31, samples=1, n_steps=60, delays=delays)
    rng = np.random.default_rng(32)
    first = rng.integers(-256, 256, job.projections[0].weight_mantissa.shape)
    second = rng.integers(-256, 256, job.projections[1].weight_mantissa.shape)
    parts = []
    with worker.open(as_network(job)) as stream:
        one, two, three = pieces(job.inputs["in"][0], [20, 15, 25])
        parts.append(stream.stream({"in": one}))
        stream.write_weights("in->a", first)
        parts.append(stream.stream({"in": two}))
        stream.write_weights(1, second)
        parts.append(stream.stream({"in": three}))
    rewrite = [(20, 0, first), (35, 1, second)]
    expected = equations(job, {"in": job.inputs["in"][0]}, 60, rewrite)
    for name in job.populations:
        for kind, field in (("s", "spikes"), ("u", "current"), ("v", "voltage")):
            joined = np.concatenate([getattr(part, field)[name] for part in parts], axis=1)
            np.testing.assert_array_equal(joined, expected[kind, name])


def test_weights_written_before_the_first_step(worker, small_job, equations):
    job = small_job(33, samples=1, n_steps=20, delays=0)
    new = job.projections[0].weight_mantissa[::-1]
    with worker.open(as_network(job)) as stream:
        stream.write_weights(0, new)
        result = stream.stream({"in": job.inputs["in"][0]})
    expected = equations(job, {"in": job.inputs["in"][0]}, 20, [(0, 0, new)])
    np.testing.assert_array_equal(result.voltage["a"], expected["v", "a"])


def test_wrong_use_is_refused_and_harms_nothing(worker, small_job):
    job = small_job(34, samples=1, n_steps=8)
    with worker.open(as_network(job)) as stream:
        with pytest.raises(ValueError, match="expected"):
            stream.stream({"other": job.inputs["in"][0]})
        with pytest.raises(ValueError, match="expected"):
            stream.stream({"in": job.inputs["in"][0][:3]})
        with pytest.raises(ValueError, match="0 and 1"):
            stream.stream({"in": job.inputs["in"][0] * 2})
        with pytest.raises(UnsupportedError, match="300"):
            stream.write_weights(0, np.full_like(job.projections[0].weight_mantissa, 300))
        with pytest.raises(RuntimeError, match="open"):
            worker.run(job)
        assert stream.stream({"in": job.inputs["in"][0]}).spikes["a"].shape == (14, 8)
    with pytest.raises(RuntimeError, match="closed"):
        stream.stream({"in": job.inputs["in"][0]})
    assert worker.run(job).spikes["a"].shape == (1, 14, 8)
