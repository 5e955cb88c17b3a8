"""A device that is not the CPU, on any machine: tensors that say ``meta``, and have numbers.

Torch computes nothing on its device ``meta``. Here a tensor on it holds one on the CPU, with which
every operation is carried out; an operation that takes tensors of both devices is an error, as it
is with CUDA (which allows a number without dimensions from the CPU). Reading such a tensor as an
array of numpy is one too, by torch itself.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
CROSSES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
"""What may take tensors of both devices."""


class There(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=DEVICE, **layout
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return carried_out(function, arguments, options or {})


def carried_out(function, arguments, options):
    """An operation, with the tensors that the second device's hold."""
    given = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
    there = [x for x in given if isinstance(x, There)]
    here = [x for x in given if not isinstance(x, There) and x.dim()]
    if there and here and function not in CROSSES:
        raise RuntimeError(f"{function} found tensors on both devices")
    wanted = options.get("device")
    if wanted is not None:
        options = {**options, "device": torch.device("cpu")}
    arguments, options = tree_map(inner, (arguments, options))
    result = function(*arguments, **options)
    onto = there if wanted is None else torch.device(wanted) == DEVICE
    if not onto or (function is CROSSES[1] and not isinstance(given[0], There)):
        return result
    held = {id(x.inner): x for x in there}
    return tree_map(lambda x: outer(x, held), result)


def inner(x):
    return x.inner if isinstance(x, There) else x


def outer(x, held):
    """A tensor of the second device: the one that holds x, if an operation changed it in place."""
    if not isinstance(x, torch.Tensor):
        return x
    return held[id(x)] if id(x) in held else There(x)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return carried_out(function, arguments, options or {})


class _Constants(TorchFunctionMode):
    """``torch.tensor`` makes tensors beneath all operations: let it make them on the CPU."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function is not torch.tensor:
            return function(*arguments, **options)
        device = options.pop("device", None)
        made = function(*arguments, **options)
        return made if device is None else made.to(device)


@contextlib.contextmanager
def second_device():
    """The second device is there; tensors go to it with ``.to(DEVICE)``."""
    with _Operations(), _Constants():
        yield DEVICE
