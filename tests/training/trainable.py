"""Generated networks that both engines train."""

import numpy as np
from hypothesis import strategies as st

from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool, chain_shape

neurons = st.builds(
    CubaLif,
    threshold=st.one_of(st.floats(0.02, 1.5), st.floats(0.02, 20)),
    current_decay=st.floats(1 / 4096, 1),
    voltage_decay=st.one_of(st.floats(0, 0.2), st.floats(0, 4095 / 4096)),
)

KINDS = (
    "dense",
    "conv",
    "pooled dense",
    "pooled conv",
    "pool",
    "pool block",
    "sparse",
    "conv flat",
)


def weights(draw, rng, size):
    spread, mean = draw(st.floats(0.01, 3)), draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, -0.3]))
    return rng.normal(mean, spread, size)


def pool(draw, shape):
    kernel = tuple(draw(st.integers(1, min(2, n))) for n in shape[:2])
    stride = tuple(draw(st.integers(1, 2)) for _ in range(2))
    return SumPool(kernel, stride, overhang=draw(st.booleans()))


def conv(draw, rng, shape):
    groups = draw(st.sampled_from([g for g in (1, 2) if shape[2] % g == 0]))
    kernel = [draw(st.integers(1, min(3, n))) for n in shape[:2]]
    widest = [2 if (k - 1) * 2 < n else 1 for k, n in zip(kernel, shape[:2], strict=True)]
    dilation = tuple(draw(st.integers(1, w)) for w in widest)
    size = (groups * draw(st.integers(1, 3)), *kernel, shape[2] // groups)
    return Conv(
        weights(draw, rng, size),
        tuple(draw(st.integers(1, 2)) for _ in range(2)),
        tuple(draw(st.integers(0, 1)) for _ in range(2)),
        dilation,
        groups,
    )


def dense(draw, rng, shape, targets):
    return Dense(weights(draw, rng, (targets, int(np.prod(shape)))))


def chain(draw, rng, kind, shape):
    """Operations on a source of a shape that decide the shape of their target."""
    targets = draw(st.integers(1, 20))
    if kind == "dense" or (len(shape) == 1 and kind != "sparse"):
        return (dense(draw, rng, shape, targets),)
    if kind == "sparse":
        matrix = weights(draw, rng, (targets, int(np.prod(shape))))
        matrix[rng.random(matrix.shape) < 0.5] = 0
        matrix[0, 0] = 0.5
        return (Sparse.from_matrix(matrix),)
    if kind == "conv":
        return (conv(draw, rng, shape),)
    if kind == "conv flat":
        return (conv(draw, rng, shape), Flatten())
    pooled = pool(draw, shape)
    inner = pooled.output_shape(shape)
    if kind == "pooled conv":
        return (pooled, conv(draw, rng, inner))
    if kind == "pooled dense":
        return (pooled, Flatten(), dense(draw, rng, inner, targets))
    return (pooled,) if kind == "pool" else (pooled, Scale(np.array([draw(st.floats(0.1, 2))])))


@st.composite
def networks(draw, kinds=KINDS, loops=True, skips=True):
    """Populations fed by anything before, some several times, some by themselves or each other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = (draw(st.integers(2, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    shape = {"input": draw(st.sampled_from([(draw(st.integers(1, 6)),), image]))}
    populations, projections = {}, {}
    delays = st.integers(0, 5)

    def join(source, name, operations):
        projections[f"{source}.{name}.{len(projections)}"] = Projection(
            source, name, operations, draw(delays)
        )

    def all_to_all(source, name):
        size = int(np.prod(shape[name]))
        join(source, name, (dense(draw, rng, shape[source], size),))

    for index in range(draw(st.integers(1, 3))):
        name = f"p{index}"
        source = draw(st.sampled_from([*shape]))
        operations = chain(draw, rng, draw(st.sampled_from(kinds)), shape[source])
        shape[name] = chain_shape(operations, shape[source])
        size = int(np.prod(shape[name]))
        bias = rng.normal(0.1, draw(st.floats(0.001, 2)), size) if draw(st.booleans()) else None
        axonal = draw(st.integers(0, 3))
        populations[name] = Population(shape[name], draw(neurons), bias, axonal)
        join(source, name, operations)
        if skips and draw(st.booleans()):
            all_to_all(draw(st.sampled_from([s for s in shape if s != name])), name)
    if loops and draw(st.booleans()):
        names = [*populations]
        all_to_all(draw(st.sampled_from(names)), draw(st.sampled_from(names)))
    operations = [o for p in projections.values() for o in p.operations]
    if not any(isinstance(o, Dense | Conv | Sparse) for o in operations):
        all_to_all("input", name)
    return Network(
        "drawn",
        {"input": Input(shape["input"])},
        populations,
        projections,
        (name,),
        weight_bits=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8])),
    )
