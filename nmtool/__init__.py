"""nmtool: from a spiking network in PyTorch to the integers that run on a neuromorphic chip.

The stages in Python: ``load``, ``save``, ``quantize``, ``compile``, ``open``, ``export``. Names are
imported when they are first used, so that ``import nmtool`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmtool.api import compile, export, load, open, quantize, save
    from nmtool.backends.base import Recording, Session
    from nmtool.compiler.program import Program
    from nmtool.errors import NmtoolError
    from nmtool.network import (
        CubaLif,
        Delta,
        Input,
        Network,
        PeriodicReset,
        Population,
        Projection,
        Sigma,
        SigmaDelta,
    )
    from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool
    from nmtool.quantization import QuantizedNetwork
    from nmtool.spikes import SpikeTrain

__all__ = [
    "Conv",
    "CubaLif",
    "Delta",
    "Dense",
    "Flatten",
    "Input",
    "Network",
    "NmtoolError",
    "PeriodicReset",
    "Population",
    "Program",
    "Projection",
    "QuantizedNetwork",
    "Recording",
    "Scale",
    "Session",
    "Sigma",
    "SigmaDelta",
    "Sparse",
    "SpikeTrain",
    "SumPool",
    "compile",
    "export",
    "load",
    "open",
    "quantize",
    "save",
]

_HOMES = {
    "api": ("compile", "export", "load", "open", "quantize", "save"),
    "backends.base": ("Recording", "Session"),
    "compiler.program": ("Program",),
    "errors": ("NmtoolError",),
    "network": (
        "CubaLif",
        "Delta",
        "Input",
        "Network",
        "PeriodicReset",
        "Population",
        "Projection",
        "Sigma",
        "SigmaDelta",
    ),
    "operations": ("Conv", "Dense", "Flatten", "Scale", "Sparse", "SumPool"),
    "quantization": ("QuantizedNetwork",),
    "spikes": ("SpikeTrain",),
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"nmtool.{module}"), name)
    raise AttributeError(f"module 'nmtool' has no attribute {name!r}")
