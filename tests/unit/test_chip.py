from dataclasses import fields
from pathlib import Path

import pytest

from nmtool.chip import (
    UNLIMITED,
    ChipSpec,
    Faults,
    HardwareConfig,
    SynapseFormat,
    chip_called,
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
    assert CHIPS == ["loihi1", "loihi2", "loihi2-2022"]
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
        if isinstance(value, tuple) and key not in ("mesh", "convolution_hangs_from"):
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
        (
            load_chip,
            "loihi3",
            r"chip loihi3: unknown, allowed loihi1, loihi2-2022, loihi2, or the path .*",
        ),
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


# Chip files that change another

HEAD = "schema: nmtool.chip/v1\nname: mine\n"


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_changes_single_numbers_of_another_chip(tmp_path):
    path = write(
        tmp_path,
        HEAD
        + "extends: loihi2\ncores: 16\nneurons_per_core: {value: 512, source: our board}\n"
        + "mesh: [2, 2]\naxons: {kind: discrete}\n"
        + "input_axons_per_core: {value: 99, standing: inferred, source: a guess}\n",
    )
    chip, base = load_chip(path), load_chip("loihi2")
    assert (chip.name, chip.cores, chip.neurons_per_core, chip.mesh) == ("mine", 16, 512, (2, 2))
    assert (chip.axons.kind, chip.input_axons_per_core) == ("discrete", 99)
    assert chip.standing("cores") == "documented: mine.yaml"
    assert chip.standing("neurons_per_core") == "documented: our board"
    assert chip.standing("input_axons_per_core") == "inferred: a guess"
    assert chip.facts["cores"].standing == chip.facts["mesh"].standing == "user"
    changed = {"cores", "neurons_per_core", "mesh", "axons", "input_axons_per_core"}
    assert {key for key in LIMITS if chip.facts[key] != base.facts[key]} == changed


def test_numbers_of_a_user_count_as_documented(tmp_path):
    chip = load_chip(write(tmp_path, HEAD + "extends: loihi2\nneurons_per_core: 512\n"))
    assert chip.documented().neurons_per_core == 512
    assert chip.documented().input_axons_per_core == UNLIMITED
    assert load_chip("loihi2").documented().neurons_per_core == 8192


def test_a_limit_that_is_taken_away_limits_nothing(tmp_path):
    chip = load_chip(write(tmp_path, HEAD + "extends: loihi2\nmemory_words_per_core: null\n"))
    assert chip.memory_words_per_core == UNLIMITED


def test_files_may_extend_each_other(tmp_path):
    write(tmp_path, HEAD.replace("mine", "base") + "extends: loihi1\ncores: 16\n", "base.yaml")
    chip = load_chip(write(tmp_path, HEAD + "extends: base.yaml\nneurons_per_core: 7\n"))
    assert (chip.name, chip.cores, chip.neurons_per_core) == ("mine", 16, 7)
    assert chip.standing("cores") == "documented: base.yaml"
    assert chip.synapse_memory == load_chip("loihi1").synapse_memory


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "extends: loihi3\n", r"mine\.yaml:3:1: chip loihi3: unknown, .*mean loihi2"),
        (HEAD + "extends: none.yaml\n", r"mine\.yaml:3:1: \S*none\.yaml: no such file"),
        (HEAD + "extends: 3\n", r"mine\.yaml:3:1: extends: found 3"),
        (HEAD + "extends: mine.yaml\n", r"mine\.yaml:3:1: extends: found mine.yaml, which ext"),
        (HEAD + "extends: loihi2\ncores: many\n", r"mine\.yaml:4:1: cores: found 'many'"),
        (HEAD + "extends: loihi2\n\ncores: {value: 0}\n", r"mine\.yaml:5:9: cores.* found 0"),
        (HEAD + "extends: loihi2\ncores: 1073741824\n", r"yaml:4:1: cores: .*equal to 4096"),
        (HEAD + "extends: loihi2\ncores: 129\n", r"mine\.yaml:4:1: cores: .*up to 128: 32 tiles"),
        (HEAD + "extends: loihi2\nmesh: [1, 1]\n", r"mine\.yaml:4:1: cores: found 120, .*up to 4"),
        (HEAD + "extends: loihi2\ncorse: 3\n", r"mine\.yaml:4:1: corse: .* did you mean cores"),
        (HEAD + "extends: loihi2\nmessage_bits: []\n", r"mine\.yaml:4:1: message_bits"),
        (HEAD + "extends: loihi2\ncores: {value: 3, standing: rumour}\n", r"yaml:4:19: .*rumour"),
        (HEAD + "cores: 3\n", r"mine\.yaml:3:1: cores: found 3, allowed a mapping of value"),
        (HEAD, r"mine\.yaml:1:1: found no cores, .* `extends: CHIP`"),
        ("name: mine\nextends: loihi2\n", r"mine\.yaml:1:1: schema: found None"),
        ("schema: nmtool.chip/v1\nextends: loihi2\n", r"mine\.yaml:1:1: name: found nothing"),
        ("schema: nmtool.chip/v1\nname: a/b\nextends: loihi2\n", r"mine\.yaml:2:1: name: found"),
        (
            "schema: nmtool.chip/v1\nname: loihi1\nextends: loihi2\n",
            r"mine\.yaml:2:1: name: found loihi1, the name of a shipped chip",
        ),
        (
            "schema: nmtool.chip/v1\nname: loihi2\nextends: loihi2\n",
            r"mine\.yaml:2:1: name: found loihi2, as loihi2 has it",
        ),
    ],
)
def test_a_wrong_change_names_its_place(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_chip(write(tmp_path, text))


def test_a_value_of_several_kinds_is_one_problem():
    with pytest.raises(ConfigError) as caught:
        load_hardware("emulator", ["probes.spikes=nix"])
    (line,) = str(caught.value).splitlines()
    assert line.endswith("probes.spikes: found 'nix', allowed 'outputs' or 'all' or a valid list")


@pytest.mark.parametrize("given", [None, "loihi2", "mine.yaml"])
def test_a_chip_of_ones_own_is_found_by_its_file(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, HEAD + "extends: loihi2\n")
    assert chip_called("loihi1", given, "--chip FILE.yaml") == "loihi1"
    if given == "mine.yaml":
        assert chip_called("mine", given, "--chip FILE.yaml") == given
        return
    with pytest.raises(ConfigError, match=r"chip mine: found no .*yours: --chip FILE\.yaml"):
        chip_called("mine", given, "--chip FILE.yaml")


def test_all_wrong_changes_are_shown_at_once(tmp_path):
    path = write(tmp_path, HEAD + "extends: loihi2\ncores: many\nneurons_per_core: -1\nx: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_chip(path)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["4", "5", "6"]


def test_what_is_wrong_with_a_base_is_said_of_the_base(tmp_path):
    write(tmp_path, HEAD.replace("mine", "base") + "extends: loihi2\ncores: x\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml:4:1: cores.*found 'x'"):
        load_chip(write(tmp_path, HEAD + "extends: base.yaml\n"))


def test_files_that_extend_each_other_in_a_circle(tmp_path):
    write(tmp_path, HEAD.replace("mine", "other") + "extends: mine.yaml\n", "other.yaml")
    with pytest.raises(
        ConfigError, match=r"other\.yaml:3:1: extends: found mine\.yaml, which extends this file"
    ):
        load_chip(write(tmp_path, HEAD + "extends: other.yaml\n"))


def test_too_many_files_that_extend_each_other(tmp_path):
    for number in range(9):
        base = "loihi2" if number == 0 else f"c{number - 1}.yaml"
        text = f"schema: nmtool.chip/v1\nname: c{number}\nextends: {base}\n"
        write(tmp_path, text, f"c{number}.yaml")
    assert load_chip(str(tmp_path / "c4.yaml")).name == "c4"
    with pytest.raises(ConfigError, match="found more than 5 files"):
        load_chip(str(tmp_path / "c8.yaml"))


def test_a_copy_of_a_shipped_chip_needs_a_name_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="name: found loihi2, the name of a shipped chip"):
        load_chip(write(tmp_path, shipped("chips")["loihi2"].read_text()))


def test_a_problem_of_a_chip_file_is_at_its_own_place_and_one_of_its_name_at_the_target(tmp_path):
    target = write(tmp_path, TARGET.format(chip="mine.yaml"), "target.yaml")
    with pytest.raises(ConfigError, match=r"target\.yaml:3:1: \S*mine\.yaml: no such file"):
        load_hardware(target)
    write(tmp_path, HEAD + "extends: loihi2\ncores: x\n")
    with pytest.raises(ConfigError, match=r"^\S*mine\.yaml:4:1: cores"):
        load_hardware(target)


def test_an_overriding_chip_file_is_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, HEAD + "extends: loihi2\n")
    monkeypatch.chdir(tmp_path)
    assert load_chip(load_hardware("reference", ["chip=mine.yaml"]).chip).name == "mine"
    (tmp_path / "below").mkdir()
    target = write(tmp_path / "below", TARGET.format(chip="loihi1"), "target.yaml")
    assert load_chip(load_hardware(target, ["chip=mine.yaml"]).chip).name == "mine"
    with pytest.raises(ConfigError, match=r"-s hw\.chip=none\.yaml: none\.yaml: no such file"):
        load_hardware(target, ["chip=none.yaml"])


def test_a_name_with_a_null_byte_is_no_file(tmp_path):
    target = write(tmp_path, TARGET.format(chip='"a\\0.yaml"'), "target.yaml")
    with pytest.raises(ConfigError, match=r"target\.yaml:3:1: .*cannot be read"):
        load_hardware(target)


def test_standings_of_numbers_that_differ_between_the_chips():
    loihi1, loihi2 = load_chip("loihi1"), load_chip("loihi2")
    assert loihi1.standing("mesh").startswith("documented: SANA-FE")
    assert loihi1.facts["mesh"].standing == "code"
    assert loihi2.standing("mesh").startswith("documented: arXiv")
    assert loihi2.standing("weight_exponent").startswith("inferred: as in Loihi 1")
    assert loihi2.standing("convolution_hangs_from").startswith("uncertain: lava-nc issue 826")
