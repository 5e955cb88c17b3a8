"""Design rules at the limits: what is exactly as large as a chip holds compiles, one more does not.

Most limits are tried on small chips of a file that extends a shipped one, some on the shipped ones.
"""

from dataclasses import replace

import numpy as np
import pytest
import strategies as nets
from hypothesis import given

from nmtool.backends import check_target
from nmtool.chip import SynapseFormat, load_chip, load_hardware
from nmtool.compiler import Site, compile_program
from nmtool.compiler.cautions import cautions
from nmtool.compiler.place import Slice
from nmtool.compiler.rules import RULES, Violation, in_order, refuse, registers, warnings
from nmtool.errors import FitError
from nmtool.network import CubaLif, Input, Network, PeriodicReset, Population, Projection
from nmtool.operations import Conv
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection, quantize

BITS = SynapseFormat(8, 0, "mixed")


@pytest.fixture
def chip(tmp_path):
    """``chip("loihi1", cores=2)``: the chip of a file that changes these numbers of another."""

    def extend(base, **numbers):
        lines = [f"{key}: {value}" for key, value in numbers.items()]
        head = ["schema: nmtool.chip/v1", "name: small", f"extends: {base}"]
        (tmp_path / "small.yaml").write_text("\n".join([*head, *lines, ""]))
        return load_chip(str(tmp_path / "small.yaml"))

    return extend


def layer(size, **changes):
    return QuantizedPopulation((size,), 0, 0, 10, np.zeros(size, dtype=np.int64), **changes)


def dense(source, target, n_source, n_target, format=BITS, delay=0):
    weights = np.full((n_target, n_source), 2, dtype=np.int64)
    return QuantizedProjection.dense(source, target, weights, format, delay)


def chain(chip, *sizes):
    """Dense layers a, b, c... after an input of spikes."""
    names = ["in", *"abcdef"[: len(sizes) - 1]]
    pairs = list(zip(names, names[1:], sizes, sizes[1:], strict=False))
    return QuantizedNetwork(
        "chain",
        chip.name,
        {"in": Input((sizes[0],))},
        {name: layer(size) for name, size in zip(names[1:], sizes[1:], strict=True)},
        {f"{s}_{t}": dense(s, t, n, m) for s, t, n, m in pairs},
        (names[-1],),
    )


def into_a(chip, *projections, sources=3):
    """An input and one population ``a`` of one neuron, with several projections into it."""
    return QuantizedNetwork(
        "joined",
        chip.name,
        {"in": Input((sources,))},
        {"a": layer(1)},
        {f"p{i}": p for i, p in enumerate(projections)},
        ("a",),
    )


def refused(network, chip, **site):
    with pytest.raises(FitError) as caught:
        compile_program(network, chip, site=Site(**site) if site else None)
    assert caught.value.exit_code == 5
    return str(caught.value).splitlines()


# One neuron and one core


def test_input_axons_of_one_neuron_on_loihi_1():
    chip = load_chip("loihi1")
    assert compile_program(chain(chip, 4096, 1), chip).fit.cores == 1
    (line,) = refused(chain(chip, 4097, 1), chip)
    assert line.startswith("NM-FIT-022 a: found 4097 input axons for one neuron, allowed 4096")
    assert "(documented: Davies et al. 2018" in line


def test_input_axons_of_one_neuron_on_loihi_2_are_an_inferred_limit():
    chip = load_chip("loihi2")
    network = chain(chip, 16001, 1)
    codes = {line.split()[0]: line for line in refused(network, chip)}
    assert "(inferred: lava-dl netx mnist" in codes["NM-FIT-022"]
    assert "allowed 16000 a core" in codes["NM-FIT-022"]
    (line,) = refused(network, chip.documented())
    assert line.startswith(
        "NM-FIT-024 a: found 32004 words of memory for one neuron, allowed 24576"
    )
    assert "(documented: Intel Loihi 2 technology brief: 192 KB a core" in line
    smaller = chain(chip, 10001, 1)
    (line,) = refused(smaller, chip)
    assert "found 20004 words of memory for one neuron, allowed 20000 a core (inferred: " in line
    assert compile_program(smaller, chip.documented()).fit.cores == 1


def words(line):
    """What was found and what is allowed, as numbers."""
    found, _, allowed = line.partition("found ")[2].partition(", allowed ")
    return int(found.split()[0]), int(allowed.split()[0])


