"""N-MNIST, DVS Gesture and SHD, read from their archives as published: nothing is unpacked.

- ``nmnist``: Train.zip and Test.zip (Orchard et al. 2015);
- ``dvs_gesture``: ibmGestureTrain.tar.gz and ibmGestureTest.tar.gz, DVS Gesture (Amir et al. 2017)
  cut into one file for each gesture;
- ``shd``: shd_train.h5.zip and shd_test.h5.zip (Cramer et al. 2022).

An archive is read only if its MD5 sum is that of the published one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np

from nmtool.config import DvsGesture, NMnist, Recorded
from nmtool.data.samples import Samples, stratified
from nmtool.errors import ConfigError, DependencyError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.spikes import SpikeTrain

NMNIST_PIXELS, GESTURE_PIXELS, SHD_CHANNELS = 34, 128, 700
CLASSES = {"nmnist": 10, "dvs_gesture": 11, "shd": 20}
DOWNLOAD_TIMEOUT = 60.0
"""Seconds without a byte."""
Recording: TypeAlias = tuple[int, IntArray, FloatArray]
"""Label, lines and times in ms of one sample's events."""


@dataclass(frozen=True)
class Archive:
    """A published archive: the names it has been given, and its MD5 sum."""

    names: tuple[str, ...]
    md5: str


@dataclass(frozen=True)
class Source:
    """Where the archives of a data set are from: tonic's class and page, and the archives."""

    tonic: str
    page: str
    train: Archive
    test: Archive


SOURCES = {
    "nmnist": Source(
        "NMNIST",
        "https://www.garrickorchard.com/datasets/n-mnist",
        Archive(("Train.zip", "train.zip"), "20959b8e626244a1b502305a9e6e2031"),
        Archive(("Test.zip", "test.zip"), "69ca8762b2fe404d9b9bad1103e97832"),
    ),
    "dvs_gesture": Source(
        "DVSGesture",
        "http://research.ibm.com/dvsgesture/",
        Archive(("ibmGestureTrain.tar.gz",), "3a8f0d4120a166bac7591f77409cb105"),
        Archive(("ibmGestureTest.tar.gz",), "56070e45dadaa85fff82e0fbfbc06de5"),
    ),
    "shd": Source(
        "SHD",
        "https://zenkelab.org/datasets/",
        Archive(("shd_train.h5.zip",), "f3252aeb598ac776c1b526422d90eecb"),
        Archive(("shd_test.h5.zip",), "1503a5064faa34311c398fb0a1ed0a6f"),
    ),
}


