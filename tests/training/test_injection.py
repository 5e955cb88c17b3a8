"""Measured spikes in place of the model's: forward the measurement, backward the model."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.chip import load_chip
from nmtool.config import SlayerSurrogate

CHIP = load_chip("loihi2")


@settings(max_examples=10, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_without_measurements_it_is_plain_training_to_the_bit(network, seed):
    import torch

    from nmtool.training.engine import EventNetwork

    model = EventNetwork(network, CHIP, SlayerSurrogate())
    rng, names = np.random.default_rng(seed), tuple(network.populations)
    x = torch.from_numpy((rng.random((3, network.sizes["input"], 9)) < 0.4).astype(np.float32))
    weights = [model.parameter(name) for name in model.trained]
    found = []
    for spikes in (model(x), model.injected(x, names, {})):
        total = sum((s * (k + 1)).sum() for k, s in enumerate(spikes.values()))
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        found.append([np.zeros(1) if g is None else g.numpy() for g in gradients])
        found[-1] += [s.detach().numpy() for s in spikes.values()]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
