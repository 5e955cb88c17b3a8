"""Containers with a valid checksum over hostile content: refused cleanly, or good to work with."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import regression_networks as golden_nets
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import hostile

from nmtool.backends import check_runnable, open_session
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import load_hardware
from nmtool.compiler import Program, compile_program
from nmtool.errors import ArtifactError
from nmtool.formats import load, pack
from nmtool.formats.container import Container, read_container, write_container
from nmtool.measure import measure
from nmtool.measure.agreement import compare
from nmtool.network import Network
from nmtool.quantization import QuantizedNetwork
from nmtool.regression.golden import load_golden, save_golden
from nmtool.spikes import SpikeTrain

EMULATOR = load_hardware("emulator")
KINDS = ("network", "quantized", "program", "recording")


@functools.cache
def example(kind, seed):
    """An artifact as a container, its header as JSON has it."""
    rng = np.random.default_rng(seed)
    if kind == "network":
        artifact = nets.random_real_network(rng)
    else:
        program = compile_program(nets.random_network(rng, 4), nets.CHIP, n_steps=8)
        artifact = {"quantized": program.network, "program": program}.get(kind)
        if kind == "recording":
            inputs = nets.random_input(program.network, 2, 8, seed)
            probe = "spikes,current,voltage"
            artifact = ReferenceBackend().open(program).run(inputs, 8, probe)
    packed = pack(artifact)
    return Container(packed.schema, json.loads(json.dumps(packed.header)), packed.arrays)


def write(path, container):
    try:
        write_container(path, container)
    except RecursionError:
        pytest.skip("not JSON")


def with_fingerprint(path, container, read):
    """What a file holds, whose author has put in the fingerprint of its content."""
    try:
        return read(path)
    except ArtifactError as error:
        found = re.search(r"its content has (\w{16})", str(error))
        if not found:
            raise
        header = container.header
        (header["program"]["header"] if "program" in header else header)["fingerprint"] = found[1]
        if "expected" in header:
            header["expected"]["header"]["fingerprint"] = found[1]
        write(path, container)
        return read(path)


def use(artifact):
    """Everything that may follow the reading of an artifact."""
    repr(artifact)
    if isinstance(artifact, Network | QuantizedNetwork):
        artifact = compile_program(artifact, nets.CHIP, n_steps=4)
    if isinstance(artifact, Program):
        use_program(artifact)
    else:
        compare(artifact, artifact)
        for name in artifact.spikes:
            measure(artifact, name, None, None)


def use_program(program):
    assert program.fingerprint
    check_runnable(program, EMULATOR)
    with open_session(program, EMULATOR) as session:
        inputs = {
            name: SpikeTrain.from_raster(np.ones((2, source.size, 3), bool), source.graded)
            for name, source in program.network.inputs.items()
        }
        session.run(inputs, 3, "spikes,current,voltage")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(st.data())
def test_artifacts(tmp_path, clean, kind, data):
    container = data.draw(hostile(example(kind, data.draw(st.integers(0, 15)))))
    path = tmp_path / "a.h5"
    write(path, container)
    with clean():
        use(with_fingerprint(path, container, load))


@functools.cache
def golden_example(kind, folder):
    path = folder / "golden.h5"
    save_golden(path, golden_nets.make_golden(golden_nets.make_program(kind), probe="spikes"))
    return read_container(path)


@pytest.mark.parametrize("kind", golden_nets.KINDS)
@settings(max_examples=40)
@given(st.data())
def test_golden_runs(tmp_path_factory, tmp_path, clean, kind, data):
    container = data.draw(hostile(golden_example(kind, tmp_path)))
    path = tmp_path / "a.h5"
    write(path, container)
    with clean():
        golden = with_fingerprint(path, container, load_golden)
        assert golden.metrics is not None
        use_program(golden.program)
        use(golden.expected)


def test_damage_under_a_right_checksum(tmp_path):
    """In a process of its own: the HDF5 library might end it."""
    write(tmp_path / "a.h5", example("program", 0))
    script = str(Path(__file__).with_name("flip_bytes.py"))
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "a.h5"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
