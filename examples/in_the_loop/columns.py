"""What the scripts of this folder share: networks on faulty targets, in five columns.

    python examples/in_the_loop/faults.py [--json] [--quick] [--families NAME ...] [--seeds K ...]
        [--figure FILE.png] [-s KEY=VALUE]

``faults.yaml`` says what is wrong with the target, family by family; ``nmtool.learning.Study`` runs
the columns (``docs/learning.md``): *fault_free*, *transfer*, *simulation*, *readout*, *loop*. Every
seed trains a network of its own and draws defects of its own. A script prints its rows, draws its
figure, and exits with 1 if something that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nmtool import yamlio
from nmtool.backends import open_session
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.compiler import Program, Site, compile_program
from nmtool.config import Experiment, load_experiment
from nmtool.errors import NmtoolError, UsageError
from nmtool.faultmodel import Faults
from nmtool.learning.loop import Layers, Loop, LoopState
from nmtool.learning.study import Column, Study, StudyResult
from nmtool.network import Network
from nmtool.yamlio import Strict

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
COLUMNS = ("fault_free", "transfer", "simulation", "readout", "loop")

Accuracies = Mapping[str, float]
"""Test accuracy (a fraction) by column, of one seed."""


class Family(Strict):
    """One way for a target to be wrong: the bits of its weights, and its defects."""

    weight_bits: Literal[1, 2, 3, 4, 5, 6, 8] = 8
    faults: Faults | None = None


class Severities(Strict):
    """``faults.yaml``: the families, those that were tuned on, and those held out of tuning."""

    seeds: list[int]
    tuning: list[str]
    held_out: list[str]
    families: dict[str, Family]

    def chosen(self, names: Sequence[str]) -> dict[str, Family]:
        """The families of some names, all unless any is given.

        Raises:
            UsageError: a name that there is not.
        """
        if unknown := [name for name in names if name not in self.families]:
            allowed = ", ".join(self.families)
            raise UsageError(f"--families: found {', '.join(unknown)}, allowed {allowed}")
        return {name: self.families[name] for name in names or self.families}


SEVERITIES = yamlio.load(HERE / "faults.yaml", Severities)


@dataclass(frozen=True)
class Row:
    """One column of one family: test accuracies as fractions, ``seeds`` one for each seed."""

    family: str
    weight_bits: int
    column: str
    mean: float
    std: float | None
    seeds: list[float]
    held_out: bool

    @classmethod
    def of(cls, family: str, weight_bits: int, column: str, values: list[float]) -> Row:
        """The row of the values of all seeds."""
        found = Column.of(values)
        held_out = family in SEVERITIES.held_out
        return cls(family, weight_bits, column, found.mean, found.std, found.seeds, held_out)

    @property
    def told(self) -> str:
        """Mean and deviation in percent; one seed has no deviation."""
        return f"{self.mean:.1%}" + ("" if self.std is None else f" +- {self.std:.1%}")


def target(family: Family, seed: int) -> HardwareConfig:
    """The emulator of a chip with small cores, with the defects that a seed gives it."""
    faults = family.faults and family.faults.model_copy(update={"seed": seed})
    changes = {
        "name": "in-the-loop",
        "chip": str(HERE / "small-cores.yaml"),
        "weight_bits": family.weight_bits,
        "faults": faults,
    }
    return load_hardware("emulator").model_copy(update=changes)


def program_for(network: Network, hardware: HardwareConfig) -> Program:
    """A network's program for a target."""
    site = Site.of(hardware, network.populations)
    return compile_program(network, load_chip(hardware.chip), hardware.weight_bits, site=site)


def weights_of(network: Network) -> dict[str, Any]:
    """The real weights, which learning begins from."""
    return {name: p.weight.astype(np.float64) for name, p in network.projections.items()}


@dataclass(frozen=True)
class Bench:
    """One seed of an experiment: its networks, and what they do on targets.

    ``folder`` keeps checkpoints while the script runs: training on the healthy simulator is the
    same for all families of as many weight bits, and is done once. ``given`` is the trained network
    where there is one already, ``overrides`` the KEY=VALUE pairs that the experiment was read with.
    """

    experiment: Experiment
    folder: Path
    given: Network | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def load(cls, name: str, folder: Path, overrides: Sequence[str]) -> Bench:
        """The bench of an experiment file of this folder."""
        experiment = load_experiment(HERE / f"{name}.yaml", overrides)
        return cls(experiment, folder, overrides=tuple(overrides))

    def other(self, name: str) -> Bench:
        """The bench of another experiment, with the same overrides."""
        return Bench.load(name, self.folder, self.overrides)

    @property
    def seed(self) -> int:
        """Of the initial weights, and of the defects."""
        return self.experiment.seed

    @cached_property
    def untrained(self) -> Network:
        """The network with its initial weights."""
        from nmtool.training.build import build_network

        return build_network(self.experiment, HERE)

    @cached_property
    def trained(self) -> Network:
        """The network as backpropagation through time trains it."""
        if self.given is not None:
            return self.given
        from nmtool.training.trainer import train

        chip = load_chip(target(Family(), self.seed).chip)
        return train(self.experiment, self.untrained, chip)[0]

    def columns(self, family: Family) -> Accuracies:
        """Test accuracies of the trained network on a target."""
        return {name: column.mean for name, column in self.study(family).columns.items()}

    def study(self, family: Family) -> StudyResult:
        """The trained network on a target, in all columns."""
        hardware = target(family, self.seed)
        program = program_for(self.trained, hardware)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        kept = self.folder / f"simulation-{family.weight_bits}-bits"
        if kept.is_dir():
            shutil.copytree(kept, folder / "simulation")
        study = Study(
            self.experiment,
            program,
            weights_of(self.trained),
            hardware,
            hardware.with_faults(),
            folder,
        )
        result = study.run()
        if (folder / "simulation").is_dir() and not kept.is_dir():
            shutil.copytree(folder / "simulation", kept)
        return result

    def accuracy(self, network: Network) -> float:
        """Test accuracy of a network on the healthy target, without learning."""
        return self._loop(network, "all", lambda loop: None)

    def learned(self, network: Network, layers: Layers) -> float:
        """Test accuracy of a network that learned on the healthy target."""
        return self._loop(network, layers, lambda loop: loop.run())

    def _loop(self, network: Network, layers: Layers, learn: Callable[[Loop], object]) -> float:
        hardware = target(Family(), self.seed)
        program, chip = program_for(network, hardware), load_chip(hardware.chip)
        state = LoopState.start(program, weights_of(network))
        with open_session(program, hardware) as session:
            loop = Loop(self.experiment, program, session, layers, state, chip=chip)
            learn(loop)
            return loop.accuracy("test")


