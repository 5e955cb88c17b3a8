"""A program that runs core by core gives the bits of the whole."""

from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from placements import CORES, ROOMY, placed, scattered, small_chip

from nmtool.backends import check_runnable, open_session, resolve_probe
from nmtool.backends.emulator import EmulatorBackend
from nmtool.backends.placed import split
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat, load_chip, load_hardware
from nmtool.compiler import Site, compile_program
from nmtool.compiler.partition import Costs
from nmtool.compiler.place import Slice, traffic
from nmtool.compiler.wiring import Window, wirings
from nmtool.errors import ArtifactError, ConfigError, FitError
from nmtool.faultmodel import Faults
from nmtool.network import Input
from nmtool.operations import Conv, Dense, Scale, SumPool, chain_connections
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

STEPS = 20
BACKENDS = (ReferenceBackend, EmulatorBackend)
MIXED = SynapseFormat(8, 0, "mixed")
seeds = st.integers(0, 2**32 - 1)


def everything(program):
    """A probe of every state that there is."""
    return ",".join(
        f"{quantity}:{name}"
        for quantity in ("spikes", "current", "voltage")
        for name in resolve_probe(program, quantity)[quantity]
    )


def history(backend, program, seed):
    """A run, a stream in pieces with weights written between them, and another run."""
    inputs = nets.random_input(program.network, 2, STEPS, seed)
    probe = everything(program)
    with backend.open(program) as session:
        found = [session.run(inputs, probe=probe)]
        for start, stop in ((0, 7), (7, STEPS)):
            piece = {
                name: SpikeTrain.from_raster(
                    train.to_raster()[..., start:stop], train.payload is not None
                )
                for name, train in inputs.items()
            }
            found.append(session.stream(piece, probe=probe))
            changed = [
                session.write_weights(name, np.roll(p.weight_mantissa, stop))
                for name, p in program.network.projections.items()
            ]
        session.reset()
        found.append(session.run(inputs, n_steps=STEPS + 3, probe=probe))
    return found, changed


def assert_by_core_equals_the_whole(program, seed, backends=BACKENDS):
    for backend in backends:
        whole, changed = history(backend(), program, seed)
        parts, changed_by_core = history(backend(by_core=True), program, seed)
        assert changed_by_core == changed
        for one, other in zip(whole, parts, strict=True):
            nets.assert_same(nets.arrays_of(one), nets.arrays_of(other))
            assert one.spikes == other.spikes
            for field in ("fingerprint", "backend", "n_steps"):
                assert getattr(one, field) == getattr(other, field)
        for event in ("wrapped", "saturated"):
            assert whole[0].provenance[event] == parts[0].provenance[event]


@settings(max_examples=40)
@given(nets.any_networks(), seeds)
def test_any_network_cut_anywhere(network, seed):
    program = compile_program(
        network, ROOMY, n_steps=STEPS, site=Site(placement=scattered(network, seed))
    )
    assert_by_core_equals_the_whole(program, seed)


SMALL = {
    "one neuron": {"neurons_per_core": 1, "cores": 400, "mesh": "[10, 10]"},
    "slices": {
        "neurons_per_core": 3,
        "cores": 400,
        "mesh": "[10, 10]",
        "axons": "{kind: discrete}",
    },
    "packed": {"neurons_per_core": 6, "cores": 6},
    "two cores": {"neurons_per_core": 40, "cores": 2, "axons": "{kind: discrete}"},
}


@pytest.fixture(params=SMALL.values(), ids=SMALL)
def small(request, tmp_path):
    """Chips of a few neurons to a core."""
    return load_chip(str(small_chip(tmp_path, slice_widths="any", **request.param)))


@settings(max_examples=20)
@given(network=nets.any_networks(), seed=seeds)
def test_any_network_on_a_small_chip(small, network, seed):
    try:
        program = compile_program(replace(network, chip="tiny"), small, n_steps=STEPS)
    except FitError:
        return
    assert_by_core_equals_the_whole(program, seed, BACKENDS[1:])


