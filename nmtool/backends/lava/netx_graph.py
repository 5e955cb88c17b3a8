"""netx's own network in Lava, built, run and probed inside of the worker.

Import only after ``prepare_slayer()``: this module imports Lava and lava-dl.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lava.lib.dl import netx
from lava.lib.dl.netx import utils as netx_utils
from lava.magma.core.process.ports import ports
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.conv import utils as conv_utils
from numpy.typing import NDArray

from nmtool.backends.lava.graph import PROBES, run_steps, versions
from nmtool.backends.lava.netx import NetxJob
from nmtool.backends.lava.processes.source import SharedSource
from nmtool.backends.lava.processes.tap import StateTap, Tap
from nmtool.backends.lava.shared import Tape, Timeline, shared_array
from nmtool.errors import ArtifactError, UnsupportedError


@functools.cache
def patch_for_numpy_2() -> None:
    """Mend the three places where lava-nc 0.10.0 and lava-dl 0.6.0 fail with numpy 2."""
    # int(array([64.])): the transform of an input layer is stored as an array of one.
    item = netx_utils.NetDict.__getitem__

    def scalar(self: Any, key: Any) -> Any:
        value = item(self, key)
        one = isinstance(value, np.ndarray) and value.size == 1
        transform = key in ("weight", "bias") and "type" in self.keys()
        return value.reshape(()) if one and transform and item(self, "type") == "input" else value

    netx_utils.NetDict.__getitem__ = scalar

    # 200 + 2 * int8: the geometry of a convolution is kept in eight bits.
    shape = conv_utils.output_shape

    def wide(*sizes: Any) -> Any:
        return shape(*(tuple(map(int, s)) if np.ndim(s) else int(s) for s in sizes))

    conv_utils.output_shape = wide

    # np.reshape(newshape=): the argument is called shape now.
    def forward(self: Any) -> Any:
        return functools.partial(np.reshape, shape=self.shape)

    def backward(self: Any) -> Any:
        return functools.partial(np.reshape, shape=self.old_shape)

    ports.ReshapePort.get_transform_func_fwd = forward
    ports.ReshapePort.get_transform_func_bwd = backward


class NetxGraph:
    """The samples of a job, one network after the other."""

    def __init__(self, job: NetxJob) -> None:
        self.job = job
        self._arrays: dict[str, NDArray[Any]] = {}
        self._reached = shared_array((len(job.layers),), np.int64)
        self._done = 0
        for layer in job.layers:
            kinds = PROBES[:1] if layer.graded else PROBES
            for kind in kinds:
                rows = (job.samples, job.n_steps, layer.size)
                small = kind == "spikes" and not layer.graded
                array = shared_array(rows, np.uint8 if small else np.int32)
                self._arrays[f"{kind}/{layer.name}"] = array

    @property
    def reached(self) -> int:
        """Steps of all samples that every layer has finished."""
        return self._done * self.job.n_steps + int(self._reached.min())

    def run(self, raster: NDArray[Any], enter: Callable[[str], None]) -> dict[str, Any]:
        """Run an input (samples, lines, steps); what is said about the run.

        ``enter`` is told the phase: Lava's processes end in ``stopping``, and in no other.

        Raises:
            UnsupportedError: a layer that netx cannot build.
            ArtifactError: other layers than expected.
            LavaError: Lava reported an error.
        """
        started, seconds = time.perf_counter(), 0.0
        for sample in range(self.job.samples):
            self._reached[:] = 0
            enter("running")
            net, changes = self._built(sample, raster[sample])
            seconds += self._fed(net, raster[sample], changes)
            enter("stopping")
            net.stop()
            self._done, self._reached[:] = sample + 1, 0
        return {
            "event": "result",
            "steps": self.reached,
            "build_seconds": time.perf_counter() - started - seconds,
            "run_seconds": seconds,
            "versions": {**versions(), "lava-dl": importlib.metadata.version("lava-dl")},
            "models": {},
            "resources": {},
            "measured": {},
        }

    def records(self) -> dict[str, NDArray[Any]]:
        """What was recorded: {"spikes/layer0": (rows, n)} and so on."""
        return {key: a.reshape(-1, a.shape[-1]) for key, a in self._arrays.items()}

    def _built(self, sample: int, raster: NDArray[Any]) -> tuple[Any, list[int]]:
        """A network that records one sample, and the steps before which its bias changes."""
        net = self._network()
        timeline = Timeline(self.job.n_steps, self.job.n_steps, np.zeros(1, np.int64))
        for number, (layer, built) in enumerate(zip(self.job.layers, net.layers, strict=True)):
            arrays = [self._arrays.get(f"{kind}/{layer.name}") for kind in PROBES]
            rows = [None if a is None else a[sample] for a in arrays]
            tape = Tape(timeline, self._reached[number : number + 1], *rows)
            tap = (Tap if layer.graded else StateTap)(shape=layer.shape, tape=tape)
            built.out.connect(tap.a_in)
            if not layer.graded:
                tap.u.connect_var(built.neuron.u)
                tap.v.connect_var(built.neuron.v)
        changes = self._feed(net, raster, timeline)
        net._log_config.level = logging.ERROR
        net.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        return net, changes

    def _fed(self, net: Any, raster: NDArray[Any], changes: list[int]) -> float:
        """Run one sample; the seconds that Lava took."""
        seconds = 0.0
        for begin, end in zip(changes, [*changes[1:], self.job.n_steps], strict=True):
            if begin:
                net.in_layer.neuron.bias_mant.set(self._held(net, raster, begin))
            seconds += run_steps(net, end - begin)
        return seconds

    def _network(self) -> Any:
        """Netx's network, with the layers that are expected."""
        job = self.job
        try:
            net = netx.hdf5.Network(
                job.file,
                num_layers=job.num_layers,
                skip_layers=job.skip_layers,
                input_shape=job.input_shape,
                reset_interval=job.reset_interval,
                reset_offset=job.reset_offset,
                spike_exp=job.spike_exp,
            )
        except NotImplementedError as error:
            raise UnsupportedError(f"lava.lib.dl.netx cannot build it: {error}") from None
        found = [tuple(map(int, layer.shape)) for layer in net.layers]
        expected = [layer.shape for layer in job.layers]
        if found != expected:
            raise ArtifactError(f"netx built layers of the shapes {found}, allowed {expected}")
        return net

    def _feed(self, net: Any, raster: NDArray[Any], timeline: Timeline) -> list[int]:
        """Connect the input; the steps before which Lava is paused for another bias."""
        if self.job.feed == "bias":
            net.in_layer.neuron.bias_mant.init = self._held(net, raster, 0)
            apart = (raster[:, 1:] != raster[:, :-1]).any(axis=0)
            return [0, *(np.flatnonzero(apart) + 1).tolist()]
        rows = shared_array((raster.shape[1], raster.shape[0]), np.int32)
        rows[:] = raster.T
        port = net.in_layer.neuron.a_in if self.job.feed == "value" else net.inp
        source = SharedSource(n=math.prod(port.shape), raster=rows, timeline=timeline, name="input")
        source.s_out.reshape(port.shape).connect(port)
        return [0]

    def _held(self, net: Any, raster: NDArray[Any], step: int) -> NDArray[Any]:
        """The bias mantissas of a step."""
        return np.asarray(raster[:, step].reshape(net.in_layer.shape), dtype=np.int32)
