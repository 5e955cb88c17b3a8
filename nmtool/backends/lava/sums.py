"""Sums that Lava's synapses cannot hold: found in what was sent, and refused.

Lava's Dense and Sparse add mantissas times messages in 32 bits and apply the weight exponent
afterwards. With an exponent below 0 the bits that were cut off would have come back by the shift:
sigma-delta neurons, which count modulo 2^32, get another sum. CUBA neurons count modulo 2^24, and
never see those bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from nmtool.backends.lava.job import LavaJob, LavaProjection, LavaSparseProjection
from nmtool.errors import UnsupportedError

WORD = 1 << 31


def watched(job: LavaJob) -> LavaJob:
    """A job that also records the messages by which ``check_sums`` checks it."""
    sources = [p.source for _, p in _narrow(job) if p.source in job.populations]
    spikes = tuple(dict.fromkeys((*job.probes.spikes, *sources)))
    return replace(job, probes=replace(job.probes, spikes=spikes))


def check_sums(job: LavaJob, sent: Mapping[str, NDArray[Any]]) -> None:
    """Check every sum of a run by what its inputs and populations sent, (samples, n, steps).

    Raises:
        UnsupportedError: a sum that 32 bits do not hold.
    """
    for name, projection in _narrow(job):
        messages = sent[projection.source].astype(np.int64)
        largest = np.abs(messages).max(axis=(0, 2), initial=0)
        for weight in _by_delay(projection):
            if np.max(abs(weight) @ largest, initial=0) < WORD:
                continue
            for sample in messages:
                sums = weight @ sample
                low, high = sums.min(), sums.max()
                if low < -WORD or high >= WORD:
                    raise UnsupportedError(
                        f"lava-sim: projection {name}: found a sum of "
                        f"{low if low < -WORD else high} mantissas x messages, allowed {-WORD} to "
                        f"{WORD - 1} before its weight exponent {projection.weight_exponent}: "
                        "Lava's synapses add in 32 bits and shift afterwards, and would give "
                        "another result; run it on the emulator, or scale the messages down"
                    )


def _narrow(job: LavaJob) -> list[tuple[str, LavaProjection | LavaSparseProjection]]:
    """Projections of messages into sigma-delta neurons whose exponent shifts right."""
    return [
        (name, projection)
        for name, projection in zip(job.projection_names, job.projections, strict=True)
        if isinstance(projection, LavaProjection | LavaSparseProjection)
        and projection.weight_exponent < 0
        and job.is_graded(projection.source)
        and job.populations[projection.target].graded
    ]


def _by_delay(projection: LavaProjection | LavaSparseProjection) -> list[Any]:
    """The mantissas of each delay as a matrix (out, in): Lava adds those of one delay at a time."""
    weight = projection.weight_mantissa.astype(np.int64)
    delay = np.broadcast_to(projection.delay, weight.shape)
    masked = [np.where(delay == steps, weight, 0) for steps in np.unique(delay)]
    if isinstance(projection, LavaProjection):
        return [csr_array(part) for part in masked]
    place = (projection.post, projection.pre)
    return [csr_array((part, place), projection.shape) for part in masked]
