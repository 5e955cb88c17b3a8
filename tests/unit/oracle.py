"""The chip's arithmetic and a whole network once more, in Python's own integers, one by one."""

from collections import defaultdict

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


def saturate(x):
    return max(-LIMIT + 1, min(LIMIT - 1, x))


def weight_of(mantissa, exponent):
    """mantissa * 2^exponent, which must be a whole number."""
    if exponent >= 0:
        return mantissa * 2**exponent
    assert mantissa % 2**-exponent == 0, "a shift that drops bits"
    return mantissa // 2**-exponent


def synapses(network):
    """(source, i, target, j, steps, weight) of every synapse."""
    for p in network.projections.values():
        axonal = (
            network.populations[p.source].axonal_delay if p.source in network.populations else 0
        )
        delay = np.broadcast_to(p.delay, p.weight_mantissa.shape)
        for j, i in np.ndindex(p.weight_mantissa.shape):
            weight = weight_of(int(p.weight_mantissa[j, i]), p.format.exponent)
            yield p.source, i, p.target, j, 1 + axonal + int(delay[j, i]), weight


def simulate(network, rasters, n_steps):
    """One sample from reset.

    ``rasters`` has a raster of shape (neurons, steps) for every input. Gives {(quantity,
    population): array (neurons, steps)} with the spikes, u and v after every step.
    """
    outgoing = defaultdict(list)
    for source, i, target, j, steps, weight in synapses(network):
        outgoing[source, i].append((target, j, steps, weight))
    arriving = defaultdict(int)
    u, v = defaultdict(int), defaultdict(int)
    result = {
        (quantity, name): np.zeros((p.size, n_steps), dtype=np.int64)
        for name, p in network.populations.items()
        for quantity in ("spikes", "current", "voltage")
    }
    for t in range(n_steps):
        sent = [
            (name, i)
            for name, raster in rasters.items()
            for i in range(raster.shape[0])
            if raster[i, t]
        ]
        for name, p in network.populations.items():
            for j in range(p.size):
                key = name, j
                u[key] = wrap(decay(u[key], p.decay_u + 1) + arriving[name, j, t] * 64)
                bias = int(p.bias_mantissa[j]) * 2**p.bias_exponent
                v[key] = saturate(decay(v[key], p.decay_v) + u[key] + bias)
                if v[key] > p.threshold * 64:
                    v[key] = 0
                    sent.append(key)
                    result["spikes", name][j, t] = 1
                result["current", name][j, t] = u[key]
                result["voltage", name][j, t] = v[key]
        for key in sent:
            for target, j, steps, weight in outgoing[key]:
                arriving[target, j, t + steps] += weight
    return result
