"""Rules by name: nmtool's own, and those that a user has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nmtool.errors import ConfigError, NmtoolError
from nmtool.learning.dcll import Dcll
from nmtool.learning.injected import Injected
from nmtool.learning.readout import DeltaRule
from nmtool.learning.rule import Rule, Setting
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
    except Exception as error:
        raise entry_failure("finetune.rule", name, "failed", error) from error
    if not callable(getattr(rule, "gradients", None)):
        raise ConfigError(
            f"finetune.rule {name}: found a return value of type {type(rule).__name__}, allowed "
            "one with a method gradients(twin, batch, learning)"
        )
    made: Rule = rule
    return made
