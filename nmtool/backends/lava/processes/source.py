"""A spike source that reads from memory shared with the worker."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class SharedSource(AbstractProcess):
    """Sends row after row of ``raster`` (rows, n), and nothing in the holds between samples.

    Unlike Lava's RingBuffer it can be given new rows while Lava is paused, and keeps one byte per
    value where the RingBuffer keeps four.
    """

    def __init__(self, *, n: int, raster: Any, timeline: Any, name: str) -> None:
        super().__init__(raster=raster, timeline=timeline, name=name)
        self.s_out = OutPort(shape=(n,))


@implements(proc=SharedSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SharedSourceModel(PyLoihiProcessModel):
    """The only model of SharedSource."""

    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.raster = proc_params["raster"]
        self.timeline = proc_params["timeline"]

    def run_spk(self) -> None:
        """Send this step's row."""
        row = self.timeline.row(self.time_step)
        if row >= 0:
            self.s_out.send(self.raster[row].astype(np.int32))
        else:
            self.s_out.send(np.zeros(self.raster.shape[1], np.int32))
