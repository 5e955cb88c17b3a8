"""Exit 2 and what surrounds it: options, overrides, environment variables, quiet, dry runs."""

import json
import re

import pytest

from nmtool.cli import VERBS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian", "x.yaml"], "did you mean train?"),
        (
            ["frobnicate"],
            "allowed train, compile, deploy, finetune, compare, bisect, golden, test, import, ",
        ),
        (["deploy", "p.h5", "--hwx", "reference"], "--hw"),
        (["compile", "run"], "--hw"),
        (["compile", "--hw", "loihi2"], "SOURCE"),
        (["deploy", "--hw", "reference"], "PROGRAM"),
        (["config"], "nmtool config"),
        (["config", "schema", "boards"], "experiment"),
        (["compile", "run", "--hw", "reference", "--steps", "0"], "--steps"),
        (["compile", "run", "--hw", "reference", "--seed", "-1"], "--seed"),
        (["compile", "run", "--hw", "reference", "--timeout", "90"], "500ms, 60s, 2m or 1h"),
        (["compile", "run", "--hw", "reference", "--timeout", "0s"], "more than 0"),
        (["compile", "run", "--hw", "reference", "-s", "train.epochs=1"], "hw.KEY=VALUE"),
        (["deploy", "run/program.h5", "--hw", "reference", "-s", "seed=1"], "hw.KEY=VALUE"),
        (["train", "experiment.yaml", "-s", "hw.backend=reference"], "train has no target"),
        (["finetune", "run", "--hw", "reference", "-s", "train.epochs=1"], "finetune.KEY=VALUE"),
        (["compare", "reference", "loihi2-faulty"], "--program"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_allowed(
    nmtool, folder, unchanged, arguments, says
):
    with unchanged(folder):
        done = nmtool(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ") or "Usage:" in done.err
    assert says in done.err + done.out
    assert "Traceback" not in done.err


def test_the_wrong_option_of_train_is_named_as_it_was_given(nmtool, folder):
    done = nmtool("train", "experiment.yaml", "-s", "hw.backend=lava-sim")
    assert "-s hw.backend=lava-sim:" in done.err


@pytest.mark.parametrize("option", ["--data=digits:test", "--labels=l.npy", "--encode"])
def test_input_options_that_do_not_go_together(nmtool, folder, rasters, option):
    given = ["--input", "spikes.npy"] if option.startswith("--data") else []
    done = nmtool("deploy", "run/program.h5", "--hw", "reference", option, *given)
    assert done.code == 2
    assert option.partition("=")[0] in done.err


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["compile", "run", "--hw", "reference"], "run/program.h5"),
        (["compile", "run", "--hw", "reference", "-o", "there.h5"], "there.h5"),
        (["deploy", "run/program.h5", "--hw", "reference", "-o", "there.h5"], "there.h5"),
        (["finetune", "run", "--hw", "reference", "-o", "there"], "there"),
        (["train", "experiment.yaml", "-o", "run"], "run/network.h5"),
    ],
)
def test_an_output_that_exists_is_kept_without_force(nmtool, folder, unchanged, arguments, output):
    (folder / "there.h5").write_text("mine")
    (folder / "there").mkdir()
    (folder / "there" / "mine.txt").write_text("mine")
    with unchanged(folder):
        done = nmtool(*arguments)
    assert done.code == 2
    assert output in done.err
    assert "--force" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "run", "--hw", "reference", "-o", "there.h5"],
        ["deploy", "run/program.h5", "--hw", "reference", "-o", "there.h5"],
        ["export", "run", "--format", "netx", "-o", "there.h5"],
        ["import", "there.net"],
        ["golden", "record", "run/program.h5", "-o", "there.h5"],
        ["golden", "check", "gold.h5", "--junit", "there.h5"],
        ["golden", "check", "there.h5", "--runs", "."],
        ["bisect", "reference", "emulator", "--program", "run/program.h5", "-o", "there.h5"],
    ],
)
def test_a_dry_run_looks_for_the_output_too(nmtool, folder, unchanged, arguments):
    (folder / "there.h5").write_text("mine")
    (folder / "there-emulator.h5").write_text("mine")
    assert nmtool("export", "run", "--format", "netx", "-o", "there.net").code == 0
    with unchanged(folder):
        done = nmtool(*arguments, "--dry-run")
    assert done.code == 2, done
    assert re.search(r"exists already[;,]", done.err)


