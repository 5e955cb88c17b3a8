"""What a data set gives: samples with labels, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.spikes import SpikeTrain

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Shape: TypeAlias = tuple[int, ...]
Parts: TypeAlias = dict[str, IntArray]
"""The samples of each split, by their index."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a data set, and their labels (samples,).

    ``values`` are raw numbers, (samples, features). ``spikes`` is None where these are still to be
    encoded. ``shape`` is that of a sample: (x, y, channel), or (lines,). ``late`` (samples,) counts
    the events of recordings that came after the last step, which are left out.
    """

    values: FloatArray | None
    labels: IntArray
    shape: Shape
    spikes: SpikeTrain | None = None
    late: IntArray | None = None

    def __post_init__(self) -> None:
        assert self.values is not None or self.spikes is not None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> FloatArray:
        """What a linear classifier is given: raw numbers, or spike counts, (samples, features)."""
        if self.values is not None:
            return self.values
        assert self.spikes is not None
        return self.spikes.counts().astype(np.float64)

    def pick(self, index: IntArray) -> Samples:
        """The samples of the given index, in its order."""
        return replace(
            self,
            values=None if self.values is None else self.values[index],
            labels=self.labels[index],
            spikes=None if self.spikes is None else self.spikes.select(index),
            late=None if self.late is None else self.late[index],
        )


def stratified(labels: IntArray, held: dict[str, int], seed: int) -> Parts:
    """Seeded parts of given sizes, each with the classes in their proportions; the rest trains.

    Raises:
        ConfigError: a part with fewer samples than there are classes.
    """
    _check_sizes(labels, held)
    from sklearn.model_selection import train_test_split

    rest, parts = np.arange(len(labels)), {}
    for name, size in held.items():
        rest, parts[name] = train_test_split(
            rest, test_size=size, stratify=labels[rest], random_state=seed
        )
    return {**parts, "train": rest}


def _check_sizes(labels: IntArray, held: dict[str, int]) -> None:
    classes, total = len(np.unique(labels)), len(labels)
    for name, size in {**held, "train": total - sum(held.values())}.items():
        if size < classes:
            raise ConfigError(
                f"data.{name}: found {size} samples of {total}, allowed {classes} or more"
            )
