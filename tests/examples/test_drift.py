"""What examples/in_the_loop/drift.py makes of its measurements."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples" / "in_the_loop" / "drift.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("drift_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def rows(script):
    """Two seeds: adapting keeps 0.7, the frozen network 0.5; without drift both have 0.9."""
    counts = {"frozen": (0, 0), "every sample": (100, 900), "large errors": (30, 600)}
    return [
        script.Row(task.title, drifts, name, seed, last, last, *counts[name], [last] * 20)
        for task in script.TASKS
        for drifts in (True, False)
        for name in script.NETWORKS
        for seed in (1, 2)
        for last in [0.9 if not drifts else 0.5 if name == "frozen" else 0.7]
    ]


def test_the_claims_hold_of_a_network_that_adapts(script, rows):
    found = script.claims(rows)
    assert len(found) == 5 * len(script.TASKS)
    assert all(found.values())


@pytest.mark.parametrize(
    ("drifts", "change", "broken"),
    [
        (True, {"last": 0.55}, "by 10 points"),
        (True, {"last": 0.45}, "every seed"),
        (True, {"updates": 60}, "half of the updates"),
        (True, {"writes": 900}, "writes"),
        (False, {"accuracy": 0.87}, "without drift"),
    ],
)
def test_each_claim_can_fail(script, rows, drifts, change, broken):
    worse = [
        replace(row, **change) if (row.drifts, row.network) == (drifts, "large errors") else row
        for row in rows
    ]
    failed = [text for text, holds in script.claims(worse).items() if not holds]
    assert len([text for text in failed if broken in text]) == len(script.TASKS)


def test_the_table_and_the_figure_are_made(script, rows, tmp_path):
    assert len(script.table(rows).splitlines()) == 1 + 2 * len(script.NETWORKS) * len(script.TASKS)
    script.draw(rows, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 1000


def test_the_settings_of_every_task_are_those_of_its_experiment(script):
    for task in script.TASKS:
        found = script._experiment(task, 1, {"drift": task.drift})
        assert found.seed == 1
        assert found.finetune.stream.drift is not None
