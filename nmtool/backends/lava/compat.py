"""Make lava-nc 0.10.0 and lava-dl 0.6.0 importable on current Pythons.

Both wheels declare Python 3.10 only. On 3.11 and later exactly one thing breaks: dataclasses
refuse an unhashable default, and ``lava.magma.compiler.var_model`` has fields whose default is an
instance of the dataclass ``ByteEncoder``. That one class gets a hash while that one module is
executed, and loses it again afterwards. Nothing outside of the module is touched.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import Any

from nmtool.errors import DependencyError

KNOWN_LAVA = frozenset({"0.10.0"})
KNOWN_LAVA_DL = frozenset({"0.6.0"})
INSTALL = (
    "install with: pip install '.[lava]' in a checkout of nmtool, then: pip install --no-deps "
    "--ignore-requires-python lava-nc==0.10.0 lava-dl==0.6.0"
)
INTEL = (
    "lava-loihi is Intel's own and comes with membership of its Neuromorphic Research Community "
    "(INRC): ask inrc_interest@intel.com, then pip install the lava-loihi archive that you get"
)

_VAR_MODEL = "lava.magma.compiler.var_model"
_DETECTION = "lava.lib.dl.slayer.object_detection"
# What Lava's simulation imports besides numpy; the wheels' metadata is not asked at installation.
_NEEDED = ("asteval", "networkx", "scipy")
_LOCK = threading.RLock()


def _distribution_problem(name: str, known: frozenset[str]) -> str | None:
    """Why the distribution cannot be used, or None; reads metadata only."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed; {INSTALL}"
    if found not in known:
        allowed = ", ".join(sorted(known))
        return f"{name} {found} is not a version that nmtool knows ({allowed}); {INSTALL}"
    return None


def _lava_problem() -> str | None:
    """Why lava-nc cannot be imported, or None."""
    return _distribution_problem("lava-nc", KNOWN_LAVA) or _module_problem(_NEEDED)


def _module_problem(names: tuple[str, ...]) -> str | None:
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"Lava needs {', '.join(absent)}, which is not installed; {INSTALL}" if absent else None


def lava_missing() -> str | None:
    """Why Lava's simulation cannot run here, or None if it can. Does not import Lava."""
    if os.name != "posix":
        return "Lava's CPU simulation forks its processes, which only POSIX systems can do"
    return _lava_problem()


def loihi_missing() -> str | None:
    """Why Loihi boards cannot be used here, or None. Imports neither Lava nor Intel's package."""
    if reason := lava_missing():
        return reason
    try:
        # The module that lava.utils.loihi.is_installed looks for.
        found = importlib.util.find_spec("lava.utils.loihi2_profiler")
    except ImportError:
        found = None
    return None if found else f"lava-loihi is not installed; {INTEL}"


def slayer_missing() -> str | None:
    """Why lava-dl's SLAYER cannot be used here, or None. Imports neither Lava nor torch."""
    reason = _lava_problem() or _distribution_problem("lava-dl", KNOWN_LAVA_DL)
    return reason or _module_problem(("torch",))


def prepare_lava() -> None:
    """Make ``import lava...`` work in this process; does nothing the second time.

    Raises :class:`DependencyError` if lava-nc is missing or of an unknown version.
    """
    reason = _lava_problem()
    if reason is not None:
        raise DependencyError(reason)
    with _LOCK:
        if sys.version_info >= (3, 11) and _VAR_MODEL not in sys.modules:
            _import_var_model()


def prepare_slayer() -> None:
    """Make ``import lava.lib.dl.slayer`` work in this process, without opencv and torchvision.

    ``lava.lib.dl.slayer.object_detection``, which needs both, becomes an empty placeholder.
    Raises :class:`DependencyError` if lava-nc, lava-dl or torch is missing or unknown.
    """
    reason = slayer_missing()
    if reason is not None:
        raise DependencyError(reason)
    prepare_lava()
    with _LOCK:
        if _DETECTION not in sys.modules:
            sys.modules[_DETECTION] = _Placeholder(_DETECTION, "placeholder made by nmtool")


class _Placeholder(ModuleType):
    """Stands for a module that is never used; says so when somebody does use it."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self.__name__}.{name} is not there: nmtool leaves this module out, because it needs "
            "opencv and torchvision"
        )


def _import_var_model() -> ModuleType:
    """Import the one module that breaks, with ``ByteEncoder`` hashable during its execution.

    The class statement is intercepted through the ``__builtins__`` of this one module, which only
    its own code looks up: modules that it imports meanwhile see the ordinary builtins.
    """
    spec = importlib.util.find_spec(_VAR_MODEL)
    if spec is None or spec.loader is None:
        raise DependencyError(f"lava-nc is damaged: {_VAR_MODEL} is missing; {INSTALL}")
    module = importlib.util.module_from_spec(spec)
    plain_build = builtins.__build_class__

    def build(body: Any, name: str, /, *bases: Any, **keywords: Any) -> Any:
        made = plain_build(body, name, *bases, **keywords)
        if name == "ByteEncoder":
            made.__hash__ = object.__hash__
        return made

    scoped = {**vars(builtins), "__build_class__": build}
    vars(module)["__builtins__"] = scoped
    sys.modules[_VAR_MODEL] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(_VAR_MODEL, None)
        raise
    finally:
        # Functions of the module keep a reference to the dict: make it the ordinary builtins again.
        scoped["__build_class__"] = plain_build
        vars(module)["__builtins__"] = builtins
    vars(module)["ByteEncoder"].__hash__ = None
    vars(importlib.import_module(_VAR_MODEL.rpartition(".")[0]))["var_model"] = module
    return module
