"""The child process that owns Lava: ``python -m nmtool.backends.lava.worker IN OUT``.

IN and OUT are the file descriptors of two pipes: jobs come in, messages go out. When the parent
dies, IN ends and the worker kills its whole group.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nmtool.backends.lava import wire
from nmtool.backends.lava.compat import prepare_lava, prepare_slayer
from nmtool.backends.lava.forks import (
    a_child_ended,
    die_with_parent,
    kill_own_group,
    report_exceptions,
    wait_for_dead_child,
)
from nmtool.backends.lava.netx import netx_job
from nmtool.errors import (
    ArtifactError,
    BoardError,
    BoardUnavailable,
    DependencyError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from nmtool.backends.lava.graph import Graph
    from nmtool.backends.lava.netx_graph import NetxGraph

BEAT_SECONDS = 0.5
STREAM_ROWS = 1024


class Pipe:
    """The two ends towards the parent, as file descriptors."""

    def __init__(self, inlet: int, outlet: int) -> None:
        self._parent, self._worker = os.getppid(), os.getpid()
        self._in, self._out = inlet, outlet
        self._lock = threading.Lock()
        self.messages: queue.SimpleQueue[tuple[dict[str, Any], wire.Arrays]] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to read, and hold still whenever Lava forks."""
        threading.Thread(target=self._read, daemon=True).start()
        # Forking while another thread holds the lock would leave it locked in the child for good.
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._in_child,
        )

    def _in_child(self) -> None:
        self._lock.release()
        os.close(self._in)
        os.close(self._out)
        die_with_parent(self._worker)

    def _read(self) -> None:
        reader = wire.Reader()
        try:
            while data := os.read(self._in, max(1 << 16, min(reader.wanted, 1 << 20))):
                for message in reader.feed(data):
                    self.messages.put(message)
        finally:
            kill_own_group()

    def send(
        self, body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Send one message; a parent that is gone ends the worker."""
        with self._lock:
            self._write(wire.pack(body, arrays or {}))

    def send_news(self, news: Callable[[], Mapping[str, Any] | None]) -> None:
        """Send what ``news`` says once it is its turn, so that it is not outdated by then."""
        with self._lock:
            body = news()
            if body is not None:
                self._write(wire.pack(body, {}))

    def _write(self, pieces: list[memoryview]) -> None:
        try:
            for piece in pieces:
                sent = 0
                while sent < len(piece):
                    sent += os.write(self._out, piece[sent:])
        except OSError:
            kill_own_group()

    def orphaned(self) -> bool:
        """Whether the parent is gone; a process it forked may keep its end of the pipe open."""
        return os.getppid() != self._parent


class Watch:
    """Tells the parent that the worker lives and how far it is, and notices dead Lava processes."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.phase = "starting"
        self.start = self.total = 0
        self.graph: Graph | NetxGraph | None = None
        self._seen_dead = False
        threading.Thread(target=self._loop, daemon=True).start()

    def begin(self, start: int, total: int) -> None:
        """Note that ``total`` steps follow the step ``start``."""
        self.start, self.total, self.phase = start, total, "running"

    def _loop(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            if self._pipe.orphaned():
                kill_own_group()
            self._pipe.send_news(self._beat)
            self._look_for_dead()

    def _beat(self) -> dict[str, Any] | None:
        graph, phase, step = self.graph, self.phase, 0
        if phase == "idle":
            # Nobody reads now: beats would fill the pipe.
            return None
        if graph is not None and phase == "running":
            step = graph.reached - self.start
        return {"event": "beat", "phase": phase, "step": step, "total": self.total}

    def _look_for_dead(self) -> None:
        dead = self.phase in ("building", "running") and a_child_ended()
        if dead and self._seen_dead:
            # The main thread would have reported it by now: it hangs inside of Lava, as Lava does.
            fail(self._pipe, "a process of Lava's simulation ended", logged=True)
        self._seen_dead = dead


def fail(pipe: Pipe, message: str, *, kind: str = "board", logged: bool = False) -> NoReturn:
    """Send an error and end: a Lava that failed cannot be used again.

    logged says that standard error holds the reason, as a traceback.
    """
    pipe.send({"event": "error", "kind": kind, "message": message, "logged": logged})
    kill_own_group()


class Server:
    """Does what the parent asks, one thing after the other."""

    def __init__(self, pipe: Pipe, watch: Watch) -> None:
        self._pipe = pipe
        self._watch = watch
        self._stream: Graph | None = None

    def serve(self) -> NoReturn:
        """Handle messages until the parent closes the pipe."""
        handlers = {
            "run": self._run,
            "netx": self._netx,
            "open": self._open,
            "stream": self._feed,
            "write": self._write,
            "close": self._close,
        }
        while True:
            self._watch.phase = "idle"
            body, arrays = self._pipe.messages.get()
            handlers[body["op"]](body, arrays)

    def _build(self, body: dict[str, Any], arrays: wire.Arrays, live: bool) -> Graph:
        from nmtool.backends.lava.graph import Graph

        self._watch.phase = "building"
        job = wire.job_from_message(body["job"], arrays)
        rows = STREAM_ROWS if live else (job.samples or 0) * job.n_steps
        made: Graph
        if job.board is None:
            made = Graph(job, rows=rows, live=live)
        else:
            from nmtool.backends.lava.board import BoardGraph, use_board

            use_board(job.board)
            made = BoardGraph(job, rows=rows, live=live)
        self._watch.graph = made
        return made

    def _run(self, body: dict[str, Any], arrays: wire.Arrays) -> None:
        graph = self._build(body, arrays, live=False)
        job = graph.job
        for name, raster in graph.rasters.items():
            columns = job.inputs[name].transpose(0, 2, 1)
            raster[:] = columns.reshape(raster.shape)
        steps = (job.samples or 0) * job.period
        self._watch.begin(graph.steps_done, steps)
        seconds = graph.run(steps)
        self._watch.phase = "stopping"
        self._pipe.send(self._result(graph, steps, seconds), graph.records(graph.rows))
        graph.stop()
        self._watch.graph = None

    def _netx(self, body: dict[str, Any], arrays: wire.Arrays) -> None:
        prepare_slayer()
        from nmtool.backends.lava.netx_graph import NetxGraph, patch_for_numpy_2

        patch_for_numpy_2()
        job = netx_job(body["job"])
        self._watch.graph = made = NetxGraph(job)
        self._watch.start, self._watch.total = 0, job.samples * job.n_steps

        def enter(phase: str) -> None:
            self._watch.phase = phase

        result = made.run(arrays["input"], enter)
        self._pipe.send(result, made.records())
        self._watch.graph = None

    def _result(self, graph: Graph, steps: int, seconds: float) -> dict[str, Any]:
        from nmtool.backends.lava.graph import versions

        return {
            "event": "result",
            "steps": steps,
            "build_seconds": graph.build_seconds,
            "run_seconds": seconds,
            "versions": versions(),
            "models": graph.models,
            "resources": graph.resources,
            "measured": graph.measured(),
        }

    def _open(self, body: dict[str, Any], arrays: wire.Arrays) -> None:
        self._stream = self._build(body, arrays, live=True)
        self._watch.phase = "idle"
        self._pipe.send({"event": "done"})

    def _feed(self, body: dict[str, Any], arrays: wire.Arrays) -> None:
        graph, steps = self._opened(), body["n_steps"]
        self._watch.begin(graph.steps_done, steps)
        seconds, pieces = 0.0, []
        for start in range(0, steps, graph.rows):
            length = min(graph.rows, steps - start)
            for name, raster in graph.rasters.items():
                raster[:length] = arrays[f"input/{name}"][:, start : start + length].T
            seconds += graph.run(length)
            pieces.append({key: rows.copy() for key, rows in graph.records(length).items()})
        joined = {key: np.concatenate([p[key] for p in pieces]) for key in pieces[0]}
        self._watch.phase = "idle"
        self._pipe.send(self._result(graph, steps, seconds), joined)

    def _write(self, body: dict[str, Any], arrays: wire.Arrays) -> None:
        self._opened().live[body["projection"]].write(arrays["mantissa"])
        self._pipe.send({"event": "done"})

    def _close(self, _body: dict[str, Any], _arrays: wire.Arrays) -> None:
        self._watch.phase = "stopping"
        self._opened().stop()
        self._stream = self._watch.graph = None
        self._pipe.send({"event": "done"})

    def _opened(self) -> Graph:
        if self._stream is None:
            raise RuntimeError("no network is open")
        return self._stream


def main() -> NoReturn:
    """Entry point of the worker; returns only by being killed."""
    pipe = Pipe(int(sys.argv[1]), int(sys.argv[2]))
    pipe.start()
    watch = Watch(pipe)
    try:
        prepare_lava()
        from nmtool.backends.lava import graph

        graph.use_anonymous_memory()
        report_exceptions()
        pipe.send({"event": "hello"})
        try:
            Server(pipe, watch).serve()
        except graph.LavaError as error:
            wait_for_dead_child(5.0)
            fail(pipe, str(error), logged=True)
    except DependencyError as error:
        fail(pipe, str(error), kind="dependency")
    except BoardUnavailable as error:
        fail(pipe, str(error), kind="unavailable")
    except UnsupportedError as error:
        fail(pipe, str(error), kind="unsupported")
    except ArtifactError as error:
        fail(pipe, str(error), kind="artifact")
    except BoardError as error:
        fail(pipe, str(error))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        fail(pipe, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
