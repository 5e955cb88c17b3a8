"""One step of training (forward, loss, backward, Adam) of nmtool and other libraries, in one run.

    python benchmarks/training.py [--json] [--output FILE.json] [--only NAME] [--rounds 3]

Every library runs in fresh processes, in turn, on the same spikes and from the same weights, with
two threads and with one; after the first round only with what was faster. nmtool has two of its own
and one of torch's, as in `nmtool train`. What is timed begins with a dense raster, from which
nmtool makes its events, and ends with the updated weights: medians of all steps of all rounds. The
learning rate is so small that the spikes stay those of the first step, however many steps a library
makes in its time.
Memory is the process's peak less what it held after a step with one short sample. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import inf, prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from machine import integer_rate, product_rate, real_rate
from peers import KEEP_U, KEEP_V, PEERS, THRESHOLD, Conv, Dense, Layout, Pool, Shape, among

from nmtool import operations
from nmtool.chip import load_chip
from nmtool.config import SlayerSurrogate
from nmtool.errors import DependencyError, UnsupportedError
from nmtool.network import CubaLif, Input, Network, Population, Projection, shapes
from nmtool.training.model import make_model, reproducible

OURS = "nmtool"
THREADS = 2
WARM, SECONDS, LEAST = 2, 3.0, 3
"""Steps that are not counted, and how long and how many steps one process is measured at least."""

HOPELESS = 2.5
"""What takes so many times as long as the best other library is measured by one step, once."""

LEARNING_RATE = 1e-6
LOGIT = 10.0
"""What the loss takes an output neuron for that spikes at every step."""

MS, MB = "ms per step of training", "MB"

SHORT = 16
"""Steps of the sample with which everything is called once before memory is read."""

ALIKE = 2.0
"""A library whose layers spike more or less often than the others' by this factor is left out."""

PAGE = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
"""Megabytes that memory is counted in."""

TIMEOUT = 240.0

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

UPDATE, SURROGATE = 24, 22
"""32-bit operations that the arithmetic of a neuron needs at every step.

Forward: two decays (9 each: absolute value, two products, their shifts and mask, sum, sign), the
input shifted and added (2), voltage summed (2), comparison and reset (2). Backward: the distance
from the threshold (3), 2^x (16, a multiply-add counted once), and the two recurrences (3).
"""

Side: TypeAlias = tuple[str, int]
"""A library and its threads."""


