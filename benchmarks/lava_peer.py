"""Lava's own, unmodified processes running a program: the peer of ``simulation.py``.

    python lava_peer.py PROGRAM.h5 INPUT.npz STEPS OUTPUT.npz

INPUT.npz holds a raster (lines, steps) for each input; the first step is run before the clock
starts. OUTPUT.npz gets the spikes of the probed populations, the seconds that the other steps took
and those that building took. Nothing of nmtool's own Lava processes is used.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import nmtool
from nmtool.backends.lava.compat import prepare_lava
from nmtool.operations import Conv, Dense, Flatten
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection


def main(program_file: str, input_file: str, steps: int, output_file: str) -> None:
    """Build, run one step, run the others against the clock, read the spikes."""
    prepare_lava()
    _mend_lava()
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    program = nmtool.load(program_file)
    assert isinstance(program, nmtool.Program)
    started = time.perf_counter()
    lifs, sinks = _build(program, dict(np.load(input_file)), steps)
    anchor = next(iter(lifs.values()))
    anchor.run(RunSteps(num_steps=1), Loihi2SimCfg(select_tag="fixed_pt"))
    built = time.perf_counter() - started
    started = time.perf_counter()
    anchor.run(RunSteps(num_steps=steps - 1))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    spikes = {name: sink.data.get() for name, sink in sinks.items()}
    reading = time.perf_counter() - started
    times = {"seconds": seconds, "build_seconds": built, "read_seconds": reading}
    arrays: dict[str, Any] = {**spikes, **times}
    np.savez(output_file, **arrays)
    anchor.stop()


def _mend_lava() -> None:
    """What lava-nc 0.10.0 needs on numpy 2: a keyword that is gone, and geometry beyond int8."""
    from lava.magma.core.model.py.type import LavaPyType
    from lava.proc.conv.models import PyConvModelFixed

    plain = np.reshape

    def reshape(array: Any, shape: Any = None, newshape: Any = None) -> Any:
        return plain(array, newshape if shape is None else shape)

    np.reshape = reshape  # type: ignore[assignment]
    for name in ("kernel_size", "stride", "padding", "dilation", "groups"):
        setattr(PyConvModelFixed, name, LavaPyType(np.ndarray, np.int32))


def _build(
    program: Any, rasters: dict[str, Any], steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    from lava.proc import io
    from lava.proc.lif.process import LIF, LIFReset

    net: QuantizedNetwork = program.network
    lifs: dict[str, Any] = {}
    for name, p in net.populations.items():
        bias = p.bias_mantissa + _bias(net, name, rasters)
        settings: dict[str, Any] = {
            "shape": _lava_shape(p),
            "du": p.decay_u,
            "dv": p.decay_v,
            "vth": p.threshold,
            "bias_mant": bias.reshape(_lava_shape(p)).astype(np.int32),
            "bias_exp": p.bias_exponent,
        }
        if p.reset:
            resets = {"reset_interval": p.reset.interval, "reset_offset": p.reset.offset + 1}
            lifs[name] = LIFReset(**settings, **resets)
        else:
            lifs[name] = LIF(**settings)
    sources = {
        name: io.source.RingBuffer(data=rasters[name].astype(np.int32))
        for name, source in net.inputs.items()
        if source.drives is None
    }
    for projection in net.projections.values():
        synapses, out = _synapses(net, projection, {**sources, **lifs}[projection.source])
        out.connect(synapses.s_in)
        synapses.a_out.connect(lifs[projection.target].a_in)
    sinks = {}
    for name in program.network.outputs if "all" not in rasters else net.populations:
        sinks[name] = io.sink.RingBuffer(shape=lifs[name].s_out.shape, buffer=steps)
        lifs[name].s_out.connect(sinks[name].a_in)
    return lifs, sinks


def _bias(net: QuantizedNetwork, name: str, rasters: dict[str, Any]) -> Any:
    """What a constant bias input adds to the bias of a population."""
    driving = [key for key, source in net.inputs.items() if source.drives == name]
    return sum(rasters[key][:, 0] for key in driving) if driving else 0


def _lava_shape(p: QuantizedPopulation) -> tuple[int, ...]:
    return p.shape if len(p.shape) == 3 else (p.size,)


def _synapses(net: QuantizedNetwork, projection: QuantizedProjection, source: Any) -> Any:
    """Lava's synapses of a projection, and the port of its source that feeds them."""
    from lava.proc.conv.process import Conv as LavaConv
    from lava.proc.dense.process import DelayDense
    from lava.proc.dense.process import Dense as LavaDense

    out, last = source.s_out, projection.operations[-1]
    if isinstance(last, Conv):
        shape = net.shapes[projection.source]
        # Lava's is a convolution proper: the kernel is flipped.
        made = LavaConv(
            weight=projection.weight[:, ::-1, ::-1].astype(np.int32),
            input_shape=shape,
            stride=last.stride,
            padding=last.padding,
            dilation=last.dilation,
            groups=last.groups,
        )
        return made, out
    assert isinstance(last, Dense)
    if isinstance(projection.operations[0], Flatten):
        out = out.transpose([2, 1, 0]).flatten()
    settings = {
        "weights": projection.weight_mantissa.astype(np.int32),
        "weight_exp": projection.weight_exponent,
        "num_weight_bits": projection.weight_bits,
    }
    if np.any(projection.delay):
        delay = np.broadcast_to(projection.delay, projection.weight_mantissa.shape)
        return DelayDense(**settings, delays=delay.astype(int), max_delay=62), out
    return LavaDense(**settings), out


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), str(Path(sys.argv[4])))
