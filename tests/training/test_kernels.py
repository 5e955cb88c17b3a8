"""The compiled sums, products and lists against numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmtool.training import kernels, parts
from nmtool.training.events import Events
from nmtool.training.spiking import DETERMINISTIC, EXPONENTIAL

SEEDS = st.integers(0, 2**32 - 1)


@given(
    seed=SEEDS,
    neurons=st.integers(1, 200),
    largest=st.sampled_from([1, 300, 4000, 32767]),
    density=st.sampled_from([0.0, 0.05, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_currents_are_the_sums_of_the_rows_of_all_spikes(seed, neurons, largest, density):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-largest, largest, (40, neurons), endpoint=True)
    raster = rng.random((2, 6, 40)) < density
    found = _currents(weight, raster, np.int16, np.iinfo(np.int16).max // largest)
    expected = (raster.astype(np.int64) @ weight) << 6
    np.testing.assert_array_equal(found, expected)


def test_sums_that_take_more_rows_than_have_room_would_be_wrong():
    weight, raster = np.full((40, 70), 4000), np.ones((1, 2, 40), dtype=np.bool_)
    assert (_currents(weight, raster, np.int16, 40) != 40 * 4000 << 6).any()
    assert (_currents(weight, raster, np.int16, 8) == 40 * 4000 << 6).all()


def _currents(weight, raster, kind, room):
    """Of neurons whose current is gone a step later, and that never spike."""
    sources, neurons = weight.shape
    width = -(-neurons // kernels.LANES) * kernels.LANES
    rows = np.zeros((1, sources, width), dtype=kind)
    rows[0, :, :neurons] = weight
    events = Events.of_steps(raster.astype(np.int8))
    samples, steps, _ = raster.shape
    current = np.empty((samples, steps, neurons), dtype=np.int32)
    registers = np.zeros((4, neurons), dtype=np.int32)
    registers[2] = np.iinfo(np.int32).max
    kernels.forward_dense(
        0,
        samples,
        events.neuron,
        events.at_step,
        0,
        rows,
        room,
        registers,
        DETERMINISTIC,
        np.zeros((1, samples), dtype=np.uint64),
        np.empty((samples, 0, neurons), dtype=np.int32),
        current,
        np.empty_like(current),
        np.empty(current.shape, dtype=np.int8),
    )
    return current


@given(seed=SEEDS, places=st.integers(1, 70), density=st.sampled_from([0.0, 0.1, 0.6, 1.0]))
@settings(max_examples=60, deadline=None)
def test_events_are_the_places_that_are_not_0(seed, places, density):
    rng = np.random.default_rng(seed)
    raster = (rng.random((3, 11, places)) < density).astype(np.float32)
    events = Events.of_steps(raster)
    for b, t in np.ndindex(3, 11):
        listed = events.neuron[events.at_step[b, t] : events.at_step[b, t + 1]]
        np.testing.assert_array_equal(listed, np.flatnonzero(raster[b, t]))


@pytest.mark.parametrize("neurons", [5, 32, 75])
@pytest.mark.parametrize("delay", [1, 3])
def test_gradients_through_a_loop_are_those_of_the_recurrence(neurons, delay):
    rng = np.random.default_rng(neurons)
    samples, steps = 7, 9
    gradient = rng.normal(size=(samples, steps, neurons)).astype(np.float32)
    voltage = rng.integers(-9000, 9000, gradient.shape, dtype=np.int32)
    matrix = rng.normal(0, 0.3, (neurons, neurons)).astype(np.float32)
    neuron = np.empty((5, neurons), dtype=np.float32)
    neuron[:] = np.array([4096, 1e-3, 0.7, 0.5, 0.8])[:, None]
    follow = (rng.random(neurons) < 0.8).astype(np.float32)
    center, slope, peak, keep_u, keep_v = neuron.astype(np.float64)
    expected, g_u, g_v = gradient.astype(np.float64), 0.0, 0.0
    for t in range(steps - 1, -1, -1):
        if t + delay < steps:
            expected[:, t] += expected[:, t + delay] @ matrix
        rho = peak * 2.0 ** (-slope * np.abs(voltage[:, t] - center))
        g_v = rho * follow * expected[:, t] + keep_v * g_v
        g_u = g_v + keep_u * g_u
        expected[:, t] = g_u
    parts_of = [gradient.copy() for _ in range(2)]
    for found, cuts in zip(parts_of, ([0, 7], [0, 2, 7]), strict=True):
        for first, last in pairwise(cuts):
            kernels.backward_loop(
                first, last, delay, matrix, follow, found, voltage, EXPONENTIAL, neuron
            )
    np.testing.assert_allclose(parts_of[0], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(*parts_of)


def test_threads_that_help_leave_each_product_to_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = parts._pool().submit(torch.get_num_threads).result(timeout=60)
        assert (found, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_work_that_fails_is_reported_once_all_threads_have_stopped():
    begun, done = [], []

    def work(first, _):
        begun.append(first)
        if first == 2:
            raise RuntimeError("part 2")
        done.append(first)
        return first

    with pytest.raises(RuntimeError, match="part 2"):
        parts.in_parts(4, work)
    assert sorted(done) == sorted(set(begun) - {2})
    assert parts.in_parts(4, lambda first, last: (first, last)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
