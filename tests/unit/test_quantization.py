from dataclasses import asdict, replace

import numpy as np
import oracle
import pytest
import strategies as nets
from hypothesis import given
from hypothesis import strategies as st

from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import SynapseFormat
from nmtool.compiler import compile_program
from nmtool.errors import ConfigError, FitError, UnsupportedError
from nmtool.fixedpoint import STATE_LIMIT, exact_shift
from nmtool.network import (
    CubaLif,
    Delta,
    Input,
    Network,
    Population,
    Projection,
    Sigma,
    SigmaDelta,
)
from nmtool.operations import Conv, Dense, Flatten, Scale, Sparse, SumPool
from nmtool.quantization import (
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    check_mantissa,
    choose_format,
    dequantize,
    dequantize_weights,
    exact_exponents,
    quantize,
    quantize_neuron,
    quantize_weights,
    quantized_neuron_value,
    state_bounds,
)

CHIP = nets.CHIP
NEURON = CubaLif(1.0, 0.25, 0.03)
PAIRS = [(bits, mode) for bits in nets.BITS for mode in nets.MODES]


def one_layer(weight=((1.0,),), neuron=NEURON, **population):
    weight = np.asarray(weight, dtype=np.float64)
    return Network(
        "one",
        {"input": Input(weight.shape[1:])},
        {"layer": Population(weight.shape[:1], neuron, **population)},
        {"synapses": Projection.dense("input", "layer", weight)},
        ("layer",),
    )


@pytest.mark.parametrize(("bits", "mode"), PAIRS)
def test_a_format_has_two_to_the_bits_values_on_the_8_bit_scale(bits, mode):
    format = SynapseFormat(bits, 0, mode)
    values = range(format.minimum, format.maximum + 1, format.step)
    assert len(values) == 2**bits
    assert values[-1] == format.maximum
    low, high = {"mixed": (-256, 255), "excitatory": (0, 255), "inhibitory": (-255, 0)}[mode]
    assert low <= format.minimum <= format.maximum <= high
    assert 0 in values


@pytest.mark.parametrize(("bits", "mode"), PAIRS)
def test_exponents_are_those_at_which_every_shift_is_exact(bits, mode):
    format = SynapseFormat(bits, 0, mode)
    values = np.arange(format.minimum, format.maximum + 1, format.step)
    wanted = [e for e in range(-7, 8) if exact_shift(values, e)]
    assert exact_exponents(bits, mode, CHIP) == wanted
    assert {0, 7} <= set(wanted)


@given(nets.real_weights(), nets.formats())
def test_mantissas_lie_on_the_grid_and_err_by_half_a_step_inside_the_range(weight, format):
    mantissa = quantize_weights(weight, format)
    assert mantissa.dtype == np.int64
    check_mantissa("p", mantissa, format)
    unit = 2.0**format.exponent / 64
    inside = (weight >= format.minimum * unit) & (weight <= format.maximum * unit)
    error = np.abs(mantissa * unit - weight)
    assert np.all(error[inside] <= format.step * unit / 2 * (1 + 1e-12))
    assert np.all(mantissa[weight > format.maximum * unit] == format.maximum)
    assert np.all(mantissa[weight < format.minimum * unit] == format.minimum)


@pytest.mark.parametrize("huge", [1e17, 1e19, 1e30, 1e300])
def test_a_huge_weight_goes_to_the_end_of_the_range(huge):
    format = SynapseFormat(8, 7, "mixed")
    assert quantize_weights(np.array([huge, -huge]), format).tolist() == [254, -256]


@given(nets.real_weights(), st.sampled_from(nets.BITS))
def test_no_format_has_a_smaller_error_than_the_chosen_one(weight, bits):
    def error(format):
        return np.sum((dequantize_weights(quantize_weights(weight, format), format) - weight) ** 2)

    chosen = choose_format("p", weight, bits, CHIP)
    assert chosen.bits == bits
    modes = ["mixed"]
    modes += ["excitatory"] if np.all(weight >= 0) and np.any(weight) else []
    modes += ["inhibitory"] if np.all(weight <= 0) and np.any(weight) else []
    if bits == 1 and chosen.sign_mode == "excitatory":
        modes = ["excitatory"]
    assert chosen.sign_mode in modes
    others = [SynapseFormat(bits, e, m) for m in modes for e in exact_exponents(bits, m, CHIP)]
    assert error(chosen) == min(error(other) for other in others)


