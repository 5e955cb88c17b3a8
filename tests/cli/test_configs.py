"""Exit 3 for configs and targets: file, line, column, what was found, what is allowed."""

import json
import re

import pytest

from nmtool.chip import shipped

CASES = {
    "unknown key": (
        "  epochs: 1\n",
        "  epochs: 1\n  epoch: 2\n",
        r":11:3: train\.epoch: found an unknown key, allowed .*; did you mean epochs\?$",
    ),
    "unknown kind": (
        "kind: rate,",
        "kind: rata,",
        r":4:\d+: data\.encoding\.kind: found 'rata'.*; did you mean rate\?$",
    ),
    "duplicate key": (
        "seed: 3\n",
        "seed: 3\nseed: 4\n",
        r":4:1: seed: found twice, first in line 3$",
    ),
    "missing key": ("  batch: 32\n", "", r":9:1: train\.batch: found nothing, .*required"),
    "wrong type": ("epochs: 1", "epochs: many", r":10:3: train\.epochs: found 'many', allowed"),
    "whole number": ("epochs: 1", "epochs: 1.5", r":10:3: train\.epochs: found 1\.5, allowed"),
    "out of range": ("epochs: 1", "epochs: 0", r":10:3: train\.epochs: found 0, allowed"),
    "text for a number": ("lr: 4.0e-3", "lr: '4.0e-3'", r":12:.*lr: found '4\.0e-3', allowed"),
    "yes is no number": ("seed: 3", "seed: yes", r":3:1: seed: found"),
    "7 bits": (
        "  batch: 32\n",
        "  batch: 32\n  weight_bits: 7\n",
        r":12:3: train\.weight_bits: found 7",
    ),
    "not YAML": ("data: {", "data: {{", r":\d+:\d+: not valid YAML"),
    "an anchor": ("seed: 3", "seed: &s 3", r":3:7: found an anchor or alias"),
    "a tag": ("seed: 3", "seed: !!python/name:os.system", r":3:7: found the tag"),
    "two layers of one name": (
        "name: output}",
        "name: hidden}",
        r":5:1: network: .*names that differ",
    ),
    "schema of another kind": ("experiment/v1", "experiment/v2", r":1:1: schema: found"),
}


def located(text):
    """Every line of an error text starts with file:line:column."""
    return all(re.match(r"^\S+\.yaml:\d+:\d+: ", line) for line in text.splitlines())


@pytest.mark.parametrize("case", [*CASES])
@pytest.mark.parametrize("verb", ["train", "config check"])
def test_a_wrong_experiment_names_file_line_and_column(nmtool, folder, unchanged, case, verb):
    old, new, says = CASES[case]
    text = (folder / "experiment.yaml").read_text()
    assert text.count(old) == 1
    (folder / "experiment.yaml").write_text(text.replace(old, new))
    with unchanged(folder):
        done = nmtool(*verb.split(), "experiment.yaml")
    assert done.code == 3
    assert re.search(says, done.err, re.MULTILINE), done.err
    assert located(done.err), done.err


def test_all_errors_of_all_files_are_shown_at_once(nmtool, folder):
    text = (folder / "experiment.yaml").read_text()
    text = text.replace("epochs: 1", "epochs: 0").replace("seed: 3", "sead: 3")
    (folder / "experiment.yaml").write_text(text.replace("dense: 16", "dense: -16"))
    (folder / "board.yaml").write_text("schema: nmtool.hardware/v1\nname: x\n")
    done = nmtool("config", "check", "experiment.yaml", "board.yaml", "none.yaml", "--json")
    assert done.code == 3
    lines = done.err.splitlines()
    assert len(lines) == 5
    order = ["experiment.yaml:3:", "experiment.yaml:7:", "experiment.yaml:10:", "board.yaml:1:"]
    assert [line.startswith(o) for line, o in zip(lines, order, strict=False)] == [True] * 4
    assert "none.yaml: no such file" in lines[4]
    assert done.json["error"].count("\n") == 4


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["weight_bit: 4"], r":5:1: weight_bit: found an unknown key.*did you mean weight_bits\?"),
        (["faults: {sead: 7}"], r":5:10: faults\.sead: .*did you mean seed\?"),
        (["faults: {dead_neurons: 10}"], r":5:10: faults\.dead_neurons: found 10"),
        (["timeouts: {run: 60}"], r":5:12: timeouts\.run: found 60, .*with its unit"),
        (["timeouts: {run: 60 sec}"], r":5:12: timeouts\.run: found '60 sec'"),
        (["probes: {spikes: some}"], r":5:10: probes\.spikes: found 'some'"),
        (["name: twice"], r":5:1: name: found twice"),
    ],
)
def test_a_wrong_target_file(nmtool, hardware, lines, says):
    path = hardware(*lines)
    done = nmtool("deploy", "run/program.h5", "--hw", path)
    assert done.code == 3
    assert re.search(says, done.err), done.err
    assert nmtool("config", "check", path).code == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("referense", "did you mean reference?"),
        ("loihi2-fault", "did you mean loihi2-faulty?"),
        ("cray", "allowed emulator, kapoho-point, lava-sim, loihi2-faulty, oheo-gulch, reference"),
        ("./none.yaml", "none.yaml: no such file"),
        ("run/", "run"),
    ],
)
@pytest.mark.parametrize("verb", ["compile", "deploy", "finetune"])
def test_an_unknown_target(nmtool, folder, name, says, verb):
    source = {"deploy": "run/program.h5"}.get(verb, "run")
    done = nmtool(verb, source, "--hw", name)
    assert done.code == 3
    assert says in done.err


