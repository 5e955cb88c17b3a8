"""Exit 10 where Lava is missing or of another version, and what works without it."""

import importlib.metadata
import importlib.util

import pytest

DEPLOY = ("deploy", "run/program.h5", "--input", "spikes.npy", "--hw")


@pytest.fixture
def without(monkeypatch):
    """``without("lava-nc")`` or ``without(version={"lava-nc": "0.9"})``, as pip would have it."""

    def hide(*names, version=None):
        plain = importlib.metadata.version

        def found(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return {
                **dict.fromkeys(("lava-nc",), "0.10.0"),
                "lava-dl": "0.6.0",
                **(version or {}),
            }.get(name) or plain(name)

        monkeypatch.setattr(importlib.metadata, "version", found)

    return hide


NEEDS_LAVA = [
    [*DEPLOY, "lava-sim"],
    [*DEPLOY, "lava-sim", "--dry-run"],
    ["compare", "reference", "lava-sim", "--program", "run/program.h5", "--input", "spikes.npy"],
    ["train", "experiment.yaml", "-o", "new", "-s", "train.engine=slayer"],
    ["train", "experiment.yaml", "-o", "new", "-s", "train.engine=slayer", "--dry-run"],
    ["finetune", "run", "--hw", "lava-sim"],
]


@pytest.mark.parametrize("arguments", NEEDS_LAVA)
def test_without_lava(nmtool, rasters, folder, unchanged, without, arguments):
    without("lava-nc", "lava-dl")
    with unchanged(folder):
        done = nmtool(*arguments, "--json")
    assert done.code == 10, done.err
    assert "lava-nc is not installed; install with: pip install '.[lava]'" in done.err
    assert "lava-nc==0.10.0" in done.err
    assert "Traceback" not in done.err
    assert done.json["exit_code"] == 10


@pytest.mark.parametrize("arguments", NEEDS_LAVA[:4:3])
def test_another_version_of_lava(nmtool, rasters, without, arguments):
    without(version={"lava-nc": "0.9.0"})
    done = nmtool(*arguments)
    assert done.code == 10
    assert "lava-nc 0.9.0 is not a version that nmtool knows (0.10.0)" in done.err


def test_training_without_lava_dl(nmtool, folder, without):
    without("lava-dl")
    done = nmtool("train", "experiment.yaml", "-o", "new", "-s", "train.engine=slayer")
    assert done.code == 10
    assert "lava-dl is not installed" in done.err


def test_training_needs_no_lava(nmtool, folder, without):
    without("lava-nc", "lava-dl")
    done = nmtool("train", "experiment.yaml", "-o", "new", "-s", "train.epochs=1")
    assert done.code == 0, done.err


def test_training_without_torch(nmtool, folder, without, monkeypatch):
    without()
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else plain(name, *a)
    )
    done = nmtool("train", "experiment.yaml", "-o", "new")
    assert done.code == 10
    assert "torch" in done.err
    assert "install with" in done.err


def test_everything_else_works_without_lava(nmtool, rasters, without):
    without("lava-nc", "lava-dl")
    assert nmtool("compile", "run", "--hw", "lava-sim", "-o", "p.h5").code == 0
    assert nmtool(*DEPLOY, "reference", "-o", "a.h5").code == 0
    assert nmtool("compare", "a.h5", "a.h5").code == 0
    assert nmtool("config", "check", "experiment.yaml").code == 0


def test_the_parts_without_torch_never_import_it(shell, folder, rasters):
    code = "import sys; sys.modules['torch'] = None; sys.modules['lava'] = None"
    (folder / "sitecustomize.py").write_text(code)
    env = {"PYTHONPATH": str(folder)}
    for arguments in (
        ("compile", "run", "--hw", "reference", "-o", "p.h5"),
        ("deploy", "p.h5", "--hw", "reference", "--input", "spikes.npy"),
    ):
        done = shell(*arguments, env=env)
        assert done.code == 0, done.err
