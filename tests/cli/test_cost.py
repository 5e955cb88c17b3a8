"""nmtool deploy --cost: what a run costs, as tables and as a document."""

import json

import pytest

LOIHI1 = ("-s", "hw.chip=loihi1", "--input", "spikes.npy")


@pytest.fixture
def program(nmtool, folder, rasters):
    """p1.h5, the program of the run folder for Loihi 1, and three samples in spikes.npy."""
    assert nmtool("compile", "run", "--hw", "loihi1", "-o", "p1.h5").code == 0
    return "p1.h5"


def test_counts_energy_and_time_of_loihi_1(nmtool, program, rasters):
    done = nmtool("deploy", program, *LOIHI1, "--cost", "--json")
    assert done.code == 0
    assert "records the spikes, current and voltage of all populations" in done.err
    cost = done.json["cost"]
    counts, modelled = cost["counts"], cost["modelled"]
    assert (counts["basis"], modelled["basis"]) == ("counted", "modelled")
    assert (counts["samples"], counts["steps"], modelled["model"]) == (3, 12, "sana-fe")
    assert counts["projections"][0]["spikes"] == int(rasters.sum())
    assert counts["projections"][0]["operations"] == int(rasters.sum()) * 16
    assert counts["populations"][0]["updates"] == 3 * 12 * 16
    assert counts["populations"][1]["spikes"] == done.json["measured"]["spikes.output"]["value"]
    assert modelled["quantities"]["energy"]["value"] > 0
    assert modelled["quantities"]["time"]["unit"] == "us per sample"
    assert "cost" not in nmtool("deploy", program, *LOIHI1, "--json").json


def test_the_same_for_people(nmtool, program):
    done = nmtool("deploy", program, *LOIHI1, "--cost")
    assert done.code == 0
    for words in (
        "counted over 3 x 12 steps on 2 cores",
        "synaptic_operations",
        "modelled by sana-fe for loihi1",
        "static power is not in the energy",
    ):
        assert words in done.out
    assert "cost" not in nmtool("deploy", program, *LOIHI1).out


def test_a_named_model_is_taken(nmtool, program):
    done = nmtool("deploy", program, *LOIHI1, "--cost-model", "davies2018", "--json")
    modelled = done.json["cost"]["modelled"]
    assert modelled["model"] == "davies2018"
    assert "spike" in modelled["not_in_the_model"]


def test_an_unknown_model_is_refused_before_anything_runs(nmtool, program):
    for dry in ((), ("--dry-run",)):
        done = nmtool("deploy", program, *LOIHI1, "--cost-model", "guess", *dry)
        assert (done.code, done.out) == (3, "")
        assert "guess: unknown, allowed for loihi1: sana-fe, davies2018" in done.err


def test_loihi_2_has_counts_and_no_model(nmtool, folder, rasters):
    given = ("deploy", "run/program.h5", "--input", "spikes.npy")
    done = nmtool(*given, "--cost", "--json")
    assert done.code == 0
    assert "records the spikes of all populations" in done.err
    cost = done.json["cost"]
    assert cost["modelled"] is None
    reason = "no published energy per event for loihi2: give your own measured constants"
    assert cost["no_model"].startswith(reason)
    assert cost["counts"]["totals"]["neuron_active"] is None
    assert cost["counts"]["totals"]["message_in"] > 0
    text = nmtool(*given, "--cost").out
    assert reason in text
    assert "uJ" not in text
    assert "not known" in text
    named = nmtool(*given, "--cost-model", "sana-fe")
    assert named.code == 3
    assert reason in named.err


def test_states_that_are_asked_for_are_counted(nmtool, folder, rasters):
    probe = ("--probe", "spikes,current,voltage", "--input", "spikes.npy", "--json")
    done = nmtool("deploy", "run/program.h5", *probe, "--cost")
    assert done.json["cost"]["counts"]["totals"]["neuron_active"] > 0


def test_measured_constants_in_a_chip_file(nmtool, folder, hardware, rasters):
    (folder / "chip.yaml").write_text(
        "schema: nmtool.chip/v1\nextends: loihi2\nname: ours\ncost_models:\n  ours:\n"
        "    about: our board\n    events:\n"
        "      synapse_dense: {energy_pj: 10, standing: measured, source: our bench}\n"
    )
    target = hardware(chip="chip.yaml")
    assert nmtool("compile", "run", "--hw", target, "-o", "ours.h5").code == 0
    done = nmtool(
        *("deploy", "ours.h5", "--hw", target, "--input", "spikes.npy", "--cost", "--json")
    )
    assert done.code == 0
    cost = done.json["cost"]
    operations = cost["counts"]["totals"]["synapse_dense"]
    modelled = cost["modelled"]
    assert modelled["model"] == "ours"
    assert modelled["quantities"]["energy"]["value"] == pytest.approx(operations * 10 / 3 * 1e-6)
    assert "time" not in modelled["quantities"]
    assert modelled["no_time"]


def test_what_was_recorded_is_in_the_file(nmtool, program, folder):
    assert nmtool("deploy", program, *LOIHI1, "--cost", "-o", "r.h5").code == 0
    same = nmtool("compare", "r.h5", "r.h5", "--program", program, "--json")
    assert [p["population"] for p in json.loads(same.out)["populations"]] == ["hidden", "output"]
    assert all(p["states"] == 0 for p in json.loads(same.out)["populations"])