def test_a_wrong_target_shows_before_a_missing_artifact(nmtool, folder):
    assert nmtool("deploy", "none.h5", "--hw", "referense").code == 3
    assert nmtool("deploy", "none.h5", "--hw", "reference").code == 6


def test_a_chip_file_of_ones_own(nmtool, folder, hardware):
    text = shipped("chips")["loihi2"].read_text().replace("name: loihi2", "name: tiny")
    (folder / "tiny.yaml").write_text(text.replace("[1, 2, 3, 4, 5, 6, 8]", "[1, 2]"))
    path = hardware(chip="tiny.yaml")
    assert nmtool("config", "check", "tiny.yaml", path).code == 0
    done = nmtool("compile", "run", "--hw", path, "-o", "t.h5")
    assert done.code == 5
    assert "found weight_bits 8, allowed 1, 2" in done.err
    assert nmtool("compile", "run", "--hw", hardware("weight_bits: 2", chip="tiny.yaml")).code == 2
    (folder / "tiny.yaml").write_text(text.replace("standing: paper", "standing: gossip"))
    done = nmtool("compile", "run", "--hw", path, "-o", "t.h5")
    assert done.code == 3
    assert re.match(r"\S*tiny\.yaml:\d+:\d+: .*found 'gossip'", done.err)


@pytest.mark.parametrize(
    "content", [b"", b"- 1\n", b"\xff\xfe", b"a: [", b"{1: 2}", b"x" * 2_000_000]
)
def test_a_file_that_is_no_config(nmtool, folder, content):
    (folder / "x.yaml").write_bytes(content)
    done = nmtool("config", "check", "x.yaml")
    assert done.code == 3
    assert done.err.startswith(("x.yaml:", "error: x.yaml:")), done.err
    assert "Traceback" not in done.err


def test_shipped_files_and_the_example_pass(nmtool, request):
    example = request.config.rootpath / "examples/digits/experiment.yaml"
    files = [*shipped("targets").values(), *shipped("chips").values(), example]
    done = nmtool("config", "check", *files, "--json")
    assert done.code == 0, done.err
    assert set(done.json["files"].values()) == {
        "nmtool.experiment/v1",
        "nmtool.hardware/v1",
        "nmtool.chip/v1",
    }


def conforms(value, schema, root):
    """Whether a value fits a JSON Schema, for the keywords that ours use; the rest fail."""
    known = {
        "$defs", "$ref", "additionalProperties", "anyOf", "const", "default", "description",
        "discriminator", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "items",
        "maxItems", "maximum", "minItems", "minLength", "minimum", "oneOf", "pattern",
        "properties", "required", "title", "type",
    }  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return conforms(value, root["$defs"][name], root)
    for key, needed in (("anyOf", None), ("oneOf", 1)):
        if key in schema:
            fits = sum(conforms(value, option, root) for option in schema[key])
            if not (fits if needed is None else fits == needed):
                return False
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        extra = schema.get("additionalProperties", True)
        if not set(schema.get("required", ())) <= set(value):
            return False
        if extra is False and not set(value) <= set(inner):
            return False
        return all(conforms(v, inner[k], root) for k, v in value.items() if k in inner)
    if isinstance(value, list):
        return all(conforms(v, schema.get("items", {}), root) for v in value)
    return scalar_conforms(value, schema)


def scalar_conforms(value, schema):
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", float("-inf"))
            and value < schema.get("exclusiveMaximum", float("inf"))
        )
    return True


def plain(path):
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(path.read_text())


def test_the_schema_accepts_the_example_and_refuses_what_the_loader_refuses(nmtool, request):
    schema = nmtool("config", "schema").json
    document = plain(request.config.rootpath / "examples/digits/experiment.yaml")
    assert conforms(document, schema, schema)
    wrong = json.loads(json.dumps(document))
    wrong["train"]["epoch"] = 3
    assert not conforms(wrong, schema, schema)
    wrong = json.loads(json.dumps(document))
    wrong["data"]["encoding"]["kind"] = "rata"
    assert not conforms(wrong, schema, schema)
    del document["network"]
    assert not conforms(document, schema, schema)


