"""Accuracy against the bits of a weight: digits, trained and deployed at 8 to 1 bits.

Every network is trained with weights that are rounded to so many bits in the forward pass (straight
through in the backward pass), compiled for Loihi 2, and run on the emulator, whose spikes are
compared with the trainer's. Beside it stands the network that was trained with 8 bits, rounded to
fewer afterwards. Ends with a table and a figure; exits 1 if any spike differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nmtool
from nmtool.chip import ChipSpec, load_chip
from nmtool.config import Experiment, load_experiment
from nmtool.data import Samples, load_split, spikes_of
from nmtool.measure import compare, predict
from nmtool.network import Network

EXPERIMENT = Path(__file__).with_name("experiment.yaml")
BITS = (8, 6, 5, 4, 3, 2, 1)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Point:
    """One network on the emulator.

    Attributes:
        bits: of a weight.
        seed: of the training.
        trained: test accuracy (a fraction) of the network that was trained with so many bits.
        rounded: test accuracy of the one trained with 8 bits and then rounded.
        differing: spikes that differ between the trainer and the emulator, in all populations.
        equal: whether every spike, u and v is the same.
        formats: how the chip stores the weights of each projection.
    """

    bits: int
    seed: int
    trained: float
    rounded: float
    differing: int
    equal: bool
    formats: dict[str, str]


def main() -> int:
    """Train, deploy, print and draw; returns 1 if a spike differs."""
    arguments = _arguments()
    points = curve(arguments.bits, arguments.seeds, arguments.set)
    if arguments.json:
        print(json.dumps([asdict(point) for point in points], indent=2))
    else:
        print(_table(points))
    if arguments.plot:
        _draw(points, arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)
    return int(any(not point.equal for point in points))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the points as JSON")
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--plot", type=Path, help="where to draw the figure, such as curve.png")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def curve(
    bits: Sequence[int] = BITS, seeds: Sequence[int] = SEEDS, overrides: Sequence[str] = ()
) -> list[Point]:
    """The points of the curve, seed by seed, the networks with most bits first."""
    chip, points = load_chip("loihi2"), []
    for seed in seeds:
        whole = _trained(_experiment(8, seed, overrides), chip)
        for n in sorted(bits, reverse=True):
            experiment = _experiment(n, seed, overrides)
            network = whole if n == 8 else _trained(experiment, chip)
            points.append(_point(experiment, network, whole, chip))
            print(f"{n} bits, seed {seed}: {points[-1].trained:.4f}", file=sys.stderr)
    return points


def _experiment(bits: int, seed: int, overrides: Sequence[str]) -> Experiment:
    own = [f"train.weight_bits={bits}", f"seed={seed}"]
    return load_experiment(EXPERIMENT, [*own, *overrides])


def _trained(experiment: Experiment, chip: ChipSpec) -> Network:
    from nmtool.training.build import build_network
    from nmtool.training.trainer import train

    network, _ = train(experiment, build_network(experiment, EXPERIMENT.parent), chip)
    return network


def _point(experiment: Experiment, network: Network, whole: Network, chip: ChipSpec) -> Point:
    from nmtool.training.record import record

    bits, test = experiment.train.weight_bits, load_split(experiment.data, "test")
    here, quantized = _deployed(experiment, network, test)
    there = record(network, chip, spikes_of(test, experiment.data))
    agreement = compare(there, here)
    rounded, _ = _deployed(experiment, whole, test)
    return Point(
        bits,
        experiment.seed,
        _accuracy(experiment, here, test),
        _accuracy(experiment, rounded, test),
        agreement.differing_spikes,
        agreement.equal,
        {name: str(p.format) for name, p in quantized.projections.items()},
    )


def _deployed(experiment: Experiment, network: Network, test: Samples) -> tuple[Any, Any]:
    """The recording of the test set on the emulator, and the integers that it ran."""
    quantized = nmtool.quantize(network, "loihi2", weight_bits=experiment.train.weight_bits)
    spikes = spikes_of(test, experiment.data)
    with nmtool.open(nmtool.compile(quantized, chip="loihi2"), "emulator") as session:
        return session.run(spikes, probe="spikes,current,voltage"), quantized


def _accuracy(experiment: Experiment, recording: Any, test: Samples) -> float:
    found = predict(recording.spikes["output"], experiment.network.readout)
    return float(np.mean(found == test.labels))


def _by_bits(points: Sequence[Point], key: str) -> dict[int, list[float]]:
    return {
        bits: [getattr(p, key) for p in points if p.bits == bits]
        for bits in sorted({p.bits for p in points}, reverse=True)
    }


def _table(points: Sequence[Point]) -> str:
    lines = ["bits  trained with them  trained with 8, then rounded  differing spikes"]
    rounded, differing = _by_bits(points, "rounded"), _by_bits(points, "differing")
    for bits, values in _by_bits(points, "trained").items():
        lines.append(
            f"{bits:4}  {np.mean(values):.4f} +- {np.std(values):.4f}    "
            f"{np.mean(rounded[bits]):.4f} +- {np.std(rounded[bits]):.4f}"
            f"{sum(differing[bits]):26.0f}"
        )
    return "\n".join(lines)


def _draw(points: Sequence[Point], path: Path) -> None:
    """Mean and range over the seeds, of both columns."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    labels = {"trained": "trained with these bits", "rounded": "trained with 8 bits, then rounded"}
    for key, label in labels.items():
        values = _by_bits(points, key)
        x, y = [*values], np.array([*values.values()])
        (line,) = axis.plot(x, y.mean(axis=1), marker="o", markersize=4, label=label)
        axis.fill_between(x, y.min(axis=1), y.max(axis=1), color=line.get_color(), alpha=0.15)
    axis.axhline(0.1, color="gray", linestyle=":", label="chance")
    axis.set(xlabel="bits of a weight", ylabel="test accuracy on the emulator", ylim=(0, 1))
    axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
