"""The chip's arithmetic and a whole network once more, in Python's own integers, one by one."""

from collections import defaultdict
from itertools import product

import numpy as np

TWO_24 = 2**24
LIMIT = 2**23


def decay(x, factor):
    """Towards zero: sign(x) * floor(|x| (4096 - factor) / 4096)."""
    kept = abs(x) * (4096 - factor) // 4096
    return kept if x >= 0 else -kept


def wrap(x):
    """Modulo 2^24 into (-2^23, 2^23]."""
    rest = x % TWO_24
    return rest - TWO_24 if rest > LIMIT else rest


def word(x):
    """Modulo 2^32 into [-2^31, 2^31)."""
    return (x + 2**31) % 2**32 - 2**31


def saturate(x):
    return max(-LIMIT + 1, min(LIMIT - 1, x))


def weight_of(mantissa, exponent):
    """mantissa * 2^exponent, which must be a whole number."""
    if exponent >= 0:
        return mantissa * 2**exponent
    assert mantissa % 2**-exponent == 0, "a shift that drops bits"
    return mantissa // 2**-exponent


# Operations: every way (source, target, place of the weight or None) by loops over the formula


def number(shape, *place):
    """The number of a neuron in C order."""
    index = 0
    for length, k in zip(shape, place, strict=True):
        index = index * length + k
    return index


def count(shape):
    total = 1
    for length in shape:
        total *= length
    return total


def every(*lengths):
    return product(*(range(length) for length in lengths))


def conv_ways(op, shape):
    channels, kx, ky, width = op.weight.shape
    (sx, sy), (px, py), (dx, dy) = op.stride, op.padding, op.dilation
    out = (
        (shape[0] + 2 * px - (kx - 1) * dx - 1) // sx + 1,
        (shape[1] + 2 * py - (ky - 1) * dy - 1) // sy + 1,
        channels,
    )
    ways = []
    for x, y, o in every(*out):
        group = o // (channels // op.groups)
        for i, j, c in every(kx, ky, width):
            fx, fy = x * sx + i * dx - px, y * sy + j * dy - py
            if 0 <= fx < shape[0] and 0 <= fy < shape[1]:
                source = number(shape, fx, fy, group * width + c)
                ways.append((source, number(out, x, y, o), (o, i, j, c)))
    return ways, out


def pool_ways(op, shape):
    (kx, ky), (sx, sy), (px, py) = op.kernel, op.stride, op.padding
    beyond = (sx - 1, sy - 1) if op.overhang else (0, 0)
    out = (
        (shape[0] + 2 * px - kx + beyond[0]) // sx + 1,
        (shape[1] + 2 * py - ky + beyond[1]) // sy + 1,
        shape[2],
    )
    ways = []
    for x, y, c in every(*out):
        for i, j in every(kx, ky):
            fx, fy = x * sx + i - px, y * sy + j - py
            if 0 <= fx < shape[0] and 0 <= fy < shape[1]:
                ways.append((number(shape, fx, fy, c), number(out, x, y, c), None))
    return ways, out


def flatten_ways(_, shape):
    ways = []
    for target, backwards in enumerate(every(*reversed(shape))):
        ways.append((number(shape, *reversed(backwards)), target, None))
    return ways, (count(shape),)


def dense_ways(op, _):
    targets, sources = op.weight.shape
    return [(i, j, (j, i)) for j, i in every(targets, sources)], (targets,)


def sparse_ways(op, _):
    ends = zip(op.source.tolist(), op.target.tolist(), strict=True)
    return [(i, j, (k,)) for k, (i, j) in enumerate(ends)], (op.size[0],)


def scale_ways(_, shape):
    return [(i, i, (0,)) for i in range(count(shape))], shape


WAYS = {
    "Dense": dense_ways,
    "Sparse": sparse_ways,
    "Conv": conv_ways,
    "SumPool": pool_ways,
    "Flatten": flatten_ways,
    "Scale": scale_ways,
}


def paths(operations, shape):
    """[(source, target, product of the weights, place of the last weight)] and the last shape."""
    joined = [(i, i, 1, None) for i in range(count(shape))]
    for op in operations:
        ways, shape = WAYS[type(op).__name__](op, shape)
        onward = defaultdict(list)
        for source, target, place in ways:
            onward[source].append((target, place))
        joined = [
            (i, j, value if at is None else value * op.weight[at].item(), at or place)
            for i, middle, value, place in joined
            for j, at in onward[middle]
        ]
    return joined, shape


def matrix(operations, shape):
    """A chain as a matrix (target, source) of Python numbers."""
    ways, out = paths(operations, shape)
    rows = np.zeros((count(out), count(shape)), dtype=object)
    for i, j, value, _ in ways:
        rows[j, i] += value
    return rows


