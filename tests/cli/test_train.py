"""``train`` and what follows it, as one new user's session. Needs SLAYER."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from nmtool import formats
from nmtool.backends.lava.compat import slayer_missing
from nmtool.network import Network

pytestmark = [
    pytest.mark.lava,
    pytest.mark.skipif(slayer_missing() is not None, reason=str(slayer_missing())),
]


@pytest.fixture(scope="module")
def session(nmtool, prepared, tmp_path_factory):
    """A folder with the run of two epochs, and what train printed."""
    place = tmp_path_factory.mktemp("trained")
    text = (prepared / "experiment.yaml").read_text()
    text = text.replace("steps: 12", "steps: 6")
    text = text.replace("test: 1600, validation: 60", "test: 100, validation: 1560")
    (place / "experiment.yaml").write_text(text)
    arguments = ("-o", place / "run", "-s", "train.epochs=2", "--json")
    return place, nmtool("train", place / "experiment.yaml", *arguments)


@pytest.fixture
def trained(session, tmp_path, monkeypatch):
    shutil.copytree(session[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_folder_has_everything(session):
    place, done = session
    assert done.code == 0, done.err
    run = place / "run"
    assert {p.name for p in run.iterdir()} == {
        "network.h5",
        "metrics.json",
        "experiment.json",
        "provenance.json",
        "checkpoint.h5",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == {k: v for k, v in done.json.items() if k not in ("schema", "run")}
    assert metrics["samples"] == {"train": 137, "validation": 1560, "test": 100}
    assert [e["epoch"] for e in metrics["epochs"]] == [0, 1]
    best = max(e["validation_accuracy"] for e in metrics["epochs"])
    assert metrics["accuracy"]["validation"] == best
    assert metrics["epochs"][metrics["best_epoch"]]["validation_accuracy"] == best
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["seed"] == 3
    assert len(facts["network_sha256"]) == 64
    resolved = json.loads((run / "experiment.json").read_text())
    assert resolved["train"]["epochs"] == 2


def test_the_trained_spikes_are_the_deployed_spikes(nmtool, trained):
    assert nmtool("compile", "run", "--hw", "reference").code == 0
    given = ("--program", "run/program.h5")
    done = nmtool("compare", "trainer:run", "reference", *given, "--json")
    assert done.code == 0, done.out
    assert done.json["differing_spikes"] == 0
    assert all(p["states"] == 0 for p in done.json["populations"])
    assert sum(p["spikes_a"] for p in done.json["populations"]) > 1000
    accuracy = json.loads((trained / "run/metrics.json").read_text())["accuracy"]
    deployed = nmtool("deploy", "run/program.h5", "--hw", "reference", "--json").json["measured"]
    assert deployed["accuracy"]["value"] == accuracy["test"]


def test_training_again_needs_force_and_gives_the_same_bits(nmtool, trained):
    before = formats.load_as("run/network.h5", Network)
    arguments = ("train", "experiment.yaml", "-o", "run", "-s", "train.epochs=2")
    assert nmtool(*arguments).code == 2
    assert nmtool(*arguments, "--force").code == 0
    after = formats.load_as("run/network.h5", Network)
    for name, projection in before.projections.items():
        assert projection.weight.tobytes() == after.projections[name].weight.tobytes()


def test_another_seed_gives_other_weights(nmtool, trained):
    assert nmtool("train", "experiment.yaml", "-o", "other", "--seed", "4").code == 0
    assert json.loads((trained / "other/experiment.json").read_text())["seed"] == 4
    one, two = (formats.load_as(f"{r}/network.h5", Network) for r in ("run", "other"))
    assert one.projections["hidden"].weight.tobytes() != two.projections["hidden"].weight.tobytes()


def test_resume_with_other_settings_is_refused(nmtool, trained):
    done = nmtool("train", "experiment.yaml", "-o", "run", "--resume", "-s", "train.batch=16")
    assert done.code == 6
    assert "use the same file and -s options, or --force" in done.err
    assert nmtool("train", "experiment.yaml", "-o", "nothing", "--resume").code == 6


def test_a_dry_run_of_train_writes_nothing(nmtool, trained, unchanged):
    with unchanged(trained):
        done = nmtool("train", "experiment.yaml", "--dry-run", "--json")
    assert done.code == 0
    assert done.json["sizes"] == [64, 16, 20]


def test_noise_is_reported_and_a_mismatched_surrogate_warned_about_once(nmtool, trained):
    noise = ("-s", "train.noise={kind: sigmoid, beta: 10}", "-s", "train.epochs=1")
    done = nmtool("train", "experiment.yaml", "-o", "noisy", *noise, "--json")
    assert done.code == 0, done.err
    assert "surrogate" not in done.err
    resolved = json.loads((trained / "noisy/experiment.json").read_text())
    assert resolved["surrogate"] == {"kind": "escape"}
    assert 0 < done.json["accuracy"]["stochastic"] < 1
    assert "stochastic" not in json.loads((trained / "run/metrics.json").read_text())["accuracy"]
    assert nmtool("compile", "noisy", "--hw", "reference").code == 0
    same = nmtool("compare", "trainer:noisy", "reference", "--program", "noisy/program.h5")
    assert same.code == 0, same.out
    arguments = ("train", "experiment.yaml", "-o", "other", *noise, "-s", "surrogate.kind=arctan")
    done = nmtool(*arguments)
    assert done.code == 0, done.err
    assert done.err.count("found arctan with escape noise sigmoid") == 1
    done = nmtool("config", "check", "experiment.yaml", *noise, "-s", "surrogate.kind=arctan")
    assert done.code == 0, done.err
    assert done.err.count("found arctan with escape noise sigmoid") == 1
    assert "warning" not in nmtool("config", "check", "experiment.yaml", *noise).err


def test_a_regulariser_of_an_unknown_population_is_found_before_training(nmtool, trained):
    override = "train.regularizers=[{kind: sparsity, rate: 0.1, weight: 1, populations: [hiden]}]"
    train = ("train", "experiment.yaml", "-o", "never")
    for command in (train, (*train, "--dry-run"), ("config", "check", "experiment.yaml")):
        done = nmtool(*command, "-s", override)
        assert done.code == 3, done.err
        assert "train.regularizers.0.populations: found 'hiden', allowed hidden" in done.err
    done = nmtool("config", "check", "experiment.yaml", "-s", override.replace("train", "finetune"))
    assert done.code == 3, done.err
    assert "finetune.regularizers.0.populations: found 'hiden', allowed hidden" in done.err


@pytest.mark.parametrize(
    "loss", ["{kind: max_over_time, tau: 3, burn_in: 8}", "{kind: spike_time, true_steps: [2, 8]}"]
)
def test_a_loss_of_steps_that_samples_do_not_have_is_found_in_the_file(nmtool, trained, loss):
    arguments = ("config", "check", "experiment.yaml", "-s", "data.encoding.steps=8")
    done = nmtool(*arguments, "-s", f"train.loss={loss}")
    assert done.code == 3, done.err
    assert "allowed a loss of steps 0 to 7, those of a sample; found step 8 in" in done.err
    assert nmtool(*arguments, "-s", f"train.loss={loss.replace('8', '7')}").code == 0


def test_a_training_of_which_nothing_fits_says_what_to_do(nmtool, trained):
    arguments = ("train", "experiment.yaml", "-o", "huge", "-s", "network.init_gain=1.0e30")
    longer = ("-s", "data.encoding.steps=100")
    done = nmtool(*arguments, *longer)
    assert done.code == 5, done.err
    assert "before the first update: hidden.voltage: the trainer's forward reached" in done.err
    assert done.err.count("epoch 1 does not fit the chip and is not kept: hidden.voltage") == 1
    assert "lower train.optimizer.lr or network.init_gain, and train afresh" in done.err
    assert nmtool(*arguments, *longer, "--resume").code == 5
    assert nmtool("train", "experiment.yaml", "-o", "huge", "--force").code == 0


def test_a_test_set_that_does_not_fit_leaves_a_network_and_no_accuracy(
    nmtool, trained, monkeypatch
):
    from nmtool.errors import FitError
    from nmtool.training import record

    def decisions(*_):
        raise FitError("hidden.voltage: the trainer's forward reached 9000000")

    monkeypatch.setattr(record, "decisions", decisions)
    done = nmtool("train", "experiment.yaml", "-o", "partly", "-s", "train.epochs=1", "--json")
    assert done.code == 0, done.err
    assert done.json["accuracy"]["test"] is done.json["accuracy"]["quantized"] is None
    assert done.err.count("not known, a test sample does not fit: hidden.voltage") == 2
    assert (trained / "partly/network.h5").exists()


@pytest.mark.parametrize("limit", [1, 22 * 36 * 6], ids=["a sample", "22 samples"])
def test_a_comparison_in_parts_is_that_of_the_whole(nmtool, trained, monkeypatch, limit):
    """Also the first difference, which lies in one of the later parts."""
    from nmtool.cli import operands
    from nmtool.data import load_split
    from nmtool.training.model import with_weights

    assert nmtool("compile", "run", "--hw", "reference").code == 0
    network = formats.load_as("run/network.h5", Network)
    lit = load_split(network.data, "test").values > 0
    late = int(np.argmax(np.where(lit.any(axis=0), np.argmax(lit, axis=0), 0)))
    weight = network.projections["hidden"].weight.copy()
    weight[:, late] *= -1  # of a pixel that is dark in the samples before
    formats.save("other.h5", with_weights(network, {"hidden": weight}))
    compare = ("compare", "trainer:other.h5", "reference", "--program", "run/program.h5", "--json")
    whole = nmtool(*compare)
    assert whole.code == 1, whole.err
    assert whole.json["first"]["sample"] > 22
    counted, plain = [], operands.Operands._trainer
    monkeypatch.setattr(operands.Operands, "_trainer", lambda *a: counted.append(1) or plain(*a))
    monkeypatch.setattr(operands, "STATES", limit)
    parts = nmtool(*compare)
    assert parts.code == 1, parts.err
    assert parts.json == whole.json
    assert len(counted) == {1: 100, 22 * 36 * 6: 5}[limit]


@pytest.mark.parametrize(
    ("engine", "code", "says"),
    [("event", 3, "cuda needs engine slayer"), ("slayer", 10, "finds no CUDA device")],
)
def test_a_device_that_is_not_there(nmtool, trained, monkeypatch, engine, code, says):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = ("-s", f"train.engine={engine}", "-s", "train.device=cuda")
    done = nmtool("train", "experiment.yaml", "-o", "never", *device)
    assert done.code == code, done.err
    assert says in done.err
    assert not (trained / "never").exists()


ENTRIES = {
    "held": (4, "a delay for each synapse"),
    "nothing": (3, "allowed a nmtool Network"),
    "narrow": (3, "allowed one of 20 neurons"),
    "too_large": (5, "found 1e+09"),
    "missing": (3, "has no function missing"),
    "fails": (3, "ZeroDivisionError"),
    "unfed": (4, "no projection"),
}
MODULE = """\
import numpy as np
from nmtool import CubaLif, Input, Network, Population, Projection

