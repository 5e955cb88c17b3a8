import numpy as np
import pytest
import regression_networks as nets

from nmtool.operations import chain_connections
from nmtool.regression.coverage import Exercise


def exercise(kind, samples=6):
    program = nets.make_program(kind)
    inputs = nets.make_inputs(program, samples)
    run = nets.run(program, inputs, "spikes")
    return program, inputs, run, Exercise(program, inputs, run)


@pytest.mark.parametrize("kind", nets.KINDS)
def test_coverage_equals_its_definition(kind):
    program, inputs, run, exercised = exercise(kind)
    net = program.network
    active = {
        name: train.to_raster().any(axis=2) for name, train in {**inputs, **run.spikes}.items()
    }
    covered = exercised.coverage()
    neurons = np.concatenate([active[name].any(axis=0) for name in program.order])
    assert covered.neurons == pytest.approx(neurons.mean())
    used, total = 0, 0
    for key, p in net.projections.items():
        ways = chain_connections(p.operations, net.shapes[p.source])
        found = set()
        for source, target, index in zip(ways.source, ways.target, ways.index, strict=True):
            if np.any(active[p.source][:, source] & active[p.target][:, target]):
                found.add(int(index))
        assert covered.projections[key] == pytest.approx(len(found) / p.weight_mantissa.size)
        used, total = used + len(found), total + p.weight_mantissa.size
    assert covered.weights == pytest.approx(used / total)


def test_populations_and_projections_of_the_same_name_are_told_apart():
    from dataclasses import replace

    from nmtool.chip import load_chip
    from nmtool.compiler import compile_program

    network = nets.make_network("dense")
    names = {"ih": "h", "ho": "o"}
    network = replace(
        network, projections={names[key]: p for key, p in network.projections.items()}
    )
    program = compile_program(network, load_chip("loihi2"), n_steps=nets.STEPS)
    inputs = nets.make_inputs(program)
    run = nets.run(program, inputs, "spikes")
    *_, other = exercise("dense", samples=4)
    found, wanted = Exercise(program, inputs, run).coverage(), other.coverage()
    assert (found.neurons, found.weights) == (wanted.neurons, wanted.weights)
    assert found.populations == wanted.populations
    assert found.neurons != found.weights


def test_chosen_samples_cover_at_least_what_the_first_ones_do():
    *_, exercised = exercise("dense", samples=12)

    def share(samples):
        parts = [exercised.of(int(sample)) for sample in samples]
        together = [np.any([part[name] for part in parts], axis=0) for name in parts[0]]
        return np.concatenate(together).mean()

    for count in (1, 2, 4):
        chosen = exercised.choose(count)
        assert len(set(chosen.tolist())) == count
        assert share(chosen) >= share(range(count))
    one = exercised.choose(1)
    assert share(one) == max(share([sample]) for sample in range(12))
    assert exercised.choose(100).size == 12


def test_a_silent_input_covers_nothing():
    program = nets.make_program("dense")
    inputs = {"i": nets.make_inputs(program)["i"].select([0])}
    silent = {"i": type(inputs["i"]).from_raster(np.zeros((1, 20, nets.STEPS), dtype=bool))}
    run = nets.run(program, silent, "spikes")
    covered = Exercise(program, silent, run).coverage()
    assert (covered.neurons, covered.weights) == (0.0, 0.0)
