"""How long compiling takes and how much memory, against the number of synapses.

    python benchmarks/compile_scale.py [--json] [--markdown] [--output FILE.json] [--plot FILE.png]
        [--quick]

Every network is compiled (quantised, checked, cut, placed) for eight Loihi 2 chips in a process of
its own, whose peak memory counts all that it holds. Seconds are those of the processor, for nothing
runs in parallel and other work on the machine must not count. The exponent is the slope of time
over synapses on logarithmic axes, by least squares, from half a million synapses: below, what every
compilation takes outweighs them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nmtool
from nmtool.chip import load_chip
from nmtool.compiler import Site, compile_program
from nmtool.compiler.partition import Costs, partition
from nmtool.compiler.place import Slice, place, slices_of, spike_hops, traffic
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Chain, Conv, Dense, Shape, Sparse
from nmtool.quantization import QuantizedNetwork, quantize

CHIPS = 8
LAYERS = 10
NEURON = CubaLif(1.25, 0.25, 0.03)
LARGE = 500_000
BAR = {"synapses": 10_000_000, "seconds": 10.0, "gigabytes": 2.0}
"""What the sparse network of 100,000 neurons and 10 million synapses is to keep to."""

SIZES: dict[str, tuple[int, ...]] = {
    "sparse": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    "dense": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    "convolutional": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000),
}
"""Synapses of the networks; more sparse or dense ones do not fit eight chips."""


def main() -> int:
    """Measure, print, and return 1 if the bar is missed."""
    arguments = _arguments()
    if arguments.child:
        kind, size = arguments.child
        print(json.dumps(measure(kind, int(size))))
        return 0
    rows = []
    for kind, sizes in SIZES.items():
        for size in sizes[:3] if arguments.quick else sizes:
            rows.append(_in_a_process(kind, size))
            if not (arguments.json or arguments.markdown):
                print(_line(rows[-1]), flush=True)
    exponents = {}
    if not arguments.quick:
        exponents = {kind: exponent([r for r in rows if r["kind"] == kind]) for kind in SIZES}
    hops = list(placements())
    document = {"results": rows, "exponents": exponents, "placements": hops}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    if arguments.plot:
        plot(document, arguments.plot)
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif arguments.markdown:
        print("\n".join(markdown(document)))
    else:
        for kind, value in exponents.items():
            print(f"{kind}: time grows as synapses^{value:.2f}")
        for row in hops:
            print(json.dumps(row))
    return _missed(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/fit.md")
    parser.add_argument("--output", type=Path, help="write the results to this file")
    parser.add_argument("--plot", type=Path, help="draw time and memory to this file")
    parser.add_argument("--quick", action="store_true", help="the three smallest of each kind")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(kind: str, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def measure(kind: str, size: int) -> dict[str, Any]:
    """Compile one network: seconds of it, and the peak memory of this process."""
    network, synapses = KINDS[kind](size)
    chip = load_chip("loihi2")
    start, began = time.process_time(), time.perf_counter()
    program = compile_program(network, chip, site=Site(chips=CHIPS))
    seconds, waited = time.process_time() - start, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert program.fit is not None
    return {
        "name": f"{kind}, {synapses:,} synapses",
        "kind": kind,
        "neurons": sum(p.size for p in network.populations.values()),
        "synapses": synapses,
        "cores": program.fit.cores,
        "seconds": seconds,
        "wall_clock_seconds": waited,
        "gigabytes": peak,
    }


def exponent(rows: list[dict[str, Any]]) -> float:
    """The slope of log seconds over log synapses of large networks."""
    large = [row for row in rows if row["synapses"] >= LARGE]
    x, y = (np.log([row[key] for row in large]) for key in ("synapses", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def _missed(rows: list[dict[str, Any]]) -> int:
    missed = [
        row
        for row in rows
        if row["kind"] == "sparse"
        and row["synapses"] <= BAR["synapses"]
        and (row["seconds"] > BAR["seconds"] or row["gigabytes"] > BAR["gigabytes"])
    ]
    for row in missed:
        print(f"bar missed: {_line(row)}", file=sys.stderr)
    return int(bool(missed))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:40} {row['neurons']:9,} neurons  {row['cores']:4} cores  "
        f"{row['seconds']:7.2f} s  {row['gigabytes']:5.2f} GB"
    )


def markdown(document: dict[str, Any]) -> Iterator[str]:
    """The tables of placement and of time as they stand in docs/fit.md."""
    heads = ("network", "chip", "cores", "nmtool", "in order", "random")
    yield f"| {' | '.join(heads)} | chip crossings: nmtool | in order |"
    yield "|---" * 8 + "|"
    hops = ("cores", "hops", "in_order", "random", "crossings", "crossings_in_order")
    for row in document["placements"]:
        cells = (row["network"], row["chip"], *(f"{row[key]:,.0f}" for key in hops))
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "| network | neurons | cores | time | memory |"
    yield "|---" * 5 + "|"
    for row in (row for row in document["results"] if row["synapses"] >= LARGE):
        measured = f"{row['seconds']:.2f} s | {row['gigabytes']:.2f} GB"
        yield f"| {row['name']} | {row['neurons']:,} | {row['cores']} | {measured} |"
    if grows := [f"{slope:.2f} ({kind})" for kind, slope in document["exponents"].items()]:
        yield ""
        yield f"Time grows as the synapses to the power of {', '.join(grows)}."


# Networks


def _chain(name: str, shape: Shape, stages: list[Chain]) -> Network:
    inputs = {"input": Input(shape)}
    populations: dict[str, Population] = {}
    projections: dict[str, Projection] = {}
    source = "input"
    for index, operations in enumerate(stages):
        for operation in operations:
            shape = operation.output_shape(shape)
        layer = f"layer{index}"
        populations[layer] = Population(shape, NEURON)
        projections[layer] = Projection(source, layer, operations)
        source = layer
    return Network(name, inputs, populations, projections, (source,))


def sparse(synapses: int) -> tuple[Network, int]:
    """Ten layers, each neuron with 100 synapses from random neurons of the layer before."""
    fan_in, rng = 100, np.random.default_rng(0)
    size = synapses // (LAYERS * fan_in)
    stages: list[Chain] = []
    for _ in range(LAYERS):
        target = np.repeat(np.arange(size), fan_in)
        pairs = np.unique(target * size + rng.integers(0, size, target.size))
        target, source = np.divmod(pairs, size)
        weight = rng.normal(0, 0.1, target.size)
        stages.append((Sparse(weight, target, source, (size, size)),))
    count = sum(int(op.weight.size) for (op,) in stages if isinstance(op, Sparse))
    return _chain("sparse", (size,), stages), count


def dense(synapses: int) -> tuple[Network, int]:
    """One full square matrix."""
    size = round(synapses**0.5)
    weight = np.random.default_rng(0).normal(0, 0.1, (size, size))
    return _chain("dense", (size,), [(Dense(weight),)]), size * size


def convolutional(synapses: int) -> tuple[Network, int]:
    """Four layers of 16 channels, kernels of 3 x 3, over a square image."""
    rng, layers, channels = np.random.default_rng(0), 4, 16
    side = round((synapses / (layers * 9 * channels**2)) ** 0.5)
    kernels = [rng.normal(0, 0.1, (channels, 3, 3, channels)) for _ in range(layers)]
    stages: list[Chain] = [(Conv(kernel, padding=(1, 1)),) for kernel in kernels]
    taps = (3 * side - 2) ** 2  # those in the padding are none
    return _chain("convolutional", (side, side, channels), stages), layers * taps * channels**2


KINDS: dict[str, Callable[[int], tuple[Network, int]]] = {
    "sparse": sparse,
    "dense": dense,
    "convolutional": convolutional,
}


# Placement


FILES = {"MNIST 784-512-512-10": "mnist.net", "PilotNet": "gts/pilotnet_lif/network.net"}
"""Networks in the wheel of lava-dl."""


def placements() -> Iterator[dict[str, Any]]:
    """Spike-hops of nmtool's placement, of cores in order, and of random ones (20 seeds)."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "tests/lava/lib/dl/netx"
    small = quantize(sparse(240_000)[0], load_chip("loihi2"))
    large = quantize(sparse(10_000_000)[0], load_chip("loihi2"))
    cases: list[tuple[str, QuantizedNetwork, str]] = [
        ("sparse, 240,000 synapses", small, "loihi1"),
        ("sparse, 10,000,000 synapses", large, "loihi2"),
    ]
    for name, file in FILES.items():
        loaded = nmtool.load(wheel / file, chip="loihi2")
        assert isinstance(loaded, QuantizedNetwork)
        cases += [(name, loaded, chip) for chip in ("loihi1", "loihi2", "loihi2-2022")]
    for name, network, chip in cases:
        yield {"network": name, "chip": chip, **_hops(network, chip)}


