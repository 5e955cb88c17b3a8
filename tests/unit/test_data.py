import numpy as np
import pytest

from nmtool.config import Digits, LatencyEncoding, RandomEncoding, RateEncoding
from nmtool.data import SPLITS, encode, load_split, n_classes, n_features

RATE = RateEncoding(kind="rate", steps=8)


def data(**changes):
    return Digits(**{"name": "digits", "encoding": RATE, **changes})


def test_digits_have_64_pixels_and_ten_classes():
    assert (n_features(data()), n_classes(data())) == (64, 10)


def test_splits_are_disjoint_cover_everything_and_are_stratified():
    parts = [load_split(data(), split) for split in SPLITS]
    assert [len(p) for p in parts] == [1797 - 540, 180, 360]
    everything = np.concatenate([p.values for p in parts])
    assert len(everything) == 1797
    labels = np.bincount(np.concatenate([p.labels for p in parts]))
    for part in parts:
        assert part.shape == (8, 8, 1)
        assert 0 <= part.values.min() <= part.values.max() <= 1
        share = np.bincount(part.labels, minlength=10) / len(part)
        assert np.abs(share - labels / 1797).max() < 0.01
    from sklearn.datasets import load_digits

    original = load_digits().data / 16.0
    np.testing.assert_array_equal(np.sort(everything, axis=0), np.sort(original, axis=0))


def test_the_split_belongs_to_its_seed():
    one, same = load_split(data(), "test"), load_split(data(), "test")
    np.testing.assert_array_equal(one.values, same.values)
    other = load_split(data(split_seed=1), "test")
    assert np.any(one.values != other.values)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "tset", "split: found 'tset', allowed train, validation, test"),
        ({"test": 9}, "test", "data.test: found 9 samples of 1797, allowed 10 or more"),
        ({"validation": 2}, "test", "data.validation: found 2"),
        ({"test": 1700, "validation": 97}, "test", "data.train: found 0"),
        ({"test": 5000}, "train", "data.train: found -3383"),
    ],
)
def test_a_wrong_split_is_refused(changes, split, message):
    from nmtool.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        load_split(data(**changes), split)


@pytest.mark.parametrize(
    ("encoding", "counts"),
    [
        (RATE, [0, 4, 8]),
        (RateEncoding(kind="rate", steps=8, max_rate=0.5), [0, 2, 4]),
        (LatencyEncoding(kind="latency", steps=8), [0, 1, 1]),
        (RandomEncoding(kind="random", steps=8, seed=1), [0, None, 8]),
    ],
)
def test_encode_uses_the_encoding(encoding, counts):
    train = encode([[0.0, 0.5, 1.0]], encoding)
    assert (train.n_samples, train.n_neurons, train.n_steps) == (1, 3, 8)
    for found, wanted in zip(train.counts()[0], counts, strict=True):
        assert wanted is None or found == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], r"found shape \(1,\), allowed \(samples, features\)"),
        ([[1.5]], "found values from 1.5 to 1.5, allowed 0 to 1"),
        ([[-0.1]], "found values from -0.1"),
        ([[float("nan")]], "found values from nan"),
        ([["a"]], "found values of type <U1, allowed numbers"),
    ],
)
def test_raw_samples_must_be_numbers_in_range(values, message):
    from nmtool.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        encode(values, RATE)


def test_no_samples_give_no_spikes():
    assert encode(np.zeros((0, 3)), RandomEncoding(kind="random", steps=4)).n_samples == 0
