"""Chip models of LIF and LIFReset."""

import os
import time
from pathlib import Path

import numpy as np
from lava.magma.core.model.nc.model import AbstractNcProcessModel
from lava.magma.core.resources import Loihi2NeuroCore
from lava.proc.lif.models import PyLifModelBitAcc, PyLifResetModelBitAcc
from lava.proc.lif.process import LIF, LIFReset

WORDS = os.environ.get("STAND_IN", "").split()


class _OnChip:
    reset_interval = 0
    reset_offset = 0

    def run_spk(self):
        self.misbehave()
        arrived = self.a_in.recv().astype(np.int64)
        if self.reset_interval and self.time_step % self.reset_interval == self.reset_offset:
            self.u[:] = 0
            self.v[:] = 0
        self.scale_bias()
        if not self.isthrscaled:
            self.scale_threshold()
        half = 1 << 23
        self.subthr_dynamics(((arrived * 64 + half - 1) % (2 * half) - half + 1) >> 6)
        spikes = self.spiking_activation()
        self.v[spikes] = 0
        self.s_out.send(spikes)
        self.note("u", self.u)
        self.note("v", np.where(spikes, 128, self.v))

    def note(self, name, values):
        probe = self.proc_params.get(f"stand_in_{name}", None)
        if probe is not None:
            count, rows = probe
            rows[count[0]] = values
            count[0] += 1

    def misbehave(self):
        if self.time_step < 3:
            return
        if "hang" in WORDS:
            time.sleep(600)
        if "crash" in WORDS:
            raise RuntimeError("the board is on fire")
        for word in WORDS:
            if word.startswith("crash-once=") and not Path(word[11:]).exists():
                Path(word[11:]).touch()
                raise RuntimeError("the board caught fire once")


if "no-LIF" not in WORDS:

    class NcL2ModelLif(_OnChip, PyLifModelBitAcc, AbstractNcProcessModel):
        implements_process = LIF
        required_resources = [Loihi2NeuroCore]
        tags = []


if "no-LIFReset" not in WORDS:

    class NcL2ModelLifReset(_OnChip, PyLifResetModelBitAcc, AbstractNcProcessModel):
        implements_process = LIFReset
        required_resources = [Loihi2NeuroCore]
        tags = []
