"""The program on the host: what it would do, given what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nmtool.chip import ChipSpec
from nmtool.compiler import Program
from nmtool.config import Noise, Surrogate
from nmtool.fixedpoint import BoolArray, IntArray
from nmtool.quantization import (
    QuantizedNetwork,
    QuantizedProjection,
    dequantize,
    dequantize_weights,
)
from nmtool.training.engine import EventNetwork
from nmtool.training.injection import Measured
from nmtool.training.model import Synapses


@dataclass(frozen=True, eq=False)
class Replayed:
    """Spikes of a population, and its voltage before the reset; (samples, neurons, steps)."""

    spikes: BoolArray
    voltage: IntArray


class Twin:
    """A program in the event engine, with the integers that are on the target.

    Measured spikes take the place of the model's: they go on to the targets of a population and
    reset it. So the voltages are those that the deployed weights give from what really arrived.

    Raises:
        UnsupportedError: a network that cannot be trained (``nmtool.training.model.stages``).
    """

    def __init__(
        self, program: Program, chip: ChipSpec, surrogate: Surrogate, noise: Noise | None = None
    ) -> None:
        self.program = program
        self.chip, self.surrogate, self.noise = chip, surrogate, noise
        formats = {name: p.format for name, p in program.network.projections.items()}
        network = dequantize(program.network)
        self.model = EventNetwork(network, chip, surrogate, noise, formats=formats)

    @property
    def network(self) -> QuantizedNetwork:
        """The integers that are on the target."""
        return self.program.network

    @cached_property
    def input(self) -> str:
        """The name of the only input."""
        (name,) = self.network.inputs
        return name

    @cached_property
    def synapses(self) -> tuple[Synapses, ...]:
        """All projections, as they are trained."""
        return tuple(s for stage in self.model.stages for s in stage.incoming + stage.within)

    def deploy(self, program: Program) -> None:
        """Take over the weights that were written to the target."""
        before, self.program = self.program, program
        if before is not program:
            self.model.load({n: _real(program.network.projections[n]) for n in self.model.trained})

    def replay(self, inputs: BoolArray, measured: Mapping[str, Measured]) -> dict[str, Replayed]:
        """What every population did: measured where it was, the model's elsewhere."""
        raster = torch.from_numpy(inputs.astype(np.float32))
        with torch.no_grad():
            run = self.model.run(raster, tuple(self.network.populations), measured=measured)
        return {
            name: Replayed(
                run.spikes[name].swapaxes(1, 2).astype(np.bool_),
                run.voltage[k][..., part].swapaxes(1, 2),
            )
            for k, layer in enumerate(self.model.layers)
            for name, part in layer.slices.items()
        }


def _real(projection: QuantizedProjection) -> object:
    return dequantize_weights(projection.weight_mantissa, projection.format)
