"""Rules by name: nmtool's own, and those that a user has written."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmtool.compiler import Program
from nmtool.errors import ConfigError, NmtoolError
from nmtool.learning.dcll import Dcll
from nmtool.learning.host import check_gradients
from nmtool.learning.injected import Injected
from nmtool.learning.readout import DeltaRule
from nmtool.learning.rule import Batch, Gradients, Rule, Setting
from nmtool.learning.twin import Twin
from nmtool.training.build import entry_failure, find_entry

RULES: dict[str, Callable[[Setting], Rule]] = {
    "dcll": Dcll.make,
    "readout": DeltaRule.make,
    "bptt-injected": Injected.make,
}


def make_rule(name: str, setting: Setting) -> Rule:
    """A rule for a program, by its name, or ``module:name`` of a callable that makes one.

    A user's own is called with the ``Setting``; its module is looked for in the working directory
    first.

    Raises:
        ConfigError: it cannot be imported, fails, or makes something else than a rule.
    """
    if name in RULES:
        return RULES[name](setting)
    make = find_entry("finetune.rule", name, Path.cwd())
    try:
        rule = make(setting)
    except NmtoolError:
        raise
    except (Exception, SystemExit) as error:
        raise entry_failure("finetune.rule", name, "failed", error) from error
    if not callable(getattr(rule, "gradients", None)):
        raise ConfigError(
            f"finetune.rule {name}: found a return value of type {type(rule).__name__}, allowed "
            "one with a method gradients(twin, batch, learning)"
        )
    return Own(name, rule)


@dataclass(frozen=True, eq=False)
class Own:
    """A user's rule; what it does wrong is told as the user's.

    Attributes:
        name: ``module:name`` of what made it.
        rule: what it made.
    """

    name: str
    rule: Rule

    def gradients(self, twin: Twin, batch: Batch, learning: Collection[str]) -> Gradients:
        """What the rule says, if it is gradients of what is learning.

        Raises:
            ConfigError: the rule raised, or returned something else.
        """
        try:
            found = self.rule.gradients(twin, batch, learning)
        except NmtoolError:
            raise
        except (Exception, SystemExit) as error:
            raise entry_failure("finetune.rule", self.name, "gradients failed", error) from error
        try:
            check_gradients(found, twin.program)
            _check_learning(found, twin.program, learning)
        except Exception as error:  # what is no array says so in many ways
            message = str(error).removeprefix("finetune.rule: ")
            raise ConfigError(f"finetune.rule {self.name}: gradients: {message}") from None
        weights = {name: np.asarray(g, dtype=np.float64) for name, g in found.weights.items()}
        return Gradients(weights, float(found.loss))


def _check_learning(found: Gradients, program: Program, learning: Collection[str]) -> None:
    """Refuse gradients of what does not learn now."""
    for name in found.weights:
        if (target := program.network.projections[name].target) not in learning:
            raise ConfigError(
                f"found a gradient of {name!r}, which goes into {target}, allowed projections "
                f"into what is learning: {', '.join(learning) or 'nothing'} (the third argument)"
            )