def convolution():
    """Three channels in places of 6 x 5, then overlapping pools in front of a convolution."""
    rng = np.random.default_rng(4)
    first = Conv(2 * rng.integers(-50, 70, (3, 3, 3, 1)), padding=(1, 1))
    chain = (SumPool((3, 3), (1, 2)), Conv(2 * rng.integers(-20, 25, (2, 2, 2, 3))))
    shapes = {"one": (6, 5, 3), "two": (3, 1, 2), "three": (3, 1, 2)}
    usual = {"decay_u": 1023, "decay_v": 128, "threshold": 200}
    own = {"two": {"axonal_delay": 2}, "three": {"refractory_delay": 3, "threshold": 90}}
    delays = rng.integers(0, 5, chain[1].weight.shape)
    return QuantizedNetwork(
        "seen",
        "loihi2",
        {"image": Input((6, 5, 1))},
        {
            name: QuantizedPopulation(
                shape,
                **{**usual, **own.get(name, {})},
                bias_mantissa=np.zeros(int(np.prod(shape)), np.int64),
            )
            for name, shape in shapes.items()
        },
        {
            "see": QuantizedProjection("image", "one", (first,), MIXED),
            "pool": QuantizedProjection("one", "two", chain, MIXED, delays),
            "copy": QuantizedProjection("two", "three", (Scale(np.array([120])),), MIXED, 1),
            "back": QuantizedProjection(
                "three", "two", (Dense(2 * rng.integers(-9, 5, (6, 6))),), MIXED
            ),
        },
        ("three",),
    )


SEVEN = (
    *(((0, 2), (0, 5), (0, 3)), ((2, 6), (0, 3), (0, 1)), ((2, 6), (0, 3), (1, 3))),
    *(((2, 6), (3, 4), (0, 3)), ((2, 3), (4, 5), (0, 3)), ((3, 6), (4, 5), (0, 2))),
    ((3, 6), (4, 5), (2, 3)),
)
"""Boxes of (6, 5, 3) that differ along every axis."""

PLACED = compile_program(
    convolution(),
    ROOMY,
    n_steps=STEPS,
    site=Site(
        placement=(
            *(Slice("one", box, 0, k % CORES) for k, box in enumerate(SEVEN)),
            Slice("two", ((0, 2), (0, 1), (0, 2)), 0, 1),
            Slice("two", ((2, 3), (0, 1), (0, 2)), 0, 3),
            Slice("three", ((0, 3), (0, 1), (1, 2)), 0, 2),
            Slice("three", ((0, 3), (0, 1), (0, 1)), 0, 2),
        )
    ),
)


def test_populations_cut_along_all_axes():
    assert_by_core_equals_the_whole(PLACED, 0)
    for seed in range(3):
        assert_by_core_equals_the_whole(placed(PLACED, seed), seed)


def test_every_population_of_the_convolution_spikes():
    assert all(len(train) > 20 for train in HEALTHY.spikes.values())


def test_synapses_of_one_pair_stay_apart():
    """Overlapping pools make several ways between a pair: each has its own weight and delay."""
    parts = split(PLACED)
    pairs = {(rows.source, rows.target) for rows in parts.rows["pool"]}
    assert len(pairs) < len(parts.rows["pool"])
    assert sum(rows.index.size for rows in parts.rows["back"]) == 6 * 6


SEVENS = {"neurons_per_core": 7, "cores": 100, "axons": "{kind: discrete}"}


@pytest.mark.parametrize("seed", range(6))
def test_cores_hold_what_the_compiler_counts(tmp_path, seed):
    """Rows of every slice are its input axons; between slices they are the traffic."""
    chip = load_chip(str(small_chip(tmp_path, slice_widths="any", **SEVENS)))
    network = replace(
        convolution() if seed == 0 else nets.random_network(np.random.default_rng(seed), 6),
        chip="tiny",
    )
    program = compile_program(network, chip)
    parts = split(program)
    reached = {}
    for name, all_rows in parts.rows.items():
        for rows in all_rows:
            key = (name, rows.source, rows.target)
            reached.setdefault(key, set()).update(_sources(parts.program.network, rows.name))
    costs = Costs.of(network, chip)
    slices = {held.name: held for own in parts.slices.values() for held in own}
    boxes = {n: tuple(s.box for s in program.placement if s.population == n) for n in parts.slices}
    order = [(name, box) for name, own in boxes.items() for box in own]
    for held, (name, box) in zip(slices.values(), order, strict=True):
        incoming = [p for p, edge in network.projections.items() if edge.target == name]
        if any(isinstance(costs.wirings[p], Window) for p in incoming):
            continue  # the channels of a place share an axon
        axons = sum(len(own) for (_, _, target), own in reached.items() if target == held.name)
        assert axons == costs.demand(name, box, boxes).input_axons
    flow = traffic(network, wirings(network), order, None)
    counted = np.zeros_like(flow)
    place = {name: k for k, name in enumerate(slices)}
    for (_, source, target), own in reached.items():
        if source in place:
            counted[place[source], place[target]] += len(own)
    np.testing.assert_array_equal(counted, flow)


def _sources(network, projection):
    p = network.projections[projection]
    if isinstance(p.operations[-1], Dense) and len(p.operations) == 1:
        return range(p.weight_mantissa.shape[1])
    return np.unique(chain_connections(p.operations, network.shapes[p.source]).source)


# Programs and targets that it is not for


