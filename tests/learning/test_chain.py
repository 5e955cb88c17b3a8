"""Chains in torch: exact for integers, and their gradients those of every single synapse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.chip import load_chip
from nmtool.network import shapes
from nmtool.operations import apply_chain as in_numpy
from nmtool.operations import chain_connections, with_weight
from nmtool.quantization import quantize

torch = pytest.importorskip("torch")
from nmtool.learning.chain import apply_chain, weight_gradient  # noqa: E402

CHIP = load_chip("loihi2")


@settings(max_examples=40, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_a_chain_is_numpys_and_its_gradient_that_of_its_synapses(network, seed):
    rng, quantized = np.random.default_rng(seed), quantize(network, CHIP)
    sources = shapes(network.inputs, network.populations)
    for projection in quantized.projections.values():
        shape = sources[projection.source]
        weight, operations = projection.weight, projection.operations
        x = rng.integers(0, 3, (4, int(np.prod(shape)))).astype(np.float64)
        expected = in_numpy(with_weight(operations, weight), x.astype(np.int64), shape)
        ours = apply_chain(
            operations, torch.from_numpy(x), shape, torch.from_numpy(weight.astype(np.float64))
        )
        np.testing.assert_array_equal(ours.numpy(), expected)

        trace, arriving = rng.normal(size=x.shape), rng.normal(size=expected.shape)
        ways = chain_connections(operations, shape)
        single = np.zeros(weight.size)
        terms = (trace[:, ways.source] * arriving[:, ways.target]).sum(axis=0)
        np.add.at(single, ways.index, terms)
        found = weight_gradient(operations, trace, shape, weight.shape, arriving)
        np.testing.assert_allclose(found, single.reshape(weight.shape), rtol=0, atol=1e-12 * 1e3)
