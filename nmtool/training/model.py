"""What both engines share: which networks can be trained, in what order, and their weights."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nmtool.chip import ChipSpec
from nmtool.config import Device, Engine, Noise, Surrogate
from nmtool.errors import UnsupportedError
from nmtool.network import Network, Projection, beyond_cuba, shapes
from nmtool.operations import Chain, Scale, Shape, count_weighted, weighted
from nmtool.quantization import STATE_SCALE, QuantizedProjection
from nmtool.training.learned import Learned
from nmtool.training.noise import Draw
from nmtool.training.recipe import WEIGHTS_ONLY, Recipe, check_recipe, without_own_delays

States: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Reach: TypeAlias = tuple[float, float]
"""The largest |u| and |v| of a population, in the chip's units."""
Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]


def make_model(
    network: Network,
    chip: ChipSpec,
    surrogate: Surrogate,
    engine: Engine,
    noise: Noise | None = None,
    recipe: Recipe = WEIGHTS_ONLY,
) -> Model:
    """The network in an engine: ``event``, nmtool's compiled one, or ``slayer``, lava-dl's blocks.

    Raises:
        UnsupportedError: a network that cannot be trained.
        FitError: a parameter that the chip cannot hold.
        DependencyError: lava-dl is missing (slayer).
    """
    if engine == "slayer":
        from nmtool.training.slayer import SlayerNetwork

        return SlayerNetwork(network, chip, surrogate, noise, recipe)
    from nmtool.training.engine import EventNetwork

    return EventNetwork(network, chip, surrogate, noise, recipe)


@contextlib.contextmanager
def reproducible(device: Device = "cpu") -> Iterator[None]:
    """One thread and deterministic kernels: the same bits whatever the machine's cores do.

    Networks of this size gain nothing from a second thread, and lose much when cores are busy. With
    CUDA this is not promised: torch has no deterministic kernel of a pool's gradient there, and
    warns.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    torch.set_flush_denormal(True)
    gc.freeze()  # what is there already need not be looked through at every collection
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_flush_denormal(False)


@dataclass(frozen=True, eq=False)
class Synapses:
    """A projection as it is trained.

    Attributes:
        name: of the projection.
        source, target: names.
        operations: the chain.
        shape: of the source.
        delay: steps from a spike of the source to its arrival: one, the projection's delay and
            the source's axonal delay.
        trained: whether its weights are parameters. A ``Scale``, and a chain without weights
            (whose weight is 1), are fixed, as those of SLAYER's pool block are.
    """

    name: str
    source: str
    target: str
    operations: Chain
    shape: Shape
    delay: int
    trained: bool


@dataclass(frozen=True, eq=False)
class Stage:
    """Populations that run together: one, or all of a loop.

    ``incoming`` come from inputs and earlier stages, ``within`` from the stage itself.
    """

    populations: tuple[str, ...]
    incoming: tuple[Synapses, ...]
    within: tuple[Synapses, ...]


def stages(network: Network) -> tuple[Stage, ...]:
    """The stages of a network, each after those that feed it.

    Raises:
        UnsupportedError: names the input, population or projection that cannot be trained, what
            was found and what is allowed.
    """
    _check(network)
    synapses = [_synapses(network, name) for name in network.projections]
    return tuple(
        Stage(
            loop,
            tuple(s for s in synapses if s.target in loop and s.source not in loop),
            tuple(s for s in synapses if s.target in loop and s.source in loop),
        )
        for loop in _ordered(network)
    )


def _check(network: Network) -> None:
    for problem in beyond_cuba(network.inputs, network.populations):
        raise UnsupportedError(f"{problem} in training")
    for name, projection in network.projections.items():
        if np.ndim(projection.delay):
            raise UnsupportedError(
                f"projection {name}: found a delay for each synapse, training allows one for all"
            )
        if (found := count_weighted(projection.operations)) > 1:
            raise UnsupportedError(
                f"projection {name}: found {found} operations with weights, training allows one "
                "(a population between them has weights on both sides)"
            )
    fed = {projection.target for projection in network.projections.values()}
    for name in network.populations:
        if name not in fed:
            raise UnsupportedError(
                f"population {name}: found no projection into it, training allows one or more"
            )
    if len(network.inputs) != 1:
        raise UnsupportedError(f"network: found {len(network.inputs)} inputs, training allows 1")
    if not trained(network):
        raise UnsupportedError(
            "network: found no weights to train, allowed dense, sparse or convolutional weights in "
            "one projection or more"
        )


def is_trained(projection: Projection | QuantizedProjection) -> bool:
    """Whether training changes the weights of a projection; see ``Synapses``."""
    has_weights = count_weighted(projection.operations) == 1
    return has_weights and not isinstance(weighted(projection.operations), Scale)


def trained(network: Network) -> tuple[str, ...]:
    """The projections whose weights training changes."""
    return tuple(name for name, p in network.projections.items() if is_trained(p))


def _synapses(network: Network, name: str) -> Synapses:
    projection = network.projections[name]
    source = network.populations.get(projection.source)
    return Synapses(
        name,
        projection.source,
        projection.target,
        projection.operations,
        shapes(network.inputs, network.populations)[projection.source],
        1 + int(projection.delay) + (int(source.axonal_delay) if source else 0),
        is_trained(projection),
    )


def _ordered(network: Network) -> list[tuple[str, ...]]:
    """The populations, those of a loop together, each after those that feed it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = [*network.populations]
    edges = [
        (names.index(p.source), names.index(p.target))
        for p in network.projections.values()
        if p.source in network.populations
    ]
    source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (source, target)), (len(names), len(names)))
    loop = connected_components(graph, connection="strong")[1]
    before: dict[int, set[int]] = {int(k): set() for k in loop}
    for one, other in edges:
        if loop[one] != loop[other]:
            before[int(loop[other])].add(int(loop[one]))
    order = TopologicalSorter(before).static_order()
    return [tuple(n for n, k in zip(names, loop, strict=True) if k == at) for at in order]