@pytest.mark.parametrize("backend", ["reference", "emulator"])
def test_a_program_without_a_placement_is_refused(backend):
    target = load_hardware(backend, ["by_core=true"])
    bare = replace(PLACED, placement=(), fit=None)
    for refused in (check_runnable, open_session):
        with pytest.raises(ConfigError, match=r"by_core: found the program .* not placed on cores"):
            refused(bare, target)
    check_runnable(PLACED, target)
    check_runnable(bare, load_hardware(backend))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[1:], r"found \d+ neurons in no slice \(the first: 0\), allowed each"),
        (lambda p: (*p, p[0]), r"found \d+ neurons in several slices"),
        (
            lambda p: (*p, replace(p[0], box=((0, 7), (0, 5), (0, 3)))),
            r"found .*7.*allowed a slice inside \[\[0, 6\], \[0, 5\], \[0, 3\]\]",
        ),
        (lambda p: (*p, replace(p[0], box=((0, 1),))), r"found \[0, 1\], allowed a slice"),
        (lambda p: (*p, replace(p[0], box=((-1, 1), (0, 5), (0, 3)))), r"found \[\[-1, 1\]"),
    ],
)
def test_a_placement_that_is_damaged_is_refused(change, message):
    first = tuple(s for s in PLACED.placement if s.population == "one")
    rest = tuple(s for s in PLACED.placement if s.population != "one")
    damaged = replace(PLACED, placement=(*change(first), *rest))
    with pytest.raises(ArtifactError, match=f"placement of one.*: {message}.*; compile it again$"):
        EmulatorBackend(by_core=True).open(damaged)


def test_only_simulators_run_core_by_core(tmp_path):
    with pytest.raises(ConfigError, match="no by_core with the backend lava-sim"):
        load_hardware("lava-sim", ["by_core=true"])
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: nmtool.hardware/v1\nname: mine\nchip: loihi2\nbackend: reference\nby_core: true\n"
    )
    assert load_hardware(str(path)).by_core
    assert not load_hardware("reference").by_core


def test_a_recording_says_that_it_ran_core_by_core():
    inputs = nets.random_input(PLACED.network, 1, STEPS, 0)
    with EmulatorBackend(by_core=True).open(PLACED) as session:
        cores = {(s.chip, s.core) for s in PLACED.placement}
        assert session.run(inputs).provenance["by_core"] == {"cores": len(cores)}
    with EmulatorBackend().open(PLACED) as session:
        assert "by_core" not in session.run(inputs).provenance


# Dead cores


def with_dead(cores, **more):
    faults = Faults.model_validate({"dead_cores": cores, **more})
    return load_hardware("emulator").model_copy(update={"faults": faults})


def dead(cores, program=PLACED, **more):
    """The recording of a target with dead cores, equal on both simulators and by core."""
    target = with_dead(cores, **more)
    found = []
    for changes in (
        {"backend": "reference"},
        {"backend": "emulator"},
        {"backend": "emulator", "by_core": True},
        {"backend": "reference", "by_core": True},
    ):
        with open_session(program, target.model_copy(update=changes)) as session:
            inputs = nets.random_input(program.network, 2, STEPS, 0)
            found.append(session.run(inputs, probe="spikes,voltage"))
    for other in found[1:]:
        nets.assert_same(nets.arrays_of(found[0]), nets.arrays_of(other))
        assert other.provenance["faults"] == found[0].provenance["faults"]
    return found[0]


def held(program, core):
    """The neurons of every population that a core holds."""
    own = {}
    for s in program.placement:
        if (s.chip, s.core) == core:
            neurons = s.neurons(program.network.shapes[s.population])
            own[s.population] = own.get(s.population, set()) | {*neurons.tolist()}
    return own


HEALTHY = dead(0)


@pytest.mark.parametrize(("cores", "named"), [([1], (0, 1)), ([[0, 2]], (0, 2))])
def test_the_neurons_of_a_dead_core_never_spike(cores, named):
    found = dead(cores)
    own = held(PLACED, named)
    lists = found.provenance["faults"]
    assert lists["failed_cores"] == [
        {"chip": 0, "core": named[1], "neurons": {n: len(ids) for n, ids in own.items()}}
    ]
    assert {n: set(ids) for n, ids in lists["dead"].items() if ids} == own
    for name, ids in own.items():
        assert not found.spikes[name].counts()[:, sorted(ids)].any()
        assert HEALTHY.spikes[name].counts()[:, sorted(ids)].any()
    rest = [n for n in range(PLACED.network.sizes["one"]) if n not in own["one"]]
    healthy = HEALTHY.spikes["one"].counts()[:, rest]
    assert np.array_equal(found.spikes["one"].counts()[:, rest], healthy)


