import hashlib
from dataclasses import replace

import numpy as np
import pytest
import regression_networks as nets

from nmtool.errors import ArtifactError, ConfigError
from nmtool.formats.container import Container, read_container, write_container
from nmtool.regression.golden import Golden, load_golden, mean_latency, save_golden
from nmtool.spikes import SpikeTrain


def same(a: Golden, b: Golden) -> None:
    assert a.program.fingerprint == b.program.fingerprint
    assert dict(a.inputs) == dict(b.inputs)
    assert dict(a.expected.spikes) == dict(b.expected.spikes)
    for quantity in ("current", "voltage"):
        mine, theirs = getattr(a.expected, quantity), getattr(b.expected, quantity)
        assert set(mine) == set(theirs)
        assert all(np.array_equal(mine[n], theirs[n]) for n in mine)
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or np.array_equal(a.labels, b.labels)
    assert (a.policies, a.reason, a.probe) == (b.policies, b.reason, b.probe)


@pytest.mark.parametrize("probe", ["spikes", "spikes:o", nets.ALL])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_golden_run_is_read_back_as_it_was(tmp_path, program_of_each_kind, probe, labelled):
    golden = nets.make_golden(program_of_each_kind, probe=probe, policies=("exact", "jitter=2"))
    golden = replace(golden, reason="why", labels=golden.labels if labelled else None)
    save_golden(tmp_path / "g.h5", golden)
    same(golden, load_golden(tmp_path / "g.h5"))


@pytest.fixture(params=nets.KINDS)
def program_of_each_kind(request):
    return nets.make_program(request.param)


def test_a_golden_run_is_much_smaller_than_its_rasters(tmp_path):
    golden = nets.make_golden(nets.make_program("dense"), samples=50)
    save_golden(tmp_path / "g.h5", golden)
    trains = [*golden.inputs.values(), *golden.expected.spikes.values()]
    spikes = sum(len(train) for train in trains)
    assert (tmp_path / "g.h5").stat().st_size < 30_000 + 3 * spikes


def test_a_recording_of_another_program_is_refused():
    golden = nets.make_golden(nets.make_program("dense"))
    with pytest.raises(ConfigError, match="a recording of the program"):
        replace(golden, program=nets.make_program("recurrent"))


def test_another_file_is_refused(tmp_path):
    from nmtool import formats

    formats.save(tmp_path / "p.h5", nets.make_program("dense"))
    with pytest.raises(ArtifactError, match=r"p\.h5: found the schema nmtool\.program/v3"):
        load_golden(tmp_path / "p.h5")


def test_any_damaged_byte_is_found(tmp_path):
    path = tmp_path / "g.h5"
    save_golden(path, nets.make_golden(nets.make_program("dense")))
    image = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(image), 30):
        broken = image.copy()
        broken[place] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(ArtifactError):
            load_golden(path)


@pytest.mark.parametrize("lost", ["program", "expected", "inputs", "policies", "reason"])
def test_a_golden_run_without_one_of_its_parts_is_damaged(tmp_path, lost):
    path = tmp_path / "g.h5"
    save_golden(path, nets.make_golden(nets.make_program("dense")))
    whole = read_container(path)
    header = {key: value for key, value in whole.header.items() if key != lost}
    write_container(path, Container(whole.schema, header, whole.arrays))
    with pytest.raises(ArtifactError, match=r"g\.h5: damaged"):
        load_golden(path)


def test_the_same_run_makes_the_same_bytes(tmp_path):
    golden = nets.make_golden(nets.make_program("conv"))
    sums = set()
    for name in ("a.h5", "b.h5"):
        save_golden(tmp_path / name, golden)
        sums.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(sums) == 1


def test_latency_counts_from_the_first_input_to_the_first_output_spike():
    golden = nets.make_golden(nets.make_program("dense"), samples=2)
    entering = np.zeros((2, 20, nets.STEPS), dtype=bool)
    leaving = np.zeros((2, 10, nets.STEPS), dtype=bool)
    entering[0, 3, 4] = entering[1, 2, 7] = True
    leaving[0, 1, 9] = leaving[1, 5, 10] = True
    spikes = {**golden.expected.spikes, "o": SpikeTrain.from_raster(leaving)}
    golden = replace(golden, inputs={"i": SpikeTrain.from_raster(entering)})
    run = replace(golden.expected, spikes=spikes)
    assert mean_latency(golden, run) == 4.0
    none = {**spikes, "o": SpikeTrain.from_raster(np.zeros_like(leaving))}
    assert mean_latency(golden, replace(run, spikes=none)) is None


def test_load_reads_golden_runs_too(tmp_path):
    import nmtool

    golden = nets.make_golden(nets.make_program("dense"))
    save_golden(tmp_path / "g.h5", golden)
    same(golden, nmtool.load(tmp_path / "g.h5"))
