from dataclasses import fields
from pathlib import Path

import pytest

from nmtool.chip import (
    ChipSpec,
    Faults,
    HardwareConfig,
    SynapseFormat,
    config_folder,
    is_chip,
    load_chip,
    load_hardware,
    shipped,
)
from nmtool.errors import ConfigError

CHIPS = sorted(shipped("chips"))
TARGETS = sorted(shipped("targets"))
LIMITS = [f.name for f in fields(ChipSpec) if f.name not in ("name", "facts")]


def test_there_are_chips_and_targets():
    assert CHIPS == ["loihi1", "loihi2"]
    assert {"reference", "lava-sim", "loihi2-faulty"} <= set(TARGETS)
    assert all(path.is_file() for path in shipped("chips").values())
    assert shipped("targets")["reference"].parent == config_folder()


@pytest.mark.parametrize("name", CHIPS)
def test_every_number_of_a_chip_has_a_source_and_a_standing(name):
    chip = load_chip(name)
    assert chip.name == name
    assert sorted(chip.facts) == sorted(LIMITS)
    for key, fact in chip.facts.items():
        assert fact.standing in ("paper", "code", "measured", "inferred", "uncertain"), key
        assert len(fact.source) > 5, key


@pytest.mark.parametrize("name", CHIPS)
def test_the_number_formats_are_those_of_the_registers(name):
    chip = load_chip(name)
    assert chip.weight_bits == (1, 2, 3, 4, 5, 6, 8)
    assert (chip.threshold_max, chip.decay_max, chip.delay_max) == (131071, 4095, 62)
    assert (chip.bias_mantissa, chip.bias_exponent) == ((-4096, 4095), (0, 7))
    assert chip.weight_exponent == (-7, 7)
    assert (chip.current_overflow, chip.voltage_overflow) == ("wrap", "saturate")
    for key in LIMITS:
        value = getattr(chip, key)
        if isinstance(value, tuple) and key != "mesh":
            assert list(value) == sorted(value), key
        elif isinstance(value, int):
            assert value > 0, key


def test_only_loihi_1_has_published_energies():
    models = load_chip("loihi1").cost_models
    assert list(models) == ["sana-fe", "davies2018"]
    assert models["davies2018"].events["synapse_dense"].energy_pj == 23.6
    assert load_chip("loihi1").static_power == 104
    assert load_chip("loihi2").cost_models is None
    assert load_chip("loihi2").static_power is None


@pytest.mark.parametrize("name", TARGETS)
def test_every_shipped_target_loads_and_has_a_chip(name):
    target = load_hardware(name)
    assert target.name == name
    assert target.chip in CHIPS
    assert target.timeouts.run > 0
    if target.weight_bits is not None:
        assert target.weight_bits in load_chip(target.chip).weight_bits


def test_only_the_faulty_target_has_faults():
    assert [name for name in TARGETS if load_hardware(name).faults] == ["loihi2-faulty"]
    assert load_hardware("loihi2-faulty").faults == Faults(
        seed=7, dead_neurons=0.1, stuck_neurons=0.05, weight_bit_flips=1e-3, spike_loss=0.01
    )


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_chip, "loihi3", r"chip loihi3: unknown, allowed loihi1, loihi2, or the path .*"),
        (load_hardware, "referense", r"target referense: unknown, .*; did you mean reference\?"),
        (load_hardware, "", "target : unknown"),
        (load_hardware, "lava-loihi", "a backend, which the target kapoho-point and the target .*"),
        (load_hardware, "lava-loihi", "my-target.yaml with `backend: lava-loihi` names it"),
        (load_hardware, "nothing.yaml", "nothing.yaml: no such file"),
        (load_chip, "nowhere/loihi2", "nowhere/loihi2: no such file"),
    ],
)
def test_unknown_names_are_refused(load, name, message):
    with pytest.raises(ConfigError, match=message):
        load(name)


TARGET = "schema: nmtool.hardware/v1\nname: mine\nchip: {chip}\nbackend: reference\n"


def test_a_target_may_name_a_chip_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "chip.yaml").write_text(
        shipped("chips")["loihi2"].read_text().replace("name: loihi2", "name: mine")
    )
    (tmp_path / "target.yaml").write_text(TARGET.format(chip="chip.yaml"))
    target = load_hardware(str(tmp_path / "target.yaml"), ["timeouts.run=3s"])
    assert load_chip(target.chip).name == "mine"
    assert target.timeouts.run == 3
    monkeypatch.chdir(tmp_path)
    assert load_chip(load_hardware("target.yaml").chip).name == "mine"


def test_an_unknown_chip_shows_before_anything_runs(tmp_path):
    (tmp_path / "target.yaml").write_text(TARGET.format(chip="loihi22"))
    with pytest.raises(ConfigError, match=r"chip loihi22: unknown, .* did you mean loihi2\?"):
        load_hardware(str(tmp_path / "target.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("standing: paper", "standing: rumour", r"\.standing: found 'rumour', allowed 'paper'"),
        ('source: "Davies et al. 2018: 16384', 'origin: "', "found an unknown key"),
        ("value: 62", "value: many", r"delay_max\.value: found 'many', allowed a valid integer"),
        ("value: 12,", "value: 11,", r"decay_bits\.value: found 11, allowed 12"),
        ("value: wrap", "value: saturate", r"current_overflow\.value: found 'saturate'"),
        ("[-7, 7]", "[-7]", r"weight_exponent\.value: found a list"),
        ("\ncores:", "\ncorse:", r"corse: found an unknown key, .* did you mean cores\?"),
    ],
)
def test_a_wrong_chip_file_names_its_place(tmp_path, old, new, message):
    text = shipped("chips")["loihi1"].read_text()
    assert old in text
    path = Path(tmp_path / "chip.yaml")
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=rf"chip\.yaml:\d+:\d+: .*{message}"):
        load_chip(str(path))


def test_a_config_cannot_be_changed():
    target = load_hardware("reference")
    with pytest.raises(ValueError, match="frozen"):
        target.name = "other"
    assert isinstance(target, HardwareConfig)


def test_a_format_reads_as_a_person_would_say_it():
    assert str(SynapseFormat(4, -2, "mixed")) == "4 bit mixed, 2^-2"


def test_a_chip_is_told_from_a_target(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(shipped("chips")["loihi2"].read_text())
    assert is_chip("loihi1")
    assert is_chip(str(own))
    assert not is_chip("reference")
    assert not is_chip(str(shipped("targets")["reference"]))
