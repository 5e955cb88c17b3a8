"""The loop on a target: what it writes, resumes and refuses, and whether hidden layers learn."""

from dataclasses import replace

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.chip import load_chip
from nmtool.config import SlayerSurrogate
from nmtool.errors import ArtifactError, BoardError, UnsupportedError
from nmtool.learning.board import Spent
from nmtool.learning.checkpoint import Leg, load_state, save_state
from nmtool.learning.examination import planned_writes
from nmtool.learning.host import HostState
from nmtool.learning.loop import LoopState, Round, last_layer_alone
from nmtool.learning.study import Column, Study, StudyResult
from nmtool.learning.twin import Twin
from nmtool.quantization import check_mantissa


class Stop(Exception):
    """What ends a loop in the middle of it."""


class Watched:
    """A session that keeps every write, and hides populations from the recordings."""

    def __init__(self, session, hidden=(), fail_at=None):
        self._session, self._hidden, self._fail_at = session, hidden, fail_at
        self.writes = []
        self.runs = 0

    @property
    def program(self):
        return self._session.program

    def run(self, *arguments, **keywords):
        self.runs += 1
        if self.runs == self._fail_at:
            raise Stop
        recording = self._session.run(*arguments, **keywords)
        kept = {n: t for n, t in recording.spikes.items() if n not in self._hidden}
        return replace(recording, spikes=kept)

    def write_weights(self, projection, mantissa):
        before = self.program.network.projections[projection].weight_mantissa
        changed = self._session.write_weights(projection, mantissa)
        self.writes.append((projection, mantissa.copy(), int((before != mantissa).sum()), changed))
        return changed


def arrays(state):
    return {
        **{f"shadow/{n}": a for n, a in state.host.shadow.items()},
        **{f"first/{n}": a for n, a in state.host.first.items()},
        **{f"second/{n}": a for n, a in state.host.second.items()},
        **{f"best/{n}": a for n, a in state.best.items()},
        **{f"mask/{n}": a for n, a in state.masks.items()},
    }


def assert_same(one, two):
    assert one.history == two.history
    assert one.host.updates == two.host.updates
    assert (one.best_accuracy, one.best_round) == (two.best_accuracy, two.best_round)
    left, right = arrays(one), arrays(two)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name)


@pytest.fixture
def faulty(study, experiment):
    """On the faulty simulator: dead, stuck and flipped, and spikes lost anew in every run."""
    settings = {"hidden": 16, "steps": 8, "rounds": 3, "readout_rounds": 1, "hidden_lr": 1e-3}
    return study(experiment(**settings))


def test_a_loop_from_any_round_ends_as_if_never_interrupted(faulty, tmp_path):
    with faulty.open() as session:
        whole = faulty.loop(session)
        best = whole.run()
        accuracy = whole.accuracy("test")
    assert len(whole.state.history) == 4
    assert any(r.written for r in whole.state.history)
    for stop in range(1, 5):
        path = tmp_path / f"{stop}.h5"

        def save(state, path=path, stop=stop):
            save_state(path, state, "key")
            if len(state.history) == stop:
                raise Stop

        with faulty.open() as session, pytest.raises(Stop):
            faulty.loop(session, on_round=save).run()
        state = load_state(path, "key")
        assert len(state.history) == stop
        with faulty.open(state.spent.runs) as session:
            loop = faulty.loop(session, state=state)
            again = loop.run()
            assert loop.accuracy("test") == accuracy
        assert again.fingerprint == best.fingerprint
        assert_same(whole.state, state)
        assert whole.state.spent.runs == state.spent.runs