@pytest.mark.parametrize(("kind", "files"), [("hardware", "targets"), ("chip", "chips")])
def test_the_other_schemas_accept_the_shipped_files(nmtool, kind, files):
    schema = nmtool("config", "schema", kind).json
    for path in shipped(files).values():
        assert conforms(plain(path), schema, schema), path


def test_a_placement_file_is_checked_and_has_a_schema(nmtool, folder):
    compiled = nmtool("compile", "run", "--hw", "emulator", "--placement-out", "p.yaml", "--force")
    assert compiled.code == 0, compiled.err
    assert nmtool("config", "check", "p.yaml").out == "p.yaml: ok (nmtool.placement/v1)\n"
    schema = nmtool("config", "schema", "placement").json
    assert conforms(plain(folder / "p.yaml"), schema, schema)
    (folder / "p.yaml").write_text((folder / "p.yaml").read_text().replace("core:", "cor:", 1))
    wrong = nmtool("config", "check", "p.yaml")
    assert wrong.code == 3
    assert "did you mean core?" in wrong.err
    assert not conforms(plain(folder / "p.yaml"), schema, schema)


def test_an_override_is_checked_too(nmtool, folder):
    assert nmtool("config", "check", "experiment.yaml", "-s", "train.epochs=3").code == 0
    done = nmtool("config", "check", "experiment.yaml", "-s", "train.epoks=3")
    assert done.code == 3
    assert "did you mean epochs?" in done.err


CHANGES = "schema: nmtool.chip/v1\nname: small\nextends: loihi2\n"


def test_a_chip_file_that_changes_another_is_checked_with_it(nmtool, folder, hardware):
    (folder / "small.yaml").write_text(CHANGES + "cores: 1\n")
    assert nmtool("config", "check", "small.yaml").code == 0
    assert nmtool("config", "check", hardware(chip="small.yaml")).code == 0
    assert nmtool("config", "check", hardware(), "-s", "hw.chip=small.yaml").code == 0
    done = nmtool("config", "check", hardware(), "-s", "hw.chip=none.yaml")
    assert done.code == 3
    assert "-s hw.chip=none.yaml: none.yaml: no such file" in done.err
    (folder / "small.yaml").write_text(CHANGES + "cores: 1\ncorse: 2\n")
    done = nmtool("config", "check", "small.yaml")
    assert done.code == 3
    assert re.match(r"small\.yaml:5:1: corse: .*did you mean cores\?", done.err)
    done = nmtool("config", "check", "small.yaml", "-s", "corse=2", "-s", "cores=x")
    assert "small.yaml with -s cores: found 'x'" in done.err


def test_a_network_that_does_not_fit_ends_with_5_and_a_line_for_each_rule(nmtool, folder):
    (folder / "small.yaml").write_text(CHANGES + "input_axons_per_core: 63\ncores: 1\n")
    done = nmtool("compile", "run", "--hw", "small.yaml", "-o", "t.h5")
    assert done.code == 5
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith(
        "error: NM-FIT-022 hidden: found 64 input axons for one neuron, allowed 63 a core "
        "(documented: small.yaml); use fewer sources"
    )
    (folder / "small.yaml").write_text(
        CHANGES + "input_axons_per_core: 15\nweight_exponent: [0, 0]\nbias_exponent: [0, 0]\n"
    )
    done = nmtool("compile", "run", "--hw", "small.yaml", "-o", "t.h5", "--json")
    assert done.code == done.json["exit_code"] == 5
    starts = [line.split(":")[0] for line in done.json["error"].splitlines()]
    assert starts == ["NM-FIT-022 hidden", "NM-FIT-022 output"]
    (folder / "small.yaml").write_text(CHANGES + "input_axons_per_core: 64\n")
    assert nmtool("compile", "run", "--hw", "small.yaml", "-o", "t.h5").code == 0


def test_the_schema_of_chips_accepts_changes_of_another(nmtool):
    schema = nmtool("config", "schema", "chip").json
    changes = {"schema": "nmtool.chip/v1", "name": "small", "extends": "loihi2"}
    for good in ({}, {"cores": 3}, {"cores": {"value": 3}}, {"mesh": [2, 2]}):
        assert conforms(changes | good, schema, schema), good
    for bad in ({"cores": "x"}, {"corse": 3}, {"cores": {"source": "x"}}, {"extends": None}):
        assert not conforms(changes | bad, schema, schema), bad
    del changes["extends"]
    assert not conforms(changes, schema, schema)
