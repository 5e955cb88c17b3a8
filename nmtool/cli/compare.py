"""nmtool compare: where two recordings, backends, or the trainer and a backend part."""

from __future__ import annotations

from pathlib import Path

import click

from nmtool import formats
from nmtool.backends import Recording
from nmtool.chip import load_hardware
from nmtool.cli.common import Options, emit, table, verb, warn
from nmtool.cli.deploy import run
from nmtool.cli.runs import Given, Run, gather_input
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, CheckFailed, UsageError
from nmtool.measure import Agreement, Difference, compare
from nmtool.network import Network

PROBE = "spikes,current,voltage"


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--program", type=click.Path(), help="Program that the targets run.")
@click.option("--data", metavar="NAME:SPLIT", help="Data set [default: the program's, test].")
@click.option(
    "--input",
    "input_file",
    type=click.Path(),
    metavar="FILE.npy",
    help="Spike rasters ([samples,] neurons, steps), or raw samples with --encode.",
)
@click.option("--encode", is_flag=True, help="--input holds raw samples for the encoding.")
@verb
def command(
    a: str,
    b: str,
    program: str | None,
    data: str | None,
    input_file: str | None,
    encode: bool,
    options: Options,
) -> None:
    """Compare A with B: spikes, currents and voltages; exit 1 where they differ.

    A and B are each a recording (FILE.h5), a target (name or FILE.yaml, with --program), or the
    trainer's integer forward pass (trainer:RUN).
    """
    loaded: Program | None = formats.load_as(program, Program) if program else None
    if options.dry_run:
        emit(options, "compare", {"dry_run": True}, f"{a} and {b} would be compared")
        return
    source = _Source(loaded, data, input_file, encode, options)
    left, right = source.recording(a), source.recording(b)
    _check_programs(a, left, b, right)
    order = loaded.order if loaded else None
    thresholds = (
        {name: p.threshold for name, p in loaded.network.populations.items()} if loaded else None
    )
    result = compare(left, right, order, thresholds)
    if result.missing:
        warn(f"not compared, recorded on one side only: {', '.join(result.missing)}")
    emit(options, "compare", {"a": a, "b": b, **result.as_json()}, _text(a, b, result))
    if not result.equal:
        raise CheckFailed(f"{a} and {b} differ")


class _Source:
    """Makes a recording of whatever an operand names; the input is gathered once."""

    def __init__(
        self,
        program: Program | None,
        data: str | None,
        input_file: str | None,
        encode: bool,
        options: Options,
    ) -> None:
        self._program = program
        self._input = (data, input_file, None, encode)
        self._options = options

    def recording(self, operand: str) -> Recording:
        if operand.startswith("trainer:"):
            return self._trainer(Path(operand.removeprefix("trainer:")))
        if operand.endswith((".h5", ".hdf5")):
            loaded: Recording = formats.load_as(operand, Recording)
            return loaded
        hardware = load_hardware(operand, self._options.hardware_overrides())
        if self._program is None:
            raise UsageError(f"{operand}: a target needs --program, which it runs")
        return run(self._program, hardware, self._given(self._program), PROBE, self._options)

    def _given(self, owner: Program | Network) -> Given:
        network = owner.network if isinstance(owner, Program) else owner
        return gather_input(network, *self._input)

    def _trainer(self, folder: Path) -> Recording:
        from nmtool.chip import load_chip
        from nmtool.training.slayer import record

        path = Run(folder).network if folder.is_dir() else folder
        network: Network = formats.load_as(path, Network)
        chip = load_chip(self._program.chip if self._program else "loihi2")
        return record(network, chip, self._given(network).spikes)


def _check_programs(a: str, left: Recording, b: str, right: Recording) -> None:
    known = {left.fingerprint, right.fingerprint} - {""}
    if len(known) > 1:
        raise ArtifactError(
            f"{a} ran the program {left.fingerprint}, {b} ran {right.fingerprint}: "
            "recordings of different programs are not compared"
        )


def _text(a: str, b: str, result: Agreement) -> str:
    rows = [
        (
            p.population,
            p.spikes_a,
            p.spikes_b,
            p.differing,
            "not probed" if p.states is None else p.states,
        )
        for p in result.populations
    ]
    header = ("population", "spikes of A", "spikes of B", "differing", "states differing")
    lines = [f"A: {a}", f"B: {b}", table(header, rows)]
    lines.append(f"differing spikes: {result.differing_spikes}")
    lines.append("equal" if result.first is None else describe(result.first))
    return "\n".join(lines)


def describe(first: Difference) -> str:
    """The first difference in words."""

    def side(name: str, state: dict[str, int | None]) -> str:
        shown = ", ".join(
            f"{key} {'not recorded' if value is None else value}" for key, value in state.items()
        )
        return f"  {name}: {shown}"

    threshold = "" if first.threshold is None else f", threshold {first.threshold} x 64"
    return "\n".join(
        (
            f"first difference: {first.quantity} of population {first.population}, sample "
            f"{first.sample}, step {first.step}, neuron {first.neuron}{threshold}",
            side("A", first.a),
            side("B", first.b),
        )
    )
