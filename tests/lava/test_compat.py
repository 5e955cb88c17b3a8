"""Compatibility: touches what it must and nothing else, and refuses what it does not know."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from textwrap import dedent

import pytest

from nmtool.backends.lava import compat
from nmtool.backends.lava.client import LavaWorker
from nmtool.backends.lava.group import worker_environment
from nmtool.errors import DependencyError


def python(code):
    """Run code in a fresh interpreter: Lava must not be imported into this one."""
    subprocess.run(
        [sys.executable, "-c", dedent(code)], check=True, timeout=120, env=worker_environment()
    )


def test_lava_is_importable_and_python_is_as_before():
    python("""
        import builtins, dataclasses, sys
        before = {name: dict(vars(sys.modules[name])) for name in ("builtins", "dataclasses")}
        hooks = list(sys.meta_path), list(sys.path_hooks), list(sys.path)
        from nmtool.backends.lava.compat import prepare_lava
        prepare_lava()
        prepare_lava()
        for name, names in before.items():
            now = vars(sys.modules[name])
            assert all(now[key] is value for key, value in names.items() if key != "_"), name
        assert hooks == (list(sys.meta_path), list(sys.path_hooks), list(sys.path))
        import lava.magma.compiler.var_model as var_model
        assert sys.modules["lava.magma.compiler.var_model"] is var_model
        assert var_model.ByteEncoder.__hash__ is None
        assert var_model.CoreEncoder().x == var_model.ByteEncoder()
        assert var_model.LoihiVarModel.get_logical.__globals__ is vars(var_model)
        assert vars(var_model)["__builtins__"] in (builtins, vars(builtins))
        from lava.magma.core.run_configs import Loihi2SimCfg
        from lava.proc.lif.process import LIF
        import lava.magma.compiler
        assert lava.magma.compiler.var_model is var_model
    """)


def test_a_failed_import_leaves_no_half_module():
    python("""
        import sys
        import importlib.machinery
        from nmtool.backends.lava import compat
        plain = importlib.machinery.SourceFileLoader.exec_module
        name = "lava.magma.compiler.var_model"
        def fail(self, module):
            if module.__name__ == name:
                raise RuntimeError("broken")
            return plain(self, module)
        importlib.machinery.SourceFileLoader.exec_module = fail
        try:
            compat._import_var_model()
        except RuntimeError:
            pass
        else:
            raise AssertionError
        assert name not in sys.modules
        importlib.machinery.SourceFileLoader.exec_module = plain
        compat._import_var_model()
        assert name in sys.modules
    """)


def test_looking_for_lava_does_not_import_it():
    python("""
        import sys
        from nmtool.backends.lava.compat import lava_missing, slayer_missing
        import nmtool.backends.lava.client
        assert lava_missing() is None
        slayer_missing()
        assert not {"lava", "torch", "scipy"} & set(sys.modules), sorted(sys.modules)
    """)


@pytest.mark.skipif(compat.slayer_missing() is not None, reason="needs lava-dl and torch")
def test_slayer_is_importable_without_opencv():
    python("""
        import sys
        from nmtool.backends.lava.compat import prepare_slayer
        prepare_slayer()
        prepare_slayer()
        import lava.lib.dl.slayer as slayer
        assert slayer.block.cuba.Dense
        assert "torchvision" not in sys.modules
        try:
            slayer.obd.models
        except AttributeError as error:
            assert "opencv" in str(error)
        else:
            raise AssertionError
    """)


def test_unknown_versions_are_refused(monkeypatch):
    known = {"lava-nc": "0.11.0", "lava-dl": "0.6.0"}
    monkeypatch.setattr(importlib.metadata, "version", known.__getitem__)
    assert "lava-nc 0.11.0 is not a version" in compat.lava_missing()
    with pytest.raises(DependencyError, match=r"0\.11\.0.*lava-nc==0\.10\.0") as caught:
        compat.prepare_lava()
    assert caught.value.exit_code == 10
    known["lava-nc"], known["lava-dl"] = "0.10.0", "0.5.0"
    assert compat.lava_missing() is None
    with pytest.raises(DependencyError, match=r"lava-dl 0\.5\.0"):
        compat.prepare_slayer()


def test_missing_lava_is_named_before_anything_starts(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(DependencyError, match="lava-nc is not installed; install with: pip"):
        compat.prepare_lava()
    from nmtool.backends.lava.job import LavaJob, LavaPopulation, LavaProbes

    job = LavaJob({}, {"a": LavaPopulation(1, 0, 0, 0)}, (), 1, None, LavaProbes())
    with LavaWorker() as worker, pytest.raises(DependencyError, match="not installed"):
        worker.run(job)


def test_missing_requirement_is_named(monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "asteval" else plain(name)
    )
    assert "Lava needs asteval" in compat.lava_missing()
