"""A network made in Python, for ``network: {entry: "custom_network:make"}`` in an experiment."""

from __future__ import annotations

import numpy as np

from nmtool import CubaLif, Input, Network, Population, Projection

NEURONS_PER_CLASS = 8


def make(n_inputs: int, n_classes: int, seed: int) -> Network:
    """Two hidden layers; the first leaks faster than the second, whose spikes take two steps more.

    ``n_inputs`` is the number of input lines, ``n_classes`` that of classes; the experiment's
    readout must have the same NEURONS_PER_CLASS.
    """
    rng = np.random.default_rng(seed)
    fast, slow = CubaLif(1.25, 0.5, 0.1), CubaLif(1.25, 0.25, 0.03)
    n_outputs = n_classes * NEURONS_PER_CLASS

    def weights(n_target: int, n_source: int) -> np.ndarray:
        bound = 1.25 / np.sqrt(n_source)
        return rng.uniform(-bound, bound, (n_target, n_source)).astype(np.float32)

    return Network(
        name="custom",
        inputs={"input": Input((n_inputs,))},
        populations={
            "first": Population((96,), fast),
            "second": Population((64,), slow, axonal_delay=2),
            "output": Population((n_outputs,), slow),
        },
        projections={
            "first": Projection.dense("input", "first", weights(96, n_inputs)),
            "second": Projection.dense("first", "second", weights(64, 96)),
            "output": Projection.dense("second", "output", weights(n_outputs, 64)),
        },
        outputs=("output",),
    )
