from dataclasses import replace
from math import prod

import numpy as np
import oracle
import pytest
import scipy.sparse
import strategies as nets
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmtool import operations as ops
from nmtool.errors import ConfigError
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool

seeds = st.integers(0, 2**32 - 1)


def from_connections(chain, shape):
    ways, weight = ops.chain_connections(chain, shape), ops.weighted(chain).weight.ravel()
    found = np.zeros((prod(ops.chain_shape(chain, shape)), prod(shape)), dtype=np.int64)
    np.add.at(found, (ways.target, ways.source), weight[ways.index])
    return found


def from_fold(chain, shape):
    folded = ops.fold(chain, shape)
    found = np.zeros(folded.size)
    found[folded.target, folded.source] = folded.weight
    return found


def from_apply(chain, shape, dtype):
    return ops.apply_chain(chain, np.eye(prod(shape), dtype=dtype), shape).T


@given(nets.chains())
def test_apply_connections_and_fold_are_one_matrix(case):
    shape, chain = case
    wanted = oracle.matrix(chain, shape)
    assert wanted.shape == (prod(ops.chain_shape(chain, shape)), prod(shape))
    for found in (
        from_apply(chain, shape, np.int64),
        from_apply(chain, shape, np.float64),
        from_connections(chain, shape),
        from_fold(chain, shape),
    ):
        np.testing.assert_array_equal(found, wanted)


@given(nets.chains(), seeds)
def test_apply_takes_spikes_numbers_and_batches_alike(case, seed):
    shape, chain = case
    spikes = np.random.default_rng(seed).random((3, prod(shape))) < 0.6
    wanted = spikes.astype(object) @ oracle.matrix(chain, shape).T
    for dtype in (np.bool_, np.int64, np.float64):
        found = ops.apply_chain(chain, spikes.astype(dtype), shape)
        np.testing.assert_array_equal(found, wanted, str(dtype))


@given(nets.chains())
def test_connections_are_sorted_by_source_then_target(case):
    shape, chain = case
    ways = ops.chain_connections(chain, shape)
    pairs = list(zip(ways.source.tolist(), ways.target.tolist(), strict=True))
    assert pairs == sorted(pairs)


@given(nets.chains(), st.integers(-3, 3))
def test_fold_multiplies_all_weights_of_a_chain(case, factor):
    shape, chain = case
    longer = (Scale(np.full(1, 2.0)), *chain, Scale(np.full(1, float(factor))))
    np.testing.assert_array_equal(from_fold(longer, shape), oracle.matrix(longer, shape))
    np.testing.assert_array_equal(
        from_apply(longer, shape, np.float64), oracle.matrix(longer, shape)
    )


@given(seeds)
def test_conv_equals_torch(seed):
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(3, 8, 2).tolist(), int(rng.choice([1, 2, 4])))
    conv = nets.random_conv(rng, shape)
    conv = replace(conv, weight=rng.integers(-99, 100, conv.weight.shape).astype(np.float64))
    x = rng.integers(-9, 10, (2, *shape)).astype(np.float64)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(conv.weight.transpose(0, 3, 1, 2).copy()),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    wanted = wanted.numpy().transpose(0, 2, 3, 1)
    assert conv.output_shape(shape) == wanted.shape[1:]
    np.testing.assert_array_equal(conv.apply(x.reshape(2, -1), shape), wanted.reshape(2, -1))


@given(seeds)
def test_sum_pooling_equals_torch_s_mean_times_the_window(seed):
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(2, 8, 2).tolist(), int(rng.integers(1, 4)))
    kernel = nets.pair(rng.integers(1, np.minimum(shape[:2], 4) + 1))
    padding = nets.pair(rng.integers(0, np.array(kernel) // 2 + 1))
    pool = SumPool(kernel, nets.pair(rng.integers(1, 4, 2)), padding)
    x = rng.integers(-9, 10, (2, *shape)).astype(np.float64)
    mean = torch.nn.functional.avg_pool2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), kernel, pool.stride, padding
    )
    wanted = mean.numpy().transpose(0, 2, 3, 1) * prod(kernel)
    assert pool.output_shape(shape) == wanted.shape[1:]
    np.testing.assert_allclose(
        pool.apply(x.reshape(2, -1), shape), wanted.reshape(2, -1), atol=1e-9
    )


