"""bisect and compare against netx's own loader in Lava: what users of lava-dl run today."""

import importlib.metadata
from pathlib import Path

import h5py
import numpy as np
import pytest

import nmtool as api
from nmtool import formats
from nmtool.backends.faults import read_back
from nmtool.backends.lava.client import LavaWorker
from nmtool.backends.lava.compat import slayer_missing
from nmtool.chip import SynapseFormat
from nmtool.network import Input, PeriodicReset
from nmtool.operations import Dense, Scale, SumPool
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.regression.golden import load_golden

REASON = slayer_missing()
lava = [pytest.mark.lava, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
STEPS = 20
MIXED = SynapseFormat(8, 0, "mixed")


def lif(shape, reset=None, delay=0):
    zero = np.zeros(int(np.prod(shape)), np.int64)
    return QuantizedPopulation(shape, 1023, 128, 60, zero, 6, reset=reset, axonal_delay=delay)


def chain(*resets):
    """Dense layers, with a delay, that netx can load."""
    rng = np.random.default_rng(0)
    populations, projections, before, size = {}, {}, "in", 6
    for k, reset in enumerate(resets):
        weight = 2 * rng.integers(-50, 80, (5, size))
        populations[f"p{k}"] = lif((5,), reset)
        projections[f"j{k}"] = QuantizedProjection(before, f"p{k}", (Dense(weight),), MIXED, k)
        before, size = f"p{k}", 5
    return QuantizedNetwork(
        "chain", "loihi2", {"in": Input((6,))}, populations, projections, (before,)
    )


def flipped(program, projection, index, bit):
    p = program.network.projections[projection]
    mantissa = p.weight_mantissa.copy()
    mantissa.flat[index] = read_back(
        mantissa.ravel()[index : index + 1], np.array([1 << bit]), p.format
    )[0]
    return program.with_weights({projection: mantissa})


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def exported(work):
    """chain.net with periodic resets, its program and spikes of two samples."""
    network = chain(PeriodicReset(7, 3), PeriodicReset(7, 4))
    api.export(network, work / "chain.net")
    program = api.compile(network, steps=STEPS)
    formats.save(work / "program.h5", program)
    np.save(work / "x.npy", np.random.default_rng(1).random((2, 6, STEPS)) < 0.4)
    return program


GIVEN = ("--program", "program.h5", "--input", "x.npy")


@pytest.fixture(scope="module")
def worker():
    """One worker for many tests: to start Lava takes seconds."""
    with LavaWorker() as shared:
        yield shared


@pytest.fixture
def warm(worker, monkeypatch):
    monkeypatch.setattr("nmtool.cli.netx_operand.LavaWorker", lambda _: worker)


class TestInLava:
    pytestmark = lava

    def test_a_healthy_program_is_equal_in_spikes_u_and_v(self, nmtool, exported):
        done = nmtool("bisect", "netx:chain.net", "emulator", *GIVEN, "--json")
        assert done.code == 0, done.err
        assert done.json["compared"] == ["spikes", "current", "voltage"]

    def test_a_weight_that_the_import_changed_is_found(self, nmtool, exported, work, warm):
        broken = flipped(exported, "j1", 7, 5)
        formats.save(work / "broken.h5", broken)
        np.save(work / "x.npy", np.random.default_rng(1).random((1, 6, STEPS)) < 0.2)
        given = ("--program", "broken.h5", "--input", "x.npy")
        done = nmtool("bisect", "netx:chain.net", "emulator", *given, "-o", "r.h5", "--json")
        assert done.code == 1, done.err
        assert (done.json["population"], done.json["side"]) == ("p1", "A")
        assert done.json["causes"][0]["kind"] == "weight bit flip"
        assert "weight [1, 2] of j1" in done.json["causes"][0]["words"]
        replay = load_golden("r.h5")
        assert 0 < len(replay.inputs["in"]) < 30
        again = nmtool("compare", "r.h5", "netx:chain.net")
        assert again.code == 0, again.err

    def test_the_networks_of_the_wheel_with_a_changing_bias(self, nmtool, work, warm):
        tests = importlib.metadata.distribution("lava-dl").locate_file("tests/lava/lib/dl/netx")
        file = Path(str(tests)) / "tiny.net"
        if not file.is_file():
            pytest.skip("lava-dl is installed without its tests")
        network = api.load(file, reset_interval=9, reset_offset=2)
        formats.save(work / "program.h5", api.compile(network, steps=18))
        bias = np.load(file.parent / "gts/tinynet/input_bias.npy").astype(np.int64).ravel()
        held = np.repeat(bias[None, :, None], 18, axis=-1)
        held[..., 12:] //= 2
        np.save(work / "x.npy", held)
        done = nmtool("bisect", f"netx:{file}", "emulator", *GIVEN, "--json")
        assert done.code == 0, done.err

    def test_layers_in_the_middle_of_a_file(self, nmtool, exported, work, warm):
        """num_layers and skip_layers are told by the names that the import gave."""
        api.export(chain(None, None, None), work / "long.net")
        network = api.load(work / "long.net", skip_layers=2, num_layers=3)
        assert list(network.populations) == ["layer2"]
        formats.save(work / "part.h5", api.compile(network, steps=STEPS))
        np.save(work / "y.npy", np.random.default_rng(2).random((1, 5, STEPS)) < 0.4)
        given = ("--program", "part.h5", "--input", "y.npy")
        done = nmtool("bisect", "netx:long.net", "emulator", *given)
        assert done.code == 0, done.err

    def test_what_netx_cannot_load_is_refused_before_anything_runs(self, nmtool, work, monkeypatch):
        pool = (SumPool((2, 2), (2, 2)), Scale(np.array([64])))
        network = QuantizedNetwork(
            "pooled",
            "loihi2",
            {"in": Input((4, 4, 2))},
            {"p": lif((2, 2, 2))},
            {"j": QuantizedProjection("in", "p", pool, MIXED)},
            ("p",),
        )
        formats.save(work / "pooled.h5", network)
        done = nmtool("export", "pooled.h5", "--format", "netx")
        assert "warning: lava-dl's own loader" in done.err
        assert "cannot build layer 1 (pool) of this file" in done.err
        formats.save(work / "program.h5", api.compile(network, steps=STEPS))
        np.save(work / "x.npy", np.zeros((1, 32, STEPS), bool))
        monkeypatch.setattr("nmtool.cli.operands.run", None)
        done = nmtool("bisect", "emulator", "netx:pooled.net", *GIVEN)
        assert done.code == 4
        assert "found layer 1 (pool), which netx cannot build" in done.err
        assert "pooled.net" in done.err

    def test_an_average_is_refused_unless_the_program_leaves_it_out(
        self, nmtool, exported, work, warm
    ):
        with h5py.File("chain.net", "r+") as file:
            file["layer/3/type"] = b"average"
        network = api.load("chain.net", reset_interval=7, reset_offset=3)
        formats.save(work / "program.h5", api.compile(network, steps=STEPS))
        done = nmtool("bisect", "netx:chain.net", "emulator", *GIVEN)
        assert done.code == 4
        assert "found layer 3 (average), which netx cannot build" in done.err
        assert "--num-layers" in done.err
        network = api.load("chain.net", num_layers=3, reset_interval=7, reset_offset=3)
        formats.save(work / "program.h5", api.compile(network, steps=STEPS))
        assert nmtool("bisect", "netx:chain.net", "emulator", *GIVEN).code == 0


def test_a_program_of_other_layers_is_refused_before_lava_starts(nmtool, exported, work):
    other = api.compile(chain(None), steps=STEPS)
    formats.save(work / "program.h5", other)
    done = nmtool("bisect", "netx:chain.net", "emulator", *GIVEN, "--dry-run")
    assert done.code == 6
    assert "give the program that was made of this file" in done.err


def test_resets_that_netx_cannot_do_are_refused(nmtool, exported, work):
    network = chain(PeriodicReset(7, 3), PeriodicReset(7, 3))
    formats.save(work / "program.h5", api.compile(network, steps=STEPS))
    done = nmtool("bisect", "netx:chain.net", "emulator", *GIVEN, "--dry-run")
    assert done.code == 4
    assert "each a step after the one before" in done.err


@pytest.mark.parametrize("operand", ["netx:none.net", "netx:program.h5"])
def test_a_missing_or_foreign_file_is_said(nmtool, exported, operand):
    done = nmtool("bisect", operand, "emulator", *GIVEN, "--dry-run")
    assert done.code == 6
    assert operand.removeprefix("netx:") in done.err


def test_it_needs_a_program(nmtool, exported):
    done = nmtool("compare", "netx:chain.net", "emulator", "--input", "x.npy")
    assert done.code == 2
    assert "--program" in done.err