def shape(data: Recorded) -> tuple[int, ...]:
    """(x, y, channel) with channel 0 off and 1 on, or (channels,)."""
    if isinstance(data, NMnist):
        return (NMNIST_PIXELS, NMNIST_PIXELS, 2)
    if isinstance(data, DvsGesture):
        return (GESTURE_PIXELS // data.pool, GESTURE_PIXELS // data.pool, 2)
    return (SHD_CHANNELS,)


def load(data: Recorded, split: str) -> Samples:
    """One part, as spikes, and how many events came after the last step.

    Raises:
        ConfigError: an archive is missing, not the published one, or cannot be fetched.
        DependencyError: it is to be fetched, and tonic is missing.
    """
    if split == "test":
        return _read(data, "test")
    whole = _read(data, "train")
    parts = stratified(whole.labels, {"validation": data.validation}, data.split_seed)
    return whole.pick(parts[split])


def check_archives(data: Recorded) -> None:
    """That both archives are there and as published, or are to be fetched; nothing is read.

    Raises:
        ConfigError: an archive is missing, or not the published one.
    """
    for part in ("train", "test"):
        archive: Archive = getattr(SOURCES[data.name], part)
        if data.download and _find(_folder(data), SOURCES[data.name], archive) is None:
            continue
        _archive(data, part)


@lru_cache(maxsize=2)
def _read(data: Recorded, part: str) -> Samples:
    path = _archive(data, part)
    pool = data.pool if isinstance(data, DvsGesture) else 1
    reader = {"nmnist": read_nmnist, "dvs_gesture": read_gestures, "shd": read_shd}[data.name]
    return binned(reader(path, pool), shape(data), data.steps, data.step_ms)


def binned(
    recordings: Iterator[Recording], shape: tuple[int, ...], steps: int, step_ms: float
) -> Samples:
    """Spikes of recorded events: one at step t if a line has events in [t, t + 1) x step_ms."""
    lines = int(np.prod(shape))
    labels, neurons, counts, late = [], [], [], []
    for label, line, time in recordings:
        step = np.floor(time / step_ms).astype(np.int64)
        kept = step < steps
        late.append(np.count_nonzero(~kept))
        place = np.unique(step[kept] * lines + line[kept])
        labels.append(label)
        neurons.append((place % lines).astype(np.int32))
        counts.append(np.bincount(place // lines, minlength=steps))
    offset = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    spikes = SpikeTrain(offset, np.concatenate(neurons), len(labels), lines, steps)
    return Samples(None, np.array(labels), shape, spikes, np.array(late))


def _holds(name: str, ending: str) -> bool:
    """Whether a member of an archive is a recording, and not what a file manager left there."""
    return name.endswith(ending) and not PurePosixPath(name).name.startswith(".")


def read_nmnist(path: Path, _pool: int = 1) -> Iterator[Recording]:
    """Recordings of a zip of DIGIT/NAME.bin, in the order of their names.

    An event has 40 bits: x (8), y (8), polarity (1), and time in microseconds (23). y = 240 marks
    2^13 microseconds that have been lost from the clock (Orchard et al. 2015).
    """
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if _holds(name, ".bin")):
            raw = np.frombuffer(archive.read(name), dtype=np.uint8).reshape(-1, 5).astype(np.int64)
            x, y, high = raw[:, 0], raw[:, 1], raw[:, 2]
            overflow = y == 240
            time = ((high & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]) + (np.cumsum(overflow) << 13)
            line = (x * NMNIST_PIXELS + y) * 2 + (high >> 7)
            kept = ~overflow
            yield int(PurePosixPath(name).parent.name), line[kept], time[kept] / 1000


def read_gestures(path: Path, pool: int = 1) -> Iterator[Recording]:
    """Recordings of a tar of USER/CLASS.npy, in its order: rows of x, y, polarity, ms."""
    pixels = GESTURE_PIXELS // pool
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if not member.isfile() or not _holds(member.name, ".npy"):
                continue
            content = archive.extractfile(member)
            assert content is not None
            x, y, polarity, time = np.load(io.BytesIO(content.read()), allow_pickle=False).T
            place = x.astype(np.int64) // pool * pixels + y.astype(np.int64) // pool
            label = int(PurePosixPath(member.name).stem)
            yield label, place * 2 + polarity.astype(np.int64), time.astype(np.float64)


def read_shd(path: Path, _pool: int = 1) -> Iterator[Recording]:
    """Recordings of a zip of one HDF5 file: spikes/times in seconds, spikes/units, labels."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".h5"))
        content = io.BytesIO(archive.read(name))
    with h5py.File(content, "r") as file:
        times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"]
        for index in range(len(labels)):
            line = np.asarray(units[index], dtype=np.int64)
            yield int(labels[index]), line, np.asarray(times[index], dtype=np.float64) * 1000


def _archive(data: Recorded, part: str) -> Path:
    """The archive of a part, fetched if that is wanted, and checked."""
    source = SOURCES[data.name]
    archive: Archive = getattr(source, part)
    folder = _folder(data)
    found = _find(folder, source, archive)
    if found is None and data.download:
        _download(data.name, folder, part)
        found = _find(folder, source, archive)
    if found is None:
        raise ConfigError(
            f"data {data.name}: found no {archive.names[0]} in {folder} or "
            f"{folder / source.tonic}; put it there from {source.page}, set data.folder or "
            "NMTOOL_DATA, or, with tonic and a network, data.download=true"
        )
    _check_sum(found, archive, found.stat().st_size, found.stat().st_mtime_ns)
    return found


def _folder(data: Recorded) -> Path:
    return Path(data.folder or os.environ.get("NMTOOL_DATA") or "data").expanduser()


def _find(folder: Path, source: Source, archive: Archive) -> Path | None:
    places = [at / name for at in (folder, folder / source.tonic) for name in archive.names]
    return next((path for path in places if path.is_file()), None)


@lru_cache(maxsize=8)
def _check_sum(path: Path, archive: Archive, _size: int, _modified: int) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != archive.md5:
        raise ConfigError(
            f"{path}: found the MD5 sum {digest.hexdigest()}, allowed {archive.md5}, that of the "
            "published archive: fetch it again"
        )


def _download(name: str, folder: Path, part: str) -> None:
    """Let tonic fetch a part into ``folder``; it gives up after DOWNLOAD_TIMEOUT without a byte."""
    source = SOURCES[name]
    try:
        tonic = importlib.import_module("tonic")
    except ImportError as error:
        raise DependencyError(
            f"data.download: tonic cannot be imported ({error}); install with: pip install "
            f"'.[tonic]', or put the archives of {source.page} into {folder}"
        ) from None
    make: Callable[..., Any] = getattr(tonic.datasets, source.tonic)
    with _silence_limited(DOWNLOAD_TIMEOUT), contextlib.redirect_stdout(sys.stderr):
        try:
            make(save_to=str(folder), train=part == "train")
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"data {name}: tonic could not fetch it ({type(error).__name__}: {error}); without "
                f"a network, put the archives of {source.page} into {folder}"
            ) from None


@contextlib.contextmanager
def _silence_limited(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
