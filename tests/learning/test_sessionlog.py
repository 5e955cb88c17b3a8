"""Logs of what a target answered: replayed to the same bits, refused where anything differs."""

import numpy as np
import pytest

import nmtool
from nmtool.backends import open_session
from nmtool.backends.emulator import EmulatorBackend
from nmtool.backends.replay import (
    Marked,
    NoLog,
    Opened,
    Player,
    Ran,
    Recorder,
    RecordingSession,
    ReplayBackend,
    Wrote,
)
from nmtool.data import load_split, spikes_of
from nmtool.errors import ArtifactError, ConfigError, UnsupportedError, UsageError
from nmtool.formats import load, save
from nmtool.formats.sessionlog import LogFile, about, find_target, part_of, read_log
from nmtool.learning.study import Study
from nmtool.measure import predict
from nmtool.spikes import SpikeTrain

SIZES = {"hidden": 8, "steps": 6, "validation": 30, "test": 1700, "batch": 32}
PLAN = {"rounds": 2, "readout_rounds": 1, "hidden_lr": 1e-3, "controls": ["transfer", "readout"]}


class Stop(Exception):
    """What ends a study in the middle of it."""


class Stopping:
    """A log that ends its study after so many runs."""

    def __init__(self, log, runs):
        self._log, self._runs = log, runs
        self.begin, self.mark, self.skip = log.begin, log.mark, log.skip

    def watch(self, session):
        watched = self._log.watch(session)
        plain = watched.run

        def run(*arguments, **keywords):
            self._runs -= 1
            if self._runs < 0:
                raise Stop
            return plain(*arguments, **keywords)

        watched.run = run
        return watched


@pytest.fixture(scope="module")
def small(study, experiment):
    """A study of a few milliseconds on a target that loses spikes anew in every run."""
    return study(experiment(**SIZES, **PLAN), overrides=["faults.spike_loss=0.05"])


def made(case, folder, log=None, hardware=None, **finetune):
    config = case.experiment.finetune.model_copy(update=finetune)
    experiment = case.experiment.model_copy(update={"finetune": config})
    target = hardware or case.hardware
    healthy = case.hardware.with_faults()
    return Study(experiment, case.program, case.shadow, target, healthy, folder, log=log or NoLog())


@pytest.fixture(scope="module")
def recorded(small, tmp_path_factory):
    """A whole study and its log."""
    folder = tmp_path_factory.mktemp("recorded")
    file = LogFile(folder / "log.h5", about(small.hardware))
    result = made(small, folder / "a", Recorder(file)).run()
    file.finish()
    return folder, result


def replayed(case, path, folder, **finetune):
    target = find_target(f"replay:{path}")
    return made(case, folder, target.player, target, **finetune).run()


def document(result):
    return {name: part for name, part in result.as_json().items() if name != "timing"}


def test_a_log_replayed_gives_the_same_report_and_weights(small, recorded, tmp_path, monkeypatch):
    folder, result = recorded
    plain, opened = EmulatorBackend.open, []

    def open_(self, program):
        opened.append(self.faults)
        return plain(self, program)

    monkeypatch.setattr(EmulatorBackend, "open", open_)
    again = replayed(small, folder / "log.h5", tmp_path)
    assert again == result
    assert document(again) == document(result), "board time too"
    assert result.columns["loop"].spent.seconds > 0
    assert set(opened) == {None}, "nothing but the healthy simulator ran"
    for leg in ("readout-seed7", "loop-seed7"):
        one, two = (load(f / leg / "program.h5") for f in (folder / "a", tmp_path))
        assert one.fingerprint == two.fingerprint != small.program.fingerprint


