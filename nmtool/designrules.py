"""Design rules: what must hold before a network goes to a chip, each under a code that stays.

Every stage that finds a rule broken says so under the same code: scripts and users may refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nmtool.errors import FitError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Rule:
    """What must hold, and what to do where it does not."""

    sentence: str
    advice: str
    severity: Severity = "error"


RULES: dict[str, Rule] = {
    "NM-FIT-001": Rule(
        "A register holds the values of its bits only.",
        "scale the weights and the threshold together, or choose another decay",
    ),
    "NM-FIT-002": Rule(
        "The exponent of a projection's weights is within the chip's range.",
        "scale the weights and the threshold of the target together",
    ),
    "NM-FIT-003": Rule(
        "Weights have a number of bits that the chip stores.",
        "compile with another number of weight bits",
    ),
    "NM-FIT-004": Rule(
        "Weight mantissas lie on the grid of their synapse format.",
        "quantise the weights again",
    ),
    "NM-FIT-005": Rule("A delay is within the chip's range.", "train with a smaller largest delay"),
    "NM-FIT-006": Rule(
        "An axonal and a synaptic delay together are within the chip's range.",
        "shorten one of the two",
    ),
    "NM-FIT-007": Rule(
        "The refractory delay is within the chip's range.", "choose a shorter refractory delay"
    ),
    "NM-FIT-008": Rule(
        "Bias mantissa and exponent are within the chip's range.",
        "choose another bias_exponent, or a smaller bias",
    ),
    "NM-FIT-009": Rule(
        "The scales of a sigma-delta neuron leave room in its state.",
        "choose smaller spike and state exponents",
    ),
    "NM-FIT-010": Rule(
        "Graded messages need a chip whose spikes carry them.",
        "use spiking neurons and spike inputs, or compile for loihi2",
    ),
    "NM-FIT-020": Rule("A core's neurons fit it.", "compile for another chip"),
    "NM-FIT-021": Rule(
        "The synapses of one neuron, or the kernels of one channel, fit a core's memory.",
        "use fewer weight bits, fewer sources, or a smaller kernel",
    ),
    "NM-FIT-022": Rule(
        "The sources of one neuron fit a core's input axons.",
        "use fewer sources: a layer between, pooling, or the source population in two (on Loihi 2 "
        "every source of a projection counts, also one without a synapse there; inferred)",
    ),
    "NM-FIT-023": Rule(
        "The cores that one neuron sends to fit a core's output axons.",
        "send to fewer populations or cores: a layer between, or smaller targets",
    ),
    "NM-FIT-024": Rule(
        "Synapses, axons and neurons together fit a core's memory.",
        "use fewer weight bits or fewer sources",
    ),
    "NM-FIT-025": Rule("A core's neuron groups fit it.", "compile for another chip"),
    "NM-FIT-026": Rule("A core's threshold profiles fit it.", "compile for another chip"),
    "NM-FIT-027": Rule(
        "The synapse formats of the projections into a population fit a core.",
        "give projections the same weight bits and exponent, or join them",
    ),
    "NM-FIT-028": Rule(
        "The delays of a neuron fit a core's accumulator slots.", "use shorter delays"
    ),
    "NM-FIT-030": Rule(
        "The slices of a network fit the cores of the target.",
        "use fewer neurons, weight bits or shorter delays, or a board of more chips",
    ),
    "NM-FIT-031": Rule(
        "A given placement holds every neuron once, on cores that there are.",
        "change the placement, or leave it out",
    ),
    "NM-FIT-040": Rule(
        "A program keeps to its budget.",
        "make the network smaller, or the budget larger",
    ),
    "NM-FIT-050": Rule(
        "A convolution's source is not wider than one spike address counts.",
        "turn the axes, or pool the input",
        "warning",
    ),
    "NM-FIT-051": Rule(
        "Large inputs of a convolution between spiking neurons have stopped Loihi 2 without a "
        "message.",
        "run it with a timeout, or pool the input",
        "warning",
    ),
    "NM-FIT-052": Rule(
        "A reset interval is a power of two on the chip.",
        "choose a power of two; lava-loihi refuses others, simulators run them",
        "warning",
    ),
    "NM-FIT-053": Rule(
        "Probed neurons fit the counters of a chip's embedded processors.",
        "probe fewer populations",
        "warning",
    ),
    "NM-FIT-060": Rule(
        "A value is one that a register of the chip holds.",
        "choose a value that the register holds; simulators run it as it is",
        "warning",
    ),
    "NM-FIT-061": Rule(
        "No parameter is clipped to the range of its register.",
        "scale it and the threshold down, or train within the range",
        "warning",
    ),
    "NM-FIT-062": Rule(
        "Quantising leaves most weights other than 0.",
        "limit the few large weights that set the scale of all, or use more bits",
        "warning",
    ),
    "NM-FIT-063": Rule(
        "Every target neuron keeps a weight other than 0.",
        "use more weight bits, or a smaller range of weights",
        "warning",
    ),
    "NM-FIT-064": Rule(
        "Something feeds every population, strongly enough for a spike.",
        "add a projection, an input or a bias, or choose a larger bias_exponent",
        "warning",
    ),
    "NM-FIT-065": Rule(
        "Every neuron can spike.",
        "lower the threshold, or raise the weights of the neurons that cannot",
        "warning",
    ),
    "NM-FIT-066": Rule(
        "No input drives u or v out of their registers.",
        "scale the weights and the threshold down; simulators show whether your inputs do",
        "warning",
    ),
}
"""All rules by their codes: 001 to 010 values, 020 to 028 one core, 030 to 040 the whole network,
050 to 053 what the chip does not run well, 060 to 066 what is likely not meant."""


@dataclass(frozen=True)
class Violation:
    """One rule that does not hold: which object, what was found, what is allowed.

    ``basis`` says whether a documented or an inferred limit is behind it, and its source.
    """

    code: str
    where: str
    found: str
    allowed: str
    basis: str = ""
    advice: str = ""

    @property
    def severity(self) -> Severity:
        """Error or warning."""
        return RULES[self.code].severity

    def __str__(self) -> str:
        basis = f" ({self.basis})" if self.basis else ""
        advice = self.advice or RULES[self.code].advice
        return (
            f"{self.code} {self.where}: found {self.found}, allowed {self.allowed}{basis}; {advice}"
        )


def in_order(violations: Iterable[Violation]) -> list[Violation]:
    """Errors before warnings, then by code; those of one code as they were found."""
    return sorted(violations, key=lambda v: (v.severity, v.code))


def refuse(violations: Iterable[Violation]) -> None:
    """Raise all errors among violations at once, in the order of their codes.

    Raises:
        FitError: one line for each.
    """
    if errors := [v for v in in_order(violations) if v.severity == "error"]:
        raise FitError("\n".join(map(str, errors)))
