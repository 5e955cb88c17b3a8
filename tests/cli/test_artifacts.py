"""Exit 4, 5 and 6: artifacts that are damaged or for something else, networks that do not fit."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool import formats
from nmtool.network import CubaLif, Input, Network, Population, Projection

USERS = {
    "compile": ["compile", "{}", "--hw", "reference", "-o", "new.h5"],
    "deploy": ["deploy", "{}", "--hw", "reference"],
    "finetune": ["finetune", "run", "--hw", "reference", "--program", "{}"],
    "compare": ["compare", "{}", "{}"],
    "compare --program": ["compare", "reference", "reference", "--program", "{}"],
}


@pytest.mark.parametrize("verb", [*USERS])
@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated", "flipped", "a folder"])
def test_a_damaged_or_missing_artifact(nmtool, folder, unchanged, verb, kind):
    path = folder / "x.h5"
    data = bytearray((folder / "run/program.h5").read_bytes())
    if kind == "a folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not HDF5")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        position = data.index(b"fingerprint") + 20
        data[position] ^= 0x55
        path.write_bytes(data)
    with unchanged(folder):
        done = nmtool(*(a.format("x.h5") for a in USERS[verb]))
    assert done.code == 6
    assert done.err.startswith("error: x.h5")
    assert len(done.err.splitlines()) == 1


def test_no_cut_of_a_file_passes_for_whole(nmtool, folder):
    data = (folder / "run/network.h5").read_bytes()
    for end in np.linspace(1, len(data) - 1, 12).astype(int):
        (folder / "x.h5").write_bytes(data[:end])
        done = nmtool("compile", "x.h5", "--hw", "reference", "--dry-run")
        assert done.code == 6, end


def test_no_changed_byte_of_an_array_passes(nmtool, folder):
    data = (folder / "run/network.h5").read_bytes()
    rng = np.random.default_rng(0)
    codes = set()
    for position in rng.integers(0, len(data), 40):
        changed = bytearray(data)
        changed[position] ^= 0xFF
        (folder / "x.h5").write_bytes(changed)
        codes.add(nmtool("compile", "x.h5", "--hw", "reference", "-o", "y.h5", "--force").code)
    assert 6 in codes
    assert codes <= {0, 6}, "a byte that nothing reads may change; anything else is damage"


@pytest.mark.parametrize(
    ("arguments", "found", "allowed"),
    [
        (["deploy", "run/network.h5", "--hw", "reference"], "Network", "Program"),
        (["compile", "run/program.h5", "--hw", "reference", "-o", "y.h5"], "Program", "network"),
        (["compare", "run/program.h5", "run/program.h5"], "Program", "Recording"),
        (["compare", "trainer:run/program.h5", "reference"], "Program", "Network"),
    ],
)
def test_an_artifact_of_another_kind(nmtool, folder, arguments, found, allowed):
    done = nmtool(*arguments)
    assert done.code == 6
    assert f"found a {found}, allowed a {allowed}" in done.err


def test_a_run_folder_without_a_run(nmtool, folder):
    (folder / "empty").mkdir()
    for verb in ("compile", "finetune"):
        done = nmtool(verb, "empty", "--hw", "reference")
        assert done.code == 6
        assert "empty" in done.err


def test_a_program_for_another_chip(nmtool, folder):
    assert nmtool("compile", "run", "--hw", "loihi1", "-o", "one.h5").code == 0
    for arguments in (
        ["deploy", "one.h5", "--hw", "reference"],
        ["deploy", "one.h5", "--hw", "reference", "--dry-run"],
        ["finetune", "run", "--hw", "reference", "--program", "one.h5"],
        ["compare", "reference", "reference", "--program", "one.h5"],
    ):
        done = nmtool(*arguments)
        assert done.code == 6
        assert "made for the chip loihi1, the target reference has loihi2" in done.err
        assert "compile it again for this target" in done.err


def test_eight_bits_on_a_target_of_four(nmtool, folder):
    for verb in (["deploy"], ["compare", "loihi2-faulty", "loihi2-faulty", "--program"]):
        target = [] if verb[0] == "compare" else ["--hw", "loihi2-faulty"]
        done = nmtool(*verb, "run/program.h5", *target)
        assert done.code == 6
        assert "weights of 8 bits, the target loihi2-faulty stores 4" in done.err


def test_a_program_of_another_network(nmtool, folder):
    network = formats.load_as(folder / "run/network.h5", Network)
    renamed = {"other": network.projections["hidden"], "output": network.projections["output"]}
    formats.save(folder / "other.h5", replace(network, projections=renamed))
    assert nmtool("compile", "other.h5", "--hw", "reference", "-o", "p.h5").code == 0
    done = nmtool("finetune", "run", "--hw", "reference", "--program", "p.h5")
    assert done.code == 3
    assert "other" in done.err


def save(folder, weight=1.0, recurrent=False, delay=0, **neuron):
    values = {"threshold": 1.0, "current_decay": 0.5, "voltage_decay": 0.1, **neuron}
    bias = values.pop("bias", None)
    population = Population(
        (2,), CubaLif(**values), None if bias is None else np.full(2, bias, dtype=np.float64)
    )
    projections = {"in": Projection.dense("input", "a", np.full((2, 3), weight), delay)}
    if recurrent:
        projections["loop"] = Projection.dense("a", "a", np.eye(2))
    network = Network("n", {"input": Input((3,))}, {"a": population}, projections, ("a",))
    formats.save(folder / "n.h5", network)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 1e6}, "a.threshold: found 1e+06"),
        ({"current_decay": 0.0}, "a.current_decay: found 0"),
        ({"voltage_decay": 1.0}, "a.voltage_decay: found 1"),
        ({"bias": 1e6}, "a.bias: found 1e+06"),
        ({"weight": np.nan}, "projection in.weight: found a value that is not a finite"),
        ({"delay": 63}, "projection in.delay: found 0 to 63 steps, allowed 0 to 62"),
    ],
)
def test_a_value_that_does_not_fit_the_chip(nmtool, folder, unchanged, change, says):
    save(folder, **change)
    with unchanged(folder):
        done = nmtool("compile", "n.h5", "--hw", "loihi2", "-o", "p.h5")
    assert done.code == 5
    assert says in done.err
    assert "allowed" in done.err or "finite" in done.err


def test_learning_refuses_what_it_does_not_support(nmtool, folder):
    source = (folder / "run/network.h5").read_bytes()
    network = formats.load_as(folder / "run/network.h5", Network)
    (name,) = (n for n, p in network.projections.items() if p.source == "hidden")
    output = network.projections[name]
    each = replace(output, delay=np.ones(output.weight.shape, dtype=np.int64))
    delayed = replace(network, projections={**network.projections, name: each})
    formats.save(folder / "run/network.h5", delayed)
    assert (folder / "run/network.h5").read_bytes() != source
    done = nmtool("finetune", "run", "--hw", "reference")
    assert done.code == 4
    assert f"projection {name}: found a delay for each synapse" in done.err
    assert nmtool("compile", "run", "--hw", "reference", "-o", "p.h5").code == 0
    assert nmtool("deploy", "p.h5", "--hw", "reference").code == 0


def test_a_chip_without_intels_package(nmtool, folder, hardware):
    path = hardware("board: {host: nowhere}", backend="lava-loihi")
    done = nmtool("deploy", "run/program.h5", "--hw", path)
    assert done.code == 10
    assert "target mine: lava-" in done.err
    done = nmtool("deploy", "run/program.h5", "--hw", hardware(backend="lava-loihi"))
    assert done.code == 3
    assert "a board with the backend lava-loihi" in done.err


def test_faults_on_a_backend_that_cannot_act_them_out(nmtool, folder, hardware):
    path = hardware("faults: {seed: 1}", backend="lava-sim")
    done = nmtool("deploy", "run/program.h5", "--hw", path)
    assert done.code == 3
    assert "no faults with the backend lava-sim" in done.err
