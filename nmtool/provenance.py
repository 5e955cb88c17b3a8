"""Where a result comes from: versions, git state, hashes, seed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("nmtool", "numpy", "scikit-learn", "h5py", "torch", "lava-nc", "lava-dl")


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions, git state and time, with the given facts (seed, hashes) beside them."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_state(),
        **facts,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the folder's repository and whether it has changes; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git("status", "--porcelain", "-uno"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def sha256(data: str | Path) -> str:
    """SHA-256 of a text, or of the content of a file."""
    content = data.read_bytes() if isinstance(data, Path) else data.encode()
    return hashlib.sha256(content).hexdigest()
