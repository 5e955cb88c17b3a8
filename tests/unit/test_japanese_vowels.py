"""The Japanese vowels: made files, and the published ones where they are installed."""

import importlib.util

import numpy as np
import pytest

from nmtool.config import DeltaEncoding, JapaneseVowels
from nmtool.data import japanese_vowels as vowels
from nmtool.data import load_split, n_classes, n_features
from nmtool.data.augment import varied
from nmtool.errors import ConfigError, DependencyError

ENCODING = DeltaEncoding(kind="delta", steps=120, hold=4, threshold=0.25)
DATA = JapaneseVowels(name="japanese_vowels", encoding=ENCODING)
installed = pytest.mark.skipif(
    importlib.util.find_spec("aeon") is None, reason="its files come with the package aeon"
)


def made(n=18, frames=lambda i: 7 + i, channels=12):
    """A .ts file of n utterances by nine speakers."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(n):
        values = rng.normal(size=(channels, frames(index)))
        row = [",".join(map(str, channel)) for channel in values]
        lines.append(":".join([*row, str(index % 9 + 1)]))
    return "@problemName made\n@data\n" + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def texts():
    return {part: made(n, lambda i: 7 + i % 23) for part, n in vowels.UTTERANCES.items()}


@pytest.fixture
def package(texts, tmp_path, monkeypatch):
    """A package ``aeon`` with made files; returns the folder of these."""
    folder = tmp_path / "aeon/datasets/data/JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "aeon/__init__.py").write_text("raise RuntimeError('imported')\n")
    for part, text in texts.items():
        (folder / f"JapaneseVowels_{part}.ts").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    vowels.read.cache_clear()
    yield folder
    vowels.read.cache_clear()


def test_a_file_is_read_with_the_true_lengths():
    found = vowels.parse(made(), 18)
    np.testing.assert_array_equal(found.frames, 7 + np.arange(18))
    np.testing.assert_array_equal(found.labels, np.arange(18) % 9)
    rng = np.random.default_rng(0)
    for series, n in zip(found.series, found.frames, strict=True):
        np.testing.assert_array_equal(series[:n].T, rng.normal(size=(12, n)))
        assert not series[n:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (made(17), "found 17 utterances, allowed 18"),
        ("nothing", "found 0 utterances"),
        (made(channels=11), r"utterance 0: found shape \(11, 7\)"),
        (made(frames=lambda i: 30), r"found shape \(12, 30\)"),
        (made().replace(":9\n", ":8\n"), "speakers out of range"),
        (made().replace(":9\n", ":10\n"), "speakers out of range"),
        (made().replace(":9\n", ":a\n"), "invalid literal"),
        (made().replace("@data\n", "@data\nx,"), "could not convert"),
        (made().replace("@data\n", "@data\n1,"), "inhomogeneous"),
        (made().replace("@data\n", "@data\nnan"), "could not convert|out of range"),
    ],
)
def test_a_damaged_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        vowels.parse(text, 18)


def test_the_files_of_the_package_are_read_without_importing_it(package):
    parts = {split: load_split(DATA, split) for split in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 225,
        "validation": 45,
        "test": 370,
    }
    for part in parts.values():
        assert part.spikes.n_neurons == n_features(DATA) == 24
        assert part.spikes.n_steps == 120
        assert set(part.labels) == set(range(n_classes(DATA)))
        assert part.values.shape == (len(part), 29 * 12)


def test_the_test_part_does_not_change_the_encoding(package):
    before = load_split(DATA, "train").spikes
    (package / "JapaneseVowels_TEST.ts").write_text(made(370, lambda i: 7))
    vowels.read.cache_clear()
    assert load_split(DATA, "train").spikes == before


def test_noise_changes_the_spikes_of_every_epoch_and_nothing_else(package):
    data = DATA.model_copy(update={"offset_noise": 0.3})
    train, n = load_split(data, "train"), np.arange(225)
    assert train.spikes == load_split(DATA, "train").spikes
    assert varied(train, DATA, 0, np.random.default_rng(1))(n) == train.spikes
    one, same, other = (varied(train, data, 0, np.random.default_rng(k))(n) for k in (1, 1, 2))
    assert one == same
    assert one != other
    assert one != train.spikes
    small = DATA.model_copy(update={"frame_noise": 1e-9})
    assert varied(train, small, 0, np.random.default_rng(1))(n) == train.spikes


def test_a_package_with_damaged_files_is_named(package):
    path = package / "JapaneseVowels_TEST.ts"
    path.write_text("@data\n")
    with pytest.raises(
        ConfigError, match=r"JapaneseVowels_TEST\.ts: found 0 utterances.*reinstall"
    ):
        load_split(DATA, "test")
    path.unlink()
    with pytest.raises(ConfigError, match=r"No such file.*reinstall"):
        load_split(DATA, "test")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    vowels.read.cache_clear()
    with pytest.raises(
        DependencyError, match=r"aeon, which is not installed; .*pip install --no-deps aeon"
    ):
        load_split(DATA, "train")


def test_steps_that_cut_an_utterance_are_refused():
    with pytest.raises(ValueError, match="at least 116, for the longest utterance, 29 frames"):
        JapaneseVowels(name="japanese_vowels", encoding=ENCODING.model_copy(update={"steps": 115}))


@installed
def test_the_published_utterances():
    """Numbers of the data set's description: 30 of each speaker to train, 24 to 88 to test."""
    vowels.read.cache_clear()
    train, test = vowels.read("TRAIN"), vowels.read("TEST")
    np.testing.assert_array_equal(np.bincount(train.labels), [30] * 9)
    np.testing.assert_array_equal(np.bincount(test.labels), [31, 35, 88, 44, 29, 24, 40, 50, 29])
    lengths = np.concatenate([train.frames, test.frames])
    assert (lengths.min(), lengths.max()) == (7, 29)
