"""Memory that Lava's forked processes share with the worker: no names, so nothing can be left over.

Anonymous shared mappings are inherited by fork and vanish with the last process, however that one
dies. They carry input to the sources and spikes, u and v back. Lava's own ways are no
alternative: ``Var.get`` and ``Var.set`` send one number at a time between three processes.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FOREVER = 1 << 62


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make a zeroed array on anonymous shared memory, which processes forked later share."""
    kind = np.dtype(dtype)
    count = math.prod(shape)
    # An empty mapping is not allowed.
    memory = mmap.mmap(-1, max(1, count * kind.itemsize))
    return np.frombuffer(memory, kind, count).reshape(shape)


@dataclass(frozen=True, eq=False)
class Timeline:
    """Which row of the shared tapes a Lava step belongs to.

    Lava counts steps from 1. ``base`` is a shared (1,) int64 that the worker moves forward while
    Lava is paused, so that one tape can be used again for every piece of a stream.
    """

    n_steps: int
    period: int
    base: NDArray[np.int64]

    def row(self, time_step: int) -> int:
        """Return the tape's row for a step, or -1 if the step is a hold between samples."""
        sample, step = divmod(time_step - 1 - int(self.base[0]), self.period)
        return sample * self.n_steps + step if step < self.n_steps else -1

    def step(self, time_step: int) -> int:
        """Return the step's number, from 0, within its sample or its stream."""
        # A stream's period has no end, and its runtime is never used for a second stream.
        return (time_step - 1) % self.period


@dataclass(frozen=True, eq=False)
class Tape:
    """What one population records: arrays of (rows, n), None where nobody asked.

    Spikes are uint8, and int32 where they are graded; the rest is int32. reached is a shared (1,)
    int64, the last Lava step that the population has finished.
    """

    timeline: Timeline
    reached: NDArray[np.int64]
    spikes: NDArray[Any] | None
    current: NDArray[np.int32] | None
    voltage: NDArray[np.int32] | None

    def record(self, row: int, spikes: Any, current: Any, voltage: Any) -> None:
        """Store one step."""
        if self.spikes is not None:
            self.spikes[row] = spikes
        if self.current is not None:
            self.current[row] = current
        if self.voltage is not None:
            self.voltage[row] = voltage


@dataclass(frozen=True, eq=False)
class LiveWeights:
    """Weights that may be replaced while Lava is paused: mantissas, shaped as in the job.

    form turns them into what Lava's model of this kind of projection holds.
    """

    mantissa: NDArray[np.int32]
    generation: NDArray[np.int64]
    form: Callable[[NDArray[Any]], Any]

    def write(self, mantissa: NDArray[Any]) -> None:
        """Replace the weights; they act on the spikes of the next step on."""
        self.mantissa[:] = mantissa
        self.generation[0] += 1

    def weights(self) -> Any:
        """Make Lava's weights, which share no memory with the mantissas."""
        return self.form(self.mantissa)


class Refreshing:
    """Base of models that take new weights at the start of a step.

    The arithmetic is that of the class after it. The parameter ``live`` is LiveWeights or None.
    """

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)  # type: ignore[call-arg]
        self.live = proc_params["live"]
        self.generation = 0

    def run_spk(self) -> None:
        """One step of Lava's model, with the weights that are valid now."""
        self.refresh()
        super().run_spk()  # type: ignore[misc]

    def refresh(self) -> None:
        """Take new weights, if there are any."""
        newest = 0 if self.live is None else int(self.live.generation[0])
        if newest != self.generation:
            self.generation = newest
            self.put(self.live.weights())

    def put(self, weights: Any) -> None:
        """Store weights, to be clipped and truncated by Lava."""
        self.weights = weights
        self.weights_set = False


class AnonymousBlock:
    """The part of ``multiprocessing.shared_memory.SharedMemory`` that Lava's channels use."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(1, size))
        self.buf = memoryview(self._memory)

    def close(self) -> None:
        """Nothing to do: the mapping ends with the last reference to it."""


class AnonymousMemory:
    """Stands in for Lava's shared memory manager, with the same methods.

    Lava's own makes named segments in /dev/shm and a server process that should remove them; when
    a run hangs and has to be killed, both are in the way. Lava forks, so names are not needed.
    """

    def __init__(self) -> None:
        self._blocks: list[AnonymousBlock] = []

    def start(self) -> None:
        """Part of Lava's interface."""

    def shutdown(self) -> None:
        """Part of Lava's interface; forgets the blocks."""
        self._blocks.clear()

    def create_shared_memory(self, size: int) -> AnonymousBlock:
        """Make a block of at least ``size`` bytes."""
        block = AnonymousBlock(size)
        self._blocks.append(block)
        return block