@given(nets.networks())
def test_quantising_what_was_quantised_gives_the_same_integers(network):
    once = quantize(network, CHIP)
    again = quantize(dequantized(network, once), CHIP)
    for name, p in once.populations.items():
        q = again.populations[name]
        assert (p.decay_u, p.decay_v, p.threshold) == (q.decay_u, q.decay_v, q.threshold)
        np.testing.assert_array_equal(p.bias, q.bias)
    for name, p in once.projections.items():
        q = again.projections[name]
        assert p.format == q.format
        np.testing.assert_array_equal(p.weight_mantissa, q.weight_mantissa)
    assert max((error.max_error for error in again.errors), default=0) == 0


def dequantized(network, quantized):
    populations = {
        name: replace(
            network.populations[name],
            neuron=quantized_neuron_value(p.decay_u, p.decay_v, p.threshold),
            bias=None if network.populations[name].bias is None else p.bias / 4096,
        )
        for name, p in quantized.populations.items()
    }
    projections = {
        name: network.projections[name].with_weight(p.weight / 64)
        for name, p in quantized.projections.items()
    }
    return replace(network, populations=populations, projections=projections)


@given(nets.networks())
def test_everything_quantised_fits_the_chip_and_names_its_errors(network):
    quantized = quantize(network, CHIP)
    compile_program(quantized, CHIP)
    errors = {error.name: error for error in quantized.errors}
    for name, population in network.populations.items():
        p = quantized.populations[name]
        assert abs(p.threshold / 64 - population.neuron.threshold) <= 1 / 128
        assert abs((p.decay_u + 1) / 4096 - population.neuron.current_decay) <= 1 / 8192
        assert abs(p.decay_v / 4096 - population.neuron.voltage_decay) <= 1 / 8192
        if population.bias is not None:
            off = np.abs(p.bias / 4096 - population.bias)
            assert off.max() <= 2.0**p.bias_exponent / 8192
            assert errors[f"{name}.bias"].max_error == pytest.approx(off.max(), abs=1e-12)
        else:
            assert not p.bias.any()
    for name, projection in network.projections.items():
        p = quantized.projections[name]
        off = np.abs(p.weight / 64 - projection.weight).max()
        assert errors[f"{name}.weight"].max_error == pytest.approx(off, abs=1e-12)
        np.testing.assert_array_equal(p.delay, projection.delay)


def test_the_registers_by_hand():
    quantized = quantize(one_layer(bias=np.array([0.5])), CHIP)
    layer = quantized.populations["layer"]
    assert (layer.decay_u, layer.decay_v, layer.threshold) == (1023, 123, 64)
    assert (layer.bias_mantissa.tolist(), layer.bias_exponent) == ([2048], 0)
    assert quantized.projections["synapses"].weight.tolist() == [[64]]


@pytest.mark.parametrize(
    ("weight", "mode", "weights"),
    [
        (np.zeros((2, 3)), "mixed", np.zeros((2, 3))),
        (np.array([[255 / 64, 1 / 64]]), "excitatory", [[255, 1]]),
        (np.array([[-255 / 64, -1 / 64]]), "inhibitory", [[-255, -1]]),
        (np.array([[-4.0, 3.96875]]), "mixed", [[-256, 254]]),
        (np.array([[0.5]]), "mixed", [[32]]),
    ],
)
def test_one_signed_and_empty_layers(weight, mode, weights):
    projection = quantize(one_layer(weight), CHIP).projections["synapses"]
    assert projection.sign_mode == mode
    np.testing.assert_array_equal(projection.weight, weights)


def test_clipped_weights_and_dead_rows_are_counted():
    weight = np.array([[1000.0, 1e-9], [1e-9, 1e-9], [0.0, 0.0]])
    error = next(e for e in quantize(one_layer(weight), CHIP).errors if e.name == "synapses.weight")
    assert error.clipped == pytest.approx(1 / 6)
    assert error.dead_rows == 1
    assert error.max_error > 400


@pytest.mark.parametrize("bits", [7, 0, 9])
def test_bits_that_the_chip_cannot_store_are_refused(bits):
    with pytest.raises(
        FitError, match=f"NM-FIT-003 .*synapses: found weight_bits {bits}, allowed 1, 2, 3"
    ):
        quantize(one_layer(), CHIP, bits)


