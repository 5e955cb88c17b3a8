"""Hypothesis draws the same examples in every run; HYPOTHESIS_PROFILE=explore draws new ones."""

import itertools
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side, tests stay with their file, and all that run Lava stay with each other.

    What these look for after a run, segments of shared memory among it, is the machine's; they have
    Lava in their names. (The groups of pytest-xdist 3.8.0 are lost with pytest 9.2.0.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "lava" if "lava" in nodeid.lower() else nodeid.partition("::")[0]

    return ByFile(config, log)
