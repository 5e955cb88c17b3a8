"""Checkpoints of a loop, enough to go on to the same bits, and what a finished leg came to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.formats.artifacts import removable
from nmtool.formats.claims import build, check_arrays
from nmtool.formats.container import (
    Array,
    Container,
    read_bytes,
    read_container,
    write_container,
    write_json,
)
from nmtool.learning.board import Spent
from nmtool.learning.budget import UNLIMITED, Budget, Limit
from nmtool.learning.host import HostState
from nmtool.learning.loop import LoopState, Round, Timing

SCHEMA = "nmtool.loop/v1"
LEG = "nmtool.leg/v1"


@dataclass(frozen=True)
class Leg:
    """What a finished part of a study came to: test accuracy, and what it took of its target.

    One that learned has its rounds, and the limit of its budget that ended it if one did.
    """

    accuracy: float
    spent: Spent
    history: list[Round] = field(default_factory=list)
    ended: Limit | None = None
    budget: Budget = UNLIMITED


def save_leg(path: Path, leg: Leg, key: str) -> None:
    """Write what a leg came to; ``key`` says what it belongs to."""
    write_json(path, {"schema": LEG, "key": key, **asdict(leg)})


def load_leg(path: Path, key: str) -> Leg:
    """What a leg came to.

    Raises:
        ArtifactError: missing, damaged, or of another study.
    """
    with removable(path):
        plain = json.loads(read_bytes(path))
        belongs = plain.pop("schema") == LEG and plain.pop("key") == key
        values = {
            "spent": build(Spent, plain["spent"]),
            "budget": build(Budget, plain["budget"]),
            "history": [_round(entry) for entry in plain["history"]],
        }
        leg = build(Leg, {**plain, **values}) if belongs else None
        if leg and not 0 <= leg.accuracy <= 1:
            raise ArtifactError(f"{path}: found the accuracy {leg.accuracy}, allowed 0 to 1")
    if leg is None:
        raise ArtifactError(f"{path}: {_OTHER}")
    return leg


_OTHER = (
    "belongs to another loop or other settings; use the same options, or --force to start afresh"
)


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
        "offsets": state.offsets,
        "suspects": state.suspects,
        "history": [asdict(entry) for entry in state.history],
        "ended": state.ended,
    }
    write_container(path, Container(SCHEMA, header, arrays))


def load_state(path: Path, key: str) -> LoopState:
    """The state to continue from.

    Raises:
        ArtifactError: missing, damaged, or of another loop.
    """
    with removable(path):
        container = read_container(path)
    header = container.header
    if container.schema != SCHEMA or header.get("key") != key:
        raise ArtifactError(f"{path}: {_OTHER}")

    def group(prefix: str) -> dict[str, Array]:
        return {
            name.removeprefix(f"{prefix}/"): array
            for name, array in container.arrays.items()
            if name.startswith(f"{prefix}/")
        }

    with removable(path):
        keys = ("best_accuracy", "best_round", "offsets", "suspects")
        host = {"shadow": group("shadow"), "first": group("first"), "second": group("second")}
        values = {
            "host": build(HostState, {**host, "updates": header["updates"]}),
            "best": group("best"),
            "masks": group("masks"),
            "spent": build(Spent, header["spent"]),
            "history": [_round(entry) for entry in header["history"]],
            "ended": header.get("ended"),
            **{key: header[key] for key in keys},
        }
        state: LoopState = build(LoopState, values)
    return state


def _round(plain: dict[str, Any]) -> Round:
    return build(Round, {**plain, "timing": build(Timing, plain.get("timing", {}))})


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
    if [entry.round for entry in state.history] != [*range(len(state.history))]:
        raise ArtifactError(f"{path}: found rounds out of order, allowed 0, 1, 2, ...")
    if set(state.host.updates) != set(fresh.host.updates) or not all(
        isinstance(count, int) and count >= 0 for count in counts
    ):
        raise ArtifactError(f"{path}: found counts of updates {state.host.updates} that are none")
    stray = [n for n in (*state.offsets, *state.suspects) if n not in program.order]
    if stray:
        raise ArtifactError(
            f"{path}: found the populations {', '.join(stray)}, allowed {', '.join(program.order)}"
        )
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