@pytest.mark.parametrize(
    ("neuron", "name"),
    [
        (CubaLif(-0.01, 0.25, 0.03), "threshold"),
        (CubaLif(2048.0, 0.25, 0.03), "threshold"),
        (CubaLif(1e30, 0.25, 0.03), "threshold"),
        (CubaLif(1.0, 0.0, 0.03), "current_decay"),
        (CubaLif(1.0, 1.001, 0.03), "current_decay"),
        (CubaLif(1.0, 0.25, 1.0), "voltage_decay"),
        (CubaLif(1.0, 0.25, -0.001), "voltage_decay"),
        (CubaLif(float("nan"), 0.25, 0.03), "threshold"),
        (CubaLif(1.0, float("inf"), 0.03), "current_decay"),
        (CubaLif(1.0, 0.25, float("nan")), "voltage_decay"),
    ],
)
def test_values_outside_the_registers_are_refused_by_name(neuron, name):
    finite = np.isfinite(getattr(neuron, name))
    code, found = ("NM-FIT-001 ", r".*\(documented: ") if finite else ("", "a value that is not")
    with pytest.raises(FitError, match=rf"^{code}layer\.{name}: found {found}"):
        quantize(one_layer(neuron=neuron), CHIP)


@pytest.mark.parametrize(
    ("neuron", "registers"),
    [
        (CubaLif(0.0, 1 / 4096, 0.0), (0, 0, 0)),
        (CubaLif(131071 / 64, 1.0, 4095 / 4096), (4095, 4095, 131071)),
    ],
)
def test_the_ends_of_the_registers_are_reached(neuron, registers):
    assert quantize_neuron("n", neuron, CHIP) == registers
    assert quantized_neuron_value(*registers) == neuron


@pytest.mark.parametrize("bias", [-128.1, 128.0, float("nan"), float("inf")])
def test_a_bias_outside_its_register_is_refused_by_name(bias):
    code = "NM-FIT-008 " if np.isfinite(bias) else ""
    with pytest.raises(FitError, match=rf"^{code}layer\.bias: found"):
        quantize(one_layer(bias=np.array([bias])), CHIP)


@given(st.floats(-128, 127.9))
def test_a_bias_takes_the_smallest_exponent_that_holds_it(real):
    layer = quantize(one_layer(bias=np.array([real])), CHIP).populations["layer"]
    assert -4096 <= layer.bias_mantissa[0] <= 4095
    if layer.bias_exponent:
        finer = round(real * 4096 / 2 ** (layer.bias_exponent - 1))
        assert not -4096 <= finer <= 4095


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(FitError, match=r"synapses\.weight: found a value that is not a finite"):
        quantize(one_layer([[np.nan]]), CHIP)


@pytest.mark.parametrize(
    ("delay", "error", "message"),
    [
        (63, FitError, "synapses.delay: found 0 to 63 steps, allowed 0 to 62"),
        (-1, FitError, "synapses.delay: found -1 to 0 steps, allowed 0 to 62"),
        (np.array([[64]]), FitError, "found 0 to 64 steps"),
        (1.5, UnsupportedError, "synapses.delay: found a delay that is not whole steps"),
    ],
)
def test_delays_outside_the_range_are_refused(delay, error, message):
    network = one_layer()
    projection = replace(network.projections["synapses"], delay=delay)
    with pytest.raises(error, match=message):
        quantize(replace(network, projections={"synapses": projection}), CHIP)


@pytest.mark.parametrize(("delay", "error"), [(63, FitError), (1.5, UnsupportedError)])
def test_an_axonal_delay_is_checked_too(delay, error):
    with pytest.raises(error, match=r"layer\.axonal_delay: found"):
        quantize(one_layer(axonal_delay=delay), CHIP)


@pytest.mark.parametrize("mantissa", [255, 1, -258, 256, 0.5, float("nan")])
def test_a_mantissa_off_the_grid_is_refused(mantissa):
    with pytest.raises(FitError, match=r"at \(0, 1\), allowed multiples of 2 from -256 to 254"):
        check_mantissa("p", np.array([[0, mantissa]]), SynapseFormat(8, 0, "mixed"))


def test_new_mantissas_must_have_the_shape_and_the_format():
    projection = quantize(one_layer([[1.0, -1.0]]), CHIP).projections["synapses"]
    assert projection.with_mantissa(np.array([[2, -2]])).weight_mantissa.tolist() == [[2, -2]]
    with pytest.raises(ConfigError, match=r"found mantissas of shape \(2, 1\), allowed \(1, 2\)"):
        projection.with_mantissa(np.array([[2], [-2]]))
    with pytest.raises(FitError, match="projection synapses: found the weight mantissa 3 at"):
        projection.with_mantissa(np.array([[2, 3]]), "synapses")


def test_delays_of_another_shape_are_refused():
    projection = quantize(one_layer([[1.0, -1.0]]), CHIP).projections["synapses"]
    quantized = quantize(one_layer([[1.0, -1.0]]), CHIP)
    wrong = replace(projection, delay=np.zeros((2, 1), dtype=np.int64))
    with pytest.raises(ConfigError, match=r"found delays of shape \(2, 1\), allowed one number"):
        replace(quantized, projections={"synapses": wrong})


