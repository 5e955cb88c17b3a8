"""The target as the loop sees it: samples in, what was measured out, all of it counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nmtool.backends.base import Recording, Session
from nmtool.compiler import Program
from nmtool.errors import ArtifactError
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured


@dataclass
class Spent:
    """What was asked of a target: runs, weights written, seconds that it was busy with runs."""

    runs: int = 0
    writes: int = 0
    seconds: float = 0.0


def busy(recording: Recording) -> float:
    """Seconds that a target took for a run, its failed attempts included, by its own clock."""
    attempts = recording.provenance.get("attempts", ())
    return float(recording.wall_time) + sum(float(attempt["seconds"]) for attempt in attempts)


@dataclass
class Board:
    """A session, and what was spent on it.

    Attributes:
        session: the program on the target.
        probe: what is recorded, as ``Session.run`` takes it.
        spent: goes on from what was spent before.
    """

    session: Session
    probe: str = "spikes"
    spent: Spent = field(default_factory=Spent)

    @property
    def program(self) -> Program:
        """The program with the weights that were written."""
        return self.session.program

    def run(self, inputs: BoolArray) -> dict[str, Measured]:
        """What every population was measured to do.

        Raises:
            ArtifactError: something that was asked for was not recorded.
        """
        recording = self.session.run(SpikeTrain.from_raster(inputs), probe=self.probe)
        self.spent.seconds += busy(recording)
        self.spent.runs += 1
        self._check(recording, inputs.shape[2])
        return {name: Measured.whole(train.batch()) for name, train in recording.spikes.items()}

    def write(self, mantissas: Mapping[str, IntArray]) -> int:
        """Write the weights that changed; returns their number."""
        on_board = self.program.network.projections
        changed = {
            name: mantissa
            for name, mantissa in mantissas.items()
            if not np.array_equal(mantissa, on_board[name].weight_mantissa)
        }
        written = sum(self.session.write_weights(n, m) for n, m in changed.items())
        self.spent.writes += written
        return written

    def _check(self, recording: Recording, steps: int) -> None:
        missing = [n for n in self.program.order if n not in recording.spikes]
        if missing:
            raise ArtifactError(f"measured spikes: found none of {missing}, allowed no missing one")
        if recording.n_steps < steps:
            raise ArtifactError(
                f"measured spikes: found {recording.n_steps} steps of each sample, allowed "
                f"{steps}; what was not recorded teaches nothing"
            )
