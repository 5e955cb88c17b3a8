"""What is found out about a target before anything is learned on it; once for each target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.formats.artifacts import removable
from nmtool.formats.claims import build
from nmtool.formats.container import read_bytes, write_json
from nmtool.learning.align import Alignment, by_step
from nmtool.learning.board import Board, Spent
from nmtool.learning.diagnosis import WRITTEN, diagnose, probe
from nmtool.learning.patterns import drawn_weights, probe_pattern

SCHEMA = "nmtool.examination/v1"


@dataclass(frozen=True)
class Examination:
    """Where a target's recordings lie, and what on it cannot learn.

    Attributes:
        offsets: steps by which the recordings of each population are late.
        unable: the neurons of each population that cannot learn.
        suspects: how many neurons of each look dead and stuck.
        diagnosis: all findings, as plain values; None if only the recordings were aligned.
        told: the same for people.
        spent: what it took of the target.
    """

    offsets: dict[str, int]
    unable: dict[str, list[int]] = field(default_factory=dict)
    suspects: dict[str, list[int]] = field(default_factory=dict)
    diagnosis: dict[str, Any] | None = None
    told: str = ""
    spent: Spent = field(default_factory=Spent, compare=False)

    @classmethod
    def passed(cls, program: Program) -> Examination:
        """That of a simulator without defects."""
        return cls(dict.fromkeys(program.order, 0))

    @property
    def alignment(self) -> Alignment:
        """To put recordings beside the model's steps."""
        return Alignment(self.offsets)

    def masks(self, sizes: Mapping[str, int]) -> dict[str, FloatArray]:
        """0 for neurons that cannot learn, by population."""
        masks = {name: np.ones(sizes[name]) for name in self.unable}
        for name, neurons in self.unable.items():
            masks[name][neurons] = 0.0
        return masks


def examine(board: Board, seed: int, diagnosis: bool) -> Examination:
    """Align the recordings and, with ``diagnosis``, find out what is wrong with the target.

    Raises:
        AlignmentError: recordings cannot be put beside the model's steps.
    """
    if not diagnosis:
        found = probe(board, seed)[-1].checked()
        return Examination(dict(found.offsets), told=found.text(), spent=board.spent)
    looked = diagnose(board, seed)
    return Examination(
        dict(looked.checked().offsets),
        {name: np.flatnonzero(mask == 0).tolist() for name, mask in looked.healthy.items()},
        looked.counts(),
        looked.as_json(),
        looked.text(),
        board.spent,
    )


def planned_writes(program: Program, seed: int, diagnosis: bool) -> int:
    """How many weights ``examine`` writes: the random ones of every run, and then those before.

    Raises:
        UnsupportedError: the program has another input than one of spikes.
    """
    if not diagnosis:
        return 0
    (entrance,) = program.network.inputs
    start = {name: p.weight_mantissa for name, p in program.network.projections.items()}
    there, writes = start, 0
    for index in range(WRITTEN):
        inputs = probe_pattern(program, seed + 1000 * (index + 1))
        sent = {entrance: by_step(inputs)}
        drawn = {**there, **drawn_weights(program, sent, seed, index)[0]}
        writes += differing(drawn, there)
        there = drawn
    return writes + differing(start, there)


def differing(some: Mapping[str, IntArray], others: Mapping[str, IntArray]) -> int:
    """How many weights differ."""
    return sum(int(np.count_nonzero(some[name] != others[name])) for name in some)


def save_examination(path: Path, found: Examination, key: str) -> None:
    """Write an examination; ``key`` says what it belongs to."""
    write_json(path, {"schema": SCHEMA, "key": key, **asdict(found)})


def load_examination(path: Path, key: str, program: Program) -> Examination:
    """What was found out.

    Raises:
        ArtifactError: missing, damaged, or of another study.
    """
    with removable(path):
        plain = json.loads(read_bytes(path))
        belongs = plain.pop("schema") == SCHEMA and plain.pop("key") == key
        spent = build(Spent, plain["spent"])
        found = build(Examination, {**plain, "spent": spent}) if belongs else None
        if found:
            _ = found.alignment, found.masks(program.network.sizes)
    if found is None:
        raise ArtifactError(
            f"{path}: belongs to another study or other settings; use the same options, or "
            "--force to start afresh"
        )
    return found
