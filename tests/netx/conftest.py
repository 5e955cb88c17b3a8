"""The networks and recordings inside lava-dl's wheel, and a run on the emulator."""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import nmtool
from nmtool.backends.lava.compat import slayer_missing
from nmtool.spikes import SpikeTrain

ALL = "spikes,current,voltage"


@pytest.fixture(scope="session")
def wheel():
    """The folder of lava-dl's own netx tests."""
    try:
        distribution = importlib.metadata.distribution("lava-dl")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("lava-dl is not installed; its wheel brings the networks and recordings")
    folder = Path(str(distribution.locate_file("tests/lava/lib/dl/netx")))
    if not (folder / "gts").is_dir():
        pytest.skip(f"lava-dl {distribution.version} is installed without its tests")
    return folder


@pytest.fixture(scope="session")
def recorded(wheel):
    """``recorded("tinynet/layer1")`` is that array."""
    return lambda name: np.load(wheel / "gts" / f"{name}.npy")


class Result:
    """Arrays of a run in the populations' own shapes, time last."""

    def __init__(self, network, recording):
        self.network, self.recording = network, recording

    def _shaped(self, name, flat):
        shape = self.network.populations[name].shape
        return np.asarray(flat).astype(np.int64).reshape(*shape, -1)

    def s(self, name):
        return self._shaped(name, self.recording.spikes[name].to_raster())

    def u(self, name):
        return self._shaped(name, self.recording.current[name])

    def v(self, name):
        return self._shaped(name, self.recording.voltage[name])


@pytest.fixture(scope="session")
def emulate():
    """``emulate(network, x)``: x has the input's shape and time as its last axis."""

    def run(network, x, probe=ALL):
        x = np.asarray(x)
        (source,) = network.inputs.values()
        steps = x.shape[-1]
        program = nmtool.compile(network, steps=steps)
        train = SpikeTrain.from_raster(x.reshape(source.size, steps), source.graded)
        with nmtool.open(program, "emulator") as session:
            return Result(network, session.run(train, probe=probe))

    return run


@pytest.fixture(scope="session")
def held():
    """A value that stays for some steps."""
    return lambda value, steps: np.repeat(np.asarray(value)[..., None], steps, axis=-1)


@pytest.fixture(scope="session")
def lava(tmp_path_factory):
    """``lava(cases)`` runs netx files in Lava, in one process that is gone afterwards.

    ``cases`` has (keyword arguments, input) by name; back come lists of what every layer sent.
    """
    if reason := slayer_missing():
        pytest.skip(reason)
    script = Path(__file__).with_name("netx_in_lava.py")

    def run(cases, seconds=240):
        folder = tmp_path_factory.mktemp("lava")
        job, result = folder / "job.npz", folder / "result.npz"
        arguments = json.dumps({name: case for name, (case, _) in cases.items()})
        np.savez(job, cases=arguments, **{name: x for name, (_, x) in cases.items()})
        with (folder / "log").open("w+") as log:
            child = subprocess.Popen(
                [sys.executable, str(script), str(job), str(result)],
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )
            try:
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                pytest.fail(f"Lava did not end within {seconds} s")
            finally:  # Lava leaves children behind when a run fails
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            log.seek(0)
            assert result.exists(), log.read()[-2000:]
        arrays = np.load(result)
        return {name: _layers(arrays, name) for name in cases}

    return run


def _layers(arrays, name):
    """What the layers of a case sent, or why it failed."""
    if f"{name}/error" in arrays:
        return str(arrays[f"{name}/error"])
    count = sum(key.startswith(f"{name}/") for key in arrays)
    return [arrays[f"{name}/{k}"] for k in range(count)]
