"""Whole networks, through the command line as well, on chips and on a made-up one they just fit."""

import contextlib
import io
import itertools
import json

import numpy as np
import pytest
from placements import small_chip

from nmtool import formats
from nmtool.backends import open_session
from nmtool.chip import load_chip, load_hardware
from nmtool.cli import nmtool as group
from nmtool.cli.common import run
from nmtool.compiler import compile_program
from nmtool.measure import compare
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten
from nmtool.spikes import SpikeTrain, rate_regular

STEPS = 24
NEURON = CubaLif(1.0, 0.25, 0.03)
TINY = {"cores": 4, "neurons_per_core": 64}
"""Room for 256 neurons."""


def dense(*sizes):
    """Dense layers behind the 64 pixels of a digit."""
    rng = np.random.default_rng(1)
    ends = [("input", 64), *((f"layer{k}", size) for k, size in enumerate(sizes))]
    return Network(
        "digits",
        {"input": Input((64,))},
        {name: Population((size,), NEURON) for name, size in ends[1:]},
        {
            f"to {name}": Projection.dense(source, name, rng.normal(0, 1 / np.sqrt(n), (size, n)))
            for (source, n), (name, size) in itertools.pairwise(ends)
        },
        (ends[-1][0],),
    )


def convolved():
    """Two convolutions and two dense layers: 64 + 50 + 80 + 40 neurons."""
    rng = np.random.default_rng(2)

    def normal(*shape):
        return rng.normal(0.03, 1.5 / np.sqrt(np.prod(shape[1:])), shape)

    first = Conv(normal(4, 3, 3, 1), stride=(2, 2), padding=(1, 1))
    second = Conv(normal(2, 2, 2, 4), padding=(1, 1))
    return Network(
        "seen",
        {"input": Input((8, 8, 1))},
        {
            name: Population(shape, NEURON)
            for name, shape in (
                *(("edges", (4, 4, 4)), ("corners", (5, 5, 2))),
                *(("hidden", (80,)), ("output", (40,))),
            )
        },
        {
            "a": Projection("input", "edges", (first,)),
            "b": Projection("edges", "corners", (second,)),
            "c": Projection("corners", "hidden", (Flatten(), Dense(normal(80, 50)))),
            "d": Projection.dense("hidden", "output", normal(40, 80), 2),
        },
        ("output",),
    )


NETWORKS = {
    "64-128-80": lambda: dense(128, 80),
    "packed": lambda: dense(100, 70, 80),
    "convolutions": convolved,
}


def digits(n):
    """The first handwritten digits as evenly spaced spikes, shape (n, 64, STEPS)."""
    from sklearn.datasets import load_digits

    return rate_regular(load_digits().data[:n] / 16, STEPS, 0.7)


def target(folder, chip):
    """A target file for a chip."""
    named = small_chip(folder, **TINY).name if chip == "tiny" else chip
    path = folder / "target.yaml"
    path.write_text(f"schema: nmtool.hardware/v1\nname: mine\nchip: {named}\n")
    return path


@pytest.mark.parametrize("chip", ["loihi1", "loihi2", "tiny"])
@pytest.mark.parametrize("name", NETWORKS)
def test_spikes_do_not_depend_on_the_cores(tmp_path, name, chip):
    hardware = load_hardware(str(target(tmp_path, chip)))
    program = compile_program(NETWORKS[name](), load_chip(hardware.chip))
    spikes = SpikeTrain.from_raster(digits(12))
    with open_session(program, hardware) as session:
        whole = session.run(spikes, probe="spikes,voltage,current")
    with open_session(program, hardware.model_copy(update={"by_core": True})) as session:
        parts = session.run(spikes, probe="spikes,voltage,current")
    agreement = compare(whole, parts)
    assert agreement.equal, agreement.first
    assert not agreement.missing
    for train in whole.spikes.values():
        assert 0.02 < len(train) / train.to_raster().size < 0.6
    if chip == "tiny":
        assert parts.provenance["by_core"] == {"cores": 4}
        assert len({s.box for s in program.placement}) > 1


def test_packed_cores_hold_slices_of_several_populations(tmp_path):
    hardware = load_hardware(str(target(tmp_path, "tiny")))
    program = compile_program(NETWORKS["packed"](), load_chip(hardware.chip))
    by_core = {}
    for s in program.placement:
        by_core.setdefault(s.core, set()).add(s.population)
    assert len(by_core) == 4
    assert max(map(len, by_core.values())) > 1


def call(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run(group, [*map(str, arguments)])
    return code, out.getvalue()


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hardware = target(tmp_path, "tiny")
    formats.save("network.h5", NETWORKS["packed"]())
    np.save("digits.npy", digits(5))
    code, text = call("compile", "network.h5", "--hw", hardware, "-o", "program.h5", "--steps", 24)
    assert code == 0, text
    run_it = ("deploy", "program.h5", "--hw", hardware, "--input", "digits.npy", "--probe")
    for output, more in (("whole.h5", ()), ("by_core.h5", ("-s", "hw.by_core=true"))):
        code, text = call(*run_it, "spikes,voltage", "-o", output, *more)
        assert code == 0, text
    code, text = call("compare", "whole.h5", "by_core.h5", "--json")
    assert code == 0, text
    assert json.loads(text)["equal"]
    code, text = call(*run_it, "spikes", "-o", "dead.h5", "-s", "hw.faults={dead_cores: [2]}")
    assert code == 0, text
    code, text = call("compare", "whole.h5", "dead.h5")
    assert code == 1
    found = formats.load("dead.h5").provenance["faults"]["failed_cores"]
    assert [core["core"] for core in found] == [2]
    code, text = call(*run_it, "spikes", "-o", "no.h5", "-s", "hw.faults={dead_cores: [4]}")
    assert code == 3
    assert "found the core 4, allowed 0 to 3" in text


def test_a_network_too_large_for_the_cores_says_so(tmp_path):
    code, text = call("compile", _saved(tmp_path), "--hw", target(tmp_path, "tiny"))
    assert code == 5
    assert "NM-FIT-030" in text


def _saved(folder):
    formats.save(folder / "large.h5", dense(128, 129))
    return folder / "large.h5"