def test_a_loop_cut_within_a_round_repeats_that_round(faulty, tmp_path):
    path = tmp_path / "state.h5"
    with faulty.open() as session:
        whole = faulty.loop(session)
        best = whole.run()
    cut = {"fail_at": whole.state.spent.runs // 2}
    with faulty.open() as session, pytest.raises(Stop):
        faulty.loop(Watched(session, **cut), on_round=lambda s: save_state(path, s, "key")).run()
    state = load_state(path, "key")
    assert 0 < len(state.history) < 4
    with faulty.open(state.spent.runs) as session:
        assert faulty.loop(session, state=state).run().fingerprint == best.fingerprint
    assert_same(whole.state, state)
    assert whole.state.spent.runs == state.spent.runs


def test_transient_faults_are_drawn_by_the_number_of_the_run(faulty):
    """Without first_run a resumed loop would see the first runs' losses again."""

    def measure(loop):
        return loop._measure(loop._validation).measured["output"].spikes

    with faulty.open() as session:
        loop = faulty.loop(session)
        first, second = measure(loop), measure(loop)
    with faulty.open(1) as session:
        resumed = measure(faulty.loop(session))
    assert (first != second).any()
    np.testing.assert_array_equal(second, resumed)


def test_a_checkpoint_of_another_loop_is_refused(faulty, tmp_path):
    path = tmp_path / "state.h5"
    save_state(path, LoopState.start(faulty.program, faulty.shadow), "one")
    with pytest.raises(ArtifactError, match="another loop or other settings"):
        load_state(path, "two")
    with pytest.raises(ArtifactError, match="no such file"):
        load_state(tmp_path / "none.h5", "one")


def test_a_checkpoint_keeps_every_bit(faulty, tmp_path):
    with faulty.open() as session:
        loop = faulty.loop(session)
        loop.run()
    save_state(tmp_path / "s.h5", loop.state, "key")
    state = load_state(tmp_path / "s.h5", "key")
    assert_same(loop.state, state)
    assert state.spent == loop.state.spent


def test_only_changed_weights_are_written_and_all_fit_the_frozen_format(faulty):
    with faulty.open() as session:
        watched = Watched(session)
        loop = faulty.loop(watched)
        loop.run()
    formats = {n: p.format for n, p in faulty.program.network.projections.items()}
    assert {name for name, *_ in watched.writes} == {"hidden", "output"}
    for name, mantissa, different, changed in watched.writes:
        check_mantissa(name, mantissa, formats[name])
        assert changed == different
    assert all(changed for *_, changed in watched.writes), "nothing is written in vain"
    learned = sum(r.written for r in loop.state.history)
    assert 0 < learned <= loop.state.spent.writes == sum(changed for *_, changed in watched.writes)
    for name, projection in loop.session.program.network.projections.items():
        assert projection.format == formats[name]


def test_weights_stay_in_the_format_however_fast_they_learn(study, experiment):
    wild = study(experiment(hidden=8, steps=6, rounds=1, readout_rounds=0, lr=5.0, hidden_lr=5.0))
    with wild.open() as session:
        watched = Watched(session)
        loop = wild.loop(watched)
        loop.run()
    for name, projection in wild.program.network.projections.items():
        unit = 2.0**projection.format.exponent / 64
        shadow = loop.state.host.shadow[name]
        assert shadow.min() >= projection.format.minimum * unit
        assert shadow.max() <= projection.format.maximum * unit
        for written in (m for n, m, *_ in watched.writes if n == name):
            check_mantissa(name, written, projection.format)


def test_readout_only_never_touches_hidden_weights(faulty):
    with faulty.open() as session:
        watched = Watched(session)
        loop = faulty.loop(watched, "readout")
        best = loop.run()
    before = faulty.program.network.projections
    after = best.network.projections
    np.testing.assert_array_equal(after["hidden"].weight_mantissa, before["hidden"].weight_mantissa)
    assert (after["output"].weight_mantissa != before["output"].weight_mantissa).any()
    assert all(changed == 0 for name, *_, changed in watched.writes if name == "hidden")
    np.testing.assert_array_equal(loop.state.host.shadow["hidden"], faulty.shadow["hidden"])
    assert loop.state.host.updates["hidden"] == 0


def test_hidden_layers_wait_for_the_readout(faulty):
    seen = []
    with faulty.open() as session:

        def look(state):
            seen.append(dict(state.host.updates))

        faulty.loop(session, on_round=look).run()
    per_round = seen[1]["output"]
    assert [s["output"] for s in seen] == [0, per_round, 2 * per_round, 3 * per_round]
    assert [s["hidden"] for s in seen] == [0, 0, per_round, 2 * per_round]


def test_the_best_round_by_validation_is_what_is_left_on_the_target(faulty, monkeypatch):
    from nmtool.learning import loop as module

    scripted = iter((0.2, 0.6, 0.4, 0.5))
    monkeypatch.setattr(module._Split, "accuracy", lambda *_: next(scripted))
    after = []
    with faulty.open() as session:
        loop = faulty.loop(session, on_round=lambda _: after.append(session.program.fingerprint))
        best = loop.run()
        assert session.program.fingerprint == best.fingerprint
    assert (loop.state.best_accuracy, loop.state.best_round) == (0.6, 1)
    assert len(set(after)) == 4
    assert best.fingerprint == after[1]


def test_the_test_set_has_no_part_in_learning(faulty, monkeypatch):
    """Learning asks for the training and the validation samples, and for nothing else."""
    from nmtool.learning import loop as module

    plain, asked = module.load_split, []

    def load(data, split):
        asked.append(split)
        return plain(data, split)

    monkeypatch.setattr(module, "load_split", load)
    with faulty.open() as session:
        faulty.loop(session).run()
    assert set(asked) == {"train", "validation"}


def test_missing_outputs_are_refused_and_not_taken_for_silence(faulty):
    with faulty.open() as session:
        watched = Watched(session, hidden=("output",))
        with pytest.raises(BoardError, match="no spikes of output"):
            faulty.loop(watched).run()
        assert watched.runs == 1, "found out before anything is learned"


def test_a_missing_hidden_population_is_the_models_and_the_report_says_so(faulty):
    with open_session(faulty.program, faulty.hardware.with_faults()) as session:
        loop = faulty.loop(Watched(session, hidden=("hidden",)))
        loop.run()
    assert {r.probed for r in loop.state.history} == {20 / 36}


def test_suspects_are_masked_and_counted(study, experiment):
    chosen = study(
        experiment(hidden=40, steps=16, rounds=1, diagnosis=True),
        "loihi2-faulty",
        ["faults.spike_loss=0", "faults.weight_bit_flips=0", "faults.dead_neurons=0"],
    )
    with chosen.open() as session:
        loop = chosen.loop(session)
        loop.run()
        measured = loop._measure(loop._validation).measured
        stuck = measured["hidden"].spikes.all(axis=(0, 2))
    assert stuck.sum() == 2
    assert not loop.state.masks["hidden"][stuck].any()
    assert loop.state.history[-1].suspects["hidden"][1] == 2


@pytest.mark.parametrize("seed", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_hidden_layers_really_learn(study, experiment, record_property, seed):
    """Random hidden weights: with the local rule the same readout gets further.

    Measured on validation: 75 and 78 % for the readout alone, 86 and 87 % with hidden weights;
    on test 72 and 75 %, 86 and 88 % (seeds 5 and 6).
    """
    settings = {"hidden": 24, "steps": 16, "validation": 300, "test": 300, "rounds": 6}
    rates = {"readout_rounds": 0, "lr": 1e-2, "hidden_lr": 5e-3}
    made = experiment(**settings, **rates).model_copy(update={"seed": seed})
    chosen = study(made, "reference")
    reached = {}
    for layers in ("readout", "all"):
        with chosen.open() as session:
            loop = chosen.loop(session, layers)
            loop.run()
            reached[layers] = (loop.state.best_accuracy, loop.accuracy("test"))
    print(f"seed {seed}: (validation, test) {reached}")
    record_property(f"seed {seed}", str(reached))
    gains = [a - b for a, b in zip(reached["all"], reached["readout"], strict=True)]
    assert min(gains) > 0.06


def test_a_whole_study(faulty, tmp_path):
    config = faulty.experiment.finetune.model_copy(update={"rounds": 1, "seeds": 2})
    experiment = faulty.experiment.model_copy(update={"finetune": config})
    healthy = faulty.hardware.with_faults()

    def study(folder):
        return Study(
            experiment, faulty.program, faulty.shadow, faulty.hardware, healthy, tmp_path / folder
        )

    result = study("a").run()
    names = ["fault_free", "transfer", "simulation", "readout", "loop"]
    assert [*result.columns] == names
    assert all(len(c.seeds) == 2 for c in result.columns.values())
    assert result.columns["fault_free"].std == 0
    for name in ("simulation", "readout-seed7", "readout-seed8", "loop-seed7", "loop-seed8"):
        assert (tmp_path / "a" / name / "program.h5").is_file()
        assert len(result.rounds[name]) == 2
    (tmp_path / "a/loop-seed8/state.h5").unlink()
    assert study("a").run() == result


def test_columns():
    assert Column.of([0.5]).std is None
    column = Column.of([0.5, 0.7])
    assert column.mean == pytest.approx(0.6)
    assert column.std == pytest.approx(0.02**0.5)


def test_a_delay_for_each_synapse_is_refused(faulty):
    network = faulty.program.network
    hidden = replace(network.projections["hidden"], delay=np.ones((16, 64), np.int64))
    delayed = replace(network, projections={**network.projections, "hidden": hidden})
    with pytest.raises(UnsupportedError, match="projection hidden: found a delay for each synapse"):
        Twin(replace(faulty.program, network=delayed), load_chip("loihi2"), SlayerSurrogate())


def test_adam_is_torchs_adam():
    torch = pytest.importorskip("torch")
    from nmtool.learning.host import _adam

    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    state = HostState.start({"w": start})
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    for _ in range(20):
        gradient = rng.normal(size=(3, 4))
        _adam(state, "w", gradient, 0.01)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(state.shadow["w"], parameter.detach().numpy(), rtol=1e-12)


def test_steps_that_were_not_recorded_are_unknown(faulty):
    target = faulty.hardware.with_faults(injected=[{"kind": "truncated", "steps": 5}])
    with open_session(faulty.program, target) as session:
        loop = faulty.loop(session)
        loop.run()
    assert {r.probed for r in loop.state.history} == {5 / 8}


def test_late_recordings_are_aligned_before_anything_is_learned(faulty, tmp_path):
    """A loop learns from them what it learns from those on time, but for the last step."""
    late = {"kind": "output_offset", "by": 1}
    target = faulty.hardware.with_faults(injected=[late])
    with open_session(faulty.program, target) as session:
        loop = faulty.loop(session, on_round=lambda s: save_state(tmp_path / "s.h5", s, "key"))
        loop.run()
    assert loop.state.offsets == {"hidden": 1, "output": 1}
    assert {r.probed for r in loop.state.history} == {7 / 8}
    assert load_state(tmp_path / "s.h5", "key").offsets == loop.state.offsets


@pytest.mark.parametrize(
    ("settings", "rounds", "says"),
    [
        ({}, 2, None),
        ({}, 1, "after 1 rounds"),
        ({"rule": "readout"}, 9, "finetune.rule readout"),
        ({"rates": {"hidden": 0.0}}, 9, "finetune.rates"),
        ({"rates": {"output": 0.0}}, 2, None),
    ],
)
def test_why_no_hidden_layer_learns(study, experiment, settings, rounds, says):
    made = study(experiment(hidden=8, steps=6, **settings))
    found = last_layer_alone(made.experiment, made.program, rounds)
    assert found is None if says is None else says in found


def test_the_best_round_is_the_last_of_the_best(faulty):
    rounds = [Round(k, a, None, 0, {}) for k, a in enumerate([0.5, 0.7, 0.7, 0.6])]
    column = Column.of_legs([Leg(0.6, Spent())], [rounds])
    assert column.kept == (2,)
    for readout_rounds, dropped in ((1, False), (2, True)):
        result = StudyResult({"loop": column}, {}, readout_rounds=readout_rounds)
        assert result.hidden_dropped is dropped


def test_a_target_is_examined_once_for_all_columns(study, experiment, tmp_path, monkeypatch):
    from nmtool.learning import study as module

    settings = {"hidden": 16, "steps": 8, "rounds": 1, "diagnosis": True}
    quiet = ["faults.spike_loss=0", "faults.weight_bit_flips=0"]
    chosen = study(experiment(**settings), "loihi2-faulty", quiet)
    plain, asked = module.examine, []

    def examine(*arguments):
        asked.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(module, "examine", examine)
    healthy = chosen.hardware.with_faults()

    def result():
        parts = (chosen.experiment, chosen.program, chosen.shadow, chosen.hardware, healthy)
        return Study(*parts, tmp_path).run()

    first = result()
    assert len(asked) == 1
    planned = planned_writes(chosen.program, chosen.experiment.seed, True)
    assert first.as_json()["spent"]["examination"]["writes"] == planned > 0
    assert planned_writes(chosen.program, chosen.experiment.seed, False) == 0
    assert first.alike
    assert "the loop is the control readout" in first.verdict.text
    assert first.columns["loop"].seeds == first.columns["readout"].seeds
    findings = first.as_json()["diagnosis"]["7"]["findings"]
    assert {"dead", "stuck"} <= {finding["kind"] for finding in findings}
    suspects = first.targets[7].suspects
    assert sum(map(sum, suspects.values())) > 0
    for leg in ("readout-seed7", "loop-seed7"):
        assert all(entry.suspects == suspects for entry in first.rounds[leg])
    assert all(not entry.suspects for entry in first.rounds["simulation"])
    assert result() == first
    assert len(asked) == 1, "what is known is not asked again"
    path = tmp_path / "examination-seed7" / "leg.json"
    path.write_text(path.read_text().replace("nmtool.examination/v1", "other"))
    with pytest.raises(ArtifactError, match="belongs to another study"):
        result()
    path.write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        result()
