"""Data sets that are spikes from the start: cues, moving digits, spoken vowels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.linear_model import LogisticRegression

from nmtool.config import Data, DelayedXor, DeltaEncoding, Digits, MovingDigits, RateEncoding
from nmtool.data import SPLITS, input_shape, load_split, n_classes, n_features, spikes_of
from nmtool.data.augment import check_jitter, varied
from nmtool.data.encoding import delta_encode
from nmtool.data.moving_digits import OFF, ON, camera
from nmtool.errors import ConfigError

XOR = DelayedXor(name="delayed_xor")
MOVING = MovingDigits(name="moving_digits", steps=12)
MADE = [XOR, MOVING, MovingDigits(name="moving_digits", size=32, steps=6)]


def linear(features):
    """Test accuracy of logistic regression on features (of a split's samples)."""
    train, test = load_split(XOR, "train"), load_split(XOR, "test")
    model = LogisticRegression(max_iter=2000).fit(features(train), train.labels)
    return model.score(features(test), test.labels)


@pytest.mark.parametrize("data", MADE, ids=lambda d: f"{d.name}-{d.n_steps}")
def test_spikes_have_the_shape_and_the_classes_that_are_announced(data):
    for split in SPLITS:
        samples = load_split(data, split)
        spikes = spikes_of(samples, data)
        assert (spikes.n_samples, spikes.n_steps) == (len(samples), data.n_steps)
        assert spikes.n_neurons == n_features(data) == np.prod(input_shape(data))
        assert samples.shape == input_shape(data)
        assert set(samples.labels) == set(range(n_classes(data)))
        assert len(spikes) > 0


@pytest.mark.parametrize("data", [XOR, MOVING], ids=lambda d: d.name)
def test_a_data_set_is_the_same_whenever_it_is_made(data):
    other = TypeAdapter(Data).validate_json(data.model_dump_json())
    assert other == data
    one = load_split(data, "validation")
    type(data).__hash__(data)
    from nmtool.data import delayed_xor, moving_digits

    delayed_xor.load.cache_clear()
    moving_digits._events.cache_clear()
    again = load_split(other, "validation")
    assert one is not again
    assert one.spikes == again.spikes
    np.testing.assert_array_equal(one.labels, again.labels)


def test_another_seed_gives_other_cues_and_other_saccades():
    assert (
        load_split(XOR, "test").spikes
        != load_split(XOR.model_copy(update={"seed": 1}), "test").spikes
    )
    moved = load_split(MOVING.model_copy(update={"motion_seed": 1}), "test")
    assert load_split(MOVING, "test").spikes != moved.spikes
    np.testing.assert_array_equal(load_split(MOVING, "test").labels, moved.labels)


def test_splits_of_the_cues_differ_and_are_balanced():
    parts = [load_split(XOR, split) for split in SPLITS]
    assert [len(p) for p in parts] == [800, 200, 400]
    assert all(p.labels.mean() == 0.5 for p in parts)
    head = [p.spikes.select(range(200)) for p in parts]
    assert head[0] != head[1] != head[2]


def test_no_linear_sum_of_counts_solves_delayed_xor():
    """Neither the counts of the lines nor those in tenths of the time tell the classes apart."""
    assert 0.42 < linear(lambda samples: samples.features) < 0.58

    def binned(samples):
        raster = samples.spikes.batch()
        return raster.reshape(*raster.shape[:2], 10, -1).sum(axis=3).reshape(len(samples), -1)

    assert 0.42 < linear(binned) < 0.58


def test_products_of_the_counts_during_the_cues_do_solve_it():
    """The label is there: the sign of (kind 1 less kind 0) in the first cue times in the second."""
    samples, n = load_split(XOR, "test"), XOR.lines
    raster = samples.spikes.batch()
    second = XOR.cue + XOR.delay
    kinds = [
        raster[:, n : 2 * n, b : b + XOR.cue].sum((1, 2))
        > raster[:, :n, b : b + XOR.cue].sum((1, 2))
        for b in (0, second)
    ]
    assert np.mean((kinds[0] != kinds[1]) == samples.labels) > 0.99


def test_the_cues_have_their_rates_and_the_go_signal_comes_last():
    data = XOR.model_copy(update={"noise": 0.0, "rate": 1.0})
    samples = load_split(data, "test")
    raster = samples.spikes.batch().reshape(400, 3, data.lines, 3, data.cue + data.delay)
    assert raster[:, 2, :, 2, : data.cue].all()
    assert not raster[..., data.cue :].any()
    assert not raster[:, :2, :, 2].any()
    shown = raster[:, :2, 0, :2, 0]
    assert (shown.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(shown[:, 1, 0] ^ shown[:, 1, 1], samples.labels)


def test_moving_digits_are_split_as_the_digits_are():
    digits = Digits(name="digits", encoding=RateEncoding(kind="rate", steps=1))
    for split in SPLITS:
        np.testing.assert_array_equal(
            load_split(MOVING, split).labels, load_split(digits, split).labels
        )


def test_a_digit_that_does_not_move_sends_nothing():
    images = np.random.default_rng(0).random((2, 8, 8))
    path = np.full((2, 5, 2), 1.5)
    assert not camera(images, path, 16, 0.05).any()
    path[:, 2:] += 1
    assert camera(images, path, 16, 0.05)[:, 1].any()


def test_an_edge_that_moves_right_sends_on_events_before_it_and_off_events_behind():
    """A bright square, 2 pixels of 8, enlarged by 1.5, moves by a pixel in x at every step."""
    image = np.zeros((1, 8, 8))
    image[0, 3:5, 3:5] = 1
    path = np.zeros((1, 5, 2))
    path[0, :, 0] = np.arange(-2, 3)
    events = camera(image, path, 16, 0.3)[0]
    for step in range(4):
        on, off = np.nonzero(events[step, ..., ON]), np.nonzero(events[step, ..., OFF])
        assert on[0].min() > off[0].max()
        assert {7, 8} <= {*on[1], *off[1]} <= {6, 7, 8, 9}


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.1, 0.3, 1.0]))
def test_delta_spikes_follow_their_series(seed, hold, threshold):
    """Their sum is within a threshold of every frame that lasts long enough, and never leads it."""
    rng = np.random.default_rng(seed)
    series = rng.normal(size=(3, 6, 2)).cumsum(axis=1)
    frames = np.array([1, 4, 6])
    encoding = DeltaEncoding(kind="delta", steps=6 * hold + 3, hold=hold, threshold=threshold)
    raster = delta_encode(series, frames, encoding).reshape(3, 2, 2, -1).astype(int)
    assert not (raster[:, :, 0] & raster[:, :, 1]).any()
    followed = threshold * (raster[:, :, 0] - raster[:, :, 1]).cumsum(axis=-1)
    for sample, n in enumerate(frames):
        assert not raster[sample, ..., n * hold :].any()
        before = np.zeros(2)
        for frame in range(n):
            wanted = series[sample, frame]
            at_end = followed[sample, :, (frame + 1) * hold - 1]
            reach = np.abs(wanted - before) < threshold * (hold + 1)
            assert (np.abs(at_end - wanted)[reach] < threshold * (1 + 1e-9)).all()
            moved = at_end - before
            assert (np.abs(moved) <= threshold * (hold + 1e-9)).all()
            assert (np.abs(at_end - wanted) <= np.abs(wanted - before) + 1e-9).all()
            before = at_end


