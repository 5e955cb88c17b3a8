"""A run folder that needs no training, and three ways to call nmtool as a user would."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from nmtool import formats
from nmtool.cli import nmtool as group
from nmtool.cli.common import run
from nmtool.config import load_experiment, resolved_json
from nmtool.layers import from_config

EXPERIMENT = """\
schema: nmtool.experiment/v1
name: small
seed: 3
data: {name: digits, test: 1600, validation: 60, encoding: {kind: rate, steps: 12}}
network:
  neuron: {kind: cuba, threshold: 1.25, current_decay: 0.25, voltage_decay: 0.03}
  layers: [{dense: 16, name: hidden}, {dense: 20, name: output}]
  readout: {kind: count, neurons_per_class: 2}
train:
  epochs: 1
  batch: 32
  optimizer: {name: adam, lr: 4.0e-3}
  loss: {kind: count_cross_entropy, scale: 0.1}
finetune: {rounds: 1, readout_rounds: 0, batch: 64}
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def call(*arguments):
    """The command line in this process: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(group, [str(a) for a in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def command_line(*arguments):
    return [sys.executable, "-m", "nmtool", *map(str, arguments)]


@pytest.fixture(scope="session")
def nmtool():
    """``nmtool(*arguments)`` in this process."""
    return call


@pytest.fixture(scope="session")
def shell():
    """``shell(*arguments, **options)`` in a process of its own; options as of subprocess.run."""

    def start(*arguments, env=None, prefix=(), **options):
        done = subprocess.run(
            [*prefix, *command_line(*arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **(env or {})},
            **options,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return start


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A run folder as ``train`` leaves it, with random weights; look, do not touch."""
    folder = tmp_path_factory.mktemp("prepared")
    source = folder / "experiment.yaml"
    source.write_text(EXPERIMENT)
    config = load_experiment(source)
    network = from_config(config.network, (64,), 10, config.seed)
    network = replace(network, name=config.name, data=config.data, readout=config.network.readout)
    run_folder = folder / "run"
    formats.save(run_folder / "network.h5", network)
    (run_folder / "experiment.json").write_text(resolved_json(config))
    assert call("compile", run_folder, "--hw", "reference").code == 0
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """The test's own working folder: experiment.yaml, run/network.h5, run/program.h5."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in [key for key in os.environ if key.startswith("NMTOOL_")]:
        if name != "NMTOOL_CACHE":
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def hardware(folder):
    """``hardware("weight_bits: 4", name=...)`` writes a target file and returns its path."""

    def write(*lines, name="mine", chip="loihi2", backend="reference"):
        path = folder / f"{name}.yaml"
        head = ("schema: nmtool.hardware/v1", f"name: {name}", f"chip: {chip}")
        path.write_text("\n".join((*head, f"backend: {backend}", *lines, "")))
        return path

    return write


@pytest.fixture
def rasters(folder):
    """Three samples of 64 spike lines over 12 steps, in spikes.npy."""
    spikes = np.random.default_rng(0).random((3, 64, 12)) < 0.4
    np.save(folder / "spikes.npy", spikes)
    return spikes


def listing(folder):
    """Every file below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def unchanged():
    """``with unchanged(folder):`` fails if any file appears, goes or changes."""

    @contextlib.contextmanager
    def check(folder, ignore=()):
        before = listing(folder)
        yield
        after = listing(folder)
        different = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        assert {n for n in different if not n.startswith(tuple(ignore) or ("\0",))} == set()

    return check


def marked_processes(mark):
    """Living processes whose environment holds the mark, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.fixture
def none_left():
    """``none_left(mark)`` waits a little for every process with the mark to be gone."""

    def check(mark, seconds=10.0):
        deadline = time.monotonic() + seconds
        while (left := marked_processes(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not left

    return check
