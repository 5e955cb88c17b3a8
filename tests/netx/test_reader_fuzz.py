"""Damaged copies of a netx file, many of them: one clean error each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz_reader.py")


@pytest.mark.parametrize("how", ["bytes", "shapes"])
def test_fuzz(how, wheel, tmp_path):
    """In a process of its own with little memory: the HDF5 library might end it."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), how, str(wheel / "tiny.net"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]
    assert "ArtifactError" in done.stdout
