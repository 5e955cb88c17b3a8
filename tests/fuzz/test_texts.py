"""YAML and JSON from others: a model or a ConfigError, soon and in little room."""

import contextlib
import copy
import json
import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import VALUES, changed_headers

from nmtool import yamlio
from nmtool.backends import check_runnable, open_session
from nmtool.chip import config_folder, load_chip, load_hardware
from nmtool.cli.runs import Run
from nmtool.compiler import compile_program
from nmtool.config import Experiment, experiment_from_json, load_experiment, resolved_json
from nmtool.data import load_split, spikes_of
from nmtool.errors import ArtifactError, ConfigError, FitError
from nmtool.layers import from_config
from nmtool.regression.quarantine import load_quarantine

import regression_networks as nets  # isort: skip

EXPERIMENT = """\
schema: nmtool.experiment/v1
name: digits
data: {name: digits, encoding: {kind: latency, steps: 24}}
network:
  neuron: {kind: cuba, threshold: 1.25, current_decay: 0.25, voltage_decay: 0.03}
  layers: [{dense: 96, name: first}, {dense: 40, name: output, delay: 2, bias: 0.5}]
  readout: {neurons_per_class: 4}
train: {epochs: 10, batch: 32, optimizer: {name: adam, lr: 4.0e-3}, loss: {kind: spike_rate}}
finetune: {rounds: 2}
checks: [{metric: accuracy, min: 0.5, on: [emulator]}]
"""
QUARANTINE = """\
schema: nmtool.quarantine/v1
entries: [{golden: "a*.h5", target: emulator, reason: known, expires: 2027-01-31}]
"""
TARGET = """\
schema: nmtool.hardware/v1
name: mine
chip: loihi2
weight_bits: 8
faults:
  seed: 3
  dead_neurons: 0.1
  weight_bit_flips: 0.1
  threshold_bit_flips: 0.1
  spike_loss: 0.1
  first_run: 1
  injected:
    - {kind: dead, population: h, neuron: 0}
    - {kind: threshold, population: h, neuron: 1, by: 2}
    - {kind: decay_v, population: o, by: 1}
    - {kind: weight_bit, projection: ih, weight: [0, 1], bit: 2}
    - {kind: delay, projection: ho, by: 2}
    - {kind: swapped, population: o, neurons: [0, 1]}
    - {kind: lost_spike, population: h, neuron: 0, sample: 0, step: 2}
    - {kind: truncated, steps: 9}
probes: {spikes: all}
timeouts: {load: 2m, run: 10s}
"""
CHIP = (config_folder() / "chips" / "loihi2.yaml").read_text().replace("name: loihi2", "name: mine")
CHANGES = """\
schema: nmtool.chip/v1
name: mine
extends: loihi2
cores: 16
neurons_per_core: {value: 512, standing: user, source: mine}
synapse_bits_per_core: 100000
input_axons_per_core: {value: 400, source: mine}
profiles_per_core: 1
delay_slots_per_core: null
slice_widths: any
axons: {kind: discrete}
mesh: [2, 2]
message_bits: [0, 24]
weight_bits: [1, 8]
weight_exponent: [-7, 7]
synapse_memory: {word_bits: 64, header_bits: 10, block: 64, index_bits: 0,
  sparse_index_bits: [0, 6, 12], kernels: rows, kernel_header_bits: 10, delays: true}
"""
PROGRAM = nets.make_program("dense")
INPUTS = nets.make_inputs(PROGRAM, 2)


def use_experiment(path):
    config = load_experiment(path)
    if config.network.layers:
        network = from_config(config.network, (8, 8, 1), 10, config.seed)
        compile_program(network, load_chip("loihi2"))
    spikes_of(load_split(config.data, "test"), config.data)


def use_target(path):
    hardware = load_hardware(str(path))
    check_runnable(PROGRAM, hardware)
    if hardware.backend in ("emulator", "reference"):
        with open_session(PROGRAM, hardware) as session:
            session.run(INPUTS)


def use_chip(path):
    chip = load_chip(str(path))
    assert chip.name not in ("loihi1", "loihi2")
    for kind in ("dense", "conv"):
        with contextlib.suppress(FitError):
            compile_program(nets.make_network(kind), chip)
    compile_program(nets.make_network("dense"), chip.documented())


READERS = {
    "experiment": (EXPERIMENT, use_experiment),
    "target": (TARGET, use_target),
    "chip": (CHIP, use_chip),
    "changes of a chip": (CHANGES, use_chip),
    "quarantine": (QUARANTINE, lambda path: load_quarantine(path).entry("a.h5", "x")),
}


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=40)
@given(st.data())
def test_changed_values(tmp_path, clean, kind, data):
    text, use = READERS[kind]
    header = yamlio.parse(text, kind).data
    for _ in range(data.draw(st.integers(1, 2))):
        header = data.draw(changed_headers(copy.deepcopy(header)))
        if not header:
            break
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(header))
    with clean(), warnings.catch_warnings():
        warnings.simplefilter("error")
        use(path)


