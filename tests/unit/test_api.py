import json

import numpy as np
import pytest

import nmtool
from nmtool.backends import open_session
from nmtool.chip import Faults, load_hardware
from nmtool.errors import (
    ArtifactError,
    ConfigError,
    DependencyError,
    NmtoolError,
    UnsupportedError,
)

NETWORK = nmtool.Network(
    "api",
    {"input": nmtool.Input((2,))},
    {"out": nmtool.Population((3,), nmtool.CubaLif(1.0, 0.25, 0.03))},
    {"w": nmtool.Projection.dense("input", "out", np.full((3, 2), 0.7))},
    ("out",),
)
SPIKES = nmtool.SpikeTrain.from_raster(np.ones((2, 6)))


def test_from_a_network_to_spikes(tmp_path):
    quantized = nmtool.quantize(NETWORK)
    program = nmtool.compile(quantized, steps=6)
    nmtool.save(tmp_path / "program.h5", program)
    with nmtool.open(tmp_path / "program.h5", "reference") as session:
        recording = session.run(SPIKES)
    nmtool.save(tmp_path / "recording.h5", recording)
    loaded = nmtool.load(tmp_path / "recording.h5")
    assert isinstance(loaded, nmtool.Recording)
    assert loaded.spikes["out"] == recording.spikes["out"]
    assert len(loaded.spikes["out"]) > 0
    assert loaded.fingerprint == program.fingerprint
    assert isinstance(quantized, nmtool.QuantizedNetwork)
    assert nmtool.compile(NETWORK, steps=6).fingerprint == program.fingerprint


def test_every_name_is_there_and_no_other():
    for name in nmtool.__all__:
        assert getattr(nmtool, name) is not None
    with pytest.raises(AttributeError, match="module 'nmtool' has no attribute 'train'"):
        _ = nmtool.train


def test_weight_bits_replace_those_of_the_network():
    assert nmtool.quantize(NETWORK).projections["w"].weight_bits == 8
    assert nmtool.quantize(NETWORK, weight_bits=3).projections["w"].weight_bits == 3
    program = nmtool.compile(NETWORK, weight_bits=2)
    assert program.network.projections["w"].weight_bits == 2


def test_an_unknown_chip_is_refused():
    with pytest.raises(ConfigError, match="chip loihi3: unknown"):
        nmtool.quantize(NETWORK, "loihi3")


