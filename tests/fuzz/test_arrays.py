"""Arrays (.npy) from others."""

import io
import zipfile

import numpy as np
import pytest
import regression_networks as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.format import magic

from nmtool.cli.common import read_array
from nmtool.cli.runs import gather_input
from nmtool.errors import ConfigError

PROGRAM = nets.make_program("dense")


def npy(header, body=b"\0" * 64):
    content = header.encode("latin1")
    return magic(1, 0) + len(content).to_bytes(2, "little") + content + body


def described(shape, descr="'|u1'", order="False"):
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n")


def archive():
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w") as file:
        file.writestr("a.npy", described("(3,)"))
    return image.getvalue()


HOSTILE = {
    "2^40 values": described("(1099511627776,)"),
    "2^62 values": described("(4611686018427387904,)"),
    "overflow": described("(4294967296, 4294967296, 2)"),
    "negative": described("(-1,)"),
    "objects": described("(3,)", "'|O'"),
    "text": described("(3,)", "'<U4'"),
    "structured": described("(3,)", "[('a', '<i4')]"),
    "times": described("(3,)", "'<M8[s]'"),
    "complex": described("(3,)", "'<c8'"),
    "no type": described("(3,)", "'9999999999f8'"),
    "wide": described("(3,)", "'|V99999999999'"),
    "code": npy("__import__('os').system('id')\n"),
    "minus": npy("-" * 9000 + "1\n"),
    "brackets": npy("(" * 9000 + "\n"),
    "not closed": npy("{'descr': \n"),
    "lambda": described("(lambda: 0)"),
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "pickle": b"\x80\x04K\x01.",
    "archive": archive(),
    "damaged archive": b"PK\x03\x04" + b"\xff" * 30,
    "nothing": described("(0,)"),
    "many axes": described("(" + "1," * 99 + ")"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_hostile_arrays(tmp_path, clean, name):
    path = tmp_path / "a.npy"
    path.write_bytes(HOSTILE[name])
    with clean(), pytest.raises(ConfigError, match=r"a\.npy"):
        read_array(str(path), "--input")


@settings(max_examples=60)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_arrays(tmp_path, clean, data):
    path = tmp_path / "a.npy"
    shape = data.draw(st.sampled_from([(20, 40), (2, 20, 40), (20,), (2, 20), (40,), ()]))
    kind = data.draw(st.sampled_from(["bool", "u1", "i8", ">i4", "f4", "f8", "g", "c8", "S3"]))
    np.save(path, np.ones(shape, kind))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        end = data.draw(st.sampled_from([128, len(content)]))
        content[data.draw(st.integers(0, min(end, len(content)) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(content[: data.draw(st.integers(len(content) - 20, len(content)))])
    for labels in (None, str(path)):
        with clean():
            gather_input(PROGRAM, None, (str(path),), labels, False)
