"""One step of training (forward, loss, backward, Adam) of nmtool and other libraries, in one run.

    python benchmarks/training.py [--json] [--output FILE.json] [--only NAME] [--rounds 2]

Every library runs in fresh processes, one after the other, on the same spikes and from the same
weights, with two threads and with one, whichever is faster; nmtool has two. What is timed begins
with a dense raster and ends with the updated weights. Medians of all steps but the first.
Memory is the process's peak less what it was after imports and one Adam update of one number.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from machine import integer_rate, product_rate, real_rate
from peers import KEEP_U, KEEP_V, PEERS, THRESHOLD, Conv, Dense, Pool, Shape

from nmtool.chip import load_chip
from nmtool.config import Surrogate
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.training.model import make_model

OURS = "nmtool"
THREADS = 2
WARM, SECONDS, LEAST = 1, 3.0, 3
"""Steps that are not counted, and how long and how many steps one process is measured at least."""

TIMEOUT = 120.0

SHAPES = (
    Shape("dense 200-256-200, 1 x 2,000 steps", (200,), (Dense(256), Dense(200)), 1, 2000, 20),
    Shape("dense 200-256-10, 32 x 100 steps", (200,), (Dense(256), Dense(10)), 32, 100, 5),
    Shape("dense 2312-512-10, 32 x 300 steps", (2312,), (Dense(512), Dense(10)), 32, 300, 5),
    Shape(
        "2x32x32, 16c5-2p-32c3-2p-10, 16 x 100 steps",
        (2, 32, 32),
        (Conv(16, 5), Pool(2), Conv(32, 3), Pool(2), Dense(10)),
        16,
        100,
        5,
    ),
    Shape(
        "recurrent 700-256r-20, 32 x 100 steps",
        (700,),
        (Dense(256, recurrent=True), Dense(20)),
        32,
        100,
        8,
    ),
)

OPERATIONS = {"row": 1, "update": 24, "surrogate": 22}
"""32-bit operations that the arithmetic needs: one addition for every weight that a spike adds, and
one for every gradient; for a neuron two decays (9 each: absolute value, two products, their shifts
and mask, sum, sign), the input shifted and added (2), voltage summed (2), comparison and reset (2);
for a surrogate's derivative the distance (3), 2^x (16, a multiply-add counted once), and the two
recurrences (3)."""


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    arguments = _arguments()
    if arguments.worker:
        shape, library, threads = arguments.worker
        print(json.dumps(measure(SHAPES[int(shape)], library, int(threads))))
        return 0
    rows = []
    for shape in SHAPES:
        if arguments.only and arguments.only not in shape.name:
            continue
        rows.append(compare(shape, arguments.rounds))
        if not arguments.json:
            print(_text(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"results": rows}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    missed = [row["name"] for row in rows if row["ratio"] and row["ratio"] < row["bar"]]
    for name in missed:
        print(f"bar missed: {name}", file=sys.stderr)
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--output", type=Path, help="write the results to this file")
    parser.add_argument("--only", help="only the shapes with this in their name")
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes of each library")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(shape: Shape, rounds: int) -> dict[str, Any]:
    """The row of one shape: nmtool against the fastest of the others."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for library, threads in _sides(shape):
            found = _in_a_process(shape, library, threads)
            if found is not None:
                runs.setdefault((library, threads), []).append(found)
    sides = [_summary(library, threads, found) for (library, threads), found in runs.items()]
    ours = next((side for side in sides if side["name"] == OURS), None)
    peers = sorted((s for s in sides if s["name"] != OURS), key=lambda s: float(s["ms"]))
    fastest = list({side["name"]: side for side in reversed(peers)}.values())[::-1]
    if not fastest:
        raise SystemExit(f"{shape.name}: no other library ran; see `make bench`")
    return {
        "name": shape.name,
        "ours": ours and ours["ms"],
        "peer": fastest[0]["ms"],
        "peer_name": fastest[0]["name"],
        "unit": "ms per step of training",
        "ratio": ours and fastest[0]["ms"] / ours["ms"],
        "bar": shape.bar,
        "megabytes": ours and ours["megabytes"],
        "spikes": ours and ours["spikes"],
        "limit": ours and ours["limit"],
        "peers": fastest,
    }


def _sides(shape: Shape) -> Iterator[tuple[str, int]]:
    if trainable(shape):
        yield OURS, THREADS
    for library in PEERS:
        yield library, THREADS
        yield library, 1


