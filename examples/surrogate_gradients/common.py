"""What the scripts of this folder share: spikes with a chosen derivative, LIF layers, the ending.

A script measures something, says what must hold of it and draws it::

    python examples/surrogate_gradients/closed_loop.py [--json] [--figure FILE.png] [--short]

It prints its table (or JSON), draws its figure into ``docs/figures`` unless told otherwise, and
exits with 1 if something that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from nmtool.config import Noise, Surrogate
from nmtool.errors import DependencyError, NmtoolError, WriteError
from nmtool.training import require_torch

try:
    require_torch()
    import torch
except DependencyError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

from nmtool.training.model import reproducible
from nmtool.training.noise import probability
from nmtool.training.surrogates import derivative, escape_derivative

FIGURES = Path(__file__).parents[2] / "docs" / "figures"

FloatArray: TypeAlias = npt.NDArray[np.float64]
Row: TypeAlias = Mapping[str, Any]
Emit: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Spikes from the distance of the voltage to the threshold."""
Measured = TypeVar("Measured")


def sigmoid(x: Any, beta: float) -> FloatArray:
    r""":math:`\sigma_\beta(x) = 1 / (1 + e^{-\beta x})`."""
    return np.asarray(expit(beta * np.asarray(x, dtype=np.float64)))


def sigmoid_slope(x: Any, beta: float) -> FloatArray:
    r""":math:`\sigma_\beta'(x) = \beta\, \sigma_\beta(x) (1 - \sigma_\beta(x))`."""
    p = sigmoid(x, beta)
    return beta * p * (1 - p)


@dataclass(frozen=True)
class Statement:
    """A script: how it measures, its table, what must hold of it, and its figure.

    Attributes:
        name: of the figure.
        title: the statement in one line.
        measure: called with ``short``; returns what the other three are called with.
        rows: the table, one mapping a row, all with the same keys.
        claims: what must hold, by its text.
        draw: draws into an empty figure.
    """

    name: str
    title: str
    measure: Callable[[bool], Any]
    rows: Callable[[Any], Sequence[Row]]
    claims: Callable[[Any], Mapping[str, bool]]
    draw: Callable[[Any, Any], None]

    def main(self) -> int:
        """Run the script; returns its exit code."""
        arguments = self._arguments()
        try:
            return self._run(arguments.short, arguments.json, arguments.figure)
        except NmtoolError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code

    def _run(self, short: bool, as_json: bool, figure: Path) -> int:
        started = time.monotonic()
        with reproducible():
            measured = self.measure(short)
        rows, claims = self.rows(measured), self.claims(measured)
        save_figure(figure, lambda canvas: self.draw(canvas, measured))
        seconds = round(time.monotonic() - started, 1)
        document = {
            "statement": self.title,
            "table": rows,
            "holds": claims,
            "figure": str(figure),
            "seconds": seconds,
        }
        print(json.dumps(document, indent=2) if as_json else _text(document))
        failed = [text for text, holds in claims.items() if not holds]
        for text in failed:
            print(f"does not hold: {text}", file=sys.stderr)
        return 1 if failed else 0

    def _arguments(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--json", action="store_true", help="print the table as JSON")
        parser.add_argument("--short", action="store_true", help="fewer samples and updates")
        parser.add_argument(
            "--figure",
            type=Path,
            default=FIGURES / f"{self.name}.png",
            help="where to draw; default %(default)s",
        )
        return parser.parse_args()


def save_figure(path: Path, draw: Callable[[Any], None]) -> None:
    """Draw into a new figure and write it.

    Raises:
        DependencyError: matplotlib is missing.
        WriteError: the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DependencyError(
            "matplotlib is not installed; install with: pip install '.[lava]'"
        ) from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 3.2), layout="constrained")
    draw(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90)
    except (OSError, ValueError) as error:
        raise WriteError(
            f"figure {path}: cannot be written ({error}); give another --figure"
        ) from error
    finally:
        plt.close(figure)


def _text(document: Mapping[str, Any]) -> str:
    rows = [{key: _cell(value) for key, value in row.items()} for row in document["table"]]
    width = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [document["statement"], ""]
    lines += ["  ".join(key.ljust(width[key]) for key in width)]
    lines += ["  ".join(row[key].ljust(width[key]) for key in width) for row in rows]
    lines += ["", *(f"{'yes' if holds else 'NO '}  {t}" for t, holds in document["holds"].items())]
    return "\n".join([*lines, f"{document['seconds']} s; {document['figure']}"])


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def spike(distance: torch.Tensor, fired: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """``fired`` (0 or 1) in the forward pass, ``slope`` as its derivative in the backward pass."""
    return fired.to(distance.dtype) + slope.detach() * (distance - distance.detach())


def step(surrogate: Surrogate) -> Emit:
    """Deterministic spikes above the threshold, with a surrogate derivative of nmtool's."""
    rho = derivative(surrogate, threshold=1.0)
    return lambda distance: spike(distance, distance > 0, rho(distance.detach(), torch))


def escape(noise: Noise, generator: torch.Generator, surrogate: Surrogate | None = None) -> Emit:
    """Spikes by chance, as nmtool's escape noise has them.

    The surrogate is by default the one that belongs to the noise, the derivative of its escape
    function.
    """
    rho = derivative(surrogate, threshold=1.0) if surrogate else escape_derivative(noise)

    def emit(distance: torch.Tensor) -> torch.Tensor:
        p = torch.as_tensor(probability(noise, distance.detach().numpy()))
        drawn = torch.rand(p.shape, generator=generator, dtype=p.dtype)
        return spike(distance, drawn < p, rho(distance.detach(), torch))

    return emit


@dataclass(frozen=True)
class Lif:
    r"""Current-based leaky integrate-and-fire neurons with a hard reset.

    .. math::
        u[t] = \alpha\, u[t-1] + x[t], \quad
        v[t] = \beta\, v[t-1] (1 - s[t-1]) + u[t], \quad
        s[t] = \mathrm{emit}(v[t] - \vartheta)

    The reset is a constant in the backward pass, unless ``reset_has_gradient``. Neurons whose
    spikes are ``given`` are reset where those are, whatever they emit: their history is known
    (zeros: no reset at all).
    """

    keep_current: float
    keep_voltage: float
    threshold: float = 1.0
    reset_has_gradient: bool = False

    def run(
        self, arriving: torch.Tensor, emit: Emit, given: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Spikes from what arrives; all of shape (steps, ..., neurons)."""
        u = v = torch.zeros_like(arriving[0])
        spikes: list[torch.Tensor] = []
        for t, x in enumerate(arriving):
            u = self.keep_current * u + x
            v = self.keep_voltage * v + u
            spikes.append(emit(v - self.threshold))
            v = v * (1 - self._resets(spikes[t], None if given is None else given[t]))
        return torch.stack(spikes)

    def _resets(self, spikes: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        if given is not None:
            return given
        return spikes if self.reset_has_gradient else spikes.detach()
