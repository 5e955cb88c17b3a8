"""The whole loop on handwritten digits, with nmtool's ordinary commands and the shipped files.

Trains, compiles, runs on the reference, on the emulator and on Lava's fixed-point simulation,
compares spike for spike, and learns from the measured spikes of an emulator with invented defects.
Ends with a table,
``summary.json`` and two figures in the run folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGETS = ("reference", "emulator", "lava-sim")
COMPARED = ("trainer_reference", "reference_emulator", "reference_lava_sim")
COLUMNS = ("fault_free", "transfer", "simulation", "readout", "loop")
SHORT = {
    "train": ["-s", "train.epochs=3", "-s", "checks=[]"],
    "finetune": [
        "-s",
        "finetune.rounds=2",
        "-s",
        "finetune.readout_rounds=1",
        "-s",
        "finetune.seeds=2",
    ],
}


def main() -> int:
    """Run the demo; returns 1 if something that must hold does not."""
    arguments = _arguments()
    run: Path = arguments.output
    started = time.monotonic()
    documents = _commands(run, SHORT if arguments.short else {}, arguments.force)
    summary = _summary(documents)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _draw_spikes(run / "spikes.png", run / "reference.h5")
    _draw_rounds(run / "rounds.png", documents["finetune"], summary)
    print(json.dumps(summary, indent=2) if arguments.json else _table(summary, run))
    failed = _failures(summary, arguments.short)
    for text in failed:
        print(f"does not hold: {text}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--force", action="store_true", help="replace an earlier demo")
    parser.add_argument("--short", action="store_true", help="every stage, too short to learn much")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser.parse_args()


def _commands(run: Path, extra: dict[str, list[str]], force: bool) -> dict[str, Any]:
    """The documents that the commands print, by name."""
    again = ["--force"] if force else []
    program, faulty = str(run / "program.h5"), str(run / "program-faulty.h5")
    recordings = {name: str(run / f"{name}.h5") for name in (*TARGETS, "faulty")}
    probe = ["--probe", "spikes,current,voltage"]

    def nmtool(*words: str) -> Any:
        """One command; its progress goes to the terminal, its result comes back."""
        print(f"$ nmtool {' '.join(words)}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", "nmtool", *words, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(done.returncode)
        return json.loads(done.stdout)

    experiment = str(HERE / "experiment.yaml")
    results = {
        "train": nmtool("train", experiment, "-o", str(run), *extra.get("train", []), *again),
        "compile": nmtool("compile", str(run), "--hw", "loihi2", "-o", program, *again),
    }
    for target in TARGETS:
        results[target] = nmtool(
            "deploy", program, "--hw", target, *probe, "-o", recordings[target], *again
        )
    results["trainer_reference"] = nmtool(
        "compare", f"trainer:{run}", recordings["reference"], "--program", program
    )
    for target in TARGETS[1:]:
        results[f"reference_{target.replace('-', '_')}"] = nmtool(
            "compare", recordings["reference"], recordings[target], "--program", program
        )
    results["compile_faulty"] = nmtool(
        "compile", str(run), "--hw", "loihi2-faulty", "-o", faulty, *again
    )
    results["faulty"] = nmtool(
        "deploy",
        faulty,
        "--hw",
        "loihi2-faulty",
        "--probe",
        "spikes",
        "-o",
        recordings["faulty"],
        *again,
    )
    results["finetune"] = nmtool(
        "finetune",
        str(run),
        "--hw",
        "loihi2-faulty",
        "--program",
        faulty,
        *extra.get("finetune", []),
        *again,
    )
    return results


def _summary(documents: dict[str, Any]) -> dict[str, Any]:
    trained = documents["train"]["accuracy"]
    return {
        "accuracy": {
            "logistic_regression": trained["logistic_regression"],
            "trained": trained["test"],
            "quantized": trained["quantized"],
            **{
                target.replace("-", "_"): documents[target]["measured"]["accuracy"]["value"]
                for target in TARGETS
            },
        },
        "differing_spikes": {name: documents[name]["differing_spikes"] for name in COMPARED},
        "faulty": {name: documents["finetune"]["columns"][name] for name in COLUMNS},
    }


def _failures(summary: dict[str, Any], short: bool) -> list[str]:
    """What must hold and does not; a short run is held to the equality of spikes only."""
    accuracy, faulty = summary["accuracy"], summary["faulty"]
    mean = {name: faulty[name]["mean"] for name in COLUMNS}
    bars = {
        "no differing spike": not any(summary["differing_spikes"].values()),
        "same accuracy after quantising, on reference, emulator and lava-sim": (
            accuracy["trained"]
            == accuracy["quantized"]
            == accuracy["reference"]
            == accuracy["emulator"]
            == accuracy["lava_sim"]
        ),
    }
    if not short:
        bars |= {
            "trained accuracy of 96 %": accuracy["trained"] >= 0.96,
            "loop 5 points above transfer": mean["loop"] >= mean["transfer"] + 0.05,
            "loop 5 points above simulation": mean["loop"] >= mean["simulation"] + 0.05,
            "loop within 4 points of fault-free": mean["loop"] >= mean["fault_free"] - 0.04,
            "loop not 1 point below readout": mean["loop"] >= mean["readout"] - 0.01,
        }
    return [text for text, holds in bars.items() if not holds]


def _table(summary: dict[str, Any], run: Path) -> str:
    lines = ["", "test accuracy on 360 handwritten digits"]
    lines += [f"  {name:22}{value:8.4f}" for name, value in summary["accuracy"].items()]
    lines += ["differing spikes, all populations and steps"]
    lines += [f"  {name:22}{value:8d}" for name, value in summary["differing_spikes"].items()]
    lines += ["4-bit weights on the emulator with invented defects (not a chip): mean, std, seeds"]
    for name, column in summary["faulty"].items():
        seeds = " ".join(f"{value:.4f}" for value in column["seeds"])
        lines.append(f"  {name:22}{column['mean']:8.4f}{column['std']:8.4f}  {seeds}")
    lines.append(f"{summary['seconds']} s; {run}/summary.json, spikes.png, rounds.png")
    return "\n".join(lines)


def _draw_spikes(path: Path, recording_file: Path) -> None:
    """The spikes of the first test digit through all layers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import nmtool
    from nmtool.data import load_split, spikes_of

    network = nmtool.load(recording_file.parent / "network.h5")
    recording = nmtool.load(recording_file)
    assert isinstance(network, nmtool.Network)
    assert isinstance(recording, nmtool.Recording)
    assert network.data is not None
    digit = load_split(network.data, "test")
    rasters = {"input": spikes_of(digit, network.data).select([0]).batch()[0]}
    rasters |= {name: train.batch()[0] for name, train in recording.spikes.items()}
    figure, axes = plt.subplots(
        1, len(rasters) + 1, figsize=(3.2 * (len(rasters) + 1), 3.6), layout="constrained"
    )
    axes[0].imshow(digit.features[0].reshape(digit.shape[:2]), cmap="gray_r")
    axes[0].set(title=f"digit {digit.labels[0]}", xticks=[], yticks=[])
    for axis, (name, raster) in zip(axes[1:], rasters.items(), strict=True):
        neuron, step = raster.nonzero()
        axis.scatter(step, neuron, s=4, marker="|", color="black")
        axis.set(title=f"{name}: {len(step)} spikes", xlabel="step", ylabel="neuron")
        axis.set(xlim=(-0.5, raster.shape[1] - 0.5), ylim=(raster.shape[0] - 0.5, -0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_rounds(path: Path, finetune: dict[str, Any], summary: dict[str, Any]) -> None:
    """Validation accuracy over the rounds; level lines are test accuracies on the target."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    levels = {
        "fault_free": (":", "no training"),
        "transfer": ("--", "no training, target"),
        "simulation": ("-.", "put on the target"),
    }
    for name, (style, what) in levels.items():
        mean = summary["faulty"][name]["mean"]
        axis.axhline(mean, color="gray", linestyle=style, label=f"{name} (test: {what})")
    labels = {
        "simulation": "simulation (validation: on the healthy simulator)",
        "readout": "readout (validation: on the target)",
        "loop": "loop (validation: on the target)",
    }
    for name, label in labels.items():
        curves = np.array(
            [
                [entry["validation_accuracy"] for entry in rounds]
                for key, rounds in finetune["rounds"].items()
                if key.split("-seed")[0] == name
            ]
        )
        x = np.arange(curves.shape[1])
        (line,) = axis.plot(x, curves.mean(axis=0), marker="o", markersize=3, label=label)
        axis.fill_between(
            x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15
        )
    axis.set(
        xlabel="round (one pass over the training samples)",
        ylabel="accuracy",
        title="Learning from measured spikes: 4-bit weights, invented defects",
    )
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
