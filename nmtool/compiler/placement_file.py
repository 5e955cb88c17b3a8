"""Placement files: which neurons are on which core of which chip, to look at and to change.

.. code-block:: yaml

    schema: nmtool.placement/v1
    slices:
      - {population: hidden, neurons: [0, 128], chip: 0, core: 0}
      - {population: conv, box: [[0, 8], [0, 4], [0, 16]], chip: 0, core: 3}

A slice holds the neurons [start, stop) of a population, or a ``box`` of its shape (x, y, channel).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nmtool import yamlio
from nmtool.chip import ChipSpec
from nmtool.compiler.fit import Site, misplaced
from nmtool.compiler.place import Placement, Slice
from nmtool.compiler.wiring import Box, listed
from nmtool.errors import ConfigError
from nmtool.operations import Shape
from nmtool.yamlio import Strict

SCHEMA = "nmtool.placement/v1"

_YAML_WORDS = ("true", "false", "null")
Index = Annotated[int, Field(ge=0, le=1 << 31)]
Range = Annotated[list[Index], Field(min_length=2, max_length=2)]


class SliceEntry(Strict):
    """One slice: the neurons [start, stop) of a population, or a box of its shape, on a core."""

    population: str
    neurons: Range | None = None
    box: Annotated[list[Range], Field(min_length=1, max_length=3)] | None = None
    chip: Index = 0
    core: Index

    @model_validator(mode="after")
    def _one_form(self) -> SliceEntry:
        if (self.neurons is None) == (self.box is None):
            raise ValueError("either neurons or box, one of them")
        return self

    def slice(self) -> Slice:
        """As the compiler has it."""
        ranges = self.box if self.neurons is None else [self.neurons]
        box: Box = tuple((start, stop) for start, stop in ranges or [])
        return Slice(self.population, box, self.chip, self.core)


class PlacementFile(Strict):
    """The schema of a placement file."""

    schema_: Literal["nmtool.placement/v1"] = Field(alias="schema")
    slices: Annotated[list[SliceEntry], Field(min_length=1)]


def read_placement(
    path: str | Path, populations: Mapping[str, Shape], chip: ChipSpec, site: Site
) -> Placement:
    """Read a placement, and hold it against the shapes of all populations and the cores.

    Raises:
        ConfigError: missing or wrong, every problem with file:line:column.
    """
    document = yamlio.read(Path(path))
    file = yamlio.validate(document, PlacementFile)
    placement = tuple(entry.slice() for entry in file.slices)
    for index, violation in misplaced(populations, placement, site.chips, site.cores_of(chip)):
        at = ("slices",) if index is None else ("slices", index)
        document.problems.append((document.where(at), str(violation)))
    document.fail()
    return placement


def placement_text(placement: Placement) -> str:
    """A placement as the text of a file that :func:`read_placement` reads.

    Raises:
        ConfigError: a population whose name a file cannot hold.
    """
    lines = [f"schema: {SCHEMA}", "slices:"]
    return "\n".join([*lines, *(f"  - {{{_entry(part)}}}" for part in placement), ""])


def _entry(part: Slice) -> str:
    if not all(char.isprintable() for char in part.population):
        raise ConfigError(f"population {part.population!r}: found a name that no YAML line holds")
    plain = part.population.isidentifier() and part.population.lower() not in _YAML_WORDS
    name = part.population if plain else _quoted(part.population)
    key = "neurons" if len(part.box) == 1 else "box"
    return f"population: {name}, {key}: {listed(part.box)}, chip: {part.chip}, core: {part.core}"


def _quoted(name: str) -> str:
    """A name in YAML's single quotes, in which nothing but a quote is special."""
    return "'" + name.replace("'", "''") + "'"
