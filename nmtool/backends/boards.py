"""Whether a board can be had: what SLURM says of a partition or node, whether a host answers.

Lava asks the same questions (lava.utils.slurm, lava.utils.loihi) when a run begins, inside of its
worker. Here they are asked without Lava, with timeouts, and with an answer that says why.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from nmtool.backends.commands import run_command
from nmtool.chip import Board, Slurm
from nmtool.errors import BoardUnavailable

_BAD_STATES = ("down", "drain", "fail", "maint", "inval", "unk", "boot", "power")


@dataclass(frozen=True)
class Reach:
    """Whether a board can be had, and why not, or what is known of it."""

    ok: bool
    why: str


def reach(board: Board, timeout: float) -> Reach:
    """Ask SLURM, or the host, whether a board can be had."""
    if board.slurm is not None:
        return _slurm(board.slurm, timeout)
    return _ping(str(board.host), timeout)


def require_board(name: str, board: Board, timeout: float) -> None:
    """Raise unless a board can be had.

    Raises:
        BoardUnavailable: with what SLURM or the host says.
    """
    found = reach(board, timeout)
    if not found.ok:
        raise BoardUnavailable(
            f"target {name}: no board ({board}): {found.why}; try later, or name another in board:"
        )


def _ping(host: str, timeout: float) -> Reach:
    if shutil.which("ping") is None:
        return Reach(False, "there is no ping here, which Lava needs to look for a host")
    done = run_command(["ping", "-c", "1", host], timeout)
    return Reach(True, "answers ping") if done.ok else Reach(False, done.problem)


def _slurm(slurm: Slurm, timeout: float) -> Reach:
    if shutil.which("sinfo") is None:
        return Reach(False, "there is no SLURM here (no sinfo)")
    if slurm.node is not None:
        return _node(slurm, timeout)
    done = run_command(["sinfo"], timeout, size=1 << 20)
    if not done.ok:
        return Reach(False, done.problem)
    # PARTITION AVAIL TIMELIMIT NODES STATE NODELIST; a star marks the default partition.
    rows = [line.split() for line in done.output.splitlines()[1:] if len(line.split()) >= 5]
    mine = [row for row in rows if row[0].rstrip("*") == slurm.partition]
    if not mine:
        names = ", ".join(sorted({row[0].rstrip("*") for row in rows})) or "none"
        return Reach(False, f"sinfo knows no partition {slurm.partition}, only {names}")
    says = ", ".join(f"{row[3]} {row[4]}" for row in mine)
    says = f"partition {slurm.partition} is {mine[0][1]}, nodes {says}"
    return Reach(any(row[1] == "up" and _usable(row[4]) for row in mine), says)


def _node(slurm: Slurm, timeout: float) -> Reach:
    done = run_command(["sinfo", "-N"], timeout, size=1 << 20)
    if not done.ok:
        return Reach(False, done.problem)
    # NODELIST NODES PARTITION STATE
    rows = [line.split() for line in done.output.splitlines()[1:] if len(line.split()) >= 4]
    mine = [row for row in rows if row[0] == slurm.node]
    if slurm.partition is not None:
        mine = [row for row in mine if row[2].rstrip("*") == slurm.partition]
    if not mine:
        where = f" in partition {slurm.partition}" if slurm.partition else ""
        return Reach(False, f"sinfo knows no node {slurm.node}{where}")
    says = f"node {slurm.node} is {mine[0][3]} in partition {mine[0][2].rstrip('*')}"
    return Reach(_usable(mine[0][3]), says)


def _usable(state: str) -> bool:
    return not any(bad in state.lower() for bad in _BAD_STATES) and not state.endswith("*")
