"""netx:FILE.net as the side of a comparison: the file, run in Lava by netx's own loader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from nmtool.backends import Recording
from nmtool.backends.base import input_batch
from nmtool.backends.lava.client import LavaWorker
from nmtool.backends.lava.compat import slayer_missing
from nmtool.backends.lava.link import Patience, Progress
from nmtool.backends.lava.netx import Feed, NetxJob, NetxLayer
from nmtool.chip import ChipSpec, load_hardware
from nmtool.compiler import Program
from nmtool.errors import (
    ArtifactError,
    BoardTimeout,
    DependencyError,
    UnsupportedError,
)
from nmtool.formats.netx import NetxOptions, load_netx, notes
from nmtool.formats.netx_writer import not_built
from nmtool.network import Input
from nmtool.provenance import provenance, sha256
from nmtool.quantization import QuantizedNetwork
from nmtool.spikes import SpikeTrain

LAYER = re.compile(r"layer(\d+)")


class NetxRunner:
    """Runs a netx file as users of lava-dl do, on inputs of a program of the same layers.

    The k-th layer of neurons of the file stands for the program's k-th population. Which layers
    are read, the resets, the spike exponent and ``chip`` are the program's; weights, thresholds and
    delays are the file's. ``notes`` says what nmtool reads in another way than netx.

    Raises:
        ArtifactError: another file or other layers than the program's.
        UnsupportedError: a layer or a reset that netx does not have.
    """

    def __init__(self, file: str, program: Program, chip: ChipSpec, overrides: list[str]) -> None:
        self.program = program
        self._file = Path(file).resolve()
        net = program.network
        self._options = _options(net)
        read = load_netx(file, chip, self._options)
        _check_layers(file, read, net)
        if missing := not_built(file, self._options.num_layers):
            raise UnsupportedError(
                f"netx:{file}: found {', '.join(missing)}, which netx cannot build; {_WAY_OUT}"
            )
        self.notes = notes(read)
        self._timeout = load_hardware("lava-sim", overrides).timeouts
        patience = Patience(self._timeout.load, self._timeout.run, "netx in Lava's simulation")
        self._worker = LavaWorker(patience)

    def run(self, inputs: Mapping[str, SpikeTrain], progress: Progress | None = None) -> Recording:
        """Run samples, each in a network built anew; spikes of all layers, u and v of LIF neurons.

        Raises:
            UnsupportedError: a layer that netx cannot build; no samples.
            DependencyError: Lava or lava-dl is missing or unknown.
            BoardTimeout, BoardError: Lava took too long, or failed.
        """
        if reason := slayer_missing():
            raise DependencyError(reason)
        net = self.program.network
        batch = input_batch(self.program, inputs, None)
        if not batch.n_samples:
            raise UnsupportedError("netx: found 0 samples, allowed 1 or more")
        ((name, source),) = net.inputs.items()
        job = self._job(source, batch.n_samples, batch.n_steps)
        try:
            result = self._worker.run_netx(job, batch.rasters[name], self._timeout.run, progress)
        except BoardTimeout as error:
            raise BoardTimeout(
                f"{error}; timeouts.run of lava-sim is {self._timeout.run:g} s: give fewer "
                "samples, or --set hw.timeouts.run=SECONDS"
            ) from None
        except UnsupportedError as error:
            raise UnsupportedError(f"netx:{self._file}: {error}; {_WAY_OUT}") from None
        return Recording(
            {n: SpikeTrain.from_raster(a, net.graded(n)) for n, a in result.spikes.items()},
            {n: a.astype("int64") for n, a in result.current.items()},
            {n: a.astype("int64") for n, a in result.voltage.items()},
            "netx",
            "",
            batch.n_steps,
            result.build_seconds + result.run_seconds,
            provenance(
                netx_sha256=sha256(self._file),
                input_sha256=batch.sha256,
                options=asdict(self._options),
                lava=result.versions,
            ),
        )

    def _job(self, source: Input, samples: int, steps: int) -> NetxJob:
        options, net = self._options, self.program.network
        feed: Feed = "bias" if source.kind == "bias" else "value" if source.drives else "spikes"
        return NetxJob(
            str(self._file),
            feed,
            tuple(
                NetxLayer(name, p.shape, net.graded(name)) for name, p in net.populations.items()
            ),
            samples,
            steps,
            options.num_layers,
            options.skip_layers,
            source.shape if feed == "spikes" and len(source.shape) == 3 else None,
            options.reset_interval,
            options.reset_offset,
            options.spike_exponent,
        )


_WAY_OUT = (
    "nmtool reads such a file as SLAYER runs it: compare SLAYER's forward (trainer:RUN), or the "
    "layers before it (nmtool import --num-layers N)"
)


def _options(net: QuantizedNetwork) -> NetxOptions:
    """How a program's file was read, by the names, resets and exponents of its populations."""
    numbers = [LAYER.fullmatch(name) for name in net.populations]
    known = [int(match[1]) for match in numbers if match]
    options = NetxOptions()
    if len(known) == len(numbers):
        # A readout was read from the average behind the last layer, which netx is to refuse.
        last = None if net.readout else max(known) + 1
        options = replace(options, skip_layers=min(known), num_layers=last)
    for k, population in enumerate(net.populations.values()):
        if population.graded and population.model != "sigma":
            options = replace(options, spike_exponent=population.spike_exponent)
        if (reset := population.reset) and options.reset_interval is None:
            options = replace(options, reset_interval=reset.interval, reset_offset=reset.offset - k)
    shapes = [source.shape for source in net.inputs.values()]
    return replace(options, input_shape=shapes[0]) if len(shapes) == 1 else options


def _check_layers(file: str, read: QuantizedNetwork, net: QuantizedNetwork) -> None:
    """Refuse a program of other layers, inputs or resets than the file has.

    Raises:
        ArtifactError: other layers or inputs.
        UnsupportedError: resets that netx cannot do.
    """
    for what, wanted, found in (
        ("layers of the shapes", _shapes(net), _shapes(read)),
        ("inputs", _inputs(net), _inputs(read)),
    ):
        if wanted != found:
            raise ArtifactError(
                f"netx:{file}: found {what} {found}, the program has {wanted}: give the program "
                "that was made of this file (nmtool compile FILE.net)"
            )
    pairs = zip(net.populations.items(), read.populations.values(), strict=True)
    for (name, ours), theirs in pairs:
        if ours.reset != theirs.reset:
            raise UnsupportedError(
                f"netx:{file}: found the reset {ours.reset} of {name}, allowed {theirs.reset}: "
                "netx resets all layers in one interval, each a step after the one before"
            )


def _shapes(net: QuantizedNetwork) -> list[tuple[object, ...]]:
    return [(p.model, *p.shape) for p in net.populations.values()]


def _inputs(net: QuantizedNetwork) -> list[tuple[object, ...]]:
    return [(s.kind, *s.shape) for s in net.inputs.values()]
