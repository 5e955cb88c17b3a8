"""Headroom, advice, budgets, placements as files, and first steps, against other ways to know."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st

import nmtool
from nmtool.backends import open_session
from nmtool.chip import HardwareConfig, load_chip, load_hardware
from nmtool.compiler import Site, compile_program
from nmtool.compiler.budget import MEASURES, over_budget, parse_budget
from nmtool.compiler.headroom import advised, fewer_bits, headroom
from nmtool.compiler.latency import arrivals, first_step
from nmtool.compiler.place import Slice
from nmtool.compiler.placement_file import placement_text, read_placement
from nmtool.compiler.rules import Violation
from nmtool.errors import ConfigError, FitError, UsageError
from nmtool.network import CubaLif, Input, Network, Population, Projection
from nmtool.operations import Sparse
from nmtool.quantization import quantize
from nmtool.spikes import SpikeTrain

LOIHI1, LOIHI2 = load_chip("loihi1"), load_chip("loihi2")
SMALL = [replace(c, synapse_bits_per_core=c.synapse_bits_per_core // 8) for c in (LOIHI1, LOIHI2)]
"""Chips that small networks fill, so that weight bits matter."""
NEURON = CubaLif(1.0, 0.3, 0.1)


def network(*sizes, sparse=False):
    """Dense layers of random weights, or sparse ones of one synapse in four."""
    rng = np.random.default_rng(1)
    projections = {}
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        source = f"l{index}" if index else "input"
        weight = rng.normal(scale=0.1, size=(n_out, n_in))
        if sparse:
            target, origin = np.nonzero(rng.random(weight.shape) < 0.25)
            operations = (Sparse(weight[target, origin], target, origin, (n_out, n_in)),)
            projections[f"p{index}"] = Projection(source, f"l{index + 1}", operations)
        else:
            projections[f"p{index}"] = Projection.dense(source, f"l{index + 1}", weight)
    populations = {f"l{i}": Population((n,), NEURON) for i, n in enumerate(sizes) if i}
    last = f"l{len(sizes) - 1}"
    return Network("n", {"input": Input((sizes[0],))}, populations, projections, (last,))


@pytest.mark.parametrize("chip", SMALL, ids=lambda chip: chip.name)
@pytest.mark.parametrize(
    "made", [network(300, 250, 100), network(400, 500, 50, sparse=True)], ids=["dense", "sparse"]
)
def test_savings_are_those_of_weights_quantised_to_fewer_bits(chip, made):
    program = compile_program(made, chip)
    found = headroom(program.network, chip, Site(), program.fit)
    assert [saving.weight_bits for saving in found.savings] == [6, 5, 4, 3, 2, 1]
    for saving in found.savings:
        again = compile_program(quantize(made, chip, saving.weight_bits), chip)
        bits = {p.weight_bits for p in again.network.projections.values()}
        if bits == {saving.weight_bits}:
            assert saving.cores == again.fit.cores
        assert saving.freed == program.fit.cores - saving.cores
    assert found.savings[-1].freed > 0


def test_the_nearest_limit_is_the_largest_share_of_a_core_or_of_the_board():
    program = compile_program(network(64, 128, 80), LOIHI2)
    nearest = headroom(program.network, LOIHI2, Site(), program.fit).nearest
    # 128 rows of 80 synapses of 8 + 12 bits and a header of 8 take 26 words of 64 bits each
    assert (nearest.population, nearest.resource) == ("l2", "synapse_bits")
    assert nearest.share == 128 * 26 * 64 / LOIHI2.synapse_bits_per_core
    assert nearest.room == pytest.approx(1 / nearest.share - 1)
    site = Site(cores=2)
    program = compile_program(network(64, 128, 80), LOIHI2, site=site)
    nearest = headroom(program.network, LOIHI2, site, program.fit).nearest
    assert (nearest.population, nearest.resource, nearest.share) == ("network", "cores", 1.0)


def test_slices_that_share_a_core_fill_it_together():
    made = network(64, 128, 80)
    apart = compile_program(made, LOIHI2)
    together = compile_program(made, LOIHI2, site=Site(core_budget=1))
    used = [sum(layer.total.synapse_bits for layer in p.fit.layers) for p in (apart, together)]
    assert used[0] == used[1]
    assert (apart.fit.cores, together.fit.cores) == (2, 1)
    share = used[1] / LOIHI2.synapse_bits_per_core
    assert [layer.share for layer in together.fit.layers] == [share, share]
    assert all(layer.share < share for layer in apart.fit.layers)
    found = headroom(together.network, LOIHI2, Site(core_budget=1), together.fit)
    assert found.nearest.share == share
    assert [saving.freed for saving in found.savings] == [0] * 6


def test_a_network_without_weights_has_headroom():
    made = Network("n", {}, {"a": Population((5,), NEURON, np.ones(5))}, {}, ("a",))
    program = compile_program(made, LOIHI2)
    found = headroom(program.network, LOIHI2, Site(), program.fit)
    assert found.savings == ()
    assert found.nearest.population == "network"


def refused(made, chip, site, bits=None):
    try:
        compile_program(quantize(made, chip, bits), chip, site=site)
    except FitError as error:
        return str(error)
    return ""


def test_the_advice_to_use_fewer_bits_or_more_chips_is_right_and_the_mildest():
    made, chip = network(300, 250, 100), SMALL[0]
    needed = compile_program(made, chip).fit.cores
    site = Site(cores=needed - 2)
    text = refused(made, chip, site)
    assert text.startswith("NM-FIT-030 network: found ")
    bits = int(text.split("weights of at most ")[1].split()[0])
    chips = int(text.split("a board of ")[1].split()[0])
    assert refused(made, chip, site, bits) == ""
    assert refused(made, chip, replace(site, chips=chips)) == ""
    for more in fewer_bits(quantize(made, chip), chip):
        assert (refused(made, chip, site, more) == "") == (more <= bits)
    assert refused(made, chip, replace(site, chips=chips - 1)) != ""


def test_the_advice_for_a_core_that_is_too_small_for_one_neuron():
    memory = LOIHI1.synapse_memory.model_copy(update={"word_bits": 1, "header_bits": 0})
    tight = replace(LOIHI1, synapse_memory=memory, synapse_bits_per_core=100 * 5)
    made = network(100, 3)
    text = refused(made, tight, Site())
    assert "NM-FIT-021 l1" in text
    assert "use weights of at most 5 bits (weight_bits: 5)" in text
    assert "chips" not in text
    assert refused(made, tight, Site(), 5) == ""
    assert refused(made, tight, Site(), 6) != ""


def test_other_rules_keep_their_own_advice():
    quantized = quantize(network(4, 4), LOIHI2)
    problem = Violation("NM-FIT-022", "l1", "5 input axons", "4 a core")
    both = advised([problem, replace(problem, code="NM-FIT-030")], quantized, LOIHI2, Site())
    assert both[0].advice == ""
    assert both[1].advice.startswith("use weights of at most 6 bits")


# Budgets


def test_a_budget_is_checked_against_the_program_itself():
    made = network(64, 128, 80)
    program = compile_program(made, LOIHI2)
    used = {key: measure(program, program.fit) for key, (measure, _) in MEASURES.items()}
    assert used["cores"] == len({(s.chip, s.core) for s in program.placement})
    assert used["neurons"] == 208
    assert used["latency"] == 2
    assert over_budget(program, used) == []
    for key, most in used.items():
        (violation,) = over_budget(program, {key: most - 0.5})
        assert violation.code == "NM-FIT-040"
        assert key in violation.where
    with pytest.raises(FitError, match=r"(?s)budget cores: found 1 core, .*budget latency"):
        nmtool.compile(made, budget={"cores": 0.5, "latency": 1})
    with pytest.raises(UsageError, match="did you mean latency"):
        nmtool.compile(made, budget={"latencies": 1})
    assert parse_budget(" cores = 2 , latency=3.5,") == {"cores": 2.0, "latency": 3.5}


def test_compile_in_python_takes_a_target_and_documented_limits():
    made = network(64, 128, 80)
    assert nmtool.compile(made, site=Site(cores=1)).fit.cores == 1
    target = load_hardware("kapoho-point")
    assert nmtool.compile(made, site=target).fit.chips == target.chips == 8
    four = load_hardware("emulator", ["chip=loihi1", "weight_bits=4"])
    program = nmtool.compile(made, site=four)
    assert program.chip == "loihi1"
    assert {p.weight_bits for p in program.network.projections.values()} == {4}
    with pytest.raises(ConfigError, match="found the chip loihi2 and the target emulator, which"):
        nmtool.compile(made, "loihi2", site=four)
    with pytest.raises(ConfigError, match="found weight_bits 8, allowed up to 4"):
        nmtool.compile(made, weight_bits=8, site=four)
    program = nmtool.compile(made, limits="documented")
    assert program.provenance["limits"] == "documented"
    assert nmtool.compile(made).provenance["limits"] == "all"
    with pytest.raises(ConfigError, match="allowed all, documented"):
        nmtool.compile(made, limits="some")


# Probed populations of a target


def target(probes):
    plain = {"schema": "nmtool.hardware/v1", "name": "t", "chip": "loihi2", "chips": 2}
    return HardwareConfig.model_validate({**plain, "probes": {"spikes": probes}})


def test_a_site_has_what_the_target_says():
    names = ("a", "b")
    assert Site.of(target("outputs"), names) == Site(2, None, None)
    assert Site.of(target("all"), names) == Site(2, None, names)
    assert Site.of(target(["b"]), names) == Site(2, None, ("b",))
    with pytest.raises(ConfigError, match=r"target t: probes\.spikes: found the population 'c'"):
        Site.of(target(["c"]), names)


# Placement files

NAMES = st.one_of(
    st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=8),
    st.sampled_from(["true", "Null", "~", "1", "1e3", "a: b", "a #b", "- a", "{a}", "'", "é"]),
)


@given(st.lists(NAMES.filter(str.isprintable), min_size=1, max_size=4, unique=True), st.data())
def test_a_placement_that_is_written_is_read_back(tmp_path, names, data):
    placement, shapes = [], {}
    for name in names:
        shape = data.draw(st.sampled_from([(4,), (2, 3), (4, 2, 3)]))
        cut = data.draw(st.integers(1, shape[0]))
        rest = tuple((0, size) for size in shape[1:])
        for start, stop in ((0, cut), (cut, shape[0])):
            if start < stop:
                where = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 119))
                placement.append(Slice(name, ((start, stop), *rest), *where))
        shapes[name] = shape
    (tmp_path / "p.yaml").write_text(placement_text(tuple(placement)), encoding="utf-8")
    read = read_placement(tmp_path / "p.yaml", shapes, LOIHI2, Site(chips=2))
    assert read == tuple(placement)


def test_a_name_that_no_line_holds_is_refused():
    with pytest.raises(ConfigError, match="no YAML line holds"):
        placement_text((Slice("a\nb", ((0, 1),), 0, 0),))


# First steps


@settings(max_examples=25)
@given(nets.programs(n_steps=24))
def test_no_population_spikes_before_its_first_step(program):
    net = program.network
    arrival = arrivals(net)
    quiet = {
        name: replace(p, bias_mantissa=np.zeros_like(p.bias_mantissa))
        for name, p in net.populations.items()
    }
    program = replace(program, network=replace(net, populations=quiet))
    trains = {
        name: SpikeTrain.from_raster(np.ones((net.sizes[name], 24), dtype=bool))
        for name in net.inputs
    }
    with open_session(program, load_hardware("reference")) as session:
        recording = session.run(trains, 24, {"spikes": tuple(net.populations)})
    for name, train in recording.spikes.items():
        first = first_step(arrival, name)
        if len(train):
            assert first is not None
            assert first <= int(train.step.min())
