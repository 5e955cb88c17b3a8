"""An independent reference of a few lines, random networks, and a look at what is left over."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from nmtool.backends.lava.client import LavaWorker
from nmtool.backends.lava.compat import lava_missing
from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes, LavaProjection
from nmtool.chip import HardwareConfig


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    reason = lava_missing()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lava)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def stored(projection, mantissa=None):
    """The weights after truncation: the low bits are cut off, of the magnitude if inhibitory."""
    weights = np.asarray(projection.weight_mantissa if mantissa is None else mantissa, np.int64)
    cut = 8 - projection.weight_bits + (projection.sign_mode == "mixed")
    sign = -1 if projection.sign_mode == "inhibitory" else 1
    return sign * ((sign * weights >> cut) << cut)


def simulate(job, inputs, steps, rewrite=None):
    """One sample, from the equations: {(kind, population): (n, steps)}."""
    dead = steps + job.longest_delay + 2
    arriving = {k: np.zeros((dead, p.n), np.int64) for k, p in job.populations.items()}
    u = {k: np.zeros(p.n, np.int64) for k, p in job.populations.items()}
    v = {k: np.zeros(p.n, np.int64) for k, p in job.populations.items()}
    sizes = {k: (p.n, steps) for k, p in job.populations.items()}
    out = {(s, k): np.zeros(z, np.int64) for k, z in sizes.items() for s in ("s", "u", "v")}
    weights = [stored(p) for p in job.projections]
    for t in range(steps):
        for at, number, mantissa in rewrite or ():
            if at == t:
                weights[number] = stored(job.projections[number], mantissa)
        sent = {k: x[:, t].astype(np.int64) for k, x in inputs.items()}
        for k, p in job.populations.items():
            kept = np.sign(u[k]) * ((np.abs(u[k]) * (4096 - (p.decay_u + 1))) >> 12)
            u[k] = kept + (arriving[k][t] << 6)
            u[k] = (u[k] + 2**23) % 2**24 - 2**23
            u[k][u[k] == -(2**23)] = 2**23
            kept = np.sign(v[k]) * ((np.abs(v[k]) * (4096 - p.decay_v)) >> 12)
            bias = 0 if p.bias_mantissa is None else p.bias_mantissa << p.bias_exponent
            v[k] = np.clip(kept + u[k] + bias, -(2**23) + 1, 2**23 - 1)
            spike = v[k] > p.threshold << 6
            v[k][spike] = 0
            sent[k] = spike.astype(np.int64)
            out["s", k][:, t], out["u", k][:, t], out["v", k][:, t] = spike, u[k], v[k]
        for w, p in zip(weights, job.projections, strict=True):
            delays = np.broadcast_to(p.delay, w.shape)
            for d in np.unique(delays):
                a = np.where(delays == d, w, 0) @ sent[p.source]
                e = p.weight_exponent
                arriving[p.target][min(t + 1 + d, dead - 1)] += a << e if e > 0 else a >> -e
    return out


def compare(job, result):
    """Every spike, current and voltage of a job's result against the equations."""
    for sample in range(job.samples):
        inputs = {k: x[sample] for k, x in job.inputs.items()}
        expected = simulate(job, inputs, job.n_steps)
        for name in job.populations:
            got = (result.spikes[name], result.current[name], result.voltage[name])
            for kind, array in zip("suv", got, strict=True):
                np.testing.assert_array_equal(array[sample], expected[kind, name], f"{kind} {name}")


@pytest.fixture
def equations():
    return simulate


@pytest.fixture
def matches_equations():
    return compare


@pytest.fixture
def small_job():
    """A job as a function of the seed: recurrent, biased, delayed, with every probe."""

    def make(seed=0, samples=3, n_steps=40, delays=6, n=(9, 14, 7), density=0.2):
        rng = np.random.default_rng(seed)
        n_in, n_a, n_b = n
        x = (rng.random((samples, n_in, n_steps)) < density).astype(np.uint8)
        populations = {
            "a": LavaPopulation(n_a, 900, 200, 260, rng.integers(-300, 900, n_a), 2),
            "b": LavaPopulation(n_b, 4095, 60, 120, rng.integers(-4096, 4096, n_b), 0),
        }

        def weights(out, into):
            return rng.integers(-128, 128, (out, into)) * 2

        def delay(out, into):
            return rng.integers(0, delays + 1, (out, into)) if delays else 0

        projections = (
            LavaProjection("in", "a", weights(n_a, n_in), 0, delay=delay(n_a, n_in)),
            LavaProjection("a", "b", weights(n_b, n_a), 1, delay=0),
            LavaProjection("a", "a", weights(n_a, n_a), -1, delay=min(3, delays)),
            LavaProjection("b", "a", weights(n_a, n_b), 0, delay=delay(n_a, n_b)),
            LavaProjection("in", "b", np.abs(weights(n_b, n_in)) // 2 + 1, 0, 6, "excitatory"),
        )
        names = ("a", "b")
        return LavaJob(
            {"in": x}, populations, projections, n_steps, None, LavaProbes(names, names, names)
        )

    return make


def group_members(group):
    """The living processes of a process group, from /proc; the dead that nobody reaps are dead."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(entry.name))
    return found


@pytest.fixture
def members():
    return group_members


@pytest.fixture
def gone():
    """Whether a process group has no living member, waiting a little for it."""

    def check(group, seconds=5.0):
        deadline = time.monotonic() + seconds
        while group_members(group) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not group_members(group)

    return check


@pytest.fixture
def nothing_left():
    """Fails if something new stays in /dev/shm, or open file descriptors are not as before.

    Other tests of this machine may run Lava at the same time: what they have there goes away.
    """
    shm, fds = Path("/dev/shm"), Path("/proc/self/fd")

    def segments():
        return {path.name for path in shm.iterdir()} if shm.is_dir() else set()

    def handles():
        return len(list(fds.iterdir())) if fds.is_dir() else 0

    before, open_before = segments(), handles()
    yield
    assert handles() == open_before
    new = segments() - before
    deadline = time.monotonic() + 60
    while new & segments() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not new & segments()


@pytest.fixture(scope="module")
def worker():
    """One worker for a module: most tests only need its answers."""
    with LavaWorker() as shared:
        yield shared


STAND_IN = Path(__file__).parents[1] / "loihi_stand_in"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The stand-in for lava-loihi, SLURM and ping; ``stand_in("hang", sinfo="down")`` breaks it."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setenv("PATH", str(STAND_IN / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("NMTOOL_LOCKS", str(tmp_path / "locks"))

    def misbehave(words="", *, sinfo="idle", ping="0"):
        monkeypatch.setenv("STAND_IN", words)
        monkeypatch.setenv("STAND_IN_SINFO", sinfo)
        monkeypatch.setenv("STAND_IN_PING", ping)

    misbehave()
    return misbehave


@pytest.fixture
def board():
    """``board(key=value, ...)``: a target with a board, behind SLURM unless ``host`` is given."""

    def make(host=None, **keys):
        where = {"host": host} if host else {"slurm": {"partition": "oheogulch"}}
        head = {"schema": "nmtool.hardware/v1", "name": "og", "chip": "loihi2"}
        return HardwareConfig.model_validate(
            {**head, "backend": "lava-loihi", "board": where, **keys}
        )

    return make
