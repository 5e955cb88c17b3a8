"""Checkpoints of a loop: HDF5 without pickle, enough to go on to the same bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.formats.artifacts import DAMAGE
from nmtool.formats.claims import build, check_arrays
from nmtool.formats.container import Array, Container, read_container, write_container
from nmtool.learning.board import Spent
from nmtool.learning.host import HostState
from nmtool.learning.loop import LoopState, Round

SCHEMA = "nmtool.loop/v1"


def save_state(path: Path, state: LoopState, key: str) -> None:
    """Write the state after a round; ``key`` says what it belongs to."""
    groups = _groups(state)
    arrays: dict[str, Array] = {
        f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()
    }
    header: dict[str, Any] = {
        "key": key,
        "updates": state.host.updates,
        "best_accuracy": state.best_accuracy,
        "best_round": state.best_round,
        "spent": asdict(state.spent),
        "history": [asdict(entry) for entry in state.history],
    }
    write_container(path, Container(SCHEMA, header, arrays))


def load_state(path: Path, key: str) -> LoopState:
    """The state to continue from.

    Raises:
        ArtifactError: missing, damaged, or of another loop.
    """
    container = read_container(path)
    header = container.header
    if container.schema != SCHEMA or header.get("key") != key:
        raise ArtifactError(
            f"{path}: belongs to another loop or other settings; use the same options, or --force "
            "to start afresh"
        )

    def group(prefix: str) -> dict[str, Array]:
        return {
            name.removeprefix(f"{prefix}/"): array
            for name, array in container.arrays.items()
            if name.startswith(f"{prefix}/")
        }

    try:
        keys = ("best_accuracy", "best_round")
        host = {"shadow": group("shadow"), "first": group("first"), "second": group("second")}
        values = {
            "host": build(HostState, {**host, "updates": header["updates"]}),
            "best": group("best"),
            "masks": group("masks"),
            "spent": build(Spent, header["spent"]),
            "history": [build(Round, entry) for entry in header["history"]],
            **{key: header[key] for key in keys},
        }
        return build(LoopState, values)
    except DAMAGE as error:
        raise ArtifactError(f"{path}: damaged: {type(error).__name__}: {error}") from None


def check_state(path: Path, state: LoopState, program: Program, fresh: LoopState) -> None:
    """Check that a state belongs to a program, whose own beginning is ``fresh``.

    Raises:
        ArtifactError: other names or shapes, or counts that are none.
    """
    found, wanted = _groups(state), _groups(fresh)
    sizes = program.network.sizes
    wanted["masks"] = {n: np.empty(sizes[n]) for n in state.masks if n in sizes}
    for group, arrays in found.items():
        check_arrays(f"{path}: {group}", arrays, wanted[group])
    counts = [state.spent.runs, state.spent.writes, *state.host.updates.values()]
    if set(state.host.updates) != set(fresh.host.updates) or not all(
        isinstance(count, int) and count >= 0 for count in counts
    ):
        raise ArtifactError(f"{path}: found counts of updates {state.host.updates} that are none")
    if any(array.dtype.kind not in "iu" for array in state.best.values()):
        raise ArtifactError(f"{path}: found best weights that are no whole numbers")


def _groups(state: LoopState) -> dict[str, dict[str, Array]]:
    return {
        "shadow": state.host.shadow,
        "first": state.host.first,
        "second": state.host.second,
        "best": state.best,
        "masks": state.masks,
    }
