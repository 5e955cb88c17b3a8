"""The sides of a comparison: recordings, golden runs, targets, the trainer, and netx files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from nmtool import formats
from nmtool.backends import Recording, check_runnable, resolve_probe
from nmtool.backends.base import input_batch
from nmtool.chip import HardwareConfig, chip_called, load_chip, load_hardware
from nmtool.cli.common import Options, progress, warn
from nmtool.cli.deploy import run
from nmtool.cli.netx_operand import NetxRunner
from nmtool.cli.runs import Given, Run, gather_input
from nmtool.compiler import Program
from nmtool.errors import ArtifactError, UnsupportedError, UsageError
from nmtool.network import Network
from nmtool.regression.check import digest, run_on, same_input
from nmtool.regression.golden import Golden, is_golden, load_golden
from nmtool.spikes import SpikeTrain
from nmtool.training import require_torch

PROBE = "spikes,current,voltage"
TRAINER = "trainer:"
NETX = "netx:"

STATES = 1 << 25
"""The most values of u that are held of one side at a time; a side holds 17 bytes for each."""

Runner: TypeAlias = Callable[[Mapping[str, SpikeTrain]], Recording]
"""Runs something on other inputs."""


class Operands:
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
        self._golden: Golden | None = None
        self._netx: dict[str, NetxRunner] = {}
        self._operands: tuple[str, ...] = ()
        self._part: Given | None = None

    def adopt(self, operands: tuple[str, ...]) -> None:
        """Take the program, if not given, and the input from a golden run among the operands.

        Raises:
            UsageError: options of input beside a golden run.
        """
        self._operands = operands
        for operand in operands:
            if is_file(operand) and is_golden(operand):
                self._golden = self._golden or load_golden(operand)
        if self._golden and any(self._input):
            raise UsageError(
                f"{self._option()}: found it beside a golden run, which has its own input; leave "
                "it out, or give a recording or a target in place of the golden run"
            )
        if self._golden and self._program is None:
            self._program = self._golden.program

    def _option(self) -> str:
        """The option of input that was given."""
        data, files, _, _ = self._input
        return "--data" if data else "--input" if files else "--encode"

    def refuse_unused_input(self, operands: tuple[str, ...]) -> None:
        """Refuse options of input where nothing is run.

        Raises:
            UsageError: all operands are recordings.
        """
        if all(map(is_file, operands)) and any(self._input):
            raise UsageError(
                f"{self._option()}: found it with {' and '.join(operands)}, which are recordings: "
                "nothing is run; leave it out, or give a target in place of one of them"
            )

    @property
    def program(self) -> Program | None:
        """The program that the targets run."""
        return self._program

    def inputs(self, program: Program) -> Mapping[str, SpikeTrain]:
        """What goes into the program."""
        return self._given(program).spikes

    def runner(self, operand: str) -> Runner | None:
        """What runs an operand on other inputs; None for those that nothing can be run on."""
        if operand.startswith(NETX):
            return self._netx_runner(operand).run
        if not _is_target(operand):
            return None
        return _runner(*self._target(operand))

    def emulated(self, program: Program) -> Runner:
        """What runs a program on the emulator of its chip."""
        changes = {"chip": self._chip(program)}
        return _runner(program, load_hardware("emulator").model_copy(update=changes))

    def _chip(self, program: Program) -> str:
        """The chip of a program: of its name, or that of a target or of -s hw.chip."""
        named = next(filter(_is_target, self._operands), "emulator")
        given = load_hardware(named, self._options.hardware_overrides()).chip
        return chip_called(program.chip, given, "-s hw.chip=FILE.yaml")

    def lightly_probed(self, operand: str) -> Recording | None:
        """A run of a board with probes on the outputs only; None for all other operands.

        Probes take resources of a chip and can change where a network is placed on it.
        """
        if not _is_target(operand):
            return None
        program, hardware = self._target(operand)
        if hardware.backend != "lava-loihi":
            return None
        return run_on(program, hardware, self.inputs(program), resolve_probe(program, None))

    def recording(self, operand: str) -> Recording:
        """What an operand gave or gives."""
        if operand.startswith(TRAINER):
            return self._with_digest(self._trainer(self._network(operand)))
        if operand.startswith(NETX):
            return self._netx_recording(operand)
        if is_file(operand):
            return _recorded(operand)
        program, hardware = self._target(operand)
        return run(program, hardware, self._given(program), PROBE, self._options)

    def parts(self, operands: tuple[str, ...]) -> Iterator[tuple[int, Operands]]:
        """The same for parts of the samples that are held at a time, with the first one's number.

        Samples are independent, for there is a reset between them. There is one part with a
        recording among the operands, which is held as a whole, or with invented defects, which
        belong to a sample by its number.
        """
        trained = [self._network(o) for o in operands if o.startswith(TRAINER)]
        owner = self._program or next(iter(trained), None)
        targets = [self._target(o)[1] for o in operands if _is_target(o)]
        if owner is None or any(map(is_file, operands)) or any(t.faults for t in targets):
            yield 0, self
            return
        given, network = self._given(owner), owner if isinstance(owner, Network) else owner.network
        trains = given.spikes.values()
        steps = max((train.n_steps for train in trains), default=1)
        of_one = sum(network.sizes[name] for name in network.populations) * steps
        size = max(1, STATES // max(1, of_one))
        if given.n_samples <= size or not all(train.batched for train in trains):
            yield 0, self
            return
        for begin in range(0, given.n_samples, size):
            part = copy(self)
            part._part = given.select(np.arange(begin, min(begin + size, given.n_samples)))
            yield begin, part

    def prepare(self, operands: tuple[str, ...]) -> None:
        """Read the netx files among the operands, before anything is run.

        Raises:
            UnsupportedError: netx cannot build one.
        """
        for operand in operands:
            if operand.startswith(NETX):
                self._netx_runner(operand)

    def check(self, operand: str) -> None:
        """Everything about an operand that can be checked without running it."""
        if operand.startswith(TRAINER):
            self._only(self._network(operand))
        elif operand.startswith(NETX):
            self._given(self._netx_runner(operand).program)
        elif is_file(operand):
            _recorded(operand)
        else:
            program, hardware = self._target(operand)
            check_runnable(program, hardware)
            self._given(program)

    def _target(self, operand: str) -> tuple[Program, HardwareConfig]:
        hardware = load_hardware(operand, self._options.hardware_overrides())
        if self._program is None:
            raise UsageError(f"{operand}: a target needs --program, which it runs")
        return self._program, hardware

    def _netx_runner(self, operand: str) -> NetxRunner:
        """The one child process in which a netx file is run."""
        if self._program is None:
            raise UsageError(
                f"{operand}: needs --program, a program of the same layers (nmtool compile "
                "FILE.net)"
            )
        if operand not in self._netx:
            chip = load_chip(self._chip(self._program))
            file, overrides = operand.removeprefix(NETX), self._options.hardware_overrides()
            made = NetxRunner(file, self._program, chip, overrides)
            self._netx[operand] = made
            for line in made.notes:
                warn(f"{operand}: {line}")
        return self._netx[operand]

    def _netx_recording(self, operand: str) -> Recording:
        runner = self._netx_runner(operand)
        given = self._given(runner.program)
        with progress(self._options, f"run {operand} in Lava") as update:
            return runner.run(given.spikes, update)

    def _network(self, operand: str) -> Network:
        path = Path(operand.removeprefix(TRAINER))
        network: Network = formats.load_as(Run(path).network if path.is_dir() else path, Network)
        return network

    def _given(self, owner: Program | Network) -> Given:
        if self._part is not None:
            return self._part
        if self._golden and not any(self._input):
            golden = self._golden
            return Given(golden.inputs, golden.labels, "the golden run")
        return gather_input(owner, *self._input)

    def _trainer(self, network: Network) -> Recording:
        chip = load_chip(self._chip(self._program) if self._program else "loihi2")
        projections = self._program.network.projections if self._program else {}
        bits = {p.weight_bits for p in projections.values()}
        if bits - {network.weight_bits}:
            warn(
                f"the trainer's weights have {network.weight_bits} bits, those of the program "
                f"{', '.join(map(str, sorted(bits)))}: other integers, so other spikes"
            )
        with progress(self._options, "run the trainer's forward") as update:
            require_torch()
            from nmtool.training.record import record

            return record(network, chip, self._only(network), update)

    def _with_digest(self, run: Recording) -> Recording:
        """The trainer's run with the digest of its input, as the program's runs have it."""
        if self._program is None:
            return run
        found = input_batch(self._program, self._given(self._program).spikes, run.n_steps).sha256
        return replace(run, provenance={**run.provenance, "input_sha256": found})

    def _only(self, network: Network) -> SpikeTrain:
        """What goes into a network with one input, all that the trainer runs."""
        spikes = self._given(network).spikes
        if len(spikes) != 1:
            raise UnsupportedError(
                f"trainer: found {len(spikes)} inputs ({', '.join(spikes)}), allowed 1"
            )
        return next(iter(spikes.values()))


def _recorded(path: str) -> Recording:
    """The run that a recording or a golden run holds."""
    if is_golden(path):
        golden = load_golden(path)
        facts = {**golden.expected.provenance, "input_sha256": golden.input_sha256}
        return replace(golden.expected, provenance=facts)
    loaded: Recording = formats.load_as(path, Recording)
    return loaded


def _runner(program: Program, hardware: HardwareConfig) -> Runner:
    """What runs a program on a target, with every probe."""
    return lambda inputs: run_on(program, hardware, inputs, resolve_probe(program, PROBE))


def _is_target(operand: str) -> bool:
    """Whether an operand names a target."""
    return not operand.startswith((TRAINER, NETX)) and not is_file(operand)


def is_file(operand: str) -> bool:
    """Whether an operand is a file of nmtool's."""
    return operand.endswith((".h5", ".hdf5")) and not operand.startswith((TRAINER, NETX))


def check_same_input(runs: Mapping[str, Recording], inputs: str | None = None) -> None:
    """Refuse recordings of different inputs, or of another than the digest that is given.

    Raises:
        ArtifactError: their digests differ.
    """
    known = {name: digest(run) for name, run in runs.items()}
    if inputs is not None:
        known["--input or --data"] = inputs
    if text := same_input(known):
        warn(text)


def check_same_program(
    a: str, left: Recording, b: str, right: Recording, program: Program | None = None
) -> None:
    """Refuse recordings of different programs, or of another than the one that is given.

    Raises:
        ArtifactError: their fingerprints differ.
    """
    known = {left.fingerprint, right.fingerprint} - {""}
    if len(known) > 1:
        raise ArtifactError(
            f"{a} ran the program {left.fingerprint}, {b} ran {right.fingerprint}: "
            "recordings of different programs are not compared"
        )
    for name, side in ((a, left), (b, right)):
        if program and side.fingerprint and side.fingerprint != program.fingerprint:
            raise ArtifactError(
                f"{name} ran the program {side.fingerprint}, --program is {program.fingerprint}: "
                "give the program that it ran"
            )
