"""Chip models of Dense and DelayDense."""

import os

from lava.magma.core.model.nc.model import AbstractNcProcessModel
from lava.magma.core.resources import Loihi2NeuroCore
from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
from lava.proc.dense.process import DelayDense, Dense

WORDS = os.environ.get("STAND_IN", "").split()

if "no-Dense" not in WORDS:

    class NcModelDense(PyDenseModelBitAcc, AbstractNcProcessModel):
        implements_process = Dense
        required_resources = [Loihi2NeuroCore]
        tags = []


if "no-DelayDense" not in WORDS:

    class NcModelDelayDense(PyDelayDenseModelBitAcc, AbstractNcProcessModel):
        implements_process = DelayDense
        required_resources = [Loihi2NeuroCore]
        tags = []
