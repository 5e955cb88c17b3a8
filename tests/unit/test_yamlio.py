import contextlib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from nmtool import yamlio
from nmtool.chip import HardwareConfig, Strict
from nmtool.config import Experiment
from nmtool.errors import ConfigError

EXAMPLE = (Path(__file__).parents[2] / "examples/digits/experiment.yaml").read_text()


class Inner(Strict):
    speed: float
    mode: Literal["fast", "slow"] = "fast"


class Outer(Strict):
    name: str
    count: int = Field(default=1, ge=1)
    inner: Inner
    parts: list[Inner] = []


def problems(text, model=Outer):
    with pytest.raises(ConfigError) as caught:
        yamlio.validate(yamlio.parse(text, "f.yaml"), model)
    return str(caught.value).splitlines()


GOOD = "name: x\ninner:\n  speed: 1.5\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ["f.yaml:1:1: found an empty file, allowed a mapping"]),
        ("# only a comment\n", ["f.yaml:1:1: found an empty file, allowed a mapping"]),
        ("- 1\n", ["f.yaml:1:1: found no mapping, allowed keys and values"]),
        ("5", ["f.yaml:1:1: found no mapping, allowed keys and values"]),
        (
            GOOD + "naem: y\n",
            [
                "f.yaml:4:1: naem: found an unknown key, allowed count, inner, name, parts; "
                "did you mean name?"
            ],
        ),
        (
            GOOD + "zzz: y\n",
            ["f.yaml:4:1: zzz: found an unknown key, allowed count, inner, name, parts"],
        ),
        (
            "name: x\ninner: {speed: 1, mood: fast}",
            [
                "f.yaml:2:19: inner.mood: found an unknown key, allowed mode, speed; "
                "did you mean mode?"
            ],
        ),
        ("name: x\nname: y\n", ["f.yaml:2:1: name: found twice, first in line 1"]),
        ("inner:\n  speed: 1\n  speed: 2\n", ["f.yaml:3:3: speed: found twice, first in line 2"]),
        ("name: x\n", ["f.yaml:1:1: inner: found nothing, allowed a value (the key is required)"]),
        (GOOD + "count: three\n", ["f.yaml:4:1: count: found 'three', allowed a valid integer"]),
        (GOOD + "count: 0\n", ["f.yaml:4:1: count: found 0, allowed greater than or equal to 1"]),
        (GOOD + "count: [1]\n", ["f.yaml:4:1: count: found a list, allowed a valid integer"]),
        (GOOD + "count: {a: 1}\n", ["f.yaml:4:1: count: found a mapping, allowed a valid integer"]),
        (GOOD + "count: true\n", ["f.yaml:4:1: count: found True, allowed a valid integer"]),
        (GOOD + "count: 1.0\n", ["f.yaml:4:1: count: found 1.0, allowed a valid integer"]),
        ("name: 5\ninner: {speed: 1}", ["f.yaml:1:1: name: found 5, allowed a valid string"]),
        (
            "name: x\ninner: {speed: '1'}",
            ["f.yaml:2:9: inner.speed: found '1', allowed a valid number"],
        ),
        (
            "name: x\ninner: {speed: .inf}",
            ["f.yaml:2:9: inner.speed: found inf, allowed a finite number"],
        ),
        (
            "name: x\ninner: {speed: 1, mode: fats}",
            ["f.yaml:2:19: inner.mode: found 'fats', allowed 'fast' or 'slow'; did you mean fast?"],
        ),
        (
            GOOD + "parts:\n- speed: 1\n- speed: x\n",
            ["f.yaml:6:3: parts.1.speed: found 'x', allowed a valid number"],
        ),
        (
            GOOD + "parts: [{speed: 1, m: 2}]\n",
            ["f.yaml:4:20: parts.0.m: found an unknown key, allowed mode, speed"],
        ),
        ("a: [1, 2\n", ["f.yaml:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"]),
        ("a: 'x", ["f.yaml:1:6: not valid YAML: found unexpected end of stream"]),
        (
            "a:\n\tb: 1",
            ["f.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"],
        ),
        ("a: 1\n---\nb: 2\n", ["f.yaml:2:1: not valid YAML: but found another document"]),
        ("a: *x\n", ["f.yaml:1:4: not valid YAML: found undefined alias 'x'"]),
        ("a: &x 1\n", ["f.yaml:1:4: found an anchor or alias, allowed plain values"]),
        ("a: &x [1]\n", ["f.yaml:1:4: found an anchor or alias, allowed plain values"]),
        ("&x a: 1\n", ["f.yaml:1:1: found an anchor or alias, allowed plain values"]),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            ["f.yaml:1:4: found the tag !!python/object/apply:os.system, allowed no tags"],
        ),
        ("a: !foo 1\n", ["f.yaml:1:4: found the tag !foo, allowed no tags"]),
        ("a: !!str 1\n", ["f.yaml:1:4: found the tag !!str, allowed no tags"]),
        ("a: !!bool x\n", ["f.yaml:1:4: found the tag !!bool, allowed no tags"]),
        ("a: !!int ''\n", ["f.yaml:1:4: found the tag !!int, allowed no tags"]),
        ("a: !!set {b}\n", ["f.yaml:1:4: found the tag !!set, allowed no tags"]),
        ("x: 1\n!foo a: 1\n", ["f.yaml:2:1: found the tag !foo, allowed no tags"]),
        ("%YAML 1.1\n---\na: yes\n", ["f.yaml:1:1: found a directive (%), allowed none"]),
        (
            "# a comment\n\n%TAG ! x\n---\na: 1\n",
            ["f.yaml:3:1: found a directive (%), allowed none"],
        ),
        ("? [a]\n: 1\n", ["f.yaml:1:3: found a key that is not a word, allowed words"]),
        ("a: 0x_\n", ["f.yaml:1:4: found '0x_', allowed a value of int"]),
        (
            "a: \x01",
            [
                "f.yaml:1:1: not valid YAML: unacceptable character #x0001: "
                "special characters are not allowed"
            ],
        ),
    ],
)
def test_every_kind_of_error_names_its_place(text, wanted):
    assert problems(text) == wanted


