"""Training by surrogate gradients, with forward passes in the chip's integers."""

import importlib.util

from nmtool.errors import DependencyError


def require_torch() -> None:
    """Check that torch is there, which the rest of this package imports.

    Raises:
        DependencyError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise DependencyError("torch is not installed; install with: pip install '.[train]'")