def test_explain_writes_nothing_and_needs_no_place(nmtool, folder, unchanged):
    with unchanged(folder):
        done = nmtool("compile", "run", "--hw", "reference", "--explain")
    assert done.code == 0, done.err


def test_a_folder_is_no_program(nmtool, folder):
    done = nmtool("deploy", "run", "--hw", "reference")
    assert (done.code, done.err) == (6, "error: run: found a folder, allowed a file\n")


def test_force_replaces_an_output(nmtool, folder):
    (folder / "there.h5").write_text("mine")
    done = nmtool("compile", "run", "--hw", "reference", "-o", "there.h5", "--force")
    assert done.code == 0
    assert (folder / "there.h5").read_bytes() == (folder / "run/program.h5").read_bytes() or (
        nmtool("deploy", "there.h5", "--hw", "reference").code == 0
    )


def test_an_unfinished_training_is_not_overwritten(nmtool, folder, unchanged):
    (folder / "other").mkdir()
    (folder / "other/checkpoint.h5").write_text("half of a training")
    with unchanged(folder):
        done = nmtool("train", "experiment.yaml", "-o", "other")
    assert done.code == 2
    assert "--resume" in done.err


@pytest.mark.parametrize("verb", [*VERBS])
def test_every_verb_has_help(nmtool, verb):
    done = nmtool(verb, "--help")
    assert done.code == 0
    assert f"nmtool {verb}" in done.out
    assert done.err == ""


def test_the_version_and_the_list_of_verbs(nmtool):
    assert nmtool("--version").out.startswith("nmtool, version 0.")
    shown = nmtool("--help").out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "run", "--hw", "loihi2-faulty", "-o", "new.h5"],
        ["deploy", "run/program.h5", "--hw", "reference", "-o", "new.h5"],
        ["finetune", "run", "--hw", "reference", "-o", "new"],
        ["compare", "reference", "reference", "--program", "run/program.h5"],
        ["config", "check", "experiment.yaml"],
    ],
)
def test_a_dry_run_writes_nothing_and_still_checks(nmtool, folder, unchanged, arguments):
    with unchanged(folder):
        assert nmtool(*arguments, "--dry-run").code == 0
        assert nmtool(*arguments, "--dry-run", "--json").json["schema"].startswith("nmtool.")
        wrong = [a.replace("reference", "referense").replace("faulty", "fault") for a in arguments]
        wrong = [a.replace("experiment.yaml", "missing.yaml") for a in wrong]
        done = nmtool(*wrong, "--dry-run")
    assert done.code == 3, done


def test_an_override_of_the_target_acts(nmtool, folder):
    arguments = ["compile", "run", "--hw", "reference", "-o", "four.h5", "--json"]
    done = nmtool(*arguments, "-s", "hw.weight_bits=4")
    assert done.code == 0
    formats = [p["got"] for p in done.json["parameters"] if p["name"].endswith(".weight")]
    assert formats
    assert all("4 bit" in text for text in formats)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hw.weight_bitz=4", "did you mean weight_bits?"),
        ("hw.weight_bits=four", "weight_bits"),
        ("hw.weight_bits", "no key=value"),
        ("hw.=4", "no key=value"),
        ("hw.name.x=4", "not a mapping"),
        ("hw.weight_bits={", "not valid YAML"),
        ("hw.chip=loihi3", "did you mean loihi2?"),
    ],
)
def test_a_wrong_override_exits_with_3(nmtool, folder, override, says):
    done = nmtool("compile", "run", "--hw", "reference", "-o", "x.h5", "-s", override)
    assert done.code == 3
    assert says in done.err
    assert not (folder / "x.h5").exists()