def _in_a_process(shape: Shape, library: str, threads: int) -> dict[str, Any] | None:
    """What ``measure`` finds in a process of its own; None, and why, if it fails."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
    worker = ["--worker", str(SHAPES.index(shape)), library, str(threads)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *worker],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{library}, {threads} threads: more than {TIMEOUT:.0f} s", file=sys.stderr)
        return None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{library}, {threads} threads: failed ({why})", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summary(library: str, threads: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [s for run in runs for s in run["seconds"]]
    median = statistics.median(seconds)
    limit = runs[0].get("limit")
    if limit:
        limit = max((run["limit"] for run in runs), key=lambda found: float(found["rate"]))
        limit = {**limit, "share": limit["seconds"] / median}
    return {
        "name": library,
        "threads": threads,
        "ms": median * 1e3,
        "fastest_ms": min(seconds) * 1e3,
        "steps": len(seconds),
        "megabytes": statistics.median(run["megabytes"] for run in runs),
        "spikes": runs[0]["spikes"],
        "limit": limit,
    }


def measure(shape: Shape, library: str, threads: int) -> dict[str, Any]:
    """Seconds of steps of training, peak memory and output spikes, in this process."""
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_flush_denormal(True)
    raster, labels = torch.from_numpy(shape.raster()), torch.from_numpy(shape.labels())
    make = ours if library == OURS else PEERS[library]
    model, layout = make(shape)
    spikes = layout(raster)
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    torch.optim.Adam([one], fused=True).step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    counted: list[float] = []

    def step() -> None:
        counts = model(spikes)
        loss = torch.nn.functional.cross_entropy(10 / shape.steps * counts, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counted.append(float(counts.detach().sum()))

    seconds = _timed(step)
    if not all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters):
        raise SystemExit(f"{library}: weights without a gradient")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"seconds": seconds, "megabytes": (after - before) / 1024, "spikes": counted[0]}
    return found | ({"limit": limit(model.model, spikes, threads)} if library == OURS else {})


def _timed(step: Callable[[], None]) -> list[float]:
    for _ in range(WARM):
        step()
    seconds: list[float] = []
    while len(seconds) < LEAST or sum(seconds) < SECONDS:
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def trainable(shape: Shape) -> bool:
    """Whether nmtool's engine has all layers of a shape."""
    return all(isinstance(layer, Dense) and not layer.recurrent for layer in shape.layers)


class Ours(torch.nn.Module):
    """Output spikes of every neuron over all steps, from nmtool's event engine."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From spikes (samples, neurons, steps)."""
        output: torch.Tensor = self.model(x)[self.model.network.outputs[0]]
        return output.sum(-1)


def ours(shape: Shape) -> tuple[Ours, Callable[[torch.Tensor], torch.Tensor]]:
    """The same network for the event engine; weights are rounded to the chip's at every step."""
    neuron = CubaLif(THRESHOLD, 1 - KEEP_U, 1 - KEEP_V)
    populations, projections, source = {}, {}, "input"
    for i, weight in enumerate(shape.weights()):
        name = f"layer{i}"
        populations[name] = Population((len(weight),), neuron)
        projections[name] = Projection.dense(source, name, weight)
        source = name
    inputs = {"input": Input((prod(shape.features),))}
    network = Network(OURS, inputs, populations, projections, (source,))
    return Ours(make_model(network, load_chip("loihi2"), Surrogate(), "event")), lambda x: x


def limit(model: Any, spikes: torch.Tensor, threads: int) -> dict[str, Any]:
    """Operations that a step needs, the machine's rates, and the least time that they allow."""
    run = model.run(spikes)
    rows = updates = products = 0
    for i, layer in enumerate(model.layers):
        samples, steps, n = run.voltage[i].shape
        rows += run.events[layer.source].neuron.size * n
        updates += samples * steps * n
        products += samples * steps * n * run.weight[i].shape[1] if i else 0
    rate, real, product = integer_rate(threads), real_rate(threads), product_rate()
    integers = rows * OPERATIONS["row"] + updates * OPERATIONS["update"]
    reals = rows * OPERATIONS["row"] + updates * OPERATIONS["surrogate"]
    return {
        "rows_of_weights": rows,
        "neuron_updates": updates,
        "products": products,
        "rate": rate,
        "real_rate": real,
        "product_rate": product,
        "seconds": integers / rate + reals / real + products / product,
    }


def _text(row: dict[str, Any]) -> str:
    lines = [row["name"]]
    if row["ours"] is None:
        lines.append(f"  {OURS:22} not there yet (bar {row['bar']} x {row['peer_name']})")
    else:
        share = f"{row['limit']['share']:.0%} of the machine"
        lines.append(
            f"  {OURS:22} {row['ours']:9.2f} ms {row['megabytes']:7.1f} MB "
            f"{row['spikes']:8.0f} spikes  {row['ratio']:.1f} times {row['peer_name']} "
            f"(bar {row['bar']}), {share}"
        )
    for peer in row["peers"]:
        lines.append(
            f"  {peer['name']:22} {peer['ms']:9.2f} ms {peer['megabytes']:7.1f} MB "
            f"{peer['spikes']:8.0f} spikes  {peer['threads']} threads"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
