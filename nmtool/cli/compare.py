"""nmtool compare: where two recordings, backends, or the trainer and a backend part."""

from __future__ import annotations

import click

from nmtool import formats
from nmtool.backends import Recording
from nmtool.cli.common import FILE, Options, emit, table, verb, warn
from nmtool.cli.deploy import thresholds
from nmtool.cli.operands import Operands, check_same_input, check_same_program
from nmtool.cli.runs import input_options
from nmtool.compiler import Program
from nmtool.errors import CheckFailed
from nmtool.measure import Agreement, Difference, compare, joined


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

    A and B are each a recording or golden run (FILE.h5), a target (name or FILE.yaml, with
    --program), the trainer's integer forward pass (trainer:RUN), or a netx file run by netx's own
    loader (netx:FILE.net, with --program).
    """
    loaded: Program | None = formats.load_as(program, Program) if program else None
    source = Operands(loaded, data, input_files, encode, options)
    source.refuse_unused_input((a, b))
    source.adopt((a, b))
    if options.dry_run:
        source.check(a)
        source.check(b)
        emit(options, "compare", {"dry_run": True}, f"{a} and {b} would be compared")
        return
    source.prepare((a, b))
    parts = source.parts((a, b))
    result = joined([(begin, _compared(a, b, part)) for begin, part in parts])
    if result.missing:
        warn(f"not compared, recorded on one side only: {', '.join(result.missing)}")
    emit(options, "compare", {"a": a, "b": b, **result.as_json()}, _text(a, b, result))
    if not result.equal:
        raise CheckFailed(f"{a} and {b} differ")


def _compared(a: str, b: str, source: Operands) -> Agreement:
    """The agreement of A and B on the samples of ``source``."""
    left, right = source.recording(a), source.recording(b)
    check_same_program(a, left, b, right, source.program)
    check_same_input({a: left, b: right})
    known = thresholds(source.program) if source.program else _recorded_thresholds(left, right)
    return compare(left, right, [*known] or None, known)


def _recorded_thresholds(*recordings: Recording) -> dict[str, int | None]:
    """Thresholds by population, in data-flow order, from the first recording that has them."""
    known = (recording.provenance.get("state_thresholds") for recording in recordings)
    return next((dict(found) for found in known if found), {})


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
