"""N-MNIST, DVS Gesture and SHD: archives made in their formats, checked sums, and no network."""

import hashlib
import io
import sys
import tarfile
import types
import urllib.error
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest

from nmtool.config import DvsGesture, NMnist, Shd
from nmtool.data import input_shape, load_split, n_classes, n_features, recorded
from nmtool.errors import ConfigError, DependencyError


def events(rng, n, pixels, last_ms):
    """Sorted times in microseconds, x, y and polarity of n events."""
    time = np.sort(rng.integers(0, last_ms * 1000, n))
    return time, *rng.integers(0, pixels, (2, n)), rng.integers(0, 2, n)


def nmnist_bytes(time, x, y, polarity):
    raw = np.stack([x, y, polarity << 7 | time >> 16, time >> 8 & 255, time & 255], axis=1)
    return raw.astype(np.uint8).tobytes()


def write_nmnist(path, recordings, folder="Train"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/", "")
        archive.writestr(f"{folder}/0/._00000.bin", b"\0")
        for index, (label, *found) in enumerate(recordings):
            archive.writestr(f"{folder}/{label}/{index:05d}.bin", nmnist_bytes(*found))


def write_gestures(path, recordings):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("ibmGestureTrain/user00/._0.npy"))
        for index, (label, time, x, y, polarity) in enumerate(recordings):
            content = io.BytesIO()
            np.save(content, np.stack([x, y, polarity, time // 1000], axis=1))
            member = tarfile.TarInfo(f"ibmGestureTrain/user{index:02d}/{label}.npy")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def write_shd(path, recordings):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        spikes = file.create_group("spikes")
        n = (len(recordings),)
        times = spikes.create_dataset("times", n, dtype=h5py.vlen_dtype(np.float16))
        units = spikes.create_dataset("units", n, dtype=h5py.vlen_dtype(np.uint16))
        for index, (_, time, x, *_) in enumerate(recordings):
            times[index], units[index] = (time / 1e6).astype(np.float16), x
        file["labels"] = np.array([label for label, *_ in recordings], dtype=np.uint16)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path.name.removesuffix(".zip"), content.getvalue())


SETS = {
    "nmnist": (NMnist, 34, write_nmnist, {"step_ms": 1.0}),
    "dvs_gesture": (DvsGesture, 128, write_gestures, {"step_ms": 2.0, "pool": 4}),
    "shd": (Shd, 700, write_shd, {"step_ms": 14.0}),
}


@pytest.fixture(params=SETS)
def made(request, tmp_path, monkeypatch):
    """A config, the recordings of its training part, and the folder of its archives."""
    kind, pixels, write, settings = SETS[request.param]
    source, rng = recorded.SOURCES[request.param], np.random.default_rng(7)
    classes = recorded.CLASSES[request.param]
    recordings = [(i % classes, *events(rng, 60, pixels, 90)) for i in range(3 * classes)]
    recordings.sort(key=lambda item: item[0])
    for part in ("train", "test"):
        archive = getattr(source, part)
        write(tmp_path / archive.names[0], recordings)
        content = (tmp_path / archive.names[0]).read_bytes()
        source = replace(source, **{part: replace(archive, md5=hashlib.md5(content).hexdigest())})
    monkeypatch.setitem(recorded.SOURCES, request.param, source)
    recorded._read.cache_clear()
    data = kind(name=request.param, folder=str(tmp_path), steps=40, validation=classes, **settings)
    yield data, recordings, tmp_path
    recorded._read.cache_clear()


def expected(data, recording):
    """Lines and steps of a recording, by its definition."""
    _, time, x, y, polarity = recording
    if data.name == "shd":
        line, ms = x, (time / 1e6).astype(np.float16).astype(float) * 1000
    elif data.name == "nmnist":
        line, ms = (x * 34 + y) * 2 + polarity, time / 1000
    else:
        line, ms = (x // 4 * 32 + y // 4) * 2 + polarity, time // 1000
    step = np.floor(ms / data.step_ms).astype(int)
    raster = np.zeros((n_features(data), data.steps), dtype=bool)
    raster[line[step < data.steps], step[step < data.steps]] = True
    return raster, int(np.sum(step >= data.steps))


def test_every_event_becomes_a_spike_of_its_line_and_step(made):
    data, recordings, _ = made
    test = load_split(data, "test")
    np.testing.assert_array_equal(test.labels, [label for label, *_ in recordings])
    assert test.shape == input_shape(data)
    wanted = [expected(data, recording) for recording in recordings]
    np.testing.assert_array_equal(test.spikes.to_raster(), np.array([w for w, _ in wanted]))
    np.testing.assert_array_equal(test.late, [late for _, late in wanted])
    assert (test.late.sum() > 0) == (data.name != "shd")


def test_validation_is_taken_from_the_training_part(made):
    data, _, _ = made
    train, validation = load_split(data, "train"), load_split(data, "validation")
    assert (len(train), len(validation)) == (2 * n_classes(data), n_classes(data))
    np.testing.assert_array_equal(np.bincount(validation.labels), 1)
    whole = load_split(data, "test").spikes.to_raster()
    parts = np.concatenate([train.spikes.to_raster(), validation.spikes.to_raster()])
    assert {r.tobytes() for r in whole} == {r.tobytes() for r in parts}
    assert len(train.late) == len(train)


def test_archives_are_found_where_tonic_puts_them(made, monkeypatch):
    data, _, folder = made
    source = recorded.SOURCES[data.name]
    (folder / source.tonic).mkdir()
    for archive in (source.train, source.test):
        (folder / archive.names[0]).rename(folder / source.tonic / archive.names[-1])
    monkeypatch.setenv("NMTOOL_DATA", str(folder))
    assert len(load_split(data.model_copy(update={"folder": None}), "test")) > 0


def test_an_archive_that_is_not_the_published_one_is_refused(made):
    data, _, folder = made
    path = folder / recorded.SOURCES[data.name].test.names[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"found the MD5 sum [0-9a-f]{32}, allowed .*fetch it"):
        load_split(data, "test")
    assert len(load_split(data, "train")) > 0


def test_a_missing_archive_says_where_it_is_from(made, tmp_path):
    data, _, _ = made
    empty = data.model_copy(update={"folder": str(tmp_path / "empty")})
    with pytest.raises(ConfigError, match=r"found no .* in .*empty.*http.*download=true"):
        load_split(empty, "train")


def test_without_tonic_a_download_is_refused(made, tmp_path, monkeypatch):
    data, _, _ = made
    monkeypatch.setitem(sys.modules, "tonic", None)
    wanted = {"folder": str(tmp_path / "empty"), "download": True}
    with pytest.raises(DependencyError, match=r"data\.download: tonic cannot be imported.*pip"):
        load_split(data.model_copy(update=wanted), "train")


def tonic_that(act, monkeypatch):
    """A package tonic whose data sets do ``act(save_to, train)``."""
    tonic = types.ModuleType("tonic")
    tonic.datasets = types.SimpleNamespace(
        **{source.tonic: act for source in recorded.SOURCES.values()}
    )
    monkeypatch.setitem(sys.modules, "tonic", tonic)


def test_tonic_fetches_the_archive_that_is_missing(made, tmp_path, monkeypatch, capsys):
    data, _, folder = made
    source = recorded.SOURCES[data.name]

    def fetch(save_to, train):
        print("fetching")
        archive = source.train if train else source.test
        place = tmp_path / "new" / source.tonic
        place.mkdir(parents=True, exist_ok=True)
        (place / archive.names[-1]).write_bytes((folder / archive.names[0]).read_bytes())

    tonic_that(fetch, monkeypatch)
    wanted = {"folder": str(tmp_path / "new"), "download": True}
    fetched = load_split(data.model_copy(update=wanted), "test")
    assert fetched.spikes == load_split(data, "test").spikes
    assert capsys.readouterr().out == ""


def test_without_a_network_a_download_ends_with_what_to_do(made, tmp_path, monkeypatch):
    data, _, _ = made
    import socket

    def offline(save_to, train):
        assert socket.getdefaulttimeout() == recorded.DOWNLOAD_TIMEOUT
        raise urllib.error.URLError("no network")

    tonic_that(offline, monkeypatch)
    wanted = {"folder": str(tmp_path / "new"), "download": True}
    with pytest.raises(ConfigError, match=r"could not fetch it .*no network.*put the archives of"):
        load_split(data.model_copy(update=wanted), "train")
    assert socket.getdefaulttimeout() is None


def test_lost_time_of_nmnist_is_added(tmp_path):
    time, x, y, polarity = np.array([[5, 5, 7], [1, 0, 2], [3, 240, 4], [1, 0, 0]])
    path = tmp_path / "one.zip"
    write_nmnist(path, [(4, time, x, y, polarity)])
    ((label, line, ms),) = recorded.read_nmnist(path)
    assert label == 4
    np.testing.assert_array_equal(line, [(34 + 3) * 2 + 1, (2 * 34 + 4) * 2])
    np.testing.assert_allclose(ms, [0.005, 0.007 + 8.192])
