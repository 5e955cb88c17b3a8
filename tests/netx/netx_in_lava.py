"""Run netx files in Lava itself: ``python netx_in_lava.py JOB.npz RESULT.npz``.

The job holds ``cases``, a JSON object of keyword arguments of ``netx.hdf5.Network`` by name (with
``steps`` and ``feed``), and the input of each under its name. The result holds what every layer
sent, ``NAME/0``, ``NAME/1``, ... in the layer's shape with time last, or ``NAME/error``.
Lava's child processes may outlive this one: run it in a process group of its own, and end that.
"""

# ruff: noqa: E402

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
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc import io

from nmtool.backends.lava.netx_graph import patch_for_numpy_2


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
