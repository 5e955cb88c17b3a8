"""Hostile changes of a container's header and arrays, drawn by hypothesis."""

import copy

import numpy as np
from hypothesis import strategies as st

from nmtool.formats.container import Container


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


HUGE = (2**31, 2**31 - 1, 2**32, 10**9, 2**40, 10**12, 2**53, 2**62, 2**63, 2**64, 10**30)
NUMBERS = (0, -1, 1, 2, 3, 7, 4096, 65536, *HUGE, *(-n for n in HUGE), 0.5, 1e300, -1e-300)
VALUES = st.one_of(
    st.sampled_from([None, True, False, "", "x", "../x", "\0", "é" * 300, [], {}, [[]], [None]]),
    st.sampled_from(NUMBERS),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.lists(st.sampled_from(NUMBERS), max_size=5),
    st.sampled_from([nested(20), nested(150), {"x": {"y": 1}}, [1] * 70, [0] * 3]),
)
SHAPES = ((), (0,), (1,), (3,), (2, 3), (0, 5), (1, 1, 1), (4, 1, 1, 2), (1,) * 20)
TYPES = ("bool", "int8", "uint8", "int16", ">i4", "uint64", "int64", "f2", "f4", "f8", ">f8", "g")


def places(node, where=()):
    """The path of every value of a JSON tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*where, key)
        if isinstance(value, dict | list):
            yield from places(value, (*where, key))


def parent(node, where):
    for key in where[:-1]:
        node = node[key]
    return node


@st.composite
def changed_headers(draw, header):
    """A header with a value replaced, removed, renamed, added, or exchanged for another of it."""
    every = sorted(places(header), key=str)
    where = draw(st.sampled_from(every))
    node, key = parent(header, where), where[-1]
    how = draw(st.sampled_from(["value", "value", "value", "number", "remove", "add", "other"]))
    if how == "value":
        node[key] = copy.deepcopy(draw(VALUES))
    elif how == "number":
        numbers = [w for w in every if isinstance(parent(header, w)[w[-1]], int | float)] or [where]
        where = draw(st.sampled_from(numbers))
        parent(header, where)[where[-1]] = draw(st.sampled_from(NUMBERS))
    elif how == "remove":
        del node[key]
    elif how == "add" and isinstance(node, dict):
        node[draw(st.sampled_from(["x", "../x", "..", "", "a/b", "weight", "size"]))] = (
            copy.deepcopy(draw(VALUES))
        )
    else:
        other = draw(st.sampled_from(every))
        node[key] = copy.deepcopy(parent(header, other)[other[-1]])
    return header


def changed_array(draw, array):
    """An array of another type, shape or content."""
    how = draw(st.sampled_from(["type", "shape", "fill", "shorter", "one"]))
    with np.errstate(all="ignore"):
        if how == "type":
            return array.astype(draw(st.sampled_from(TYPES)))
        if how == "shape":
            return np.zeros(draw(st.sampled_from(SHAPES)), draw(st.sampled_from(TYPES)))
        if how == "shorter":
            return array[:-1] if array.ndim else array
        numbers = [-1, 0, 1, 2, 127, 255, 256, 2**31 - 1, -(2**31), 2**62, float("nan"), 1e300]
        value = np.array(draw(st.sampled_from(numbers))).astype(array.dtype)
        array = array.copy()
        if how == "one" and array.size:
            array.flat[draw(st.integers(0, array.size - 1))] = value
        else:
            array[...] = value
        return array


@st.composite
def hostile(draw, container):
    """A container with one to three hostile changes."""
    header = copy.deepcopy(container.header)
    arrays = dict(container.arrays)
    for _ in range(draw(st.integers(1, 3))):
        if arrays and draw(st.integers(0, 2)) == 0:
            name = draw(st.sampled_from(sorted(arrays)))
            if draw(st.integers(0, 5)) == 0:
                del arrays[name]
            else:
                arrays[name] = changed_array(draw, arrays[name])
        elif header:
            header = draw(changed_headers(header))
    return Container(container.schema, header, arrays)
