"""Activity: how often every neuron spiked in a recording, for placing by measured traffic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nmtool.compiler.place import Activity
from nmtool.errors import ArtifactError
from nmtool.fixedpoint import IntArray
from nmtool.operations import Shape
from nmtool.spikes import SpikeTrain


def activity(
    trains: Mapping[str, SpikeTrain], populations: Mapping[str, Shape], where: str
) -> Activity:
    """Spikes (or messages) of every neuron over all samples and steps, shape (neurons,).

    ``where`` names the recording in errors.

    Raises:
        ArtifactError: a population that was not recorded, or has another number of neurons.
    """
    found: dict[str, IntArray] = {}
    for name, shape in populations.items():
        size = int(np.prod(shape))
        if name not in trains:
            raise ArtifactError(
                f"{where}: found no spikes of {name}, allowed a recording of all populations; "
                "record one with `nmtool deploy PROGRAM --probe spikes`"
            )
        if trains[name].n_neurons != size:
            raise ArtifactError(
                f"{where}: found {trains[name].n_neurons} neurons of {name}, the network has "
                f"{size}: it is of another network"
            )
        found[name] = np.bincount(trains[name].neuron, minlength=size).astype(np.int64)
    return found
