"""Deploys a program again and again in one process and looks for what is left behind.

After a warm-up no deploy may leave a file handle, a thread or a process, and memory may not grow
steadily: the slope of the resident set over the cycles is printed, and held to a bar.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import nmtool
from nmtool.cli import nmtool as command
from nmtool.cli.common import run

WARM_UP = 20
MOST_GROWTH = 4096
"""Bytes of resident memory a cycle, by a straight line through all cycles after the warm-up."""


def status() -> dict[str, int]:
    """What this process holds: memory in bytes, file handles, threads, living children."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "memory": int(fields["VmRSS"].split()[0]) * 1024,
        "handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(fields["Threads"]),
        "children": len(children),
    }


def make_program(folder: Path) -> tuple[Path, Path]:
    """A small recurrent network and its input."""
    rng = np.random.default_rng(0)
    lif = nmtool.CubaLif(threshold=1.25, current_decay=0.25, voltage_decay=0.03)
    network = nmtool.Network(
        "soak",
        {"input": nmtool.Input((64,))},
        {"hidden": nmtool.Population((64,), lif), "output": nmtool.Population((10,), lif)},
        {
            "in": nmtool.Projection.dense("input", "hidden", rng.normal(0, 0.3, (64, 64))),
            "back": nmtool.Projection.dense("hidden", "hidden", rng.normal(0, 0.1, (64, 64)), 2),
            "out": nmtool.Projection.dense("hidden", "output", rng.normal(0, 0.3, (10, 64))),
        },
        ("output",),
    )
    program, spikes = folder / "program.h5", folder / "input.npy"
    nmtool.save(program, nmtool.compile(network, steps=32))
    np.save(spikes, rng.random((4, 64, 32)) < 0.2)
    return program, spikes


def deploy(program: Path, spikes: Path, hw: str) -> None:
    """One deploy, as the command line does it."""
    arguments = ["deploy", str(program), "--hw", hw, "--input", str(spikes), "-q", "--force"]
    output = str(program.parent / "recording.h5")
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(command, [*arguments, "--probe", "spikes,voltage", "-o", output])
    if code:
        sys.exit(f"deploy on {hw} ended with {code}")


def soak(hw: str, cycles: int) -> dict[str, Any]:
    """Deploy ``cycles`` times on one target."""
    with tempfile.TemporaryDirectory() as folder:
        program, spikes = make_program(Path(folder))
        seen = []
        for _ in track(range(WARM_UP + cycles), f"{hw}", disable=not sys.stderr.isatty()):
            deploy(program, spikes, hw)
            gc.collect()
            seen.append(status())
    after = seen[WARM_UP:]
    memory = np.array([s["memory"] for s in after], dtype=np.float64)
    slope = float(np.polyfit(np.arange(memory.size), memory, 1)[0])
    left = {key: after[-1][key] - after[0][key] for key in ("handles", "threads", "children")}
    return {
        "name": hw,
        "cycles": cycles,
        "memory_bytes_per_cycle": round(slope, 1),
        "memory_first": int(memory[0]),
        "memory_last": int(memory[-1]),
        **left,
        "passed": slope <= MOST_GROWTH and not any(left.values()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak the targets and print what is left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=500, help="deploys on the emulator")
    parser.add_argument("--lava-cycles", type=int, default=25, help="deploys on lava-sim")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = [soak("emulator", options.cycles)]
    if options.lava_cycles:
        results.append(soak("lava-sim", options.lava_cycles))
    if options.json:
        print(json.dumps(results))
    else:
        for r in results:
            print(
                f"{r['name']}: {r['cycles']} deploys, memory {r['memory_first'] / 2**20:.1f} to "
                f"{r['memory_last'] / 2**20:.1f} MiB ({r['memory_bytes_per_cycle']:+.0f} bytes a "
                f"cycle), handles {r['handles']:+d}, threads {r['threads']:+d}, children "
                f"{r['children']:+d}: {'passed' if r['passed'] else 'FAILED'}"
            )
    return 0 if all(r["passed"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
