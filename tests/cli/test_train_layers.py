"""Convolutional and recurrent networks from an experiment file to a deployed program."""

import pytest

from nmtool.training import require_torch

try:
    require_torch()
except Exception as error:
    pytest.skip(str(error), allow_module_level=True)

LAYERS = {
    "convolutional": """
    - {conv: 4, kernel: 3, padding: 1, name: edges}
    - {pool: 2}
    - {conv: 6, kernel: 3, name: parts, delay: 1}
    - {pool: 2, weight: 1.1, name: pooled}
    - {dense: 20, name: output}
""",
    "recurrent": """
    - {recurrent: 16, name: hidden, delay: 1}
    - {dense: 20, name: output}
""",
}


def with_layers(folder, layers):
    text = (folder / "experiment.yaml").read_text()
    text = text.replace("test: 1600, validation: 60", "test: 60, validation: 1500")
    start, end = text.index("  layers:"), text.index("  readout:")
    path = folder / "own.yaml"
    path.write_text(text[:start] + "  layers:" + layers + text[end:])
    return path


@pytest.mark.parametrize("kind", [*LAYERS])
def test_the_trained_spikes_are_the_deployed_ones(nmtool, folder, kind):
    experiment = with_layers(folder, LAYERS[kind])
    assert nmtool("config", "check", experiment).code == 0
    trained = nmtool("train", experiment, "-o", "own", "--json")
    assert trained.code == 0, trained.err
    assert nmtool("compile", "own", "--hw", "reference").code == 0
    for one, other in (("trainer:own", "reference"), ("reference", "emulator")):
        done = nmtool("compare", one, other, "--program", "own/program.h5", "--json")
        assert done.code == 0, done.out + done.err
        assert done.json["differing_spikes"] == 0
    assert nmtool("deploy", "own/program.h5", "--hw", "emulator").code == 0
    short = ("-s", "finetune.rounds=1", "-s", "finetune.controls=[]")
    learned = nmtool("finetune", "own", "--hw", "emulator", *short, "--json")
    assert learned.code == 0, learned.err
    (rounds,) = learned.json["rounds"].values()
    assert [entry["round"] for entry in rounds] == [0, 1]
    assert rounds[-1]["written"] > 0


@pytest.mark.parametrize("verb", ["train", "config check"])
@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("\n    - {conv: 4, kernel: 9, name: a}\n", r":8:8: network.layers.0.conv: .*windows"),
        (
            "\n    - {pool: 2}\n    - {dense: 3, name: a}\n",
            ":9:8: network.layers.1.dense: found 3",
        ),
        ("\n    - {conv: 4, name: a}\n", ":8:7: network.layers.0: found .*a kernel"),
        ("\n    - {konv: 4, name: a}\n", ":8:8: network.layers.0.konv: .*did you mean conv"),
    ],
)
def test_layers_that_do_not_fit_are_named_with_their_line(nmtool, folder, verb, layers, says):
    import re

    done = nmtool(*verb.split(), with_layers(folder, layers))
    assert done.code == 3
    assert re.search(says, done.err), done.err


REFUSED = {
    "dropout in a loop": (
        "\n    - {recurrent: 16, name: hidden, dropout: 0.5}\n    - {dense: 20, name: output}\n",
        "population hidden: found dropout in a loop",
        4,
    ),
    "a learned delay of the output": (
        "\n    - {dense: 16, name: hidden}\n    - {dense: 20, name: output, learn: [delay]}\n",
        "population output: found a learned delay",
        4,
    ),
    "a delay that the chip cannot hold": (
        "\n    - {dense: 16, name: hidden, learn: [delay], max_delay: 999}\n"
        "    - {dense: 20, name: output}\n",
        "hidden.max_delay: found 999 steps",
        5,
    ),
}


@pytest.mark.parametrize("case", [*REFUSED])
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_recipe_that_is_refused_leaves_nothing_behind(nmtool, folder, case, option):
    layers, says, code = REFUSED[case]
    done = nmtool("train", with_layers(folder, layers), "-o", "refused", *option)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err
    assert not (folder / "refused").exists()


def test_normalisation_dropout_noise_and_another_surrogate_in_one_experiment(nmtool, folder):
    layers = """
    - {dense: 16, name: hidden, dropout: 0.2, batch_norm: true, learn: [voltage_decay, delay],
       max_delay: 3}
    - {dense: 20, name: output, batch_norm: true}
"""
    settings = ("train.weight_norm=true", "train.noise={kind: sigmoid}", "surrogate.kind=arctan")
    options = [part for setting in settings for part in ("-s", setting)]
    trained = nmtool("train", with_layers(folder, layers), "-o", "all", *options, "--json")
    assert trained.code == 0, trained.err
    assert "surrogate: found arctan with escape noise sigmoid" in trained.err
    assert 0 <= trained.json["accuracy"]["stochastic"] <= 1
    assert nmtool("compile", "all", "--hw", "reference").code == 0
    done = nmtool("compare", "trainer:all", "reference", "--program", "all/program.h5", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["differing_spikes"] == 0