@pytest.mark.parametrize(("base", "row"), [("loihi1", 64), ("loihi2", 64)])
def test_synapse_rows_of_one_neuron(chip, base, row):
    """One weight of 8 bits with its index and header takes one word of 64 bits for each source."""
    held = chip(base, synapse_bits_per_core=9 * row)
    assert compile_program(chain(held, 9, 1), held).fit.layers[0].largest.synapse_bits == 9 * row
    (line,) = refused(chain(held, 10, 1), held)
    assert line.startswith("NM-FIT-021 a: found 640 bits of synapse memory for one neuron")
    assert line.endswith(RULES["NM-FIT-021"].advice)
    assert words(line) == (10 * row, 9 * row)


def kernels(chip, size):
    """A convolution of one channel with a kernel of ``size`` x 1."""
    weights = np.full((1, size, 1, 1), 2, dtype=np.int64)
    population = replace(layer(4), shape=(4, 1, 1))
    return QuantizedNetwork(
        "conv",
        chip.name,
        {"in": Input((4 + size - 1, 1, 1))},
        {"a": population},
        {"p": QuantizedProjection("in", "a", (Conv(weights),), BITS)},
        ("a",),
    )


@pytest.mark.parametrize("base", ["loihi1", "loihi2"])
def test_kernels_of_one_channel(chip, base):
    held = chip(base, synapse_bits_per_core=5 * 64)
    compile_program(kernels(held, 5), held)
    (line,) = refused(kernels(held, 6), held)
    assert line.startswith("NM-FIT-021 a: found 384 bits of synapse memory for one neuron")
    assert words(line) == (6 * 64, 5 * 64)


def test_output_axons_of_one_neuron(chip):
    """Each core of the target takes one; targets are cut into slices of two neurons."""
    held = chip("loihi1", output_axons_per_core=3, neurons_per_core=2)
    assert compile_program(chain(held, 1, 1, 6), held).fit.layers[0].largest.output_axons == 3
    lines = refused(chain(held, 1, 1, 7), held)
    assert [line for line in lines if line.startswith("NM-FIT-023 a: found 4 output axons")]
    assert all(line.startswith("NM-FIT-023 a: ") for line in lines)


def test_probed_neurons_take_output_axons(chip):
    held = chip("loihi1", output_axons_per_core=3, neurons_per_core=2)
    program = chain(held, 1, 1, 6)
    compile_program(program, held, site=Site(probed=("b",)))
    (line,) = refused(program, held, probed=("a", "b"))
    assert line.startswith("NM-FIT-023 a: found 4 output axons for one neuron, allowed 3 a core")


def test_synapse_formats_into_one_population(chip):
    held = chip("loihi1", synapse_formats_per_core=2)
    formats = [SynapseFormat(8, exponent, "mixed") for exponent in (0, 1, 2)]
    projections = [dense("in", "a", 3, 1, format) for format in formats]
    compile_program(into_a(held, *projections[:2], projections[0]), held)
    (line,) = refused(into_a(held, *projections), held)
    assert line.startswith("NM-FIT-027 a: found 3 synapse formats for one neuron, allowed 2 a core")


def test_synapse_formats_on_loihi_1():
    chip = load_chip("loihi1")
    formats = [SynapseFormat(8, exponent, "mixed") for exponent in range(-7, 1)]
    projections = [
        QuantizedProjection.dense("in", "a", np.zeros((1, 3), dtype=np.int64), format)
        for format in formats
    ]
    compile_program(into_a(chip, *projections[:7]), chip)
    (line,) = refused(into_a(chip, *projections), chip)
    assert line.startswith("NM-FIT-027 a: found 8 synapse formats for one neuron, allowed 7 a core")
    assert "(documented: nengo-loihi nxsdk_objects.py" in line


def test_delay_slots_of_one_neuron(chip):
    """8 slots hold the delays up to 6, 16 those up to 14."""
    held = chip("loihi1", delay_slots_per_core=8)
    compile_program(into_a(held, dense("in", "a", 3, 1, delay=6)), held)
    (line,) = refused(into_a(held, dense("in", "a", 3, 1, delay=7)), held)
    assert line.startswith("NM-FIT-028 a: found 16 delay slots for one neuron, allowed 8 a core")
    assert "(documented: small.yaml)" in line


def test_memory_words_of_one_neuron(chip):
    """Of 5 sources: 5 words of synapses, 5 input axons, the neuron, and its way to the host."""
    held = chip("loihi2", memory_words_per_core=12)
    assert compile_program(chain(held, 5, 1), held).fit.layers[0].largest.memory_words == 12
    (line,) = refused(chain(held, 6, 1), held)
    assert line.startswith("NM-FIT-024 a: found 14 words of memory for one neuron, allowed 12")


