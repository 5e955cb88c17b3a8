"""Chips too small for a network, and placements that cut it anywhere."""

from dataclasses import replace

import numpy as np

from nmtool.chip import load_chip
from nmtool.compiler import Site, compile_program
from nmtool.compiler.place import Slice

CORES = 4
ROOMY = replace(load_chip("loihi2"), cores=CORES, profiles_per_core=1 << 20)
"""A chip of few cores, each with room for any number of slices."""


def cut(rng, shape):
    """A shape in boxes, cut anywhere along any axis, in any order."""
    boxes = [tuple((0, n) for n in shape)]
    for _ in range(rng.integers(0, 7)):
        box = boxes.pop(rng.integers(len(boxes)))
        axis = int(rng.integers(len(box)))
        start, stop = box[axis]
        if stop - start > 1:
            middle = int(rng.integers(start + 1, stop))
            boxes += [_with(box, axis, (start, middle)), _with(box, axis, (middle, stop))]
        else:
            boxes.append(box)
    return [boxes[k] for k in rng.permutation(len(boxes))]


def _with(box, axis, ends):
    return (*box[:axis], ends, *box[axis + 1 :])


def scattered(network, seed):
    """Slices of every population, several to a core."""
    rng = np.random.default_rng([seed, 9])
    return tuple(
        Slice(name, box, 0, int(rng.integers(CORES)))
        for name, p in network.populations.items()
        for box in cut(rng, p.shape)
    )


def placed(program, seed=0):
    """A program with its slices scattered over a few cores."""
    site = Site(placement=scattered(program.network, seed))
    return compile_program(program.network, ROOMY, n_steps=program.reset.n_steps, site=site)


def small_chip(folder, base="loihi2", **numbers):
    """The file of a made-up chip with some numbers of its own."""
    lines = ["schema: nmtool.chip/v1", "name: tiny", f"extends: {base}"]
    lines += [f"{key}: {value}" for key, value in numbers.items()]
    path = folder / "tiny.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
