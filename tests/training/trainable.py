"""Generated networks that both engines train."""

import numpy as np
from hypothesis import strategies as st

from nmtool.network import CubaLif, Input, Network, Population, Projection

neurons = st.builds(
    CubaLif,
    threshold=st.one_of(st.floats(0.02, 1.5), st.floats(0.02, 20)),
    current_decay=st.floats(1 / 4096, 1),
    voltage_decay=st.one_of(st.floats(0, 0.2), st.floats(0, 4095 / 4096)),
)


@st.composite
def networks(draw):
    """Feed-forward networks in which every population has one projection, from anything before."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = {"input": draw(st.integers(1, 6))}
    populations, projections = {}, {}
    for index in range(draw(st.integers(1, 3))):
        name = f"p{index}"
        source = draw(st.sampled_from([*size]))
        size[name] = draw(st.integers(1, 6))
        spread, mean = draw(st.floats(0.01, 3)), draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, -0.3]))
        weight = rng.normal(mean, spread, (size[name], size[source]))
        bias = (
            rng.normal(0.1, draw(st.floats(0.001, 2)), size[name]) if draw(st.booleans()) else None
        )
        axonal = draw(st.integers(0, 3))
        populations[name] = Population((size[name],), draw(neurons), bias, axonal)
        projections[f"to {name}"] = Projection.dense(source, name, weight, draw(st.integers(0, 5)))
    return Network(
        "drawn",
        {"input": Input((size["input"],))},
        populations,
        projections,
        (name,),
        weight_bits=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8])),
    )