def given_core(names, core=0):
    return tuple(Slice(name, ((0, 1),), 0, core) for name in names)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("neurons_per_core", "NM-FIT-020"),
        ("profiles_per_core", "NM-FIT-025"),
        ("threshold_profiles_per_core", "NM-FIT-026"),
    ],
)
def test_what_populations_of_one_core_take_together(chip, key, code):
    """Three populations of one neuron on one core, where there is room for two or for three."""
    for room in (2, 3):
        held = chip("loihi1", **{key: room})
        network = chain(held, 1, 1, 1, 1)
        given = given_core("abc")
        if room == 3:
            assert compile_program(network, held, site=Site(placement=given)).fit.cores == 1
            continue
        (line,) = refused(network, held, placement=given)
        assert line.startswith(f"{code} chip 0 core 0 (a, b, c): found 3 ")
        assert "allowed 2 a core (documented: small.yaml); change the placement" in line


def test_one_population_beyond_the_neurons_of_a_core_takes_two(chip):
    held = chip("loihi1", neurons_per_core=5)
    assert compile_program(chain(held, 1, 5), held).fit.cores == 1
    assert compile_program(chain(held, 1, 6), held).fit.cores == 2


# The whole network


@pytest.mark.parametrize("base", ["loihi1", "loihi2"])
def test_as_many_slices_as_cores(chip, base):
    held = chip(base, cores=3, neurons_per_core=2, synapse_bits_per_core=1024)
    assert compile_program(chain(held, 1, 6), held).fit.cores == 3
    (line,) = refused(chain(held, 1, 7), held)
    assert line.startswith(
        "NM-FIT-030 network: found at least 4 cores needed (most by a 4), allowed 3"
    )
    assert compile_program(chain(held, 1, 7), held, site=Site(chips=2)).fit.chips == 2


def test_cores_that_a_target_leaves_out_are_its_own_limit(chip):
    held = chip("loihi1", neurons_per_core=2)
    assert compile_program(chain(held, 1, 4), held, site=Site(cores=2)).fit.cores == 2
    (line,) = refused(chain(held, 1, 5), held, cores=2)
    assert "allowed 2 (1 x 2) (cores_per_chip of the target)" in line


def test_where_the_inferred_limit_is_left_out_the_documented_one_holds():
    chip = load_chip("loihi2")
    assert (chip.neurons_per_core, chip.documented().neurons_per_core) == (4095, 8192)
    assert chip.standing("neurons_per_core").startswith("inferred: ")
    assert chip.documented().standing("neurons_per_core").startswith("documented: Intel Loihi 2")
    network = chain(chip, 1, 4096)
    assert compile_program(network, chip).fit.cores == 2
    assert compile_program(network, chip.documented()).fit.cores == 1
    fifth = chain(chip, 1, 8193)
    given = (Slice("a", ((0, 8193),), 0, 0),)
    lines = refused(fifth, chip.documented(), placement=given)
    assert lines[0].startswith("NM-FIT-020 chip 0 core 0 (a): found 8193 neurons, allowed 8192")
    assert "(documented: Intel Loihi 2 technology brief, table 2)" in lines[0]


# Violations


def test_violations_come_in_the_order_of_severity_and_code():
    codes = ["NM-FIT-052", "NM-FIT-030", "NM-FIT-050", "NM-FIT-001"]
    found = [Violation(code, "a", "x", "y") for code in codes]
    assert [v.code for v in in_order(found)] == [
        "NM-FIT-001", "NM-FIT-030", "NM-FIT-050", "NM-FIT-052",
    ]  # fmt: skip
    with pytest.raises(FitError) as caught:
        refuse(found)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "NM-FIT-001",
        "NM-FIT-030",
    ]
    refuse([v for v in found if v.severity == "warning"])


def test_every_code_has_a_sentence_and_an_advice():
    assert list(RULES) == sorted(RULES)
    for rule in RULES.values():
        assert rule.sentence.endswith(".")
        assert rule.advice
        assert not rule.advice.endswith(".")


def test_an_error_of_a_register_says_what_its_range_is_from():
    chip = load_chip("loihi1")
    network = replace(chain(chip, 2, 2), populations={"a": layer(2, refractory_delay=64)})
    (line,) = refused(network, chip)
    assert "64, allowed 1 to 63 (documented: nengo-loihi nxsdk_objects.py" in line
    other = replace(network, chip="loihi2")
    (line,) = refused(other, load_chip("loihi2"))
    assert "64, allowed 1 to 63 (inferred: as in Loihi 1" in line


CUBA = CubaLif(0.5, 0.3, 0.1)


