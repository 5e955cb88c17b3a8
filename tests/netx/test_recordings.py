"""Every recording in lava-dl's wheel, bit for bit: how it was made, and how many values agree.

Time is the last axis; images are (x, y, channel). ``compared`` gives (values compared, values that
differ); the recording must not be empty.
"""

import numpy as np
import pytest

import nmtool
from nmtool.chip import SynapseFormat
from nmtool.network import Input
from nmtool.operations import Conv, Dense
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

PLAIN = SynapseFormat(8, 0, "mixed")


def compared(recording, found):
    assert recording.shape == found.shape
    assert np.any(recording)
    return recording.size, int(np.count_nonzero(recording != found))


def spiking(shape, decay_u, decay_v, threshold):
    return QuantizedPopulation(
        shape, decay_u, decay_v, threshold, np.zeros(int(np.prod(shape)), np.int64)
    )


def graded(shape, model, threshold=0, bias=0):
    exponent = 0 if model == "sigma" else 6
    return QuantizedPopulation(
        shape,
        0,
        0,
        threshold,
        np.broadcast_to(bias, shape).ravel().astype(np.int64),
        2 * exponent,
        model=model,
        activation="unit" if model == "delta" else "relu",
        spike_exponent=exponent,
        state_exponent=exponent,
    )


def block(source, population, *operations):
    """One population, driven by its input or behind a chain of operations."""
    projections = {}
    if operations:
        projections["p"] = QuantizedProjection("in", "out", operations, PLAIN)
    return QuantizedNetwork(
        "block", "loihi2", {"in": source}, {"out": population}, projections, ("out",)
    )


# tiny.net


def image(array):
    """From (1, channel, y, x, time)."""
    return array[0].transpose(2, 1, 0, 3)


@pytest.fixture(scope="session")
def tiny(wheel, recorded, emulate, held):
    def run(**options):
        network = nmtool.load(wheel / "tiny.net", **options)
        return emulate(network, held(recorded("tinynet/input_bias"), 17))

    return run


def tiny_counts(recorded, result):
    """The recording of layer k lags by 1 - k steps, and its first column is empty."""
    names = ("input", "layer1", "current", "output")
    rec = {name: image(recorded(f"tinynet/{name}")) for name in names}
    assert not any(np.any(array[..., 0]) for array in rec.values())
    found = {
        "input": result.s("layer0")[..., :15],
        "layer1": result.s("layer1")[..., 1:16],
        "current": result.u("layer1")[..., 1:16],
        "output": result.s("layer2")[..., 2:17],
    }
    rec["current"] = 64 * rec["current"]
    return {name: compared(rec[name][..., 1:], found[name]) for name in names}


@pytest.mark.parametrize("interval", [15, 16, 17, 100])
def test_tinynet(tiny, recorded, interval):
    assert tiny_counts(recorded, tiny(reset_interval=interval)) == {
        "input": (11520, 0),
        "layer1": (12960, 0),
        "current": (12960, 0),
        "output": (540, 0),
    }


def test_tinynet_without_its_resets_is_another(tiny, recorded):
    counts = tiny_counts(recorded, tiny())
    assert counts["input"] == (11520, 0)
    assert counts["layer1"] == (12960, 389)
    assert counts["output"] == (540, 46)


# One dense block of 256 neurons over 2000 steps


def test_dense_block(recorded, emulate):
    weight = recorded("dense/weight").astype(np.int64)
    network = block(Input((200,)), spiking((256,), 4095, 415, 6), Dense(weight))
    result = emulate(network, recorded("dense/in"))
    assert compared(recorded("dense/out"), result.s("out")) == (512000, 0)
    assert compared(64 * recorded("dense/current"), result.u("out")) == (512000, 0)


# ntidigits.net: dense layers with a delay for every neuron


def test_ntidigits(wheel, recorded, emulate):
    network = nmtool.load(wheel / "gts/ntidigits/ntidigits.net")
    assert network.readout.neurons_per_class == 22
    result = emulate(network, recorded("ntidigits/input"), probe="spikes:layer4")
    output = recorded("ntidigits/output")
    assert not np.any(output[:, 0])
    assert compared(output[:, 1:], result.s("layer4")[:, :-1]) == (725758, 0)


def test_ntidigits_delays_belong_to_the_targets(wheel, recorded, emulate):
    """The square layer reads either way; only one of them gives the recording."""
    network = nmtool.load(wheel / "gts/ntidigits/ntidigits.net", num_layers=5)
    delay = network.projections["layer3"].delay
    assert delay.shape == (256, 256)
    assert np.array_equal(delay, np.repeat(delay[:, :1], 256, axis=1))
    assert not np.array_equal(delay, delay.T)


