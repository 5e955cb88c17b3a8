"""What of a network each backend runs: ``nmtool compile --explain``."""

from __future__ import annotations

from collections.abc import Mapping

from nmtool.backends.limits import Limits
from nmtool.cli.common import table
from nmtool.compiler.features import FEATURES, Feature


def support(
    used: Mapping[Feature, list[str]], backends: Mapping[str, Limits]
) -> list[dict[str, object]]:
    """For every kind of layer, neuron and input: which backend runs it, and who uses it."""
    return [
        {
            "feature": feature,
            "used_by": used.get(feature, []),
            **{name: limits.get(feature) or True for name, limits in backends.items()},
        }
        for feature in FEATURES
    ]


def explained(used: Mapping[Feature, list[str]], backends: Mapping[str, Limits]) -> str:
    """The same as a table, with the reasons below."""
    rows = [
        (
            feature,
            *("no" if feature in limits else "yes" for limits in backends.values()),
            ", ".join(used.get(feature, [])),
        )
        for feature in FEATURES
    ]
    reasons = [
        f"{name}, {feature}: {reason}"
        for name, limits in backends.items()
        for feature, reason in limits.items()
    ]
    header = ("layer, neuron or input", *backends, "in this network" if used else "")
    return "\n".join((table(header, rows), "", *reasons))
