"""nmtool: from a spiking network in PyTorch to the integers that run on a neuromorphic chip.

The stages in Python: ``load``, ``save``, ``quantize``, ``compile``, ``open``. Names are imported
when they are first used, so that ``import nmtool`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmtool.api import compile, load, open, quantize, save
    from nmtool.backends.base import Recording, Session
    from nmtool.compiler.program import Program
    from nmtool.errors import NmtoolError
    from nmtool.network import CubaLif, Input, Network, Population, Projection
    from nmtool.quantization import QuantizedNetwork
    from nmtool.spikes import SpikeTrain

__all__ = [
    "CubaLif",
    "Input",
    "Network",
    "NmtoolError",
    "Population",
    "Program",
    "Projection",
    "QuantizedNetwork",
    "Recording",
    "Session",
    "SpikeTrain",
    "compile",
    "load",
    "open",
    "quantize",
    "save",
]

_HOMES = {
    "api": ("compile", "load", "open", "quantize", "save"),
    "backends.base": ("Recording", "Session"),
    "compiler.program": ("Program",),
    "errors": ("NmtoolError",),
    "network": ("CubaLif", "Input", "Network", "Population", "Projection"),
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