@pytest.mark.parametrize(
    ("code", "real", "integers"),
    [
        ("NM-FIT-001", {"neuron": CubaLif(3000.0, 0.3, 0.1)}, {"threshold": 192_000}),
        ("NM-FIT-005", {"axonal_delay": 63}, {"axonal_delay": 63}),
        (
            "NM-FIT-007",
            {"neuron": CubaLif(0.5, 0.3, 0.1, refractory_delay=64)},
            {"refractory_delay": 64},
        ),
        ("NM-FIT-008", {"bias_exponent": 9}, {"bias_exponent": 9}),
    ],
)
def test_one_mistake_has_one_code_whichever_stage_finds_it(code, real, integers):
    population = Population((2,), real.pop("neuron", CUBA), **real)
    network = Network(
        "n",
        {"in": Input((2,))},
        {"a": population},
        {"p": Projection.dense("in", "a", np.ones((2, 2)))},
        ("a",),
    )
    with pytest.raises(FitError, match=rf"^{code} a\."):
        quantize(network, nets.CHIP)
    made = chain(nets.CHIP, 2, 2)
    made = replace(made, populations={"a": replace(made.populations["a"], **integers)})
    with pytest.raises(FitError, match=rf"^{code} a\."):
        compile_program(made, nets.CHIP)


def test_weight_bits_have_one_code_too():
    network = Network(
        "n",
        {"in": Input((2,))},
        {"a": Population((2,), CUBA)},
        {"p": Projection.dense("in", "a", np.ones((2, 2)))},
        ("a",),
    )
    with pytest.raises(FitError, match=r"^NM-FIT-003 projection p: found weight_bits 7"):
        quantize(network, nets.CHIP, 7)


# Graded messages


def graded(chip):
    return QuantizedNetwork(
        "graded",
        chip.name,
        {"in": Input((2,), "graded", "a")},
        {"a": layer(2, model="sigma_delta")},
        {},
        ("a",),
    )


def test_graded_messages_need_a_chip_that_has_them():
    chip = load_chip("loihi1")
    lines = refused(graded(chip), chip)
    assert [line.split(":")[0] for line in lines] == ["NM-FIT-010 a", "NM-FIT-010 input in"]
    assert all("allowed spikes without payload on loihi1 (documented: " in line for line in lines)
    compile_program(graded(load_chip("loihi2")), load_chip("loihi2"))


def test_messages_are_no_wider_than_the_chip_has(chip):
    wide = chip("loihi2", message_bits="[0, 24]")
    compile_program(graded(wide), wide)
    narrow = chip("loihi2", message_bits="[0, 8, 16]")
    lines = refused(graded(narrow), narrow)
    assert len(lines) == 2
    assert "messages of 24 bits, allowed up to 16 bits on small" in lines[0]


# Warnings


def convolution(chip, shape, source="in"):
    """A convolution with one kernel place from an input or a population."""
    channels = shape[2]
    weights = np.full((1, 1, 1, channels), 2, dtype=np.int64)
    populations = {"b": replace(layer(shape[0] * shape[1]), shape=(*shape[:2], 1))}
    inputs = {"in": Input(shape)} if source == "in" else {}
    if source != "in":
        size = int(np.prod(shape))
        populations["a"] = replace(layer(size), shape=shape)
    return QuantizedNetwork(
        "conv",
        chip.name,
        inputs,
        populations,
        {"p": QuantizedProjection(source, "b", (Conv(weights),), BITS)},
        ("b",),
    )


def codes(network, chip, **kwargs):
    return [v.code for v in warnings(network, chip, **kwargs)]


def test_a_convolution_of_more_than_256_in_x():
    chip = load_chip("loihi2")
    assert codes(convolution(chip, (256, 1, 1)), chip) == []
    (warning,) = warnings(convolution(chip, (257, 1, 1)), chip)
    assert (warning.code, warning.severity) == ("NM-FIT-050", "warning")
    assert str(warning).startswith("NM-FIT-050 projection p: found a source 257 wide in x")
    assert "spikes from x = 256 n - 1 may be dropped, allowed up to 256 (documented: " in str(
        warning
    )
    assert codes(convolution(load_chip("loihi1"), (257, 1, 1)), load_chip("loihi1")) == []


@pytest.mark.parametrize(
    ("shape", "source", "warned"),
    [
        ((58, 58, 2), "a", True),
        ((60, 58, 4), "a", True),
        ((57, 58, 2), "a", False),
        ((58, 57, 2), "a", False),
        ((58, 58, 1), "a", False),
        ((58, 58, 2), "in", False),
    ],
)
def test_a_large_convolution_between_spiking_populations(shape, source, warned):
    chip = load_chip("loihi2")
    assert codes(convolution(chip, shape, source), chip, probed=()) == ["NM-FIT-051"] * warned
    assert codes(convolution(chip, shape, source), load_chip("loihi1")) == []


