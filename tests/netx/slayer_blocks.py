"""SLAYER blocks with random weights, the netx files that they export, and their own forward.

A block's forward has no step between its input and its neurons, and gives its spikes a step late
(``delay_shift``): its column t is nmtool's column t, as nmtool's projection takes that step.
"""

from functools import cache

import h5py
import numpy as np


def cuba(**options):
    """Parameters of a neuron, for one block only: a recurrent block changes those it is given."""
    return {
        "threshold": 1.25,
        "current_decay": 0.25,
        "voltage_decay": 0.1,
        "shared_param": True,
        "requires_grad": False,
        **options,
    }


@cache
def slayer():
    """``lava.lib.dl.slayer``."""
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()
    import torch
    from lava.lib.dl import slayer as module

    torch.set_num_threads(1)
    return module


def forward(blocks, x):
    """What the last block gives for one sample, time as the last axis."""
    import torch

    out = torch.as_tensor(np.asarray(x, dtype=np.float32))[None]
    with torch.no_grad():
        for block in blocks:
            out = block.eval()(out)
    return out[0].numpy()


def write(path, blocks):
    """The netx file of a chain of blocks."""
    with h5py.File(path, "w") as file:
        layers = file.create_group("layer")
        for k, block in enumerate(blocks):
            block.export_hdf5(layers.create_group(str(k)))
    return path


def set_delays(block, x, delays):
    """Give a block delays; it has none before it has seen an input."""
    import torch

    forward([block], x)
    block.delay.delay.data = torch.as_tensor(np.asarray(delays, dtype=np.float32))


def set_norm(block, size, rng):
    """Give the normalisation of a block a running mean."""
    import torch

    block.neuron.norm.num_features = size
    block.neuron.norm.running_mean = torch.as_tensor(rng.normal(0, 0.1, size).astype(np.float32))


def dense(x, rng, **options):
    return [slayer().block.cuba.Dense(cuba(), 12, 9, weight_scale=2, **options)]


def dense_with_delays(x, rng):
    (block,) = dense(x, rng, delay=True)
    set_delays(block, x, rng.random(9) * 7)
    return [block]


def dense_with_bias(x, rng):
    neuron = cuba(norm=slayer().neuron.norm.MeanOnlyBatchNorm)
    block = slayer().block.cuba.Dense(neuron, 12, 9, weight_scale=2)
    set_norm(block, 9, rng)
    return [block]


def recurrent(x, rng):
    return [slayer().block.cuba.Recurrent(cuba(), 12, 9, weight_scale=1)]


def conv(x, rng):
    shape = {"stride": (2, 1), "padding": (1, 0), "groups": 2}
    return [slayer().block.cuba.Conv(cuba(), 4, 6, (3, 2), weight_scale=2, **shape)]


def conv_with_bias(x, rng):
    neuron = cuba(norm=slayer().neuron.norm.MeanOnlyBatchNorm)
    block = slayer().block.cuba.Conv(neuron, 4, 6, 3, weight_scale=2)
    set_norm(block, 6, rng)
    return [block]


def conv_with_delays(x, rng):
    block = slayer().block.cuba.Conv(cuba(), 4, 6, 3, weight_scale=2, delay=True)
    set_delays(block, x, rng.random(6) * 7)
    return [block]


def pool(x, rng):
    return [slayer().block.cuba.Pool(cuba(), 2)]


def uneven_pool(x, rng):
    return [slayer().block.cuba.Pool(cuba(), (2, 3), weight_scale=0.7)]


def flatten_and_dense(x, rng):
    block = slayer().block.cuba
    return [block.Flatten(), block.Dense(cuba(), 192, 5)]


LINES, PLANE = (12,), (4, 8, 6)
"""Shapes of inputs: lines, and (channel, y, x)."""

BLOCKS = {
    "dense": (dense, LINES),
    "dense with delays": (dense_with_delays, LINES),
    "dense with bias": (dense_with_bias, LINES),
    "recurrent": (recurrent, LINES),
    "conv": (conv, PLANE),
    "conv with bias": (conv_with_bias, PLANE),
    "conv with delays": (conv_with_delays, PLANE),
    "pool": (pool, PLANE),
    "uneven pool": (uneven_pool, PLANE),
}


def make(name, steps=60):
    """(blocks, spikes, what the blocks send); time is the last axis.

    A block knows its shape, and can be exported, once it has run.
    """
    build, shape = BLOCKS[name]
    rng = np.random.default_rng(sorted(BLOCKS).index(name))
    x = (rng.random((*shape, steps)) < 0.3).astype(np.int64)
    import torch

    slayer()
    torch.manual_seed(sorted(BLOCKS).index(name))
    blocks = build(x, rng)
    return blocks, x, forward(blocks, x)


def whc(x):
    """From (channel, y, x, time) to (x, y, channel, time)."""
    return x.transpose(2, 1, 0, 3) if x.ndim == 4 else x
