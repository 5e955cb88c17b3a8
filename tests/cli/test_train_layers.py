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
    refused = nmtool("finetune", "own", "--hw", "emulator")
    assert refused.code == 4
    assert "dcll" in refused.err


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
