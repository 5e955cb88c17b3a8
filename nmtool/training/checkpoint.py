"""Checkpoints of a training: HDF5 without pickle, enough to go on to the same bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.errors import ArtifactError
from nmtool.formats.artifacts import DAMAGE
from nmtool.formats.claims import build, check_arrays
from nmtool.formats.container import Array, Container, read_container, write_container
from nmtool.training.trainer import Epoch, TrainingState

SCHEMA = "nmtool.checkpoint/v1"
_TENSORS = ("weights", "first_moment", "second_moment", "best_weights")
_MEANS = ("means", "best_means")
NO_EPOCH = -1
"""The best epoch as long as none fits the chip: then there are no best weights."""


def save_checkpoint(path: Path, state: TrainingState, experiment: str) -> None:
    """Write the state after an epoch; ``experiment`` is the resolved config it belongs to."""
    arrays: dict[str, Array] = {
        f"{kind}/{name}": tensor
        for kind in (*_TENSORS, *_MEANS)
        for name, tensor in getattr(state, kind).items()
    }
    header: dict[str, Any] = {
        "experiment": experiment,
        "updates": state.updates,
        "best_accuracy": state.best_accuracy,
        "best_epoch": state.best_epoch,
        "history": [asdict(epoch) for epoch in state.history],
    }
    write_container(path, Container(SCHEMA, header, arrays))


def load_checkpoint(path: Path, experiment: str) -> TrainingState:
    """The state to continue from.

    Raises:
        ArtifactError: missing, damaged, or from another experiment.
    """
    container = read_container(path)
    if container.schema != SCHEMA:
        raise ArtifactError(f"{path}: found the schema {container.schema}, allowed {SCHEMA}")
    header = container.header
    if header.get("experiment") != experiment:
        raise ArtifactError(
            f"{path}: belongs to another experiment or other settings; use the same file and -s "
            "options, or --force to start afresh"
        )
    tensors = {
        kind: {
            name.removeprefix(f"{kind}/"): array
            for name, array in container.arrays.items()
            if name.startswith(f"{kind}/")
        }
        for kind in (*_TENSORS, *_MEANS)
    }
    try:
        history = [build(Epoch, {**e, "warnings": tuple(e["warnings"])}) for e in header["history"]]
        keys = ("updates", "best_accuracy", "best_epoch")
        values = {**tensors, "history": history, **{key: header[key] for key in keys}}
        fits = header["best_epoch"] != NO_EPOCH
        for kind in _TENSORS:
            known = tensors["weights"] if fits or kind != "best_weights" else {}
            check_arrays(kind, tensors[kind], known)
        check_arrays("best_means", tensors["best_means"], tensors["means"] if fits else {})
        if any(array.dtype != np.float32 for array in container.arrays.values()):
            raise ValueError("found tensors that are not float32")
        return build(TrainingState, values)
    except DAMAGE as error:
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None
