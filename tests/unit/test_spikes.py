import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmtool.errors import ConfigError
from nmtool.spikes import SpikeTrain, latency, rate_random, rate_regular

dims = st.integers(0, 5)


@st.composite
def rasters(draw, axes=(2, 3)):
    shape = tuple(draw(dims) for _ in range(draw(st.sampled_from(axes))))
    bits = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.array(bits, dtype=bool).reshape(shape)


def entry(*places, shape=(2, 3, 4), payload=None, **rest):
    sample, step, neuron = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return SpikeTrain.from_events(sample, step, neuron, *shape, payload=payload, **rest)


@given(rasters(), st.sampled_from([bool, np.int8, np.uint16, np.float64]))
def test_raster_round_trip(raster, dtype):
    train = SpikeTrain.from_raster(raster.astype(dtype))
    back = train.to_raster()
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, raster)
    assert train == SpikeTrain.from_raster(back)
    assert len(train) == raster.sum()
    np.testing.assert_array_equal(train.counts(), raster.sum(axis=-1))
    places = list(zip(train.sample, train.step, train.neuron, strict=True))
    assert places == sorted(set(places))


@given(rasters(axes=(3,)), st.randoms(use_true_random=False))
def test_select_takes_samples_in_the_given_order(raster, random):
    order = [random.randrange(len(raster)) for _ in range(4)] if len(raster) else []
    np.testing.assert_array_equal(
        SpikeTrain.from_raster(raster).select(order).to_raster(), raster[order]
    )


def test_select_keeps_payloads_and_refuses_a_sample_that_is_not_there():
    values = np.array([[[0, 3], [-2, 0]], [[5, 0], [0, 0]], [[0, 0], [7, 1]]])
    train = SpikeTrain.from_raster(values, graded=True)
    np.testing.assert_array_equal(train.select([2, -3, 2]).to_raster(), values[[2, 0, 2]])
    assert len(train.select([])) == 0
    with pytest.raises(IndexError):
        train.select([3])


def test_equality_sees_every_part():
    one = entry((0, 0, 0), (1, 3, 2))
    assert one == entry((0, 0, 0), (1, 3, 2))
    assert one != entry((0, 0, 0), (1, 3, 1))
    assert one != entry((0, 0, 0))
    assert one != entry((0, 0, 0), (1, 3, 2), shape=(2, 3, 5))
    assert one != entry((0, 0, 0), (1, 3, 2), payload=np.array([1, 2]))
    assert one != "a spike train"


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(2, 0, 0)], r"SpikeTrain.sample: found 2 to 2, allowed 0 to 1"),
        ([(0, 4, 0)], r"SpikeTrain.step: found 4 to 4, allowed 0 to 3"),
        ([(0, 0, -1)], r"SpikeTrain.neuron: found -1 to -1, allowed 0 to 2"),
        ([(0, 1, 0), (0, 0, 0)], "twice or out of order"),
        ([(0, 1, 0), (0, 1, 0)], "twice or out of order"),
        ([(0, 0, 1), (0, 0, 0)], "twice or out of order"),
        ([(1, 0, 0), (0, 0, 0)], "twice or out of order"),
    ],
)
def test_wrong_spikes_are_refused(places, message):
    with pytest.raises(ConfigError, match=message):
        entry(*places)


def test_arrays_of_different_length_are_refused():
    zero, two = np.zeros(1, dtype=np.int64), np.array([0, 1])
    with pytest.raises(ConfigError, match=r"SpikeTrain\.sample: found shape"):
        SpikeTrain.from_events(two, two, zero, 2, 2, 2)
    with pytest.raises(ConfigError, match=r"SpikeTrain\.payload: found shape"):
        SpikeTrain.from_events(two, two, two, 2, 2, 2, payload=zero)
    with pytest.raises(ConfigError, match="2 samples without a sample axis"):
        SpikeTrain.from_events(two, two, two, 2, 2, 2, batched=False)


@pytest.mark.parametrize(
    ("raster", "message"),
    [
        (np.zeros(3), "found shape"),
        (np.zeros((1, 1, 1, 1)), "found shape"),
        (np.full((1, 2), 2), "values from 2 to 2"),
        (np.full((1, 2), 0.5), "values from 0.5 to 0.5"),
        (np.full((1, 2), np.nan), "values from nan to nan"),
        (np.array([["a"]]), "values of type <U1"),
        (np.array([[None]]), "values of type object"),
    ],
)
def test_a_raster_of_other_values_or_axes_is_refused(raster, message):
    with pytest.raises(ConfigError, match=message):
        SpikeTrain.from_raster(raster)


@given(st.floats(0, 1), st.integers(1, 50), st.floats(0.01, 1))
def test_rate_spikes_are_as_many_as_asked_and_evenly_spaced(intensity, steps, max_rate):
    raster = rate_regular(np.array([[intensity]]), steps, max_rate)
    assert raster.shape == (1, 1, steps)
    assert raster.sum() == np.floor(intensity * max_rate * steps + 1e-9)
    gaps = np.diff(np.flatnonzero(raster))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_rate_one_spikes_every_step_and_zero_never():
    raster = rate_regular(np.array([[1.0, 0.0, 0.5]]), 6, 1.0)[0]
    assert raster.astype(int).tolist() == [[1] * 6, [0] * 6, [0, 1, 0, 1, 0, 1]]


