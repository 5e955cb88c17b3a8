"""Losses against their closed form, and against lava-dl's."""

import numpy as np
import pytest

from nmtool.config import CountCrossEntropy, Readout, SpikeRate

torch = pytest.importorskip("torch")


@pytest.fixture
def spikes():
    rng = np.random.default_rng(0)
    return torch.tensor((rng.random((5, 12, 20)) < 0.3).astype(np.float32)), torch.tensor(
        rng.integers(0, 4, 5)
    )


def test_class_sums(spikes):
    from nmtool.training.losses import class_sums

    found = class_sums(spikes[0], Readout(neurons_per_class=3)).numpy()
    counts = spikes[0].numpy().sum(axis=2)
    expected = np.stack([counts[:, 3 * c : 3 * c + 3].sum(axis=1) for c in range(4)], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_count_cross_entropy(spikes):
    from nmtool.training.losses import class_sums, make_loss

    readout = Readout(neurons_per_class=3)
    loss = make_loss(CountCrossEntropy(kind="count_cross_entropy", scale=0.2), readout)
    logits = 0.2 * class_sums(spikes[0], readout).numpy().astype(np.float64)
    chosen = logits[np.arange(5), spikes[1].numpy()]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen)
    assert float(loss(*spikes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("per_class", [1, 3])
def test_spike_rate(spikes, per_class):
    from nmtool.training.losses import make_loss

    config = SpikeRate(kind="spike_rate", true_rate=0.3, false_rate=0.05)
    loss = make_loss(config, Readout(neurons_per_class=per_class))
    rate = spikes[0].numpy().astype(np.float64).mean(axis=2)
    total = 0.0
    for sample, label in enumerate(spikes[1].tolist()):
        for neuron in range(12):
            wanted = 0.3 if neuron // per_class == label else 0.05
            total += (rate[sample, neuron] - wanted) ** 2
    assert float(loss(*spikes)) == pytest.approx(total / 5, rel=1e-5)


def test_spike_rate_is_lavas_over_the_number_of_samples(spikes):
    from lava.lib.dl import slayer

    from nmtool.training.losses import make_loss

    config = SpikeRate(kind="spike_rate", true_rate=0.2, false_rate=0.03)
    ours, theirs = make_loss(config, Readout()), slayer.loss.SpikeRate(0.2, 0.03)
    one, two = (spikes[0].clone().requires_grad_() for _ in range(2))
    mine, yours = ours(one, spikes[1]), theirs(two, spikes[1])
    assert mine.item() * 5 == pytest.approx(yours.item(), rel=1e-5)
    mine.backward()
    yours.backward()
    np.testing.assert_allclose(one.grad.numpy() * 5, two.grad.numpy(), rtol=1e-5, atol=1e-9)


def test_the_right_neurons_are_pushed_up(spikes):
    from nmtool.training.losses import make_loss

    for config in (
        CountCrossEntropy(kind="count_cross_entropy"),
        SpikeRate(kind="spike_rate", true_rate=1.0, false_rate=0.0),
    ):
        output = spikes[0].clone().requires_grad_()
        make_loss(config, Readout(neurons_per_class=3))(output, spikes[1]).backward()
        own = torch.arange(12)[None] // 3 == spikes[1][:, None]
        assert (output.grad.sum(dim=2)[own] < 0).all()
        assert (output.grad.sum(dim=2)[~own] >= 0).all()


@pytest.fixture(autouse=True)
def prepared():
    from nmtool.backends.lava.compat import prepare_slayer

    prepare_slayer()
