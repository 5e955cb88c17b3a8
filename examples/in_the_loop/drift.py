"""A deployed network whose input drifts: frozen, and adapting to the stream.

Digits that turn by up to 60 degrees, and speech of which half the channels fade away. Each stream
runs on the emulator three times, with the frozen network, with an update after every sample, and
with one only where the error is large; the same without drift, where there is nothing to gain. Ends
with a table and a figure; exits 1 if something that must hold does not::

    python examples/in_the_loop/drift.py [--json] [--figure FILE.png] [--seeds 1 2 3 4]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import nmtool
from nmtool.chip import load_chip
from nmtool.compiler import Program
from nmtool.config import Experiment, load_experiment
from nmtool.learning.stream import Course, Incoming, Learner, Stream

EXAMPLES = Path(__file__).parents[1]
FIGURE = EXAMPLES.parent / "docs" / "figures" / "drift.png"
SEEDS = (1, 2, 3, 4)
"""Seed 0 is the one on which the learning rate and the rate of updates were chosen."""
CHIP = "loihi2"
NETWORKS: Mapping[str, Mapping[str, float] | None] = {
    "frozen": None,
    "every sample": {"updates": 1.0},
    "large errors": {},
}
"""The settings of the stream by what learns from it; None: nothing does."""
WINDOW = 50


@dataclass(frozen=True)
class Task:
    """An experiment, what is changed of it, and how its input drifts."""

    title: str
    experiment: str
    overrides: tuple[str, ...]
    drift: str


TASKS = (
    Task(
        "digits turn by 60 degrees",
        "digits",
        ("data.test=1100", "data.validation=97", "train.epochs=12"),
        "rotate:60",
    ),
    Task(
        "half the channels of speech fade",
        "japanese_vowels",
        ("train.epochs=20",),
        "{kind: fade, to: 0.0, channels: 0.5}",
    ),
)


@dataclass(frozen=True)
class Row:
    """One network on one stream, of one seed; accuracies are fractions.

    Attributes:
        last: accuracy of the last quarter of the samples.
        moving: accuracy of every window of samples.
    """

    task: str
    drifts: bool
    network: str
    seed: int
    accuracy: float
    last: float
    updates: int
    writes: int
    moving: list[float]


def main() -> int:
    """Run, print and draw; returns 1 if something that must hold does not."""
    arguments = _arguments()
    rows = [row for seed in arguments.seeds for task in TASKS for row in measure(task, seed)]
    holds = claims(rows)
    draw(rows, arguments.figure)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "holds": holds}, indent=2))
    else:
        print(table(rows))
        print("\n".join(f"{'yes' if true else 'NO '}  {text}" for text, true in holds.items()))
    print(f"wrote {arguments.figure}", file=sys.stderr)
    return int(not all(holds.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print every row as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--figure", type=Path, default=FIGURE, help="default %(default)s")
    return parser.parse_args()


def measure(task: Task, seed: int) -> list[Row]:
    """Train a network, and run it on its stream with and without drift."""
    experiment = _experiment(task, seed, {})
    program = _deployed(task, experiment)
    rows = []
    for drifts in (True, False):
        for name, settings in NETWORKS.items():
            drift = {"drift": task.drift} if drifts else {}
            course = _stream(_experiment(task, seed, {**drift, **(settings or {})}), program, name)
            rows.append(_row(task, drifts, name, seed, course))
            done = f"{task.title}, drift {drifts}, seed {seed}, {name}: {rows[-1].last:.3f}"
            print(done, file=sys.stderr)
    return rows


def _experiment(task: Task, seed: int, stream: Mapping[str, Any]) -> Experiment:
    own = [f"finetune.stream.{key}={value}" for key, value in stream.items()]
    path = EXAMPLES / task.experiment / "experiment.yaml"
    return load_experiment(path, [*task.overrides, f"seed={seed}", *own])


def _deployed(task: Task, experiment: Experiment) -> Program:
    from nmtool.training.build import build_network
    from nmtool.training.trainer import train

    untrained = build_network(experiment, EXAMPLES / task.experiment)
    network, _ = train(experiment, untrained, load_chip(CHIP))
    return nmtool.compile(network, chip=CHIP)


def _stream(experiment: Experiment, program: Program, network: str) -> Course:
    with threadpool_limits(limits=1), nmtool.open(program, "emulator") as session:
        frozen = NETWORKS[network] is None
        learner = None if frozen else Learner.of(experiment, program, load_chip(CHIP))
        return Stream(experiment, session, Incoming.of(experiment), learner).run()


def _row(task: Task, drifts: bool, network: str, seed: int, course: Course) -> Row:
    last = course.correct[-(len(course.correct) // 4) :]
    return Row(
        task.title,
        drifts,
        network,
        seed,
        course.accuracy,
        float(np.mean(last)),
        course.updates,
        course.spent.writes,
        course.moving(WINDOW).tolist(),
    )


def of(rows: Sequence[Row], task: Task, drifts: bool, network: str) -> list[Row]:
    """The rows of all seeds."""
    wanted = (task.title, drifts, network)
    return [row for row in rows if (row.task, row.drifts, row.network) == wanted]


def mean(rows: Sequence[Row], key: str) -> float:
    """Over the seeds."""
    return float(np.mean([getattr(row, key) for row in rows]))


def claims(rows: Sequence[Row]) -> dict[str, bool]:
    """What must hold, by its text."""
    found: dict[str, bool] = {}
    for task in TASKS:
        frozen, every, large = (of(rows, task, True, name) for name in NETWORKS)
        still, _, calm = (of(rows, task, False, name) for name in NETWORKS)
        gains = [a.last - b.last for a, b in zip(large, frozen, strict=True)]
        fewer = mean(large, "updates") < 0.5 * mean(every, "updates")
        found |= {
            f"{task.title}: adapting is better with every seed": min(gains) > 0,
            f"{task.title}: and by 10 points on average": float(np.mean(gains)) > 0.1,
            f"{task.title}: the gate saves half of the updates": fewer,
            f"{task.title}: and writes": mean(large, "writes") < mean(every, "writes"),
            f"{task.title}: without drift it costs no more than 2 points": mean(calm, "accuracy")
            > mean(still, "accuracy") - 0.02,
        }
    return found


def table(rows: Sequence[Row]) -> str:
    """Means and standard deviations over the seeds."""
    heads = ("network".ljust(14), *(f"{head:>16}" for head in ("accuracy", "last quarter")))
    lines = [f"{'stream':34}{''.join(heads)}{'updates':>9}{'writes':>9}"]
    for task in TASKS:
        for drifts in (True, False):
            for network in NETWORKS:
                own = of(rows, task, drifts, network)
                title = task.title if drifts else f"{task.experiment} without drift"
                lines.append(
                    f"{title:34}{network:14}{_spread(own, 'accuracy'):>16}"
                    f"{_spread(own, 'last'):>16}"
                    f"{mean(own, 'updates'):9.0f}{mean(own, 'writes'):9.0f}"
                )
    return "\n".join(lines)


def _spread(rows: Sequence[Row], key: str) -> str:
    values = [getattr(row, key) for row in rows]
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=min(1, len(values) - 1)):.3f}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy in a moving window, mean and range over the seeds, a panel for each task."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(9, 3.4), layout="constrained", sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for network in NETWORKS:
            curves = np.array([row.moving for row in of(rows, task, True, network)])
            x = WINDOW + np.arange(curves.shape[1])
            (line,) = axis.plot(x, curves.mean(axis=0), label=network)
            low, high = curves.min(axis=0), curves.max(axis=0)
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(title=task.title, xlabel="samples so far", ylim=(0, 1))
    axes[0].set_ylabel(f"accuracy of the last {WINDOW}")
    axes[0].legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