def test_flatten_runs_through_x_first_and_channels_last():
    x = np.arange(24).reshape(2, 3, 4)
    found = Flatten().apply(x.reshape(1, -1), x.shape)
    np.testing.assert_array_equal(found[0], x.transpose(2, 1, 0).ravel())


def test_overlapping_pools_have_a_way_for_every_window():
    chain = (SumPool((2, 1), (1, 1)), SumPool((2, 1), (1, 1)), Scale(np.full(1, 3)))
    ways = ops.chain_connections(chain, (3, 1, 1))
    assert list(zip(ways.source, ways.target, strict=True)) == [(0, 0), (1, 0), (1, 0), (2, 0)]
    assert from_apply(chain, (3, 1, 1), np.int64).tolist() == [[3, 6, 3]]


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_array])
def test_sparse_holds_the_elements_of_a_matrix(kind):
    matrix = np.array([[0.0, 2.0, 0.0], [-1.0, 0.0, 3.0]])
    sparse = Sparse.from_matrix(kind(matrix))
    assert (sparse.weight.size, sparse.size) == (3, (2, 3))
    np.testing.assert_array_equal(oracle.matrix((sparse,), (3,)), matrix)


ONE = np.ones((1, 1, 1, 1))
PLANE = (3, 3, 2)


@pytest.mark.parametrize(
    ("operation", "shape", "message"),
    [
        (Dense(np.ones((2, 3))), (4,), r"shape \(2, 3\), allowed \(target, 4\)"),
        (Dense(np.ones(3)), (3,), r"shape \(3,\), allowed \(target, 3\)"),
        (Sparse.from_matrix(np.eye(3)), (2, 2), "sparse: found 3 source neurons, allowed 4"),
        (Scale(np.ones(2)), (2,), r"scale: found weights of shape \(2,\), allowed \(1,\)"),
        (Conv(ONE), (9,), r"conv: found a source of shape \(9,\), allowed \(x, y, channel\)"),
        (Conv(ONE[0]), PLANE, r"conv: found weights of shape \(1, 1, 1\), allowed \(channels out"),
        (Conv(ONE), PLANE, "found 1 channels x 1 groups in .*, allowed 2 channels in"),
        (Conv(ONE, groups=2), PLANE, "and 1 channels out, .* a multiple of the groups out"),
        (Conv(ONE, groups=0), PLANE, "x 0 groups"),
        (Conv(np.ones((1, 4, 1, 2))), PLANE, r"window of \(4, 1\) on .*, allowed windows that fit"),
        (Conv(np.ones((1, 2, 1, 2)), dilation=(3, 1)), PLANE, r"window of \(4, 1\)"),
        (Conv(np.ones((1, 1, 1, 2)), stride=(0, 1)), PLANE, "allowed kernel and stride from 1"),
        (Conv(np.ones((1, 1, 1, 2)), padding=(0, -1)), PLANE, "padding from 0"),
        (SumPool((2, 2), (2, 2)), (4, 4), r"sum pooling: found a source of shape \(4, 4\)"),
        (SumPool((4, 1), (1, 1)), PLANE, r"sum pooling: found a window of \(4, 1\)"),
        (SumPool((0, 1), (1, 1)), PLANE, r"found kernel \(0, 1\), .* allowed kernel and stride"),
        (SumPool((1, 1), (1, 0)), PLANE, r"stride \(1, 0\)"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(operation, shape, message):
    with pytest.raises(ConfigError, match=message):
        operation.output_shape(shape)


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ([0, 2], [0, 0], "sparse.target: found 0 to 2, allowed 0 to 1"),
        ([0, 1], [-1, 0], "sparse.source: found -1 to 0, allowed 0 to 2"),
        ([0], [0, 1], r"sparse.target: found shape \(1,\), allowed \(2,\)"),
        ([0, 0], [1, 1], "found two synapses between one pair of neurons"),
    ],
)
def test_synapses_outside_the_matrix_are_refused(target, source, message):
    with pytest.raises(ConfigError, match=message):
        Sparse(np.ones(2), np.array(target), np.array(source), (2, 3))