class Model(torch.nn.Module):
    """A Network that can be trained: its stages in order, and what training changes.

    An engine adds ``spikes`` and ``states``.

    Raises:
        UnsupportedError: a network that cannot be trained.
    """

    def __init__(self, network: Network, chip: ChipSpec, recipe: Recipe = WEIGHTS_ONLY) -> None:
        super().__init__()
        self.network = network
        self.stages = stages(without_own_delays(network, recipe))
        self.trained = trained(network)
        loops = [name for stage in self.stages if stage.within for name in stage.populations]
        check_recipe(network, recipe, loops)
        self._weights = torch.nn.ParameterList(
            torch.from_numpy(np.array(network.projections[name].weight, np.float32))
            for name in self.trained
        )
        self.learned = Learned(network, self.trained, chip, recipe)

    def forward(
        self,
        x: torch.Tensor,
        populations: Sequence[str] | None = None,
        draw: Draw | None = None,
    ) -> dict[str, torch.Tensor]:
        """Spikes of the populations (all, if none are named) from input spikes.

        Shapes: (samples, neurons, steps), ``x`` (samples, input lines, steps). With a ``draw``
        neurons spike by chance, without one as on the chip.
        """
        names = self.network.populations if populations is None else populations
        return self.spikes(x, tuple(names), draw)

    def spikes(
        self, x: torch.Tensor, populations: tuple[str, ...], draw: Draw | None
    ) -> dict[str, torch.Tensor]:
        """``forward`` of an engine."""
        raise NotImplementedError

    def states(self, x: torch.Tensor) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, in real units."""
        raise NotImplementedError

    def watched(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, Reach]]:
        """Spikes of every population, and how far its states went."""
        states = self.states(x)
        return {name: spikes for name, (spikes, _, _) in states.items()}, reach(states)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def parameter(self, projection: str) -> torch.nn.Parameter:
        """The real weights of a projection before rounding, in the shape of its operation.

        With weight normalisation their direction.
        """
        return self._weights[self.trained.index(projection)]

    def weight(self, projection: str) -> torch.Tensor:
        """The real weights of a projection before rounding."""
        return self.learned.weight(projection, self.parameter(projection))

    def parameters_by_name(self) -> dict[str, torch.nn.Parameter]:
        """All that is learned: weights by projection, then what ``Learned`` names."""
        return {name: self.parameter(name) for name in self.trained} | self.learned.values

    def means(self) -> dict[str, Any]:
        """The running means of populations with batch normalisation."""
        return self.learned.means()

    def reseed(self, seed: int) -> None:
        """Begin dropout's draws anew."""
        self.learned.generator.manual_seed(seed)

    def load(
        self, weights: Mapping[str, Any], means: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Take over what is learned by name, and running means by population."""
        with torch.no_grad():
            for name in self.trained:
                value = np.asarray(weights[name], dtype=np.float32)
                self.parameter(name).copy_(torch.as_tensor(value))
        self.learned.load(weights, means)

    def weights(self) -> Weights:
        """The real weights before rounding of all projections that are trained."""
        return {
            name: self.weight(name).detach().cpu().numpy().astype(np.float32)
            for name in self.trained
        }

    def export(self) -> Network:
        """The network as it is now, of weights, biases, decays and delays only."""
        self.learned.clamp()
        populations = {name: self.learned.population(name) for name in self.network.populations}
        return replace(with_weights(self.network, self.weights()), populations=populations)


def reach(states: Mapping[str, States]) -> dict[str, Reach]:
    """How far the states of populations went."""

    def largest(state: torch.Tensor) -> float:
        return float(state.abs().max()) * STATE_SCALE if state.numel() else 0.0

    return {name: (largest(u), largest(v)) for name, (_, u, v) in states.items()}


def with_weights(network: Network, weights: Mapping[str, Any]) -> Network:
    """The same network with other real weights of the projections that are named."""
    projections = {
        name: p.with_weight(weights[name]) if name in weights else p
        for name, p in network.projections.items()
    }
    return replace(network, projections=projections)
