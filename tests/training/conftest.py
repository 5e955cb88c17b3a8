"""A small experiment, and data sets cut down to what a test needs. Everything needs SLAYER."""

from pathlib import Path

import pytest

from nmtool.backends.lava.compat import slayer_missing
from nmtool.chip import load_chip
from nmtool.config import Experiment
from nmtool.data import Samples, load_split
from nmtool.layers import from_config


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    reason = slayer_missing()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lava)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chip():
    return load_chip("loihi2")


@pytest.fixture
def experiment():
    """``experiment(seed=..., train={...}, layers=[...])``, quick to train."""

    def make(seed=3, train=None, layers=None, neuron=None):
        cuba = {"kind": "cuba", "threshold": 1.25, "current_decay": 0.25, "voltage_decay": 0.03}
        dense = [{"dense": 16, "name": "hidden"}, {"dense": 20, "name": "output"}]
        return Experiment.model_validate(
            {
                "schema": "nmtool.experiment/v1",
                "name": "small",
                "seed": seed,
                "data": {"name": "digits", "encoding": {"kind": "rate", "steps": 8}},
                "network": {
                    "neuron": {**cuba, **(neuron or {})},
                    "layers": layers or dense,
                    "readout": {"kind": "count", "neurons_per_class": 2},
                },
                "train": {
                    "epochs": 3,
                    "batch": 16,
                    "optimizer": {"name": "adam", "lr": 4e-3, "schedule": "cosine"},
                    "loss": {"kind": "count_cross_entropy", "scale": 0.1},
                    "jitter": 1,
                    **(train or {}),
                },
            }
        )

    return make


@pytest.fixture
def untrained():
    def make(config):
        return from_config(config.network, (8, 8, 1), 10, config.seed)

    return make


@pytest.fixture
def small_sets(monkeypatch):
    """64 training and 40 validation samples; a look at the test set is an error.

    Returns a dictionary whose entries replace the labels of a split.
    """
    labels = {}

    def load(data, split):
        assert split in ("train", "validation"), "training never looks at the test set"
        whole = load_split(data, split)
        count = {"train": 64, "validation": 40}[split]
        return Samples(whole.values[:count], labels.get(split, whole.labels[:count]), whole.shape)

    monkeypatch.setattr("nmtool.training.trainer.load_split", load)
    return labels
