"""Files that are none, damaged, or hold what nmtool does not have: one clean error each."""

import shutil

import h5py
import numpy as np
import pytest
from chains import conv_chain, dense_chain

import nmtool
from nmtool.chip import load_chip
from nmtool.errors import ArtifactError, ConfigError, FitError, NmtoolError, UnsupportedError
from nmtool.formats.netx import is_netx, load_netx


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A good file of convolutions, a flatten and a dense layer; copy it, do not change it."""
    path = tmp_path_factory.mktemp("written") / "good.net"
    nmtool.export(conv_chain(3)[0], path)
    return path


@pytest.fixture
def edited(written, tmp_path):
    """``edited(change)`` is a copy of the file after ``change(layers)``."""

    def edit(change):
        path = tmp_path / "edited.net"
        shutil.copy(written, path)
        with h5py.File(path, "r+") as file:
            change(file["layer"])
        return path

    return edit


def put(key, value):
    """Replace one dataset."""

    def change(layers):
        if key in layers:
            del layers[key]
        layers[key] = value

    return change


def drop(key):
    def change(layers):
        del layers[key]

    return change


def group(key):
    def change(layers):
        del layers[key]
        layers.create_group(key)

    return change


CONV = "1/"
DENSE = "4/"
WRONG = {
    "a type that is no word": (put(CONV + "type", np.zeros(0, "S4")), ArtifactError, "edited.net"),
    "no weight": (drop(CONV + "weight"), ArtifactError, "layer1: found no weight"),
    "no type": (drop(CONV + "type"), ArtifactError, "layer1: found no type"),
    "no shape": (drop(CONV + "shape"), ArtifactError, "layer1: found no shape"),
    "no stride": (drop(CONV + "stride"), ArtifactError, "layer1: found no stride"),
    "no threshold": (
        drop(CONV + "neuron/vThMant"),
        ArtifactError,
        "layer1.neuron: found no vThMant",
    ),
    "no decay": (drop(CONV + "neuron/iDecay"), ArtifactError, "layer1.neuron: found no iDecay"),
    "a layer of numbers": (put("1", 3), ArtifactError, "layer1: found an array, allowed a group"),
    "a neuron of numbers": (put(CONV + "neuron", 3), ArtifactError, "layer1.neuron: found an arr"),
    "weights that no rows hold": (put(DENSE + "weight", np.ones(7)), ArtifactError, "layer4: "),
    "a group for a type": (group(CONV + "type"), ArtifactError, "layer1.type: found a group"),
    "a layer left out": (drop("1"), ArtifactError, "no layer 1"),
    "a group for a weight": (group(CONV + "weight"), ArtifactError, "found a group"),
    "text for a weight": (put(CONV + "weight", b"abc"), ArtifactError, "allowed numbers"),
    "text for a decay": (put(CONV + "neuron/iDecay", b"abc"), ArtifactError, "allowed numbers"),
    "complex weights": (
        put(CONV + "weight", np.ones((4, 1, 3, 2), complex)),
        ArtifactError,
        "numb",
    ),
    "a weight without axes": (put(CONV + "weight", 3), ArtifactError, "0 axes"),
    "a weight of two axes": (put(CONV + "weight", np.ones((2, 2))), ArtifactError, "2 axes"),
    "an infinite weight": (put(DENSE + "weight", np.full((5, 9), np.inf)), ArtifactError, "finite"),
    "no weights": (put(DENSE + "weight", np.zeros((0, 9))), ArtifactError, "edited.net"),
    "a weight of another size": (put(DENSE + "weight", np.ones((5, 7))), ArtifactError, "layer4"),
    "three strides": (put(CONV + "stride", [1, 2, 3]), ArtifactError, "3 values"),
    "a stride of 0": (put(CONV + "stride", [0, 1]), ArtifactError, "stride"),
    "a negative padding": (put(CONV + "padding", [-1, 0]), ArtifactError, "padding"),
    "groups that do not divide": (put(CONV + "groups", 3), ArtifactError, "groups"),
    "no groups at all": (put(CONV + "groups", 0), ArtifactError, "groups"),
    "another shape": (put(CONV + "shape", [9, 9, 9]), ArtifactError, "layer1"),
    "a shape of 0": (put(DENSE + "shape", [0, 1, 1]), NmtoolError, "edited.net"),
    "a negative shape": (put(DENSE + "shape", [-5, 1, 1]), NmtoolError, "edited.net"),
    "a bias of another size": (put(DENSE + "bias", [1, 2, 3]), ArtifactError, "layer4.bias"),
    "delays of another size": (put(DENSE + "delay", [1, 2, 3]), ArtifactError, "layer4.delay"),
    "an unknown type": (put(CONV + "type", [b"attention"]), UnsupportedError, "attention"),
    "transposed convolution": (put(CONV + "type", [b"convT"]), UnsupportedError, "transposed"),
    "unpooling": (put(CONV + "type", [b"unpool"]), UnsupportedError, "unpooling"),
    "an unknown neuron": (put(CONV + "neuron/type", b"ALIF"), UnsupportedError, "ALIF"),
    "resonators": (put(CONV + "neuron/type", b"RF"), UnsupportedError, "RF"),
    "a decay for every neuron": (
        put(DENSE + "neuron/vDecay", [1, 2, 3, 4, 5]),
        UnsupportedError,
        "vDecay: found 5 different values",
    ),
    "a type of other letters": (put(CONV + "type", [b"\xff\xfe"]), ArtifactError, "edited.net"),
    "a layer after the average": (put(CONV + "type", [b"average"]), NmtoolError, "edited.net"),
}


@pytest.mark.parametrize("name", [*WRONG])
def test_a_wrong_file(edited, name):
    change, kind, message = WRONG[name]
    path = edited(change)
    with pytest.raises(kind, match=message) as caught:
        nmtool.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("neuron/vDecay", 4097), ("neuron/iDecay", 5000), ("neuron/iDecay", -3), ("bias", 5000)],
)
def test_what_no_register_holds_is_refused_when_it_is_compiled(edited, key, value):
    network = nmtool.load(edited(put(DENSE + key, value)))
    with pytest.raises(FitError, match="layer4"):
        nmtool.compile(network)


def test_weights_beyond_8_bits_are_noted(edited):
    def change(layers):
        weight = layers[DENSE + "weight"][()]
        weight[0, 0] = 300
        put(DENSE + "weight", weight)(layers)

    notes = nmtool.load(edited(change)).metadata["notes"]
    assert any("beyond 8 bits" in note for note in notes)


def test_ignored_fields_are_noted(edited):
    notes = nmtool.load(edited(put(DENSE + "neuron/refDelay", 4))).metadata["notes"]
    assert any("refDelay: not 1, but netx does not use it" in note for note in notes)


def test_files_that_are_none(tmp_path):
    chip = load_chip("loihi2")
    (tmp_path / "text.net").write_text("layers: 3")
    (tmp_path / "empty.net").touch()
    (tmp_path / "folder.net").mkdir()
    for name in ("text.net", "empty.net", "folder.net", "missing.net"):
        path = tmp_path / name
        assert not is_netx(path)
        with pytest.raises(ArtifactError, match=name):
            load_netx(path, chip)
        with pytest.raises(ArtifactError, match=name):
            nmtool.load(path)


def test_an_hdf5_file_of_something_else(tmp_path):
    with h5py.File(tmp_path / "x.net", "w") as file:
        file["data"] = [1, 2, 3]
    with pytest.raises(ArtifactError, match=r"x\.net: found no layers"):
        nmtool.load(tmp_path / "x.net")


def test_no_cut_of_a_file_passes(written, tmp_path):
    content = written.read_bytes()
    path = tmp_path / "cut.net"
    for end in np.linspace(8, len(content) - 1, 25).astype(int):
        path.write_bytes(content[:end])
        with pytest.raises(ArtifactError, match=r"cut\.net"):
            nmtool.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "found the option layers, allowed num_layers"),
        ({"skip_layers": -1}, "skip_layers"),
        ({"skip_layers": 5}, "found 5, allowed 0 to 4 of 5 layers"),
        ({"skip_layers": 2, "num_layers": 2}, "allowed 0 to 1 of 2 layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 2.5}, "num_layers"),
        ({"reset_interval": 0}, "reset_interval"),
        ({"reset_interval": "often"}, "reset_interval"),
        ({"spike_exponent": -1}, "spike_exponent"),
        ({"reset_offset": 3}, "reset_offset: found 3 without reset_interval"),
        ({"input_shape": (0, 4, 2)}, "input_shape"),
    ],
)
def test_wrong_options(written, options, message):
    with pytest.raises(ConfigError, match=message):
        nmtool.load(written, **options)


def test_options_are_for_netx_files_only(tmp_path):
    nmtool.save(tmp_path / "network.h5", dense_chain(0)[0])
    with pytest.raises(ConfigError, match="skip_layers, which are for netx files"):
        nmtool.load(tmp_path / "network.h5", skip_layers=1)