def _hops(network: QuantizedNetwork, name: str) -> dict[str, float]:
    chip = load_chip(name)
    costs = Costs.of(network, chip)
    slices = slices_of(partition(costs)[0])
    flow = traffic(network, costs.wirings, slices, None)
    bins = [[index] for index in range(len(slices))]

    def placed(cores: Any) -> Any:
        at = zip(slices, cores, strict=True)
        held = [Slice(pop, box, *divmod(int(core), chip.cores)) for (pop, box), core in at]
        return spike_hops(flow, held, chip, "one spike of every neuron")

    ours, in_order = placed(place(flow, bins, chip, chip.cores)), placed(range(len(slices)))
    return {
        "cores": len(slices),
        "hops": ours.hops,
        "in_order": in_order.hops,
        "random": ours.random,
        "crossings": ours.crossings,
        "crossings_in_order": in_order.crossings,
    }


def plot(document: dict[str, Any], path: Path) -> None:
    """Log-log: seconds and gigabytes against synapses."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.8))
    labels = {"seconds": "processor time (s)", "gigabytes": "peak memory (GB)"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for kind in SIZES:
            rows = [row for row in document["results"] if row["kind"] == kind]
            axis.loglog(
                [row["synapses"] for row in rows],
                [row[key] for row in rows],
                marker="o",
                markersize=3,
                label=kind,
            )
        axis.axhline(BAR[key], color="grey", linewidth=0.8, linestyle="--")
        axis.set(xlabel="synapses", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