def test_all_problems_are_shown_at_once_in_the_order_of_the_file():
    found = problems("name: 5\ncount: 0\ninner: {sped: 1, mode: no}\nextra: 1\n")
    assert [line.split(": ")[1] for line in found] == [
        "name",
        "count",
        "inner.speed",
        "inner.sped",
        "inner.mode",
        "extra",
    ]
    assert len(problems("a: &x 1\nb: !y 2\na: 3\n")) == 3


@pytest.mark.parametrize("nested", [100, 700])
def test_deep_nesting_is_an_error_and_no_crash(nested):
    found = problems("a: " + "[" * nested + "]" * nested)
    assert found[0].startswith("f.yaml:1:1: ")


def test_an_alias_that_multiplies_is_refused_before_it_expands():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]
    assert "found an anchor or alias" in problems("\n".join(lines))[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("1E5", 1e5),
        ("-2", -2),
        ("0x1F", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("12:30:45", "12:30:45"),
        ("2026-01-02", "2026-01-02"),
        ("'5'", "5"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("|\n  % text\n", "% text\n"),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    assert yamlio.parse(f"a: {text}", "f").data == {"a": value}
    assert type(yamlio.parse(f"a: {text}", "f").data["a"]) is type(value)


def test_marks_are_the_deepest_place_in_the_file():
    document = yamlio.parse("a:\n  b: [1, 2]\n", "f")
    assert document.where(("a", "b", 1)) == (2, 10)
    assert document.where(("a", "b", 7, "x")) == document.where(("a", "b"))
    assert document.where(("z",)) == (1, 1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("60s", 60), ("2m", 120), ("1.5h", 5400), (" 3 s ", 3)]
)
def test_durations_have_a_unit(text, seconds):
    assert yamlio.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["60", 60, "s", "-1s", "1 day", "", None, "1s2", "1e3s"])
def test_durations_without_a_known_unit_are_refused(text):
    with pytest.raises(ValueError, match="a duration with its unit, such as 500ms"):
        yamlio.parse_duration(text)


def test_a_duration_without_a_unit_names_its_place():
    text = "schema: nmtool.hardware/v1\nname: x\nchip: loihi2\nbackend: reference\n"
    found = problems(text + "timeouts: {run: 60}\n", HardwareConfig)
    assert found == [
        "f.yaml:5:12: timeouts.run: found 60, allowed a duration with its unit, "
        "such as 500ms, 60s, 2m or 1h"
    ]


# Files


def test_load_reads_a_file_and_its_overrides(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(GOOD)
    loaded = yamlio.load(path, Outer, ["inner.speed=2e-3", "count=5", "parts=[{speed: 1}]"])
    assert (loaded.name, loaded.count) == ("x", 5)
    assert (loaded.inner.speed, loaded.parts) == (2e-3, [Inner(speed=1.0)])
    assert yamlio.load(str(path), Outer).inner.speed == 1.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count", "-s count: found no key=value, allowed such as train.epochs=3"),
        ("=5", "-s =5: found no key=value"),
        ("inner..speed=5", "found no key=value"),
        ("name.first=x", "-s name.first=x: name is not a mapping"),
        ("count=[1", r"-s count:\d+:\d+: not valid YAML"),
        ("count=!!int 1", r"-s count:1:8: found the tag !!int, allowed no tags"),
        ("cuont=5", r"f.yaml with -s cuont: found an unknown key, .* did you mean count\?"),
        ("count=x", "count: found 'x', allowed a valid integer"),
        ("inner.speed=x", r"f.yaml with -s inner.speed: found 'x', allowed a valid number"),
        ("inner.sped=1", r"f.yaml with -s inner.sped: .* did you mean speed\?"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, override, message):
    (tmp_path / "f.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=message):
        yamlio.load(tmp_path / "f.yaml", Outer, [override])


def test_an_override_replaces_a_whole_section_and_makes_new_ones():
    document = yamlio.parse(GOOD, "f")
    yamlio.apply_override(document, "inner={speed: 7}")
    yamlio.apply_override(document, "new.deep.key=1")
    yamlio.apply_override(document, "empty=")
    assert document.data == {
        "name": "x",
        "inner": {"speed": 7},
        "new": {"deep": {"key": 1}},
        "empty": None,
    }


def test_files_that_cannot_be_read_are_config_errors(tmp_path):
    path = tmp_path / "f.yaml"
    with pytest.raises(ConfigError, match=r"f\.yaml: no such file"):
        yamlio.load(path, Outer)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="found bytes that are not UTF-8"):
        yamlio.load(path, Outer)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="found more than 100000 bytes, allowed 100000"):
        yamlio.load(path, Outer)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        yamlio.load(tmp_path, Outer)


# Random text: a ConfigError or a value, and nothing else

PIECES = [
    *(": ", "- ", "\n", "  ", "? ", "! ", "!!int ", "&a ", "*a", "%", "#", "'", '"', "{", "}"),
    *("[", "]", ",", "|", ">", "---\n", "...\n", "<<", "=", "~", "0x", ".inf", "1e5", "\t", "\\x"),
    *("a", "kind", "rate", "schema", "network", "layers", "é", "\ufeff", "\0", "\x85", "9" * 30),
]
words = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def parse_and_validate(text):
    for model in (Experiment, HardwareConfig, Outer):
        message = "f.yaml:"
        try:
            yamlio.validate(yamlio.parse(text, "f.yaml"), model)
        except ConfigError as error:
            message = str(error)
        assert message.startswith("f.yaml:")


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=60), words))
def test_random_text_gives_only_config_errors(text):
    parse_and_validate(text)


@settings(max_examples=60)
@given(st.data())
def test_a_changed_experiment_gives_only_config_errors(data):
    place = data.draw(st.integers(0, len(EXAMPLE) - 1))
    length = data.draw(st.integers(0, 20))
    piece = data.draw(st.one_of(st.sampled_from(PIECES), words, st.text(max_size=5)))
    parse_and_validate(EXAMPLE[:place] + piece + EXAMPLE[place + length :])


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("rate")
)
keys = st.sampled_from(
    [*Experiment.model_fields, "schema", "kind", "encoding", "rate", "steps", "x"]
)
trees = st.recursive(
    scalars, lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(keys, t, max_size=4))
)


@given(st.dictionaries(keys, trees, max_size=6))
def test_random_trees_give_only_config_errors(tree):
    with pytest.raises(ConfigError):
        yamlio.validate(yamlio.Document("f.yaml", tree, {(): (1, 1)}), Experiment)


@given(words, words)
def test_random_overrides_give_only_config_errors(key, value):
    document = yamlio.parse(EXAMPLE, "f.yaml")
    with contextlib.suppress(ConfigError):
        yamlio.apply_override(document, f"{key}={value}")
        yamlio.validate(document, Experiment)
