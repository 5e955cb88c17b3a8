"""Chains of operations in torch, in double precision: exact for the chip's integers.

``apply_chain`` is ``nmtool.operations.apply_chain`` with the weights as an argument, so that torch
has their gradient, whatever the operation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from nmtool.fixedpoint import FloatArray
from nmtool.operations import (
    Chain,
    Conv,
    Dense,
    Flatten,
    Operation,
    Shape,
    Sparse,
    SumPool,
)


def apply_chain(
    operations: Chain, x: torch.Tensor, shape: Shape, weight: torch.Tensor
) -> torch.Tensor:
    """What a chain makes of x, shape (rows, sources), each of ``shape``: (rows, targets).

    ``weight`` takes the place of the weights of the one operation that has any.
    """
    for operation in operations:
        x = _apply(operation, x, shape, weight)
        shape = operation.output_shape(shape)
    return x


def weight_gradient(
    operations: Chain, x: FloatArray, shape: Shape, weight_shape: Shape, arriving: FloatArray
) -> FloatArray:
    r"""The vector-Jacobian product :math:`\sum_r g_r \cdot \partial y_r / \partial w`.

    Args:
        operations: the chain, one operation of which has weights.
        x: what goes in, shape (rows, sources).
        shape: of one row of x.
        weight_shape: of the weights; a chain is linear in them, so only their shape matters.
        arriving: g, what y is multiplied by, shape (rows, targets).
    """
    leaf = torch.zeros(weight_shape, dtype=torch.float64, requires_grad=True)
    y = apply_chain(operations, torch.from_numpy(x), shape, leaf)
    (found,) = torch.autograd.grad(y, leaf, torch.from_numpy(arriving))
    return np.asarray(found.numpy())


def _apply(
    operation: Operation, x: torch.Tensor, shape: Shape, weight: torch.Tensor
) -> torch.Tensor:
    if isinstance(operation, Dense):
        return x @ weight.T
    if isinstance(operation, Sparse):
        return x @ _matrix(operation, weight).T
    if isinstance(operation, Conv):
        how = (operation.stride, operation.padding, operation.dilation, operation.groups)
        return _rows(F.conv2d(_image(x, shape), weight.permute(0, 3, 1, 2), None, *how))
    if isinstance(operation, SumPool):
        return _rows(_sums(operation, _image(x, shape)))
    if isinstance(operation, Flatten):
        return x.reshape(-1, *shape).permute(0, *range(len(shape), 0, -1)).flatten(1)
    return x * weight


def _matrix(sparse: Sparse, weight: torch.Tensor) -> torch.Tensor:
    at = torch.from_numpy(sparse.target), torch.from_numpy(sparse.source)
    return torch.zeros(sparse.size, dtype=weight.dtype).index_put(at, weight)


def _image(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Rows as torch has images: (rows, channels, x, y)."""
    return x.reshape(-1, *shape).permute(0, 3, 1, 2)


def _rows(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 2, 3, 1).flatten(1)


def _sums(pool: SumPool, image: torch.Tensor) -> torch.Tensor:
    x, y = (
        -(image.shape[a + 2] + 2 * pool.padding[a] - pool.kernel[a]) % pool.stride[a]
        if pool.overhang
        else 0
        for a in (0, 1)
    )
    (px, py) = pool.padding
    padded = F.pad(image, (py, py + y, px, px + x))
    return F.avg_pool2d(padded, pool.kernel, pool.stride, divisor_override=1)
