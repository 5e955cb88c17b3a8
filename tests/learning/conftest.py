"""Small programs to learn on; none of them needs Lava."""

from dataclasses import dataclass

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.chip import load_chip, load_hardware
from nmtool.compiler import compile_program
from nmtool.config import Experiment
from nmtool.layers import from_config
from nmtool.learning.loop import Loop, LoopState
from nmtool.network import CubaLif, Input, Network, Population, Projection

CHIP = load_chip("loihi2")


def make_experiment(hidden=24, steps=16, validation=120, test=1400, train=None, **finetune):
    neuron = {"kind": "cuba", "threshold": 1.25, "current_decay": 0.25, "voltage_decay": 0.03}
    settings = {"rounds": 2, "readout_rounds": 1, "batch": 32, "diagnosis": False, **finetune}
    return Experiment.model_validate(
        {
            "schema": "nmtool.experiment/v1",
            "name": "small",
            "seed": 5,
            "data": {
                "name": "digits",
                "test": test,
                "validation": validation,
                "encoding": {"kind": "rate", "steps": steps},
            },
            "network": {
                "neuron": neuron,
                "layers": [{"dense": hidden, "name": "hidden"}, {"dense": 20, "name": "output"}],
                "readout": {"kind": "count", "neurons_per_class": 2},
            },
            "train": {
                "epochs": 1,
                "batch": 32,
                "optimizer": {"name": "adam", "lr": 4e-3},
                "loss": {"kind": "count_cross_entropy"},
                **(train or {}),
            },
            "finetune": settings,
        }
    )


@dataclass
class Study:
    """An experiment, its program for a target, and the real weights that the host starts from."""

    experiment: Experiment
    program: object
    shadow: dict
    hardware: object

    @classmethod
    def make(cls, experiment, target="loihi2-faulty", overrides=()):
        hardware = load_hardware(target, overrides)
        network = from_config(experiment.network, (8, 8, 1), 10, experiment.seed)
        program = compile_program(network, CHIP, hardware.weight_bits, 16)
        shadow = {n: p.weight.astype(np.float64) for n, p in network.projections.items()}
        return cls(experiment, program, shadow, hardware)

    def open(self, runs=0):
        faulty = self.hardware.faults is not None
        target = self.hardware.with_faults(first_run=runs) if faulty else self.hardware
        return open_session(self.program, target)

    def loop(self, session, layers="all", state=None, **hooks):
        state = state or LoopState.start(self.program, self.shadow)
        return Loop(self.experiment, self.program, session, layers, state, **hooks)


@pytest.fixture(scope="session")
def experiment():
    return make_experiment


@pytest.fixture(scope="session")
def study():
    return Study.make


def make_program(
    seed=0, delays=(0, 0), axonal=0, n=(7, 6, 8), bias=True, decays=(0.3, 0.1), mean=0.2
):
    """A program of two layers with biases, synaptic and axonal delays."""
    rng = np.random.default_rng(seed)
    neuron = CubaLif(1.0, *decays)
    amounts = rng.uniform(-0.1, 0.2, n[1]) if bias else None
    weights = [rng.normal(mean, 0.5, shape) for shape in ((n[1], n[0]), (n[2], n[1]))]
    network = Network(
        "small",
        {"input": Input((n[0],))},
        {
            "hidden": Population((n[1],), neuron, amounts, axonal),
            "output": Population((n[2],), neuron),
        },
        {
            "a": Projection.dense("input", "hidden", weights[0], delays[0]),
            "b": Projection.dense("hidden", "output", weights[1], delays[1]),
        },
        ("output",),
    )
    return compile_program(network, CHIP, None, 24)


@pytest.fixture(scope="session")
def small_program():
    """``small_program(seed, delays, axonal, ...)``."""
    return make_program


@pytest.fixture(scope="session")
def small_loop():
    """A program whose hidden population excites and inhibits itself, two steps later."""
    rng = np.random.default_rng(0)
    neuron = CubaLif(1.0, 0.3, 0.1)
    dense = {
        name: rng.normal(0.1, 0.5, shape)
        for name, shape in {"in": (6, 7), "own": (6, 6), "out": (8, 6)}.items()
    }
    network = Network(
        "loop",
        {"input": Input((7,))},
        {"hidden": Population((6,), neuron), "output": Population((8,), neuron)},
        {
            "in": Projection.dense("input", "hidden", dense["in"]),
            "own": Projection.dense("hidden", "hidden", dense["own"], 1),
            "out": Projection.dense("hidden", "output", dense["out"]),
        },
        ("output",),
    )
    return compile_program(network, CHIP, None, 24)