@given(nets.quantized_networks(), st.integers(1, 16), st.integers(0, 999))
def test_no_state_passes_its_bound(network, n_steps, seed):
    program = compile_program(network, CHIP, n_steps=n_steps)
    spikes = nets.random_input(network, 2, n_steps, seed, density=0.8)
    recording = ReferenceBackend().open(program).run(spikes, probe="current,voltage")
    bounds = {bound.population: bound for bound in state_bounds(network, n_steps)}
    assert list(bounds) == list(network.populations)
    for name, bound in bounds.items():
        assert np.abs(recording.current[name]).max() <= bound.current
        assert np.abs(recording.voltage[name]).max() <= bound.voltage
        assert bound.safe == (max(bound.current, bound.voltage) < STATE_LIMIT)
    if all(bound.safe for bound in bounds.values()):
        assert recording.provenance["wrapped"] == recording.provenance["saturated"] == 0


def test_a_bound_that_is_reached():
    network = quantize(one_layer([[1.0, 2.0]], CubaLif(2000.0, 1.0, 0.0)), CHIP)
    program = compile_program(network, CHIP, n_steps=4)
    spikes = nets.SpikeTrain.from_raster(np.ones((2, 4)))
    recording = ReferenceBackend().open(program).run(spikes, probe="current")
    assert state_bounds(network, 4)[0].current == recording.current["layer"].max() == 3 * 64 * 64


# Every kind


def assert_acts_alike(one, other):
    """The same integers, whatever exponents hold them."""
    for name, p in one.populations.items():
        q = other.populations[name]
        np.testing.assert_array_equal(p.bias, q.bias)
        np.testing.assert_array_equal(p.axonal_delay, q.axonal_delay)
        same = {"bias_mantissa": 0, "bias_exponent": 0, "axonal_delay": 0}
        assert asdict(replace(p, **same)) == asdict(replace(q, **same))
    for name, p in one.projections.items():
        q = other.projections[name]
        assert (p.source, p.target) == (q.source, q.target)
        assert [type(o) for o in p.operations] == [type(o) for o in q.operations]
        np.testing.assert_array_equal(p.weight, q.weight)
        np.testing.assert_array_equal(p.delay, q.delay)


def held(network):
    """A network whose registers all fit the chip."""
    limits = {"decay_u": 4095, "decay_v": 4095, "threshold": 2**17 - 1}
    populations = {
        name: p
        if p.graded
        else replace(p, **{k: min(max(getattr(p, k), 0), high) for k, high in limits.items()})
        for name, p in network.populations.items()
    }
    return replace(network, populations=populations)


@given(nets.any_networks())
def test_dequantize_and_quantize_give_the_integers_back(network):
    network = held(network)
    back = quantize(dequantize(network), CHIP)
    assert_acts_alike(network, back)
    assert max((error.max_error for error in back.errors), default=0) == 0


@given(nets.any_real_networks())
def test_real_networks_of_every_kind_are_quantised_once(network):
    once = quantize(network, CHIP)
    compile_program(once, CHIP)
    assert_acts_alike(once, quantize(dequantize(once), CHIP))


def one_chain(*operations, shape=(2, 2, 1), target=(1,), delay=0):
    return Network(
        "chain",
        {"input": Input(shape)},
        {"layer": Population(target, NEURON)},
        {"p": Projection("input", "layer", operations, delay)},
        ("layer",),
    )


def test_a_chain_without_weights_gets_the_weight_1():
    network = quantize(one_chain(SumPool((2, 2), (2, 2)), target=(1, 1, 1)), CHIP)
    projection = network.projections["p"]
    assert [type(operation) for operation in projection.operations] == [SumPool, Scale]
    assert projection.weight.tolist() == [64]


@pytest.mark.parametrize("target", [(2, 2, 1), (4,)])
def test_two_operations_with_weights_become_their_product(target):
    chain = (Conv(np.full((1, 1, 1, 1), 0.5)), *[Flatten()] * (len(target) == 1), Scale(np.ones(1)))
    projection = quantize(one_chain(*chain, target=target), CHIP).projections["p"]
    wanted = oracle.matrix(chain, (2, 2, 1)) * 64
    assert sum(hasattr(operation, "weight") for operation in projection.operations) == 1
    found = oracle.matrix(projection.operations, (2, 2, 1)) * 2.0**projection.weight_exponent
    np.testing.assert_array_equal(found, wanted)


