"""import, export, and compile of netx files: what is written, what is said, how it ends."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from nmtool import formats
from nmtool.api import export, load
from nmtool.chip import SynapseFormat
from nmtool.compiler import Program
from nmtool.errors import ConfigError
from nmtool.formats import save
from nmtool.network import Input
from nmtool.operations import Conv, Dense, Flatten
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

MIXED = SynapseFormat(8, 0, "mixed")


def population(shape):
    zero = np.zeros(int(np.prod(shape)), np.int64)
    return QuantizedPopulation(shape, 1023, 128, 60, zero, 6)


@pytest.fixture(scope="session")
def image():
    """A convolution and a dense layer behind a flatten."""
    rng = np.random.default_rng(0)
    kernel = Conv(2 * rng.integers(-60, 100, (2, 3, 3, 1)))
    chain = (Flatten(), Dense(2 * rng.integers(-60, 100, (4, 32))))
    return QuantizedNetwork(
        "image",
        "loihi2",
        {"pixels": Input((6, 6, 1))},
        {"seen": population((4, 4, 2)), "out": population((4,))},
        {
            "see": QuantizedProjection("pixels", "seen", (kernel,), MIXED),
            "say": QuantizedProjection("seen", "out", chain, MIXED),
        },
        ("out",),
    )


@pytest.fixture
def net(folder, image):
    """image.net in the working folder."""
    export(image, folder / "image.net")
    return folder / "image.net"


def edit(path, key, value):
    with h5py.File(path, "r+") as file:
        if key in file["layer"]:
            del file["layer"][key]
        file["layer"][key] = value


# import


def test_import_writes_the_network_beside_the_file(nmtool, net):
    done = nmtool("import", "image.net")
    assert (done.code, done.err) == (0, "")
    assert "wrote image.h5" in done.out
    assert "Flatten+Dense" in done.out
    network = formats.load(net.with_suffix(".h5"))
    assert [*network.populations] == ["layer1", "layer3"]
    stamp = network.metadata["provenance"]
    assert stamp["options"]["skip_layers"] == 0
    assert len(stamp["netx_sha256"]) == 64


def test_import_as_json(nmtool, net):
    done = nmtool("import", "image.net", "-o", "x.h5", "--json")
    assert done.code == 0
    found = done.json
    assert found["network"] == "x.h5"
    assert found["notes"] == []
    assert found["populations"]["layer1"] == {"shape": [4, 4, 2], "model": "cuba"}
    assert found["projections"]["layer3"]["operations"] == ["Flatten", "Dense"]


def test_import_options_are_those_of_netx(nmtool, folder, net):
    options = ["--skip-layers", 2, "--num-layers", 4, "--reset-interval", 16, "--reset-offset", 2]
    assert nmtool("import", "image.net", "-o", "y.h5", *options).code == 0
    network = formats.load(folder / "y.h5")
    resets = [(p.reset.interval, p.reset.offset) for p in network.populations.values()]
    assert resets == [(16, 2)]
    assert network.inputs["input"].shape == (32,)


def test_import_does_not_replace_what_is_there(nmtool, net, unchanged):
    assert nmtool("import", "image.net").code == 0
    with unchanged(net.parent):
        done = nmtool("import", "image.net")
        assert done.code == 2
        assert "image.h5" in done.err
    assert nmtool("import", "image.net", "--force").code == 0


def test_import_dry_run_writes_nothing(nmtool, net, unchanged):
    with unchanged(net.parent):
        done = nmtool("import", "image.net", "--dry-run", "--json")
    assert done.code == 0
    assert done.json["network"] is None


def test_import_warns_of_what_is_read_in_another_way(nmtool, net):
    edit(net, "1/delay", [3, 0])
    done = nmtool("import", "image.net", "--json")
    assert done.code == 0
    (note,) = done.json["notes"]
    assert "netx drops them" in note
    assert note in done.err


@pytest.mark.parametrize(
    ("key", "value", "code", "message"),
    [
        ("1/type", [b"convT"], 4, "transposed convolution"),
        ("1/neuron/type", b"RF", 4, "RF"),
        ("3/neuron/vDecay", [1, 2, 3, 4], 4, "split the layer"),
        ("1/weight", 3, 6, "axes"),
        ("1/stride", b"one", 6, "allowed numbers"),
    ],
)
def test_import_of_what_nmtool_cannot_read(nmtool, net, unchanged, key, value, code, message):
    edit(net, key, value)
    with unchanged(net.parent):
        done = nmtool("import", "image.net")
    assert done.code == code
    assert done.err.startswith("error: image.net: layer")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_import_of_other_files(nmtool, folder, content):
    (folder / "x.net").write_bytes(content)
    done = nmtool("import", "x.net")
    assert done.code == 6
    assert done.err.startswith("error: x.net")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing.net"], 6),
        (["image.net", "--skip-layers", "9"], 3),
        (["image.net", "--skip-layers", "-1"], 2),
        (["image.net", "--reset-interval", "0"], 2),
        (["image.net", "--chip", "loihi9"], 3),
        (["image.net", "-s", "seed=3"], 2),
        (["image.net", "--reset-offset", "3"], 2),
        (["image.net", "-o", "x.net"], 2),
        ([], 2),
    ],
)
def test_wrong_arguments_of_import(nmtool, net, unchanged, arguments, code):
    with unchanged(net.parent):
        assert nmtool("import", *arguments).code == code


def test_an_input_shape_may_not_contradict_the_file(nmtool, net, unchanged):
    with unchanged(net.parent):
        done = nmtool("import", "image.net", "--input-shape", 3, 3, 3)
    assert done.code == 3, done
    assert "input_shape: found (3, 3, 3), allowed (6, 6, 1) as the file says" in done.err
    assert nmtool("import", "image.net", "--input-shape", 6, 6, 1).code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reset_interval": 0}, "found 0, allowed whole numbers from 1"),
        ({"skip_layers": -1}, "found -1, allowed whole numbers from 0"),
        ({"input_shape": (6, 0, 1)}, r"allowed whole numbers from 1: \(x, y, channel\)"),
        ({"input_shape": 6}, r"found 6, allowed whole numbers from 1: \(x, y, channel\)"),
    ],
)
def test_options_of_load_say_what_they_may_be(net, options, says):
    with pytest.raises(ConfigError, match=says):
        load(net, **options)


def test_import_says_why_it_refuses(nmtool, net):
    done = nmtool("import", "image.net", "--reset-offset", 3)
    assert "found --reset-offset 3 without --reset-interval" in done.err
    done = nmtool("import", "image.net", "-o", "x.net")
    assert "`nmtool export SOURCE --format netx` writes netx files" in done.err
    net.rename("image.h5")
    done = nmtool("import", "image.h5", "--force")
    assert (done.code, "which is SOURCE itself" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("run/network.h5", "of a network: `nmtool compile` takes it"),
        ("run/program.h5", "of a program: `nmtool deploy` takes it"),
        ("image.h5", "of a quantised network: `nmtool compile` takes it"),
        ("rec.h5", "of a recording: `nmtool compare` takes it"),
    ],
)
def test_import_of_nmtools_own_files(nmtool, net, rasters, source, says):
    assert nmtool("import", "image.net").code == 0
    deploy = ("deploy", "run/program.h5", "--hw", "reference", "--input", "spikes.npy")
    assert nmtool(*deploy, "-o", "rec.h5").code == 0
    for output in ((), ("-o", "other.h5")):
        done = nmtool("import", source, *output)
        assert done.code == 6
        assert done.err.startswith(f"error: {source}: found nmtool's own file {says}")


def test_an_import_for_one_chip_says_how_to_get_it_for_another(nmtool, folder, net):
    assert nmtool("import", "image.net").code == 0
    done = nmtool("compile", "image.h5", "--hw", "loihi1", "-o", "p.h5")
    assert done.code == 6
    assert "`nmtool import image.net --chip loihi1`" in done.err
    assert nmtool("import", "image.net", "--chip", "loihi1", "-o", "one.h5").code == 0
    assert nmtool("compile", "one.h5", "--hw", "loihi1", "-o", "p.h5").code == 0


# export


def test_export_of_a_run_folder_reads_back(nmtool, folder):
    done = nmtool("export", "run", "--format", "netx", "-o", "x.net", "--json")
    assert done.code == 0
    assert done.json["file"] == "x.net"
    assert done.json["messages_compared"] > 0
    network = load(folder / "x.net")
    program = formats.load(folder / "run/program.h5")
    ours = [*program.network.projections.values()]
    for p, q in zip(ours, network.projections.values(), strict=True):
        assert np.array_equal(p.weight, q.weight)
    assert network.readout.neurons_per_class == 2


@pytest.mark.parametrize("source", ["run", "run/network.h5", "run/program.h5"])
def test_export_takes_every_kind_of_network(nmtool, folder, source):
    done = nmtool("export", source, "--format", "netx", "-o", "x.net")
    assert done.code == 0
    assert "spikes are the same on random input" in done.out
    assert (folder / "x.net").exists()


def test_import_gives_back_what_export_wrote(nmtool, net):
    before = net.read_bytes()
    assert nmtool("import", "image.net").code == 0
    assert nmtool("export", "image.h5", "--format", "netx", "-o", "again.net").code == 0
    with h5py.File(net) as one, h5py.File(net.with_name("again.net")) as other:
        for key in ("1/weight", "1/stride", "3/weight", "3/neuron/vThMant", "2/shape"):
            assert np.array_equal(one["layer"][key][()], other["layer"][key][()])
    assert net.read_bytes() == before


def test_export_says_which_resets_are_not_in_the_file(nmtool, folder, net):
    nmtool("import", "image.net", "--reset-interval", 16)
    done = nmtool("export", "image.h5", "--format", "netx", "-o", "again.net")
    assert "reset_interval=16, reset_offset=0" in done.out


def test_export_refuses_by_name(nmtool, folder, image, unchanged):
    slow = replace(image.populations["seen"], refractory_delay=4)
    formats.save(folder / "x.h5", replace(image, populations={**image.populations, "seen": slow}))
    with unchanged(folder):
        done = nmtool("export", "x.h5", "--format", "netx")
    assert done.code == 4
    assert done.err == ("error: population seen: found a refractory delay, a netx file has none\n")


def test_a_dry_run_of_export_checks_everything(nmtool, folder, image, unchanged):
    slow = replace(image.populations["seen"], refractory_delay=4)
    formats.save(folder / "x.h5", replace(image, populations={**image.populations, "seen": slow}))
    (folder / "damaged.h5").write_bytes((folder / "x.h5").read_bytes()[:-1])
    with unchanged(folder):
        for source, code in (("x.h5", 4), ("damaged.h5", 6), ("missing.h5", 6)):
            assert nmtool("export", source, "--format", "netx", "--dry-run").code == code
        done = nmtool("export", "run", "--format", "netx", "--dry-run", "--json")
    assert done.json["file"] is None
    assert done.json["messages_compared"] > 0


@pytest.mark.parametrize(
    ("given", "found"), [((), "no --format"), (("--format", "nir"), "the format 'nir'")]
)
def test_export_says_which_formats_there_are(nmtool, folder, given, found):
    done = nmtool("export", "run", *given)
    assert done.code == 2
    assert done.err == f"error: export: found {found}, allowed netx: add --format netx\n"


def test_export_force_and_dry_run(nmtool, folder, unchanged):
    arguments = ("export", "run", "--format", "netx", "-o", "x.net")
    with unchanged(folder):
        assert nmtool(*arguments, "--dry-run").code == 0
    assert nmtool(*arguments).code == 0
    with unchanged(folder):
        assert nmtool(*arguments).code == 2
    assert nmtool(*arguments, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run"], 2),
        (["run", "--format", "nir"], 2),
        (["missing.h5", "--format", "netx"], 6),
        (["experiment.yaml", "--format", "netx"], 6),
        (["run", "--format", "netx", "-o", "/proc/x.net"], 9),
    ],
)
def test_wrong_arguments_of_export(nmtool, folder, unchanged, arguments, code):
    with unchanged(folder):
        assert nmtool("export", *arguments).code == code


# compile and deploy


def test_compile_of_a_netx_file(nmtool, folder, net):
    done = nmtool(
        "compile", "image.net", "--hw", "reference", "-o", "p.h5", "--steps", 20, "--json"
    )
    assert done.code == 0
    assert done.json["notes"] == []
    program = formats.load_as(folder / "p.h5", Program)
    assert program.reset.n_steps == 20
    assert done.json["fingerprint"] == program.fingerprint


def test_compile_of_a_netx_file_takes_32_steps_and_says_so(nmtool, net):
    assert nmtool("compile", "image.net", "--hw", "reference", "-o", "p.h5").code == 0
    assert formats.load_as("p.h5", Program).reset.n_steps == 32
    help = " ".join(nmtool("compile", "--help").out.split())
    assert "those of the encoding; 32 if there is none, as in netx files" in help


def test_a_backend_is_no_target(nmtool, folder):
    for verb in (("compile", "run"), ("deploy", "run/program.h5")):
        done = nmtool(*verb, "--hw", "lava-loihi", "-o", "x.h5")
        assert done.code == 3
        assert "a backend, which the target kapoho-point and the target oheo-gulch" in done.err
        assert "`backend: lava-loihi`" in done.err


def test_compile_repeats_the_notes(nmtool, net):
    edit(net, "1/delay", [3, 0])
    done = nmtool("compile", "image.net", "--hw", "reference", "-o", "p.h5", "--json")
    assert done.code == 0
    assert "netx drops them" in done.json["notes"][0]
    assert "netx drops them" in done.err
    nmtool("import", "image.net")
    again = nmtool("compile", "image.h5", "--hw", "reference", "-o", "q.h5", "--json")
    assert again.json["notes"] == done.json["notes"]


def test_compile_says_what_no_register_holds(nmtool, net):
    edit(net, "3/neuron/vDecay", 4096)
    done = nmtool("compile", "image.net", "--hw", "reference", "-o", "p.h5", "--json")
    assert done.code == 0
    (line,) = done.json["simulators_only"]
    assert line.startswith("layer3.decay_v: 4096 runs on simulators only")
    assert line in done.err


def test_compile_of_a_file_that_does_not_fit(nmtool, net, unchanged):
    edit(net, "3/neuron/vDecay", 5000)
    with unchanged(net.parent):
        done = nmtool("compile", "image.net", "--hw", "reference", "-o", "p.h5")
    assert done.code == 5
    assert "layer3.decay_v: found 5000" in done.err


def test_explain_shows_what_a_file_is_made_of(nmtool, net, unchanged):
    with unchanged(net.parent):
        done = nmtool("compile", "image.net", "--hw", "lava-sim", "--explain")
    assert done.code == 0
    row = next(line for line in done.out.splitlines() if line.startswith("conv"))
    assert row.split()[1:4] == ["yes", "yes", "yes"]
    assert "layer1" in row


def test_explain_as_json(nmtool, net):
    done = nmtool("compile", "image.net", "--hw", "reference", "--explain", "--json")
    rows = {row["feature"]: row for row in done.json["features"]}
    assert rows["conv"]["used_by"] == ["projection layer1"]
    assert rows["flatten"]["used_by"] == ["projection layer3"]
    assert rows["sparse"]["used_by"] == []
    assert rows["refractory delay"]["emulator"] is True
    assert "floating point only" in rows["refractory delay"]["lava-sim"]


def test_explain_needs_no_network(nmtool, folder):
    done = nmtool("compile", "--explain", "--json")
    assert done.code == 0
    assert all(row["used_by"] == [] for row in done.json["features"])
    assert nmtool("compile", "--explain").code == 0
    assert nmtool("compile", "--explain", "--hw", "reference").code == 2
    assert nmtool("compile").code == 2


def test_deploy_of_an_imported_program_needs_input(nmtool, folder, net):
    nmtool("compile", "image.net", "--hw", "emulator", "-o", "p.h5", "--steps", 20)
    done = nmtool("deploy", "p.h5", "--hw", "emulator")
    assert done.code == 3
    assert "--input" in done.err
    np.save(folder / "x.npy", np.random.default_rng(0).random((3, 36, 20)) < 0.4)
    done = nmtool("deploy", "p.h5", "--hw", "emulator", "--input", "x.npy", "--json")
    assert done.code == 0
    assert (done.json["samples"], done.json["steps"]) == (3, 20)


def test_explain_shows_what_a_target_with_faults_cannot_run(nmtool, folder):
    driven = {"i": Input((3,), "bias", "a"), "j": Input((3,), "graded", "a")}
    network = QuantizedNetwork("n", "loihi2", driven, {"a": population((3,))}, {}, ("a",))
    save(folder / "driven.h5", network)
    done = nmtool("compile", "driven.h5", "--hw", "loihi2-faulty", "--explain", "--json")
    assert done.code == 0
    rows = {row["feature"]: row for row in done.json["features"]}
    assert "fault model" in rows["graded input"]["loihi2-faulty"]
    assert rows["graded input"]["emulator"] is True
    assert rows["bias input"]["loihi2-faulty"] is True
