import contextlib
import errno
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict

import h5py
import numpy as np
import pytest
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st

from nmtool.backends.faults import draw
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import Faults
from nmtool.compiler import Program, compile_program
from nmtool.config import Check, Digits, RateEncoding, Readout
from nmtool.errors import ArtifactError, UsageError, WriteError
from nmtool.formats import load, load_as, save
from nmtool.formats.container import (
    Container,
    read_container,
    refuse_overwrite,
    write_container,
    write_json,
    write_text,
    writing,
)
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.quantization import QuantizedNetwork, quantize

CHIP = nets.CHIP
BLOCK = 512


def everything():
    """A network that uses every field, with names in no order."""
    rng = np.random.default_rng(0)
    neuron = CubaLif(0.1 + 0.2, 0.25, 1 / 3)
    return Network(
        "every field",
        {"z in": Input((2, 5)), "a in": Input((3,))},
        {
            "zeta": Population((4,), neuron, rng.normal(size=4).astype(np.float32), 3),
            "alpha": Population((2, 1), neuron),
        },
        {
            "z": Projection.dense("z in", "zeta", rng.normal(size=(4, 10)).astype(np.float32), 7),
            "a": Projection.dense("a in", "zeta", rng.normal(size=(4, 3))),
            "b": Projection.dense(
                "zeta", "alpha", rng.normal(size=(2, 4)), rng.integers(0, 60, (2, 4))
            ),
        },
        ("alpha", "zeta"),
        Digits(name="digits", encoding=RateEncoding(kind="rate", steps=9, max_rate=0.5), test=200),
        Readout(neurons_per_class=2),
        (Check(metric="accuracy", min=0.5, on=["reference"]),),
        4,
        {"source": "élan", "numbers": [1, 2.5, None, True]},
    )


