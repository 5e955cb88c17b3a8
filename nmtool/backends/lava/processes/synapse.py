"""Dense synapses whose weights can be replaced while Lava is paused.

Lava's ``Var.set`` would send weight after weight, and skip the clipping and truncation that its
models do in their first step. Here the new mantissas lie in shared memory, and the model is told
to do its first step's work again: what is stored is what Lava makes of these mantissas.
"""

from __future__ import annotations

from typing import Any

from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
from lava.proc.dense.process import DelayDense, Dense


class LiveDense(Dense):
    """Lava's Dense, with the parameter ``live``: LiveWeights."""


class LiveDelayDense(DelayDense):
    """Lava's DelayDense, with the parameter ``live``: LiveWeights."""


class _Refreshing:
    """Takes new weights at the start of a step; the arithmetic is that of the class after it."""

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)  # type: ignore[call-arg]
        self.live = proc_params["live"]
        self.generation = 0

    def run_spk(self) -> None:
        """One step of Lava's model, with the weights that are valid now."""
        newest = int(self.live.generation[0])
        if newest != self.generation:
            self.generation = newest
            self.weights = self.live.mantissa.copy()
            self.weights_set = False
        super().run_spk()  # type: ignore[misc]


class LiveDenseModel(_Refreshing, PyDenseModelBitAcc):
    """Lava's bit-accurate Dense model with replaceable weights."""

    # Protocol, resources and tags are inherited; Lava's decorators refuse a subclass.
    implements_process = LiveDense


class LiveDelayDenseModel(_Refreshing, PyDelayDenseModelBitAcc):
    """Lava's bit-accurate DelayDense model with replaceable weights."""

    implements_process = LiveDelayDense
