import numpy as np
import pytest

import nmtool
from nmtool.backends import open_session
from nmtool.chip import Faults, load_hardware
from nmtool.errors import ArtifactError, ConfigError, NmtoolError, UnsupportedError

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


def test_a_program_for_another_chip_or_other_weights_is_refused():
    with pytest.raises(ArtifactError, match="made for the chip loihi1, the target reference has"):
        nmtool.open(nmtool.compile(NETWORK, "loihi1"), "reference")
    with pytest.raises(ArtifactError, match="projection w has weights of 8 bits, the target"):
        nmtool.open(nmtool.compile(NETWORK), "loihi2-faulty")
    nmtool.open(nmtool.compile(NETWORK, weight_bits=4), "loihi2-faulty").close()


@pytest.mark.parametrize("backend", ["lava-loihi"])
def test_a_backend_that_is_not_there_yet_is_refused(backend):
    hardware = load_hardware("reference", [f"backend={backend}"])
    with pytest.raises(UnsupportedError, match=f"found the backend {backend}, which this version"):
        open_session(nmtool.compile(NETWORK), hardware)


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
        "BoardTimeout": 8,
        "WriteError": 9,
        "DependencyError": 10,
    }
    assert NmtoolError.exit_code == 70