NETWORK = everything()
PROGRAM = compile_program(NETWORK, CHIP, provenance={"seed": 7})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(one, other, at=""):
    """The same types, keys in the same order, and arrays bit for bit."""
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray), at
        assert (one.dtype, one.shape) == (other.dtype, other.shape), at
        assert one.tobytes() == other.tobytes(), at
    elif isinstance(one, dict):
        assert list(one) == list(other), at
        for key, value in one.items():
            same(value, other[key], f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{at}.{index}")
    else:
        assert type(one) is type(other), at
        assert one == other, at


def assert_same_artifact(one, other):
    assert type(one) is type(other)
    same(asdict(one), asdict(other))


@pytest.mark.parametrize("artifact", [NETWORK, quantize(NETWORK, CHIP), PROGRAM])
def test_an_artifact_comes_back_bit_for_bit(tmp_path, artifact):
    save(tmp_path / "a.h5", artifact)
    assert_same_artifact(load(tmp_path / "a.h5"), artifact)


@settings(max_examples=30)
@given(nets.networks())
def test_drawn_networks_and_programs_come_back_bit_for_bit(tmp_path, network):
    program = compile_program(network, CHIP)
    for artifact in (network, program.network, program):
        save(tmp_path / "a.h5", artifact)
        back = load(tmp_path / "a.h5")
        assert_same_artifact(back, artifact)
    assert back.fingerprint == program.fingerprint
    assert back.order == program.order
    faults = Faults(dead_neurons=0.5, weight_bit_flips=0.1)
    assert draw(back, faults).listing() == draw(program, faults).listing()


@settings(max_examples=20)
@given(
    nets.programs(8), st.booleans(), st.sampled_from(["spikes", "spikes,voltage", "current", {}])
)
def test_drawn_recordings_come_back_bit_for_bit(tmp_path, program, batched, probe):
    spikes = nets.random_input(program.network, 2 if batched else 1, 8, 0)
    if not batched:
        spikes = {n: nets.SpikeTrain.from_raster(t.to_raster()[0]) for n, t in spikes.items()}
    recording = ReferenceBackend(Faults(spike_loss=0.1)).open(program).run(spikes, probe=probe)
    save(tmp_path / "r.h5", recording)
    assert_same_artifact(load(tmp_path / "r.h5"), recording)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", ">i4", "f4", ">f8"])
@pytest.mark.parametrize("size", [0, 3, 200])
def test_arrays_of_every_type_come_back(tmp_path, dtype, size):
    array = np.arange(size * 2).reshape(size, 2).astype(dtype)
    container = Container("nmtool.test/v1", {"a": [1, "ü"]}, {"x/y": array, "scalar": array.sum()})
    write_container(tmp_path / "c.h5", container)
    back = read_container(tmp_path / "c.h5")
    assert (back.schema, back.header) == (container.schema, container.header)
    same(dict(back.arrays), {"scalar": np.asarray(array.sum()), "x/y": array})


def test_one_artifact_gives_one_sequence_of_bytes(tmp_path):
    save(tmp_path / "one.h5", PROGRAM)
    save(tmp_path / "two.h5", PROGRAM)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_hdf5_tools_can_open_a_file(tmp_path):
    save(tmp_path / "p.h5", PROGRAM)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["schema"] == "nmtool.program/v3"
        assert file["arrays/projections/z/0/weight"].shape == (4, 10)


def test_load_as_wants_one_kind(tmp_path):
    save(tmp_path / "n.h5", NETWORK)
    assert isinstance(load_as(tmp_path / "n.h5", Network), Network)
    with pytest.raises(ArtifactError, match=r"n\.h5: found a Network, allowed a Program"):
        load_as(tmp_path / "n.h5", Program)


def test_only_artifacts_are_saved(tmp_path):
    with pytest.raises(TypeError, match="found a int, allowed Network, QuantizedNetwork"):
        save(tmp_path / "n.h5", 3)
    with pytest.raises(TypeError, match="arrays of type object are not stored"):
        write_container(tmp_path / "o.h5", Container("nmtool.x/v1", {}, {"o": np.array([None])}))
    assert not names(tmp_path)


# Damage


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "p.h5"
    save(path, PROGRAM)
    return path.read_bytes()


def damaged(tmp_path, content, message="damaged"):
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_any_flipped_byte_is_noticed(tmp_path, image):
    rng = random.Random(0)
    places = [*range(0, len(image), 23), BLOCK - 1, BLOCK, len(image) - 1]
    for place in places:
        changed = bytearray(image)
        changed[place] ^= rng.choice([1, 16, 128, 255])
        damaged(tmp_path, bytes(changed))


@pytest.mark.parametrize("keep", [1, 47, 100, BLOCK - 1, BLOCK, BLOCK + 1, 5000, -1])
def test_a_truncated_or_extended_file_is_noticed(tmp_path, image, keep):
    damaged(tmp_path, image[:keep])
    damaged(tmp_path, image + b"\0" * abs(keep))


@given(st.binary(max_size=600))
def test_other_files_are_refused(tmp_path, content):
    damaged(tmp_path, content, "not one of nmtool's files|HDF5 file, but not")


def test_files_of_other_programs_are_refused(tmp_path):
    damaged(tmp_path, b"", "damaged, or not one of nmtool's files")
    damaged(tmp_path, b"schema: nmtool.experiment/v1\n", "not one of nmtool's files")
    with h5py.File(tmp_path / "other.net", "w") as file:
        file["layer/0/weight"] = np.zeros(3)
    with pytest.raises(ArtifactError, match="an HDF5 file, but not one of nmtool's"):
        load(tmp_path / "other.net")
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path / "nothing.h5")
    with pytest.raises(ArtifactError, match="found a folder, allowed a file"):
        load(tmp_path)


def sealed(path):
    """Give a file the checksum of its content, as somebody with bad intentions would."""
    from nmtool.formats.container import _user_block

    content = path.read_bytes()[BLOCK:]
    path.write_bytes(_user_block(memoryview(content)) + content)
    return path


