"""Chip models of Sparse and DelaySparse."""

import os

from lava.magma.core.model.nc.model import AbstractNcProcessModel
from lava.magma.core.resources import Loihi2NeuroCore
from lava.proc.sparse.models import PyDelaySparseModelBitAcc, PySparseModelBitAcc
from lava.proc.sparse.process import DelaySparse, Sparse

WORDS = os.environ.get("STAND_IN", "").split()

if "no-Sparse" not in WORDS:

    class NcModelSparse(PySparseModelBitAcc, AbstractNcProcessModel):
        implements_process = Sparse
        required_resources = [Loihi2NeuroCore]
        tags = []


if "no-DelaySparse" not in WORDS:

    class NcModelDelaySparse(PyDelaySparseModelBitAcc, AbstractNcProcessModel):
        implements_process = DelaySparse
        required_resources = [Loihi2NeuroCore]
        tags = []
