r"""Synapse memory: how many bits the rows of a projection take in a core.

A row holds the synapses of one input axon. n synapses of b bits, each with i bits of index and d
of delay, take

.. math::
    M(n) = w \sum_{\text{blocks}} \left\lceil \frac{n_k (b + i + d) + h}{w} \right\rceil

bits: words of w bits, one header of h bits for every block of n_k synapses (Loihi 1: 64; Loihi 2:
all at once). Sources: nengo-loihi ``block.py`` (Loihi 1); for Loihi 2 the formula is inferred from
what Intel's compiler printed in the netx notebooks of lava-dl.
"""

from __future__ import annotations

import numpy as np

from nmtool.chip import SynapseMemory
from nmtool.fixedpoint import IntArray


def row_bits(synapses: IntArray | int, bits: int, memory: SynapseMemory) -> IntArray:
    """Bits of rows of so many synapses, each of ``bits`` bits with its index and delay."""
    count = np.asarray(synapses, dtype=np.int64)
    if memory.block is None:
        return _words(count * bits + memory.header_bits, memory) * (count > 0)
    whole, rest = np.divmod(count, memory.block)
    full = _words(np.asarray(memory.block * bits + memory.header_bits), memory)
    return whole * full + _words(rest * bits + memory.header_bits, memory) * (rest > 0)


def kernel_bits(rows: int, outputs: int, bits: int, memory: SynapseMemory) -> int:
    """Bits of shared kernels: ``rows`` weights of each of ``outputs`` channels."""
    shares = np.array(powers_of_two(outputs, memory.kernel_channels_min), dtype=np.int64)
    words = _words(shares * bits + memory.kernel_header_bits, memory)
    return rows * int(words.sum())


def powers_of_two(channels: int, smallest: int) -> list[int]:
    """The powers of two, the largest first, whose sum holds so many channels.

    Channels are rounded up to a multiple of ``smallest``, a power of two.
    """
    rounded = -(-channels // smallest) * smallest
    return [1 << bit for bit in range(rounded.bit_length() - 1, -1, -1) if rounded >> bit & 1]


def index_bits(targets: int, memory: SynapseMemory) -> int | None:
    """Bits of the index of a single synapse among so many targets; None: more than there are."""
    if memory.sparse_index_bits is None:
        return memory.index_bits
    needed = max(targets - 1, 0).bit_length()
    return min((bits for bits in memory.sparse_index_bits if bits >= needed), default=None)


def delay_bits(longest: int, memory: SynapseMemory) -> int:
    """Bits that a synapse takes for its delay."""
    return longest.bit_length() if memory.delays else 0


def _words(bits: IntArray, memory: SynapseMemory) -> IntArray:
    """Whole words, in bits."""
    return np.asarray(-(-bits // memory.word_bits) * memory.word_bits)
