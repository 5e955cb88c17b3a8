"""nmtool finetune --stream: its files, what it refuses, and what an interrupted one keeps."""

import json
from pathlib import Path

import pytest

from nmtool import formats
from nmtool.compiler import Program

pytest.importorskip("torch")

STREAM = ["finetune", "run", "--hw", "reference", "--stream"]
SHORT = ["-s", "finetune.stream.samples=12", "-s", "finetune.stream.window=5"]


def test_a_stream_writes_its_weights_and_its_report(nmtool, folder):
    done = nmtool(*STREAM, *SHORT, "--drift", "rotate:60", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["stream"]["drift"] == {"kind": "rotate", "to": 60.0}
    assert found["frozen"]["updates"] == 0 < found["adapting"]["updates"]
    assert len(found["adapting"]["correct"]) == found["adapting"]["samples"] == 12
    written = [count for count in found["adapting"]["written"] if count >= 0]
    assert sum(written) == found["adapting"]["writes"] > 0
    there = Path("run/stream/reference")
    assert {p.name for p in there.iterdir()} == {"program.h5", "best.h5", "stream.json"}
    last = formats.load_as(there / "program.h5", Program)
    start = formats.load_as("run/program.h5", Program)
    assert last.fingerprint != start.fingerprint == found["program"]
    refused = nmtool(*STREAM, *SHORT)
    assert refused.code == 2, "nothing is overwritten"
    assert f"--program {there}/program.h5 and another -o, or --force" in refused.err
    before = (there / "program.h5").read_bytes()
    assert nmtool(*STREAM, *SHORT, "--force", "-s", "finetune.burn_in=99").code == 3
    assert (there / "program.h5").read_bytes() == before, "kept until there is another"
    again = nmtool(*STREAM, *SHORT, "--force", "--program", there / "program.h5", "--json")
    assert again.code == 0, again.err
    assert again.json["program"] == last.fingerprint, "goes on from the last weights"


def test_the_table_says_what_came_of_it(nmtool, folder):
    done = nmtool(*STREAM, *SHORT, "--writes", "1")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "accuracy on reference as samples came"
    assert [line.split()[0] for line in lines[3:5]] == ["adapting", "frozen"]
    assert "to 12" in lines[1]
    assert "adapting: sample 0: the writes are spent" in done.out
    assert "program.h5" in lines[-1]


def test_passes_that_end_at_different_samples_have_a_table(nmtool, folder):
    done = nmtool(*STREAM, *SHORT, "--board-time", "0.000001ms")
    assert done.code == 0, done.err
    assert "frozen: sample 1: the board time is spent" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*STREAM, "--resume"], 2, "go on from the last weights with --program"),
        (["finetune", "run", "--hw", "reference", "--drift", "rotate:9"], 2, "without --stream"),
        ([*STREAM, "--drift", "rotat:60"], 3, "finetune.stream.drift"),
        ([*STREAM, "--drift", "rotate:far"], 3, "finetune.stream.drift"),
        ([*STREAM, "--drift", "rotate:"], 3, "-s finetune.stream.drift: found '', allowed"),
        ([*STREAM, "--drift", "rotate:600"], 3, "finetune.stream.drift"),
        ([*STREAM, "-s", "finetune.stream.updates=0"], 3, "finetune.stream.updates"),
    ],
)
def test_what_is_refused_writes_nothing(nmtool, folder, unchanged, arguments, code, message):
    with unchanged(folder):
        done = nmtool(*arguments)
    assert (done.code, message in done.err) == (code, True), done.err
    assert "Traceback" not in done.err


def test_a_drift_of_another_data_set_is_refused(nmtool, folder, unchanged):
    path = folder / "run/experiment.json"
    document = {**json.loads(path.read_text()), "data": {"name": "delayed_xor"}}
    path.write_text(json.dumps(document))
    with unchanged(folder):
        done = nmtool(*STREAM, "--drift", "rotate:60")
    assert done.code == 3
    assert "found rotate with the data set delayed_xor, allowed with digits" in done.err


def test_states_are_kept_only_where_weights_can_be_written_meanwhile(folder):
    from nmtool.chip import load_hardware
    from nmtool.cli.stream import check_stream
    from nmtool.config import load_experiment
    from nmtool.errors import UnsupportedError

    board = load_hardware("oheo-gulch")
    check_stream(load_experiment("experiment.yaml"), board)
    paused = load_experiment("experiment.yaml", ["finetune.stream.pause=8"])
    check_stream(paused, load_hardware("lava-sim"))
    with pytest.raises(UnsupportedError, match="found 8 on oheo-gulch, allowed null"):
        check_stream(paused, board)


def test_an_interrupted_stream_keeps_what_it_learned(folder, nmtool, monkeypatch):
    from nmtool.learning.stream import Stream

    whole = nmtool(*STREAM, *SHORT, "-o", "whole", "--json").json["adapting"]
    take = Stream._take

    def cut(self, index):
        if index == 7:
            raise KeyboardInterrupt
        take(self, index)

    monkeypatch.setattr(Stream, "_take", cut)
    done = nmtool(*STREAM, *SHORT, "-o", "cut")
    assert done.code == 130
    assert "what was learned is kept in cut/program.h5" in done.err
    found = json.loads(Path("cut/stream.json").read_text())["adapting"]
    assert found["ended"] == "cut short"
    assert found["written"] == whole["written"][:7]
    assert sum(max(count, 0) for count in found["written"]) > 0
    learned = formats.load_as("cut/program.h5", Program)
    assert learned.fingerprint != formats.load_as("run/program.h5", Program).fingerprint
    assert Path("cut/best.h5").is_file()
