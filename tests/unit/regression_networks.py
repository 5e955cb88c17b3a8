"""Small networks of three kinds, their programs, inputs and golden runs."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.base import resolve_probe
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import load_chip
from nmtool.compiler import compile_program
from nmtool.config import Readout
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population, Projection
from nmtool.operations import Conv, Dense, Flatten
from nmtool.regression.golden import Golden
from nmtool.spikes import SpikeTrain

ALL = "spikes,current,voltage"
STEPS = 40
KINDS = ("dense", "conv", "recurrent")


def make_network(kind, reset=None):
    rng = np.random.default_rng(0)
    lif = CubaLif(1.25, 0.25, 0.03)
    shape = (8, 8, 2) if kind == "conv" else (20,)
    hidden = (6, 6, 4) if kind == "conv" else (30,)
    populations = {"h": Population(hidden, lif, reset=reset), "o": Population((10,), lif)}
    out = rng.normal(0, 0.4, (10, int(np.prod(hidden))))
    if kind == "conv":
        projections = {
            "ih": Projection("i", "h", (Conv(rng.normal(0, 0.4, (4, 3, 3, 2))),)),
            "ho": Projection("h", "o", (Flatten(), Dense(out))),
        }
    else:
        projections = {
            "ih": Projection.dense("i", "h", rng.normal(0, 0.4, (30, 20))),
            "ho": Projection.dense("h", "o", out),
        }
    if kind == "recurrent":
        projections["hh"] = Projection.dense("h", "h", rng.normal(0, 0.2, (30, 30)), 2)
    return Network(kind, {"i": Input(shape)}, populations, projections, ("o",), readout=Readout())


def make_program(kind, reset=None):
    return compile_program(make_network(kind, reset), load_chip("loihi2"), n_steps=STEPS)


def make_inputs(program, samples=4, seed=1):
    raster = np.random.default_rng(seed).random((samples, program.network.sizes["i"], STEPS)) < 0.1
    return {"i": SpikeTrain.from_raster(raster)}


def run(program, inputs, probe=ALL):
    with ReferenceBackend().open(program) as session:
        return session.run(inputs, probe=probe)


def make_golden(program, samples=4, probe="spikes", policies=("exact",)):
    inputs = make_inputs(program, samples)
    expected = run(program, inputs, resolve_probe(program, probe))
    labels = np.arange(samples) % 10
    return Golden(program, inputs, expected, labels, policies)


def altered(program, populations=None, projections=None):
    """The program with other registers of some populations and fields of some projections."""
    net = program.network
    changed = {n: replace(net.populations[n], **c) for n, c in (populations or {}).items()}
    others = {n: replace(net.projections[n], **c) for n, c in (projections or {}).items()}
    return replace(
        program,
        network=replace(
            net,
            populations={**net.populations, **changed},
            projections={**net.projections, **others},
        ),
    )


def as_of(recording, program):
    """A recording of a broken program, as a target would give it that was told to run another."""
    return replace(recording, fingerprint=program.fingerprint)


@pytest.fixture(params=KINDS, scope="session")
def program(request):
    return make_program(request.param)


EVERY_FOUR = PeriodicReset(4, 1)
