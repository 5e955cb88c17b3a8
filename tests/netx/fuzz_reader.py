"""``python fuzz_reader.py bytes|shapes FILE.net FOLDER``: load damaged copies of a netx file.

Prints how often each error came; whatever is no NmtoolError goes through and ends the process.
"""

import resource
import shutil
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

import nmtool
from nmtool.errors import NmtoolError

MEMORY = 3 << 30


def flipped(source, path, rng):
    """One to four bytes changed, half of them in the first 4 KiB, where HDF5 keeps its tables."""
    content = bytearray(source.read_bytes())
    for _ in range(rng.integers(1, 5)):
        end = 4096 if rng.random() < 0.5 else len(content)
        content[rng.integers(8, end)] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def reshaped(source, path, rng):
    """One number of the file replaced by another, often a very large one."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        names = []
        file.visititems(lambda name, node: names.append(name) if hasattr(node, "dtype") else None)
        numbers = [n for n in names if file[n].dtype.kind in "if" and file[n].size <= 4]
        name = str(rng.choice(numbers))
        values = file[name][()]
        choice = rng.choice([0, -1, 1, 7, 4097, 10**5, 2**31, 2**40, 2**62])
        del file[name]
        file[name] = np.full(np.shape(values), choice, np.int64)


def main():
    how, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    damage, count = {"bytes": (flipped, 200), "shapes": (reshaped, 60)}[how]
    rng = np.random.default_rng(0)
    path, seen = folder / "fuzz.net", Counter()
    for _ in range(count):
        damage(source, path, rng)
        try:
            nmtool.load(path)
            seen["loaded"] += 1
        except NmtoolError as error:
            seen[type(error).__name__] += 1
            seen["without the file's name"] += not str(error).startswith(str(path))
    print(dict(seen))
    sys.exit(seen["without the file's name"])


if __name__ == "__main__":
    main()
