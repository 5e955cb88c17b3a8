"""Session logs with a valid checksum over hostile content: refused cleanly, or good to answer."""

import functools
import json

import numpy as np
import pytest
import regression_networks as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import hostile
from test_containers import write

from nmtool.backends import open_session
from nmtool.backends.replay import Marked, Ran, Recorder
from nmtool.chip import load_hardware
from nmtool.errors import ArtifactError
from nmtool.formats.container import Container, read_container
from nmtool.formats.sessionlog import (
    _MAGIC,
    LogFile,
    _frame,
    _split,
    about,
    find_target,
    part_of,
    read_log,
)
from nmtool.spikes import SpikeTrain

PROGRAM = nets.make_program("dense")
INPUTS = {
    name: SpikeTrain.from_raster(np.ones((2, source.size, 3), bool), source.graded)
    for name, source in PROGRAM.network.inputs.items()
}


@functools.cache
def example(folder):
    """The container of a log of two runs, a write and a mark."""
    hardware = load_hardware("emulator", ["faults={stuck_neurons: 0.5}"])
    file = LogFile(folder / "log.h5", about(hardware))
    recorder = Recorder(file)
    recorder.begin("leg")
    name, projection = next(iter(PROGRAM.network.projections.items()))
    with recorder.watch(open_session(PROGRAM, hardware)) as session:
        session.run(INPUTS, 3, "spikes,voltage")
        session.write_weights(name, -projection.weight_mantissa)
        session.run(INPUTS, 3)
        recorder.mark(1, session.program.fingerprint)
    file.finish()
    packed = read_container(folder / "log.h5")
    return Container(packed.schema, json.loads(json.dumps(packed.header)), packed.arrays)


def use(path):
    """Everything that a log is used for."""
    find_target(f"replay:{path}")
    _, events = read_log(path)
    for event in events:
        if isinstance(event, Ran):
            repr(event.answer())


@settings(max_examples=80)
@given(st.data())
def test_logs(tmp_path_factory, tmp_path, clean, data):
    container = data.draw(hostile(example(tmp_path)))
    write(tmp_path / "hostile.h5", container)
    with clean():
        use(tmp_path / "hostile.h5")


def test_a_good_log_is_read(tmp_path):
    write(tmp_path / "a.h5", example(tmp_path))
    use(tmp_path / "a.h5")
    told, events = read_log(tmp_path / "a.h5")
    assert told["target"]["name"] == "emulator"
    assert isinstance(events[-1], Marked)


def test_lists_are_stored_once_and_come_back(tmp_path):
    header = example(tmp_path).header
    runs = [e["header"] for e in header["events"] if e["header"]["kind"] == "ran"]
    stuck = [run["answer"]["header"]["provenance"]["faults"]["stuck"] for run in runs]
    assert stuck[0] == stuck[1]
    assert {"="} in [set(value) for value in stuck[0].values() if isinstance(value, dict)]
    answers = [e.answer() for e in read_log(tmp_path / "log.h5")[1] if isinstance(e, Ran)]
    faults = answers[0].provenance["faults"]
    assert all(isinstance(neurons, list) for neurons in faults["stuck"].values())


@pytest.mark.parametrize("content", [b"", b"HDF", b"\x89HDF\r\n", b"nmtool journal", b"{}" * 400])
def test_other_files(tmp_path, clean, content):
    (tmp_path / "a.h5").write_bytes(content)
    with clean(), pytest.raises(ArtifactError, match=r"a\.h5"):
        use(tmp_path / "a.h5")


@pytest.mark.parametrize("schema", ["nmtool.recording/v2", "nmtool.sessionlog/v9"])
def test_another_schema(tmp_path, schema):
    made = example(tmp_path)
    write(tmp_path / "a.h5", Container(schema, made.header, made.arrays))
    with pytest.raises(ArtifactError, match=f"found the schema {schema}"):
        use(tmp_path / "a.h5")


@settings(max_examples=40)
@given(st.data())
def test_journals(tmp_path_factory, tmp_path, clean, data):
    """Frames with a valid checksum over hostile content."""
    made = example(tmp_path)
    frames = [Container("nmtool.event/v1", made.header["about"], {}), *_split(made)]
    chosen = data.draw(st.integers(0, len(frames) - 1))
    frames[chosen] = data.draw(hostile(frames[chosen]))
    try:
        (tmp_path / "j.part").write_bytes(_MAGIC + b"".join(map(_frame, frames)))
    except RecursionError:
        pytest.skip("not JSON")
    with clean():
        use(tmp_path / "j.part")


def test_a_journal_with_a_huge_length(tmp_path, clean):
    file = LogFile(tmp_path / "log.h5", about(load_hardware("emulator")))
    with part_of(file.path).open("ab") as journal:
        journal.write(b"\xff" * 7 + b"\x0f" + b"x" * 100)
    with clean():
        assert read_log(part_of(file.path))[1] == []