def make(n_inputs, n_classes, seed, outputs=20, extra=(), threshold=1.25):
    rng = np.random.default_rng(seed)
    neuron = CubaLif(threshold, 0.25, 0.03)
    weight = rng.uniform(-0.4, 0.4, (outputs, n_inputs))
    projections = {"w": Projection.dense("pixels", "out", weight, 1), **dict(extra)}
    populations = {"out": Population((outputs,), neuron)}
    return Network("own", {"pixels": Input((n_inputs,))}, populations, projections, ("out",))

def held(*a):
    back = Projection.dense("out", "out", np.eye(20), np.eye(20, dtype=int))
    return make(*a, extra=[("back", back)])

def nothing(*a):
    return None

def narrow(*a):
    return make(*a, outputs=10)

def too_large(*a):
    return make(*a, threshold=1e9)

def fails(*a):
    return 1 / 0

def unfed(*a):
    from dataclasses import replace
    network = make(*a)
    lonely = Population((3,), CubaLif(1.25, 0.25, 0.03), bias=np.ones(3))
    return replace(network, populations={**network.populations, "lonely": lonely})
"""


@pytest.fixture
def entry(trained):
    text = (trained / "experiment.yaml").read_text()
    start, end = text.index("  neuron:"), text.index("  readout:")
    (trained / "own.yaml").write_text(text[:start] + "  entry: own_network:make\n" + text[end:])
    (trained / "own_network.py").write_text(MODULE)
    sys.modules.pop("own_network", None)
    yield trained / "own.yaml"
    sys.modules.pop("own_network", None)


def test_an_entry_function_makes_the_network(nmtool, entry):
    assert nmtool("train", entry, "-o", "own").code == 0
    network = formats.load_as("own/network.h5", Network)
    assert network.projections["w"].delay == 1
    assert network.readout.neurons_per_class == 2
    assert nmtool("compile", "own", "--hw", "reference").code == 0
    done = nmtool("compare", "trainer:own", "reference", "--program", "own/program.h5")
    assert done.code == 0, done.out


@pytest.mark.parametrize("name", [*ENTRIES])
def test_an_entry_function_that_is_refused(nmtool, entry, name):
    override = f"network.entry=own_network:{name}"
    done = nmtool("train", entry, "-o", "own", "-s", override)
    code, says = ENTRIES[name]
    assert done.code == code, done.err
    assert says in done.err


@pytest.mark.parametrize("text", ["import nothing_like_this", "def make(:", "1 / 0"])
def test_a_module_that_cannot_be_imported(nmtool, entry, text):
    (entry.parent / "own_network.py").write_text(text)
    done = nmtool("train", entry, "-o", "own")
    assert done.code == 3
    assert "network.entry own_network:make: cannot be imported" in done.err


@pytest.mark.slow
def test_a_living_training_is_terminated_and_continued(nmtool, trained):
    command = [sys.executable, "-m", "nmtool", "train", "experiment.yaml", "-v", "-o", "cut"]
    process = subprocess.Popen(
        [*command, "-s", "train.epochs=3"], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    for line in process.stderr:
        if line.startswith("epoch 1:"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    left = {p.name for p in (trained / "cut").iterdir()}
    assert left == {"experiment.json", "checkpoint.h5"}
    arguments = ("train", "experiment.yaml", "-s", "train.epochs=3", "-o")
    assert nmtool(*arguments, "cut").code == 2
    assert nmtool(*arguments, "cut", "--resume").code == 0
    assert nmtool(*arguments, "whole").code == 0
    one, two = (formats.load_as(f"{r}/network.h5", Network) for r in ("cut", "whole"))
    for name, projection in one.projections.items():
        assert projection.weight.tobytes() == two.projections[name].weight.tobytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_training(nmtool, trained, monkeypatch, number):
    from nmtool.training import trainer

    plain = trainer._update

    def update(*arguments):
        signal.raise_signal(number)
        return plain(*arguments)

    monkeypatch.setattr(trainer, "_update", update)
    done = nmtool("train", "experiment.yaml", "-o", "cut")
    assert done.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert {p.name for p in (trained / "cut").iterdir()} == {"experiment.json"}
    assert "nothing is kept yet; the same command without --resume starts again" in done.err
    done = nmtool("train", "experiment.yaml", "-o", "cut", "--resume")
    assert done.code == 6
    assert "no epoch of a training in cut is done; leave --resume out" in done.err
    monkeypatch.setattr(trainer, "_update", plain)
    assert nmtool("train", "experiment.yaml", "-o", "cut").code == 0


def test_a_timeout_while_training(nmtool, trained):
    arguments = ("-o", "cut", "-s", "train.epochs=10000", "--timeout", "1s")
    assert nmtool("train", "experiment.yaml", *arguments).code == 124