def test_a_stuck_neuron_of_a_dead_core_is_silent():
    neuron = min(held(PLACED, (0, 1))["one"])
    stuck = {"kind": "stuck", "population": "one", "neuron": neuron}
    assert dead(0, injected=[stuck]).spikes["one"].counts()[0, neuron] == STEPS
    for faults in (
        {"cores": [1], "injected": [stuck]},
        {"cores": 0, "injected": [{"kind": "dead_core", "core": 1}, stuck]},
        {"cores": 0, "injected": [stuck, {"kind": "dead_core", "core": [0, 1]}]},
    ):
        found = dead(**faults)
        assert not found.spikes["one"].counts()[:, neuron].any()
        assert not found.provenance["faults"]["stuck"]["one"]


def test_dead_cores_are_drawn_from_those_in_use():
    drawn = {
        seed: [f["core"] for f in dead(2, seed=seed).provenance["faults"]["failed_cores"]]
        for seed in range(3)
    }
    assert all(len(set(cores)) == 2 and set(cores) <= {*range(CORES)} for cores in drawn.values())
    assert len({tuple(cores) for cores in drawn.values()}) > 1
    found = dead(CORES)
    assert not any(len(train) for train in found.spikes.values())


def test_an_unused_core_takes_nothing_along():
    program = compile_program(convolution(), load_chip("loihi2"), n_steps=STEPS)
    used = {s.core for s in program.placement}
    idle = min({*range(120)} - used)
    found = dead([idle], program)
    nets.assert_same(nets.arrays_of(HEALTHY), nets.arrays_of(found))
    assert found.provenance["faults"]["failed_cores"] == [{"chip": 0, "core": idle, "neurons": {}}]


def test_cores_are_counted_through_the_chips():
    site = Site(chips=2, placement=tuple(replace(s, chip=s.core % 2) for s in PLACED.placement))
    program = compile_program(convolution(), ROOMY, n_steps=STEPS, site=site)
    by_number, by_pair = dead([120 + 3], program), dead([[1, 3]], program)
    nets.assert_same(nets.arrays_of(by_number), nets.arrays_of(by_pair))
    assert by_number.provenance["faults"]["failed_cores"][0]["neurons"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"dead_cores": 5}, "faults.dead_cores: found 5, allowed 0 to 4, as many cores as"),
        (
            {"dead_cores": [0, 120]},
            r"dead_cores\[1\]: found the core 120, allowed 0 to 119, or \[chip, core\] up to "
            r"\[0, 119\]",
        ),
        ({"dead_cores": [[1, 0]]}, r"dead_cores\[0\]: found the core \[1, 0\], allowed 0 to 119"),
        (
            {"injected": [{"kind": "dead_core", "core": [0, 120]}]},
            r"injected\[0\]: found the core \[0, 120\]",
        ),
        (
            {"dead_cores": [0, [0, 0]]},
            r"dead_cores\[1\]: found the core \[0, 0\], which faults.dead_cores\[0\] names already",
        ),
        (
            {"dead_cores": [1], "injected": [{"kind": "dead_core", "core": 1}]},
            r"injected\[0\]: found the core 1, which .* allowed each core once",
        ),
    ],
)
def test_cores_that_are_not_there_are_refused(faults, message):
    target = load_hardware("emulator").model_copy(update={"faults": Faults.model_validate(faults)})
    for refused in (check_runnable, open_session):
        with pytest.raises(ConfigError, match=message):
            refused(PLACED, target)


@pytest.mark.parametrize(
    "faults",
    [{"dead_cores": [0]}, {"dead_cores": 1}, {"injected": [{"kind": "dead_core", "core": 0}]}],
)
def test_dead_cores_need_a_placement(faults):
    target = load_hardware("emulator").model_copy(update={"faults": Faults.model_validate(faults)})
    with pytest.raises(ConfigError, match=r"faults\..*: found the program .* not placed on cores"):
        open_session(replace(PLACED, placement=(), fit=None), target)


@pytest.mark.parametrize("cores", ["-1", "true", "1.5", "[-1]", "[[0]]", "[[0, 1, 2]]", "[a]"])
def test_what_names_no_core_is_refused(cores):
    with pytest.raises(ConfigError, match=r"dead_cores: found .*, allowed how many cores, or a l"):
        load_hardware("loihi2-faulty", [f"faults.dead_cores={cores}"])


@pytest.mark.parametrize("core", ["-1", "true", "1.5", "[0]", "[0, 1, 2]", "a"])
def test_an_injected_core_that_is_none_is_refused(core):
    injected = f"[{{kind: dead_core, core: {core}}}]"
    with pytest.raises(ConfigError, match=r"core: found .*, allowed the number of a core, or \["):
        load_hardware("loihi2-faulty", [f"faults.injected={injected}"])
