"""nmtool bisect: the first difference of two runs, its cause, and a small input that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from nmtool import formats
from nmtool.backends import Recording
from nmtool.backends.base import QUANTITIES, input_batch
from nmtool.cli.common import FILE, Options, emit, note, progress, refuse_same, table, verb, warn
from nmtool.cli.operands import Operands, Runner, check_same_input, check_same_program
from nmtool.cli.runs import input_options
from nmtool.compiler import Program
from nmtool.errors import CheckFailed, UsageError
from nmtool.formats.container import refuse_overwrite
from nmtool.measure import compare
from nmtool.network import counted
from nmtool.provenance import provenance
from nmtool.regression.bisect import Bisection, Inputs, bisect, cut_recording, smallest_input
from nmtool.regression.golden import Golden, save_golden


@click.command("bisect")
@click.argument("a")
@click.argument("b")
@click.option("--program", type=FILE, help="Program that both sides ran or run.")
@input_options
@click.option(
    "--before",
    type=FILE,
    metavar="PROGRAM.h5",
    help="The program whose weights were on the target before the last write.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Replay file: a golden run of the smallest input that shows it.",
)
@verb
def command(
    a: str,
    b: str,
    program: str | None,
    data: str | None,
    input_files: tuple[str, ...],
    encode: bool,
    before: str | None,
    output: str | None,
    options: Options,
) -> None:
    """Find where B first departs from A, and why; exit 1 where they differ, 0 where not.

    A and B are each a recording or golden run (FILE.h5), a target (name or FILE.yaml), the
    trainer's forward pass (trainer:RUN), or a netx file that netx's own loader runs in Lava
    (netx:FILE.net, with a program of the same layers). Program and input come from --program and
    --data or --input, or from a golden run.
    """
    loaded: Program | None = formats.load_as(program, Program) if program else None
    earlier: Program | None = formats.load_as(before, Program) if before else None
    operands = Operands(loaded, data, input_files, encode, options)
    operands.adopt((a, b))
    if operands.program is None:
        raise UsageError("bisect: found no program; add --program, or a golden run as A or B")
    chosen = operands.program
    if output:
        refuse_same(
            [output], [a, b, program, before, *(name.rpartition("=")[2] for name in input_files)]
        )
        refuse_overwrite(Path(output), options.force)
    if options.dry_run:
        operands.check(a)
        operands.check(b)
        emit(options, "bisect", {"dry_run": True}, f"{a} and {b} would be compared")
        return
    operands.prepare((a, b))
    inputs = operands.inputs(chosen)
    left, right = operands.recording(a), operands.recording(b)
    for operand, run in ((a, left), (b, right)):
        _check_probes(operands, operand, run)
    check_same_program(a, left, b, right, chosen)
    steps = max(left.n_steps, right.n_steps)
    check_same_input(
        {a: left, b: right}, input_batch(chosen, inputs, None if inputs else steps).sha256
    )
    found = bisect(chosen, inputs, left, right, earlier)
    if found is None:
        common = _compared(left, right)
        text = f"A: {a}\nB: {b}\nequal in {', '.join(common)}"
        emit(options, "bisect", {"equal": True, "a": a, "b": b, "compared": common}, text)
        if output:
            note(options, f"no difference, so {output} was not written")
        return
    document = {"a": a, "b": b, **found.as_json()}
    lines = [_text(a, b, found)]
    if output:
        sides = (operands.runner(a), operands.runner(b))
        if sides[0] is None and found.side == "B":
            # A keeps to the program's equations, and so does the emulator
            sides = (operands.emulated(chosen), sides[1])
        replay = _replay(chosen, inputs, found, left, sides, options)
        save_golden(output, replay)
        spikes = sum(len(train) for train in replay.inputs.values())
        lines.append(
            f"wrote {output}: {spikes} input spikes in "
            f"{counted(range(replay.n_samples), 'sample')} of "
            f"{replay.expected.n_steps} steps, expected is A"
        )
        document["replay"] = {"file": output, "input_spikes": spikes}
    emit(options, "bisect", document, "\n".join(lines))
    raise CheckFailed(f"{a} and {b} differ: {_headline(found)}")


def _compared(left: Recording, right: Recording) -> list[str]:
    """The quantities that both sides have of some population."""
    return [q for q in QUANTITIES if set(getattr(left, q)) & set(getattr(right, q))]


def _check_probes(operands: Operands, operand: str, run: Recording) -> None:
    """Warn where a board gives other outputs when everything is probed."""
    light = operands.lightly_probed(operand)
    if light is not None and not compare(light, run).equal:
        warn(
            f"{operand}: with all populations probed its outputs differ from those with only the "
            "outputs probed: probes change what runs there; what follows is about the probed run"
        )


def _replay(
    program: Program,
    inputs: Inputs,
    found: Bisection,
    left: Recording,
    sides: tuple[Runner | None, Runner | None],
    options: Options,
) -> Golden:
    """The smallest input that still shows the difference, with what A makes of it."""
    run_a, run_b = sides
    shows: Callable[[Inputs], bool] | None = None
    if run_a and run_b:
        one, other = run_a, run_b

        def shows(trial: Inputs) -> bool:
            ours, theirs = one(trial), other(trial)
            return ours.n_steps != theirs.n_steps or not compare(ours, theirs, program.order).equal

    with progress(options, "look for the smallest input"):
        smallest, tried = smallest_input(inputs, found, shows)
    if shows is None:
        note(options, "the input was cut, not made smaller: that needs a target or netx file as B")
    elif not tried:
        warn("the difference does not show again on the cut input; the replay file may not show it")
    expected = run_a(smallest) if run_a else cut_recording(left, found)
    # The trainer and netx run no program; the golden run holds the program to what they give.
    expected = replace(expected, fingerprint=program.fingerprint)
    facts = provenance(
        bisect={"population": found.population, "step": found.step, "expected": expected.backend}
    )
    return Golden(program, smallest, expected, None, ("exact",), _headline(found), facts)


def _headline(found: Bisection) -> str:
    place = f"{found.population}, sample {found.sample}, step {found.step}, neuron {found.neuron}"
    own = [d.causes[0] for d in found.neurons if d.neuron == found.neuron and d.causes]
    causes = [*own, *found.causes]
    return f"{place}: {causes[0].kind}" if causes else place


def _text(a: str, b: str, found: Bisection) -> str:
    lines = [
        f"A: {a}",
        f"B: {b}",
        f"first difference: population {found.population}, sample {found.sample}, step "
        f"{found.step}, neuron {found.neuron}"
        + ("" if found.threshold is None else f", threshold {found.threshold}"),
    ]
    if found.side:
        lines.append(f"{found.side} departs from the program's equations there")
    moments = [(m.side, m.step, m.spike, _shown(m.u), _shown(m.v)) for m in found.moments]
    lines += ["", table(("side", "step", "spike", "u", "v"), moments)]
    if found.arrivals:
        rows = [
            (x.projection, x.source, x.neuron, x.sent_at, x.mantissa, x.weight)
            for x in found.arrivals
        ]
        header = ("projection", "source", "neuron", "sent at step", "mantissa", "weight")
        lines += ["", "what reached it in that step:", table(header, rows)]
    lines.append("")
    listed = {d.neuron for d in found.neurons} if len(found.neurons) > 1 else set()
    for cause in found.causes:
        if not cause.neurons or not listed.issuperset(cause.neurons):
            lines.append(f"likely cause: {cause.kind}: {cause.words}")
    if listed:
        lines += _neurons(found)
    lines += [f"note: {text}" for text in found.notes]
    if found.departing:
        counts = ", ".join(f"{count} of {name}" for name, count in found.departing.items())
        lines.append(f"neurons that depart in all: {counts}")
    return "\n".join(lines)


def _neurons(found: Bisection) -> list[str]:
    """The neurons that depart of themselves, one by one."""
    rows = [
        (d.neuron, d.step, d.causes[0].kind if d.causes else "unknown", d.sure)
        for d in found.neurons
    ]
    words = [cause.words for d in found.neurons for cause in d.causes[:1]]
    header = ("neuron", "from step", "likely cause", "how sure")
    place = f"the first neurons of {found.population} that depart, one by one:"
    return ["", place, table(header, rows), *(f"  {text}" for text in words), ""]


def _shown(value: int | None) -> str:
    return "not measured" if value is None else str(value)