@pytest.mark.parametrize(("interval", "warned"), [(1, 0), (3, 1), (16, 0), (17, 1)])
def test_a_reset_interval(interval, warned):
    chip = load_chip("loihi2")
    network = replace(chain(chip, 2, 2), populations={"a": layer(2, reset=PeriodicReset(interval))})
    assert codes(network, chip) == ["NM-FIT-052"] * warned


def test_probed_neurons():
    chip = load_chip("loihi2")
    network = chain(chip, 1, 2699, 1, 2701)
    assert codes(network, chip, probed=("a", "b")) == []
    (warning,) = warnings(network, chip)
    assert str(warning).startswith(
        "NM-FIT-053 network: found 2701 probed neurons (c), allowed 2700 a chip (inferred: "
    )


def test_a_program_keeps_its_warnings_and_cautions_show_them():
    chip = load_chip("loihi2")
    network = replace(chain(chip, 2, 2), populations={"a": layer(2, reset=PeriodicReset(5))})
    program = compile_program(network, chip)
    assert [v.code for v in program.warnings] == ["NM-FIT-052"]
    assert cautions(program)[0].startswith("NM-FIT-052 a.reset: found an interval of 5 steps")
    assert compile_program(network, chip, site=Site(probed=())).warnings == program.warnings


@given(nets.any_networks())
def test_a_network_that_the_registers_hold_has_no_violations(network):
    assert registers(network, nets.CHIP) == []


# Placements from elsewhere


PLACED = compile_program(chain(load_chip("loihi2"), 3, 4, 4), load_chip("loihi2"))
EMULATOR = load_hardware("emulator")


def moved(index, **changes):
    parts = list(PLACED.placement)
    parts[index] = replace(parts[index], **changes)
    return replace(PLACED, placement=tuple(parts))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (moved(0, core=120), "found chip 0, core 120, allowed chips 0 to 0, cores 0 to 119"),
        (moved(0, core=-1), "found chip 0, core -1"),
        (moved(0, chip=-1), "found chip -1, core"),
        (moved(0, population="x"), "found the population x, allowed a, b"),
        (moved(0, box=((0, 5),)), r"a \[0, 5\]: found \[0, 5\], allowed a slice inside \[0, 4\]"),
        (moved(0, box=((2, 2),)), "allowed a slice inside"),
        (moved(0, box=((0, 4), (0, 1))), "allowed a slice inside"),
        (
            moved(0, box=((0, 3),)),
            r"placement of a: found 1 neuron in no slice \(the first: 3\), allowed each of its 4",
        ),
        (replace(PLACED, placement=PLACED.placement[:1]), "placement of b: found 4 neurons in no"),
        (
            replace(PLACED, placement=(*PLACED.placement, PLACED.placement[0])),
            "placement of a: found 4 neurons in several slices",
        ),
        (
            replace(
                PLACED,
                placement=(
                    Slice("a", ((0, 2),), 0, 0),
                    Slice("a", ((0, 2),), 0, 1),
                    PLACED.placement[1],
                ),
            ),
            r"a: found 2 neurons in no slice \(the first: 2\) and 2 neurons in several slices",
        ),
    ],
)
def test_a_placement_that_cannot_be_is_refused_when_a_program_is_opened(program, message):
    with pytest.raises(
        FitError, match=rf"NM-FIT-031 placement of .*{message}|NM-FIT-031 {message}"
    ):
        check_target(program, EMULATOR)


def test_a_core_that_cannot_hold_what_a_placement_gives_it(tmp_path, chip):
    held = chip("loihi2", neurons_per_core=7)
    program = compile_program(chain(held, 3, 4, 4), held)
    (tmp_path / "t.yaml").write_text("schema: nmtool.hardware/v1\nname: t\nchip: small.yaml\n")
    target = load_hardware(str(tmp_path / "t.yaml"))
    check_target(program, target)
    together = tuple(replace(part, core=0) for part in program.placement)
    with pytest.raises(FitError, match=r"^NM-FIT-020 chip 0 core 0 \(a, b\): found 8 neurons"):
        check_target(replace(program, placement=together), target)
    check_target(replace(program, placement=()), target)


def test_a_program_for_several_chips_runs_on_a_simulator_of_one():
    chip = load_chip("loihi2")
    spread = moved(1, chip=3)
    check_target(spread, EMULATOR)
    network = spread.network
    with pytest.raises(FitError, match="NM-FIT-031"):
        compile_program(network, chip, site=Site(chips=3, placement=spread.placement))
