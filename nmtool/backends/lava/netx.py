"""netx files run by netx's own loader (``lava.lib.dl.netx.hdf5.Network``) in a child process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nmtool.operations import Shape

Feed = Literal["spikes", "value", "bias"]


@dataclass(frozen=True)
class NetxLayer:
    """A layer with neurons: its name in nmtool, its shape, and whether it sends messages."""

    name: str
    shape: Shape
    graded: bool

    @property
    def size(self) -> int:
        """How many neurons it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class NetxJob:
    """A file, the arguments of netx's Network, and what is expected of it.

    ``feed``: the input enters as spikes or messages (``spikes``), as the value of the first layer's
    delta neurons (``value``), or as its bias mantissa (``bias``). Every sample of ``n_steps`` steps
    runs in a network that was built anew, so that it starts from reset.
    """

    file: str
    feed: Feed
    layers: tuple[NetxLayer, ...]
    samples: int
    n_steps: int
    num_layers: int | None = None
    skip_layers: int = 0
    input_shape: Shape | None = None
    reset_interval: int | None = None
    reset_offset: int = 0
    spike_exp: int = 6


def netx_job(body: Mapping[str, Any]) -> NetxJob:
    """A job from its JSON body."""
    layers = tuple(NetxLayer(x["name"], tuple(x["shape"]), x["graded"]) for x in body["layers"])
    shape = body["input_shape"]
    return NetxJob(**{**body, "layers": layers, "input_shape": shape and tuple(shape)})
