"""Sizes and values that a file may not claim: each was a crash, a hang or a huge allocation."""

import json

import numpy as np
import pytest
import regression_networks as golden_nets
import strategies as nets
from test_containers import use, with_fingerprint, write

from nmtool.compiler import compile_program
from nmtool.errors import ArtifactError, FitError, NmtoolError
from nmtool.formats import load, pack
from nmtool.formats.container import Container
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population, Projection
from nmtool.operations import Conv, SumPool
from nmtool.regression.golden import load_golden, save_golden

LIF = CubaLif(1.25, 0.25, 0.03)


def network(delay=0):
    rng = np.random.default_rng(0)
    return Network(
        "claims",
        {"i": Input((6, 6, 1))},
        {"h": Population((5, 5, 2), LIF, reset=PeriodicReset(4)), "o": Population((2, 2, 2), LIF)},
        {
            "c": Projection("i", "h", (Conv(rng.normal(size=(2, 2, 2, 1))),), delay),
            "p": Projection("h", "o", (SumPool((2, 2), (2, 2)),)),
        },
        ("o",),
    )


PROGRAM = compile_program(network(), nets.CHIP, n_steps=8)


def changed(tmp_path, artifact, change):
    packed = pack(artifact)
    header, arrays = json.loads(json.dumps(packed.header)), dict(packed.arrays)
    change(header, arrays)
    container = Container(packed.schema, header, arrays)
    write(tmp_path / "a.h5", container)
    return tmp_path / "a.h5", container


def put(*where, value):
    def change(header, _):
        for key in where[:-1]:
            header = header[key]
        header[where[-1]] = value

    return change


def array(name, value):
    return lambda _, arrays: arrays.update({name: np.asarray(value)})


CONV = ("projections", "c", "operations", 0)
POOL = ("projections", "p", "operations", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("inputs", "i", "shape", value=[10**6, 10**6, 1]), "found"),
        (put("inputs", "i", "shape", value=[-6, -6, 1]), "shape"),
        (put("inputs", "i", "shape", value=[6, 6, 1.0]), "shape"),
        (put("inputs", "i", "shape", value=[1] * 70), "found"),
        (put("populations", "h", "shape", value=[2**32, 2**32]), "found"),
        (put("populations", "h", "axonal_delay", value=[1, 2]), "axonal_delay"),
        (put("populations", "h", "reset", "interval", value=0), "interval"),
        (put("populations", "h", "reset", "interval", value=2**40), "interval"),
        (put("populations", "h", "neuron", "threshold", value="x"), "threshold"),
        (put("populations", "h", "neuron", "refractory_delay", value=[1]), "refractory_delay"),
        (put(*CONV, "stride", value=[0, 0]), "stride"),
        (put(*CONV, "padding", value=[-1, 0]), "padding"),
        (put(*CONV, "padding", value=[2**40, 2**40]), "found"),
        (put(*CONV, "groups", value=None), "groups"),
        (put(*POOL, "stride", value=[0, 2]), "stride"),
        (put("projections", "p", "operations", value=None), "damaged"),
        (put("projections", "c", "delay", value=1.5), "delay"),
        (put("outputs", value=[]), "no outputs"),
        (put("outputs", value=[None]), "outputs"),
        (put("weight_bits", value=[8]), "weight_bits"),
        (put("name", value=None), "name"),
        (put("metadata", value=[]), "metadata"),
        (array("projections/c/0/weight", True), "weights of shape"),
    ],
)
def test_networks(tmp_path, clean, change, message):
    path, _ = changed(tmp_path, network(), change)
    with clean(), pytest.raises(ArtifactError, match=message):
        load(path)


def overhanging(header, _):
    header["projections"]["p"]["operations"][0] |= {"stride": [0, 2], "overhang": True}


def wide_window(header, _):
    header["inputs"]["i"]["shape"] = [1000, 1000, 1]
    header["populations"] |= {"h": {**header["populations"]["h"], "shape": [1, 1, 1]}}
    pool = {"kind": "SumPool", "kernel": [10**5] * 2, "stride": [10**5] * 2, "padding": [10**5] * 2}
    header["projections"]["c"]["operations"] = [{**pool, "overhang": False}]


@pytest.mark.parametrize("change", [overhanging, wide_window])
def test_windows_that_took_no_end(tmp_path, clean, change):
    path, _ = changed(tmp_path, network(), change)
    with clean(), pytest.raises(ArtifactError, match=r"a\.h5: projection"):
        load(path)


