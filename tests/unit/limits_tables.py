"""The tables of docs/limits.md, from the design rules and the chip files.

Run as a script, it writes them into the page.
"""

import re
from pathlib import Path

from nmtool.chip import load_chip, shipped
from nmtool.designrules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rules_table(severity):
    rows = [
        (f"`{code}`", rule.sentence, rule.advice)
        for code, rule in RULES.items()
        if rule.severity == severity
    ]
    return table(("code", "rule", "what to do"), rows)


def shown(value):
    if value is None:
        return "none"
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def chip_table(name):
    rows = []
    for key, fact in load_chip(name).facts.items():
        rows.append((f"`{key}`", shown(fact.value), fact.standing, fact.source))
        if fact.documented is not None:
            other = fact.documented
            rows.append(("documented instead", shown(other.value), other.standing, other.source))
    return table(("number", "value", "standing", "source"), rows)


def tables():
    """Every table by the name of its place in the page."""
    whole = [name for name, path in shipped("chips").items() if "extends:" not in path.read_text()]
    chips = {name: chip_table(name) for name in whole}
    return {"errors": rules_table("error"), "warnings": rules_table("warning"), **chips}


def filled(page):
    """The page with its tables as they should be."""
    for name, text in tables().items():
        place = rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)"
        page, found = re.subn(
            place, lambda m, text=text: f"{m[1]}\n{text}\n{m[2]}", page, flags=re.DOTALL
        )
        assert found == 1, f"docs/limits.md has no place for the table {name}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