def test_a_log_names_its_target_and_all_that_happened(small, recorded):
    told, events = read_log(recorded[0] / "log.h5")
    assert told["target"]["name"] == "loihi2-faulty"
    assert told["target"]["faults"]["spike_loss"] == 0.05
    assert told["provenance"]["versions"]["numpy"]
    opened = [event for event in events if isinstance(event, Opened)]
    legs = ["transfer-seed7", "examination-seed7", "readout-seed7", "loop-seed7"]
    assert [e.leg for e in opened] == legs
    assert {e.latency for e in opened} == {small.program.latency}
    assert [e.round for e in events if isinstance(e, Marked)] == [0, 1, 2, 0, 1, 2]
    runs = [event for event in events if isinstance(event, Ran)]
    batches = -(-(1797 - SIZES["test"] - SIZES["validation"]) // SIZES["batch"])
    assert _runs_between_marks(events) == [batches + 1] * 4
    assert {e.projection for e in events if isinstance(e, Wrote)} == {"hidden", "output"}
    answer = runs[-1].answer()
    assert set(answer.spikes) == {"hidden", "output"}
    assert answer.provenance["faults"]["label"] == "simulator with invented defects, not a chip"
    assert answer.provenance["input_sha256"] == runs[-1].input_sha256


def _runs_between_marks(events):
    """Runs of every round but round 0."""
    counts, count = [], 0
    for event in events:
        count += isinstance(event, Ran)
        if isinstance(event, Marked):
            counts += [count] * (event.round > 0)
            count = 0
    return counts


def test_a_log_is_smaller_than_its_recordings(recorded, tmp_path):
    _, events = read_log(recorded[0] / "log.h5")
    runs = [event.answer() for event in events if isinstance(event, Ran)]
    for index, run in enumerate(runs):
        save(tmp_path / f"{index}.h5", run)
    alone = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (recorded[0] / "log.h5").stat().st_size < alone / 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"lr": 0.05},
            r"readout-seed7, after run \d+ and write \d+: the weights of output have the SHA-256",
        ),
        ({"batch": 16}, r"readout-seed7, after run \d+ .*the input of SHA-256"),
        ({"rounds": 3}, "asked for a write of output|the weights of output have the SHA-256"),
        (
            {"seeds": 2},
            "found no transfer-seed8, allowed transfer-seed7, examination-seed7, readout-seed7",
        ),
        ({"controls": ["transfer", "simulation"]}, "found no simulation-on-seed7"),
    ],
)
def test_another_loop_is_refused(small, recorded, tmp_path, change, says):
    with pytest.raises(ArtifactError, match=says) as caught:
        replayed(small, recorded[0] / "log.h5", tmp_path, **change)
    assert "log.h5" in str(caught.value)


def test_fewer_columns_can_be_replayed(small, recorded, tmp_path):
    result = replayed(small, recorded[0] / "log.h5", tmp_path, controls=["transfer"])
    assert [*result.columns] == ["fault_free", "transfer", "loop"]
    assert result.columns["loop"] == recorded[1].columns["loop"]


@pytest.mark.parametrize("runs", [0, 4, 9, 18])
def test_an_interrupted_log_goes_on_as_if_it_had_not_been(small, recorded, tmp_path, runs):
    """Ends after any run: in a measurement, in a round, between the last round and the test."""
    path = tmp_path / "log.h5"
    log = Stopping(Recorder(LogFile(path, about(small.hardware))), runs)
    with pytest.raises(Stop):
        made(small, tmp_path / "a", log).run()
    assert not path.exists()
    file = LogFile(path, about(small.hardware), resume=True)
    result = made(small, tmp_path / "a", Recorder(file)).run()
    file.finish()
    assert result == recorded[1]
    assert not part_of(path).exists()
    assert told(path) == told(recorded[0] / "log.h5")
    assert replayed(small, path, tmp_path / "b") == result


def told(path):
    """What was sent, in order."""
    return [(e.fingerprint, e.input_sha256) if isinstance(e, Ran) else e for e in read_log(path)[1]]


@pytest.mark.parametrize("runs", [4, 18])
def test_a_replay_can_be_interrupted_too(small, recorded, tmp_path, runs):
    path = recorded[0] / "log.h5"
    target = find_target(f"replay:{path}")
    with pytest.raises(Stop):
        made(small, tmp_path, Stopping(target.player, runs), target).run()
    assert replayed(small, path, tmp_path) == recorded[1]


def test_a_journal_cut_anywhere_keeps_what_was_complete(small, recorded, tmp_path):
    file = LogFile(tmp_path / "log.h5", about(small.hardware))
    made(small, tmp_path / "a", Recorder(file), rounds=1, controls=["transfer"]).run()
    content = part_of(file.path).read_bytes()
    whole = told(part_of(file.path))
    seen = set()
    for end in np.linspace(file._ends[0], len(content), 40).astype(int):
        (tmp_path / "cut").write_bytes(content[:end])
        events = told(tmp_path / "cut")
        assert events == whole[: len(events)]
        seen.add(len(events))
    assert {0, len(whole)} < seen
    damaged = bytearray(content)
    damaged[file._ends[2] + 60] ^= 1
    (tmp_path / "cut").write_bytes(damaged)
    with pytest.raises(ArtifactError, match="checksum"):
        read_log(tmp_path / "cut")


def test_a_log_that_is_not_whole_is_named(small, tmp_path):
    LogFile(tmp_path / "log.h5", about(small.hardware))
    with pytest.raises(ArtifactError, match=r"was not finished, what there is of it is .*\.part"):
        find_target(f"replay:{tmp_path}/log.h5")
    assert find_target(f"replay:{tmp_path}/log.h5.part").name == "loihi2-faulty"


def test_a_log_of_another_target_is_not_gone_on_with(small, tmp_path):
    LogFile(tmp_path / "log.h5", about(small.hardware))
    other = small.hardware.with_faults(seed=9)
    with pytest.raises(ArtifactError, match="another target"):
        LogFile(tmp_path / "log.h5", about(other), resume=True)


