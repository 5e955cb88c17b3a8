"""Random chips' worth of networks: recurrent, skipping and converging projections, delays, bias.

``quantized_networks``, ``programs`` and ``networks`` draw CUBA neurons and dense weights;
``any_networks``, ``any_programs`` and ``any_real_networks`` draw everything there is.
"""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from nmtool.chip import SynapseFormat, load_chip
from nmtool.compiler import compile_program
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
from nmtool.operations import (
    Conv,
    Dense,
    Flatten,
    Scale,
    Sparse,
    SumPool,
    chain_shape,
    weighted,
    with_weight,
)
from nmtool.quantization import (
    MESSAGE_BIAS,
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


# Everything: operations


def random_conv(rng, shape, channels=None):
    """A convolution that fits a source, with weights of 1."""
    groups = rng.choice([g for g in (1, 2) if shape[2] % g == 0])
    if channels is None:
        channels = groups * rng.integers(1, 3)
    groups = groups if channels % groups == 0 else 1
    while True:
        kernel, stride, dilation = (
            rng.integers(1, 4, 2),
            rng.integers(1, 3, 2),
            rng.integers(1, 3, 2),
        )
        padding = rng.integers(0, 3, 2)
        if np.all((kernel - 1) * dilation < shape[:2] + 2 * padding):
            weight = np.ones((channels, *kernel, shape[2] // groups), dtype=np.int64)
            return Conv(weight, *map(pair, (stride, padding, dilation)), int(groups))


def conv_between(shape, target):
    """A convolution of stride 1 from any (x, y, channel) to any other."""
    padding = [max(0, (b - a + 1) // 2) for a, b in zip(shape[:2], target[:2], strict=True)]
    kernel = [a - b + 2 * p + 1 for a, b, p in zip(shape, target, padding, strict=False)]
    weight = np.ones((target[2], *kernel, shape[2]), dtype=np.int64)
    return Conv(weight, padding=pair(padding))


def random_pool(rng, shape):
    """Sum pooling that fits a source, with windows that overlap, leave gaps or reach outside."""
    padding = rng.integers(0, 2, 2)
    kernel = 1 + rng.integers(0, np.minimum(3, shape[:2] + 2 * padding))
    return SumPool(
        pair(kernel), pair(rng.integers(1, 4, 2)), pair(padding), bool(rng.integers(0, 2))
    )


def random_dense(rng, shape, size=None):
    size = size or int(rng.integers(1, 5))
    return Dense(np.ones((size, int(np.prod(shape))), dtype=np.int64))


def random_sparse(rng, shape, size=None):
    """Some pairs in any order, sometimes none."""
    size = size or int(rng.integers(1, 5)), int(np.prod(shape))
    pairs = rng.permutation(size[0] * size[1])
    target, source = np.divmod(pairs[: rng.integers(0, pairs.size + 1)], size[1])
    return Sparse(np.ones(target.size, dtype=np.int64), target, source, size)


def pair(two):
    return tuple(int(k) for k in two)


def scale(*_):
    return Scale(np.ones(1, dtype=np.int64))


def flatten(*_):
    return Flatten()


PLANE = [
    (random_conv,),
    (random_conv,),
    (random_pool, scale),
    (scale, random_pool),
    (random_pool, random_conv),
    (random_conv, random_pool),
    (random_conv, flatten),
    (random_pool, flatten, random_dense),
    (random_pool, random_pool, random_conv),
]
ANYWHERE = [
    (random_dense,),
    (flatten, random_dense),
    (random_sparse,),
    (flatten, random_sparse),
    (scale,),
    (flatten, scale),
]


def pick(rng, *choices):
    """One of several things, whatever they are."""
    return choices[rng.integers(len(choices))]


def source_shape(rng):
    if rng.random() < 0.4:
        return (int(rng.integers(1, 5)),)
    return (*rng.integers(1, 5, 2).tolist(), int(rng.integers(1, 3)))


def random_chain(rng, shape):
    """Operations that fit a source of a shape, one of them with weights (all 1)."""
    makers = pick(rng, *PLANE) if len(shape) == 3 and rng.random() < 0.7 else pick(rng, *ANYWHERE)
    operations = []
    for make in makers:
        operations.append(make(rng, shape))
        shape = operations[-1].output_shape(shape)
    return tuple(operations)


@st.composite
def chains(draw):
    """A shape and a chain that fits it, with small whole weights."""
    rng = draw(generators())
    shape = source_shape(rng)
    chain = random_chain(rng, shape)
    return shape, with_weight(chain, rng.integers(-9, 10, weighted(chain).weight.shape))


def generators():
    """A generator of one seed: hypothesis would draw the same few choices again and again."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def chain_between(rng, shape, target):
    """Operations from a source to a population that is there already; None if nothing fits."""
    size = int(np.prod(target))
    if len([n for n in target if n != 1]) <= 1:
        return (rng.choice([random_dense, random_sparse])(rng, shape, size),)
    if len(shape) == len(target) == 3:
        return (conv_between(shape, target),)
    return (scale(),) if shape == target else None


# Everything: quantized networks


def usual(rng, value, *others):
    """One value half of the time, else any of the others."""
    return value if rng.random() < 0.5 else pick(rng, *others)


def random_delay(rng, shape, longest):
    return pick(rng, 0, int(rng.integers(0, longest + 1)), rng.integers(0, longest + 1, shape))


def random_projection(rng, source, target, operations, longest):
    bits, mode = pick(rng, *BITS), pick(rng, *MODES)
    format = SynapseFormat(bits, pick(rng, *exact_exponents(bits, mode, CHIP)), mode)
    shape = weighted(operations).weight.shape
    mantissa = random_mantissa(format, shape, rng) * (rng.random() > 0.1)
    delay = random_delay(rng, shape, longest)
    return QuantizedProjection(source, target, with_weight(operations, mantissa), format, delay)


def random_population(rng, shape, longest):
    size = int(np.prod(shape))
    reset = PeriodicReset(int(rng.integers(1, 6)), int(rng.integers(-3, 10)))
    delay = random_delay(rng, (size,), longest)
    common = {"axonal_delay": delay, "reset": usual(rng, None, None, reset)}
    model = pick(rng, "cuba", "cuba", "sigma_delta", "delta", "sigma")
    zero = np.zeros(size, dtype=np.int64)
    if model == "cuba":
        return random_cuba(rng, shape, common)
    if model == "sigma":
        return QuantizedPopulation(shape, 0, 0, 0, zero, model=model, **common)
    spike, state = pick(rng, (6, 6), (6, 6), (0, 0), (0, 5), (3, 0), (1, 2), (23, 0), (0, 23))
    threshold = min((2**23 - 1) >> (spike + state), pick(rng, 0, 1, 64, 2**23))
    mantissa = rng.integers(MESSAGE_BIAS[0], MESSAGE_BIAS[1] + 1, size)
    return QuantizedPopulation(
        shape,
        0,
        0,
        threshold,
        mantissa if model == "sigma_delta" and rng.random() < 0.5 else zero,
        spike + state,
        model=model,
        activation="unit" if model == "delta" else pick(rng, "relu", "unit"),
        spike_exponent=spike,
        state_exponent=state,
        **common,
    )


def random_cuba(rng, shape, common):
    size = int(np.prod(shape))
    return QuantizedPopulation(
        shape,
        usual(rng, 1023, -1, 0, 1, 4094, 4095),
        usual(rng, 128, 0, 1, 4095, 4096),
        usual(rng, 200, 0, 1, 20000, 131071, 131072),
        rng.integers(-4096, 4096, size) * int(rng.integers(0, 2)),
        int(rng.integers(0, 8)),
        refractory_delay=usual(rng, 1, 2, 3, 7, 63),
        **common,
    )


def random_drive(rng, populations):
    """An input that drives a population, and the population with room for its bias."""
    name = pick(rng, *populations)
    p = populations[name]
    if p.graded or rng.random() < 0.5:
        return Input((p.size,), "graded", name)
    populations[name] = replace(p, bias_mantissa=p.bias_mantissa // 2)
    return Input((p.size,), "bias", name)


def random_network(rng, longest):
    """Every kind of operation, neuron and input; delays up to ``longest`` steps in all."""
    axonal = pick(rng, 0, longest // 3, longest)
    inputs = {
        f"in{k}": Input(source_shape(rng), pick(rng, "spikes", "spikes", "graded"))
        for k in range(rng.integers(1, 3))
    }
    populations, ends = {}, []
    for name in NAMES[: rng.integers(1, 4)]:
        source = [*populations][-1] if populations else pick(rng, *inputs)
        shape = {**inputs, **populations}[source].shape
        operations = random_chain(rng, shape)
        shape = chain_shape(operations, shape)
        populations[name] = random_population(rng, shape, axonal)
        ends.append((source, name, operations))
    nodes = {**inputs, **populations}
    for _ in range(rng.integers(0, 3)):
        source, target = pick(rng, *nodes), pick(rng, *populations)
        operations = chain_between(rng, nodes[source].shape, nodes[target].shape)
        ends += [(source, target, operations)] if operations else []
    projections = {
        f"p{k}": random_projection(rng, *end, longest - axonal) for k, end in enumerate(ends)
    }
    if rng.random() < 0.4:
        inputs["drive"] = random_drive(rng, populations)
    outputs = pick(rng, (name,), tuple(reversed([*populations])))
    return QuantizedNetwork("any", CHIP.name, inputs, populations, projections, outputs)


def any_networks(longest=6):
    return generators().map(lambda rng: random_network(rng, longest))


def any_programs(n_steps=20, longest=6):
    return any_networks(longest).map(lambda n: compile_program(n, CHIP, n_steps=n_steps))


# Everything: real networks


def real_population(rng, p):
    """A population in real numbers of the model of a quantized one."""
    exponents = (p.spike_exponent, p.state_exponent)
    threshold = float(rng.random() ** 3 * (2**23 - 1 >> sum(exponents)) / 64)
    decays = (rng.uniform(1, 4095, 2) / 4096).tolist()
    neuron = {
        "cuba": CubaLif(rng.uniform(0, 2047), *decays, p.refractory_delay),
        "delta": Delta(threshold, *exponents),
        "sigma_delta": SigmaDelta(threshold, p.activation, *exponents),
        "sigma": Sigma(),
    }[p.model]
    bias = None
    if p.model in ("cuba", "sigma_delta") and rng.random() < 0.5:
        bias = rng.normal(rng.uniform(-100, 100), 1, p.size)
    return Population(p.shape, neuron, bias, p.axonal_delay, p.reset)


def random_reals(rng, shape):
    sign = pick(rng, np.asarray, np.asarray, np.abs, lambda w: -np.abs(w), np.zeros_like)
    return sign(rng.normal(0, 10.0 ** rng.integers(-4, 3), shape))


def real_projection(rng, p):
    """Real weights; sometimes no weights at all, or two operations that have some."""
    operations = with_weight(p.operations, random_reals(rng, weighted(p.operations).weight.shape))
    if np.ndim(p.delay) == 0 and rng.random() < 0.4:
        if isinstance(weighted(operations), Scale):
            operations = tuple(op for op in operations if not isinstance(op, Scale))
        else:
            operations = (*operations, Scale(random_reals(rng, (1,))))
    return Projection(p.source, p.target, operations, p.delay)


def random_real_network(rng):
    made = random_network(rng, 6)
    populations = {name: real_population(rng, p) for name, p in made.populations.items()}
    projections = {name: real_projection(rng, p) for name, p in made.projections.items()}
    bits = pick(rng, *BITS)
    return Network("any", made.inputs, populations, projections, made.outputs, weight_bits=bits)


def any_real_networks():
    """A Network of every kind in real numbers that the chip can hold."""
    return generators().map(random_real_network)


def random_input(network, n_samples, n_steps, seed, density=0.4, largest=1000):
    """A SpikeTrain for every input of a network: spikes, messages or biases."""
    rng = np.random.default_rng(seed)
    trains = {}
    for name, source in network.inputs.items():
        raster = rng.random((n_samples, source.size, n_steps)) < density
        if source.graded:
            top = min(largest, 2000) if source.kind == "bias" else largest
            raster = raster * rng.integers(-top, top + 1, raster.shape)
        trains[name] = SpikeTrain.from_raster(raster, source.graded)
    return trains


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
