"""What ``deploy`` can be given: rasters, raw samples, labels, data sets; and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

import nmtool as api
from nmtool import formats
from nmtool.backends import Recording
from nmtool.compiler import Program
from nmtool.config import Experiment, RateEncoding
from nmtool.data import encode, load_split

DEPLOY = ("deploy", "run/program.h5", "--hw", "reference")


def recording(path="rec.h5"):
    return formats.load_as(path, Recording)


def test_three_axes_in_give_three_axes_out(nmtool, rasters):
    done = nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "rec.h5", "--json")
    assert done.code == 0
    assert (done.json["samples"], done.json["steps"]) == (3, 12)
    assert recording().spikes["output"].to_raster().shape == (3, 20, 12)


def test_two_axes_in_give_two_axes_out(nmtool, folder, rasters):
    assert nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "batch.h5").code == 0
    np.save(folder / "one.npy", rasters[1])
    arguments = ("--input", "one.npy", "-o", "rec.h5", "--probe", "spikes,voltage")
    done = nmtool(*DEPLOY, *arguments)
    assert done.code == 0
    assert recording().spikes["output"].to_raster().shape == (20, 12)
    assert recording().voltage["hidden"].shape == (16, 12)
    together = recording("batch.h5").spikes["output"].to_raster()
    np.testing.assert_array_equal(recording().spikes["output"].to_raster(), together[1])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
def test_a_raster_of_numbers_is_a_raster(nmtool, folder, rasters, kind):
    assert nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "a.h5").code == 0
    np.save(folder / "numbers.npy", np.asfortranarray(rasters.astype(kind)))
    assert nmtool(*DEPLOY, "--input", "numbers.npy", "-o", "b.h5").code == 0
    assert nmtool("compare", "a.h5", "b.h5").code == 0


def test_raw_samples_are_encoded_as_the_program_says(nmtool, folder):
    experiment = Experiment.model_validate_json((folder / "run/experiment.json").read_text())
    test = load_split(experiment.data, "test")
    np.save(folder / "raw.npy", test.values)
    np.save(folder / "labels.npy", test.labels)
    np.save(folder / "spikes.npy", encode(test.values, RateEncoding(kind="rate", steps=12)).batch())
    given = ("--input", "raw.npy", "--encode", "--labels", "labels.npy")
    raw = nmtool(*DEPLOY, *given, "-o", "a.h5", "--json").json
    named = nmtool(*DEPLOY, "--data", "digits:test", "-o", "b.h5", "--json").json
    default = nmtool(*DEPLOY, "-o", "c.h5", "--json").json
    assert nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "d.h5").code == 0
    for other in ("b.h5", "c.h5", "d.h5"):
        assert nmtool("compare", "a.h5", other).code == 0
    accuracy = raw["measured"]["accuracy"]
    assert accuracy == named["measured"]["accuracy"] == default["measured"]["accuracy"]
    assert accuracy["value"] == round(accuracy["value"] * 1600) / 1600
    assert named["input"] == default["input"] == "digits:test"


def test_without_labels_there_is_no_accuracy(nmtool, rasters):
    measured = nmtool(*DEPLOY, "--input", "spikes.npy", "--json").json["measured"]
    assert "accuracy" not in measured
    assert measured["spikes.output"]["basis"] == "counted"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digits:tset", "allowed train, validation, test"),
        ("mnist:test", "allowed digits"),
        ("digits:", None),
        ("digits", None),
        (":test", "allowed digits"),
    ],
)
def test_data_by_name(nmtool, folder, data, says):
    done = nmtool(*DEPLOY, "--data", data)
    assert done.code == (0 if says is None else 3)
    assert says is None or says in done.err


def wrong_arrays():
    rng = np.random.default_rng(0)
    good = (rng.random((3, 64, 12)) < 0.4).astype(np.uint8)
    return {
        "one axis": good[0, 0],
        "four axes": good[None],
        "a number": np.array(1),
        "steps and neurons swapped": good.transpose(0, 2, 1),
        "too few neurons": good[:, :63],
        "values of 2": good * 2,
        "negative": -good.astype(np.int8),
        "fractions": good * 0.5,
        "not a number": good * np.nan,
        "text": good.astype("U1"),
        "bytes": good.astype("S1"),
        "dates": good.astype("datetime64[s]"),
        "complex": good * 1j,
        "a record": np.zeros((3, 64, 12), dtype=[("a", "i4")]),
        "no steps": good[:, :, :0],
        "no samples": good[:0],
        "no neurons": good[:, :0],
    }


@pytest.mark.parametrize("case", [*wrong_arrays()])
def test_an_array_that_is_no_raster(nmtool, folder, case):
    np.save(folder / "x.npy", wrong_arrays()[case])
    done = nmtool(*DEPLOY, "--input", "x.npy", "-o", "rec.h5")
    assert done.code == 3, done.err
    assert done.err.startswith("error: ")
    assert "found" in done.err
    assert "allowed" in done.err
    assert not (folder / "rec.h5").exists()


def wrong_raw():
    good = np.random.default_rng(0).random((3, 64))
    return {
        "a raster": np.zeros((3, 64, 12)),
        "one axis": good[0],
        "above 1": good * 16,
        "below 0": good - 1,
        "not a number": good * np.nan,
        "infinite": good * np.inf,
        "too many features": np.hstack([good, good]),
        "text": good.astype("U8"),
        "words": np.full((3, 64), "a"),
        "complex": good * 1j,
        "dates": np.zeros((3, 64), dtype="datetime64[s]"),
        "no samples": good[:0],
    }


@pytest.mark.parametrize("case", [*wrong_raw()])
def test_an_array_that_is_no_raw_sample(nmtool, folder, case):
    np.save(folder / "x.npy", wrong_raw()[case])
    done = nmtool(*DEPLOY, "--input", "x.npy", "--encode")
    assert done.code == 3, done.err
    assert done.err.startswith("error: ")
    assert "found" in done.err
    assert "Warning" not in done.err


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 2]),
        np.array([[1, 2, 3]]),
        np.array(["1", "2", "3"]),
        np.array([0.5, 1.0, 2.0]),
        np.array([1.0, np.nan, 2.0]),
        np.array([0, 1, 10]),
        np.array([-1, 1, 2]),
        np.array(3),
    ],
    ids=["two", "rows", "text", "fractions", "nan", "no such class", "negative", "a number"],
)
def test_labels_that_are_no_labels(nmtool, folder, rasters, labels):
    np.save(folder / "labels.npy", labels)
    done = nmtool(*DEPLOY, "--input", "spikes.npy", "--labels", "labels.npy")
    assert done.code == 3, done.err
    assert "labels" in done.err
    assert "found" in done.err
    assert "allowed" in done.err


@pytest.mark.parametrize("option", ["--input", "--labels"])
@pytest.mark.parametrize("kind", ["missing", "pickle", "text", "empty", "npz", "folder", "huge"])
def test_a_file_that_is_no_array(nmtool, folder, rasters, option, kind):
    path = folder / "x.npy"
    if kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "text":
        path.write_text("0 1 0 1")
    elif kind == "empty":
        path.touch()
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, spikes=rasters)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"
        head += b" " * (117 - len(head)) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    given = ("--input", "spikes.npy", "--labels", "x.npy")
    done = nmtool(*DEPLOY, *(given if option == "--labels" else ("--input", "x.npy")))
    assert done.code == 3, done.err
    assert done.err.startswith(f"error: {option} x.npy: "), done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("probe", "spikes", "current", "voltage"),
    [
        (None, {"output"}, set(), set()),
        ("spikes", {"hidden", "output"}, set(), set()),
        ("voltage:hidden", {"output"}, set(), {"hidden"}),
        ("voltage", {"output"}, set(), {"hidden", "output"}),
        ("spikes:hidden,current:output", {"hidden", "output"}, {"output"}, set()),
        ("spikes,current,voltage", *[{"hidden", "output"}] * 3),
        (" voltage:hidden, voltage:output ", {"output"}, set(), {"hidden", "output"}),
    ],
)
def test_what_is_probed_is_recorded_and_nothing_else(
    nmtool, rasters, probe, spikes, current, voltage
):
    given = ("--probe", probe) if probe else ()
    assert nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "rec.h5", *given).code == 0
    found = recording()
    assert set(found.spikes) == spikes
    assert set(found.current) == current
    assert set(found.voltage) == voltage


def test_probes_do_not_change_what_runs(nmtool, rasters):
    assert nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "a.h5").code == 0
    assert (
        nmtool(*DEPLOY, "--input", "spikes.npy", "-o", "b.h5", "--probe", "spikes,voltage").code
        == 0
    )
    assert recording("a.h5").spikes["output"] == recording("b.h5").spikes["output"]


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        ("spike", "allowed spikes, current, voltage"),
        ("voltage:hiden", "allowed hidden, output"),
        ("voltage:input", "allowed hidden, output"),
        (":hidden", "allowed spikes, current, voltage"),
    ],
)
def test_a_wrong_probe(nmtool, rasters, probe, says):
    done = nmtool(*DEPLOY, "--input", "spikes.npy", "--probe", probe)
    assert done.code == 3
    assert says in done.err


@pytest.mark.parametrize(
    ("line", "spikes"),
    [
        ("probes: {spikes: all}", {"hidden", "output"}),
        ("probes: {spikes: [hidden]}", {"hidden", "output"}),
        ("probes: {spikes: outputs}", {"output"}),
    ],
)
def test_the_target_says_what_is_probed(nmtool, hardware, rasters, line, spikes):
    path = hardware(line)
    arguments = ("deploy", "run/program.h5", "--hw", path, "--input", "spikes.npy", "-o", "rec.h5")
    assert nmtool(*arguments).code == 0
    assert set(recording().spikes) == spikes


def test_a_recording_knows_where_it_is_from(nmtool, folder, rasters):
    assert nmtool("compile", "run", "--hw", "loihi2-faulty", "-o", "f.h5").code == 0
    arguments = ("--hw", "loihi2-faulty", "--input", "spikes.npy", "-o", "rec.h5")
    assert nmtool("deploy", "f.h5", *arguments).code == 0
    facts = recording().provenance
    assert facts["target"]["name"] == "loihi2-faulty"
    assert facts["input"] == "spikes.npy"
    assert "not a chip" in facts["faults"]["label"]
    assert len(facts["faults"]["dead"]["hidden"]) == 2
    assert recording().fingerprint == formats.load_as("f.h5", Program).fingerprint


def test_steps_may_differ_from_those_of_the_encoding(nmtool, folder):
    spikes = np.random.default_rng(1).random((2, 64, 31)) < 0.3
    np.save(folder / "long.npy", spikes)
    assert nmtool(*DEPLOY, "--input", "long.npy", "--json").json["steps"] == 31


# several inputs


NEURON = api.CubaLif(1.0, 0.25, 0.03)


@pytest.fixture
def two_inputs(folder):
    """two.h5, a program with the inputs ``left`` and ``right``, and left.npy, right.npy."""
    rng = np.random.default_rng(3)
    network = api.Network(
        "two",
        {"left": api.Input((3,)), "right": api.Input((2, 2))},
        {"a": api.Population((5,), NEURON)},
        {
            "l": api.Projection.dense("left", "a", rng.normal(0.5, 1, (5, 3))),
            "r": api.Projection.dense("right", "a", rng.normal(0.5, 1, (5, 4))),
        },
        ("a",),
    )
    formats.save("net.h5", network)
    formats.save("two.h5", api.compile(network, steps=12))
    given = {"left": rng.random((2, 3, 9)) < 0.5, "right": rng.random((2, 2, 2, 9)) < 0.5}
    for name, values in given.items():
        np.save(f"{name}.npy", values)
    return given


TWO = ("deploy", "two.h5", "--hw", "reference")
BOTH = ("--input", "right=right.npy", "--input", "left=left.npy")


def test_every_input_has_its_file(nmtool, two_inputs):
    done = nmtool(*TWO, *BOTH, "-o", "rec.h5", "--json")
    assert done.code == 0, done.err
    assert (done.json["samples"], done.json["steps"]) == (2, 9)
    trains = {
        name: api.SpikeTrain.from_raster(values.reshape(2, -1, 9))
        for name, values in two_inputs.items()
    }
    with api.open("two.h5", "reference") as session:
        wanted = session.run(trains).spikes["a"]
    assert recording().spikes["a"] == wanted
    assert len(wanted) > 0
    compared = ("compare", "rec.h5", "reference", "--program", "two.h5", *BOTH)
    assert nmtool(*compared).code == 0


def test_the_trainer_has_one_input(nmtool, two_inputs):
    given = ("--program", "two.h5", *BOTH, "--dry-run")
    done = nmtool("compare", "trainer:net.h5", "reference", *given)
    assert done.code == 4
    assert "trainer: found 2 inputs (left, right), allowed 1" in done.err


def test_a_data_set_feeds_one_input(nmtool, two_inputs, folder):
    data = formats.load_as("run/program.h5", Program).network.data
    program = formats.load_as("two.h5", Program)
    formats.save(
        "two.h5",
        replace(program, network=replace(program.network, data=data)),
    )
    done = nmtool(*TWO)
    assert done.code == 3
    assert "found 2 inputs (left, right), a data set feeds 1" in done.err


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (["left.npy"], 3, "found no name of an input, allowed NAME=FILE.npy with the names left"),
        (["left=left.npy"], 3, "found nothing for right, allowed a file for each of left, right"),
        (["lfet=left.npy"], 3, "found the input 'lfet', allowed left, right; did you mean left?"),
        (["left=left.npy", "left=right.npy"], 2, "found left.npy and right.npy for the input left"),
        (["left=left.npy", "right=no.npy"], 3, "--input no.npy: no such file"),
        (["left=left.npy", "right=left.npy"], 3, "input right: found shape (2, 3, 9), allowed"),
        (["left=left.npy", "right=long.npy"], 3, "9 for left, 11 for right; allowed the same numb"),
        (["left=left.npy", "right=one.npy"], 3, "found 1 sample without a sample axis, allowed 2"),
        ([], 3, "use --input left=FILE.npy --input right=FILE.npy"),
    ],
)
def test_wrong_names_of_inputs(nmtool, two_inputs, given, code, says):
    np.save("long.npy", np.zeros((2, 4, 11)))
    np.save("one.npy", np.zeros((4, 9)))
    done = nmtool(*TWO, *(part for item in given for part in ("--input", item)))
    assert done.code == code, done.err
    assert says in done.err


def test_a_name_before_the_sign_is_not_empty(nmtool, rasters):
    done = nmtool(*DEPLOY, "--input", "=spikes.npy")
    assert done.code == 2
    assert "--input =spikes.npy: found no name before the =, allowed [NAME=]FILE.npy" in done.err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_probe_of_nothing(nmtool, rasters, more):
    done = nmtool(*DEPLOY, "--input", "spikes.npy", "--probe", "", *more)
    assert done.code == 3
    assert "probe: found '', allowed spikes, current, voltage" in done.err


def test_one_sample_is_not_plural(nmtool, folder, rasters):
    np.save(folder / "one.npy", rasters[:1])
    done = nmtool(*DEPLOY, "--input", "one.npy")
    assert "(reference), 1 sample\n" in done.out


def test_one_input_may_be_named_too(nmtool, folder, rasters):
    for given in ("spikes.npy", "input=spikes.npy", "a=b.npy", "input=a=b.npy"):
        (folder / "a=b.npy").write_bytes((folder / "spikes.npy").read_bytes())
        done = nmtool(*DEPLOY, "--input", given, "--json")
        assert done.code == 0, done.err
        assert done.json["samples"] == 3
    done = nmtool(*DEPLOY, "--input", "output=spikes.npy")
    assert done.code == 3
    assert "found the input 'output', allowed input" in done.err


def test_a_network_without_inputs_needs_none(nmtool, folder):
    populations = {"a": api.Population((3,), NEURON, bias=np.full(3, 0.5))}
    formats.save("bare.h5", api.compile(api.Network("n", {}, populations, {}, ("a",)), steps=9))
    done = nmtool("deploy", "bare.h5", "--hw", "reference", "--json")
    assert done.code == 0, done.err
    assert (done.json["samples"], done.json["steps"]) == (1, 9)
    assert done.json["measured"]["spikes.a"]["value"] > 0
    done = nmtool("deploy", "bare.h5", "--hw", "reference", "--input", "x.npy")
    assert done.code == 3
    assert "the network has no inputs" in done.err


# images


def image_program(shape, kind, steps=7):
    populations = {"a": api.Population(shape, NEURON)}
    inputs = {"image": api.Input(shape, kind, None if kind == "spikes" else "a")}
    synapses = {}
    if kind == "spikes":
        size = int(np.prod(shape))
        synapses = {"w": api.Projection.dense("image", "a", np.eye(size))}
    network = api.Network("n", inputs, populations, synapses, ("a",))
    formats.save("image.h5", api.compile(network, steps=steps))


def deployed(nmtool, values, output="rec.h5"):
    np.save("x.npy", values)
    given = ("--input", "x.npy", "-o", output, "--probe", "spikes,voltage", "--force")
    return nmtool("deploy", "image.h5", "--hw", "reference", *given)


@pytest.mark.parametrize("kind", ["graded", "bias"])
@pytest.mark.parametrize("samples", [(), (5,)])
def test_an_image_is_held_for_the_steps_of_the_program(nmtool, folder, kind, samples):
    image_program((4, 3, 2), kind)
    values = np.random.default_rng(0).integers(-99, 900, (*samples, 4, 3, 2))
    assert deployed(nmtool, values, "a.h5").code == 0
    raster = np.repeat(values[..., None], 7, axis=-1)
    assert deployed(nmtool, raster, "b.h5").code == 0
    assert deployed(nmtool, raster.reshape(*samples, 24, 7), "c.h5").code == 0
    found = recording("a.h5")
    assert found.voltage["a"].shape == (*samples, 24, 7)
    assert len(found.spikes["a"]) > 0
    for other in ("b.h5", "c.h5"):
        np.testing.assert_array_equal(found.voltage["a"], recording(other).voltage["a"])


def test_an_image_is_held_as_long_as_the_rasters_beside_it(nmtool, folder):
    inputs = {"image": api.Input((4,), "bias", "a"), "x": api.Input((2,))}
    synapses = {"w": api.Projection.dense("x", "a", np.ones((4, 2)))}
    network = api.Network("n", inputs, {"a": api.Population((4,), NEURON)}, synapses, ("a",))
    formats.save("image.h5", api.compile(network, steps=7))
    np.save("image.npy", np.arange(4) * 100)
    np.save("x.npy", np.ones((2, 19)))
    given = ("--input", "image=image.npy", "--input", "x=x.npy", "-o", "rec.h5", "--json")
    done = nmtool("deploy", "image.h5", "--hw", "reference", *given)
    assert done.code == 0, done.err
    assert done.json["steps"] == 19


@pytest.mark.parametrize(
    ("kind", "shape", "found"),
    [
        ("graded", (3, 3), (3, 3, 3)),
        ("bias", (2, 2, 2), (2, 2, 2, 2)),
        ("bias", (4,), (4, 4)),
        ("bias", (4, 1), (1, 4, 1)),
    ],
)
def test_what_may_be_a_raster_or_an_image_is_refused(nmtool, folder, kind, shape, found):
    image_program(shape, kind)
    done = deployed(nmtool, np.ones(found))
    assert done.code == 3
    sure = f"(samples, {', '.join(map(str, shape))}, steps)"
    assert f"allowed without doubt {sure}" in done.err
    assert deployed(nmtool, np.ones((2, *shape, 5))).code == 0


def test_spikes_are_not_held(nmtool, folder):
    image_program((4, 3, 2), "spikes")
    assert deployed(nmtool, np.ones((4, 3, 2, 5))).code == 0
    assert recording().n_steps == 5
    done = deployed(nmtool, np.ones((4, 3, 2)))
    assert done.code == 3
    assert "allowed ([samples,] 24, steps) or ([samples,] 4, 3, 2, steps)\n" in done.err


def test_an_image_of_another_shape(nmtool, folder):
    image_program((16, 16, 3), "bias")
    done = deployed(nmtool, np.ones((16, 16)))
    assert done.code == 3
    assert "input image: found shape (16, 16), allowed ([samples,] 768, steps)" in done.err
    assert "or ([samples,] 16, 16, 3) to be held for 7 steps" in done.err


def test_a_truncated_recording_is_said_and_not_compared(nmtool, folder, rasters, hardware):
    path = hardware("faults: {injected: [{kind: truncated, steps: 5}]}")
    arguments = ("--input", "spikes.npy", "-o")
    done = nmtool("deploy", "run/program.h5", "--hw", path, *arguments, "short.h5")
    assert done.code == 0
    assert "warning: recorded 5 of 12 steps of each sample" in done.err
    short = formats.load_as("short.h5", Recording)
    assert short.n_steps == 5
    assert {train.n_steps for train in short.spikes.values()} == {5}
    assert short.provenance["faults"]["injected"] == [{"kind": "truncated", "steps": 5}]
    assert nmtool("deploy", "run/program.h5", "--hw", "reference", *arguments, "whole.h5").code == 0
    done = nmtool("compare", "short.h5", "whole.h5")
    assert done.code == 3
    assert "allowed the same on both sides" in done.err


@pytest.mark.parametrize("verb", [["deploy", "run/program.h5", "--hw"], ["compare", "reference"]])
def test_a_fault_without_a_place_is_named_before_anything_runs(nmtool, rasters, hardware, verb):
    path = hardware("faults: {injected: [{kind: dead, population: hiden, neuron: 1}]}")
    more = ["--program", "run/program.h5"] if verb[0] == "compare" else []
    done = nmtool(*verb, path, *more, "--input", "spikes.npy", "--dry-run")
    assert done.code == 3
    assert "faults.injected[0]: found the population 'hiden', allowed hidden" in done.err
