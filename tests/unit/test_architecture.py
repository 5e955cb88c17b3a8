"""What an import may bring with it, where a library may live, and what a module may say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import nmtool

PACKAGE = Path(nmtool.__file__).parent
HEAVY = ("torch", "lava", "sklearn", "scipy", "matplotlib", "pandas")


def modules_after(code):
    """The top-level modules that are loaded once ``code`` has run in a new interpreter."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def module_names(*, without=()):
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(part for part in parts if part not in ("__init__", "__main__"))
        if not any(name.startswith(f"nmtool.{part}") for part in without):
            names.append(name)
    return names


def test_the_package_the_command_line_and_the_api_load_neither_torch_nor_lava():
    loaded = modules_after("import nmtool, nmtool.cli, nmtool.api")
    assert loaded.isdisjoint(HEAVY)
    assert "nmtool" in loaded


def test_import_nmtool_alone_loads_nothing_at_all():
    assert modules_after("import nmtool").isdisjoint({*HEAVY, "numpy", "h5py", "pydantic", "click"})


def test_no_module_outside_training_learning_and_lava_loads_torch_or_lava():
    compiled = ("backends.kernel", "backends.circuit", "backends.emulator")  # numba loads scipy
    names = module_names(without=("training", "learning", "backends.lava", *compiled))
    assert "nmtool.cli.train" in names
    assert modules_after("\n".join(f"import {name}" for name in names)).isdisjoint(HEAVY)


def test_lava_is_not_loaded_before_a_target_is_opened():
    code = "import nmtool; from nmtool.chip import load_hardware; load_hardware('lava-sim')"
    assert modules_after(code).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("h5py", ("formats", "data/recorded.py")),
        ("torch", ("training", "learning")),
        ("lava", ("backends/lava", "training/slayer.py")),
        ("sklearn", ("data", "training/baseline.py")),
        ("ruamel", ("yamlio.py",)),
        ("click", ("cli",)),
        ("pickle", ()),
    ],
)
def test_a_library_lives_in_one_place(library, homes):
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).as_posix()
        if inside.startswith(homes):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            imported = words[1].partition(".")[0] if words[:1] in (["import"], ["from"]) else ""
            assert imported.rstrip(",") != library, f"{inside}: {line}"


def test_chip_arithmetic_is_in_one_place():
    """The 24-bit limit, the 12-bit decay and the 6-bit shift are written down once."""
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).as_posix()
        if inside == "fixedpoint.py":
            continue
        text = path.read_text(encoding="utf-8")
        for number in ("1 << 23", "1 << 24", "2**23", "2**24", "8388608", "16777216"):
            assert number not in text, f"{inside}: {number}"
