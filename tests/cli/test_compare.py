"""``compare`` and checks: exit 1 where numbers differ, and it says where."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool import formats
from nmtool.backends import Recording
from nmtool.compiler import Program
from nmtool.config import Check
from nmtool.network import Network
from nmtool.spikes import SpikeTrain

DEPLOY = ("deploy", "run/program.h5", "--hw", "reference", "--input", "spikes.npy")


@pytest.fixture
def recorded(nmtool, rasters):
    assert nmtool(*DEPLOY, "-o", "a.h5", "--probe", "spikes,current,voltage").code == 0
    return formats.load_as("a.h5", Recording)


def test_equal_recordings(nmtool, recorded):
    done = nmtool("compare", "a.h5", "a.h5", "--json")
    assert done.code == 0
    assert done.json["equal"] is True
    assert done.json["differing_spikes"] == 0
    assert [p["states"] for p in done.json["populations"]] == [0, 0]
    assert nmtool("compare", "a.h5", "a.h5").out.endswith("equal\n")


def with_spike_flipped(recording, population, place):
    raster = recording.spikes[population].to_raster()
    raster[place] ^= True
    train = SpikeTrain.from_raster(raster)
    return replace(recording, spikes={**recording.spikes, population: train})


@pytest.mark.parametrize("population", ["hidden", "output"])
@pytest.mark.parametrize("place", [(0, 3, 5), (2, 15, 11), (1, 0, 0)])
def test_one_spike_is_found_and_named(nmtool, recorded, population, place):
    formats.save("b.h5", with_spike_flipped(recorded, population, place))
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 1
    sample, neuron, step = place
    assert (
        f"spikes of population {population}, sample {sample}, step {step}, neuron {neuron}"
        in done.out
    )
    assert "differing spikes: 1\n" in done.out
    assert done.err == "error: a.h5 and b.h5 differ\n"
    again = nmtool("compare", "a.h5", "b.h5", "--json")
    assert again.code == 1
    first = again.json["first"]
    assert [first[k] for k in ("population", "sample", "neuron", "step")] == [population, *place]
    assert {first["a"]["spike"], first["b"]["spike"]} == {0, 1}


@pytest.mark.parametrize("quantity", ["current", "voltage"])
def test_one_state_is_found_and_named(nmtool, recorded, quantity):
    states = dict(getattr(recorded, quantity))
    states["hidden"] = states["hidden"].copy()
    states["hidden"][1, 4, 7] += 64
    formats.save("b.h5", replace(recorded, **{quantity: states}))
    done = nmtool("compare", "a.h5", "b.h5", "--program", "run/program.h5")
    assert done.code == 1
    assert f"{quantity} of population hidden, sample 1, step 7, neuron 4, threshold" in done.out
    assert "differing spikes: 0" in done.out


def test_the_earliest_population_comes_first(nmtool, recorded):
    changed = with_spike_flipped(recorded, "output", (0, 0, 0))
    formats.save("b.h5", with_spike_flipped(changed, "hidden", (2, 15, 11)))
    first = nmtool("compare", "a.h5", "b.h5", "--program", "run/program.h5", "--json").json["first"]
    assert first["population"] == "hidden"


def test_what_is_on_one_side_only_is_said(nmtool, recorded):
    assert nmtool(*DEPLOY, "-o", "b.h5").code == 0
    done = nmtool("compare", "a.h5", "b.h5", "-q")
    assert done.code == 0
    assert "warning: not compared, recorded on one side only: hidden" in done.err
    assert "not probed" in done.out


def test_recordings_of_different_programs(nmtool, folder, recorded):
    assert nmtool("compile", "run", "--hw", "loihi2-faulty", "-o", "four.h5").code == 0
    done = nmtool("deploy", "four.h5", "--hw", "reference", "--input", "spikes.npy", "-o", "b.h5")
    assert done.code == 0
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 6
    assert "recordings of different programs are not compared" in done.err
    assert "a.h5" in done.err
    assert "b.h5" in done.err


def test_recordings_of_different_samples(nmtool, folder, recorded, rasters):
    np.save(folder / "two.npy", rasters[:2])
    deploy = ("deploy", "run/program.h5", "--hw", "reference", "--input", "two.npy")
    assert nmtool(*deploy, "-o", "b.h5").code == 0
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 3
    assert "allowed the same on both sides" in done.err


def test_targets_are_run_and_compared(nmtool, folder, rasters, hardware):
    with_program = ("--program", "run/program.h5", "--input", "spikes.npy")
    assert nmtool("compare", "reference", "reference", *with_program).code == 0
    faulty = hardware("faults: {seed: 1, stuck_neurons: 0.2}", name="faulty")
    done = nmtool("compare", "reference", faulty, *with_program, "--json")
    assert done.code == 1
    assert done.json["first"]["population"] == "hidden"
    assert done.json["first"]["step"] == 0
    assert done.json["first"]["sample"] == 0


def test_a_recording_against_a_target(nmtool, recorded):
    with_program = ("--program", "run/program.h5", "--input", "spikes.npy")
    assert nmtool("compare", "a.h5", "reference", *with_program).code == 0


def set_check(folder, nmtool, **limits):
    network = formats.load_as(folder / "run/network.h5", Network)
    check = Check(metric="accuracy", on=["reference"], **limits)
    formats.save(folder / "run/network.h5", replace(network, checks=(check,)))
    assert nmtool("compile", "run", "--hw", "reference", "--force").code == 0
    assert formats.load_as(folder / "run/program.h5", Program).network.checks == (check,)


def test_a_check_that_fails_exits_with_1(nmtool, folder, hardware):
    set_check(folder, nmtool, min=0.99)
    arguments = ("deploy", "run/program.h5", "-o", "rec.h5")
    done = nmtool(*arguments, "--hw", "reference")
    assert done.code == 1
    assert "error: check accuracy on reference: found 0." in done.err
    assert "allowed 0.99 to 1" in done.err
    assert "FAILED" in done.out
    assert formats.load_as("rec.h5", Recording).spikes.keys() == {"output"}
    done = nmtool("deploy", "run/program.h5", "--hw", "reference", "--json")
    assert done.code == 1
    assert done.json["checks"][0]["passed"] is False
    assert nmtool("deploy", "run/program.h5", "--hw", hardware()).code == 0


@pytest.mark.parametrize(
    ("limits", "code"), [({"max": 0.99}, 0), ({"max": 0.0}, 1), ({"min": 0}, 0)]
)
def test_the_limits_of_a_check(nmtool, folder, limits, code):
    set_check(folder, nmtool, **limits)
    assert nmtool("deploy", "run/program.h5", "--hw", "reference").code == code


def test_a_check_without_labels_fails_rather_than_passes(nmtool, folder, rasters):
    set_check(folder, nmtool, min=0.0)
    done = nmtool(*DEPLOY)
    assert done.code == 1
    assert "no labels" in done.err
