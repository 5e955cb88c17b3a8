"""LIF neurons held at reset between samples, which record what they do."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.model.py.type import LavaPyType
from lava.proc.lif.models import PyLifModelBitAcc
from lava.proc.lif.process import LIF

from nmtool.fixedpoint import ALIGN_BITS, scaled, shift, wrap


class HeldLIF(LIF):
    """Lava's LIF with more parameters.

    ``tape`` (:class:`nmtool.backends.lava.shared.Tape`); ``biases``, the rasters (rows, n) whose
    rows are added to the bias mantissa; ``reset_interval`` (0 for none) and ``reset_offset``, in
    steps of a sample; ``fold``, whether u is kept modulo 2^24 whatever arrives.
    """


class HeldLifModel(PyLifModelBitAcc):
    """Lava's bit-accurate LIF model, its arithmetic unmodified but for ``fold`` and ``biases``.

    Between samples it receives, so that nothing stays in flight, and neither integrates nor
    sends: a reset alone would leave spikes on their way into the next sample.
    """

    # Protocol, resources and tags are inherited; Lava's decorators refuse a subclass.
    implements_process = HeldLIF

    # Lava's own type, of 16 bits, would wrap larger mantissas without a word.
    bias_mant: Any = LavaPyType(np.ndarray, np.int32, precision=13)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.tape = proc_params["tape"]
        self.biases = proc_params["biases"]
        self.fold = proc_params["fold"]
        self.reset_interval = proc_params["reset_interval"]
        self.reset_offset = proc_params["reset_offset"]
        self.bias_exponent = proc_params["bias_exp"]
        self.row = -1

    def run_spk(self) -> None:
        """One step: Lava's own, or a hold."""
        timeline = self.tape.timeline
        self.row = timeline.row(self.time_step)
        if self.row >= 0:
            if self._resets(timeline.step(self.time_step)):
                self.u[:] = 0
                self.v[:] = 0
            super().run_spk()
            self.tape.record(self.row, self.s_out_buff, self.u, self.v)
        else:
            self.a_in.recv()
            self.u[:] = 0
            self.v[:] = 0
            self.s_out.send(np.zeros(self.u.shape, np.int32))
        self.tape.reached[0] = self.time_step

    def _resets(self, step: int) -> bool:
        interval = self.reset_interval
        return bool(interval) and step % interval == self.reset_offset % interval

    def scale_bias(self) -> None:
        """Lava's own, or this step's bias with what drives it, in 64 bits."""
        if not self.biases:
            super().scale_bias()
            return
        mantissa = self.bias_mant.astype(np.int64)
        for raster in self.biases:
            mantissa += raster[self.row]
        self.effective_bias = shift(mantissa, self.bias_exponent)

    def subthr_dynamics(self, activation_in: Any) -> None:
        """Lava's own, which folds u once into 24 bits.

        That is enough if what is added has been folded beforehand.
        """
        if self.fold:
            activation_in = wrap(scaled(activation_in)) >> ALIGN_BITS
        super().subthr_dynamics(activation_in)
