"""Rules by name."""

from __future__ import annotations

from nmtool.learning.dcll import Dcll
from nmtool.learning.rule import Rule, Setting

RULES = {"dcll": Dcll.make}


def make_rule(name: str, setting: Setting) -> Rule:
    """A rule for a program, by its name."""
    return RULES[name](setting)
