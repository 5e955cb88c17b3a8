"""A probe on a layer of a netx network, which leaves the layer as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Tap(AbstractProcess):
    """Keeps what a layer of some shape sends on ``tape``."""

    def __init__(self, *, shape: tuple[int, ...], tape: Any) -> None:
        super().__init__(tape=tape)
        self.a_in = InPort(shape=shape)


class StateTap(Tap):
    """Keeps u and v of LIF neurons as well, read behind every step as Lava's Monitor reads them."""

    def __init__(self, *, shape: tuple[int, ...], tape: Any) -> None:
        super().__init__(shape=shape, tape=tape)
        self.u, self.v = RefPort(shape), RefPort(shape)


class _TapModel(PyLoihiProcessModel):
    """What both models do."""

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.tape = proc_params["tape"]

    def run_spk(self) -> None:
        """Keep this step's spikes or messages."""
        self.tape.spikes[self.tape.timeline.row(self.time_step)] = self.a_in.recv().ravel()
        self.tape.reached[0] = self.time_step


@implements(proc=Tap, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class TapModel(_TapModel):
    """The only model of Tap."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)


@implements(proc=StateTap, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class StateTapModel(_TapModel):
    """The only model of StateTap."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    u: Any = LavaPyType(PyRefPort.VEC_DENSE, np.int32)
    v: Any = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def post_guard(self) -> bool:
        """Read states behind every step."""
        return True

    def run_post_mgmt(self) -> None:
        """Keep the states as the step left them."""
        tape, row = self.tape, self.tape.timeline.row(self.time_step)
        tape.current[row] = self.u.read().ravel()
        tape.voltage[row] = self.v.read().ravel()
