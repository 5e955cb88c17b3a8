"""The Python examples of the documentation run as they stand, and give what their comments say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(name):
    return BLOCK.findall((ROOT / name).read_text())


@pytest.mark.parametrize(
    "code", blocks("docs/layers.md"), ids=lambda code: code.split("\n")[4][:30]
)
def test_examples_of_the_layers_run(code):
    exec(code, {})


def test_the_scale_of_graded_values_is_as_written():
    (code,) = [code for code in blocks("docs/layers.md") if "1.25 = weight @ image" in code]
    names = {}
    exec(code, names)
    found = names["run"].spikes["out"].to_raster()[0, -1] / 2**18
    assert found == names["weight"][0] @ names["image"] == 1.25
