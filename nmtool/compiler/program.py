"""Program: a QuantizedNetwork made ready for a chip, and what a run of it needs to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmtool.compiler.fit import Fit
from nmtool.compiler.place import Placement
from nmtool.designrules import Violation
from nmtool.errors import ConfigError
from nmtool.fixedpoint import IntArray
from nmtool.network import counted, data_flow
from nmtool.quantization import QuantizedNetwork, StateBound

FINGERPRINT_LENGTH = 16


@dataclass(frozen=True)
class ResetSchedule:
    """How samples are kept apart in one long run.

    Every ``n_steps`` steps of a sample are followed by ``hold`` steps in which the reset is held:
    spikes in flight drain, and all u and v stay 0.
    """

    n_steps: int
    hold: int

    @property
    def period(self) -> int:
        """Steps from the start of one sample to the start of the next."""
        return self.n_steps + self.hold


@dataclass(frozen=True, eq=False)
class Program:
    """What is loaded onto a target.

    ``placement`` says which slice of which population is on which core, ``fit`` what that takes of
    the chip; neither changes a spike.
    ``latency`` is the number of steps from an input spike to the first output spike it can cause.
    ``bounds`` are the worst-case states within one sample. The fingerprint covers everything that
    decides a spike, so two programs with one fingerprint give the same spikes.
    ``simulators_only`` names the values that no chip register holds, and what would take their
    place on one; simulators run them as written. ``warnings`` are the design rules that say what
    may go wrong on the chip.
    """

    network: QuantizedNetwork
    chip: str
    reset: ResetSchedule
    latency: int
    bounds: tuple[StateBound, ...] = ()
    simulators_only: tuple[str, ...] = ()
    warnings: tuple[Violation, ...] = ()
    placement: Placement = ()
    fit: Fit | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The populations in data-flow order."""
        net = self.network
        return tuple(data_flow(net.inputs, net.populations, net.projections))

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over all integers of the program."""
        digest = hashlib.sha256()
        for item in _content(self):
            if isinstance(item, np.ndarray):
                digest.update(str(item.shape).encode())
                digest.update(np.ascontiguousarray(item, dtype="<i8").tobytes())
            else:
                digest.update(json.dumps(item, sort_keys=True, default=int).encode() + b"\0")
        return digest.hexdigest()[:FINGERPRINT_LENGTH]

    def __repr__(self) -> str:
        net = self.network
        return (
            f"Program({self.fingerprint}, {self.chip}, {counted(net.populations, 'population')}, "
            f"{counted(net.projections, 'projection')}, latency {self.latency})"
        )

    def with_weights(self, mantissas: Mapping[str, IntArray]) -> Program:
        """The same program with other weights in the same synapse formats.

        Raises:
            ConfigError: no such projection, or mantissas of another shape.
            FitError: a mantissa that the frozen format of its projection cannot hold.
        """
        projections = dict(self.network.projections)
        for name, mantissa in mantissas.items():
            if name not in projections:
                raise ConfigError(
                    f"with_weights: found the projection {name!r}, allowed {', '.join(projections)}"
                )
            projections[name] = projections[name].with_mantissa(mantissa, name)
        return replace(self, network=replace(self.network, projections=projections))


def _content(program: Program) -> list[Any]:
    net = program.network
    content: list[Any] = ["nmtool.program/v2", program.chip, list(net.outputs)]
    content.append([program.reset.n_steps, program.reset.hold])
    for name, source in sorted(net.inputs.items()):
        content.append([name, *_plain(source).values()])
    for name, p in sorted(net.populations.items()):
        content += [name, *_plain(p).values()]
    for name, j in sorted(net.projections.items()):
        content += [name, j.source, j.target, _plain(j.format), np.asarray(j.delay)]
        for operation in j.operations:
            content += [type(operation).__name__, *_plain(operation).values()]
    for section in (net.data, net.readout):
        content.append(section.model_dump(mode="json") if section else None)
    return content


def _plain(item: Any) -> dict[str, Any]:
    """The fields of a dataclass in their order; arrays stay arrays."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return {key: _plain(v) if is_dataclass(v) else v for key, v in values.items()}
