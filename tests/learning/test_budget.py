"""Budgets of board time and writes: never passed, never half a round, shared by the columns."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends.base import ManagedSession
from nmtool.errors import ArtifactError
from nmtool.learning.board import Spent, busy
from nmtool.learning.budget import UNLIMITED, Budget
from nmtool.learning.checkpoint import load_leg, load_state, save_leg, save_state
from nmtool.learning.loop import LoopState
from nmtool.learning.study import Study
from nmtool.spikes import SpikeTrain

SIZES = {"hidden": 8, "steps": 6, "validation": 30, "test": 1700, "batch": 32}
PLAN = {"rounds": 3, "readout_rounds": 0, "lr": 1e-2, "hidden_lr": 1e-2}
TRAINING = -(-(1797 - SIZES["test"] - SIZES["validation"]) // SIZES["batch"])
"""Batches of a round."""
ROUND = TRAINING + 1


class Timed(ManagedSession):
    """A session whose every run takes one second by its own clock."""

    def __init__(self, session):
        self._session, self.program = session, session.program

    def run(self, *arguments, **keywords):
        return replace(self._session.run(*arguments, **keywords), wall_time=1.0)

    def write_weights(self, projection, mantissa):
        changed = self._session.write_weights(projection, mantissa)
        self.program = self._session.program
        return changed

    def close(self):
        self._session.close()


@pytest.fixture(scope="module")
def case(study, experiment):
    return study(experiment(**SIZES, **PLAN))


def looped(case, budget, state=None, **hooks):
    state = state or LoopState.start(case.program, case.shadow)
    with Timed(case.open(state.spent.runs)) as session:
        loop = case.loop(session, state=state, budget=budget, **hooks)
        best = loop.run()
        left = session.program.fingerprint
    return state, best, left


@pytest.fixture(scope="module")
def whole(case):
    return looped(case, UNLIMITED)


@pytest.fixture(scope="module")
def start(case):
    """Seconds of board time before the first round."""
    state, *_ = looped(case, Budget(seconds=0.0))
    assert len(state.history) == 1
    return state.spent.seconds


def test_a_share():
    spent = [Spent(1, 10, 4.0), Spent(2, 0, 2.0)]
    assert Budget(26.0, 110).share(spent, 4) == Budget(5.0, 25)
    assert Budget(3.0, 5).share(spent, 2) == Budget(0.0, 0)
    assert UNLIMITED.share(spent, 2) == UNLIMITED


def test_what_passes():
    assert UNLIMITED.passed(1e9, 10**9) is None
    assert Budget(2.0, 3).passed(2.0, 3) is None
    assert Budget(2.0, None).passed(2.1, 3) == "board_time"
    assert Budget(None, 3).passed(2.1, 4) == "writes"


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("more", [0.0, 1.0, ROUND - 0.5])
def test_board_time_ends_a_loop_before_the_batch_that_would_pass_it(
    case, whole, start, rounds, more
):
    """ROUND seconds for each round."""
    limit = start + rounds * ROUND + more
    state, best, left = looped(case, Budget(seconds=limit))
    assert len(state.history) - 1 == rounds
    assert state.ended == "board_time"
    assert state.spent.seconds <= limit
    assert state.spent.seconds > limit - 2, "no more is left than a batch and the validation"
    assert state.history == whole[0].history[: rounds + 1]
    assert left == best.fingerprint


def test_enough_board_time_changes_nothing(case, whole, start):
    state, best, _ = looped(case, Budget(seconds=start + 3 * ROUND, writes=10**6))
    assert state.ended is None
    assert (state.history, best.fingerprint) == (whole[0].history, whole[1].fingerprint)
    assert state.spent.seconds == start + 3 * ROUND


def test_writes_never_pass_their_limit_not_even_to_bring_back_the_best_round(case, whole):
    total = whole[0].spent.writes
    assert total > 100
    seen = set()
    for limit in np.linspace(1, 3 * total, 9).astype(int):
        state, best, left = looped(case, Budget(writes=int(limit)))
        assert state.spent.writes <= limit
        assert left == best.fingerprint
        done = len(state.history)
        assert state.history == whole[0].history[:done]
        assert (state.ended is None) == (done == 4)
        seen.add(done)
    assert {1, 4} <= seen


def test_a_loop_that_was_ended_goes_on_with_more(case, whole, start, tmp_path):
    path = tmp_path / "state.h5"
    limit = Budget(seconds=start + 1.5 * ROUND)
    ended, *_ = looped(case, limit, on_round=lambda state: save_state(path, state, "k"))
    state = load_state(path, "k")
    assert (state.ended, len(state.history)) == ("board_time", 2)
    taken = (state.spent.runs, state.spent.seconds)
    assert taken == (ended.spent.runs, ended.spent.seconds), "with what the dropped round took"
    name = "output"
    np.testing.assert_array_equal(state.host.shadow[name], ended.host.shadow[name])
    again, *_ = looped(case, UNLIMITED, state=state)
    assert again.ended is None
    assert len(again.history) == 4
    assert again.history[:2] == whole[0].history[:2]


def test_attempts_that_failed_take_board_time(case):
    with case.open() as session:
        loop = case.loop(session)
        recording = session.run(_inputs(loop))
    attempts = [{"seconds": 2.5}, {"seconds": 1.5}]
    failed = replace(recording, wall_time=1.0, provenance={"attempts": attempts})
    assert busy(failed) == 5.0


def _inputs(loop):
    return SpikeTrain.from_raster(loop._validation.raster)


def test_columns_share_what_the_measurements_leave(case, start, tmp_path, monkeypatch):
    from nmtool.learning import study as module

    plain = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *a: Timed(plain(*a)))
    config = case.experiment.finetune.model_copy(
        update={"board_time": 2.0 + 2 * (start + 2 * ROUND)}
    )
    experiment = case.experiment.model_copy(update={"finetune": config})
    healthy = case.hardware.with_faults()

    def study(**changes):
        made = experiment.model_copy(
            update={"finetune": config.model_copy(update=changes)} if changes else {}
        )
        return Study(made, case.program, case.shadow, case.hardware, healthy, tmp_path)

    result = study().run()
    columns = result.columns
    assert columns["simulation"].rounds == (3,), "simulated rounds take nothing"
    assert columns["readout"].rounds == columns["loop"].rounds == (2,)
    assert columns["loop"].ended == columns["readout"].ended == ("board_time",)
    assert columns["fault_free"].spent == Spent()
    assert columns["transfer"].spent == columns["simulation"].spent == Spent(1, 0, 1.0)
    assert columns["loop"].spent.seconds <= start + 2 * ROUND + 1, "and the test"
    assert not result.equal_rounds
    assert set(result.at_equal_rounds()) == {"simulation", "readout", "loop"}
    monkeypatch.setattr(module, "open_session", None)
    assert study().run() == result, "nothing runs again"
    monkeypatch.setattr(module, "open_session", lambda *a: Timed(plain(*a)))
    more = study(board_time=None).run()
    assert more.columns["loop"].rounds == (3,)
    assert more.columns["loop"].ended == ()
    assert more.equal_rounds


LEG_JSON = {
    "schema": "nmtool.leg/v1",
    "key": "k",
    "accuracy": 0.5,
    "spent": {"runs": 1, "writes": 2, "seconds": 0.5},
    "history": [
        {
            "round": 0,
            "validation_accuracy": 0.5,
            "loss": None,
            "written": 0,
            "suspects": {"h": [0, 1]},
            "probed": 1.0,
            "timing": {"board": 0.1, "gradients": 0.0, "rest": 0.2},
        }
    ],
    "ended": "writes",
    "budget": {"seconds": None, "writes": 3},
}


def test_a_finished_leg_is_read_back(tmp_path):
    (tmp_path / "leg.json").write_text(json.dumps(LEG_JSON))
    leg = load_leg(tmp_path / "leg.json", "k")
    assert leg.budget == Budget(None, 3)
    save_leg(tmp_path / "again.json", leg, "k")
    assert load_leg(tmp_path / "again.json", "k") == leg
    with pytest.raises(ArtifactError, match="belongs to another loop"):
        load_leg(tmp_path / "leg.json", "other")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("accuracy", value) for value in (None, "0.5", 2, -1, float("nan"), [0.5])],
        *[("spent", value) for value in ({"runs": "1"}, 3, {"runs": 1, "x": 2})],
        *[("history", value) for value in (3, [3], [{}], {"a": 1})],
        *[("ended", value) for value in ("time", 3)],
        *[("budget", value) for value in (None, {"seconds": "1"}, {"minutes": 1})],
        *[("schema", value) for value in ("nmtool.leg/v2", None)],
        ("surplus", 1),
    ],
)
def test_a_damaged_leg_is_refused(tmp_path, key, value):
    path = tmp_path / "leg.json"
    path.write_text(json.dumps({**LEG_JSON, key: value}))
    with pytest.raises(ArtifactError, match=r"leg\.json"):
        load_leg(path, "k")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\0", '{"schema": 1}'])
def test_a_leg_that_is_none(tmp_path, text):
    (tmp_path / "leg.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"leg\.json"):
        load_leg(tmp_path / "leg.json", "k")
