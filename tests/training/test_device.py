"""Training on another device than the CPU, for which a device that is none stands in.

``second_device`` shows that no operation takes tensors of both devices and that the numbers are
those of the CPU. It shows nothing about CUDA: neither its kernels (lava-dl has its own there, which
are left out here) nor its rounding, memory or speed.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from trainable import networks

from nmtool.data import Samples, load_split
from nmtool.errors import DependencyError
from nmtool.layers import from_config

torch = pytest.importorskip("torch")

CONV = [
    {"conv": 3, "kernel": 3, "padding": 1, "name": "edges", "batch_norm": True},
    {"pool": 2, "name": "pooled", "weight": 1.0},
    {"pool": 2},
    {"dense": 20, "name": "output"},
]
LEARNED = [
    {
        "dense": 16,
        "name": "hidden",
        "dropout": 0.3,
        "batch_norm": True,
        "bias": 0.1,
        "learn": ["current_decay", "voltage_decay", "delay"],
        "max_delay": 3,
    },
    {"dense": 20, "name": "output"},
]
LOOP = [{"recurrent": 16, "name": "hidden"}, {"dense": 20, "name": "output"}]
REGULARIZERS = [
    {"kind": kind, "rate": 0.1, "weight": 1.0} for kind in ("upper_rate", "lower_rate", "sparsity")
]
CASES = {
    "dense": (None, {"regularizers": REGULARIZERS}),
    "convolution": (CONV, {"loss": {"kind": "spike_rate"}}),
    "learned": (LEARNED, {"weight_norm": True, "loss": {"kind": "max_over_time", "tau": 3}}),
    "loop": (LOOP, {"loss": {"kind": "spike_time", "true_steps": [2], "false_steps": [5]}}),
    "noise": (None, {"noise": {"kind": "sigmoid"}, "loss": {"kind": "first_spike", "tau": 2}}),
}
OPTIMIZERS = {
    "dense": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "convolution": {"name": "adamax", "lr": 4e-3},
    "loop": {"name": "rmsprop", "lr": 4e-3, "momentum": 0.5},
}


@pytest.fixture
def second_device(monkeypatch):
    """The device, which training then takes."""
    from second_device import second_device

    monkeypatch.setattr("nmtool.training.trainer.require_device", lambda device: None)
    with second_device() as device:
        yield device


@pytest.fixture
def few_samples(monkeypatch):
    """8 samples of each part."""

    def load(data, split):
        whole = load_split(data, split)
        return Samples(whole.values[:8], whole.labels[:8], whole.shape)

    monkeypatch.setattr("nmtool.training.trainer.load_split", load)


def trained(config, chip, device=None, state=None, on_epoch=None):
    """The trained network and its state."""
    from nmtool.training.trainer import train

    if device is not None:
        moved = config.train.model_copy(update={"device": device})
        config = config.model_copy(update={"train": moved})
    network = from_config(config.network, (8, 8, 1), 10, config.seed)
    return train(config, network, chip, state, None, on_epoch)


def arrays(network, state):
    """All numbers that a training leaves."""
    found = {f"network/{name}": p.weight for name, p in network.projections.items()}
    for kind in ("weights", "first_moment", "second_moment", "means"):
        found |= {f"{kind}/{name}": array for name, array in getattr(state, kind).items()}
    return found


@pytest.mark.parametrize("name", [*CASES])
def test_a_training_moves_everything_to_its_device(
    experiment, chip, few_samples, second_device, name
):
    layers, changes = CASES[name]
    optimizer = {"optimizer": OPTIMIZERS.get(name, {"name": "adam", "lr": 4e-3})}
    config = experiment(
        layers=layers, train={"engine": "slayer", "epochs": 2, "batch": 4, **optimizer, **changes}
    )
    here, there = (arrays(*trained(config, chip, device)) for device in (None, second_device))
    assert here.keys() == there.keys()
    assert any(np.any(array) for key, array in here.items() if key.startswith("first_moment/"))
    for key, array in here.items():
        np.testing.assert_array_equal(there[key], array, err_msg=key)


@settings(max_examples=6)
@given(networks())
def test_spikes_and_gradients_of_generated_networks(chip, network):
    """Every kind of projection, loops and skips."""
    from second_device import second_device

    from nmtool.config import SlayerSurrogate
    from nmtool.training.slayer import SlayerNetwork

    size = (2, network.sizes["input"], 8)
    raster = torch.from_numpy((np.random.default_rng(1).random(size) < 0.4).astype(np.float32))
    with second_device() as device:
        found = []
        for place in ("cpu", device):
            model = SlayerNetwork(network, chip, SlayerSurrogate()).to(place)
            spikes = model(raster.to(place))
            sum(train.sum() for train in spikes.values()).backward()
            gradients = [p.grad for p in model.parameters_by_name().values()]
            assert all(g is None or g.device == model.device for g in gradients)
            found.append([*spikes.values(), *(g for g in gradients if g is not None)])
        for here, there in zip(*found, strict=True):
            np.testing.assert_array_equal(there.detach().cpu().numpy(), here.detach().numpy())


def test_a_tensor_that_stays_behind_is_found(experiment, chip, second_device, monkeypatch):
    """What the tests above rest on: an operation on two devices is an error."""
    from nmtool.training import slayer

    config = experiment(train={"engine": "slayer", "epochs": 1})
    moved = slayer.SlayerNetwork._offset
    monkeypatch.setattr(slayer.SlayerNetwork, "_offset", lambda *a: torch.zeros(moved(*a).shape))
    with pytest.raises(RuntimeError, match="found tensors on both devices"):
        trained(config, chip, second_device)


def test_a_training_is_continued_there(experiment, chip, few_samples, second_device, tmp_path):
    from nmtool.training.checkpoint import load_checkpoint, save_checkpoint

    config = experiment(train={"engine": "slayer", "epochs": 2})

    def save(state):
        save_checkpoint(tmp_path / f"{len(state.history)}.h5", state, "key")

    whole = arrays(*trained(config, chip, second_device, on_epoch=save))
    again = arrays(*trained(config, chip, second_device, load_checkpoint(tmp_path / "1.h5", "key")))
    for key, array in whole.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)


def test_the_device_is_one_of_the_engine(experiment):
    with pytest.raises(ValueError, match="cuda needs engine slayer"):
        experiment(train={"device": "cuda"})
    assert experiment(train={"device": "cuda", "engine": "slayer"}).train.device == "cuda"


def test_what_cuda_needs_is_said(monkeypatch):
    from torch.utils import cpp_extension

    from nmtool.training import require_device

    require_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DependencyError, match=r"no CUDA device .*-s train\.device=cpu"):
        require_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with pytest.raises(DependencyError, match="nvcc and ninja"):
        require_device("cuda")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/usr/local/cuda")
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    require_device("cuda")
