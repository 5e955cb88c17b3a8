"""Whatever goes wrong: a clear error; no process, shared memory or file descriptor is left."""

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from nmtool.backends.lava import group, wire
from nmtool.backends.lava.client import LavaWorker
from nmtool.backends.lava.link import Patience
from nmtool.errors import BoardError, BoardTimeout, UnsupportedError

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def long_job(small_job):
    """A job that would take minutes."""
    job = small_job(0, samples=1)
    return replace(job, inputs={"in": np.repeat(job.inputs["in"], 10_000, axis=0)}, samples=None)


def test_a_run_leaves_nothing(small_job, gone):
    with LavaWorker() as worker:
        for _ in range(3):
            worker.run(small_job())
        pid = worker.pid
    assert gone(pid)
    assert worker.pid is None


def test_descriptors_do_not_pile_up_in_the_worker(small_job, members):
    with LavaWorker() as worker:
        counts = []
        for _ in range(3):
            worker.run(small_job())
            with worker.open(
                replace(
                    small_job(), n_steps=0, samples=0, inputs={"in": np.zeros((0, 9, 0), np.uint8)}
                )
            ):
                pass
            time.sleep(0.3)
            counts.append(len(list(Path(f"/proc/{worker.pid}/fd").iterdir())))
            assert members(worker.pid) == [worker.pid]
    assert counts[-1] <= counts[0] + 2


def test_timeout(long_job, gone):
    seen = []
    with LavaWorker() as worker:
        started = time.monotonic()
        with pytest.raises(BoardTimeout, match=r"timeout: it was running, \d+ steps done"):
            worker.run(long_job, 6, lambda done, total: seen.append((worker.pid, done, total)))
        assert time.monotonic() - started < 12
        assert worker.pid is None
    pids, steps, totals = zip(*seen, strict=True)
    assert gone(pids[0])
    assert list(steps) == sorted(steps)
    assert steps[-1] > 0
    assert set(totals) == {10_000 * long_job.period}


def test_a_worker_is_started_again_after_a_failure(small_job):
    with LavaWorker() as worker:
        with pytest.raises(BoardTimeout):
            worker.run(small_job(), timeout=0.01)
        assert worker.run(small_job()).spikes["a"].any()


def test_exception_in_a_process_model(small_job, gone):
    job = small_job(0, delays=70)
    pids = []
    with LavaWorker() as worker:
        with pytest.raises(UnsupportedError, match=r"'in->a': delay .* is outside of 0\.\.62"):
            worker.run(job)
        worker.run(small_job())
        pids.append(worker.pid)
        with pytest.raises(BoardError) as caught:
            worker.run(job, timeout=60, check=False)
    message = str(caught.value)
    assert "PyDelayDenseModelBitAcc" in message
    assert "ValueError: DelayDense Process 'delays' expects values between 0 and 63" in message
    assert "\n" not in message
    assert not isinstance(caught.value, BoardTimeout)
    assert gone(pids[0])


def test_exception_in_the_worker_itself(small_job, monkeypatch):
    plain = wire._item_body
    with LavaWorker() as worker, monkeypatch.context() as patch:
        patch.setattr(wire, "_item_body", lambda *a: {**plain(*a), "arrays": ["threshold"]})
        with pytest.raises(BoardError, match="failed: KeyError: 'population/a/threshold'"):
            worker.run(small_job(), timeout=60)


def test_a_killed_lava_process(long_job, members, gone):
    victims = []

    def kill_one(done, total):
        if not victims:
            victims.append(worker.pid)
            os.kill(max(members(worker.pid)), signal.SIGKILL)

    with LavaWorker() as worker, pytest.raises(BoardError, match="ended"):
        worker.run(long_job, timeout=60, progress=kill_one)
    assert gone(victims[0])


def test_a_killed_worker(long_job, gone):
    victims = []

    def kill(done, total):
        if not victims:
            victims.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    with LavaWorker() as worker, pytest.raises(BoardError, match="signal 9"):
        worker.run(long_job, timeout=60, progress=kill)
    assert gone(victims[0])


def test_a_silent_worker(long_job, gone):
    victims = []

    def stop(done, total):
        if not victims:
            victims.append(worker.pid)
            os.kill(worker.pid, signal.SIGSTOP)

    with (
        LavaWorker(Patience(silence=6.0)) as worker,
        pytest.raises(BoardTimeout, match="silent for"),
    ):
        worker.run(long_job, timeout=60, progress=stop)
    assert gone(victims[0])


def test_a_stuck_simulation(long_job, members, gone):
    victims = []

    def stop(done, total):
        if not victims:
            victims.append(worker.pid)
            os.kill(max(members(worker.pid)), signal.SIGSTOP)

    with LavaWorker(Patience(stall=8.0)) as worker, pytest.raises(BoardTimeout, match="stuck"):
        worker.run(long_job, timeout=60, progress=stop)
    assert gone(victims[0])


def test_interrupt_during_a_run(long_job, gone):
    pids = []

    def interrupt(done, total):
        pids.append(worker.pid)
        raise KeyboardInterrupt

    with LavaWorker() as worker, pytest.raises(KeyboardInterrupt):
        worker.run(long_job, progress=interrupt)
    assert gone(pids[0])


def test_collected_without_being_closed(small_job, gone):
    worker = LavaWorker()
    worker.run(small_job())
    empty = {"in": np.zeros((0, 9, 0), np.uint8)}
    stream = worker.open(replace(small_job(), inputs=empty, n_steps=0, samples=0))
    pid = worker.pid
    del stream, worker
    gc.collect()
    assert gone(pid)


PARENT = """
    import sys, time
    import numpy as np
    from nmtool.backends.lava.client import LavaWorker
    from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes, LavaProjection
    x = np.ones((100_000, 2, 10), np.uint8)
    job = LavaJob({"in": x}, {"a": LavaPopulation(3, 1, 1, 99)},
                  (LavaProjection("in", "a", np.full((3, 2), 20)),), 10, None, LavaProbes())
    worker = LavaWorker()
    told = []
    def tell(done, total):
        if done and not told:
            told.append(done)
            print(worker.pid, flush=True)
    worker.run(job, progress=tell)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_parent_ends_by_a_signal(number, members, gone):
    parent = subprocess.Popen(
        [sys.executable, "-c", dedent(PARENT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=group.worker_environment(),
    )
    with parent:
        leader = int(parent.stdout.readline())
        assert len(members(leader)) >= 4
        parent.send_signal(number)
        parent.wait(20)
    assert parent.returncode == -number
    assert gone(leader)


def test_noise_on_standard_output(small_job, tmp_path, monkeypatch):
    code = "import os\nprint('noise from the start of Python')\nos.write(1, b'and more')\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with LavaWorker() as worker:
        assert worker.run(small_job()).spikes["a"].any()
        assert "noise" in worker._link.group.log_tail()
