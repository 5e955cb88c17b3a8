"""Data sets from the command line: trained on, deployed by part, and refused with what to do."""

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip("torch")

EXPERIMENT = """\
schema: nmtool.experiment/v1
name: small
data: {data}
network:
  neuron: {{kind: cuba, threshold: 1.25, current_decay: 0.25, voltage_decay: 0.03}}
  layers: [{{dense: 12, name: hidden}}, {{dense: {outputs}, name: output}}]
train:
  epochs: 1
  batch: 32
  optimizer: {{name: adam, lr: 4.0e-3}}
  loss: {{kind: count_cross_entropy, scale: 0.1}}
"""
XOR = "{name: delayed_xor, cue: 3, delay: 2, lines: 4, train: 64, validation: 16, test: 40}"
MOVING = "{name: moving_digits, steps: 9, test: 1600, validation: 100}"


@pytest.fixture
def experiment(folder):
    """``experiment(data)`` writes new.yaml."""

    def write(data, outputs=10):
        path = folder / "new.yaml"
        path.write_text(EXPERIMENT.format(data=data, outputs=outputs))
        return path

    return write


@pytest.mark.parametrize(
    ("data", "outputs", "name", "sizes"),
    [(XOR, 2, "delayed_xor", (16, 40)), (MOVING, 10, "moving_digits", (100, 1600))],
)
def test_a_network_is_trained_and_deployed_on_every_part(
    nmtool, experiment, folder, data, outputs, name, sizes
):
    source = experiment(data, outputs)
    trained = nmtool("train", source, "-o", "new", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["samples"]["test"] == sizes[1]
    assert nmtool("compile", "new", "--hw", "emulator", "-o", "new.h5").code == 0
    for part, size in zip(("validation", "test"), sizes, strict=True):
        done = nmtool("deploy", "new.h5", "--data", f"{name}:{part}", "--json")
        assert done.code == 0, done.err
        assert done.json["samples"] == size
        found = done.json["measured"]["accuracy"]["value"]
        key = {"validation": "validation", "test": "quantized"}[part]
        assert found == pytest.approx(trained.json["accuracy"][key])
    compare = ("compare", "trainer:new", "reference", "--program", "new.h5")
    assert nmtool(*compare, "--data", f"{name}:validation").code == 0


def test_jitter_of_what_is_no_image_is_refused(nmtool, experiment, folder, unchanged):
    source = experiment(XOR, 2)
    with unchanged(folder):
        done = nmtool("train", source, "-o", "new", "-s", "train.jitter=1")
    assert done.code == 3
    assert "train.jitter: found 1, allowed 0" in done.err
    done = nmtool("config", "check", source, "-s", "train.jitter=1")
    assert done.code == 3
    assert "train.jitter: found 1, allowed 0" in done.err
    assert nmtool("config", "check", source).code == 0


def test_raw_samples_have_no_encoding_there(nmtool, experiment, folder):
    source = experiment(XOR, 2)
    assert nmtool("train", source, "-o", "new").code == 0
    assert nmtool("compile", "new", "--hw", "emulator", "-o", "new.h5").code == 0
    np.save(folder / "raw.npy", np.zeros((2, 12)))
    done = nmtool("deploy", "new.h5", "--input", "raw.npy", "--encode")
    assert done.code == 3
    assert "delayed_xor has no encoding of single numbers" in done.err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
@pytest.mark.parametrize("name", ["nmnist", "dvs_gesture, pool: 8", "shd"])
def test_missing_archives_end_with_where_they_are_from(
    nmtool, experiment, folder, unchanged, name, dry
):
    classes = {"nmnist": 10, "dvs_gesture, pool: 8": 11, "shd": 20}[name]
    source = experiment(f"{{name: {name}}}", classes)
    with unchanged(folder):
        done = nmtool("train", source, "-o", "new", "--json", *dry)
    assert done.code == done.json["exit_code"] == 3, done.err
    assert "in data or data/" in done.err
    assert "put it there from http" in done.err


def test_a_dry_run_fetches_nothing(nmtool, experiment, folder, unchanged, monkeypatch):
    from nmtool.data import recorded

    monkeypatch.setattr(recorded, "_download", None)
    source = experiment("{name: shd, download: true}", 20)
    with unchanged(folder):
        done = nmtool("train", source, "--dry-run")
    assert done.code == 0, done.err


def test_missing_files_of_the_vowels_end_with_what_to_install(
    nmtool, experiment, folder, unchanged, monkeypatch
):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "aeon" else plain(n, *a)
    )
    from nmtool.data import japanese_vowels

    japanese_vowels.read.cache_clear()
    data = "{name: japanese_vowels, encoding: {kind: delta, steps: 60, hold: 2}}"
    source = experiment(data, 9)
    with unchanged(folder):
        done = nmtool("train", source, "-o", "new", "--json")
    assert done.code == 10, done.err
    assert "pip install --no-deps aeon" in done.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{name: nmist}", "did you mean nmnist?"),
        ("{name: delayed_xor, cues: 3}", "did you mean cue?"),
        ("{name: moving_digits, size: 24}", "data.size: found 24, allowed 16 or 32"),
        ("{name: shd, pool: 4}", "data.pool: found an unknown key"),
        (
            "{name: japanese_vowels, encoding: {kind: delta, steps: 30}}",
            "data.encoding: found a mapping, allowed steps of at least 116",
        ),
        ("{name: japanese_vowels, encoding: {kind: rate, steps: 30}}", "allowed 'delta'"),
    ],
)
def test_a_wrong_section_is_named_with_its_line(nmtool, experiment, data, message):
    done = nmtool("config", "check", experiment(data))
    assert done.code == 3
    assert message in done.err
    assert "new.yaml:3:" in done.err


def test_the_resolved_experiment_says_the_whole_section(nmtool, experiment, folder):
    assert nmtool("train", experiment(XOR, 2), "-o", "new").code == 0
    written = json.loads((folder / "new/experiment.json").read_text())
    assert written["data"] == {
        "name": "delayed_xor",
        "cue": 3,
        "delay": 2,
        "lines": 4,
        "rate": 0.5,
        "noise": 0.02,
        "train": 64,
        "validation": 16,
        "test": 40,
        "seed": 0,
    }
