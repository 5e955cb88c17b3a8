"""What both engines share: which networks can be trained, and how they are made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.chip import ChipSpec
from nmtool.config import Engine, Surrogate
from nmtool.errors import UnsupportedError
from nmtool.network import Network, Projection, beyond_dense_cuba

States: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Model(Protocol):
    """A Network that can be trained: a torch module with real weights by projection."""

    network: Network
    feed: dict[str, str]

    def __call__(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Spikes of every population, shape (samples, neurons, steps), from input spikes."""

    def states(self, x: torch.Tensor) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, in real units."""

    def parameter(self, projection: str) -> torch.nn.Parameter:
        """The real weights of a projection before rounding, as many as (target, source)."""

    def train(self, mode: bool = True) -> Any:
        """Switch to training, or back."""

    def load(self, weights: dict[str, Any]) -> None:
        """Take over real weights by projection, shape (target, source)."""

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The real weights by projection, shape (target, source), before rounding."""


def make_model(network: Network, chip: ChipSpec, surrogate: Surrogate, engine: Engine) -> Model:
    """The network in an engine: ``event``, nmtool's compiled one, or ``slayer``, lava-dl's blocks.

    Raises:
        UnsupportedError: a network that the engine cannot train.
        FitError: a parameter that the chip cannot hold.
        DependencyError: lava-dl is missing (slayer).
    """
    if engine == "slayer":
        from nmtool.training.slayer import SlayerNetwork

        return SlayerNetwork(network, chip, surrogate)
    from nmtool.training.events import EventNetwork

    return EventNetwork(network, chip, surrogate)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """One thread and deterministic kernels: the same bits whatever the machine's cores do.

    Networks of this size gain nothing from a second thread, and lose much when cores are busy.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_flush_denormal(False)


def feed(network: Network) -> dict[str, str]:
    """The projection that feeds each population, in data-flow order.

    Raises:
        UnsupportedError: recurrent or converging projections, or more than CUBA neurons, dense
            weights and one delay a projection.
    """
    fed: dict[str, str] = {}
    for problem in beyond_dense_cuba(network.inputs, network.populations, network.projections):
        raise UnsupportedError(f"{problem} in training")
    for name, projection in network.projections.items():
        if projection.target in fed:
            raise UnsupportedError(
                f"projection {name}: found a second projection into {projection.target}, "
                "training allows one for each population"
            )
        fed[projection.target] = name
    for name in network.populations:
        if name not in fed:
            raise UnsupportedError(
                f"population {name}: found no projection into it, training allows one for "
                "each population"
            )
    if len(network.inputs) != 1:
        raise UnsupportedError(f"network: found {len(network.inputs)} inputs, training allows 1")
    return _ordered(network, fed)


def _ordered(network: Network, fed: dict[str, str]) -> dict[str, str]:
    reached, ordered = set(network.inputs), dict[str, str]()
    while len(ordered) < len(fed):
        ready = [
            target
            for target, projection in fed.items()
            if target not in ordered and network.projections[projection].source in reached
        ]
        if not ready:
            raise UnsupportedError(
                f"network: found a loop among {sorted(set(fed) - set(ordered))}, training "
                "allows feed-forward networks"
            )
        ordered.update({target: fed[target] for target in ready})
        reached.update(ready)
    return ordered


def with_weights(network: Network, weights: dict[str, Any]) -> Network:
    """The same network with other real weights by projection."""
    projections: dict[str, Projection] = {
        name: p.with_weight(weights[name]) for name, p in network.projections.items()
    }
    return replace(network, projections=projections)
