"""Checks that the parts of a job share."""

from __future__ import annotations

from typing import Any

import numpy as np

from nmtool.errors import UnsupportedError


def require(holds: bool, message: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not holds:
        raise ValueError(message)


def within(owner: str, what: str, values: Any, low: int, high: int) -> None:
    """Raise UnsupportedError, naming the worst value, unless all lie in low..high."""
    array = np.asarray(values)
    if array.size == 0:
        return
    least, most = array.min(), array.max()
    if least < low or most > high:
        worst = least if least < low else most
        raise UnsupportedError(f"{owner}: {what} {worst} is outside of {low}..{high}")
