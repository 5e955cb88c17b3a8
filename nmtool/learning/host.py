"""The host's side of the loop: shadow weights, local updates, re-quantising."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from nmtool.chip import SynapseFormat
from nmtool.compiler import Program
from nmtool.errors import ConfigError
from nmtool.fixedpoint import FloatArray, IntArray
from nmtool.learning.rule import Batch, Gradients, Rule
from nmtool.learning.twin import Twin
from nmtool.quantization import WEIGHT_SCALE, quantize_weights

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Weights = dict[str, FloatArray]


@dataclass
class HostState:
    """Real shadow weights by projection, and Adam's moments of their gradients."""

    shadow: Weights
    first: Weights
    second: Weights
    updates: dict[str, int]

    @classmethod
    def start(cls, weights: Mapping[str, FloatArray]) -> HostState:
        """Shadow weights as given, moments of zero."""
        shadow = {name: np.asarray(w, dtype=np.float64).copy() for name, w in weights.items()}
        zeros = {name: np.zeros_like(w) for name, w in shadow.items()}
        second = {name: np.zeros_like(w) for name, w in shadow.items()}
        return cls(shadow, zeros, second, dict.fromkeys(shadow, 0))


@dataclass(frozen=True, eq=False)
class Host:
    """What turns measured spikes into weights: a rule, and an optimizer of the shadow weights."""

    twin: Twin
    rule: Rule

    def update(
        self,
        state: HostState,
        deployed: Program,
        batch: Batch,
        learning: Collection[str],
        rates: Mapping[str, float],
    ) -> float:
        """One step of learning; returns the loss.

        ``learning`` names the populations whose afferent weights change, at their ``rates``;
        ``deployed`` is what ran.
        """
        self.twin.deploy(deployed)
        found = self.rule.gradients(self.twin, batch, learning)
        check_gradients(found, deployed)
        for name, gradient in found.weights.items():
            projection = deployed.network.projections[name]
            _adam(state, name, gradient, rates[projection.target])
            _keep_in_range(state.shadow[name], projection.format)
        return found.loss

    def mantissas(self, state: HostState) -> dict[str, IntArray]:
        """The shadow weights rounded to the frozen format of each projection."""
        projections = self.twin.network.projections
        return {
            name: quantize_weights(shadow, projections[name].format)
            for name, shadow in state.shadow.items()
        }


def check_gradients(gradients: Gradients, program: Program) -> None:
    """Check what a rule made.

    Raises:
        ConfigError: no gradients, of no projection of the program, of another shape, or no finite
            numbers.
    """
    if not isinstance(gradients, Gradients) or not isinstance(gradients.weights, Mapping):
        raise ConfigError(
            f"finetune.rule: found a return value of {_kind(gradients)}, allowed "
            "nmtool.learning.rule.Gradients(weights, loss) with weights by projection"
        )
    if not _finite(gradients.loss) or np.ndim(gradients.loss):
        raise ConfigError(
            f"finetune.rule: found the loss {gradients.loss!r}, allowed a finite number"
        )
    projections = program.network.projections
    for name, gradient in gradients.weights.items():
        if name not in projections:
            raise ConfigError(
                f"finetune.rule: found a gradient of {name!r}, allowed {', '.join(projections)}"
            )
        if np.shape(gradient) != (shape := projections[name].weight_mantissa.shape):
            raise ConfigError(
                f"finetune.rule: projection {name}: found a gradient of shape "
                f"{np.shape(gradient)}, allowed {shape}, as the weights"
            )
        if not _finite(gradient):
            raise ConfigError(
                f"finetune.rule: projection {name}: found a gradient that is not finite, allowed "
                "finite numbers"
            )


def _kind(gradients: object) -> str:
    """What a rule returned in place of gradients, by its type."""
    if isinstance(gradients, Gradients):
        return f"type Gradients with weights of type {type(gradients.weights).__name__}"
    return f"type {type(gradients).__name__}"


def _finite(values: object) -> bool:
    """Whether all of it are finite real numbers."""
    array = np.asarray(values)
    return array.dtype.kind in "fiu" and bool(np.all(np.isfinite(array)))


def _keep_in_range(shadow: FloatArray, format: SynapseFormat) -> None:
    unit = 2.0**format.exponent / WEIGHT_SCALE
    np.clip(shadow, format.minimum * unit, format.maximum * unit, out=shadow)


def _adam(state: HostState, name: str, change: FloatArray, rate: float) -> None:
    """Adam (Kingma and Ba 2015)."""
    state.updates[name] += 1
    count = state.updates[name]
    state.first[name] = BETA1 * state.first[name] + (1 - BETA1) * change
    state.second[name] = BETA2 * state.second[name] + (1 - BETA2) * change**2
    first = state.first[name] / (1 - BETA1**count)
    second = state.second[name] / (1 - BETA2**count)
    state.shadow[name] = state.shadow[name] - rate * first / (np.sqrt(second) + EPSILON)
