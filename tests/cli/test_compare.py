"""``compare`` and checks: exit 1 where numbers differ, and it says where."""

from dataclasses import replace

import numpy as np
import pytest

import nmtool as api
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


def test_thresholds_are_in_the_units_of_the_voltage(nmtool, recorded):
    formats.save("b.h5", with_spike_flipped(recorded, "hidden", (0, 3, 5)))
    program = formats.load_as("run/program.h5", Program)
    wanted = program.network.populations["hidden"].threshold * 64
    for given in ((), ("--program", "run/program.h5")):
        done = nmtool("compare", "a.h5", "b.h5", *given, "--json")
        assert done.json["first"]["threshold"] == wanted
        assert f"neuron 3, threshold {wanted}\n" in nmtool("compare", "a.h5", "b.h5", *given).out


@pytest.fixture
def messages(nmtool, folder):
    """A recording of sigma-delta neurons and a sigma decoder, in a.h5."""
    populations = {
        "delta": api.Population((4,), api.Delta(0.5, 2, 3)),
        "sigma": api.Population((4,), api.Sigma()),
    }
    synapses = {"w": api.Projection.dense("delta", "sigma", np.eye(4))}
    inputs = {"x": api.Input((4,), "graded", "delta")}
    network = api.Network("m", inputs, populations, synapses, ("sigma",))
    formats.save("m.h5", api.compile(network, steps=6))
    np.save("x.npy", np.random.default_rng(0).integers(-90, 90, (4, 6)))
    deploy = ("deploy", "m.h5", "--hw", "reference", "--input", "x.npy")
    done = nmtool(*deploy, "-o", "a.h5", "--probe", "spikes,voltage:delta")
    assert done.code == 0, done.err
    return formats.load_as("a.h5", Recording)


@pytest.mark.parametrize(("population", "threshold"), [("delta", 32 << 5), ("sigma", None)])
def test_a_message_is_not_called_a_spike(nmtool, messages, population, threshold):
    values = messages.spikes[population].to_raster()
    values[2, 4] += 7
    train = SpikeTrain.from_raster(values, graded=True)
    formats.save("b.h5", replace(messages, spikes={**messages.spikes, population: train}))
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 1
    said = "" if threshold is None else f", threshold {threshold}"
    place = f"messages of population {population}, sample 0, step 4, neuron 2{said}\n"
    assert f"first difference: {place}" in done.out
    assert f"  B: message {values[2, 4]}, current not recorded" in done.out
    assert "differing messages: 1\n" in done.out
    assert "spike" not in done.out


def test_populations_with_states_alone_are_compared(nmtool, rasters):
    for name in ("a.h5", "b.h5"):
        assert nmtool(*DEPLOY, "-o", name, "--probe", "voltage:hidden").code == 0
    done = nmtool("compare", "a.h5", "b.h5", "--json")
    assert done.code == 0
    counts = {p["population"]: (p["differing"], p["states"]) for p in done.json["populations"]}
    assert counts == {"hidden": (None, 0), "output": (0, None)}
    changed = formats.load_as("b.h5", Recording)
    changed.voltage["hidden"][1, 4, 7] += 64
    formats.save("b.h5", changed)
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 1
    assert "voltage of population hidden, sample 1, step 7, neuron 4, threshold" in done.out
    assert "A: spike not recorded" in done.out


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


@pytest.mark.parametrize("verb", ["compare", "bisect"])
def test_recordings_of_another_program_than_the_given(nmtool, folder, recorded, verb):
    assert nmtool("compile", "run", "--hw", "loihi2-faulty", "-o", "four.h5").code == 0
    given = ("--input", "spikes.npy") if verb == "bisect" else ()
    done = nmtool(verb, "a.h5", "a.h5", "--program", "four.h5", *given)
    assert done.code == 6, done
    for path in ("run/program.h5", "four.h5"):
        assert formats.load(path).fingerprint in done.err
    done = nmtool(verb, "a.h5", "a.h5", "--program", "run/program.h5", *given)
    assert done.code == 0, done.err


@pytest.mark.parametrize("option", [("--input", "spikes.npy"), ("--data", "digits:test")])
def test_input_for_recordings_is_refused(nmtool, recorded, option):
    done = nmtool("compare", "a.h5", "a.h5", *option)
    assert done.code == 2
    assert f"{option[0]}: found it with a.h5 and a.h5, which are recordings" in done.err


def test_recordings_of_different_samples(nmtool, folder, recorded, rasters):
    np.save(folder / "two.npy", rasters[:2])
    deploy = ("deploy", "run/program.h5", "--hw", "reference", "--input", "two.npy")
    assert nmtool(*deploy, "-o", "b.h5").code == 0
    done = nmtool("compare", "a.h5", "b.h5")
    assert done.code == 6
    assert "found different inputs (SHA-256 a.h5 " in done.err


def test_recordings_of_other_inputs_of_one_shape_are_not_compared(
    nmtool, recorded, rasters, folder
):
    np.save(folder / "other.npy", ~rasters)
    assert nmtool(*DEPLOY[:-1], "other.npy", "-o", "b.h5").code == 0
    given = ("--program", "run/program.h5", "--input")
    for command in (
        ("compare", "a.h5", "b.h5"),
        ("compare", "a.h5", "emulator", *given, "other.npy"),
        ("bisect", "a.h5", "b.h5", *given, "spikes.npy"),
        ("bisect", "a.h5", "a.h5", *given, "other.npy"),
    ):
        done = nmtool(*command)
        assert done.code == 6, command
        assert "found different inputs" in done.err
        assert "differing" not in done.out
    digests = {formats.load(name).provenance["input_sha256"] for name in ("a.h5", "b.h5")}
    assert len(digests) == 2


def test_a_recording_that_does_not_tell_its_input_is_compared_with_a_note(nmtool, recorded):
    facts = {k: v for k, v in recorded.provenance.items() if k != "input_sha256"}
    formats.save("old.h5", replace(recorded, provenance=facts))
    done = nmtool("compare", "a.h5", "old.h5")
    assert done.code == 0
    assert "warning: old.h5: of which input is not recorded" in done.err
    assert "not recorded" not in nmtool("compare", "a.h5", "a.h5").err


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
