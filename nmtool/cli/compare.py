"""nmtool compare: where two recordings, backends, or the trainer and a backend part."""

from __future__ import annotations

from pathlib import Path

import click

from nmtool import formats
from nmtool.backends import Recording, check_runnable
from nmtool.chip import HardwareConfig, load_hardware
from nmtool.cli.common import FILE, Options, emit, progress, table, verb, warn
from nmtool.cli.deploy import run, thresholds
from nmtool.cli.runs import Given, Run, gather_input, input_options
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, CheckFailed, UnsupportedError, UsageError
from nmtool.measure import Agreement, Difference, compare
from nmtool.network import Network
from nmtool.spikes import SpikeTrain

PROBE = "spikes,current,voltage"
TRAINER = "trainer:"


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--program", type=FILE, help="Program that the targets run.")
@input_options
@verb
def command(
    a: str,
    b: str,
    program: str | None,
    data: str | None,
    input_files: tuple[str, ...],
    encode: bool,
    options: Options,
) -> None:
    """Compare A with B: spikes or messages, currents, voltages; exit 1 where they differ.

    A and B are each a recording (FILE.h5), a target (name or FILE.yaml, with --program), or the
    trainer's integer forward pass (trainer:RUN).
    """
    loaded: Program | None = formats.load_as(program, Program) if program else None
    source = _Source(loaded, data, input_files, encode, options)
    if options.dry_run:
        source.check(a)
        source.check(b)
        emit(options, "compare", {"dry_run": True}, f"{a} and {b} would be compared")
        return
    left, right = source.recording(a), source.recording(b)
    _check_programs(a, left, b, right)
    known = thresholds(loaded) if loaded else _recorded_thresholds(left, right)
    result = compare(left, right, [*known] or None, known)
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
        input_files: tuple[str, ...],
        encode: bool,
        options: Options,
    ) -> None:
        self._program = program
        self._input = (data, input_files, None, encode)
        self._options = options

    def recording(self, operand: str) -> Recording:
        if operand.startswith(TRAINER):
            return self._trainer(self._network(operand))
        if _is_file(operand):
            loaded: Recording = formats.load_as(operand, Recording)
            return loaded
        program, hardware = self._target(operand)
        return run(program, hardware, self._given(program), PROBE, self._options)

    def check(self, operand: str) -> None:
        """Everything about an operand that can be checked without running it."""
        if operand.startswith(TRAINER):
            self._only(self._network(operand))
        elif _is_file(operand):
            formats.load_as(operand, Recording)
        else:
            program, hardware = self._target(operand)
            check_runnable(program, hardware)
            self._given(program)

    def _target(self, operand: str) -> tuple[Program, HardwareConfig]:
        hardware = load_hardware(operand, self._options.hardware_overrides())
        if self._program is None:
            raise UsageError(f"{operand}: a target needs --program, which it runs")
        return self._program, hardware

    def _network(self, operand: str) -> Network:
        path = Path(operand.removeprefix(TRAINER))
        network: Network = formats.load_as(Run(path).network if path.is_dir() else path, Network)
        return network

    def _given(self, owner: Program | Network) -> Given:
        return gather_input(owner, *self._input)

    def _trainer(self, network: Network) -> Recording:
        from nmtool.chip import load_chip

        chip = load_chip(self._program.chip if self._program else "loihi2")
        bits = (
            {p.weight_bits for p in self._program.network.projections.values()}
            if (self._program)
            else set()
        )
        if bits - {network.weight_bits}:
            warn(
                f"the trainer's weights have {network.weight_bits} bits, those of the program "
                f"{', '.join(map(str, sorted(bits)))}: other integers, so other spikes"
            )
        with progress(self._options, "run the trainer's forward") as update:
            from nmtool.training.slayer import record

            return record(network, chip, self._only(network), update)

    def _only(self, network: Network) -> SpikeTrain:
        """What goes into a network with one input, all that the trainer runs."""
        spikes = self._given(network).spikes
        if len(spikes) != 1:
            raise UnsupportedError(
                f"trainer: found {len(spikes)} inputs ({', '.join(spikes)}), allowed 1"
            )
        return next(iter(spikes.values()))


def _recorded_thresholds(*recordings: Recording) -> dict[str, int | None]:
    """Thresholds by population, in data-flow order, from the first recording that has them."""
    known = (recording.provenance.get("state_thresholds") for recording in recordings)
    return next((dict(found) for found in known if found), {})


def _is_file(operand: str) -> bool:
    return operand.endswith((".h5", ".hdf5"))


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
            *(
                "not probed" if count is None else count
                for count in (p.spikes_a, p.spikes_b, p.differing, p.states)
            ),
        )
        for p in result.populations
    ]
    sent = _sent(result)
    header = ("population", f"{sent} of A", f"{sent} of B", "differing", "states differing")
    lines = [f"A: {a}", f"B: {b}", table(header, rows)]
    lines.append(f"differing {sent}: {result.differing_spikes}")
    lines.append("equal" if result.first is None else describe(result.first))
    return "\n".join(lines)


def _sent(result: Agreement) -> str:
    """What the populations that were compared send."""
    graded = {p.graded for p in result.populations}
    words = {False: "spikes", True: "messages"}
    return " or ".join(words[kind] for kind in sorted(graded))


def describe(first: Difference) -> str:
    """The first difference in words."""

    def side(name: str, state: dict[str, int | None]) -> str:
        shown = ", ".join(
            f"{key} {'not recorded' if value is None else value}" for key, value in state.items()
        )
        return f"  {name}: {shown}"

    threshold = "" if first.threshold is None else f", threshold {first.threshold}"
    return "\n".join(
        (
            f"first difference: {first.quantity} of population {first.population}, sample "
            f"{first.sample}, step {first.step}, neuron {first.neuron}{threshold}",
            side("A", first.a),
            side("B", first.b),
        )
    )
