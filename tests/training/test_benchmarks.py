"""The code of benchmarks/training.py, on networks that take no time."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nmtool import operations
from nmtool.errors import UnsupportedError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    try:
        import training

        yield training
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def peers(bench):
    return sys.modules["peers"]


@pytest.fixture(scope="module")
def dense(peers):
    return peers.Shape("tiny", (40,), (peers.Dense(24), peers.Dense(4)), 4, 60, 1, 0.1)


@pytest.fixture(scope="module")
def image(peers):
    layers = (peers.Conv(3, 3), peers.Pool(2), peers.Conv(4, 3), peers.Pool(2), peers.Dense(5))
    return peers.Shape("image", (2, 8, 4), layers, 2, 12, 1, 0.2)


# What is measured


def test_a_step_of_nmtool_is_measured_and_its_layers_spike(bench, dense):
    model, layout = bench.ours(dense)
    found = bench.measure(dense, model, layout, seconds=0)
    assert len(found["seconds"]) == bench.LEAST
    assert min(found["seconds"]) > 0
    assert found["megabytes"] > 0
    assert all(0.001 < rate < 0.5 for rate in found["rates"])


def test_the_weights_hardly_move_so_that_spikes_stay(bench, dense):
    model, layout = bench.ours(dense)
    before = model.spikes(layout(torch.from_numpy(dense.raster())))
    bench.measure(dense, model, layout, seconds=0.05)
    after = model.spikes(layout(torch.from_numpy(dense.raster())))
    assert after == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_library_without_a_real_gradient_is_refused(bench, dense, value):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 40))

        def forward(self, x):
            return value * x.sum(-1) @ self.weight.T

        def spikes(self, x):
            return [1.0, 1.0]

    with pytest.raises(ValueError, match="no finite gradient"):
        bench.measure(dense, Broken(), lambda raster: raster, seconds=0)


@pytest.mark.lava
def test_lava_dl_and_nmtool_spike_alike(bench, peers, dense):
    raster = torch.from_numpy(dense.raster())
    rates = []
    for make in (bench.ours, peers.PEERS["lava-dl"]):
        model, layout = make(dense)
        rates.append(model.spikes(layout(raster)))
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
    assert min(rates[0]) > 0


# The same network


def test_the_image_network_is_the_one_that_the_others_have(bench, peers, image):
    network = bench.network(image)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, *image.features, 1)).astype(np.float32)
    theirs = peers.stack(image, torch.nn.Identity, torch.nn.Identity)
    expected = theirs(peers.steps_first(torch.from_numpy(x)))[0].detach().numpy()
    y = bench.channels_last(torch.from_numpy(x))[..., 0].numpy()
    shapes = {**network.inputs, **network.populations}
    for projection in network.projections.values():
        y = operations.apply_chain(projection.operations, y, shapes[projection.source].shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_operations_are_counted_as_by_hand(bench, peers):
    layers = (peers.Dense(2, recurrent=True), peers.Dense(1))
    network = bench.network(peers.Shape("by hand", (3,), layers, 1, 4, 1))
    spikes = {name: torch.zeros(1, n, 4) for name, n in network.sizes.items()}
    spikes["input"][0, [0, 0, 1, 2, 2], [0, 1, 1, 2, 3]] = 1  # the last comes too late
    spikes["layer0"][0, [0, 1, 1], [1, 1, 2]] = 1
    added = 4 * 2 + 3 * 2 + 3 * 1  # input to 2 targets, those among themselves, and to the output
    assert bench.count(network, spikes) == {
        "weights added": added,
        "neurons updated": bench.UPDATE * 4 * 3,
        "surrogates and recurrences": bench.SURROGATE * 4 * 3,
        "gradients added": added,
        "gradients sent back": 4 * (2 * 2 + 2 * 1),
    }


def test_operations_of_a_convolution_are_those_of_its_windows(bench, image):
    network = bench.network(image)
    spikes = {name: torch.zeros(1, n, 2) for name, n in network.sizes.items()}
    x = torch.from_numpy(np.random.default_rng(6).random((1, *image.features, 2)) < 0.3).float()
    x[..., 1] = 0
    spikes["input"] = bench.channels_last(x)
    windows = torch.nn.functional.conv2d(x[..., 0], torch.ones(3, 2, 3, 3), padding=1)
    counted = bench.count(network, spikes)
    assert counted["weights added"] == int(windows.sum())
    pooled = torch.nn.functional.conv2d(torch.ones(1, 3, 4, 2), torch.ones(4, 3, 3, 3), padding=1)
    assert counted["gradients sent back"] == 2 * (int(pooled.sum()) + 4 * 2 * 1 * 5)


# The comparison


def runner(**found):
    """Stands for the processes: milliseconds, megabytes and rate by library, or why not."""

    def run(shape, library, threads, best):
        if isinstance(found.get(library), str) or library not in found:
            return {"why": found.get(library, "not installed")}
        ms, megabytes, rate = found[library]
        seconds = [ms / 1e3 * (1.5 if threads == 1 else 1)] * 3
        return {"seconds": seconds, "megabytes": megabytes, "rates": [rate]}

    return run


def test_nmtool_is_held_against_the_fastest_and_the_smallest_of_the_others(bench, dense):
    run = runner(nmtool=(2, 8, 0.04), Norse=(30, 4, 0.05), Sinabs=(10, 40, 0.04))
    time, memory = bench.compare(dense, 2, run)
    assert (time["ours"], time["peer"], time["peer_name"]) == (2, 10, "Sinabs")
    assert time["ratio"] == pytest.approx(5)
    assert (memory["peer_name"], memory["ratio"], memory["bar"]) == ("Norse", 0.5, 1)
    assert {"lava-dl", "snnTorch"} <= set(time["absent"])
    for key in ("name", "ours", "peer", "peer_name", "unit", "ratio", "bar"):
        assert key in time
        assert key in memory
    assert "5.0 times faster than Sinabs" in bench.text([time, memory])


def test_only_the_faster_number_of_threads_of_a_library_is_run_again(bench, dense):
    calls = []
    found = runner(nmtool=(2, 8, 0.04), Norse=(30, 4, 0.05))

    def run(shape, library, threads, best):
        calls.append((library, threads))
        return found(shape, library, threads, best)

    bench.compare(dense, 3, run)
    assert calls.count(("Norse", 2)) == 3
    assert calls.count(("Norse", 1)) == 1


def test_what_cannot_be_the_fastest_is_run_once(bench, dense):
    calls = []
    found = runner(nmtool=(2, 8, 0.04), Norse=(10, 4, 0.05), Sinabs=(90, 4, 0.05))

    def run(shape, library, threads, best):
        calls.append((library, threads))
        assert (library == "Sinabs") <= (best == 0.01)
        return found(shape, library, threads, best)

    time, _ = bench.compare(dense, 3, run)
    assert calls.count(("Norse", 2)) == calls.count(("nmtool", 2)) == 3
    assert calls.count(("Sinabs", 2)) == 1
    assert [side["name"] for side in time["sides"]] == ["nmtool", "Norse", "Sinabs"]


def test_a_hopeless_library_makes_one_step(bench, dense):
    model, layout = bench.ours(dense)
    found = bench.measure(dense, model, layout, seconds=0, best=1e-9)
    assert len(found["seconds"]) == 1


def test_a_library_that_spikes_otherwise_is_left_out_and_named(bench, dense):
    run = runner(nmtool=(2, 8, 0.04), Norse=(30, 4, 0.04), Sinabs=(1, 1, 0.004))
    time, memory = bench.compare(dense, 1, run)
    assert time["peer_name"] == memory["peer_name"] == "Norse"
    assert "0.40%" in time["absent"]["Sinabs"]
    assert "Sinabs" in bench.text([time, memory])


def test_what_the_engine_cannot_train_is_said(bench, dense, monkeypatch):
    def refuse(*arguments):
        raise UnsupportedError("projection layer0: found Conv, allowed dense weights")

    monkeypatch.setattr(bench, "make_model", refuse)
    why = bench.worker(dense, "nmtool", 1)["why"]
    assert why.startswith("not supported by the event engine yet (projection layer0")
    time, memory = bench.compare(dense, 1, runner(nmtool=why, Norse=(30, 4, 0.05)))
    assert time["ours"] is time["ratio"] is memory["ratio"] is None
    assert why in bench.text([time, memory])


def test_without_the_other_libraries_it_says_so(bench, dense, monkeypatch):
    for module in ("norse", "norse.torch.functional.lif"):
        monkeypatch.setitem(sys.modules, module, None)
    assert bench.worker(dense, "Norse", 1)["why"].startswith("not installed")
    time, memory = bench.compare(dense, 1, runner(nmtool=(2, 8, 0.04)))
    assert time["peer"] is time["ratio"] is None
    assert "not compared" in bench.text([time, memory])