@dataclass(frozen=True)
class Part:
    """Operations of one kind in a step, how many the machine makes a second, and the time so."""

    name: str
    operations: int
    rate: float
    seconds: float


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    arguments = _arguments()
    if arguments.worker:
        shape, library, threads, best = arguments.worker
        _confine(int(threads))
        with reproducible() if library == OURS else nullcontext():
            print(json.dumps(worker(SHAPES[int(shape)], library, int(threads), float(best))))
        return 0
    rows = []
    for shape in SHAPES:
        if arguments.only and arguments.only not in shape.name:
            continue
        rows += compare(shape, arguments.rounds)
        if not arguments.json:
            print(text(rows[-2:]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"results": rows}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    missed = [row["name"] for row in rows if row["ratio"] is None or row["ratio"] < row["bar"]]
    for name in missed:
        print(f"bar missed: {name}", file=sys.stderr)
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--output", type=Path, help="write the results to this file")
    parser.add_argument("--only", help="only the shapes with this in their name")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each library")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process(shape: Shape, library: str, threads: int, best: float) -> dict[str, Any]:
    """What ``worker`` finds in a process of its own; if it fails, why."""
    print(f"{shape.name}: {library}, threads: {threads}", end="", file=sys.stderr, flush=True)
    found = _in_a_process(shape, library, threads, best)
    said = found.get("why") or f"{statistics.median(found['seconds']) * 1e3:.2f} ms"
    print(f": {said}", file=sys.stderr, flush=True)
    return found


def _in_a_process(shape: Shape, library: str, threads: int, best: float) -> dict[str, Any]:
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
    arguments = ["--worker", str(SHAPES.index(shape)), library, str(threads), str(best)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"why": f"took more than {TIMEOUT:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"why": f"failed: {lines[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _confine(threads: int) -> None:
    """Give this process so many threads on as many processors."""
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_flush_denormal(True)


def worker(shape: Shape, library: str, threads: int, best: float = inf) -> dict[str, Any]:
    """What ``measure`` finds in this process, and nmtool's ``limit``.

    Instead ``why``, if the library is not there or nmtool cannot train such a network.
    """
    try:
        model, layout = (ours if library == OURS else PEERS[library])(shape)
    except UnsupportedError as error:
        return {"why": f"not supported by the event engine yet ({error})"}
    except (ImportError, DependencyError) as error:
        return {"why": f"not installed ({error})"}
    found = measure(shape, model, layout, best=best)
    if isinstance(model, Ours):
        limit = parts(model, layout(torch.from_numpy(shape.raster())), threads)
        found["limit"] = [asdict(part) for part in limit]
    return found


def measure(
    shape: Shape, model: Any, layout: Layout, seconds: float = SECONDS, best: float = inf
) -> dict[str, Any]:
    """Seconds of steps of training, megabytes, and the spike rate of every layer.

    ``best`` is what the best other library takes for a step.

    Raises:
        ValueError: weights without a gradient, or with one that is not finite.
    """
    raster, labels = torch.from_numpy(shape.raster()), torch.from_numpy(shape.labels())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step(spikes: torch.Tensor, labels: torch.Tensor) -> None:
        loss = torch.nn.functional.cross_entropy(LOGIT / shape.steps * model(spikes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(layout(raster[:1, ..., :SHORT]), labels[:1])
    spikes = layout(raster)
    del raster
    before = _reset_peak()
    places = [shape.batch * shape.steps * prod(size) for size in shape.spiking()]
    rates = [n / of for n, of in zip(model.spikes(spikes), places, strict=True)]
    times = _timed(lambda: step(spikes, labels), seconds, best)
    megabytes = max(_memory("VmHWM") - before, PAGE)
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
            raise ValueError(f"weights {tuple(parameter.shape)}: found no finite gradient but 0")
    return {"seconds": times, "megabytes": megabytes, "rates": rates}


def _reset_peak() -> float:
    """Megabytes that this process holds, from which its peak counts again (proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _timed(step: Callable[[], None], seconds: float, best: float) -> list[float]:
    warm = [_seconds(step) for _ in range(WARM)]
    if warm[-1] > HOPELESS * best:
        return warm[-1:]
    times: list[float] = []
    while len(times) < LEAST or sum(times) < seconds:
        times.append(_seconds(step))
    return times


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


Runner: TypeAlias = Callable[[Shape, str, int, float], dict[str, Any]]


def compare(shape: Shape, rounds: int, run: Runner = in_a_process) -> list[dict[str, Any]]:
    """Two rows of a shape, time and memory: nmtool against the best of the others."""
    runs = dict[Side, list[dict[str, Any]]]()
    absent = dict[str, str]()
    sides = list(_sides())
    for _ in range(rounds):
        for side in sides:
            found = run(shape, *side, inf if side[0] == OURS else _best(runs))
            if "why" in found:
                absent[side[0]] = found["why"]
            else:
                runs.setdefault(side, []).append(found)
        runs = _faster(runs)
        sides = [s for s in runs if s[0] == OURS or _median(runs[s]) <= HOPELESS * _best(runs)]
    measured = [_summary(side, found) for side, found in runs.items()]
    absent = {k: why for k, why in absent.items() if k not in {side["name"] for side in measured}}
    odd = _odd(measured)
    peers = [side for side in measured if side["name"] not in {OURS, *odd}]
    mine = next((side for side in measured if side["name"] == OURS), None)
    time, memory = (_row(mine, peers, key) for key in ("ms", "megabytes"))
    measured = sorted(measured, key=lambda side: float(side["ms"]))
    return [
        {"name": shape.name, **time, "unit": MS, "bar": shape.bar}
        | {"sides": measured, "absent": absent | odd},
        {"name": f"{shape.name}: memory", **memory, "unit": MB, "bar": 1},
    ]


def _sides() -> Iterator[Side]:
    yield OURS, THREADS
    for library in PEERS:
        yield library, THREADS
        yield library, 1


def _best(runs: dict[Side, list[dict[str, Any]]]) -> float:
    """Seconds of a step of the fastest of the others, as far as is known."""
    return min((_median(found) for side, found in runs.items() if side[0] != OURS), default=inf)


def _faster(runs: dict[Side, list[dict[str, Any]]]) -> dict[Side, list[dict[str, Any]]]:
    """Of each library the number of threads with which it is faster."""
    order = sorted(runs, key=lambda side: _median(runs[side]))
    best = {library: (library, threads) for library, threads in reversed(order)}
    return {side: found for side, found in runs.items() if side in best.values()}


def _median(runs: list[dict[str, Any]]) -> float:
    return statistics.median(float(seconds) for run in runs for seconds in run["seconds"])


def _summary(side: Side, runs: list[dict[str, Any]]) -> dict[str, Any]:
    fastest = max(runs, key=lambda run: sum(part["rate"] for part in run.get("limit", [])))
    return {
        "name": side[0],
        "threads": side[1],
        "ms": _median(runs) * 1e3,
        "fastest_ms": min(seconds for run in runs for seconds in run["seconds"]) * 1e3,
        "steps": sum(len(run["seconds"]) for run in runs),
        "megabytes": statistics.median(run["megabytes"] for run in runs),
        "rates": runs[0]["rates"],
        "limit": fastest.get("limit"),
    }


def _odd(sides: list[dict[str, Any]]) -> dict[str, str]:
    """Libraries whose layers do not spike about as often as the same layers of most libraries."""
    found = dict[str, str]()
    for layer in zip(*(side["rates"] for side in sides), strict=True):
        usual = statistics.median(layer)
        for side, rate in zip(sides, layer, strict=True):
            if not usual / ALIKE <= rate <= usual * ALIKE:
                found[side["name"]] = f"spikes at {rate:.2%} of places, the others at {usual:.2%}"
    return found


def _row(mine: dict[str, Any] | None, peers: list[dict[str, Any]], key: str) -> dict[str, Any]:
    best = min(peers, key=lambda side: float(side[key]), default=None)
    return {
        "ours": mine and mine[key],
        "peer": best and best[key],
        "peer_name": best and best["name"],
        "ratio": best[key] / mine[key] if best and mine else None,
    }


class Ours(torch.nn.Module):
    """Output spikes of every neuron over all steps, from nmtool's event engine."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From spikes (samples, neurons, steps) to (samples, output neurons)."""
        (name,) = self.model.network.outputs
        output: torch.Tensor = self.model(x, [name])[name]
        return output.sum(-1)

    def spikes(self, x: torch.Tensor) -> list[float]:
        """How many spikes every layer sends."""
        return [float(spikes.detach().sum()) for spikes in self.model(x).values()]


def ours(shape: Shape) -> tuple[Ours, Layout]:
    """The same network for the event engine; weights are rounded to the chip's at every step.

    Raises:
        UnsupportedError: the engine cannot train it.
    """
    model = make_model(network(shape), load_chip("loihi2"), SlayerSurrogate(), "event")
    return Ours(model), channels_last


def channels_last(raster: torch.Tensor) -> torch.Tensor:
    """(samples, channels, y, x, steps) as (samples, neurons by (x, y, channel), steps)."""
    if raster.ndim == 5:
        raster = raster.permute(0, 3, 2, 1, 4).flatten(1, 3)
    return raster.contiguous()


def network(shape: Shape) -> Network:
    """A shape as a Network; pooling's mean is a sum, and the next weights a share."""
    neuron = CubaLif(THRESHOLD, 1 - KEEP_U, 1 - KEEP_V)
    populations, projections = dict[str, Population](), dict[str, Projection]()
    chain: operations.Chain = ()
    source, share = "input", 1.0
    sizes = shape.sizes()
    for i, (layer, weight) in enumerate(zip(shape.layers, shape.weights(), strict=True)):
        if isinstance(layer, Pool):
            square = (layer.size, layer.size)
            chain, share = (*chain, operations.SumPool(square, square)), share / prod(square)
            continue
        name = f"layer{i}"
        populations[name] = Population(sizes[i + 1][::-1], neuron)
        chain = (*chain, *_weighted(layer, share * weight, sizes[i]))
        projections[name] = Projection(source, name, chain)
        if isinstance(layer, Dense) and layer.recurrent:
            projections[f"{name}_recurrent"] = Projection.dense(
                name, name, among(layer.size).numpy()
            )
        source, chain, share = name, (), 1.0
    inputs = {"input": Input(shape.features[::-1])}
    return Network(OURS, inputs, populations, projections, (source,))


def _weighted(layer: Dense | Conv, weight: Any, before: tuple[int, ...]) -> operations.Chain:
    if isinstance(layer, Conv):
        kernel = np.ascontiguousarray(weight.transpose(0, 3, 2, 1))
        return (operations.Conv(kernel, padding=(layer.kernel // 2,) * 2),)
    flat = (operations.Flatten(),) if len(before) > 1 else ()
    return (*flat, operations.Dense(weight))


def parts(model: Ours, raster: torch.Tensor, threads: int) -> list[Part]:
    """What a step needs at least, from rates that this machine has with so many threads."""
    with torch.no_grad():
        spikes = {"input": raster, **model.model(raster)}
    counts = count(model.model.network, spikes)
    integer, real, product = integer_rate(threads), real_rate(threads), product_rate()
    rates = (integer, integer, real, real, product)
    return [
        Part(name, counted, rate, counted / rate)
        for (name, counted), rate in zip(counts.items(), rates, strict=True)
    ]


def count(network: Network, spikes: dict[str, torch.Tensor]) -> dict[str, int]:
    """Operations of a step, by part, from the spikes (samples, neurons, steps) of every source.

    A weight is added for every synapse of every spike that still arrives; so is a gradient. A
    gradient is sent back by a multiply-add for every weight and target at every step, to
    populations only.
    """
    sizes = shapes(network.inputs, network.populations)
    samples, _, steps = spikes["input"].shape
    added = products = 0
    for projection in network.projections.values():
        shape = sizes[projection.source]
        sent = spikes[projection.source][..., :-1].sum((0, 2), dtype=torch.float64).numpy()
        ways = operations.chain_connections(projection.operations, shape).source
        added += int(np.bincount(ways, minlength=sent.size) @ sent)
        if projection.source in network.populations:
            products += samples * steps * _synapses(projection.operations, shape)
    neurons = samples * steps * sum(p.size for p in network.populations.values())
    return {
        "weights added": added,
        "neurons updated": UPDATE * neurons,
        "surrogates and recurrences": SURROGATE * neurons,
        "gradients added": added,
        "gradients sent back": products,
    }


def _synapses(chain: operations.Chain, shape: operations.Shape) -> int:
    """Of the one operation of a chain that has weights."""
    synapses = 0
    for operation in chain:
        if isinstance(operation, operations.WEIGHTED):
            synapses = operation.connections(shape).source.size
        shape = operation.output_shape(shape)
    return synapses


def text(rows: list[dict[str, Any]]) -> str:
    """The two rows of a shape for people."""
    timed, _ = rows
    lines = [timed["name"], *map(_side, timed["sides"])]
    lines += [f"  {name:22} {why}" for name, why in timed["absent"].items()]
    lines += [f"  {_verdict(row)}" for row in rows]
    limits = [part for side in timed["sides"] for part in side["limit"] or ()]
    if limits:
        least = sum(part["seconds"] for part in limits) * 1e3
        lines.append(f"  the machine's own limit: {least:.2f} ms, {least / timed['ours']:.0%}")
        lines += map(_part, limits)
    return "\n".join(lines)


def _side(side: dict[str, Any]) -> str:
    rates = " ".join(f"{rate:.2%}" for rate in side["rates"])
    return (
        f"  {side['name']:22} {side['ms']:9.2f} ms {side['megabytes']:8.1f} MB  "
        f"threads {side['threads']}  spike rates {rates}"
    )


def _part(part: dict[str, Any]) -> str:
    return (
        f"    {part['name']:27} {part['operations'] / 1e6:9.2f} million "
        f"at {part['rate'] / 1e9:6.1f} a ns {part['seconds'] * 1e3:8.3f} ms"
    )


def _verdict(row: dict[str, Any]) -> str:
    what = "faster than" if row["unit"] == MS else "less memory than"
    if row["ratio"] is None:
        return f"not compared: {what} the best (bar {row['bar']})"
    return f"{row['ratio']:.1f} times {what} {row['peer_name']} (bar {row['bar']})"


if __name__ == "__main__":
    sys.exit(main())