def test_a_leg_without_its_beginning_is_not_kept(small, tmp_path):
    recorder = Recorder(LogFile(tmp_path / "log.h5", about(small.hardware)))
    with pytest.raises(ArtifactError, match="found no loop-seed7, which goes on from round 1"):
        recorder.begin("loop-seed7", 1)


def test_a_log_that_begins_in_the_middle_is_not_begun(small, tmp_path):
    log = Stopping(NoLog(), 4)
    with pytest.raises(Stop):
        made(small, tmp_path / "a", log).run()
    file = LogFile(tmp_path / "log.h5", about(small.hardware), resume=True)
    with pytest.raises(ArtifactError, match="found no transfer-seed7, which is finished already"):
        made(small, tmp_path / "a", Recorder(file)).run()


def test_a_leg_before_another_is_not_kept_again(small, tmp_path):
    recorder = Recorder(LogFile(tmp_path / "log.h5", about(small.hardware)))
    for leg in ("one", "two"):
        recorder.begin(leg)
        recorder.watch(small.open()).close()
    with pytest.raises(ArtifactError, match="found two after one, which is to run again"):
        recorder.begin("one")
    recorder.begin("two")


def test_the_target_of_a_log_is_as_it_was(recorded):
    with pytest.raises(UsageError, match=r"allowed hw\.chip=FILE"):
        find_target(f"replay:{recorded[0]}/log.h5", ["faults.seed=8"])
    assert find_target(f"replay:{recorded[0]}/log.h5", ["chip=loihi1"]).chip == "loihi1"
    with pytest.raises(ConfigError, match="nowhere"):
        find_target(f"replay:{recorded[0]}/log.h5", ["chip=nowhere"])


def test_python_opens_a_log(small, recorded):
    data = small.experiment.data
    samples = load_split(data, "test")
    with nmtool.open(small.program, f"replay:{recorded[0]}/log.h5") as session:
        found = session.run(spikes_of(samples, data))
    classes = predict(found.spikes["output"], small.experiment.network.readout)
    assert [float(np.mean(classes == samples.labels))] == recorded[1].columns["transfer"].seeds


@pytest.fixture
def session(small):
    """A session that answers from what another one has kept, and what was sent to that."""
    events, rng = [Opened("", small.program.fingerprint, 2)], np.random.default_rng(0)
    inputs = SpikeTrain.from_raster(rng.random((3, 64, 6)) < 0.3)
    weights = small.program.network.projections["output"].weight_mantissa
    other = np.where(weights == weights.max(), weights.min(), weights)
    with RecordingSession(open_session(small.program, small.hardware), events.append) as kept:
        answers = [kept.run(inputs, probe="spikes,voltage:output")]
        assert kept.write_weights("output", weights) == 0
        kept.write_weights("output", other)
        answers.append(kept.run(inputs))
        with pytest.raises(UnsupportedError, match="--record: found a stream"):
            kept.stream(inputs)
    return ReplayBackend(Player("log", events)).open(small.program), inputs, other, answers


def test_a_session_answers_in_order(session):
    replay, inputs, other, answers = session
    first = replay.run(inputs, probe="spikes,voltage:output")
    np.testing.assert_array_equal(first.voltage["output"], answers[0].voltage["output"])
    assert replay.write_weights("output", other) > 0
    assert replay.write_weights("output", other) == 0
    assert replay.run(inputs).spikes == answers[1].spikes
    with pytest.raises(ArtifactError, match="after run 2 and write 1: found the end of the log"):
        replay.run(inputs)
    with pytest.raises(UnsupportedError, match="replay: found a stream"):
        replay.stream(inputs)


def test_less_may_be_asked_for_but_not_more(session):
    replay, inputs, other, _ = session
    with pytest.raises(ArtifactError, match=r"found the probe current:output, allowed .*voltage:o"):
        replay.run(inputs, probe="spikes,current:output")
    replay.write_weights("output", other)
    assert [*replay.run(inputs, probe="spikes:output").spikes] == ["output"]


def test_less_is_given_where_less_is_asked_for(session):
    replay, inputs, *_ = session
    found = replay.run(inputs, probe="spikes:output")
    assert ([*found.spikes], [*found.voltage]) == (["output"], [])


def test_other_input_and_weights_are_refused(session):
    replay, _, other, _ = session
    more = SpikeTrain.from_raster(np.ones((3, 64, 6), bool))
    with pytest.raises(ArtifactError, match="log: , after run 0 and write 0: the run has the inp"):
        replay.run(more, probe="spikes")
    with pytest.raises(ArtifactError, match="the weights of output have the SHA-256: recorded"):
        replay.write_weights("output", np.where(other == other.max(), 0, other))


def test_a_write_where_a_run_was_is_refused(session):
    replay, _, other, _ = session
    with pytest.raises(ArtifactError, match="found a run, asked for a write of output"):
        replay.write_weights("output", other)
