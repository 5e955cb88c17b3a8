"""Random chips' worth of networks: recurrent, skipping and converging projections, delays, bias."""

import numpy as np
from hypothesis import strategies as st

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import compile_program
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.quantization import (
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    exact_exponents,
)
from nmtool.spikes import SpikeTrain

CHIP = load_chip("loihi2")
BITS = (1, 2, 3, 4, 5, 6, 8)
MODES = ("mixed", "excitatory", "inhibitory")
NAMES = ("zeta", "alpha", "mid", "beta")


def mostly(value, others):
    """One value half of the time, and else another strategy."""
    return st.one_of(st.just(value), others)


@st.composite
def formats(draw):
    bits, mode = draw(st.sampled_from(BITS)), draw(st.sampled_from(MODES))
    return SynapseFormat(bits, draw(st.sampled_from(exact_exponents(bits, mode, CHIP))), mode)


def random_mantissa(format, shape, rng):
    low, high = format.minimum // format.step, format.maximum // format.step
    return rng.integers(low, high + 1, shape) * format.step


@st.composite
def delays(draw, shape, rng, longest):
    kind = draw(st.sampled_from(("none", "one", "each")))
    if kind == "none":
        return 0
    if kind == "one":
        return draw(st.integers(0, longest))
    return rng.integers(0, longest + 1, shape)


@st.composite
def ends(draw, inputs, populations):
    """Sources and targets: a way in, a chain, and any projections beside it."""
    names = [*inputs, *populations]
    pairs = [(draw(st.sampled_from([*inputs])), next(iter(populations)))]
    pairs += list(zip(populations, [*populations][1:], strict=False))
    anything = st.tuples(st.sampled_from(names), st.sampled_from([*populations]))
    return pairs + draw(st.lists(anything, max_size=3))


@st.composite
def quantized_networks(draw, longest=6):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(1, 4)
    inputs = {f"in{k}": Input((draw(sizes),)) for k in range(draw(st.integers(1, 2)))}
    populations = {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        size = draw(sizes)
        populations[name] = QuantizedPopulation(
            (size,),
            draw(mostly(1023, st.sampled_from((0, 1, 4094, 4095)))),
            draw(mostly(128, st.sampled_from((0, 1, 4095)))),
            draw(mostly(200, st.sampled_from((0, 1, 20000, 131071)))),
            rng.integers(-4096, 4096, size) * draw(st.integers(0, 1)),
            draw(st.integers(0, 7)),
            draw(mostly(0, st.integers(0, 3))),
        )
    projections = {}
    for k, (source, target) in enumerate(draw(ends(inputs, populations))):
        format = draw(formats())
        shape = (populations[target].size, {**inputs, **populations}[source].size)
        projections[f"p{k}"] = QuantizedProjection.dense(
            source,
            target,
            random_mantissa(format, shape, rng),
            format,
            draw(delays(shape, rng, longest)),
        )
    return QuantizedNetwork("drawn", CHIP.name, inputs, populations, projections, (name,))


@st.composite
def programs(draw, n_steps=20, longest=6):
    return compile_program(draw(quantized_networks(longest)), CHIP, n_steps=n_steps)


@st.composite
def networks(draw):
    """A Network in real numbers that the chip can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(1, 4)
    decays = st.floats(1 / 4096, 4095 / 4096)
    inputs = {f"in{k}": Input((draw(sizes),)) for k in range(draw(st.integers(1, 2)))}
    populations = {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        size = draw(sizes)
        neuron = CubaLif(draw(st.floats(0, 2047)), draw(decays), draw(decays))
        bias = draw(mostly(None, st.floats(-100, 100).map(lambda b, n=size: rng.normal(b, 1, n))))
        populations[name] = Population((size,), neuron, bias, draw(st.integers(0, 3)))
    projections = {}
    for k, (source, target) in enumerate(draw(ends(inputs, populations))):
        shape = (populations[target].size, {**inputs, **populations}[source].size)
        projections[f"p{k}"] = Projection.dense(
            source, target, draw(real_weights(shape)), draw(delays(shape, rng, 6))
        )
    bits = draw(st.sampled_from(BITS))
    return Network("drawn", inputs, populations, projections, (name,), weight_bits=bits)


@st.composite
def real_weights(draw, shape=None):
    """Mixed, one-signed and all-zero weights over many orders of magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = shape or (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    weight = rng.normal(0, 10.0 ** draw(st.integers(-4, 2)), shape)
    kind = draw(st.sampled_from(("mixed", "mixed", "positive", "negative", "zero")))
    sign = {"positive": np.abs, "negative": lambda w: -np.abs(w), "zero": np.zeros_like}
    return sign.get(kind, np.asarray)(weight)


def random_input(network, n_samples, n_steps, seed, density=0.4):
    """A SpikeTrain for every input of a network."""
    rng = np.random.default_rng(seed)
    return {
        name: SpikeTrain.from_raster(rng.random((n_samples, source.size, n_steps)) < density)
        for name, source in network.inputs.items()
    }


def arrays_of(recording):
    """{(quantity, population): array (samples, neurons, steps)} of what a recording holds."""
    spikes = {("spikes", n): t.batch().astype(np.int64) for n, t in recording.spikes.items()}
    states = {
        (quantity, name): np.asarray(values)
        for quantity in ("current", "voltage")
        for name, values in getattr(recording, quantity).items()
    }
    return {**spikes, **states}


def assert_same(one, other):
    """Every array of two dictionaries is the same, bit for bit."""
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], str(key))
