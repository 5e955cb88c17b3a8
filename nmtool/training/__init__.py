"""Training by surrogate gradients, with forward passes in the chip's integers."""

import importlib.util

from nmtool.config import Device
from nmtool.errors import DependencyError


def require_torch() -> None:
    """Check that torch is there, which the rest of this package imports.

    Raises:
        DependencyError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise DependencyError("torch is not installed; install with: pip install '.[train]'")


def require_device(device: Device) -> None:
    """Check that torch can train there, and that lava-dl can compile its kernels for it.

    Raises:
        DependencyError: no CUDA device, or no compiler of CUDA's.
    """
    if device == "cpu":
        return
    import torch
    from torch.utils import cpp_extension

    if not torch.cuda.is_available():
        raise DependencyError(
            f"train.device: found cuda, allowed cpu: torch {torch.__version__} finds no CUDA "
            "device on this machine; install NVIDIA's driver and a torch built for CUDA, or train "
            "with -s train.device=cpu"
        )
    if cpp_extension.CUDA_HOME is None or not cpp_extension.is_ninja_available():
        raise DependencyError(
            "train.device: found cuda without CUDA's compiler nvcc and ninja, with which lava-dl "
            "compiles its kernels; install the CUDA toolkit (and set CUDA_HOME) and ninja (pip "
            "install ninja), or train with -s train.device=cpu"
        )