def synapses(network):
    """(source, i, target, j, steps, weight) of every synapse."""
    nodes = {**network.inputs, **network.populations}
    for p in network.projections.values():
        source = nodes[p.source]
        axonal = getattr(source, "axonal_delay", 0)
        for i, j, mantissa, place in paths(p.operations, source.shape)[0]:
            steps = 1 + int(axonal if np.ndim(axonal) == 0 else axonal[i])
            steps += int(p.delay if np.ndim(p.delay) == 0 else p.delay[place])
            yield p.source, i, p.target, j, steps, weight_of(mantissa, p.format.exponent)


# Neurons


class Cuba:
    """u, v and the steps for which v stays at 0."""

    def __init__(self, p):
        self.p = p
        self.clear()

    def clear(self):
        self.u = self.v = self.pause = 0

    def step(self, arrived, bias):
        self.u = wrap(decay(self.u, self.p.decay_u + 1) + arrived * 64)
        self.v = saturate(decay(self.v, self.p.decay_v) + self.u + bias)
        if self.pause:
            self.pause -= 1
            self.v = 0
            return 0
        if self.v <= self.p.threshold * 64:
            return 0
        self.v = 0
        self.pause = self.p.refractory_delay - 1
        return 1

    def state(self):
        return {"current": self.u, "voltage": self.v}


class Sigma:
    def __init__(self, p):
        self.p = p
        self.clear()

    def clear(self):
        self.sigma = 0

    def step(self, arrived, _):
        self.sigma = word(self.sigma + arrived)
        return self.sigma

    def state(self):
        return {"current": self.sigma}


class Delta:
    """Sends how far the activation has moved."""

    def __init__(self, p):
        self.p = p
        self.unit = 2 ** (p.spike_exponent + p.state_exponent)
        self.clear()

    def clear(self):
        self.sigma = self.act = self.residue = 0

    def activation(self, arrived, _):
        return word(arrived * self.unit)

    def step(self, arrived, bias):
        now = self.activation(arrived, bias)
        moved = word(now - self.act + self.residue)
        sent = moved if abs(moved) >= self.p.threshold * self.unit else 0
        self.act, self.residue = now, moved - sent
        return sent // 2**self.p.state_exponent

    def state(self):
        return {"voltage": self.act}


class SigmaDelta(Delta):
    def activation(self, arrived, bias):
        self.sigma = word(self.sigma + arrived)
        act = word(self.sigma + bias)
        return act if self.p.activation == "unit" else max(act, 0)

    def state(self):
        return {"current": self.sigma, "voltage": self.act}


MODELS = {"cuba": Cuba, "sigma": Sigma, "delta": Delta, "sigma_delta": SigmaDelta}


def simulate(network, rasters, n_steps):
    """One sample from reset.

    ``rasters`` has a raster of shape (neurons, steps) for every input, of spikes or messages. Gives
    {(quantity, population): array (neurons, steps)} with the spikes or messages and the states
    after every step.
    """
    outgoing = defaultdict(list)
    for source, i, target, j, steps, weight in synapses(network):
        outgoing[source, i].append((target, j, steps, weight))
    arriving = defaultdict(int)
    neurons = {
        (name, j): MODELS[p.model](p)
        for name, p in network.populations.items()
        for j in range(p.size)
    }
    result = defaultdict(list)
    for t in range(n_steps):
        entering = {
            (name, i): int(raster[i, t])
            for name, raster in rasters.items()
            for i in range(len(raster))
        }
        sent = dict(entering)
        drive = defaultdict(int)
        for name, source in network.inputs.items():
            for i in range(source.size if source.drives else 0):
                drive[source.drives, i, source.kind] += entering[name, i]
        for (name, j), neuron in neurons.items():
            p = network.populations[name]
            if p.reset and (t - p.reset.offset) % p.reset.interval == 0:
                neuron.clear()
            mantissa = int(p.bias_mantissa[j]) + drive[name, j, "bias"]
            arrived = arriving[name, j, t] + drive[name, j, "graded"]
            sent[name, j] = neuron.step(arrived, mantissa * 2**p.bias_exponent)
            result["spikes", name].append(sent[name, j])
            for quantity, value in neuron.state().items():
                result[quantity, name].append(value)
        for key, message in sent.items():
            for target, j, steps, weight in outgoing[key] if message else ():
                arriving[target, j, t + steps] += message * weight
    return {
        (quantity, name): columns(values, network.populations[name].size)
        for (quantity, name), values in result.items()
    }


def columns(values, size):
    """From all neurons step by step to an array (neurons, steps)."""
    return np.array(values, dtype=np.int64).reshape(-1, size).T
