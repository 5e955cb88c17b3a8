"""Whether a loop was worth the time of the target: its test accuracy against those of the controls.

Columns have the same seeds, so the difference of two is taken seed by seed. It counts where its
mean is larger than the standard error of that mean, s / sqrt(n), s the standard deviation of the
sample of n differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Claim = Literal["earned", "not earned", "nothing to recover", "no claim"]
CONTROLS = ("transfer", "simulation", "readout")


@dataclass(frozen=True)
class Difference:
    """Mean and standard error over seeds; no error from one seed."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> Difference:
        """The difference of two columns, seed by seed."""
        each = np.subtract(one, other)
        error = float(np.std(each, ddof=1) / np.sqrt(each.size)) if each.size > 1 else None
        return cls(float(each.mean()), error)

    @property
    def better(self) -> bool:
        """Whether the mean is above 0 by more than its error."""
        return self.error is not None and self.mean > max(self.error, 0.0)

    def __str__(self) -> str:
        points = f"{100 * self.mean:+.2f}"
        return points if self.error is None else f"{points} +- {100 * self.error:.2f}"


@dataclass(frozen=True)
class Verdict:
    """A claim, in words too, and what the loop gained on each control."""

    claim: Claim
    text: str
    gains: Mapping[str, Difference]


def judge(columns: Mapping[str, Sequence[float]], alike: str | None = None) -> Verdict:
    """Judge the loop by columns of test accuracies (fractions), by name, one value a seed.

    ``alike`` is why the loop did the same as the control ``readout``, if it did.
    """
    gains = {
        name: Difference.of(columns["loop"], columns[name]) for name in CONTROLS if name in columns
    }
    claim, text = _judged(columns, gains, alike)
    return Verdict(claim, text, gains)


def _judged(
    columns: Mapping[str, Sequence[float]], gains: Mapping[str, Difference], alike: str | None
) -> tuple[Claim, str]:
    if missing := [name for name in CONTROLS if name not in columns]:
        return "no claim", f"no claim: the controls {', '.join(missing)} did not run"
    lost = Difference.of(columns["fault_free"], columns["transfer"])
    if [*columns["fault_free"]] == [*columns["transfer"]] or (
        lost.error is not None and not lost.better
    ):
        return "nothing to recover", (
            f"nothing to recover: the program loses {lost} points on the target to the healthy "
            f"simulator; the loop gained {_listed(gains)}"
        )
    if alike:
        return "no claim", (
            f"no claim: no hidden layer learned, the loop is the control readout: {alike}; the "
            f"target costs {lost} points, the loop gained {_listed(gains)}"
        )
    seeds = len(columns["loop"])
    if seeds < 2:
        return "no claim", (
            f"no claim from one seed (finetune.seeds): the target costs {lost} points, the loop "
            f"gained {_listed(gains)}"
        )
    basis = f"points of test accuracy, mean +- standard error of {seeds} seeds"
    if short := [name for name, gain in gains.items() if not gain.better]:
        return "not earned", (
            f"the loop did not earn its board time: it is not better than {' or '.join(short)}; "
            f"the target costs {lost}, the loop gained {_listed(gains)} ({basis})"
        )
    return "earned", (
        f"the loop earned its board time: the target costs {lost}, the loop gained "
        f"{_listed(gains)} ({basis})"
    )


def _listed(gains: Mapping[str, Difference]) -> str:
    return ", ".join(f"{gain} on {name}" for name, gain in gains.items())
