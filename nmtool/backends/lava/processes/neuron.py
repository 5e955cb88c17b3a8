"""LIF neurons held at reset between samples, which record what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.proc.lif.models import PyLifModelBitAcc
from lava.proc.lif.process import LIF


class HeldLIF(LIF):
    """Lava's LIF, with the parameter ``tape`` (:class:`nmtool.backends.lava.shared.Tape`)."""


class HeldLifModel(PyLifModelBitAcc):
    """Lava's bit-accurate LIF model, its arithmetic unmodified.

    Between samples it receives, so that nothing stays in flight, and neither integrates nor
    sends: a reset alone would leave spikes on their way into the next sample.
    """

    # Protocol, resources and tags are inherited; Lava's decorators refuse a subclass.
    implements_process = HeldLIF

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.tape = proc_params["tape"]

    def run_spk(self) -> None:
        """One step: Lava's own, or a hold."""
        row = self.tape.timeline.row(self.time_step)
        if row >= 0:
            super().run_spk()
            self.tape.record(row, self.s_out_buff, self.u, self.v)
        else:
            self.a_in.recv()
            self.u[:] = 0
            self.v[:] = 0
            self.s_out.send(np.zeros(self.u.shape, np.int32))
        self.tape.reached[0] = self.time_step
