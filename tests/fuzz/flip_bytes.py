"""``python flip_bytes.py FILE.h5 FOLDER``: damage under a checksum that is right all the same.

Whatever is no NmtoolError goes through and ends the process, as a crash of the HDF5 library does.
"""

import contextlib
import random
import resource
import sys
from pathlib import Path

from nmtool.errors import NmtoolError
from nmtool.formats import load
from nmtool.formats.container import _user_block

MEMORY = 3 << 30


def main():
    content = Path(sys.argv[1]).read_bytes()[512:]
    path = Path(sys.argv[2]) / "flipped.h5"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            end = len(content) if rng.random() < 0.5 else 4096
            damaged[rng.randrange(min(end, len(content)))] = rng.choice([0, 1, 128, 255])
        path.write_bytes(_user_block(bytes(damaged)) + damaged)
        with contextlib.suppress(NmtoolError):
            load(path)


if __name__ == "__main__":
    main()
