"""netx files in Lava itself (netx.hdf5.Network on the CPU) and in nmtool: the same messages.

Every layer and every step are compared. Files are those of lava-dl's wheel, what SLAYER exports,
and what nmtool exports.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import slayer_blocks
from chains import conv_chain, delta_chain, dense_chain, recurrent_chain

import nmtool
from nmtool.backends.lava.compat import slayer_missing
from nmtool.chip import SynapseFormat
from nmtool.network import Input
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

REASON = slayer_missing()
pytestmark = [pytest.mark.lava, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

OPTIONS = {"spike_exp": "spike_exponent"}
"""nmtool's names for netx's arguments where they differ."""


def case(file, feed, x, steps, **options):
    """(arguments of netx's Network, its input) of a run."""
    return {"net_config": str(file), "feed": feed, "steps": steps, **options}, np.asarray(x)


def spikes(shape, steps, density=0.3, seed=0):
    return (np.random.default_rng(seed).random((*shape, steps)) < density).astype(np.int64)


def in_nmtool(emulate, held, case):
    """What every population sends, in order."""
    arguments, x = case
    options = {OPTIONS.get(k, k): v for k, v in arguments.items()}
    steps, feed = options.pop("steps"), options.pop("feed")
    network = nmtool.load(options.pop("net_config"), **options)
    result = emulate(network, held(x, steps) if feed == "bias" else x, probe="spikes")
    return [result.s(name) for name in network.populations]


def assert_same(emulate, held, case, sent):
    assert not isinstance(sent, str), sent[-600:]
    found = in_nmtool(emulate, held, case)
    assert len(found) == len(sent)
    for k, (ours, theirs) in enumerate(zip(found, sent, strict=True)):
        assert ours.shape == theirs.shape
        assert np.count_nonzero(ours != theirs) == 0, f"layer {k}"
    assert any(np.any(messages) for messages in sent)


# Networks of the wheel

TINY = {
    "tiny": {},
    "tiny, reset": {"reset_interval": 17},
    "tiny, reset with an offset": {"reset_interval": 16, "reset_offset": 3},
    "tiny, first layer left out": {"reset_interval": 16, "skip_layers": 1},
}


@pytest.fixture(scope="module")
def small(wheel, recorded, lava):
    """All small runs, in one process."""

    @cache
    def run():
        bias = recorded("tinynet/input_bias").astype(np.int64)
        x = spikes((16, 16, 3), 36)
        cases = {
            name: case(
                wheel / "tiny.net",
                *(("spikes", x) if "skip_layers" in options else ("bias", bias)),
                36,
                **options,
            )
            for name, options in TINY.items()
        }
        image = np.random.default_rng(0).integers(64, 141, 784)
        cases["mnist"] = case(wheel / "mnist.net", "bias", image, 36)
        cases["mnist, reset"] = case(wheel / "mnist.net", "bias", image, 36, reset_interval=16)
        value = np.repeat(recorded("pilotnet_sdnn/input")[:33, :33].astype(np.int64), 8, axis=-1)
        square = wheel / "gts/pilotnet_sdnn/square_network.net"
        cases["square, sigma-delta"] = case(square, "value", value, 8)
        return cases, lava(cases)

    return run


@pytest.mark.parametrize("name", [*TINY, "mnist", "mnist, reset", "square, sigma-delta"])
def test_small_networks(small, emulate, held, name):
    cases, sent = small()
    assert_same(emulate, held, cases[name], sent[name])


def test_the_last_layer_of_mnist_has_a_neuron_that_no_register_holds(wheel, small):
    _, sent = small()
    network = nmtool.load(wheel / "mnist.net")
    assert len(sent["mnist"]) == 4
    assert not np.any(sent["mnist"][3])
    last = network.populations["layer3"]
    assert (last.decay_u, last.decay_v, last.threshold) == (-1, 4096, 1 << 17)


@pytest.mark.slow
def test_ntidigits(wheel, recorded, lava, emulate, held):
    """Dense layers with delays of up to 62 steps."""
    x = recorded("ntidigits/input")[:, :300].astype(np.int64)
    file = wheel / "gts/ntidigits/ntidigits.net"
    run = case(file, "spikes", x, 300, num_layers=5)
    assert_same(emulate, held, run, lava({"run": run})["run"])


@pytest.mark.slow
def test_pilotnet_sdnn(wheel, recorded, lava, emulate, held):
    """Eight layers behind a delta encoder; the steps suffice to reach the last."""
    x = np.repeat(recorded("pilotnet_sdnn/input").astype(np.int64), 10, axis=-1)
    file = wheel / "gts/pilotnet_sdnn/network.net"
    run = case(file, "value", x, 10)
    sent = lava({"run": run})["run"]
    assert_same(emulate, held, run, sent)
    assert np.array_equal(sent[-1][:, :9], recorded("pilotnet_sdnn/output"))


# Files that nmtool and SLAYER write

EXPORTED = {
    "dense": dense_chain,
    "recurrent": recurrent_chain,
    "conv": conv_chain,
    "sigma-delta": delta_chain,
}
SLAYER = ("dense", "dense with delays", "dense with bias", "recurrent", "conv", "conv with bias")


@pytest.fixture(scope="module")
def written(lava, tmp_path_factory):
    """All written files, in one process."""

    @cache
    def run():
        folder = tmp_path_factory.mktemp("written")
        cases = {}
        for name, build in EXPORTED.items():
            network, x = build(seed=1, steps=30)
            made = nmtool.export(network, folder / f"{name}.net")
            options = {"spike_exp": made.options.spike_exponent}
            if made.options.reset_interval:
                options["reset_interval"] = made.options.reset_interval
                options["reset_offset"] = made.options.reset_offset
            feed = next(iter(network.inputs.values())).drives
            file = folder / f"{name}.net"
            cases[name] = case(file, "value" if feed else "spikes", x, 30, **options)
        file = folder / "negative.net"
        nmtool.export(negative(-64), file)
        cases["negative"] = case(file, "spikes", spikes((1,), 30, 0.5), 30)
        for name in (*SLAYER, "conv with delays"):
            blocks, x, _ = slayer_blocks.make(name, steps=30)
            file = slayer_blocks.write(folder / f"slayer {name}.net", blocks)
            x = slayer_blocks.whc(x)
            shape = {"input_shape": list(x.shape[:-1])} if x.ndim == 4 else {}
            cases[f"slayer {name}"] = case(file, "spikes", x, 30, **shape)
        return cases, lava(cases)

    return run


@pytest.mark.parametrize("name", [*EXPORTED, *(f"slayer {name}" for name in SLAYER)])
def test_written_files(written, emulate, held, name):
    cases, sent = written()
    assert_same(emulate, held, cases[name], sent[name])


def negative(weight):
    """Two neurons that spike by their biases; one of them is held back by its input."""
    format = SynapseFormat(8, 0, "mixed")
    population = QuantizedPopulation((2,), 4095, 0, 100, np.array([30, 30]), 6)
    projection = QuantizedProjection.dense("in", "p", np.array([[weight], [0]]), format)
    return QuantizedNetwork(
        "negative", "loihi2", {"in": Input((1,))}, {"p": population}, {"j": projection}, ("p",)
    )


def test_netx_halves_negative_weights_of_a_power_of_two(written, emulate):
    """optimize_weight_bits: with no weight above 0, a smallest weight of -2^k becomes -2^(k-1)."""
    cases, sent = written()
    _, x = cases["negative"]
    assert np.array_equal(emulate(negative(-32), x).s("p"), sent["negative"][0])
    assert not np.array_equal(emulate(negative(-64), x).s("p"), sent["negative"][0])


def test_lava_drops_the_delays_of_a_convolution(written, emulate):
    cases, sent = written()
    (arguments, x), (lavas,) = cases["slayer conv with delays"], sent["slayer conv with delays"]
    network = nmtool.load(arguments["net_config"], input_shape=arguments["input_shape"])
    ((name, population),) = network.populations.items()
    undelayed = replace(network, populations={name: replace(population, axonal_delay=0)})
    assert np.max(population.axonal_delay) > 0
    assert "netx drops them" in network.metadata["notes"][0]
    assert np.array_equal(emulate(undelayed, x).s(name), lavas)
