"""Networks written as netx files and read back; what such a file cannot say; SLAYER's files."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import slayer_blocks
from chains import CHAINS, conv_chain, delta_chain, dense_chain, graded, recurrent_chain

import nmtool
from nmtool.backends.lava.compat import slayer_missing
from nmtool.chip import SynapseFormat
from nmtool.config import Readout
from nmtool.errors import ConfigError, UnsupportedError
from nmtool.network import Input, PeriodicReset
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, fold, with_weight
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

MIXED = SynapseFormat(8, 0, "mixed")
REGISTERS = (
    *("shape", "model", "decay_u", "decay_v", "threshold", "reset"),
    *("activation", "spike_exponent", "state_exponent"),
)


def again(network, folder, **options):
    """A network written and read back, with the options that nmtool says."""
    made = nmtool.export(network, folder / "x.net")
    wanted = {k: v for k, v in vars(made.options).items() if v is not None}
    return nmtool.load(folder / "x.net", **{**wanted, **options})


def matrix(network, projection):
    """The weights that act, (target, source)."""
    shape = network.shapes[projection.source]
    sparse = fold(with_weight(projection.operations, projection.weight), shape)
    dense = np.zeros(sparse.size)
    dense[sparse.target, sparse.source] = sparse.weight
    return dense


def assert_same_network(one, other):
    pairs = dict(zip(one.populations, other.populations, strict=True))
    for ours, theirs in pairs.items():
        p, q = one.populations[ours], other.populations[theirs]
        keys = REGISTERS[:1] if p.model == "sigma" else REGISTERS
        assert {k: getattr(p, k) for k in keys} == {k: getattr(q, k) for k in keys}
        assert np.array_equal(p.bias, q.bias)
    named = {**pairs, next(iter(one.inputs)): next(iter(other.inputs))}
    ends = {(named[p.source], named[p.target]): p for p in one.projections.values()}
    assert len(other.projections) == len(ends)
    for q in other.projections.values():
        p = ends[q.source, q.target]
        assert np.array_equal(matrix(one, p), matrix(other, q))


def assert_same_run(emulate, one, other, x):
    left, right = emulate(one, x).recording, emulate(other, x).recording
    pairs = dict(zip(one.populations, other.populations, strict=True))
    for ours, theirs in pairs.items():
        assert left.spikes[ours] == right.spikes[theirs]
        for quantity in ("current", "voltage"):
            if ours in getattr(left, quantity):
                one, other = (getattr(r, quantity) for r in (left, right))
                assert np.array_equal(one[ours], other[theirs])
    return sum(len(train) for train in left.spikes.values())


@pytest.mark.parametrize("kind", [*CHAINS])
@pytest.mark.parametrize("first_seed", [0, 6])
def test_what_was_written_reads_back(kind, first_seed, emulate, tmp_path):
    messages = 0
    for seed in range(first_seed, first_seed + 6):
        network, x = CHAINS[kind](seed)
        other = again(network, tmp_path)
        assert_same_network(network, other)
        messages += assert_same_run(emulate, network, other, x)
    assert messages > 100


def test_resets_are_options_of_reading(tmp_path):
    network, _ = dense_chain(0)
    made = nmtool.export(network, tmp_path / "x.net")
    assert (made.options.reset_interval, made.options.reset_offset) == (11, 3)
    plain = nmtool.load(tmp_path / "x.net")
    assert all(p.reset is None for p in plain.populations.values())


def test_the_readout_becomes_an_average(tmp_path):
    network, _ = conv_chain(2)
    size = network.populations["p2"].size
    network = replace(network, readout=Readout(kind="count", neurons_per_class=size))
    assert again(network, tmp_path).readout == network.readout
    first = replace(network, readout=Readout(kind="first_spike", neurons_per_class=size))
    with pytest.raises(UnsupportedError, match="readout: found first_spike"):
        again(first, tmp_path)
    with h5py.File(tmp_path / "x.net") as file:
        last = file["layer"][str(len(file["layer"]) - 1)]
        assert last["type"][()].tolist() == [b"average"]
        assert last["shape"][()].tolist() == [1, 1, 1]


def sparse_network(delay=0):
    weight = np.array([2, -4, 8], dtype=np.int64)
    operation = Sparse(weight, np.array([0, 2, 2]), np.array([1, 0, 3]), (3, 4))
    return one_layer((operation,), (3,), Input((4,)), delay=delay)


def one_layer(operations, shape, source, *, delay=0, format=MIXED, **options):
    population = QuantizedPopulation(
        **{
            "shape": shape,
            "decay_u": 1023,
            "decay_v": 128,
            "threshold": 10,
            "bias_mantissa": np.zeros(int(np.prod(shape)), np.int64),
            "bias_exponent": 6,
            **options,
        }
    )
    projection = QuantizedProjection("in", "p", operations, format, delay)
    return QuantizedNetwork(
        "one", "loihi2", {"in": source}, {"p": population}, {"j": projection}, ("p",)
    )


def dense_weight(shape=(3, 4)):
    return 2 * np.arange(1, 1 + np.prod(shape), dtype=np.int64).reshape(shape)


@pytest.mark.parametrize("delay", [0, 3, np.array([0, 5, 2])])
def test_sparse_weights_are_written_as_dense(delay, emulate, tmp_path):
    network = sparse_network(delay)
    other = again(network, tmp_path)
    assert isinstance(other.projections["layer1"].operations[0], Dense)
    x = np.random.default_rng(0).random((4, 30)) < 0.5
    assert assert_same_run(emulate, network, other, x) > 10
    assert np.array_equal(
        matrix(network, network.projections["j"]), other.projections["layer1"].weight
    )


# What a netx file cannot say


def two_into_one():
    network, _ = dense_chain(0)
    extra = QuantizedProjection.dense("in", "p1", np.zeros((6, 5), np.int64), MIXED)
    return replace(network, projections={**network.projections, "skip": extra})


def changed(network, name, **changes):
    populations = dict(network.populations)
    populations[name] = replace(populations[name], **changes)
    return replace(network, populations=populations)


def delayed_recurrence():
    network, _ = recurrent_chain(0)
    back = replace(network.projections["back"], delay=1)
    return replace(network, projections={**network.projections, "back": back})


def two_inputs():
    network = one_layer((Dense(dense_weight()),), (3,), Input((4,)))
    return replace(network, inputs={**network.inputs, "more": Input((2,))})


PLANE = Input((4, 4, 1))
KERNEL = Conv(dense_weight((2, 2, 2, 1)))
BIAS = np.array([1, 0, 0])

REFUSED = {
    "two projections into one": (two_into_one, r"population p1: .*j1, skip into it.*one"),
    "two inputs": (two_inputs, "2 inputs"),
    "a refractory delay": (
        lambda: changed(dense_chain(0)[0], "p1", refractory_delay=3),
        "population p1: found a refractory delay",
    ),
    "an axonal delay behind the output": (
        lambda: changed(dense_chain(0)[0], "p2", axonal_delay=2),
        "population p2: found an axonal delay behind it",
    ),
    "a delay of a convolution": (
        lambda: one_layer((KERNEL,), (3, 3, 2), PLANE, delay=2),
        "projection j: found a delay",
    ),
    "a bias that is too fine": (
        lambda: one_layer(
            (Dense(dense_weight()),), (3,), Input((4,)), bias_mantissa=BIAS, bias_exponent=5
        ),
        "population p: found a bias with the exponent 5",
    ),
    "delays beside recurrence": (
        lambda: with_delay(recurrent_chain(0)[0], "j0", 2),
        "projection back: found a recurrent projection beside delays",
    ),
    "a delay of recurrence": (delayed_recurrence, "projection back: found a recurrent"),
    "another chain of operations": (
        lambda: one_layer((KERNEL, Flatten()), (18,), PLANE),
        r"projection j: found Conv \+ Flatten",
    ),
    "a scale alone": (
        lambda: one_layer((Scale(np.array([2])),), (4,), Input((4,))),
        "projection j: found Scale",
    ),
    "graded values into synapses": (
        lambda: one_layer(
            (Dense(dense_weight()),), (3,), Input((4,), "graded"), **graded("sigma_delta", (3,))
        ),
        "input in: found graded values into synapses",
    ),
    "a delta encoder behind synapses": (
        lambda: one_layer((Dense(dense_weight()),), (3,), Input((4,)), **graded("delta", (3,))),
        "population p: found a delta encoder behind synapses",
    ),
    "another activation": (
        lambda: changed(delta_chain(0)[0], "p0", activation="unit"),
        "population p0: found the activation unit",
    ),
    "another state exponent": (
        lambda: changed(delta_chain(0)[0], "p0", state_exponent=3),
        "state exponents",
    ),
    "resets at odd steps": (
        lambda: changed(dense_chain(0)[0], "p1", reset=PeriodicReset(11, 0)),
        "resets that netx does not know",
    ),
    "a reset of one layer only": (
        lambda: changed(dense_chain(0)[0], "p1", reset=None),
        "resets that netx does not know",
    ),
    "an output that is not the last layer": (
        lambda: replace(dense_chain(0)[0], outputs=("p1",)),
        "found the outputs p1",
    ),
}


def with_delay(network, name, delay):
    projections = dict(network.projections)
    projections[name] = replace(projections[name], delay=delay)
    return replace(network, projections=projections)


@pytest.mark.parametrize("name", [*REFUSED])
def test_what_netx_cannot_say_is_refused_by_name(name, tmp_path):
    build, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        nmtool.export(build(), tmp_path / "x.net")
    assert not [*tmp_path.iterdir()]


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nir"):
        nmtool.export(dense_chain(0)[0], tmp_path / "x.nir", format="nir")


@pytest.mark.parametrize(("exponent", "bias"), [(6, 1), (7, 1), (0, 64), (3, 8)])
def test_biases_that_fit_are_written_in_netx_units(exponent, bias, tmp_path):
    bias = np.array([bias, 0, -bias])
    network = one_layer(
        (Dense(dense_weight()),), (3,), Input((4,)), bias_mantissa=bias, bias_exponent=exponent
    )
    other = again(network, tmp_path)
    assert other.populations["layer1"].bias_exponent == 6
    assert np.array_equal(network.populations["p"].bias, other.populations["layer1"].bias)


# Files that SLAYER writes, against the forward of its own blocks

needs_slayer = pytest.mark.skipif(slayer_missing() is not None, reason=str(slayer_missing()))
BIASED = ("dense with bias", "conv with bias")
# SLAYER begins to add up biases when the first spikes arrive, nmtool at step 0.


def delayed(s, steps):
    """Every channel (the axis before time) later by its own steps."""
    late = np.zeros_like(s)
    for c, k in enumerate(steps):
        late[..., c, k:] = s[..., c, : s.shape[-1] - k]
    return late


@pytest.mark.lava
@needs_slayer
@pytest.mark.parametrize("name", [*slayer_blocks.BLOCKS])
def test_slayer_block(name, emulate, tmp_path):
    blocks, x, sent = slayer_blocks.make(name)
    file = slayer_blocks.write(tmp_path / "x.net", blocks)
    x, sent = slayer_blocks.whc(x), slayer_blocks.whc(sent)
    options = {"input_shape": x.shape[:3]} if x.ndim == 4 else {}
    if name in BIASED:
        options |= {"reset_interval": 1000, "reset_offset": 1}
    network = nmtool.load(file, **options)
    found = emulate(network, x).s("layer0")
    if name == "conv with delays":
        found = delayed(found, network.populations["layer0"].axonal_delay[: found.shape[2]])
    assert np.count_nonzero(sent) > 25
    assert np.count_nonzero(found != sent) == 0


@pytest.mark.lava
@needs_slayer
def test_slayer_flatten_and_dense(emulate, tmp_path):
    """A flatten before all layers keeps the order in which the input comes."""
    rng = np.random.default_rng(0)
    x = (rng.random((4, 8, 6, 40)) < 0.3).astype(np.int64)
    blocks = slayer_blocks.flatten_and_dense(x, rng)
    sent = slayer_blocks.forward(blocks, x)
    network = nmtool.load(slayer_blocks.write(tmp_path / "x.net", blocks))
    found = emulate(network, x.reshape(192, 40)).s("layer1")
    assert np.count_nonzero(sent) > 10
    assert np.count_nonzero(found != sent) == 0


@pytest.mark.lava
@needs_slayer
def test_slayer_sigma_delta(emulate, tmp_path):
    """SLAYER rounds what enters to 1/32; a unit of its messages is 4096 of nmtool's."""
    import torch

    sigma_delta = slayer_blocks.slayer().block.sigma_delta
    relu = torch.nn.functional.relu
    options = {"activation": relu, "shared_param": True, "requires_grad": False}
    blocks = [
        sigma_delta.Input({**options, "threshold": 0.0}),
        sigma_delta.Dense({**options, "threshold": 0.1}, 12, 9, weight_scale=3),
    ]
    x = np.cumsum(np.random.default_rng(0).integers(-2, 3, (12, 30)), axis=-1)
    first = slayer_blocks.forward(blocks[:1], x / 32)
    second = slayer_blocks.forward(blocks, x / 32)
    network = nmtool.load(slayer_blocks.write(tmp_path / "x.net", blocks))
    result = emulate(network, 2 * np.concatenate([x, x[:, -1:]], axis=1))
    assert np.array_equal(4096 * first, result.s("layer0")[:, :30])
    assert np.array_equal(4096 * second, result.s("layer1")[:, 1:])
    assert np.any(second)