def crafted(path, header=b"{}", schema="nmtool.program/v3", **dataset):
    with h5py.File(path, "w", userblock_size=BLOCK) as file:
        if schema is not None:
            file.attrs["schema"] = schema
        if header is not None:
            file.create_dataset("header", data=np.frombuffer(header, dtype=np.uint8))
        if dataset:
            file.create_dataset("arrays/x", **dataset)
    return sealed(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": "nmtool.program/v9"}, "found the schema nmtool.program/v9, allowed nmtool.net"),
        ({"schema": "other"}, "found the schema other"),
        ({"schema": None}, "damaged"),
        ({"header": None}, "damaged"),
        ({"header": b""}, "damaged"),
        ({"header": b"{"}, "damaged"),
        ({"header": b"\xff\xfe"}, "damaged"),
        ({"header": b"[" * 100_000}, "damaged"),
        ({"header": b"{}"}, "damaged: KeyError"),
        ({"header": b"[]"}, "found a list, allowed keys and values"),
        ({"header": b"null"}, "found a NoneType, allowed keys and values"),
        ({"shape": (2**40,), "dtype": "u1", "chunks": (1024,)}, "bytes of arrays, allowed"),
        ({"shape": (2**32, 2**32), "dtype": "u1", "chunks": (64, 64)}, "bytes of arrays, allowed"),
        ({"shape": (2**61,), "dtype": "f8", "chunks": (1024,)}, "bytes of arrays, allowed"),
        ({"data": "text"}, "array x has the type object"),
        ({"data": np.zeros(2, dtype=[("a", "i4")])}, "array x has the type"),
        ({"data": h5py.Empty("f8")}, "damaged"),
    ],
)
def test_crafted_files_are_refused(tmp_path, content, message):
    path = crafted(tmp_path / "crafted.h5", **content)
    with pytest.raises(ArtifactError, match=message):
        load(path)


def test_a_header_of_text_is_refused(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w", userblock_size=BLOCK) as file:
        file.attrs["schema"] = "nmtool.program/v3"
        file["header"] = "{}"
    with pytest.raises(ArtifactError, match="the header has the type object"):
        load(sealed(tmp_path / "t.h5"))


def with_header(path, change):
    container = read_container(path)
    header = json.loads(json.dumps(container.header))
    change(header)
    write_container(path, Container(container.schema, header, container.arrays))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(fingerprint="0" * 16), "found the fingerprint 0000000000000000, its"),
        (lambda h: h["network"]["populations"]["zeta"].update(threshold=1), "fingerprint"),
        (lambda h: h["network"]["projections"]["b"].update(source="nobody"), "source 'nobody'"),
        (lambda h: h["network"]["populations"]["zeta"].update(extra=1), "damaged: TypeError"),
        (lambda h: h["network"]["projections"].pop("z"), "fingerprint"),
        (lambda h: h["network"]["projections"].update(more={}), "damaged: KeyError"),
        (lambda h: h["network"]["data"].update(name="mnist"), "damaged: ValidationError"),
        (lambda h: h["network"].update(inputs=3), "damaged: AttributeError"),
        (lambda h: h.pop("latency"), "damaged: KeyError"),
    ],
)
def test_a_program_that_is_not_what_was_compiled_is_refused(tmp_path, change, message):
    save(tmp_path / "p.h5", PROGRAM)
    with pytest.raises(ArtifactError, match=message):
        load(with_header(tmp_path / "p.h5", change))


@given(st.data())
def test_any_value_of_a_header_replaced_gives_an_artifact_error_or_an_artifact(tmp_path, data):
    artifact = data.draw(st.sampled_from([NETWORK, PROGRAM.network, PROGRAM]))
    junk = data.draw(
        st.sampled_from([None, -1, 10**30, 1.5, float("nan"), "x", [], {}, [None], {"a": 1}, True])
    )

    def change(header):
        node = header
        for _ in range(data.draw(st.integers(0, 4))):
            below = [k for k, v in node.items() if isinstance(v, dict) and v]
            node = node[data.draw(st.sampled_from(below))] if below else node
        node[data.draw(st.sampled_from(sorted(node)))] = junk

    save(tmp_path / "p.h5", artifact)
    path = with_header(tmp_path / "p.h5", change)
    with contextlib.suppress(ArtifactError):
        assert isinstance(load(path), Network | QuantizedNetwork | Program)