def test_only_a_program_is_opened(tmp_path):
    nmtool.save(tmp_path / "network.h5", NETWORK)
    with pytest.raises(ArtifactError, match="found a Network, allowed a Program"):
        nmtool.open(tmp_path / "network.h5", "reference")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: nmtool.compile(None), "compile: found None, allowed a Network or QuantizedNetw"),
        (lambda: nmtool.compile("n.h5"), "compile: found a str, allowed .*; nmtool.load reads a"),
        (lambda: nmtool.compile(NETWORK, 3), "compile: chip: found a int, allowed a name or"),
        (lambda: nmtool.quantize(None), "quantize: found None, allowed a Network"),
        (lambda: nmtool.quantize(nmtool.quantize(NETWORK)), "it is quantised already"),
        (lambda: nmtool.open(None, "reference"), "open: found None, allowed a Program"),
        (lambda: nmtool.open(NETWORK), "open: found a Network, .*; nmtool.compile makes a Program"),
        (lambda: nmtool.open(nmtool.compile(NETWORK), None), "open: hw: found None, allowed a na"),
        (lambda: nmtool.export(None, "x.net"), "export: found None, allowed a QuantizedNetwork or"),
        (lambda: nmtool.export(NETWORK, "x.net"), "nmtool.quantize makes one of a Network"),
        (lambda: nmtool.load(None), "load: found None, allowed a name or the path of a file"),
    ],
)
def test_what_a_stage_does_not_take_is_said(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_path_is_as_good_as_its_text(tmp_path):
    nmtool.save(tmp_path / "program.h5", nmtool.compile(NETWORK))
    assert isinstance(nmtool.load(tmp_path / "program.h5"), nmtool.Program)
    target = load_hardware("reference").model_dump(mode="json", by_alias=True, exclude_none=True)
    target["timeouts"] = {"load": "1m", "run": "1m"}
    (tmp_path / "mine.yaml").write_text(json.dumps(target))
    nmtool.open(tmp_path / "program.h5", tmp_path / "mine.yaml").close()


def test_print_shows_one_short_line():
    quantized = nmtool.quantize(NETWORK)
    program = nmtool.compile(quantized)
    with nmtool.open(program, "reference") as session:
        recording = session.run(SPIKES, probe="spikes,voltage:out")
    batch = nmtool.SpikeTrain.from_raster(np.full((3, 2, 6), 5), graded=True)
    lines = {
        repr(NETWORK): "Network('api', 8-bit weights, 1 input, 1 population, 1 projection, "
        "outputs out)",
        repr(quantized): "QuantizedNetwork('api', loihi2, 1 input, 1 population, 1 projection, "
        "outputs out)",
        repr(program): f"Program({program.fingerprint}, loihi2, 1 population, 1 projection, "
        "latency 1)",
        repr(recording): f"Recording(reference; program {program.fingerprint}; 6 steps; "
        "spikes of out; voltage of out)",
        repr(SPIKES): "SpikeTrain(neurons 2, steps 6, spikes 12)",
        repr(batch): "SpikeTrain(samples 3, neurons 2, steps 6, graded spikes 36)",
        repr(NETWORK.projections["w"]): "Projection(input -> out, Dense(weight (3, 2)), delay 0)",
        repr(quantized.projections["w"]): "QuantizedProjection(input -> out, "
        f"Dense(weight (3, 2)), {quantized.projections['w'].format}, delay 0)",
        repr(nmtool.Conv(np.ones((4, 3, 3, 2)))): "Conv(weight (4, 3, 3, 2), stride (1, 1), "
        "padding (0, 0), dilation (1, 1), groups 1)",
    }
    for found, wanted in lines.items():
        assert found == wanted
    for part in (NETWORK.populations["out"], quantized.populations["out"]):
        assert "array" not in repr(part)
        assert len(repr(part)) < 200


def test_a_program_for_another_chip_or_other_weights_is_refused():
    with pytest.raises(ArtifactError, match="made for the chip loihi1, the target reference has"):
        nmtool.open(nmtool.compile(NETWORK, "loihi1"), "reference")
    with pytest.raises(ArtifactError, match="projection w has weights of 8 bits, the target"):
        nmtool.open(nmtool.compile(NETWORK), "loihi2-faulty")
    nmtool.open(nmtool.compile(NETWORK, weight_bits=4), "loihi2-faulty").close()


def test_a_chip_needs_a_board_and_intels_package():
    with pytest.raises(ConfigError, match=r"a board with the backend lava-loihi: board: \{slurm"):
        load_hardware("reference", ["backend=lava-loihi"])
    with pytest.raises(DependencyError, match=r"lava-loihi is not installed|lava-nc is not"):
        open_session(nmtool.compile(NETWORK), load_hardware("oheo-gulch"))


def test_faults_are_refused_where_nothing_acts_them_out():
    with pytest.raises(ConfigError, match="no faults with the backend lava-sim"):
        load_hardware("lava-sim", ["faults={seed: 1}"])
    built = load_hardware("lava-sim").model_copy(update={"faults": Faults(seed=1)})
    with pytest.raises(UnsupportedError, match="found faults with the backend lava-sim"):
        open_session(nmtool.compile(NETWORK), built)


def test_every_error_has_its_own_exit_code_and_a_builtin_beside_it():
    from nmtool import errors

    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, NmtoolError) and kind is not NmtoolError
    }
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes == {
        "CheckFailed": 1,
        "UsageError": 2,
        "ConfigError": 3,
        "UnsupportedError": 4,
        "FitError": 5,
        "ArtifactError": 6,
        "BoardUnavailable": 7,
        "BoardError": 8,
        "AlignmentError": 8,
        "BoardTimeout": 8,
        "WriteError": 9,
        "DependencyError": 10,
    }
    assert NmtoolError.exit_code == 70
