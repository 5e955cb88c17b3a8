"""The untrained network of an experiment's layers: shapes, fan-in, what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from nmtool.config import LayerConfig, NetworkConfig, NeuronConfig, Readout
from nmtool.errors import ConfigError, UnsupportedError
from nmtool.layers import from_config
from nmtool.network import CubaLif
from nmtool.operations import Conv, Dense, Flatten, Scale, SumPool

CUBA = NeuronConfig(kind="cuba", threshold=1.25, current_decay=0.25, voltage_decay=0.03)


def config(*layers, per_class=1, **rest):
    rest = {"neuron": CUBA, **rest}
    return NetworkConfig(
        layers=list(layers), readout=Readout(neurons_per_class=per_class), init_gain=2.0, **rest
    )


def test_from_config_builds_the_chain():
    other = NeuronConfig(kind="cuba", threshold=2.0, current_decay=1.0, voltage_decay=0.0)
    layers = (
        LayerConfig(dense=7, name="hidden", delay=3, bias=0.5, neuron=other),
        LayerConfig(dense=20, name="output"),
    )
    network = from_config(config(*layers, per_class=2), (9,), 10, seed=3)
    assert network.sizes == {"input": 9, "hidden": 7, "output": 20}
    hidden, output = network.populations.values()
    assert hidden.neuron == CubaLif(2.0, 1.0, 0.0)
    assert output.neuron == CubaLif(1.25, 0.25, 0.03)
    assert hidden.bias.tolist() == [0.5] * 7
    assert output.bias is None
    assert network.projections["hidden"].delay == 3
    assert (network.outputs, network.readout) == (("output",), Readout(neurons_per_class=2))
    weight = network.projections["output"].weight
    bound = 2.0 * 1.25 / np.sqrt(7)
    assert 0.8 * bound < np.abs(weight).max() <= bound
    again = from_config(config(*layers, per_class=2), (9,), 10, seed=3)
    np.testing.assert_array_equal(weight, again.projections["output"].weight)
    other_seed = from_config(config(*layers, per_class=2), (9,), 10, seed=4)
    assert np.any(weight != other_seed.projections["output"].weight)


def test_from_config_refuses_a_last_layer_without_a_neuron_for_every_class():
    with pytest.raises(
        ConfigError, match=r"network.layers.0.dense: found 12, allowed 20 \(10 classes x 2"
    ):
        from_config(config(LayerConfig(dense=12, name="out"), per_class=2), (9,), 10, seed=0)


def test_from_config_refuses_an_entry_function():
    with pytest.raises(UnsupportedError, match="found an entry function"):
        from_config(NetworkConfig(entry="a.b:c"), (9,), 10, seed=0)


def kinds(projection):
    return [type(operation) for operation in projection.operations]


def test_a_convolutional_network():
    layers = (
        LayerConfig(conv=4, kernel=3, padding=1, name="first"),
        LayerConfig(pool=2),
        LayerConfig(conv=6, kernel=[3, 1], stride=[1, 2], groups=2, name="second", delay=2),
        LayerConfig(pool=[2, 1], weight=1.1, name="pooled"),
        LayerConfig(dense=10, name="out"),
    )
    network = from_config(config(*layers), (8, 8, 2), 10, seed=0)
    shapes = {name: p.shape for name, p in network.populations.items()}
    assert shapes == {
        "first": (8, 8, 4),
        "second": (2, 2, 6),
        "pooled": (1, 2, 6),
        "out": (10,),
    }
    first, second, pooled, out = network.projections.values()
    assert kinds(first) == [Conv]
    assert kinds(second) == [SumPool, Conv]
    assert kinds(pooled) == [SumPool, Scale]
    assert kinds(out) == [Flatten, Dense]
    assert first.weight.shape == (4, 3, 3, 2)
    assert second.weight.shape == (6, 3, 1, 2)
    assert (second.delay, pooled.weight.tolist()) == (2, [1.1])
    for projection, fan_in in ((first, 3 * 3 * 2), (second, 3 * 1 * 2 * 4), (out, 12)):
        bound = 2.0 * 1.25 / np.sqrt(fan_in)
        assert 0.7 * bound < np.abs(projection.weight).max() <= bound


def test_a_recurrent_layer():
    network = from_config(
        config(LayerConfig(recurrent=12, name="hidden"), LayerConfig(dense=10, name="out")),
        (5, 5, 1),
        10,
        seed=0,
    )
    assert network.inputs["input"].shape == (25,)
    own = network.projections["hidden.recurrent"]
    assert (own.source, own.target, own.weight.shape) == ("hidden", "hidden", (12, 12))
    assert np.abs(own.weight).max() <= 2.0 * 1.25 / np.sqrt(12)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"conv": 4, "kernel": 9, "name": "c"}], r"network.layers.0.conv: .*windows that fit"),
        ([{"pool": 9}, {"dense": 10, "name": "o"}], r"layers.0.pool: .*windows that fit"),
        ([{"dense": 9, "name": "a"}, {"conv": 4, "kernel": 1, "name": "c"}], "1.conv: found"),
        ([{"conv": 4, "kernel": 1, "groups": 3, "name": "c"}], "0.conv: found 1 channels in"),
        ([{"dense": 10, "name": "a"}, {"pool": 1}], "network.layers.1.pool: .*source of shape"),
        ([{"conv": 10, "kernel": 8, "name": "a"}, {"pool": 1}], "pooling without neurons"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    made = [LayerConfig.model_validate(layer) for layer in layers]
    with pytest.raises(ConfigError, match=message):
        from_config(config(*made), (8, 8, 1), 10, seed=0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"name": "a"}, "one of dense, conv, pool, recurrent; found none"),
        ({"dense": 3, "conv": 3, "name": "a"}, "found dense and conv"),
        ({"dense": 3}, "a name for the layer"),
        ({"conv": 3, "name": "a"}, "a kernel for the convolution"),
        ({"dense": 3, "kernel": 3, "name": "a"}, "kernel in a layer with conv; found it with"),
        ({"pool": 2, "dilation": 2}, "dilation in a layer with conv; found it with pool"),
        ({"recurrent": 2, "stride": 2, "name": "a"}, "stride in a layer with conv or pool"),
        ({"pool": 2, "delay": 2}, "a name for a pool with neurons; found delay without"),
        ({"pool": [2, 2, 2]}, "pool"),
        ({"pool": 0}, "pool"),
    ],
)
def test_layers_that_make_no_sense_are_refused(layer, message):
    with pytest.raises(ValidationError, match=message):
        LayerConfig.model_validate(layer)
