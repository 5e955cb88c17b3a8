"""Data sets that need no download, split once and for all by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from nmtool.config import Data
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray, IntArray

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, eq=False)
class Samples:
    """Raw samples in [0, 1] of shape (samples, features), their labels, and the image shape."""

    values: FloatArray
    labels: IntArray
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


def n_features(_data: Data) -> int:
    """Spike lines that a sample of the data set needs."""
    return int(_digits().values.shape[1])


def n_classes(_data: Data) -> int:
    """The number of classes of the data set."""
    return int(_digits().labels.max()) + 1


@lru_cache(maxsize=1)
def _digits() -> Samples:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Samples(bunch.data / 16.0, bunch.target.astype(np.int64), (8, 8))


def load_split(data: Data, split: str) -> Samples:
    """One part of a data set: train, validation or test; stratified, and fixed by split_seed.

    Raises:
        ConfigError: an unknown split, or a test and a validation part that leave nothing.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: found {split!r}, allowed {', '.join(SPLITS)}")
    everything = _digits()
    _check_sizes(data, len(everything))
    index = _split_indices(data.test, data.validation, data.split_seed)[split]
    return Samples(everything.values[index], everything.labels[index], everything.shape)


def _check_sizes(data: Data, total: int) -> None:
    classes = n_classes(data)
    rest = total - data.test - data.validation
    for name, size in (("test", data.test), ("validation", data.validation), ("train", rest)):
        if size < classes:
            raise ConfigError(
                f"data.{name}: found {size} samples of {total}, allowed {classes} or more"
            )


@lru_cache(maxsize=8)
def _split_indices(test: int, validation: int, seed: int) -> dict[str, IntArray]:
    from sklearn.model_selection import train_test_split

    labels = _digits().labels
    rest, test_index = train_test_split(
        np.arange(len(labels)), test_size=test, stratify=labels, random_state=seed
    )
    train_index, validation_index = train_test_split(
        rest, test_size=validation, stratify=labels[rest], random_state=seed
    )
    return {"train": train_index, "validation": validation_index, "test": test_index}