def test_options_from_the_environment(nmtool, folder, monkeypatch):
    monkeypatch.setenv("NMTOOL_JSON", "1")
    assert nmtool("deploy", "run/program.h5", "--hw", "reference").json["target"] == "reference"
    assert nmtool("deploy", "none.h5", "--hw", "reference").json["exit_code"] == 6
    monkeypatch.setenv("NMTOOL_DRY_RUN", "1")
    assert nmtool("compile", "run", "--hw", "reference", "-o", "new.h5").code == 0
    assert not (folder / "new.h5").exists()
    monkeypatch.delenv("NMTOOL_DRY_RUN")
    monkeypatch.setenv("NMTOOL_FORCE", "1")
    assert nmtool("compile", "run", "--hw", "reference").code == 0
    monkeypatch.setenv("NMTOOL_TIMEOUT", "soon")
    assert nmtool("compile", "run", "--hw", "reference").code == 2
    monkeypatch.setenv("NMTOOL_TIMEOUT", "1m")
    monkeypatch.setenv("NMTOOL_SEED", "many")
    done = nmtool("compile", "run", "--hw", "reference")
    assert done.code == 2
    assert "NMTOOL_SEED" in done.err or "--seed" in done.err


def test_quiet_leaves_out_notes_and_nothing_else(nmtool, folder):
    arguments = ["compile", "run", "--hw", "loihi2-faulty", "-o", "f.h5"]
    assert nmtool(*arguments).code == 0
    loud = nmtool("deploy", "f.h5", "--hw", "loihi2-faulty")
    quiet = nmtool("deploy", "f.h5", "--hw", "loihi2-faulty", "-q")
    assert loud.code == quiet.code == 0
    assert "invented defects, not a chip" in loud.err
    assert quiet.err == ""
    assert _without_time(loud.out) == _without_time(quiet.out)
    assert nmtool("deploy", "missing.h5", "--hw", "loihi2-faulty", "-q").err != ""


def _without_time(text):
    lines = [line.split() for line in text.splitlines()]
    return [words for words in lines if words[0] != "wall_time" and set(words[0]) != {"-"}]


@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_lines_never_wrap_whatever_the_terminal(shell, folder, columns):
    path = folder / ("long-" * 30 + "name.yaml")
    path.write_text("schema: nmtool.hardware/v1\nname: x\nchip: loihi2\nbakend: reference\n")
    done = shell("config", "check", path, env={"COLUMNS": columns})
    assert done.code == 3
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:")
    assert lines[0].endswith("did you mean backend?")
    done = shell("deploy", path.with_suffix(".h5"), "--hw", "reference", env={"COLUMNS": columns})
    assert done.err == f"error: {path.with_suffix('.h5')}: no such file\n"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["compile", "run", "--hw", "loihi2", "-o", "new.h5"]),
        (0, ["deploy", "run/program.h5", "--hw", "reference"]),
        (0, ["compare", "reference", "reference", "--program", "run/program.h5"]),
        (0, ["config", "check", "experiment.yaml"]),
        (0, ["config", "schema"]),
        (0, ["finetune", "run", "--hw", "reference", "--dry-run"]),
        (2, ["trian"]),
        (2, ["compile", "run", "--hw", "reference"]),
        (0, ["deploy", "run/program.h5"]),
        (2, ["compile", "run"]),
        (3, ["config", "check", "missing.yaml"]),
        (3, ["train", "missing.yaml"]),
        (3, ["deploy", "run/program.h5", "--hw", "loihi9"]),
        (6, ["compile", "missing.h5", "--hw", "loihi2"]),
        (6, ["deploy", "missing.h5", "--hw", "reference"]),
        (6, ["finetune", "missing", "--hw", "reference"]),
        (6, ["compare", "a.h5", "b.h5"]),
        (9, ["compile", "run", "--hw", "reference", "-o", "experiment.yaml/x.h5"]),
    ],
)
def test_json_is_one_valid_document_on_success_and_on_errors(nmtool, folder, code, arguments):
    done = nmtool(*arguments, "--json")
    assert done.code == code, done.err
    document = json.loads(done.out)
    if code:
        assert document["schema"] == "nmtool.error/v1"
        assert document["exit_code"] == code
        assert document["error"] in done.err.replace("error: ", "")
    elif arguments[:2] != ["config", "schema"]:
        assert document["schema"] == f"nmtool.{arguments[0]}/v1"