PIECES = [
    *("!!python/object/apply:os.system [id]", "&a", "*a", "<<: ", "? ", "- ", "|\n", "%YAML 1.1\n"),
    *("\0", "\ufeff", "\x85", "1e999", ".nan", "-.inf", "0x10", "0o7", "1_000", "2020-01-01", "~"),
    *("9" * 5000, "[" * 300, "{a: " * 300, "---\n", "...\n", "\t", "'", '"', "#", "!!binary aGk="),
]


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=20)
@given(st.data())
def test_changed_text(tmp_path, clean, kind, data):
    text, use = READERS[kind]
    content = text.encode()
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.one_of(st.sampled_from(PIECES).map(str.encode), st.binary(max_size=4)))
        content = content[:place] + piece + content[place + data.draw(st.integers(0, 9)) :]
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with clean(), warnings.catch_warnings():
        warnings.simplefilter("error")
        use(path)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "an anchor or alias"),
        ("a: &a [1]\n" * 400, "problems more"),
        ("a: 1\na: 2\n", "found twice"),
        ("a: !!python/object/apply:os.system [id]\n", "allowed no tags"),
        ("<<: {a: 1}\n", "unknown key"),
        ("[" * 50_000, "found more than 50 levels"),
        ("a: " * 900, "not valid YAML"),
        ("schema: " + "1" * 90_000, "found"),
        ("x" * 100_001, "found more than 100000 bytes"),
        ("a: \0", "not valid YAML"),
    ],
)
def test_yaml_bombs(tmp_path, clean, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with clean(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=message) as caught:
            load_experiment(path)
    assert len(str(caught.value)) < 20_000


def with_line(kind, old, new):
    assert old in READERS[kind][0]
    return READERS[kind][0].replace(old, new)


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("target", "name: mine", 'name: "../../x"', "name"),
        ("target", "name: mine", 'name: ".."', "name"),
        ("target", "seed: 3", "seed: -1", "seed"),
        ("target", "seed: 3", "seed: 18446744073709551616", "seed"),
        ("target", "first_run: 1", "first_run: 18446744073709551616", "first_run"),
        ("target", "run: 10s", f"run: {'9' * 400}s", "a duration of at most"),
        ("target", "chip: loihi2", "chip: /dev/zero", "found a device"),
        ("chip", "threshold_bits: {value: 17", "threshold_bits: {value: 1000000000000", "value"),
        ("chip", "weight_bits: {value: [1, 2, 3, 4, 5, 6, 8]", "weight_bits: {value: [99]", "8"),
        ("chip", "weight_exponent: {value: [-7, 7]", "weight_exponent: {value: [-8, -8]", "0"),
        ("chip", "weight_exponent: {value: [-7, 7]", "weight_exponent: {value: [0, 99]", "7"),
        ("chip", "bias_exponent: {value: [0, 7]", "bias_exponent: {value: [0, 1000000000]", "15"),
        ("chip", "bias_exponent: {value: [0, 7]", "bias_exponent: {value: [7, 0]", "lower end"),
        ("experiment", "\nname: digits\n", "\nname: ..\n", "name"),
        ("experiment", "dense: 96", "dense: 1000000000000", "dense"),
        (
            "experiment",
            "96, name: first}, {dense: 40",
            "60000, name: first}, {dense: 60000",
            "weights between the layers",
        ),
        ("experiment", "steps: 24", "steps: 100000", "use fewer steps"),
    ],
)
def test_values_that_no_file_may_claim(tmp_path, clean, kind, old, new, message):
    path = tmp_path / "a.yaml"
    path.write_text(with_line(kind, old, new))
    with clean(), pytest.raises(ConfigError, match=message):
        READERS[kind][1](path)


def test_pipes_are_read_and_bounded(tmp_path):
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    if not os.fork():
        with contextlib.suppress(OSError):
            path.write_bytes(b"#" * 300_000)
        os._exit(0)
    with pytest.raises(ConfigError, match="found more than"):
        load_experiment(path)
    os.wait()


@settings(max_examples=40)
@given(st.data())
def test_resolved_experiments(clean, data):
    config = yamlio.validate(yamlio.parse(EXPERIMENT, "experiment"), Experiment)
    resolved = json.loads(resolved_json(config))
    text = json.dumps(data.draw(changed_headers(resolved)))
    with clean():
        assert isinstance(experiment_from_json(text, "experiment.json"), Experiment)
    with clean():
        experiment_from_json(json.dumps(data.draw(VALUES)), "experiment.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 50_000, b"{" * 99, b"", b"x" * 200_000])
def test_resolved_experiments_of_other_bytes(tmp_path, clean, content):
    (tmp_path / "experiment.json").write_bytes(content)
    with clean(), pytest.raises((ArtifactError, ConfigError), match=r"experiment\.json"):
        Run(tmp_path).load_experiment()
