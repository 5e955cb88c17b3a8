"""Sizes and values that a file may not claim: each was a crash, a hang or a huge allocation."""

import json

import numpy as np
import pytest
import regression_networks as golden_nets
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changed_headers
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


SLICE = ("placement", 0)
LAYER = ("fit", "layers", 0)


def placed_twice(header, _):
    header["placement"].append(header["placement"][0])


def shared_neurons(header, _):
    """Two slices of as many neurons as the population has, which share some."""
    half = {**header["placement"][0], "box": [[0, 5], [0, 3], [0, 1]]}
    parts = [
        half,
        {**half, "box": [[0, 5], [2, 5], [0, 1]]},
        {**half, "box": [[0, 5], [0, 4], [1, 2]]},
    ]
    header["placement"] = [*parts, *header["placement"][1:]]


def many_slices(header, _):
    header["placement"] = [header["placement"][0]] * 20_000


def huge_slices(header, _):
    """Each as large as its population, so that counting neurons one by one would not end."""
    header["network"]["populations"]["h"]["shape"] = [2000, 2000, 1]
    header["placement"] = [{**header["placement"][0], "box": [[0, 2000]] * 2 + [[0, 1]]}] * 20_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(*SLICE, "box", value=[[0, 6], [0, 5], [0, 2]]), "NM-FIT-031 .* a slice inside"),
        (put(*SLICE, "box", value=[[0, 5], [0, 5]]), "NM-FIT-031 .* a slice inside"),
        (put(*SLICE, "box", value=[[-1, 5], [0, 5], [0, 2]]), "NM-FIT-031 .* a slice inside"),
        (put(*SLICE, "box", value=[[3, 3], [0, 5], [0, 2]]), "NM-FIT-031 .* a slice inside"),
        (put(*SLICE, "box", value=[[0, 5], [0, 5], [0, 1]]), "found 25 neurons in no slice"),
        (put(*SLICE, "box", value=[]), "NM-FIT-031 .* a slice inside"),
        (put(*SLICE, "box", value=[[0, 5.0], [0, 5], [0, 2]]), "box"),
        (put(*SLICE, "box", value=[[0], [0, 5], [0, 2]]), "damaged"),
        (put(*SLICE, "box", value=3), "damaged"),
        (put(*SLICE, "core", value=-1), "found chip 0, core -1, allowed"),
        (put(*SLICE, "core", value=4096), "found chip 0, core 4096, allowed"),
        (put(*SLICE, "core", value=2**40), "NM-FIT-031"),
        (put(*SLICE, "core", value="0"), "core: found"),
        (put(*SLICE, "chip", value=2**14), "found chip 16384, core"),
        (put(*SLICE, "population", value="x"), "found the population x, allowed h, o"),
        (put(*SLICE, "population", value=[]), "population"),
        (put("placement", value=[None]), "damaged"),
        (put("placement", value=None), "damaged"),
        (placed_twice, "placement of h: found .* in several slices"),
        (shared_neurons, "placement of h: found .* in several slices"),
        (many_slices, "placement of h: found .* in several slices"),
        (huge_slices, r"a\.h5"),
        (put("fit", "layers", value=[]), "fit: found the layers"),
        (put("fit", "cores", value=-1), "fit.cores: found -1"),
        (put("fit", "cores", value=2**40), "fit.cores: found"),
        (put("fit", "chips", value=2**40), "fit.chips: found"),
        (put("fit", "hops", "hops", value=-1), "hops"),
        (put("fit", "hops", "random", value=-1.0), "random"),
        (put(*LAYER, "population", value="x"), "fit: found the layers"),
        (put(*LAYER, "limiting", value="time"), "found 'time', allowed neurons"),
        (put(*LAYER, "neurons", value=51), "neurons: found 51"),
        (put(*LAYER, "share", value=-0.5), "share: found -0.5"),
        (put(*LAYER, "largest", "synapse_bits", value=-1), "synapse_bits: found -1"),
        (put(*LAYER, "total", "delay_slots", value=1.5), "delay_slots"),
        (put("fit", value={}), "damaged"),
        (
            put(
                "warnings", value=[{"code": "NM-FIT-999", "where": "", "found": "", "allowed": ""}]
            ),
            "99",
        ),
        (put("warnings", value=[{"code": "NM-FIT-050"}]), "damaged"),
    ],
)
def test_placements_and_what_they_take(tmp_path, clean, change, message):
    path, _ = changed(tmp_path, PROGRAM, change)
    with clean(), pytest.raises(ArtifactError, match=message):
        load(path)


def test_cores_that_the_chip_has_not_are_refused_when_the_program_is_opened(tmp_path, clean):
    path, _ = changed(tmp_path, PROGRAM, put(*SLICE, "core", value=120))
    with clean(), pytest.raises(FitError, match="core 120, allowed chips 0 to 0, cores 0 to 119"):
        use(load(path))


def test_a_program_without_a_placement_is_run(tmp_path, clean):
    def change(header, _):
        header |= {"placement": [], "fit": None}

    path, _ = changed(tmp_path, PROGRAM, change)
    with clean():
        use(load(path))


@settings(max_examples=80)
@given(st.data())
def test_changed_placements(tmp_path_factory, clean, data):
    """Whatever is changed: the program loads with every neuron placed once, or is refused."""
    header = json.loads(json.dumps(pack(PROGRAM).header))
    part = data.draw(st.sampled_from(["placement", "fit", "warnings"]))
    change = {part: header[part]}
    for _ in range(data.draw(st.integers(1, 3))):
        change = data.draw(changed_headers(change)) or {}
        if not change:
            break
    path = tmp_path_factory.mktemp("a") / "a.h5"
    write(path, Container(pack(PROGRAM).schema, header | change, dict(pack(PROGRAM).arrays)))
    with clean():
        program = load(path)
        use(program)
        shapes = program.network.shapes
        held = [
            (part.population, int(neuron))
            for part in program.placement
            for neuron in part.neurons(shapes[part.population])
        ]
        assert len(held) == len(set(held)) == (50 + 8 if program.placement else 0)