@dataclass(frozen=True)
class Script:
    """A script of this folder.

    Attributes:
        name: of its experiment file and its figure.
        title: what it measures, in one line.
        families: what it runs unless told otherwise; all where empty.
        measure: called with a bench and the families; accuracies by family and column.
        claims: what must hold of the rows, by its text.
    """

    name: str
    title: str
    families: tuple[str, ...]
    measure: Callable[[Bench, Mapping[str, Family]], Mapping[str, Accuracies]]
    claims: Callable[[Sequence[Row]], Mapping[str, bool]]

    def rows(
        self, families: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()
    ) -> list[Row]:
        """Every column of every family, over the seeds."""
        chosen = SEVERITIES.chosen(families or self.families)
        found: list[Mapping[str, Accuracies]] = []
        for seed in seeds:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench.load(self.name, Path(folder), [*overrides, f"seed={seed}"])
                found.append(self.measure(bench, chosen))
            print(f"seed {seed}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        return [
            Row.of(family, bits_of(family), column, [each[family][column] for each in found])
            for family in found[0]
            for column in found[0][family]
        ]

    def main(self) -> int:
        """Run the script; returns its exit code."""
        arguments = self._arguments()
        quick = ["train.epochs=4", "finetune.rounds=2", "finetune.readout_rounds=1"]
        overrides = [*(quick if arguments.quick else []), *arguments.set]
        seeds = arguments.seeds or SEVERITIES.seeds[: 2 if arguments.quick else None]
        try:
            rows = self.rows(arguments.families, seeds, overrides)
        except NmtoolError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        if arguments.figure:
            draw(rows, self.title, arguments.figure)
        print(json.dumps([asdict(r) for r in rows], indent=2) if arguments.json else table(rows))
        failed = [] if arguments.quick else [t for t, ok in self.claims(rows).items() if not ok]
        for text in failed:
            print(f"does not hold: {text}", file=sys.stderr)
        return int(bool(failed))

    def _arguments(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--json", action="store_true", help="print the rows as JSON")
        parser.add_argument("--quick", action="store_true", help="two seeds, too short to learn")
        parser.add_argument("--families", nargs="+", default=[], metavar="NAME")
        parser.add_argument("--seeds", nargs="+", type=int, default=[])
        parser.add_argument("--figure", type=Path, help="where to draw, such as faults.png")
        parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
        return parser.parse_args()


def bits_of(family: str) -> int:
    """The weight bits of a row; what is no family of ``faults.yaml`` ran on the healthy target."""
    return SEVERITIES.families.get(family, Family()).weight_bits


def all_columns(bench: Bench, families: Mapping[str, Family]) -> Mapping[str, Accuracies]:
    """The five columns of every family."""
    return {name: bench.columns(family) for name, family in families.items()}


def means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean accuracies by family and column."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.family, {})[row.column] = row.mean
    return found


def table(rows: Sequence[Row]) -> str:
    """A line for every family, a column for every column: mean and deviation in percent."""
    names = list(dict.fromkeys(row.column for row in rows))
    cells = {(row.family, row.column): row.told for row in rows}
    families = {row.family: row for row in rows}
    lines = [f"{'family':22}{'bits':>5}" + "".join(f"{name:>18}" for name in names)]
    for name, row in families.items():
        label = f"{name} *" if row.held_out else name
        text = "".join(f"{cells.get((name, column), ''):>18}" for column in names)
        lines.append(f"{label:22}{row.weight_bits:5}{text}")
    return "\n".join([*lines, "* held out of tuning"])


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Every column's mean and deviation, family below family."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    families = {row.family: row for row in rows}
    place = {name: index for index, name in enumerate(families)}
    markers = dict(zip(COLUMNS, ("|", "v", "s", "D", "o"), strict=True))
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + 0.34 * len(families)), layout="constrained")
    for column in dict.fromkeys(row.column for row in rows):
        mine = [row for row in rows if row.column == column]
        offset = (COLUMNS.index(column) - 2) * 0.13
        axis.errorbar(
            [row.mean for row in mine],
            [place[row.family] + offset for row in mine],
            xerr=[row.std or 0.0 for row in mine],
            fmt=markers[column],
            color="black" if column == "fault_free" else None,
            markersize=5,
            linewidth=0.8,
            label=column,
        )
    labels = [f"{name} *" if row.held_out else name for name, row in families.items()]
    axis.set(yticks=range(len(families)), yticklabels=labels, xlabel="test accuracy", title=title)
    axis.invert_yaxis()
    axis.grid(axis="x", linewidth=0.3)
    axis.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    print(f"wrote {path}", file=sys.stderr)