# Writing


def interrupted(path, failure):
    with writing(path) as temporary:
        temporary.write_text("new")
        raise failure


def test_a_failure_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    for failure, seen in (
        (RuntimeError("bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), WriteError),
    ):
        with pytest.raises(seen):
            interrupted(path, failure)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_a_write_error(tmp_path, monkeypatch):
    path = tmp_path / "p.h5"
    save(path, PROGRAM)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"p.h5: cannot be written \(No space left on device\)"):
        save(path, NETWORK)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["p.h5"]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from nmtool.errors import WriteError
from nmtool.formats.container import Container, write_container
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    array = np.random.default_rng(0).random(5000)
    write_container(Path(sys.argv[1]), Container("nmtool.x/v1", {}, {"x": array}))
except WriteError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
@pytest.mark.parametrize("limit", [0, 600, 20000])
def test_a_file_that_stops_growing_is_a_write_error_and_crashes_nothing(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "f.h5"), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("cannot be written (File too large); nothing was changed\n")
    assert not names(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_write_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError, match="cannot be written"):
        write_text(tmp_path / "file" / "x.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="cannot be written"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]
    monkeypatch.setattr("tempfile.mkstemp", _denied)
    with pytest.raises(WriteError, match=r"cannot be written \(Permission denied\)"):
        write_text(tmp_path / "x.txt", "")


def _denied(**_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_folder_is_a_write_error(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    with pytest.raises(WriteError, match="Permission denied"):
        save(folder / "p.h5", PROGRAM)


def test_files_are_made_with_their_folders_and_the_usual_mode(tmp_path):
    path = tmp_path / "a" / "b" / "values.json"
    write_json(path, {"x": [1, 2]})
    assert json.loads(path.read_text()) == {"x": [1, 2]}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert names(path.parent) == ["values.json"]


def test_an_existing_file_is_not_overwritten_without_force(tmp_path):
    path = tmp_path / "x"
    refuse_overwrite(path, force=False)
    path.touch()
    refuse_overwrite(path, force=True)
    with pytest.raises(UsageError, match="exists already; use --force"):
        refuse_overwrite(path, force=False)


def test_a_recording_keeps_what_was_absent_absent(tmp_path):
    recording = (
        ReferenceBackend()
        .open(PROGRAM)
        .run(nets.random_input(PROGRAM.network, 2, 9, 0), probe="voltage:alpha")
    )
    save(tmp_path / "r.h5", recording)
    back = load(tmp_path / "r.h5")
    assert (list(back.spikes), list(back.current), list(back.voltage)) == ([], [], ["alpha"])


# Every kind


@settings(max_examples=30)
@given(nets.any_real_networks(), nets.any_programs(8))
def test_networks_and_programs_of_every_kind_come_back(tmp_path, network, program):
    for artifact in (network, program.network, program):
        save(tmp_path / "a.h5", artifact)
        back = load(tmp_path / "a.h5")
        assert_same_artifact(back, artifact)
    assert back.fingerprint == program.fingerprint


@settings(max_examples=30)
@given(nets.any_programs(8), st.booleans())
def test_recordings_with_messages_come_back(tmp_path, program, batched):
    inputs = nets.random_input(program.network, 2 if batched else 1, 8, 0)
    if not batched:
        inputs = {
            n: nets.SpikeTrain.from_raster(t.batch()[0], t.payload is not None)
            for n, t in inputs.items()
        }
    recording = ReferenceBackend().open(program).run(inputs, probe="spikes,current,voltage")
    save(tmp_path / "r.h5", recording)
    assert_same_artifact(load(tmp_path / "r.h5"), recording)