QUANTIZED = [
    put("populations", "h", "decay_u", value=10**9),
    put("populations", "h", "decay_u", value=[1]),
    put("populations", "h", "threshold", value=2**40),
    put("populations", "h", "bias_exponent", value=-1),
    put("populations", "h", "bias_exponent", value=None),
    put("populations", "h", "refractory_delay", value=2**62),
    put("projections", "c", "delay", value=10**9),
    put("projections", "c", "delay", value=-3),
    put("projections", "c", "format", "sign_mode", value="x"),
    put("projections", "c", "format", "sign_mode", value=["mixed"]),
    put("projections", "c", "format", "bits", value=10**6),
    put("projections", "c", "format", "exponent", value=10**6),
    array("projections/c/0/weight", np.full((2, 2, 2, 1), np.nan)),
    array("projections/c/0/weight", np.full((2, 2, 2, 1), 2**62)),
    array("populations/h/bias_mantissa", np.full(50, np.nan)),
    array("populations/h/axonal_delay", np.full(50, -1)),
    array("populations/h/axonal_delay", np.full(50, 0.5)),
]


@pytest.mark.parametrize("index", range(len(QUANTIZED)))
@pytest.mark.parametrize("kind", ["quantized", "program"])
def test_programs_that_no_chip_holds(tmp_path, clean, kind, index):
    """A fingerprint that is right does not make them good."""

    def change(header, arrays):
        QUANTIZED[index](header.get("network", header), arrays)

    path, container = changed(tmp_path, PROGRAM if kind == "program" else PROGRAM.network, change)
    with clean(), pytest.raises((ArtifactError, FitError)):
        use(with_fingerprint(path, container, load))


@pytest.mark.parametrize(
    ("where", "value"),
    [("n_steps", 0), ("n_steps", 10**9), ("n_steps", None), ("hold", -1), ("hold", 10**9)],
)
def test_schedules(tmp_path, clean, where, value):
    path, _ = changed(tmp_path, PROGRAM, put("reset", where, value=value))
    with clean(), pytest.raises(ArtifactError, match=where):
        load(path)


@pytest.fixture(scope="module")
def recording():
    return golden_nets.run(PROGRAM, nets.random_input(PROGRAM.network, 2, 8, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("spikes", "h", value=[2, 2**40, 8, True]), "neurons"),
        (put("spikes", "h", value=[2, 2**22, 8, True]), "spikes of 4194304"),
        (put("spikes", "h", value=[2, 50, 10**9, True]), "steps"),
        (put("spikes", "h", value=[2**33, 50, 2**33, True]), "samples"),
        (put("spikes", "h", value=[2**24, 50, 0, True]), "samples x neurons"),
        (put("spikes", "h", value=[-2, 50, -8, True]), "samples"),
        (put("spikes", "h", value=[4, 50, 4, True]), "samples and steps"),
        (put("spikes", "h", value=[2.0, 50, 8, True]), "samples"),
        (put("spikes", "h", value=[1, 50, 16, True]), "samples and steps"),
        (put("spikes", "h", value=None), "damaged"),
        (put("n_steps", value=10**9), "n_steps"),
        (put("n_steps", value="8"), "n_steps"),
        (put("backend", value=None), "backend"),
        (put("wall_time", value=None), "wall_time"),
        (array("spikes/h/count", np.full(16, 2**62)), "found"),
        (array("spikes/h/count", np.full(16, 0.5)), "whole numbers"),
        (array("spikes/h/gap", np.array([2**62, -(2**62)])), "found"),
        (array("voltage/h", np.zeros(3, int)), "states"),
        (array("voltage/h", np.zeros((2, 50, 8))), "whole numbers"),
        (array("voltage/h", np.zeros((2, 49, 8), int)), "states of 49 neurons"),
        (array("voltage/h", np.zeros((3, 50, 8), int)), "samples and steps"),
    ],
)
def test_recordings(tmp_path, clean, recording, change, message):
    path, _ = changed(tmp_path, recording, change)
    with clean(), pytest.raises(ArtifactError, match=message):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        put("inputs", value={}),
        put("inputs", value=[]),
        put("policies", value=[None]),
        put("policies", value=3),
        put("reason", value=None),
        put("program", "schema", value=["x"]),
        put("program", "header", value=None),
        put("expected", "header", "spikes", value={}),
        put("expected", "header", "fingerprint", value=None),
        array("labels", [0, 1, 2]),
        array("labels", [0.5] * 4),
    ],
)
def test_golden_runs(tmp_path, clean, change):
    path = tmp_path / "a.h5"
    save_golden(path, golden_nets.make_golden(golden_nets.make_program("dense")))
    from nmtool.formats.container import read_container

    container = read_container(path)
    header, arrays = dict(container.header), dict(container.arrays)
    change(header, arrays)
    write(path, Container(container.schema, header, arrays))
    with clean(), pytest.raises(ArtifactError, match=r"a\.h5"):
        load_golden(path)


def test_what_is_not_hostile_is_read(tmp_path, recording):
    for artifact in (network(), PROGRAM, PROGRAM.network, recording):
        path, _ = changed(tmp_path, artifact, lambda header, arrays: None)
        try:
            use(load(path))
        except NmtoolError as error:
            pytest.fail(str(error))
