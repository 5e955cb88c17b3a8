"""A probe of one variable: flat after a run, all steps of the first neuron first."""

import mmap
import os

import numpy as np

ROWS = 1 << 14


class StateProbe:
    def __init__(self, var):
        self.n = int(np.prod(var.shape))
        # Anonymous shared memory, which the forked process of the neurons writes.
        memory = mmap.mmap(-1, (ROWS * self.n + 2) * 4)
        cells = np.frombuffer(memory, np.int32)
        self.count, self.rows = cells[:1], cells[2:].reshape(ROWS, self.n)
        var.process.proc_params[f"stand_in_{var.name}"] = (self.count, self.rows)

    @property
    def time_series(self):
        flat = self.rows[: self.count[0]].T.reshape(-1).copy()
        return flat[:-1] if "garbage-states" in os.environ.get("STAND_IN", "").split() else flat