# pilotnet_lif: eleven layers from one image

LIF_LAYERS = {
    "conv-0": ("layer1", 1824768),
    "conv-1": ("layer2", 635040),
    "conv-2": ("layer3", 193536),
    "conv-3": ("layer4", 135168),
    "conv-4": ("layer5", 61440),
    "fc-0": ("layer7", 2400),
    "fc-1": ("layer8", 1200),
    "fc-2": ("layer9", 240),
}


@pytest.fixture(scope="session")
def pilotnet(wheel, recorded, emulate, held):
    def run(interval):
        network = nmtool.load(
            wheel / "gts/pilotnet_lif/network.net", num_layers=10, reset_interval=interval
        )
        return emulate(network, held(recorded("pilotnet_lif/image"), 24))

    return {interval: run(interval) for interval in (16, 17)}


def test_pilotnet_lif_input(pilotnet, recorded):
    found = pilotnet[17].s("layer0")
    assert compared(recorded("pilotnet_lif/input"), found) == (950400, 0)


def test_pilotnet_lif_input_of_the_other_run(pilotnet, recorded):
    found = pilotnet[16].s("layer0")
    assert compared(recorded("pilotnet_lif/input-s"), found) == (950400, 0)


@pytest.mark.parametrize("name", [*LIF_LAYERS])
def test_pilotnet_lif_layer(pilotnet, recorded, name):
    layer, size = LIF_LAYERS[name]
    spikes = pilotnet[17].s(layer)
    assert compared(recorded(f"pilotnet_lif/{name}"), spikes) == (size, 0)
    assert compared(recorded(f"pilotnet_lif/{name}-u"), pilotnet[17].u(layer)) == (size, 0)
    # The chip's voltage register holds 128 in the step of a spike, Lava's variable 0.
    voltage = np.where(spikes, 128, pilotnet[17].v(layer))
    assert compared(recorded(f"pilotnet_lif/{name}-v"), voltage) == (size, 0)


@pytest.mark.parametrize("name", [*LIF_LAYERS])
def test_pilotnet_lif_layer_alone(wheel, recorded, emulate, name):
    """Each layer fed with the recorded spikes of the one before."""
    place, (layer, size) = list(LIF_LAYERS).index(name), LIF_LAYERS[name]
    number = int(layer.removeprefix("layer"))
    network = nmtool.load(
        wheel / "gts/pilotnet_lif/network.net",
        num_layers=number + 1,
        skip_layers=number,
        reset_interval=17,
        reset_offset=place + 1,
    )
    x = recorded(f"pilotnet_lif/{['input', *LIF_LAYERS][place]}")
    if name == "fc-0":
        x = x.transpose(2, 1, 0, 3)
    result = emulate(network, x)
    assert compared(recorded(f"pilotnet_lif/{name}"), result.s(layer)) == (size, 0)
    assert compared(recorded(f"pilotnet_lif/{name}-u"), result.u(layer)) == (size, 0)


def test_pilotnet_lif_last_layer(wheel, recorded, emulate):
    """Another run: the input's spikes go to layer 1, and resets are a step earlier."""
    network = nmtool.load(wheel / "gts/pilotnet_lif/network.net", skip_layers=1, reset_interval=16)
    x = recorded("pilotnet_lif/input-s")
    result = emulate(network, np.concatenate([x, np.zeros((*x.shape[:3], 1))], axis=-1))
    assert not np.any(recorded("pilotnet_lif/fc-3-s"))
    assert not np.any(result.s("layer10"))
    assert compared(recorded("pilotnet_lif/fc-3-u"), result.u("layer10")) == (25, 0)
    assert compared(recorded("pilotnet_lif/fc-3-v"), result.v("layer10")) == (25, 0)


def test_pilotnet_lif_at_interval_16_differs_after_the_second_reset(pilotnet, recorded):
    names = {"input": "layer0", **{name: layer for name, (layer, _) in LIF_LAYERS.items()}}
    wrong = {
        name: recorded(f"pilotnet_lif/{name}") != pilotnet[16].s(layer)
        for name, layer in names.items()
    }
    assert {name: int(w.sum()) for name, w in wrong.items()} == {
        "input": 30823,
        "conv-0": 67111,
        "conv-1": 20322,
        "conv-2": 7340,
        "conv-3": 3687,
        "conv-4": 1301,
        "fc-0": 22,
        "fc-1": 1,
        "fc-2": 0,
    }
    for place, w in enumerate(wrong.values()):
        assert not np.any(w[..., : 16 + place])


# pilotnet_sdnn: sigma-delta layers

SIGMA = {"sigma1": 376320, "sigma2": 120960}


