"""The scripts of examples/in_the_loop on tiny settings: what they measure has its shape."""

import importlib
import json
from dataclasses import asdict, replace

import columns
import pytest

from nmtool.errors import UsageError

pytest.importorskip("torch")

COLUMNS = ["fault_free", "transfer", "simulation", "readout", "loop"]
SHORT = ["train.epochs=1", "finetune.rounds=1", "finetune.readout_rounds=0"]
SMALL = {
    "faults": ["data.test=820", "data.validation=820"],
    "delayed_xor": ["data.train=32", "data.validation=16", "data.test=16"],
    "japanese_vowels": ["data.validation=216"],
}


@pytest.fixture(autouse=True)
def one_thread():
    from nmtool.training.model import reproducible

    with reproducible():
        yield


def script(name):
    """A script by the name of its file."""
    return importlib.import_module(name).SCRIPT


def short_rows(name, families, seeds=(0,)):
    return script(name).rows(families, seeds, [*SHORT, *SMALL[name]])


def test_the_table_has_a_row_for_every_family_and_column():
    rows = short_rows("faults", ["late_spikes", "all"], (0, 1))
    assert [(row.family, row.column) for row in rows] == [
        (family, column) for family in ("late_spikes", "all") for column in COLUMNS
    ]
    assert {row.weight_bits for row in rows if row.family == "all"} == {4}
    assert [row.held_out for row in rows] == [True] * 5 + [False] * 5
    for row in rows:
        assert len(row.seeds) == 2
        assert row.mean == pytest.approx(sum(row.seeds) / 2)
        assert all(0 <= value <= 1 for value in row.seeds)
    again = short_rows("faults", ["all"], (1,))
    assert [r.seeds[0] for r in again] == [r.seeds[1] for r in rows if r.family == "all"]


def test_delayed_xor_has_rows_of_the_healthy_target_too():
    rows = short_rows("delayed_xor", [])
    assert [row.family for row in rows] == ["bptt", "dcll", "frozen", *["all"] * 5]


def test_japanese_vowels_has_the_columns():
    rows = short_rows("japanese_vowels", ["bits_8"])
    assert [row.column for row in rows] == COLUMNS


def test_severities_and_what_was_held_out():
    severities = columns.SEVERITIES
    assert not set(severities.tuning) & {*severities.held_out, "all"}
    for name in severities.tuning:
        faults = severities.families[name].faults
        assert faults is not None
        assert not any(getattr(faults, kind) for kind in severities.held_out)
    with pytest.raises(UsageError, match=r"found alll, allowed bits_8"):
        severities.chosen(["alll"])


def some_rows(**changes):
    """Rows that hold what is claimed, but for what is changed."""
    means = {"fault_free": 0.9, "transfer": 0.5, "simulation": 0.5, "readout": 0.8, "loop": 0.85}
    return [columns.Row.of("all", 4, c, [m]) for c, m in {**means, **changes}.items()]


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, 0),
        ({"transfer": 0.81}, 1),
        ({"simulation": 0.81}, 1),
        ({"readout": 0.87}, 1),
    ],
)
def test_claims_of_the_table_can_break(changes, broken):
    claims = script("faults").claims(some_rows(**changes))
    assert list(claims.values()).count(False) == broken


def test_rows_are_printed_and_drawn(tmp_path):
    rows = some_rows()
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["family"] == "all"
    held_out = [replace(row, family="late_spikes", held_out=True) for row in rows]
    text = columns.table([*rows, *held_out])
    assert text.splitlines()[2].startswith("late_spikes *")
    columns.draw([*rows, *held_out], "title", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_dcll_learns_what_a_frozen_hidden_layer_cannot(tmp_path):
    shorter = ["data.delay=8", "finetune.burn_in=16", "data.train=800", "data.test=200"]
    faster = ["finetune.rounds=8", "finetune.lr=8e-3", "finetune.hidden_lr=6e-3"]
    bench = columns.Bench.load("delayed_xor_dcll", tmp_path, [*shorter, *faster])
    assert bench.learned(bench.untrained, "all") >= 0.97
    assert bench.learned(bench.untrained, "readout") <= 0.80
