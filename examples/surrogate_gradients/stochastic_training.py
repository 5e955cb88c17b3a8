"""6. Surrogate gradients train stochastic networks of several layers all the same.

Biased as they are (``multilayer_bias.py``), surrogate gradients with the surrogate of the escape
noise train a stochastic network on scikit-learn's handwritten digits as well as a deterministic
one: two hidden layers of 64 neurons, the class by spike counts, nmtool's own training
(``train.noise``). The Fano factor, variance over mean of a neuron's spike count in repeated trials
of the same digit, says that the neurons are noisy (1 is a Poisson process, 0 deterministic).

Controls: the stochastic network before training, and logistic regression on the pixels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import FloatArray, Row, Statement

from nmtool.chip import load_chip
from nmtool.config import Experiment
from nmtool.data import Samples, input_shape, load_split, n_classes, spikes_of
from nmtool.layers import from_config
from nmtool.network import Network
from nmtool.training.baseline import logistic_regression_accuracy
from nmtool.training.model import make_model
from nmtool.training.noise import Draw, fano_factor
from nmtool.training.trainer import train

CHIP = load_chip("loihi2")
BETA = 10.0
EPOCHS, SHORT, SEEDS = 12, 6, (0, 1)
TRIALS, FANO_TRIALS, FANO_SAMPLES = 3, 20, 60


def experiment(noisy: bool, epochs: int, seed: int) -> Experiment:
    """Two hidden layers of 64; the surrogate is the derivative of the escape function for both."""
    noise = {"noise": {"kind": "sigmoid", "beta": BETA}} if noisy else {}
    return Experiment.model_validate(
        {
            "schema": "nmtool.experiment/v1",
            "name": "stochastic",
            "seed": seed,
            "data": {"name": "digits", "encoding": {"kind": "rate", "steps": 24}},
            "network": {
                "neuron": {
                    "kind": "cuba",
                    "threshold": 1.25,
                    "current_decay": 0.25,
                    "voltage_decay": 0.1,
                },
                "layers": [
                    {"dense": 64, "name": "first"},
                    {"dense": 64, "name": "second"},
                    {"dense": 40, "name": "output"},
                ],
                "readout": {"neurons_per_class": 4},
            },
            "surrogate": {"kind": "sigmoid", "beta": BETA},
            "train": {
                "epochs": epochs,
                "batch": 32,
                "optimizer": {"name": "adam", "lr": 4e-3, "schedule": "cosine"},
                "loss": {"kind": "count_cross_entropy", "scale": 0.2},
                **noise,
            },
        }
    )


def spikes(config: Experiment, network: Network, samples: Samples, trial: int) -> dict[str, Any]:
    """Spikes of every population, shape (samples, neurons, steps); with noise those of a trial."""
    model = make_model(network, CHIP, config.surrogate, config.train.engine, config.train.noise)
    raster = spikes_of(samples, config.data).batch().astype(np.float32)
    draw = (
        Draw.of_trial(config.seed, trial, np.arange(len(samples))) if config.train.noise else None
    )
    with torch.no_grad():
        return {name: s.numpy() for name, s in model(torch.from_numpy(raster), draw=draw).items()}


def accuracy(config: Experiment, network: Network) -> float:
    """The share of right test samples, each seen once, averaged over trials."""
    test, per_class = load_split(config.data, "test"), config.network.readout.neurons_per_class
    right = []
    for trial in range(TRIALS if config.train.noise else 1):
        counts = spikes(config, network, test, trial)["output"].sum(axis=2)
        found = counts.reshape(len(test), -1, per_class).sum(axis=2).argmax(axis=1)
        right.append(float((found == test.labels).mean()))
    return float(np.mean(right))


def fano(config: Experiment, network: Network) -> float:
    """The Fano factor of the hidden neurons' counts, averaged over neurons and samples."""
    test = load_split(config.data, "test")
    few = test.pick(np.arange(FANO_SAMPLES))
    trials = [spikes(config, network, few, trial) for trial in range(FANO_TRIALS)]
    return fano_factor(
        [np.concatenate([s[name].sum(axis=2) for name in ("first", "second")]) for s in trials]
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """Test accuracies and Fano factors, one a seed."""

    accuracy: FloatArray
    fano: FloatArray


@dataclass(frozen=True, eq=False)
class Digits:
    """The networks by name, and the linear baseline."""

    network: dict[str, Trained]
    logistic_regression: float

    @property
    def gap(self) -> float:
        """Deterministic minus stochastic, in points, averaged over seeds."""
        means = [self.network[n].accuracy.mean() for n in ("deterministic", "stochastic")]
        return 100 * float(means[0] - means[1])


def measure(short: bool) -> Digits:
    """Train both kinds of network from every seed."""
    network: dict[str, Trained] = {}
    for name, noisy, trained in (
        ("deterministic", False, True),
        ("stochastic", True, True),
        ("stochastic, untrained", True, False),
    ):
        found = []
        for seed in SEEDS[: 1 if short else None]:
            config = experiment(noisy, SHORT if short else EPOCHS, seed)
            made = from_config(
                config.network, input_shape(config.data), n_classes(config.data), seed
            )
            made = train(config, made, CHIP)[0] if trained else made
            found.append((accuracy(config, made), fano(config, made)))
        network[name] = Trained(*np.array(found).T)
    return Digits(network, logistic_regression_accuracy(experiment(False, 1, 0).data))


def rows(digits: Digits) -> list[Row]:
    """Accuracies and Fano factors."""
    networks = [
        {
            "network": name,
            "test accuracy": float(t.accuracy.mean()),
            "seeds": " ".join(f"{a:.4f}" for a in t.accuracy),
            "Fano factor": float(t.fano.mean()),
        }
        for name, t in digits.network.items()
    ]
    linear = {"network": "logistic regression on pixels", "seeds": "-", "Fano factor": "-"}
    return [*networks, {**linear, "test accuracy": digits.logistic_regression}]


def claims(digits: Digits) -> dict[str, bool]:
    """What must hold."""
    deterministic, stochastic, untrained = digits.network.values()
    return {
        "stochastic within 3 points of deterministic": abs(digits.gap) < 3,
        "its Fano factor is above 0.1": float(stochastic.fano.mean()) > 0.1,
        "that of the deterministic network is 0": not deterministic.fano.any(),
        "it has learned: 90 % right, untrained 30 % at most": bool(
            stochastic.accuracy.min() > 0.9 and untrained.accuracy.max() < 0.3
        ),
    }


def draw(figure: Any, digits: Digits) -> None:
    """Accuracies and Fano factors."""
    left, right = figure.subplots(1, 2, sharey=True)
    for place, trained in enumerate(digits.network.values()):
        left.plot(100 * trained.accuracy, [place] * len(trained.accuracy), "o")
        right.plot(trained.fano, [place] * len(trained.fano), "o")
    left.axvline(100 * digits.logistic_regression, color="gray", lw=1, ls="--")
    left.set(xlabel="test accuracy (%); dashed: logistic regression")
    left.set(yticks=range(len(digits.network)), yticklabels=digits.network)
    left.set(ylim=(len(digits.network) - 0.5, -0.5))
    right.axvline(0.1, color="gray", lw=1, ls="--")
    right.set(xlabel="Fano factor of the hidden neurons", xlim=(-0.02, None))


SCRIPT = Statement(
    "sg-stochastic-training",
    "6. Surrogate gradients train stochastic networks of several layers all the same",
    measure,
    rows,
    claims,
    draw,
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
