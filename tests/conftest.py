"""Hypothesis draws the same examples in every run; HYPOTHESIS_PROFILE=explore draws new ones."""

import itertools
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=SLOW,
)
settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_NUMBER = itertools.count()

# A job that a script starts in the background ignores SIGINT, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """Programs are cached in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMTOOL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """No test finds what another has compiled."""
    name = f"cache-{next(_NUMBER)}"
    monkeypatch.setenv("NMTOOL_CACHE", str(tmp_path_factory.getbasetemp() / name))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Side by side, tests stay with their file, and all that run Lava stay with each other.

    What they look for after a run, segments of shared memory among it, is the machine's.
    """
    for item in items:
        runs_lava = item.get_closest_marker("lava") or item.path.parent.name == "lava"
        group = "lava" if runs_lava else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
