"""The target as the loop sees it: samples in, what was measured out, all of it counted.

What was not measured is not known, and never silent: neurons that were not probed, steps behind the
end of a recording, populations that were asked for and did not come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmtool.backends.base import Probe, Recording, Session
from nmtool.compiler import Program
from nmtool.config import Finetune
from nmtool.errors import BoardError, ConfigError
from nmtool.fixedpoint import STATE_LIMIT, BoolArray, IntArray
from nmtool.learning.align import Alignment
from nmtool.network import counted
from nmtool.spikes import SpikeTrain
from nmtool.training.injection import Measured


@dataclass
class Spent:
    """What was asked of a target: runs, weights written, seconds that it was busy with runs."""

    runs: int = 0
    writes: int = 0
    seconds: float = 0.0


def busy(recording: Recording) -> float:
    """Seconds that a target took for a run, its failed attempts included, by its own clock."""
    attempts = recording.provenance.get("attempts", ())
    return float(recording.wall_time) + sum(float(attempt["seconds"]) for attempt in attempts)


@dataclass(frozen=True, eq=False)
class Probes:
    """What of a program is measured.

    Attributes:
        spikes: populations whose spikes are recorded; the outputs always are.
        voltage: populations whose voltage is.
        neurons: of a population, those that count as probed, shape (neurons,); all unless named.
    """

    spikes: tuple[str, ...]
    voltage: tuple[str, ...] = ()
    neurons: Mapping[str, BoolArray] = field(default_factory=dict)

    @classmethod
    def everything(cls, program: Program) -> Probes:
        """The spikes of all populations."""
        return cls(program.order)

    @classmethod
    def of(cls, program: Program, config: Finetune, seed: int) -> Probes:
        """Those of a config. Which neurons of hidden populations are probed is drawn from a seed.

        Raises:
            ConfigError: a population that the program does not have.
        """
        outputs = program.network.outputs
        wanted = _wanted(program, config)
        spikes = tuple(name for name in program.order if name in wanted or name in outputs)
        neurons = {
            name: _some(program.network.sizes[name], config.probed, [seed, 5, index])
            for index, name in enumerate(program.order)
            if name in spikes and name not in outputs and config.probed < 1
        }
        return cls(spikes, spikes if config.probe_voltage else (), neurons)

    def asked(self) -> Probe:
        """As ``Session.run`` takes it."""
        return {"spikes": self.spikes, **({"voltage": self.voltage} if self.voltage else {})}


def _wanted(program: Program, config: Finetune) -> tuple[str, ...]:
    if config.probes == "all":
        return program.order
    if config.probes == "outputs":
        return program.network.outputs
    for name in config.probes:
        if name not in program.order:
            raise ConfigError(
                f"finetune.probes: found the population {name!r}, allowed all, outputs, or some of "
                f"{', '.join(program.order)}"
            )
    return tuple(config.probes)


def _some(size: int, share: float, seed: list[int]) -> BoolArray:
    """That share of the neurons, rounded, at least one."""
    chosen = np.zeros(size, dtype=np.bool_)
    count = max(1, round(share * size))
    chosen[np.random.default_rng(seed).permutation(size)[:count]] = True
    return chosen


@dataclass
class Board:
    """A session, and what was spent on it.

    Attributes:
        session: the program on the target.
        probes: what is measured: the spikes of all populations unless given.
        alignment: where recordings lie; as they are unless given.
        spent: goes on from what was spent before.
    """

    session: Session
    probes: Probes | None = None
    alignment: Alignment | None = None
    spent: Spent = field(default_factory=Spent)

    @property
    def program(self) -> Program:
        """The program with the weights that were written."""
        return self.session.program

    def run(self, inputs: BoolArray) -> dict[str, Measured]:
        """What every population that is probed was measured to do, at the model's steps.

        A population that did not come back is missing in the result.

        Raises:
            BoardError: the outputs did not come back, or something that the program cannot do.
        """
        probes = self.probes or Probes.everything(self.program)
        recording = self.session.run(SpikeTrain.from_raster(inputs), probe=probes.asked())
        self.spent.seconds += busy(recording)
        self.spent.runs += 1
        check_recording(recording, self.program, len(inputs), inputs.shape[2])
        measured = {
            name: _measured(recording, name, inputs.shape[2], probes)
            for name in probes.spikes
            if name in recording.spikes
        }
        return self.alignment.apply(measured) if self.alignment else measured

    def write(self, mantissas: Mapping[str, IntArray]) -> int:
        """Write the weights that changed; returns their number."""
        on_board = self.program.network.projections
        changed = {
            name: mantissa
            for name, mantissa in mantissas.items()
            if not np.array_equal(mantissa, on_board[name].weight_mantissa)
        }
        written = sum(self.session.write_weights(n, m) for n, m in changed.items())
        self.spent.writes += written
        return written


def _measured(recording: Recording, name: str, steps: int, probes: Probes) -> Measured:
    """A population as recorded, in samples of so many steps; what was not recorded is not known."""
    raster = recording.spikes[name].batch().astype(np.bool_)
    known = np.zeros((1, raster.shape[1], steps), dtype=np.bool_)
    known[..., : recording.n_steps] = True
    if name in probes.neurons:
        known &= probes.neurons[name][None, :, None]
    spikes = _lengthened(raster, steps) & known
    if name not in probes.voltage or name not in recording.voltage:
        return Measured(spikes, known)
    return Measured(spikes, known, _lengthened(recording.voltage[name], steps))


def _lengthened(values: Any, steps: int) -> Any:
    """Zeros behind the end of a recording."""
    return np.pad(values, ((0, 0), (0, 0), (0, steps - values.shape[2])))


def probed_share(program: Program, measured: Mapping[str, Measured]) -> float:
    """The fraction of all neuron-steps that was measured."""
    total = sum(program.network.sizes[name] for name in program.order)
    return float(
        sum(
            program.network.sizes[name] * float(np.broadcast_to(m.known, m.spikes.shape).mean())
            for name, m in measured.items()
        )
        / total
    )


def check_recording(recording: Recording, program: Program, samples: int, steps: int) -> None:
    """Check that a recording is one of this program and of so many samples and steps.

    Raises:
        BoardError: it is of another program, of other populations, neurons, samples or steps, or
            the outputs are missing.
    """
    what = f"recording of {recording.backend}"
    if recording.fingerprint and recording.fingerprint != program.fingerprint:
        raise _garbage(what, f"the program {recording.fingerprint}", program.fingerprint)
    if not 0 <= recording.n_steps <= steps:
        raise _garbage(what, f"{recording.n_steps} steps of each sample", f"up to {steps}")
    missing = [name for name in program.network.outputs if name not in recording.spikes]
    if missing or not recording.n_steps:
        found = f"no spikes of {', '.join(missing)}" if missing else "no step"
        raise _garbage(what, found, "outputs that are measured: accuracy is counted from them")
    for name, train in recording.spikes.items():
        size = program.network.populations[name].size if name in program.order else None
        if size is None:
            raise _garbage(what, f"the population {name}", ", ".join(program.order))
        if train.payload is not None:
            raise _garbage(f"{what}, {name}", "graded spikes", "spikes")
        shape = (train.n_samples, train.n_neurons, train.n_steps)
        _check_shape(f"{what}, spikes of {name}", shape, (samples, size, recording.n_steps))
    for name, values in recording.voltage.items():
        size = program.network.populations[name].size if name in program.order else 0
        _check_shape(f"{what}, voltage of {name}", values.shape, (samples, size, recording.n_steps))
        if values.size and np.abs(values).max() >= STATE_LIMIT:
            most = int(np.abs(values).max())
            raise _garbage(f"{what}, {name}", f"voltages of {most}", f"up to {STATE_LIMIT - 1}")


def _check_shape(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != wanted:
        raise _garbage(what, _shape(found), _shape(wanted))


def _shape(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"the shape {shape}"
    samples, neurons, steps = shape
    counts = ((samples, "sample"), (neurons, "neuron"), (steps, "step"))
    return ", ".join(counted(range(count), word) for count, word in counts)


def _garbage(what: str, found: str, allowed: str) -> BoardError:
    return BoardError(
        f"{what}: found {found}, allowed {allowed}; the board or what stands for it answers what "
        "was not asked: nothing was learned from it"
    )
