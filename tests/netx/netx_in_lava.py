"""Run netx files in Lava itself: ``python netx_in_lava.py JOB.npz RESULT.npz``.

The job holds ``cases``, a JSON object of keyword arguments of ``netx.hdf5.Network`` by name (with
``steps`` and ``feed``), and the input of each under its name. The result holds what every layer
sent, ``NAME/0``, ``NAME/1``, ... in the layer's shape with time last, or ``NAME/error``.
Lava's child processes may outlive this one: run it in a process group of its own, and end that.
"""

# ruff: noqa: E402

import functools
import json
import logging
import os
import sys
import traceback

import numpy as np

from nmtool.backends.lava.compat import prepare_slayer

prepare_slayer()

import torch
from lava.lib.dl import netx
from lava.lib.dl.netx import utils as netx_utils
from lava.magma.core.process.ports import ports
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc import io
from lava.proc.conv import utils as conv_utils


def patch_for_numpy_2():
    """Three places where lava-nc 0.10.0 and lava-dl 0.6.0 fail with numpy 2."""
    # int(array([64.])): the transform of an input layer is stored as an array of one.
    item = netx_utils.NetDict.__getitem__

    def scalar(self, key):
        value = item(self, key)
        one = isinstance(value, np.ndarray) and value.size == 1
        transform = key in ("weight", "bias") and "type" in self.keys()
        return value.reshape(()) if one and transform and item(self, "type") == "input" else value

    netx_utils.NetDict.__getitem__ = scalar

    # 200 + 2 * int8: the geometry of a convolution is kept in eight bits.
    shape = conv_utils.output_shape

    def wide(*sizes):
        return shape(*(tuple(map(int, s)) if np.ndim(s) else int(s) for s in sizes))

    conv_utils.output_shape = wide

    # np.reshape(newshape=): the argument is called shape now.
    def forward(self):
        return functools.partial(np.reshape, shape=self.shape)

    def backward(self):
        return functools.partial(np.reshape, shape=self.old_shape)

    ports.ReshapePort.get_transform_func_fwd = forward
    ports.ReshapePort.get_transform_func_bwd = backward


def run(case, x):
    """What every layer sent."""
    steps, feed = case.pop("steps"), case.pop("feed")
    if shape := case.pop("input_shape", None):
        case["input_shape"] = tuple(shape)
    net = netx.hdf5.Network(**case)
    if feed == "bias":
        net.in_layer.neuron.bias_mant.init = x
    else:
        source = io.source.RingBuffer(data=x)
        source.s_out.connect(net.in_layer.neuron.a_in if feed == "value" else net.inp)
    sinks = []
    for layer in net.layers:
        sink = io.sink.RingBuffer(shape=layer.out.shape, buffer=steps)
        layer.out.connect(sink.a_in)
        sinks.append(sink)
    net._log_config.level = logging.ERROR
    net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    sent = [sink.data.get().astype(np.int64) for sink in sinks]
    net.stop()
    return sent


def main():
    torch.set_num_threads(1)
    patch_for_numpy_2()
    job = np.load(sys.argv[1])
    result = {}
    for name, case in json.loads(str(job["cases"])).items():
        try:
            for k, sent in enumerate(run(case, job[name])):
                result[f"{name}/{k}"] = sent
        except Exception:
            result[f"{name}/error"] = np.array(traceback.format_exc())
    np.savez(sys.argv[2], **result)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