def test_jitter_moves_events_as_it_moves_images():
    samples = load_split(MOVING, "validation")
    still = samples.spikes.batch().reshape(len(samples), 16, 16, 2, -1)
    order = np.random.default_rng(1).permutation(len(samples))
    moved = varied(samples, MOVING, 2, np.random.default_rng(5))(order)
    after = moved.batch().reshape(still.shape)[np.argsort(order)]
    rng = np.random.default_rng(5)
    shifts = rng.integers(-2, 3, size=(len(samples), 2)) * (rng.random((len(samples), 1)) < 0.5)
    assert len({*map(tuple, shifts)}) > 15
    for one, other, (x, y) in zip(still, after, shifts, strict=True):
        padded = np.pad(one, ((2, 2), (2, 2), (0, 0), (0, 0)))
        np.testing.assert_array_equal(other, padded[2 - x : 18 - x, 2 - y : 18 - y])
    assert varied(samples, MOVING, 0, rng)(np.arange(len(samples))) == samples.spikes


def test_what_is_no_image_is_not_moved():
    check_jitter(MOVING, 1)
    check_jitter(XOR, 0)
    with pytest.raises(ConfigError, match="jitter: found 1, allowed 0: the samples of delayed_xor"):
        check_jitter(XOR, 1)


def test_a_part_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"data\.train: found -3 samples of 1797, allowed 10"):
        load_split(MOVING.model_copy(update={"test": 1620}), "test")