@pytest.fixture(scope="session")
def sigma_delta(wheel, recorded, emulate, held):
    network = nmtool.load(wheel / "gts/pilotnet_sdnn/network.net")
    return emulate(network, held(recorded("pilotnet_sdnn/input")[..., 0], 20))


def test_pilotnet_sdnn_input(sigma_delta, recorded):
    act0 = recorded("pilotnet_sdnn/act0")
    value = recorded("pilotnet_sdnn/input")[..., 0].astype(np.int64)
    assert np.array_equal(act0[..., 0], value << 6)
    assert compared(act0, sigma_delta.s("layer0")) == (198000, 0)


@pytest.mark.parametrize("name", [*SIGMA])
def test_pilotnet_sdnn_sigma(sigma_delta, recorded, name):
    found = sigma_delta.u(name.replace("sigma", "layer"))
    assert compared(recorded(f"pilotnet_sdnn/{name}"), found) == (SIGMA[name], 0)


def test_pilotnet_sdnn_output(sigma_delta, recorded):
    output = recorded("pilotnet_sdnn/output")
    assert compared(output, sigma_delta.s("layer9")[:, :9]) == (9, 0)


def test_pilotnet_sdnn_from_messages(wheel, recorded, emulate):
    network = nmtool.load(wheel / "gts/pilotnet_sdnn/network.net", skip_layers=1)
    result = emulate(network, recorded("pilotnet_sdnn/act0").astype(np.int64))
    for name, size in SIGMA.items():
        found = result.u(name.replace("sigma", "layer"))
        assert compared(recorded(f"pilotnet_sdnn/{name}"), found) == (size, 0)
    assert compared(recorded("pilotnet_sdnn/output"), result.s("layer9")[:, :9]) == (9, 0)


def test_pilotnet_sdnn_with_another_spike_exponent_is_another(wheel, recorded, emulate, held):
    network = nmtool.load(wheel / "gts/pilotnet_sdnn/network.net", spike_exponent=0)
    result = emulate(network, held(recorded("pilotnet_sdnn/input")[..., 0], 9))
    found = result.s("layer9")[0].tolist()
    assert found == [0, -60, 70, 5594, 7048, 5328, -4946, -4946, -76]


def test_square_network(wheel, recorded, emulate):
    network = nmtool.load(wheel / "gts/pilotnet_sdnn/square_network.net", skip_layers=1)
    result = emulate(network, recorded("pilotnet_sdnn/act0")[:33, :33].astype(np.int64))
    found = {
        k: compared(recorded(f"pilotnet_sdnn/sigma{k}_square"), result.u(f"layer{k}"))
        for k in (1, 2, 3, 4)
    }
    assert found == {1: (122880, 0), 2: (35280, 0), 3: (20480, 0), 4: (5120, 0)}


# tinynet_sdnn: the three kinds of sigma-delta neurons, one block each


def test_delta_encoder(recorded, emulate):
    network = block(Input((16, 16, 3), "graded", "out"), graded((16, 16, 3), "delta", 20))
    bias = recorded("tinynet_sdnn/input_bias")[..., None]
    x = (bias * np.sin(2 * np.pi * np.arange(15) / 15)).astype(np.int64)
    found = emulate(network, x, probe="spikes").s("out")
    assert compared(recorded("tinynet_sdnn/input"), found) == (11520, 0)


def test_sigma_delta_block(recorded, emulate):
    """The wheel's test runs one step; the other columns of the recording are empty."""
    kernel = recorded("tinynet_sdnn/layer1_kernel").astype(np.int64)[:, ::-1, ::-1]
    bias = recorded("tinynet_sdnn/layer1_bias")
    network = block(
        Input((16, 16, 3), "graded"),
        graded((6, 6, 24), "sigma_delta", 20, bias),
        Conv(kernel, (2, 2)),
    )
    found = emulate(network, recorded("tinynet_sdnn/input").astype(np.int64)).s("out")
    layer1 = recorded("tinynet_sdnn/layer1")
    assert not np.any(layer1[..., 1:])
    assert compared(layer1[..., :1], found[..., :1]) == (864, 0)
    assert np.any(found[..., 1:])


def test_sigma_decoder(recorded, emulate):
    """Its synapse had no message bits: it saw whether there was a message, not which."""
    weight = recorded("tinynet_sdnn/layer2_weight").astype(np.int64)
    network = block(Input((864,)), graded((100,), "sigma"), Dense(weight))
    x = recorded("tinynet_sdnn/layer1").reshape(864, 16) != 0
    found = emulate(network, x, probe="spikes,current")
    assert compared(recorded("tinynet_sdnn/layer2"), found.s("out")) == (1600, 0)
    assert compared(recorded("tinynet_sdnn/layer2"), found.u("out")) == (1600, 0)
