"""Both engines against lava-dl's own blocks, in float64: spikes, and gradients of every weight."""

import numpy as np
import pytest

from nmtool.chip import load_chip
from nmtool.config import SlayerSurrogate
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten, Scale, SumPool

torch = pytest.importorskip("torch")

CHIP = load_chip("loihi2")
NEURON = CubaLif(1.25, 0.25, 0.03125)
PARAMETERS = {
    "threshold": 1.25,
    "current_decay": 0.25,
    "voltage_decay": 0.03125,
    "tau_grad": 0.03,
    "scale_grad": 3.0,
}
STEPS, SAMPLES = 40, 5


def on_the_grid(rng, spread, size):
    """Weights that rounding leaves as they are: whole multiples of 1/32 within 8 bits."""
    return np.clip(np.rint(rng.normal(0, spread, size) * 32), -128, 127) / 32


@pytest.fixture(autouse=True)
def in_float64():
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def engine(network, name, raster, wanted):
    from nmtool.training.model import make_model

    model = make_model(network, CHIP, SlayerSurrogate(tau_grad=0.03, scale_grad=3.0), name)
    if name == "slayer":
        model.double()
    spikes = model(torch.from_numpy(raster.astype(np.float64 if name == "slayer" else np.float32)))
    (spikes["out"] * torch.from_numpy(wanted).to(spikes["out"].dtype)).sum().backward()
    gradients = {p: model.parameter(p).grad.numpy() for p in model.trained}
    return spikes["out"].detach().numpy(), gradients


def assert_equal(network, lines, block_spikes, weights):
    """``block_spikes`` makes the output spikes of lava-dl's blocks from spikes a step late.

    ``weights`` gives their gradients by projection, in the shape of its weights.
    """
    rng = np.random.default_rng(0)
    raster = (rng.random((SAMPLES, lines, STEPS)) < 0.3).astype(np.float64)
    wanted = rng.normal(size=(SAMPLES, network.populations["out"].size, STEPS))
    late = np.zeros_like(raster)
    late[..., 1:] = raster[..., :-1]
    spikes = block_spikes(torch.from_numpy(late))
    (spikes * torch.from_numpy(wanted)).sum().backward()
    expected = weights()
    assert spikes.sum() > 50
    for name in ("event", "slayer"):
        found, gradients = engine(network, name, raster, wanted)
        np.testing.assert_array_equal(found, spikes.detach().numpy())
        for projection, gradient in expected.items():
            difference = np.linalg.norm(gradients[projection] - gradient)
            assert difference <= 1e-5 * np.linalg.norm(gradient), (name, projection)


def test_the_recurrent_block():
    from lava.lib.dl import slayer

    rng = np.random.default_rng(1)
    inward, own = on_the_grid(rng, 0.5, (12, 7)), on_the_grid(rng, 0.3, (12, 12))
    block = slayer.block.cuba.Recurrent(dict(PARAMETERS), 7, 12, delay_shift=False)
    for synapse, weight in ((block.input_synapse, inward), (block.recurrent_synapse, own)):
        synapse.weight.data.copy_(torch.from_numpy(weight).reshape(synapse.weight.shape))
    network = Network(
        "n",
        {"in": Input((7,))},
        {"out": Population((12,), NEURON)},
        {
            "inward": Projection.dense("in", "out", inward),
            "own": Projection.dense("out", "out", own),
        },
        ("out",),
    )

    def gradients():
        return {
            "inward": block.input_synapse.weight.grad.numpy().reshape(12, 7),
            "own": block.recurrent_synapse.weight.grad.numpy().reshape(12, 12),
        }

    assert_equal(network, 7, block, gradients)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 1), 1), ((1, 1), (1, 1), (2, 1), 2)],
)
def test_conv_pool_and_dense_blocks(stride, padding, dilation, groups):
    from lava.lib.dl import slayer

    rng = np.random.default_rng(2)
    shape, size = (6, 5, 2), (4, 3, 2, 2 // groups)
    first = on_the_grid(rng, 0.5, size)
    conv = Conv(first, stride, padding, dilation, groups)
    x, y, channels = conv.output_shape(shape)
    x, y = x - x % 2, y - y % 2
    if conv.output_shape(shape)[:2] != (x, y):
        shape = (shape[0] + conv.output_shape(shape)[0] % 2 * stride[0], shape[1], 2)
        shape = (shape[0], shape[1] + conv.output_shape(shape)[1] % 2 * stride[1], 2)
        x, y, channels = conv.output_shape(shape)
    pool = SumPool((2, 2), (2, 2))
    inner = pool.output_shape((x, y, channels))
    last = on_the_grid(rng, 0.6, (8, int(np.prod(inner))))
    one = slayer.block.cuba.Conv(
        dict(PARAMETERS), 2, 4, (3, 2), stride, padding, dilation, groups, delay_shift=False
    )
    two = slayer.block.cuba.Pool(
        dict(PARAMETERS), 2, weight_scale=1.125, delay_shift=False
    ).double()
    three = slayer.block.cuba.Dense(dict(PARAMETERS), last.shape[1], 8, delay_shift=False)
    one.synapse.weight.data.copy_(torch.from_numpy(first).permute(0, 3, 1, 2)[..., None])
    three.synapse.weight.data.copy_(torch.from_numpy(last).reshape(three.synapse.weight.shape))
    network = Network(
        "n",
        {"in": Input(shape)},
        {
            "conv": Population((x, y, channels), NEURON),
            "pool": Population(inner, NEURON),
            "out": Population((8,), NEURON),
        },
        {
            "conv": Projection("in", "conv", (conv,)),
            "pool": Projection("conv", "pool", (pool, Scale(np.array([1.125])))),
            "out": Projection("pool", "out", (Flatten(), Dense(last))),
        },
        ("out",),
    )

    def blocks(late):
        image = late.reshape(SAMPLES, *shape, STEPS).permute(0, 3, 1, 2, 4)
        image = slayer.axon.delay(one(image), 1)
        image = slayer.axon.delay(two(image), 1)
        flat = image.permute(0, 1, 3, 2, 4).reshape(SAMPLES, -1, STEPS)
        return three(flat)

    def gradients():
        return {
            "conv": one.synapse.weight.grad[..., 0].permute(0, 2, 3, 1).numpy(),
            "out": three.synapse.weight.grad.numpy().reshape(last.shape),
        }

    assert_equal(network, int(np.prod(shape)), blocks, gradients)
