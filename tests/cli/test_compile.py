"""nmtool compile: the report, budgets, placements, activity, limits, and what a target has."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from nmtool import formats
from nmtool.compiler import Program

COMPILE = ("compile", "run", "--hw", "emulator", "-o", "p.h5")
PLACED = """\
schema: nmtool.placement/v1
slices:
  - {population: hidden, neurons: [0, 16], chip: 0, core: 0}
  - {population: output, neurons: [0, 20], chip: 0, core: 4}
"""


@pytest.fixture
def chip(folder):
    """``chip("input_axons_per_core: 10")`` writes a chip that changes loihi2; returns its name."""

    def write(*lines):
        head = ("schema: nmtool.chip/v1", "name: own", "extends: loihi2")
        (folder / "own.yaml").write_text("\n".join((*head, *lines, "")))
        return "own.yaml"

    return write


def program(path="p.h5"):
    return formats.load_as(path, Program)


# The report


def test_the_report_is_one_screen_on_stdout(nmtool, folder):
    done = nmtool(*COMPILE)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert re.search(rf"^Program +{program().fingerprint}$", done.out, re.M)
    assert re.search(r"^Board +1 chip x 120 cores$", done.out, re.M)
    assert re.search(r"^Latency +2 steps", done.out, re.M)
    assert re.search(r"^Cores used +2 of 120 \(1.67%\)$", done.out, re.M)
    assert re.search(r"^Neurons +36$", done.out, re.M)
    assert re.search(rf"^Weights +{64 * 16 + 16 * 20}$", done.out, re.M)
    assert re.search(r"^Spike-hops +0 for one spike of every neuron", done.out, re.M)
    hidden = next(line for line in lines if line.startswith("hidden")).split()
    assert hidden[:3] == ["hidden", "16", "1"]
    assert hidden[-1] == "1"


def test_verbose_adds_the_tables_of_parameters_and_bounds(nmtool, folder):
    short = nmtool(*COMPILE).out
    long = nmtool(*COMPILE, "--force", "-v").out
    for text in ("hidden.current_decay", "max error", "inside 24 bits", "decay_v"):
        assert text not in short
        assert text in long


def test_the_document_holds_the_fit_and_the_placement_of_the_program(nmtool, folder):
    document = nmtool(*COMPILE, "--json").json
    made = program()
    assert document["limits"] == made.provenance["limits"] == "all"
    assert document["fit"]["cores"] == made.fit.cores == 2
    assert document["fit"]["total"]["synapse_bits"] == made.fit.total.synapse_bits
    assert [s["core"] for s in document["placement"]] == [s.core for s in made.placement]
    assert [row["first_step"] for row in document["layers"]] == [1, 2]
    assert document["headroom"]["nearest"]["population"] in ("hidden", "output")
    assert document["parameters"]
    assert document["bounds"]


def test_the_quantisation_error_is_relative_to_the_weights_of_the_chip(nmtool, folder):
    rows = nmtool(*COMPILE, "--json").json["layers"]
    network, quantized = formats.load("run/network.h5"), program().network
    for name, row in zip(("hidden", "output"), rows, strict=True):
        wanted = network.projections[name].operations[0].weight
        p = quantized.projections[name]
        got = p.weight / 64.0  # a real weight of 1 is 64 on the chip
        error = np.sqrt(np.mean((wanted - got) ** 2) / np.mean(got**2))
        assert row["error"] == pytest.approx(error)
        assert 0 < row["error"] < 0.1


def test_csv_has_the_rows_of_the_document(nmtool, folder):
    rows = nmtool(*COMPILE, "--csv", "layers.csv", "--json").json["layers"]
    read = list(csv.DictReader(io.StringIO((folder / "layers.csv").read_text())))
    assert [row["layer"] for row in read] == ["hidden", "output"]
    assert [{k: str(v) for k, v in row.items()} for row in rows] == read


@pytest.mark.parametrize(("name", "magic"), [("m.png", b"\x89PNG"), ("m.svg", b"<?xml")])
def test_map_draws_a_picture(nmtool, folder, name, magic):
    pytest.importorskip("matplotlib")
    done = nmtool(*COMPILE, "--map", name)
    assert done.code == 0, done.err
    assert (folder / name).read_bytes().startswith(magic)
    assert name in done.out


def test_map_shows_every_core_of_eight_chips(nmtool, folder, hardware):
    pytest.importorskip("matplotlib")
    from nmtool.chip import load_chip
    from nmtool.cli.coremap import core_corner, core_map

    chip = load_chip("loihi2")
    corners = {core_corner(chip, core) for core in range(chip.cores)}
    assert len(corners) == chip.cores
    assert all(0 <= x < 16 and 0 <= y < 8 for x, y in corners)
    nmtool(*COMPILE)
    made = program()
    spread = tuple(replace(s, chip=3 * i, core=119) for i, s in enumerate(made.placement))
    figure = core_map(replace(made, placement=spread), chip)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["chip 0: 1 of 120 cores", "chip 3: 1 of 120 cores"]
    faces = {patch.get_facecolor() for axes in figure.axes for patch in axes.patches}
    legend = {patch.get_facecolor() for patch in figure.legends[0].get_patches()}
    assert len(legend) == 2
    assert legend <= faces


@pytest.mark.parametrize(
    ("option", "name"), [("--csv", "x.csv"), ("--map", "x.png"), ("--placement-out", "x.yaml")]
)
def test_no_output_replaces_a_file_without_force(nmtool, folder, unchanged, option, name):
    (folder / name).write_text("mine")
    with unchanged(folder):
        done = nmtool(*COMPILE, option, name)
    assert done.code == 2
    assert f"{name}: exists already" in done.err
    assert nmtool(*COMPILE, option, name, "--force").code == 0
    assert (folder / name).read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--map", "x.bmp"], "allowed .png, .svg, .pdf"),
        (["--csv", "p.h5"], "p.h5: found as an output"),
        (["--csv", "run/network.h5", "--force"], "run/network.h5: found as an output"),
    ],
)
def test_outputs_that_cannot_be(nmtool, folder, unchanged, arguments, says):
    with unchanged(folder):
        done = nmtool(*COMPILE, *arguments)
    assert done.code == 2
    assert says in done.err


def test_a_map_needs_matplotlib(nmtool, folder, unchanged, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with unchanged(folder):
        done = nmtool(*COMPILE, "--map", "x.png")
    assert done.code == 10
    assert "matplotlib is missing" in done.err


def test_a_dry_run_writes_no_file_at_all(nmtool, folder, unchanged):
    with unchanged(folder):
        done = nmtool(*COMPILE, "--csv", "x.csv", "--map", "x.png", "--dry-run")
    assert done.code == 0
    assert "not written (--dry-run)" in done.out


# Budgets


def test_all_that_exceeds_a_budget_is_said_at_once(nmtool, folder, unchanged):
    given = "cores=0,latency=1,neurons=35,chips=1,synapse_memory=0.5"
    with unchanged(folder):
        done = nmtool(*COMPILE, "--csv", "x.csv", "--budget", given)
    assert done.code == 5
    assert done.out == ""
    codes = re.findall(r"^error: (NM-FIT-\d+) budget (\w+): found ([\d.]+)", done.err, re.M)
    assert [code for code, _, _ in codes] == ["NM-FIT-040"] * 4
    assert {key: found for _, key, found in codes} | {"synapse_memory": ""} == {
        "cores": "1",
        "latency": "2",
        "neurons": "36",
        "synapse_memory": "",
    }


def test_slices_share_cores_to_keep_to_a_budget(nmtool, folder):
    assert nmtool(*COMPILE).code == 0
    apart = program()
    done = nmtool(*COMPILE, "--budget", "cores=1", "--force")
    assert done.code == 0, done.err
    assert re.search(r"^Cores used +1 of 120 ", done.out, re.M)
    together = program()
    assert {(part.chip, part.core) for part in together.placement} == {(0, 0)}
    assert len({(part.chip, part.core) for part in apart.placement}) == 2
    assert together.fingerprint == apart.fingerprint


def test_a_dry_run_says_what_does_not_fit_before_what_exists(nmtool, folder):
    assert nmtool(*COMPILE).code == 0
    done = nmtool(*COMPILE, "--budget", "latency=1", "--dry-run")
    assert done.code == 5
    assert "NM-FIT-040 budget latency: found 2 steps, allowed 1; " in done.err
    done = nmtool(*COMPILE, "--dry-run")
    assert done.code == 2
    assert "--force" in done.err


def test_a_budget_may_be_used_up(nmtool, folder):
    done = nmtool(*COMPILE, "--budget", "cores=2,latency=2", "--budget", "neurons=36")
    assert done.code == 0, done.err
    assert "kept: cores=2, latency=2, neurons=36" in done.out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("core=1", "did you mean cores?"),
        ("cores", "allowed a number from 0"),
        ("cores=many", "found 'many'"),
        ("cores=-1", "found '-1'"),
        ("cores=nan", "found 'nan'"),
        ("cores=1,cores=2", "cores twice"),
        (",", "allowed KEY=NUMBER"),
    ],
)
def test_a_budget_that_is_none(nmtool, folder, unchanged, given, says):
    with unchanged(folder):
        done = nmtool(*COMPILE, "--budget", given)
    assert done.code == 2
    assert says in done.err


# Limits


def test_documented_limits_leave_out_what_was_inferred(nmtool, folder, chip, hardware):
    tight = chip("input_axons_per_core: {value: 10, standing: inferred, source: a guess}")
    target = hardware(chip=tight, backend="emulator")
    done = nmtool("compile", "run", "--hw", target, "-o", "p.h5")
    assert done.code == 5
    assert "NM-FIT-022 hidden: found 64 input axons" in done.err
    assert "inferred: a guess" in done.err
    done = nmtool("compile", "run", "--hw", target, "-o", "p.h5", "--limits", "documented")
    assert done.code == 0, done.err
    assert re.search(r"^Limits +documented ones only$", done.out, re.M)
    assert program().provenance["limits"] == "documented"
    assert nmtool("deploy", "p.h5", "--hw", target, "-o", "r.h5").code == 0


def test_a_program_for_a_chip_of_ones_own_names_its_file(nmtool, folder, chip, hardware, rasters):
    own = hardware(chip=chip("cores: 7"), backend="emulator")
    injected = "faults: {injected: [{kind: dead, population: hidden, neuron: 3}]}"
    broken = hardware(injected, name="broken", chip="own.yaml", backend="emulator")
    assert nmtool("compile", "run", "--hw", own, "-o", "p.h5").code == 0
    refused = nmtool("deploy", "p.h5", "--hw", "emulator")
    assert refused.code == 6
    assert "made for the chip own" in refused.err
    assert nmtool("deploy", "p.h5", "-s", "hw.chip=own.yaml", "-o", "r.h5").code == 0
    export = ("export", "p.h5", "--format", "netx", "-o", "p.net")
    refused = nmtool(*export)
    assert refused.code == 3
    assert "name the file of yours: --chip FILE.yaml" in refused.err
    assert nmtool(*export, "--chip", "own.yaml").code == 0
    record = ("golden", "record", "p.h5", "--hw", own, "--input", "spikes.npy", "-o", "g.h5")
    assert nmtool(*record, "--cover", "2").code == 0
    found = nmtool("bisect", "g.h5", broken, "-o", "replay.h5")
    assert found.code == 1, found.err
    assert "dead neuron" in found.out


def test_all_that_compile_for_a_target_use_all_its_chips(nmtool, folder, chip, hardware):
    small = chip("cores: 2", "neurons_per_core: 10", "slice_widths: any")
    board = hardware("chips: 2", chip=small, backend="emulator")
    assert nmtool("compile", "run", "--hw", small, "-o", "p.h5").code == 5
    assert nmtool("compile", "run", "--hw", board, "-o", "p.h5").code == 0
    assert {part.chip for part in program().placement} == {0, 1}
    export = ("export", "p.h5", "--format", "netx", "-o", "p.net", "--chip", small)
    assert nmtool(*export).code == 0
    found = nmtool("finetune", "run", "--hw", board, "--dry-run")
    assert found.code == 0, found.err
    (folder / "checked.yaml").write_text(
        (folder / "experiment.yaml").read_text()
        + "checks: [{metric: accuracy, min: 0.0, on: [mine.yaml]}]\n"
    )
    found = nmtool("test", "checked.yaml", "--run", "run", "--hw", board)
    assert found.code == 0, found.err


# Chips, cores and probes of a target


def test_a_target_says_how_many_cores_there_are(nmtool, folder, hardware):
    board = hardware("chips: 3", "cores_per_chip: 5")
    done = nmtool("compile", "run", "--hw", board, "-o", "p.h5")
    assert re.search(r"^Board +3 chips x 5 cores$", done.out, re.M)
    assert re.search(r"^Cores used +2 of 15 ", done.out, re.M)


def test_what_does_not_fit_says_what_would(nmtool, folder, chip, hardware, unchanged):
    small = chip("neurons_per_core: 5", "slice_widths: any")
    board = hardware("cores_per_chip: 3", chip=small)
    with unchanged(folder):
        done = nmtool("compile", "run", "--hw", board, "-o", "p.h5")
    assert done.code == 5
    (line,) = done.err.splitlines()
    assert "NM-FIT-030 network: found at least 8 cores needed (most by hidden 4, output 4)" in line
    assert "use fewer neurons, or a board of 3 chips or more (chips: 3)" in line
    two, three = ("-s", "hw.chips=2"), ("-s", "hw.chips=3")
    assert nmtool("compile", "run", "--hw", board, "-o", "p.h5", *two).code == 5
    assert nmtool("compile", "run", "--hw", board, "-o", "p.h5", *three).code == 0
    assert {part.chip for part in program().placement} == {0, 1, 2}


def test_probed_populations_take_axons_and_cores(nmtool, folder, chip, hardware):
    few = chip("output_axons_per_core: 16", "neurons_per_core: 20", "slice_widths: any")
    outputs = hardware(chip=few, name="outputs")
    every = hardware("probes: {spikes: all}", chip=few, name="every")
    plain = nmtool("compile", "run", "--hw", outputs, "-o", "a.h5", "--json").json
    probed = nmtool("compile", "run", "--hw", every, "-o", "b.h5", "--json").json
    assert [row["cores"] for row in plain["layers"]] == [1, 2]
    assert [row["cores"] for row in probed["layers"]] == [2, 2]
    assert (plain["headroom"]["probe_cores"], probed["headroom"]["probe_cores"]) == (0, 1)
    done = nmtool("compile", "run", "--hw", every, "-o", "b.h5", "--force")
    assert "the target's probes take 1 core more than the outputs alone" in done.out


def test_a_target_that_probes_what_there_is_not(nmtool, folder, hardware, unchanged):
    target = hardware("probes: {spikes: [hiden]}")
    with unchanged(folder):
        done = nmtool("compile", "run", "--hw", target, "-o", "p.h5")
    assert done.code == 3
    assert "found the population 'hiden'" in done.err
    assert "did you mean hidden?" in done.err


@pytest.mark.parametrize(("target", "chips"), [("kapoho-point", 8), ("oheo-gulch", 1)])
def test_on_a_board_the_placement_is_a_prediction(nmtool, folder, target, chips):
    done = nmtool("compile", "run", "--hw", target, "-o", "p.h5")
    assert done.code == 0, done.err
    assert re.search(rf"^Board +{chips} chips? x 120 cores$", done.out, re.M)
    assert "a prediction: on the board Intel's own compiler places" in done.out


# Placements


def test_a_placement_is_written_changed_and_taken(nmtool, folder):
    assert nmtool(*COMPILE, "--placement-out", "found.yaml").code == 0
    found, text = program(), (folder / "found.yaml").read_text()
    again = ("compile", "run", "--hw", "emulator", "-o", "q.h5", "--placement")
    assert nmtool(*again, "found.yaml").code == 0
    assert program("q.h5").placement == found.placement
    assert program("q.h5").fit == found.fit
    (core,) = {part.core for part in found.placement if part.population == "output"}
    changed = re.sub(rf"(population: output.*core: ){core}\b", r"\g<1>77", text)
    assert changed != text
    (folder / "changed.yaml").write_text(changed)
    assert nmtool(*again, "changed.yaml", "--placement-out", "back.yaml", "--force").code == 0
    moved = program("q.h5")
    assert [part.core for part in moved.placement if part.population == "output"] == [77]
    assert moved.fingerprint == found.fingerprint
    assert (folder / "back.yaml").read_text() == changed


@pytest.mark.parametrize(
    ("old", "new", "where", "says"),
    [
        ("population: hidden", "population: hiden", "3:5", "found the population hiden"),
        ("core: 0", "core: 120", "3:5", "cores 0 to 119"),
        ("chip: 0, core: 4", "chip: 1, core: 4", "4:5", "chips 0 to 0"),
        ("[0, 16]", "[0, 17]", "3:5", "found [0, 17], allowed a slice inside [0, 16]"),
        ("[0, 16]", "[0, 15]", "3:5", "found 1 neuron in no slice (the first: 15), allowed each"),
        ("[0, 16]", "[5, 5]", "3:5", "allowed a slice inside [0, 16]"),
        ("neurons: [0, 16]", "box: [[0, 4], [0, 4]]", "3:5", "found [[0, 4], [0, 4]], allowed"),
        ("neurons: [0, 16], ", "", "3:5", "either neurons or box, one of them"),
        ("core: 4", "cor: 4", "4:", "did you mean core?"),
        ("placement/v1", "placement/v9", "1:", "nmtool.placement/v1"),
        (
            "core: 4}",
            "core: 4}\n  - {population: output, neurons: [3, 4], core: 9}",
            "4:5",
            "several",
        ),
    ],
)
def test_a_wrong_placement_says_where(nmtool, folder, unchanged, old, new, where, says):
    assert old in PLACED
    (folder / "wrong.yaml").write_text(PLACED.replace(old, new, 1))
    with unchanged(folder):
        done = nmtool(*COMPILE, "--placement", "wrong.yaml")
    assert done.code == 3, done.err
    assert f"wrong.yaml:{where}" in done.err
    assert says in done.err


def test_a_placement_with_missing_populations_names_them(nmtool, folder):
    (folder / "half.yaml").write_text(PLACED[: PLACED.index("  - {population: output")])
    done = nmtool(*COMPILE, "--placement", "half.yaml")
    assert done.code == 3
    assert re.search(r"half\.yaml:\d+:\d+: NM-FIT-031 placement of output: found 20 neu", done.err)


def test_a_placement_that_asks_too_much_of_a_core(nmtool, folder, chip, hardware):
    (folder / "one.yaml").write_text(PLACED.replace("core: 4", "core: 0"))
    board = hardware(chip=chip("neurons_per_core: 30"))
    done = nmtool("compile", "run", "--hw", board, "-o", "p.h5", "--placement", "one.yaml")
    assert done.code == 5
    assert "NM-FIT-020 chip 0 core 0 (hidden, output): found 36 neurons, allowed 30" in done.err


# Activity


def test_hops_are_those_of_the_spikes_of_a_recording(nmtool, folder, rasters):
    (folder / "apart.yaml").write_text(PLACED)  # on neighbouring tiles: one hop
    assert nmtool(*COMPILE, "--placement", "apart.yaml").code == 0
    assert program().fit.hops.hops == 16
    record = ("deploy", "p.h5", "--hw", "emulator", "--input", "spikes.npy", "-o", "r.h5")
    assert nmtool(*record, "--probe", "spikes").code == 0
    spikes = len(formats.load("r.h5").spikes["hidden"])
    assert spikes > 16
    measured = ("--placement", "apart.yaml", "--activity", "r.h5", "--force")
    done = nmtool(*COMPILE, *measured)
    assert done.code == 0, done.err
    assert re.search(rf"^Spike-hops +{spikes} for spikes of a recording", done.out, re.M)
    assert program().fit.hops.hops == spikes


def test_a_recording_of_something_else_is_refused(nmtool, folder, rasters, unchanged):
    assert nmtool(*COMPILE).code == 0
    record = ("deploy", "p.h5", "--hw", "emulator", "--input", "spikes.npy", "-o", "r.h5")
    assert nmtool(*record).code == 0  # the outputs only
    done = nmtool(*COMPILE, "--activity", "r.h5", "--force")
    assert done.code == 6
    assert "r.h5: found no spikes of hidden" in done.err
    assert nmtool(*record, "--probe", "spikes", "--force").code == 0
    other = ("compile", "run", "--hw", "loihi2-faulty", "-o", "q.h5", "--activity")
    with unchanged(folder):
        done = nmtool(*other, "r.h5")
        assert done.code == 6
        assert f"found a recording of the program {program().fingerprint}" in done.err
        assert nmtool(*other, "p.h5").code == 6
        assert nmtool(*other, "none.h5").code == 6
    recording = formats.load("r.h5")
    train = recording.spikes["output"]
    formats.save("odd.h5", replace(recording, spikes={"hidden": train, "output": train}))
    done = nmtool(*other, "odd.h5")
    assert done.code == 6
    assert "found 20 neurons of hidden, the network has 16" in done.err


def test_a_network_of_too_many_neurons_is_refused_before_it_is_cut(nmtool, folder, chip, hardware):
    board = hardware(chip=chip("cores: 2, neurons_per_core: 4".replace(", ", "\n")))
    done = nmtool("compile", "run", "--hw", board, "-o", "p.h5")
    assert done.code == 5
    assert re.search(r"NM-FIT-030 network: found at least \d+ cores needed", done.err)


def test_a_chip_takes_the_overrides_of_a_target(nmtool, folder):
    done = nmtool("compile", "run", "--hw", "loihi1", "-s", "hw.chips=2", "-o", "p.h5", "--json")
    assert done.code == 0, done.err
    assert done.json["chip"] == "loihi1"
    assert done.json["fit"]["cores_available"] == 256


def test_more_cores_than_the_chip_has(nmtool, folder):
    done = nmtool(*COMPILE, "-s", "hw.cores_per_chip=121")
    assert done.code == 3
    assert "cores_per_chip: found 121, allowed 1 to 120" in done.err


def test_excluded_cores_hold_nothing(nmtool, folder):
    done = nmtool(*COMPILE, "-s", "hw.excluded_cores=[0, [0, 2]]")
    assert done.code == 0, done.err
    assert {part.core for part in program().placement} == {1, 3}
    done = nmtool(*COMPILE, "-s", "hw.excluded_cores=[[1, 0]]")
    assert done.code == 3
    assert "excluded_cores: found [1, 0], allowed 0 to 119, or [chip, core] up to [0, 119]" in (
        done.err
    )


def test_a_chip_file_is_no_target(nmtool, folder, chip):
    file = chip("cores: 100")
    done = nmtool("deploy", "run/program.h5", "--hw", file)
    assert done.code == 3
    assert f"found a chip, allowed a target; name it with one: --hw emulator -s hw.chip={file}" in (
        done.err
    )


@pytest.mark.parametrize(("hw", "standing"), [("loihi1", "documented"), ("loihi2", "inferred")])
def test_inferred_formulas_are_called_so(nmtool, folder, hw, standing):
    done = nmtool("compile", "run", "--hw", hw, "-o", "p.h5", "--csv", "t.csv")
    assert f"by {standing} formulas" in done.out
    assert all(line.endswith(standing) for line in (folder / "t.csv").read_text().split("\n")[1:-1])
