"""HDF5 files with a valid checksum that reach for other files, or claim to be enormous."""

import io
import subprocess
import sys

import h5py
import numpy as np
import pytest

from nmtool.errors import ArtifactError
from nmtool.formats import load
from nmtool.formats.container import _user_block, read_container

SECRET = "/etc/hostname"


def sealed(path, fill):
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=512) as file:
        file.attrs["schema"] = "nmtool.recording/v2"
        fill(file)
        if "header" not in file:
            file["header"] = np.frombuffer(b"{}", np.uint8)
    content = image.getvalue()[512:]
    path.write_bytes(_user_block(content) + content)
    return path


def array(**options):
    return lambda file: file.create_dataset("arrays/x", **options)


def link(name, kind):
    def fill(file):
        file[name] = kind

    return fill


def virtual(file):
    layout = h5py.VirtualLayout(shape=(3,), dtype="i8")
    layout[:] = h5py.VirtualSource("other.h5", "arrays/x", shape=(3,))
    file.create_virtual_dataset("arrays/x", layout)


def external_header(file):
    file.create_dataset("header", shape=(2,), dtype="u1", external=[(SECRET, 0, 2)])


def references(file):
    file.create_dataset("arrays/x", data=np.array([file.ref], dtype=h5py.ref_dtype))


def schema(value):
    def fill(file):
        file.attrs["schema"] = value

    return fill


CRAFTED = {
    "external link to a header": (link("header", h5py.ExternalLink("o.h5", "h")), "ExternalLink"),
    "external link to arrays": (link("arrays", h5py.ExternalLink("o.h5", "a")), "ExternalLink"),
    "soft link in a circle": (link("arrays", h5py.SoftLink("/arrays")), "SoftLink"),
    "header in another file": (external_header, "data in other files"),
    "array in another file": (
        array(shape=(9,), dtype="u1", external=[(SECRET, 0, 9)]),
        "data in other files",
    ),
    "virtual": (virtual, "data in other files"),
    "references": (references, "has the type object"),
    "compound": (array(data=np.zeros(3, [("a", "i4")])), "has the type"),
    "text": (array(data=["a"]), "has the type object"),
    "null": (array(data=h5py.Empty("i4")), "damaged"),
    "schema of numbers": (schema(np.arange(3)), "the schema: found a ndarray"),
    "long schema": (schema("x" * 10_000), "the schema"),
    "2^40 zeros": (
        array(shape=(2**40,), dtype="i8", chunks=(2**20,), compression="gzip"),
        "bytes of arrays",
    ),
    "2^31 zeros": (
        array(shape=(2**31,), dtype="u1", chunks=(2**20,), compression="gzip"),
        "bytes of arrays",
    ),
    "2^93 zeros": (array(shape=(2**31,) * 3, dtype="i8", chunks=(1, 1, 1)), "bytes of arrays"),
    "a huge header": (
        lambda file: file.create_dataset("header", shape=(2**30,), dtype="u1", chunks=(2**20,)),
        "the header: found 1073741824 bytes",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(tmp_path, clean, name):
    fill, message = CRAFTED[name]
    path = sealed(tmp_path / "a.h5", fill)
    with clean(), pytest.raises(ArtifactError, match=message):
        read_container(path)


def test_filters_that_need_a_plugin_are_refused(tmp_path):
    def fill(file):
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((10,))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((10,))
        group = file.create_group("arrays").id
        h5py.h5d.create(group, b"x", h5py.h5t.NATIVE_INT32, space, made)

    with pytest.raises(ArtifactError, match="found the HDF5 filter 32015, allowed gzip"):
        read_container(sealed(tmp_path / "a.h5", fill))


@pytest.mark.parametrize("content", [b"[]", b"3", b'"x"', b"null", b"[" * 10**6, b"1" * 9999])
def test_headers_that_are_no_mapping_are_refused(tmp_path, clean, content):
    path = sealed(tmp_path / "a.h5", link("header", np.frombuffer(content, np.uint8)))
    with clean(), pytest.raises(ArtifactError, match=r"found a|damaged"):
        load(path)


@pytest.mark.parametrize("external", [True, False])
def test_netx_files_hold_their_own_data(tmp_path, external):
    path = tmp_path / "a.net"
    with h5py.File(path, "w") as file:
        layer = file.create_group("layer/0")
        layer["type"] = np.bytes_(b"input")
        if external:
            layer.create_dataset("shape", shape=(3,), dtype="u1", external=[(SECRET, 0, 3)])
        else:
            layout = h5py.VirtualLayout(shape=(3,), dtype="i8")
            layout[:] = h5py.VirtualSource("other.h5", "x", shape=(3,))
            layer.create_virtual_dataset("shape", layout)
    script = (
        "import sys, nmtool, nmtool.errors\n"
        "try:\n    nmtool.load(sys.argv[1])\n"
        "except nmtool.errors.ArtifactError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "data in other files" in done.stdout
