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
    """Lava's Conv with flat ports and two more parameters.

    ``live``: LiveWeights or None; ``bits``: those that sums are kept in, 24 (Lava's) or 32. Lava's
    way to connect ports of different shapes does not run with numpy 2.4.
    """

    def __init__(self, *, live: Any, bits: int, **settings: Any) -> None:
        super().__init__(**settings)
        # Lava's Conv, unlike its Dense, takes no further parameters.
        self.proc_params["live"] = live
        self.proc_params["bits"] = bits
        self.s_in = InPort(shape=(math.prod(self.input_shape),))
        self.a_out = OutPort(shape=(math.prod(self.output_shape),))


class ExactConvModel(Refreshing, PyConvModelFixed):
    """Lava's fixed-point Conv model with replaceable weights, flat ports and wider types.

    Lava adds in float64 and casts to the type of the weights, in which a sum beyond 32 bits is
    lost rather than folded; it keeps sums modulo 2^24, where sigma-delta neurons count modulo
    2^32; and it keeps the geometry in 8 bits, in which 128 groups do not fit.
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
        self.bits = proc_params["bits"]

    def run_spk(self) -> None:
        """One step as Lava's: send the last step's sums, add up this step's spikes."""
        self.refresh()
        self.a_out.send(self.a_buf.reshape(-1))
        s_in = self.s_in.recv().reshape(self.input_shape)
        graded = self.num_message_bits.item() > 0
        total = self._weighted(s_in) if graded else self._convolved(s_in.astype(bool))
        self.a_buf = signed_clamp(total, self.bits).astype(np.int32)

    def _weighted(self, payload: Any) -> Any:
        """The sums of payloads, in two halves: float64 would not hold those of 32 bits."""
        low = signed_clamp(payload.astype(np.int64), 16)
        high = (payload - low) >> 16
        total = self._convolved(low)
        return total + (self._convolved(high) << 16) if high.any() else total

    def _convolved(self, values: Any) -> Any:
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups[0]
        return conv(values, self.weight, *geometry)

    def put(self, weights: Any) -> None:
        """Store weights, which Lava's Conv neither clips nor truncates."""
        self.weight = weights