@given(st.floats(0, 1), st.integers(1, 50))
def test_latency_has_one_spike_the_earlier_the_larger(intensity, steps):
    raster = latency(np.array([[intensity]]), steps)[0, 0]
    assert raster.sum() == (intensity > 0)
    if intensity:
        assert np.argmax(raster) == round((1 - intensity) * (steps - 1))


def test_latency_at_the_ends():
    raster = latency(np.array([[1.0, 1e-9, 0.0]]), 5)[0].astype(int)
    assert raster.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_random_spikes_follow_their_probability_and_their_seed():
    intensity = np.full((2, 50), 0.5)
    raster = rate_random(intensity, 400, 0.6, seed=3)
    assert raster.shape == (2, 50, 400)
    assert abs(raster.mean() - 0.3) < 5 * np.sqrt(0.21 / raster.size)
    np.testing.assert_array_equal(raster, rate_random(intensity, 400, 0.6, seed=3))
    assert np.any(raster != rate_random(intensity, 400, 0.6, seed=4))
    assert np.any(raster[0] != raster[1])
    np.testing.assert_array_equal(raster[:1], rate_random(intensity[:1], 400, 0.6, seed=3))
    assert not rate_random(np.zeros((1, 3)), 10, 1.0, seed=0).any()
    assert rate_random(np.ones((1, 3)), 10, 1.0, seed=0).all()


@given(rasters(), st.integers(0, 999))
def test_graded_raster_round_trip(raster, seed):
    values = raster * np.random.default_rng(seed).integers(-(2**23) + 1, 2**23, raster.shape)
    train = SpikeTrain.from_raster(values, graded=True)
    assert train.to_raster().dtype == np.int64
    np.testing.assert_array_equal(train.to_raster(), values)
    np.testing.assert_array_equal(train.counts(), np.count_nonzero(values, axis=-1))


@given(rasters(axes=(3,)), st.integers(1, 9))
def test_more_steps_are_silent_steps(raster, more):
    longer = np.pad(raster, ((0, 0), (0, 0), (0, more)))
    n_steps = longer.shape[2]
    for graded in (False, True):
        train = SpikeTrain.from_raster(raster * 7 if graded else raster, graded)
        found = train.with_steps(n_steps)
        assert found == SpikeTrain.from_raster(longer * 7 if graded else longer, graded)
        assert found.with_steps(train.n_steps) == train


def test_fewer_steps_than_spikes_are_refused():
    with pytest.raises(ConfigError, match=r"SpikeTrain\.step: found 0 to 3, allowed 0 to 2"):
        entry((0, 0, 0), (1, 3, 2)).with_steps(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": np.array([0, 1])}, r"offset: found shape \(2,\), allowed \(3,\)"),
        ({"offset": np.array([0, 2, 1])}, "offset: found 0 to 1, allowed a rise from 0 to the 2"),
        ({"offset": np.array([1, 2, 2])}, "offset: found 1 to 2"),
        ({"offset": np.array([0, 3, 2])}, "allowed a rise from 0"),
        ({"neuron": np.array([[0], [1]], dtype=np.int32)}, "neuron: found 2 axes, allowed 1"),
        ({"neuron": np.array([1, 0], dtype=np.int32)}, "twice or out of order"),
        ({"payload": np.array([1, 0], dtype=np.int32)}, "payload: found 0, which is no spike"),
        ({"payload": np.array([1], dtype=np.int32)}, r"payload: found shape \(1,\)"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, message):
    fit = {"offset": np.array([0, 2, 2]), "neuron": np.array([0, 1], dtype=np.int32)}
    assert len(SpikeTrain(**fit, n_samples=1, n_neurons=2, n_steps=2)) == 2
    with pytest.raises(ConfigError, match=message):
        SpikeTrain(**{**fit, **changes}, n_samples=1, n_neurons=2, n_steps=2)


@pytest.mark.parametrize("value", [0.5, np.nan, 2**31, -(2**31) - 1])
def test_messages_are_whole_numbers_of_32_bits(value):
    with pytest.raises(ConfigError, match=r"graded raster: found .*, allowed whole numbers of 32"):
        SpikeTrain.from_raster(np.full((1, 2), value), graded=True)


@given(rasters(), st.integers(0, 6))
def test_the_first_steps_of_every_sample(raster, steps):
    found = SpikeTrain.from_raster(raster).first_steps(steps)
    assert found == SpikeTrain.from_raster(raster[..., :steps])
    assert found.to_raster().shape == raster[..., :steps].shape


@given(rasters(), st.randoms(use_true_random=False))
def test_other_neurons_have_the_same_spikes(raster, random):
    order = [*range(raster.shape[-2])]
    random.shuffle(order)
    expected = np.zeros_like(raster)
    expected[..., order, :] = raster
    found = SpikeTrain.from_raster(raster).relabelled(np.array(order, dtype=np.int64))
    assert found == SpikeTrain.from_raster(expected)
    number = np.arange(1, raster.shape[-1] + 1)
    graded = SpikeTrain.from_raster(raster * number, graded=True)
    found = graded.relabelled(np.array(order, dtype=np.int64)).to_raster()
    np.testing.assert_array_equal(found, expected * number)
