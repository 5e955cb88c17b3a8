"""A picture of a placement: which population is on which core of which chip."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmtool.chip import ChipSpec
from nmtool.compiler import Fit, Program
from nmtool.errors import DependencyError, UsageError
from nmtool.formats.container import writing

FORMATS = ("png", "svg", "pdf")
_FREE, _EDGE = "#f2f2f2", "#9a9a9a"
_PER_ROW = 4
"""Chips side by side."""
_IN_TILE = 2
"""Cores side by side in a tile; how they lie there is not known, and costs no hop."""


def check_map(path: Path) -> None:
    """Refuse what could not be drawn, before anything is compiled.

    Raises:
        UsageError: another kind of picture.
        DependencyError: matplotlib is missing.
    """
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        allowed = ", ".join(f".{name}" for name in FORMATS)
        raise UsageError(f"--map {path}: found {path.suffix or 'no ending'!r}, allowed {allowed}")
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("--map: matplotlib is missing; install it: pip install matplotlib")


def draw_map(path: Path, program: Program, chip: ChipSpec) -> None:
    """Draw the placement of a program, written whole or not at all.

    Raises:
        WriteError: it cannot be written.
    """
    figure = core_map(program, chip)
    with writing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".").lower(), dpi=150)


def core_map(program: Program, chip: ChipSpec) -> Any:
    """The figure: a mesh of tiles for each chip in use, a colour for each population."""
    from matplotlib.figure import Figure

    fit = program.fit
    assert fit is not None
    used = sorted({part.chip for part in program.placement})
    columns = min(len(used), _PER_ROW)
    rows = -(-len(used) // _PER_ROW)
    figure = Figure(figsize=(max(3.4 * columns, 7.0), 2.2 * rows + 1.4), layout="constrained")
    colours = population_colours(program)
    for index, number in enumerate(used):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_chip(axes, program, chip, number, colours)
    figure.suptitle(_title(program, fit, len(used)), fontsize=10)
    figure.legend(
        handles=_legend(fit, colours),
        loc="outside lower center",
        ncols=4,
        fontsize=7,
        frameon=False,
    )
    return figure


def population_colours(program: Program) -> dict[str, Any]:
    """A colour for each population: neighbours in data-flow order differ."""
    from matplotlib import colormaps

    names = [name for name in program.order if name in program.network.populations]
    if len(names) <= 20:
        table = [colormaps["tab20"](index) for index in range(20)]
        # the strong tones first, their light ones after them
        tones = [*table[::2], *table[1::2]]
        return {name: tones[index] for index, name in enumerate(names)}
    wheel = colormaps["hsv"]
    # Steps of the golden ratio around the wheel keep neighbours apart.
    return {name: wheel(index * 0.618034 % 1.0) for index, name in enumerate(names)}


def core_corner(chip: ChipSpec, core: int) -> tuple[int, int]:
    """The corner (x, y) of a core, in cores from the lower left; tiles are numbered along y."""
    tile, inside = divmod(core, chip.cores_per_tile)
    x, y = divmod(tile, chip.mesh[1])
    width = min(_IN_TILE, chip.cores_per_tile)
    height = -(-chip.cores_per_tile // width)
    return x * width + inside % width, y * height + inside // width


def _draw_chip(
    axes: Any, program: Program, chip: ChipSpec, number: int, colours: dict[str, Any]
) -> None:
    from matplotlib.patches import Rectangle

    assert program.fit is not None
    held: dict[int, list[str]] = {}
    for part in program.placement:
        if part.chip == number and part.population not in held.setdefault(part.core, []):
            held[part.core].append(part.population)
    for core in range(program.fit.cores_per_chip):
        corner = core_corner(chip, core)
        names = held.get(core, [])
        for at, name in enumerate(names):
            share = 1 / len(names)
            left = (corner[0] + at * share, corner[1])
            axes.add_patch(Rectangle(left, share, 1, facecolor=colours[name]))
        face = "none" if names else _FREE
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=_EDGE, linewidth=0.4))
    _draw_tiles(axes, chip)
    axes.set_title(f"chip {number}: {len(held)} of {program.fit.cores_per_chip} cores", fontsize=8)


def _draw_tiles(axes: Any, chip: ChipSpec) -> None:
    """The edges of the tiles and the extent of the mesh, with tile numbers on the axes."""
    width = min(_IN_TILE, chip.cores_per_tile)
    height = -(-chip.cores_per_tile // width)
    nx, ny = chip.mesh
    axes.set_xlim(0, nx * width)
    axes.set_ylim(0, ny * height)
    for x in range(nx + 1):
        axes.axvline(x * width, color=_EDGE, linewidth=1.0)
    for y in range(ny + 1):
        axes.axhline(y * height, color=_EDGE, linewidth=1.0)
    axes.set_aspect("equal")
    axes.set_xticks([(x + 0.5) * width for x in range(nx)], range(nx), fontsize=6)
    axes.set_yticks([(y + 0.5) * height for y in range(ny)], range(ny), fontsize=6)
    axes.tick_params(length=0)


def _title(program: Program, fit: Fit, chips: int) -> str:
    return (
        f"{program.network.name}, program {program.fingerprint}: {fit.cores} of "
        f"{fit.cores_available} cores, {chips} of {fit.chips} chips of {program.chip} "
        "(tiles by x and y; the order inside a tile is arbitrary)"
    )


def _legend(fit: Fit, colours: dict[str, Any]) -> Sequence[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(
            facecolor=colours[layer.population],
            label=f"{layer.population} ({layer.cores})",
        )
        for layer in fit.layers
    ]
