"""Synapses whose weights can be replaced while Lava is paused, and repairs of Lava's own.

Lava's ``Var.set`` would send weight after weight, and skip the clipping and truncation that its
models do in their first step. Here the new mantissas lie in shared memory, and the model is told
to do its first step's work again: what is stored is what Lava makes of these mantissas.
"""

from __future__ import annotations

from typing import Any

from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.sparse.models import PyDelaySparseModelBitAcc, PySparseModelBitAcc
from lava.proc.sparse.process import DelaySparse, Sparse
from scipy.sparse import csr_matrix

from nmtool.backends.lava.shared import Refreshing


class LiveDense(Dense):
    """Lava's Dense, with the parameter ``live``: LiveWeights."""


class LiveDelayDense(DelayDense):
    """Lava's DelayDense, with the parameter ``live``: LiveWeights."""


class LiveSparse(Sparse):
    """Lava's Sparse, with the parameter ``live``: LiveWeights."""


class FastDelaySparse(DelaySparse):
    """Lava's DelaySparse, with the parameter ``live``: LiveWeights or None."""


class LiveDenseModel(Refreshing, PyDenseModelBitAcc):
    """Lava's bit-accurate Dense model with replaceable weights."""

    # Protocol, resources and tags are inherited; Lava's decorators refuse a subclass.
    implements_process = LiveDense


class LiveDelayDenseModel(Refreshing, PyDelayDenseModelBitAcc):
    """Lava's bit-accurate DelayDense model with replaceable weights."""

    implements_process = LiveDelayDense


class LiveSparseModel(Refreshing, PySparseModelBitAcc):
    """Lava's bit-accurate Sparse model with replaceable weights."""

    implements_process = LiveSparse


class FastDelaySparseModel(Refreshing, PyDelaySparseModelBitAcc):
    """Lava's bit-accurate DelaySparse model with replaceable weights.

    Lava sorts the weights by their delays anew in every step; here once for each set of weights.
    """

    implements_process = FastDelaySparse

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.sorted: Any = None
        self.sorted_from: Any = None

    def get_delay_wgts_mat(self, weights: Any, delays: Any, max_delay: int) -> Any:
        """Lava's own, remembered."""
        if self.sorted_from is not weights:
            self.sorted = csr_matrix(super().get_delay_wgts_mat(weights, delays, max_delay))
            self.sorted_from = weights
        return self.sorted
