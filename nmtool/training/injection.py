r"""Measured spikes and voltages in place of the model's.

Where a neuron was measured, its spikes are the measured ones: they reset it and go on to its
targets. Where it was not, the model's are. The surrogate derivative, and with it the gradient, is
the model's at the voltage that the measured spikes lead to, or at the measured voltage: forward the
measurement, backward the model (Cramer et al., PNAS 119, 2022; hxtorch).

A voltage probe shows the voltage after the reset. Where a neuron spiked that says nothing of the
voltage that made it spike, and the model's is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nmtool.fixedpoint import BoolArray, IntArray

Array: TypeAlias = npt.NDArray[Any]

ALWAYS, NEVER = np.iinfo(np.int32).min, np.iinfo(np.int32).max
"""Thresholds that every voltage is above, and that none is."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a population was measured to do; shapes (samples, neurons, steps).

    Attributes:
        spikes: where it spiked.
        known: where it was measured; any shape that broadcasts. Nothing is known elsewhere, and
            ``spikes`` says nothing there.
        voltage: v after the step, in chip units; None if it was not probed.
        voltage_known: where it was; any shape that broadcasts.
    """

    spikes: BoolArray
    known: BoolArray
    voltage: IntArray | None = None
    voltage_known: BoolArray | None = None

    @classmethod
    def whole(cls, spikes: BoolArray, voltage: IntArray | None = None) -> Measured:
        """All neurons at all steps."""
        return cls(spikes, np.ones((1, 1, 1), dtype=np.bool_), voltage)

    def steps(self, part: slice) -> Measured:
        """Of some steps only."""
        voltage, where = self.voltage, self.voltage_known
        return Measured(
            self.spikes[..., part],
            _steps(self.known, part),
            None if voltage is None else voltage[..., part],
            None if where is None else _steps(where, part),
        )

    def levels(self, threshold: IntArray) -> Array:
        """Thresholds that give the measured spikes, shape (samples, steps, neurons).

        Where nothing is known they are ``threshold``, shape (neurons,).
        """
        wanted = np.where(self.spikes, np.int32(ALWAYS), np.int32(NEVER))
        levels = np.where(self.known, wanted, threshold.astype(np.int32)[:, None])
        return np.ascontiguousarray(levels.swapaxes(1, 2))

    def put_voltage(self, voltage: Array) -> None:
        """Put the measured voltage into the model's, shape (samples, steps, neurons)."""
        if self.voltage is None:
            return
        seen = self.known & ~self.spikes
        if self.voltage_known is not None:
            seen = seen & self.voltage_known
        np.copyto(
            voltage,
            self.voltage.swapaxes(1, 2),
            where=seen.swapaxes(1, 2),
            casting="same_kind",
        )


def _steps(known: BoolArray, part: slice) -> BoolArray:
    return known if known.shape[-1] == 1 else known[..., part]
