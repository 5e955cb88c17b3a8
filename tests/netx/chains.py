"""Random networks that a netx file can say."""

import numpy as np

from nmtool.chip import SynapseFormat
from nmtool.network import Input, PeriodicReset
from nmtool.operations import Conv, Dense, Flatten, Scale, SumPool, chain_shape
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

STEPS = 30


def format_of(rng):
    """Any format whose weights are whole multiples of 1."""
    bits = int(rng.choice([2, 4, 6, 8]))
    mode = str(rng.choice(["mixed", "mixed", "excitatory", "inhibitory"]))
    step = SynapseFormat(bits, 0, mode).step
    return SynapseFormat(bits, int(rng.integers(-(step.bit_length() - 1), 1)), mode)


def weights(rng, format, shape):
    low, high = format.minimum // format.step, format.maximum // format.step
    return rng.integers(low, high + 1, shape) * format.step


def population(rng, shape, **options):
    size = int(np.prod(shape))
    bias = rng.integers(-60, 100, shape[-1]) * int(rng.integers(0, 2))
    return QuantizedPopulation(
        **{
            "shape": shape,
            "decay_u": int(rng.choice([0, 1023, 4095])),
            "decay_v": int(rng.choice([0, 128, 4095])),
            "threshold": int(rng.choice([0, 40, 200])),
            "bias_mantissa": np.broadcast_to(bias, shape).reshape(size).astype(np.int64),
            "bias_exponent": 6,
            **options,
        }
    )


def chain(rng, source, blocks, driven=None, outputs=None):
    """A network of (population's options, operations, delay) behind an input.

    ``operations`` is a function of the format and of the shape before.
    """
    populations, projections, before, shape = {}, {}, "in", source.shape
    if driven is not None:
        populations["first"], before, shape = driven, "first", driven.shape
    for k, (options, make, delay) in enumerate(blocks):
        name, format = f"p{k}", format_of(rng)
        operations = make(rng, format, shape)
        shape = chain_shape(operations, shape)
        populations[name] = population(rng, shape, **options)
        wait = delay(rng, operations) if delay else 0
        projections[f"j{k}"] = QuantizedProjection(before, name, operations, format, wait)
        before = name
    return QuantizedNetwork("chain", "loihi2", {"in": source}, populations, projections, (before,))


def dense(size):
    return lambda rng, f, shape: (Dense(weights(rng, f, (size, int(np.prod(shape))))),)


def flat(size):
    return lambda rng, f, shape: (Flatten(), *dense(size)(rng, f, shape))


def conv(channels, kernel, **geometry):
    groups = geometry.get("groups", 1)

    def make(rng, f, shape):
        return (Conv(weights(rng, f, (channels, *kernel, shape[2] // groups)), **geometry),)

    return make


def pool(*geometry):
    return lambda rng, f, _: (SumPool(*geometry), Scale(weights(rng, f, (1,))))


def one_delay(rng, _):
    return int(rng.integers(0, 9))


def delays_of_targets(rng, operations):
    size = operations[-1].weight.shape
    return np.repeat(rng.integers(0, 63, size[0])[:, None], size[1], axis=1)


def delays_of_synapses(rng, operations):
    return rng.integers(0, 20, operations[-1].weight.shape)


def resets(interval, offset, count):
    return [{"reset": PeriodicReset(interval, (k + offset) % interval)} for k in range(count)]


def spikes(rng, shape, steps, density=0.3):
    return (rng.random((*shape, steps)) < density).astype(np.int64)


def dense_chain(seed, steps=STEPS):
    """Every kind of delay, and resets."""
    rng = np.random.default_rng(seed)
    reset = resets(11, 3, 3)
    blocks = [
        (reset[0], dense(8), one_delay),
        (reset[1], dense(6), delays_of_synapses),
        (reset[2], dense(7), delays_of_targets),
    ]
    return chain(rng, Input((5,)), blocks), spikes(rng, (5,), steps, 0.5)


def recurrent_chain(seed, steps=STEPS):
    rng = np.random.default_rng(seed)
    network = chain(rng, Input((5,)), [({}, dense(6), None), ({}, dense(4), one_delay)])
    format = format_of(rng)
    back = QuantizedProjection("p0", "p0", (Dense(weights(rng, format, (6, 6))),), format)
    projections = {**network.projections, "back": back}
    return with_projections(network, projections), spikes(rng, (5,), steps)


def conv_chain(seed, steps=STEPS):
    """Uneven geometry everywhere."""
    rng = np.random.default_rng(seed)
    blocks = [
        ({}, conv(4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), None),
        ({}, conv(3, (2, 3), padding=(0, 2), dilation=(1, 2)), None),
        ({}, flat(5), one_delay),
    ]
    return chain(rng, Input((7, 6, 2)), blocks), spikes(rng, (7, 6, 2), steps)


def pool_chain(seed, steps=STEPS):
    rng = np.random.default_rng(seed)
    blocks = [
        ({}, pool((2, 2), (2, 2)), None),
        ({}, pool((3, 2), (1, 2), (1, 0)), None),
        ({}, flat(5), None),
    ]
    return chain(rng, Input((8, 8, 3)), blocks), spikes(rng, (8, 8, 3), steps)


def graded(model, shape, bias=0, exponent=6, threshold=None):
    """Options of sigma-delta neurons; netx knows one spike exponent and the state exponent 6."""
    options = {"model": model, "decay_u": 0, "decay_v": 0, "bias_mantissa": None}
    options["bias_mantissa"] = np.full(int(np.prod(shape)), bias, np.int64)
    if model == "sigma":
        return {**options, "threshold": 0, "bias_exponent": 0}
    return {
        **options,
        "threshold": 5 if threshold is None else threshold,
        "activation": "unit" if model == "delta" else "relu",
        "spike_exponent": exponent,
        "state_exponent": 6,
        "bias_exponent": exponent + 6,
    }


def delta_chain(seed, steps=STEPS):
    """A delta encoder, sigma-delta layers and a sigma decoder."""
    rng = np.random.default_rng(seed)
    exponent = int(rng.integers(0, 8))
    shape = (5, 4, 2)
    first = population(rng, shape, **graded("delta", shape, exponent=exponent))
    middle, last = (3, 3, 3), (4,)
    blocks = [
        (graded("sigma_delta", middle, 7, exponent), conv(3, (3, 2)), None),
        (graded("sigma_delta", (6,), -3, exponent), flat(6), one_delay),
        (graded("sigma", last), dense(4), None),
    ]
    network = chain(rng, Input(shape, "graded", "first"), blocks, driven=first)
    return network, np.cumsum(rng.integers(-9, 10, (*shape, steps)), axis=-1)


def with_projections(network, projections):
    from dataclasses import replace

    return replace(network, projections=projections)


CHAINS = {
    "dense": dense_chain,
    "recurrent": recurrent_chain,
    "conv": conv_chain,
    "pool": pool_chain,
    "sigma-delta": delta_chain,
}
