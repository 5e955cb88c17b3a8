"""Convolutions: Lava's Conv with flat ports, wider types and replaceable weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.conv.process import Conv
from lava.proc.conv.utils import conv, signed_clamp

from nmtool.backends.lava.shared import Refreshing


class ExactConv(Conv):
    """Lava's Conv with flat ports, and with the parameter ``live``: LiveWeights or None.

    Lava's way to connect ports of different shapes does not run with numpy 2.4.
    """

    def __init__(self, *, live: Any, **settings: Any) -> None:
        super().__init__(**settings)
        # Lava's Conv, unlike its Dense, takes no further parameters.
        self.proc_params["live"] = live
        self.s_in = InPort(shape=(math.prod(self.input_shape),))
        self.a_out = OutPort(shape=(math.prod(self.output_shape),))


class ExactConvModel(Refreshing, PyConvModelFixed):
    """Lava's fixed-point Conv model with replaceable weights, flat ports and wider types.

    Lava adds in float64 and casts to the type of the weights, in which a sum beyond 32 bits is
    lost rather than taken modulo 2^24; and it keeps the geometry in 8 bits, in which 128 groups
    do not fit.
    """

    implements_process = ExactConv

    a_buf: Any = LavaPyType(np.ndarray, np.int32, precision=24)
    weight: Any = LavaPyType(np.ndarray, np.int64, precision=8)
    kernel_size: Any = LavaPyType(np.ndarray, np.int32, precision=8)
    stride: Any = LavaPyType(np.ndarray, np.int32, precision=8)
    padding: Any = LavaPyType(np.ndarray, np.int32, precision=8)
    dilation: Any = LavaPyType(np.ndarray, np.int32, precision=8)
    groups: Any = LavaPyType(np.ndarray, np.int32, precision=8)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.input_shape = proc_params["input_shape"]

    def run_spk(self) -> None:
        """One step as Lava's: send the last step's sums, add up this step's spikes."""
        self.refresh()
        self.a_out.send(self.a_buf.reshape(-1))
        s_in = self.s_in.recv().reshape(self.input_shape)
        # Of a payload, too, only the rest modulo 2^24 counts, and float64 holds more sums of it.
        graded = self.num_message_bits.item() > 0
        s_in = signed_clamp(s_in, 24) if graded else s_in.astype(bool)
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups[0]
        self.a_buf = self.clamp_precision(conv(s_in, self.weight, *geometry))

    def put(self, weights: Any) -> None:
        """Store weights, which Lava's Conv neither clips nor truncates."""
        self.weight = weights
