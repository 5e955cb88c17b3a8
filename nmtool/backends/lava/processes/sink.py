"""A receiver of spikes that writes into memory shared with the worker."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class SharedSink(AbstractProcess):
    """Keeps what arrives in each step on ``tape``, and nothing of the holds between samples."""

    def __init__(self, *, n: int, tape: Any, name: str) -> None:
        super().__init__(tape=tape, name=name)
        self.a_in = InPort(shape=(n,))


@implements(proc=SharedSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class SharedSinkModel(PyLoihiProcessModel):
    """The only model of SharedSink."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.tape = proc_params["tape"]

    def run_spk(self) -> None:
        """Keep this step's spikes."""
        received = self.a_in.recv()
        row = self.tape.timeline.row(self.time_step)
        if row >= 0:
            self.tape.record(row, received, None, None)
        self.tape.reached[0] = self.time_step
