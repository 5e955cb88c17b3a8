"""Checkpoints with a valid checksum over hostile content."""

import copy

import numpy as np
import pytest
import regression_networks as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import hostile
from test_containers import write

from nmtool.errors import ArtifactError
from nmtool.formats.container import Container
from nmtool.learning.checkpoint import check_state, load_state
from nmtool.learning.loop import LoopState

PROGRAM = nets.make_program("dense")
SHADOW = {n: np.zeros(p.weight.shape) for n, p in PROGRAM.network.projections.items()}
NAMES = tuple(SHADOW)

LOOP = Container(
    "nmtool.loop/v1",
    {
        "key": "k",
        "updates": dict.fromkeys(NAMES, 3),
        "best_accuracy": 0.5,
        "best_round": 1,
        "spent": {"runs": 4, "writes": 60, "seconds": 1.5},
        "offsets": {"h": 1},
        "suspects": {"h": [1, 0]},
        "diagnosis": {"findings": []},
        "history": [
            {
                "round": 0,
                "validation_accuracy": 0.5,
                "loss": None,
                "written": 0,
                "suspects": {"h": [0, 1]},
            }
        ],
    },
    {
        **{f"{group}/{n}": SHADOW[n] for group in ("shadow", "first", "second") for n in NAMES},
        **{f"best/{n}": np.zeros(SHADOW[n].shape, np.int64) for n in NAMES},
        "masks/h": np.ones(30),
    },
)
TRAINING = Container(
    "nmtool.checkpoint/v1",
    {
        "experiment": "e",
        "updates": 3,
        "best_accuracy": 0.5,
        "best_epoch": 0,
        "history": [
            {
                "epoch": 0,
                "loss": 0.5,
                "validation_accuracy": 0.5,
                "rates": {"h": 0.1},
                "warnings": [],
                "seconds": 1.0,
            }
        ],
    },
    {
        f"{kind}/{n}": SHADOW[n].astype(np.float32)
        for kind in ("weights", "first_moment", "second_moment", "best_weights")
        for n in NAMES
    },
)


def resume_loop(path):
    state = load_state(path, "k")
    check_state(path, state, PROGRAM, LoopState.start(PROGRAM, SHADOW))
    return state


def resume_training(path):
    pytest.importorskip("torch")
    from nmtool.training.checkpoint import load_checkpoint

    return load_checkpoint(path, "e")


KINDS = {"loop": (LOOP, resume_loop), "training": (TRAINING, resume_training)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(st.data())
def test_checkpoints(tmp_path, clean, kind, data):
    container, resume = KINDS[kind]
    path = tmp_path / "a.h5"
    write(path, data.draw(hostile(container)))
    with clean():
        resume(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_checkpoint_is_read(tmp_path, kind):
    container, resume = KINDS[kind]
    write(tmp_path / "a.h5", container)
    assert len(resume(tmp_path / "a.h5").history) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["key", "experiment", "updates", "history", "best_accuracy"])
def test_what_is_missing_is_said(tmp_path, kind, key):
    container, resume = KINDS[kind]
    if key not in container.header:
        pytest.skip("of the other kind")
    header = copy.deepcopy(container.header)
    del header[key]
    write(tmp_path / "a.h5", Container(container.schema, header, container.arrays))
    with pytest.raises(ArtifactError, match=r"a\.h5"):
        resume(tmp_path / "a.h5")
