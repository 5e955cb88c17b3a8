"""Generated programs that every backend must run alike."""

from __future__ import annotations

import numpy as np

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import Program, compile_program
from nmtool.network import Input
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

SIGN_MODES = ("mixed", "excitatory", "inhibitory")


def make_program(seed: int, *, recurrent: bool = True, delays: int = 5) -> Program:
    """A random program: two inputs' worth of kinds, loops, skips, delays, biases, all formats."""
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(int(rng.integers(1, 4)))]
    populations = {name: _population(rng, delays) for name in names}
    sizes = {"input": int(rng.integers(1, 9)), **{n: p.size for n, p in populations.items()}}
    ends = [("input" if i == 0 else names[i - 1], name) for i, name in enumerate(names)]
    if len(names) > 1:
        ends.append(("input", names[-1]))
    if recurrent:
        ends += [(names[0], names[0]), (names[-1], names[0])]
    projections = {
        f"j{i}": _projection(rng, source, target, sizes, delays)
        for i, (source, target) in enumerate(ends)
    }
    network = QuantizedNetwork(
        "generated",
        "loihi2",
        {"input": Input((sizes["input"],))},
        populations,
        projections,
        (names[-1],),
    )
    return compile_program(network, load_chip("loihi2"), n_steps=20)


def make_spikes(program: Program, seed: int, samples: int, steps: int) -> SpikeTrain:
    """Random input spikes of a random density."""
    rng = np.random.default_rng([seed, 1])
    size = program.network.inputs["input"].size
    return SpikeTrain.from_raster(rng.random((samples, size, steps)) < rng.uniform(0.05, 0.9))


def _population(rng: np.random.Generator, delays: int) -> QuantizedPopulation:
    size = int(rng.integers(1, 12))
    return QuantizedPopulation(
        (size,),
        decay_u=int(rng.choice([0, 1, 1023, 4095, int(rng.integers(0, 4096))])),
        decay_v=int(rng.choice([0, 123, 4095, int(rng.integers(0, 4096))])),
        threshold=int(rng.choice([0, 80, 400, 131071])),
        bias_mantissa=rng.integers(-4096, 4096, size) * int(rng.integers(0, 2)),
        bias_exponent=int(rng.integers(0, 8)),
        axonal_delay=int(rng.integers(0, delays // 2 + 1)),
    )


def _projection(
    rng: np.random.Generator, source: str, target: str, sizes: dict[str, int], delays: int
) -> QuantizedProjection:
    mode = str(rng.choice(SIGN_MODES, p=[0.6, 0.2, 0.2]))
    bits = int(rng.choice([1, 2, 3, 4, 5, 6, 8]))
    plain = SynapseFormat(bits, 0, mode)  # type: ignore[arg-type]
    low = -int(np.log2(plain.step))
    format = SynapseFormat(bits, int(rng.integers(max(low, -7), 8)), mode)  # type: ignore[arg-type]
    shape = (sizes[target], sizes[source])
    levels = rng.integers(format.minimum // format.step, format.maximum // format.step + 1, shape)
    longest = delays - delays // 2
    delay = rng.integers(0, longest + 1, shape) if rng.random() < 0.5 else longest
    return QuantizedProjection.dense(source, target, levels * format.step, format, delay)