def test_delays_for_weights_need_one_operation_that_has_any():
    for chain in [(SumPool((2, 2), (2, 2)),), (Scale(np.ones(1)), Dense(np.ones((1, 4))))]:
        with pytest.raises(ConfigError, match=r"found delays of shape \(1,\), allowed one number"):
            one_chain(*chain, delay=np.zeros(1, dtype=np.int64))


def test_clipped_weights_and_dead_rows_of_a_convolution():
    weight = np.array([1000.0, 1e-9]).reshape(2, 1, 1, 1)
    network = one_chain(Conv(weight), target=(2, 2, 2))
    (error,) = (e for e in quantize(network, CHIP).errors if e.name == "p.weight")
    assert (error.clipped, error.dead_rows) == (0.5, 4)


def test_the_registers_of_sigma_delta_neurons_by_hand():
    neuron = SigmaDelta(0.5, "unit", 3, 4)
    network = one_layer(neuron=neuron, bias=np.array([-0.25]))
    layer = quantize(network, CHIP).populations["layer"]
    assert (layer.model, layer.activation, layer.threshold) == ("sigma_delta", "unit", 32)
    assert layer.effective_threshold == 32 << 7
    assert layer.bias.tolist() == [-16 << 7]


@pytest.mark.parametrize(
    ("neuron", "bias", "message"),
    [
        (CubaLif(1.0, 0.5, 0.5, 0), None, "refractory_delay: found 0 steps, allowed 1 to 63"),
        (CubaLif(1.0, 0.5, 0.5, 64), None, "refractory_delay: found 64 steps, allowed 1 to 63"),
        (Delta(-0.1), None, "layer.threshold: found -0.1"),
        (Delta(33.0), None, r"layer.threshold: found 33 .* allowed 0 to 31.98"),
        (SigmaDelta(np.nan), None, "layer.threshold: found a value that is not a finite"),
        (Delta(0.0, -1), None, r"layer: found the exponents -1 \(spike\) and 6 \(state\)"),
        (SigmaDelta(0.0, "relu", 12, 12), None, "allowed from 0, below 24 together"),
        (SigmaDelta(0.0), 512.0, r"layer.bias: found 512 to 512, allowed -512 to 511.98"),
        (SigmaDelta(0.0), np.inf, "layer.bias: found a value that is not a finite"),
    ],
)
def test_parameters_outside_the_range_are_refused_by_name(neuron, bias, message):
    bias = None if bias is None else np.array([bias])
    with pytest.raises(FitError, match=message):
        quantize(one_layer(neuron=neuron, bias=bias), CHIP)


@pytest.mark.parametrize("neuron", [Delta(0.0), Sigma()])
def test_neurons_without_a_bias_refuse_one(neuron):
    with pytest.raises(ConfigError, match=f"a {type(neuron).__name__} neuron has no bias"):
        one_layer(neuron=neuron, bias=np.zeros(1))


def test_a_sparse_matrix_without_synapses_is_quantised():
    empty = Sparse.from_matrix(np.zeros((1, 4)))
    network = quantize(one_chain(empty), CHIP)
    assert network.projections["p"].weight.size == 0
    assert network.delay_max == 0


@given(nets.any_networks(), st.integers(1, 12), st.integers(0, 999))
def test_no_state_of_the_oracle_passes_its_bound(network, n_steps, seed):
    inputs = nets.random_input(network, 1, n_steps, seed, density=0.9)
    found = oracle.simulate(network, {k: t.batch()[0] for k, t in inputs.items()}, n_steps)
    graded = {p.target for p in network.projections.values() if network.graded(p.source)}
    graded |= {source.drives for source in network.inputs.values()}
    bounds = {bound.population: bound for bound in state_bounds(network, n_steps)}
    cuba = {name for name, p in network.populations.items() if p.model == "cuba"}
    assert set(bounds) == cuba - graded
    for name, bound in bounds.items():
        assert np.abs(found["current", name]).max() <= bound.current
        assert np.abs(found["voltage", name]).max() <= bound.voltage


def test_a_bound_of_a_convolution_that_is_reached():
    population = QuantizedPopulation((1, 1, 1), 4095, 0, 2**17 - 1, np.zeros(1, dtype=np.int64))
    chain = (SumPool((2, 2), (2, 2)), Conv(np.full((1, 1, 1, 1), 6)))
    projection = QuantizedProjection("input", "layer", chain, SynapseFormat(8, 0, "mixed"))
    inputs = {"input": Input((2, 2, 1))}
    network = QuantizedNetwork(
        "pool", "loihi2", inputs, {"layer": population}, {"p": projection}, ("layer",)
    )
    found = oracle.simulate(network, {"input": np.ones((4, 3))}, 3)
    assert state_bounds(network, 3)[0].current == found["current", "layer"].max() == 4 * 6 * 64
