"""Checkpoints of a loop: HDF5 without pickle, enough to go on to the same bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nmtool.errors import ArtifactError
from nmtool.formats.container import Array, Container, read_container, write_container
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
        "runs": state.runs,
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
    if container.schema != SCHEMA or header["key"] != key:
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

    host = HostState(group("shadow"), group("first"), group("second"), dict(header["updates"]))
    return LoopState(
        host,
        group("best"),
        header["best_accuracy"],
        header["best_round"],
        group("masks"),
        header["runs"],
        [Round(**entry) for entry in header["history"]],
    )


def _groups(state: LoopState) -> dict[str, dict[str, Array]]:
    return {
        "shadow": state.host.shadow,
        "first": state.host.first,
        "second": state.host.second,
        "best": state.best,
        "masks": state.masks,
    }