@pytest.mark.lava
@needs_slayer
@pytest.mark.parametrize("plane", [(4, 8, 6), (4, 7, 5), (1, 5, 5)])
def test_slayer_pool_of_kernel_2_pools_every_channel_alone(plane, emulate, tmp_path):
    block = slayer_blocks.slayer().block.cuba.Pool(slayer_blocks.cuba(), 2)
    x = (np.random.default_rng(0).random((*plane, 40)) < 0.3).astype(np.int64)
    sent = slayer_blocks.whc(slayer_blocks.forward([block], x))
    file = slayer_blocks.write(tmp_path / "x.net", [block])
    network = nmtool.load(file, input_shape=plane[::-1])
    assert not network.metadata["notes"]
    found = emulate(network, slayer_blocks.whc(x)).s("layer0")
    assert np.count_nonzero(sent) > 100
    assert np.count_nonzero(found != sent) == 0


@pytest.mark.lava
@needs_slayer
def test_slayer_pool_of_kernel_3_mixes_channels_and_is_noted(emulate, tmp_path):
    block = slayer_blocks.slayer().block.cuba.Pool(slayer_blocks.cuba(), 3, stride=2, padding=1)
    x = (np.random.default_rng(0).random((4, 6, 6, 40)) < 0.3).astype(np.int64)
    sent = slayer_blocks.whc(slayer_blocks.forward([block], x))
    file = slayer_blocks.write(tmp_path / "x.net", [block])
    network = nmtool.load(file, input_shape=(6, 6, 4))
    (note,) = network.metadata["notes"]
    assert "windows cross" in note
    found = emulate(network, slayer_blocks.whc(x)).s("layer0")
    wrong = found != sent
    assert np.any(wrong)
    assert not np.any(wrong[:, 1:, 0])  # the first channel has none before it


@pytest.mark.lava
@needs_slayer
def test_average_is_the_mean_over_consecutive_neurons():
    import torch

    from nmtool.measure import class_counts

    x = np.random.default_rng(0).random((1, 12, 20)) < 0.4
    mean = slayer_blocks.slayer().block.cuba.Average(4)(torch.as_tensor(x * 1.0))[0]
    counts = class_counts(SpikeTrain.from_raster(x), Readout(kind="count", neurons_per_class=3))
    assert np.allclose(3 * mean.sum(dim=1).numpy(), counts[0])
