"""What a job refuses, and the way it takes over the pipe."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.lava import wire
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


def test_hold_and_names(small_job):
    job = small_job(delays=6)
    assert job.longest_delay == 6
    assert job.period == job.n_steps + 7
    twice = replace(job, projections=(*job.projections, job.projections[0]))
    assert twice.projection_names[-1] == "in->a#2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hold": 6}, "hold 6 is below 7"),
        ({"n_steps": 3}, "has 40 steps, not 3"),
        ({"populations": {}}, "at least one population"),
        ({"probes": LavaProbes(spikes=("x",))}, "no such population"),
        ({"projections": (LavaProjection("in", "a", np.zeros((2, 2), int)),)}, "expected"),
        ({"projections": (LavaProjection("no", "a", np.zeros((2, 2), int)),)}, "unknown source"),
        ({"projections": (LavaProjection("in", "no", np.zeros((2, 2), int)),)}, "unknown target"),
    ],
)
def test_inconsistent_jobs(small_job, change, message):
    with pytest.raises(ValueError, match=message):
        replace(small_job(), **change)


@pytest.mark.parametrize(
    ("population", "message"),
    [
        (LavaPopulation(2, 4096, 0, 1), "decay_u 4096"),
        (LavaPopulation(2, -1, 0, 1), "decay_u -1"),
        (LavaPopulation(2, 0, 4096, 1), "decay_v 4096"),
        (LavaPopulation(2, 0, 0, 131072), "threshold 131072"),
        (LavaPopulation(2, 0, 0, 1, np.array([0, 40000])), "bias_mantissa 40000"),
        (LavaPopulation(2, 0, 0, 1, None, 8), "bias_exponent 8"),
    ],
)
def test_ranges_that_lava_does_not_check(population, message):
    job = LavaJob({}, {"a": population}, (), 5)
    with pytest.raises(UnsupportedError, match=f"'a': {message} is outside"):
        job.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_exponent": 8}, "weight_exponent 8"),
        ({"weight_bits": 9}, "weight_bits 9"),
        ({"delay": 63}, "delay 63"),
        ({"sign_mode": "excitatory"}, "-3"),
        ({"weight_mantissa": np.full((1, 1), 256)}, "256"),
    ],
)
def test_projection_ranges(fields, message):
    projection = replace(LavaProjection("a", "a", np.full((1, 1), -3)), **fields)
    with pytest.raises(UnsupportedError, match=message):
        LavaJob({}, {"a": LavaPopulation(1, 0, 0, 1)}, (projection,), 5).check()


def test_a_job_survives_the_pipe(small_job):
    job = small_job(4, delays=5)
    body, arrays = wire.job_to_message(job)
    data = b"".join(bytes(piece) for piece in wire.pack({"job": body}, arrays))
    reader, found = wire.Reader(), []
    for start in range(0, len(data), 1000):
        found += reader.feed(data[start : start + 1000])
    ((received, received_arrays),) = found
    again = wire.job_from_message(received["job"], received_arrays)
    assert again.projection_names == job.projection_names
    assert again.probes == job.probes
    assert again.period == job.period
    np.testing.assert_array_equal(again.inputs["in"], job.inputs["in"])
    for old, new in zip(job.projections, again.projections, strict=True):
        np.testing.assert_array_equal(old.weight_mantissa, new.weight_mantissa)
        np.testing.assert_array_equal(old.delay, new.delay)
    np.testing.assert_array_equal(
        again.populations["a"].bias_mantissa, job.populations["a"].bias_mantissa
    )


def test_every_kind_survives_the_pipe():
    populations = {
        "lif": LavaPopulation(np.int64(4), -1, 4096, 131072, None, 0, 5, 7),
        "delta": LavaDelta(4, 3, 1, 2),
        "both": LavaSigmaDelta(4, 3, np.arange(4), 1, 2, "unit"),
        "sigma": LavaSigma(4),
    }
    pair = np.array([0, 3]), np.array([1, 0])
    kernel = np.arange(4).reshape(2, 1, 1, 2)
    projections = (
        LavaSparseProjection("in", "lif", (4, 4), *pair, np.array([6, -2]), 1, 7, delay=pair[1]),
        LavaConvProjection("in", "both", kernel, (1, 2, 2), 3, (1, 2), (0, 1), (1, 2)),
    )
    drives = (LavaDrive("in", "lif", "bias"), LavaDrive("in", "delta"))
    raster = np.full((1, 4, 2), -7)
    job = LavaJob({"in": raster}, populations, projections, 2, drives=drives)
    job = replace(job, current_overflow="lava")
    body, arrays = wire.job_to_message(job)
    data = b"".join(bytes(piece) for piece in wire.pack({"job": body}, arrays))
    ((received, received_arrays),) = wire.Reader().feed(data)
    again = wire.job_from_message(received["job"], received_arrays)
    assert (again.drives, again.current_overflow) == (drives, "lava")
    assert again.inputs["in"].dtype == np.int32
    pairs = [*zip(populations.values(), again.populations.values(), strict=True)]
    pairs += zip(projections, again.projections, strict=True)
    for old, new in pairs:
        assert type(old) is type(new)
        for key in vars(old).keys() - {"name"}:
            np.testing.assert_array_equal(getattr(old, key), getattr(new, key), key)


def test_objects_do_not_pass():
    with pytest.raises(wire.WireError, match="cannot be sent"):
        wire.pack({}, {"x": np.array([object()])})
    with pytest.raises(wire.WireError, match="not a message"):
        wire.Reader().feed(b"GET / HTTP/1.1\r\n\r\n")
    good = b"".join(bytes(p) for p in wire.pack({}, {"x": np.zeros(1, "<i8")}))
    with pytest.raises(wire.WireError, match="has the type"):
        wire.Reader().feed(good.replace(b"<i8", b"|O8"))
