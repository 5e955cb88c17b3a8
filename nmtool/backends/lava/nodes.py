"""Lava's processes for the populations and projections of a job.

Import only after ``prepare_lava()``: this module imports Lava.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.lif.process import LIF, LIFReset
from lava.proc.sdn.process import ActivationMode
from lava.proc.sparse.process import DelaySparse, Sparse
from lava.utils.weightutils import SignMode
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from nmtool.backends.lava.populations import (
    LavaDelta,
    LavaPopulation,
    LavaSigma,
    Population,
)
from nmtool.backends.lava.processes.neuron import HeldLIF
from nmtool.backends.lava.processes.sigma_delta import HeldDelta, HeldSigma, HeldSigmaDelta
from nmtool.backends.lava.processes.synapse import (
    FastDelaySparse,
    LiveDelayDense,
    LiveDense,
    LiveSparse,
)
from nmtool.backends.lava.projections import (
    LavaConvProjection,
    LavaProjection,
    LavaSparseProjection,
    Projection,
)
from nmtool.backends.lava.shared import LiveWeights, Tape, shared_array
from nmtool.fixedpoint import STATE_BITS, shift

# Any number above 0 makes Lava multiply by the payload; 24 is what the chip has.
MESSAGE_BITS = 24
_SIGN_MODES = {
    "mixed": SignMode.MIXED,
    "excitatory": SignMode.EXCITATORY,
    "inhibitory": SignMode.INHIBITORY,
}
_ACTIVATIONS = {"relu": ActivationMode.RELU, "unit": ActivationMode.UNIT}


def make_population(
    name: str, population: Population, tape: Tape, biases: Sequence[NDArray[Any]], *, fold: bool
) -> Any:
    """Make the process of a population; biases and fold are of LIF neurons only."""
    common: dict[str, Any] = {"shape": (population.n,), "name": name, "tape": tape}
    if isinstance(population, LavaPopulation):
        resets = {
            "reset_interval": population.reset_interval,
            "reset_offset": population.reset_offset,
        }
        settings = _lif_settings(population) | resets
        return HeldLIF(**common, **settings, biases=tuple(biases), fold=fold)
    if isinstance(population, LavaSigma):
        return HeldSigma(**common)
    # Lava multiplies numbers of whatever type by 2^(spike_exp + state_exp): Python's do not wrap.
    encoder: dict[str, Any] = {
        "vth": int(population.vth),
        "spike_exp": int(population.spike_exp),
        "state_exp": int(population.state_exp),
    }
    if isinstance(population, LavaDelta):
        return HeldDelta(**common, **encoder)
    return HeldSigmaDelta(
        **common,
        **encoder,
        bias=0 if population.bias is None else population.bias.astype(np.int64),
        act_mode=_ACTIVATIONS[population.activation],
    )


def _lif_settings(population: LavaPopulation) -> dict[str, Any]:
    bias = population.bias_mantissa
    return {
        "du": population.decay_u,
        "dv": population.decay_v,
        "vth": population.threshold,
        "bias_mant": 0 if bias is None else np.asarray(bias, np.int32),
        "bias_exp": population.bias_exponent,
    }


def make_stock_lif(name: str, population: LavaPopulation) -> Any:
    """Make one of Lava's own LIF processes, which a chip has models for."""
    common = {"shape": (population.n,), "name": name, **_lif_settings(population)}
    if not population.reset_interval:
        return LIF(**common)
    # Lava counts steps from 1, populations from 0.
    offset = (population.reset_offset + 1) % population.reset_interval
    return LIFReset(**common, reset_interval=population.reset_interval, reset_offset=offset)


def live_weights(projection: Projection) -> LiveWeights:
    """Shared memory for a projection's weights, to be replaced while Lava is paused."""
    shape = projection.weight_mantissa.shape
    form = partial(lava_weights, projection)
    return LiveWeights(shared_array(shape, np.int32), shared_array((1,), np.int64), form)


def lava_weights(projection: Projection, mantissa: NDArray[Any]) -> Any:
    """What Lava's process of this kind takes as weights, as a copy."""
    if isinstance(projection, LavaProjection):
        return np.array(mantissa, np.int32)
    if isinstance(projection, LavaSparseProjection):
        return _matrix(projection, np.array(mantissa, np.int32))
    # Lava's Conv flips the kernel, and ignores its own weight_exp.
    return shift(mantissa[:, ::-1, ::-1], projection.weight_exponent)


def _matrix(projection: LavaSparseProjection, values: NDArray[Any]) -> Any:
    """A csr_matrix, for Lava does not take scipy's csr_array."""
    return csr_matrix((values, (projection.post, projection.pre)), shape=projection.shape)


def make_projection(
    name: str,
    projection: Projection,
    *,
    graded: bool = False,
    words: bool = False,
    live: LiveWeights | None = None,
    stock: bool = False,
) -> Any:
    """Make the process of a projection.

    graded: whether its source sends payloads; words: whether its target counts modulo 2^32; stock:
    of Lava's own synapses only, which a chip has models for; not for convolutions.
    """
    settings: dict[str, Any] = {
        "name": name,
        "num_message_bits": MESSAGE_BITS if graded else 0,
    }
    weights = lava_weights(projection, projection.weight_mantissa)
    if isinstance(projection, LavaConvProjection):
        bits = 32 if words else STATE_BITS
        return _convolution(projection, settings | {"weight": weights, "live": live, "bits": bits})
    settings |= {
        "weights": weights,
        "weight_exp": projection.weight_exponent,
        "num_weight_bits": projection.weight_bits,
        "sign_mode": _SIGN_MODES[projection.sign_mode],
    }
    if isinstance(projection, LavaSparseProjection):
        return _sparse(projection, settings, live, stock)
    return _dense(projection, settings, live)


def _dense(projection: LavaProjection, settings: dict[str, Any], live: LiveWeights | None) -> Any:
    if projection.longest_delay == 0:
        return Dense(**settings) if live is None else LiveDense(live=live, **settings)
    # Lava takes one number or a matrix of int64, and the number not from numpy.
    settings["delays"] = np.broadcast_to(projection.delay, projection.shape).astype(np.int64)
    return DelayDense(**settings) if live is None else LiveDelayDense(live=live, **settings)


def _sparse(
    projection: LavaSparseProjection,
    settings: dict[str, Any],
    live: LiveWeights | None,
    stock: bool,
) -> Any:
    if projection.longest_delay == 0:
        return Sparse(**settings) if live is None else LiveSparse(live=live, **settings)
    # One number for all would make Lava fill a whole matrix with it.
    delays = np.broadcast_to(projection.delay, projection.post.shape).astype(np.int64)
    settings["delays"] = _matrix(projection, delays)
    if stock:
        return DelaySparse(max_delay=projection.longest_delay, **settings)
    return FastDelaySparse(max_delay=projection.longest_delay, live=live, **settings)


def _convolution(projection: LavaConvProjection, settings: dict[str, Any]) -> Any:
    # Costs a second, which most networks need not pay.
    from nmtool.backends.lava.convolution.process import ExactConv

    return ExactConv(
        **settings,
        input_shape=projection.input_shape,
        stride=projection.stride,
        padding=projection.padding,
        dilation=projection.dilation,
        groups=int(projection.groups),
    )


def make_bridge(name: str, n_out: int, n_in: int) -> Any:
    """Make synapses that connect two processes and carry nothing."""
    empty = csr_matrix((n_out, n_in), dtype=np.int32)
    return Sparse(weights=empty, sign_mode=SignMode.MIXED, name=name)
