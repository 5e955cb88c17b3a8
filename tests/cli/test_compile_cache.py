"""The cache of compiled programs: the same program, never another's, and never a failure."""

import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from nmtool import cache, formats
from nmtool.chip import load_chip
from nmtool.cli import compile_
from nmtool.compiler import Program
from nmtool.formats.container import Container, read_container, write_container

COMPILE = ("compile", "run", "--hw", "emulator", "-o", "p.h5", "--force")


@pytest.fixture
def store(folder, tmp_path_factory, monkeypatch):
    """The folder of the cache, not made yet."""
    path = tmp_path_factory.mktemp("stored") / "programs"
    monkeypatch.setenv("NMTOOL_CACHE", str(path))
    return path


@pytest.fixture
def compiles(monkeypatch):
    """A list that grows by one whenever something is compiled."""
    calls, plain = [], compile_.compile_program

    def counted(*arguments, **options):
        calls.append(arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(compile_, "compile_program", counted)
    return calls


def content(path):
    """All of a file but what must differ: when the program was made."""
    container = read_container(Path(path))
    header = dict(container.header)
    header["provenance"] = {k: v for k, v in header["provenance"].items() if k != "time"}
    arrays = {name: (a.dtype.str, a.tobytes()) for name, a in container.arrays.items()}
    return container.schema, header, arrays


def test_the_cached_program_and_report_are_those_of_the_compiler(nmtool, store, compiles):
    plain = nmtool(*COMPILE, "--no-cache", "-v")
    first = content("p.h5")
    assert not store.exists()
    for expected in (1, 1):
        done = nmtool(*COMPILE, "-v")
        assert (done.out, content("p.h5")) == (plain.out, first)
        assert len(compiles) == 1 + expected
    assert "from the cache" in done.err
    assert nmtool(*COMPILE, "--no-cache").code == 0
    assert len(compiles) == 3


def test_the_time_of_a_cached_program_is_when_it_was_asked_for(nmtool, store, monkeypatch):
    nmtool(*COMPILE)
    monkeypatch.setattr(compile_, "provenance", lambda **facts: {"time": "now", **facts})
    nmtool(*COMPILE, "--limits", "all")
    assert formats.load_as("p.h5", Program).provenance["time"] == "now"


@pytest.mark.parametrize(
    "change",
    [
        ["--steps", "13"],
        ["-s", "hw.weight_bits=4"],
        ["-s", "hw.chips=2"],
        ["-s", "hw.cores_per_chip=60"],
        ["-s", "hw.probes.spikes=all"],
        ["-s", "hw.chip=other.yaml"],
        ["--placement", "found.yaml"],
        ["--activity", "r.h5"],
    ],
    ids=lambda change: change[-1],
)
def test_another_option_is_another_program(nmtool, folder, store, compiles, change):
    (folder / "emulator.yaml").write_text(
        "schema: nmtool.hardware/v1\nname: emulator\nchip: loihi2\nbackend: emulator\n"
    )
    (folder / "other.yaml").write_text(
        "schema: nmtool.chip/v1\nname: other\nextends: loihi2\nprofiles_per_core: 7\n"
    )
    base = ["compile", "run", "--hw", "emulator.yaml", "-o", "p.h5", "--force"]
    assert nmtool(*base, "--placement-out", "found.yaml").code == 0
    assert nmtool("deploy", "p.h5", "--hw", "emulator", "--probe", "spikes", "-o", "r.h5").code == 0
    before = len(compiles)
    for expected in (1, 1, 1):
        done = nmtool(*base, *change)
        assert done.code == 0, done.err
        assert len(compiles) == before + expected
        assert nmtool(*base).code == 0
    assert len(compiles) == before + 1


def test_another_network_in_the_same_file_is_another_program(nmtool, folder, store, compiles):
    nmtool(*COMPILE)
    first = formats.load_as("p.h5", Program)
    network = formats.load("run/network.h5")
    network.projections["hidden"].operations[0].weight[:] *= -1
    formats.save("run/network.h5", network)
    nmtool(*COMPILE)
    assert len(compiles) == 2
    assert formats.load_as("p.h5", Program).fingerprint != first.fingerprint


def test_every_number_of_a_chip_is_in_the_key(folder):
    chip, file = load_chip("loihi2"), folder / "run/network.h5"
    keys = {cache.key(file, chip, {})}
    names = [f.name for f in fields(chip) if f.name != "facts"]
    keys |= {cache.key(file, replace(chip, **{name: "other"}), {}) for name in names}
    assert len(keys) == 1 + len(names)


def test_other_sources_are_another_key(folder, monkeypatch):
    chip, file = load_chip("loihi2"), folder / "run/network.h5"
    before = cache.key(file, chip, {})
    monkeypatch.setattr(cache, "_sources", lambda: "others")
    assert cache.key(file, chip, {}) != before


def damage_cut(path, data):
    path.write_bytes(data[: len(data) // 2])


def damage_flipped(path, data):
    path.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])


def damage_text(path, data):
    path.write_text("no program\n")


def damage_foreign(path, data):
    """The entry of another key."""
    container = read_container(path)
    header = {**container.header, "key": "x"}
    write_container(path, Container(container.schema, header, container.arrays))


def damage_program(path, data):
    """Sound as a file, without what a program needs."""
    container = read_container(path)
    header = {**container.header, "program": {"chip": "loihi2"}}
    write_container(path, Container(container.schema, header, container.arrays))


def damage_headroom(path, data):
    container = read_container(path)
    header = {**container.header, "headroom": [1]}
    write_container(path, Container(container.schema, header, container.arrays))


def damage_folder(path, data):
    path.unlink()
    path.mkdir()


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_told_and_compiled_again(nmtool, store, compiles, damage):
    plain = nmtool(*COMPILE)
    expected = content("p.h5")
    (entry,) = store.iterdir()
    damage(entry, entry.read_bytes())
    done = nmtool(*COMPILE)
    assert done.code == 0
    assert done.err.startswith("warning: cache: ")
    assert "ignored, compiled again" in done.err
    assert (done.out, content("p.h5")) == (plain.out, expected)
    assert len(compiles) == 2
    if entry.is_file():
        done = nmtool(*COMPILE)
        assert (done.err, len(compiles)) == ("", 2)


def test_a_folder_that_cannot_be_written_fails_nothing(nmtool, folder, monkeypatch, compiles):
    (folder / "file").write_text("")
    for name in ("file/cache", "/proc/none"):
        monkeypatch.setenv("NMTOOL_CACHE", name)
        done = nmtool(*COMPILE)
        assert (done.code, done.err) == (0, ""), (name, done.err)
    monkeypatch.setenv("NMTOOL_CACHE", "x" * 5000)
    done = nmtool(*COMPILE)
    assert done.code == 0
    assert "File name too long" in done.err
    assert len(compiles) == 3


def test_nobody_s_home_fails_nothing(nmtool, folder, monkeypatch, compiles):
    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NMTOOL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    for _ in range(2):
        done = nmtool(*COMPILE, "-v")
        assert (done.code, done.err) == (0, "")
    assert len(compiles) == 2


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("NMTOOL_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own"
    monkeypatch.delenv("NMTOOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "nmtool" / "programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "nmtool" / "programs"


def test_the_entries_used_least_recently_go_first(nmtool, store):
    nmtool(*COMPILE)
    (entry,) = store.iterdir()
    found = cache.find(entry.stem, pytest.fail)
    old, middle = (store / f"{letter * 64}.h5" for letter in "ab")
    for age, path in ((300, old), (200, middle), (100, entry)):
        if path is not entry:
            path.write_bytes(b"x" * 1000)
        then = time.time() - age
        os.utime(path, (then, then))
    size = entry.stat().st_size
    cache.keep("c" * 64, found, most=2 * size + 1500)
    assert {path.stem for path in store.iterdir()} == {"b" * 64, "c" * 64, entry.stem}
    assert cache.find(entry.stem, pytest.fail) is not None  # used now
    cache.keep("d" * 64, found, most=2 * size)
    assert {path.stem for path in store.iterdir()} == {entry.stem, "d" * 64}


def test_a_budget_is_held_against_a_cached_program_too(nmtool, store, compiles):
    assert nmtool(*COMPILE).code == 0
    done = nmtool(*COMPILE, "--budget", "latency=1")
    assert (done.code, len(compiles)) == (5, 1)
    assert "NM-FIT-040" in done.err
    assert nmtool(*COMPILE, "--budget", "cores=1").code == 0
    assert len(compiles) == 2  # slices share a core: another placement


def test_a_dry_run_keeps_nothing(nmtool, store):
    assert nmtool(*COMPILE, "--dry-run").code == 0
    assert not store.exists()


def test_compilers_side_by_side_share_a_cache(nmtool, folder, store):
    command = [sys.executable, "-m", "nmtool", "compile", "run", "--hw", "emulator", "-o"]
    running = [
        subprocess.Popen([*command, f"{i}.h5"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for i in range(4)
    ]
    ends = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, ends
    assert ends == [b""] * 4
    (entry,) = store.iterdir()
    assert cache.find(entry.stem, pytest.fail) is not None
    assert len({formats.load_as(f"{i}.h5", Program).fingerprint for i in range(4)}) == 1
