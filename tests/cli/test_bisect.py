"""What bisect says of a target with many faults, and the replay files it writes."""

import pytest

from nmtool.regression.golden import load_golden

MANY = (
    "faults: {seed: 7, dead_neurons: 0.1, stuck_neurons: 0.1, weight_bit_flips: 0.002, "
    "spike_loss: 0.01}"
)
LOST = "faults: {{injected: [{{kind: lost_spike, population: hidden, {place}}}]}}"


@pytest.fixture
def golden(nmtool, folder):
    options = ("--samples", 4, "--probe", "spikes,current,voltage", "-o", "golden.h5")
    done = nmtool("golden", "record", "run/program.h5", "--hw", "reference", *options)
    assert done.code == 0, done.err
    return "golden.h5"


def test_many_faults_are_listed_neuron_by_neuron(nmtool, golden, hardware):
    target = hardware(MANY)
    done = nmtool("bisect", golden, target)
    assert done.code == 1
    assert "the first neurons of hidden that depart, one by one:" in done.out
    assert "stuck neuron  exact, the only one found" in done.out
    assert "likely cause: lost spike" in done.out
    found = nmtool("bisect", golden, target, "--json").json
    assert found["neurons"][0]["neuron"] == found["neuron"]
    assert all(row["sure"] for row in found["neurons"])
    assert "stuck neuron" in done.err


def test_the_replay_of_a_lost_spike_has_empty_samples_before_it(nmtool, golden, hardware, folder):
    raster = load_golden(golden).expected.spikes["hidden"].to_raster()
    neuron, step = next(
        (n, t)
        for n in range(raster.shape[1])
        for t in range(raster.shape[2] - 1, -1, -1)
        if raster[2, n, t]
    )
    target = hardware(LOST.format(place=f"neuron: {neuron}, sample: 2, step: {step}"))
    done = nmtool("bisect", golden, target, "-o", "replay.h5", "--json")
    assert done.code == 1
    assert done.json["causes"][0]["kind"] == "lost spike"
    train = load_golden("replay.h5").inputs["input"]
    assert (train.n_samples, train.n_steps) == (3, step + 1)
    assert set(train.sample.tolist()) <= {2}
    assert nmtool("golden", "check", "replay.h5", "--hw", target).code == 1
    assert nmtool("golden", "check", "replay.h5", "--hw", "reference").code == 0
