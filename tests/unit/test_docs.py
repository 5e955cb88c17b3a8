"""The Python examples of the documentation run as they stand, and give what their comments say."""

import re
from pathlib import Path

import limits_tables
import pytest

from nmtool.chip import load_chip

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


def test_the_tables_of_rules_and_limits_are_those_of_the_code():
    page = limits_tables.PAGE.read_text()
    assert page == limits_tables.filled(page), "run PYTHONPATH=. python tests/unit/limits_tables.py"


def test_the_chip_file_of_the_documentation_loads(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", limits_tables.PAGE.read_text(), re.DOTALL)
    (tmp_path / "my-chip.yaml").write_text(text)
    chip = load_chip(str(tmp_path / "my-chip.yaml"))
    assert (chip.name, chip.cores, chip.neurons_per_core) == ("my-chip", 100, 2048)
    assert chip.standing("cores") == "documented: my-chip.yaml"
    assert chip.standing("output_axons_per_core") == "inferred: our compiler's log"
