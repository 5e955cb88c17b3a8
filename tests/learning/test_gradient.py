"""The local rules against autograd on the graph that they stand for, and what they leave out."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import networks

from nmtool.chip import load_chip
from nmtool.compiler import compile_program
from nmtool.config import LowerRate, Readout, SlayerSurrogate, Sparsity, UpperRate
from nmtool.errors import ConfigError
from nmtool.fixedpoint import CURRENT_DECAY_OFFSET, DECAY_ONE
from nmtool.operations import chain_connections
from nmtool.quantization import STATE_SCALE, WEIGHT_SCALE, dequantize_weights
from nmtool.training.surrogates import derivative

torch = pytest.importorskip("torch")
from nmtool.learning.dcll import Dcll, surrogate  # noqa: E402
from nmtool.learning.host import BETA1, Host, HostState  # noqa: E402
from nmtool.learning.injected import Injected  # noqa: E402
from nmtool.learning.local import LocalReadout, Trace, class_readout, random_readout  # noqa: E402
from nmtool.learning.readout import DeltaRule  # noqa: E402
from nmtool.learning.rule import Batch, Setting  # noqa: E402
from nmtool.learning.twin import Twin  # noqa: E402
from nmtool.training.injection import Measured  # noqa: E402

CHIP = load_chip("loihi2")
SHAPES = [
    # synaptic delays, axonal delay
    ((0, 0), 0),
    ((3, 1), 0),
    ((0, 2), 4),
]


class Spike(torch.autograd.Function):
    """Forward the measured spike; backward the exponential at the voltage of the chip."""

    @staticmethod
    def forward(ctx, voltage, measured, chip_voltage, threshold, width):
        ctx.save_for_backward(torch.exp(-torch.abs(chip_voltage - threshold) / width))
        return measured

    @staticmethod
    def backward(ctx, error):
        return error * ctx.saved_tensors[0], None, None, None, None


def decays(population):
    keep_u = 1 - (population.decay_u + CURRENT_DECAY_OFFSET) / DECAY_ONE
    return keep_u, 1 - population.decay_v / DECAY_ONE


class Synapse:
    """A projection with its real weights as a leaf, applied synapse by synapse."""

    def __init__(self, twin, s):
        self.s, projection = s, twin.network.projections[s.name]
        real = dequantize_weights(projection.weight_mantissa, projection.format)
        self.weight = torch.tensor(real, dtype=torch.float64, requires_grad=True)
        ways = chain_connections(projection.operations, s.shape)
        self.ends = [torch.from_numpy(end) for end in (ways.source, ways.index, ways.target)]
        self.size = twin.network.sizes[s.target]

    def arriving(self, spikes, t):
        out = torch.zeros((len(spikes), self.size), dtype=torch.float64) + 0 * self.weight.sum()
        if t < self.s.delay:
            return out
        source, index, target = self.ends
        sent = spikes[:, source, t - self.s.delay] * self.weight.ravel()[index]
        return out.index_add(1, target, sent)


def autograd(rule, twin, done, name, gated=False, burn_in=0):
    """dLoss/dWeights of one population by autograd, step by step through both integrators.

    The reset is a detached constant that is subtracted, or (gated) a detached factor, which also
    forgets what the voltage was made of. What arrives is measured, and so are own spikes.
    """
    population, local = twin.network.populations[name], rule.judge.readouts[name]
    chip_voltage = twin.replay(done.inputs, done.measured)[name].voltage / STATE_SCALE
    spikes = {twin.input: done.inputs} | {n: m.spikes for n, m in done.measured.items()}
    spikes = {n: torch.tensor(s, dtype=torch.float64) for n, s in spikes.items()}
    into = [Synapse(twin, s) for s in twin.synapses if s.target == name]
    keep_u, keep_v = decays(population)
    bias = torch.tensor(population.bias / STATE_SCALE, dtype=torch.float64)
    threshold, own = population.threshold / WEIGHT_SCALE, spikes[name]
    u = v = torch.zeros(own.shape[:2], dtype=torch.float64)
    counts = torch.zeros_like(u)
    for t in range(own.shape[2]):
        u = keep_u * u + sum(synapse.arriving(spikes[synapse.s.source], t) for synapse in into)
        v = keep_v * v + u + bias
        at_chip = torch.tensor(chip_voltage[:, :, t])
        width = 1 / rule.derivatives[name].slope
        if t >= burn_in:
            counts = counts + Spike.apply(v, own[:, :, t], at_chip, threshold, width)
        v = v * (1 - own[:, :, t]) if gated else v - (v * own[:, :, t]).detach()
    logits = local.scale * counts @ torch.tensor(local.weight, dtype=torch.float64).T
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(done.labels))
    loss.backward()
    found = {s.s.name: s.weight.grad.numpy() for s in into if s.s.trained}
    return found, float(loss.detach())


def equal(found, expected):
    """To 1e-9 of the largest."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = max(np.abs(gradient).max(), 1e-12)
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-9 * size, err_msg=name)


def random_batch(program, rng, samples=5, steps=24, classes=4, healthy=None):
    """Measured spikes that no model has to explain."""
    rates = (0.4, 0.3, 0.2, 0.3, 0.2)
    spikes = {
        name: rng.random((samples, size, steps)) < rate
        for (name, size), rate in zip(program.network.sizes.items(), rates, strict=False)
    }
    inputs = spikes.pop(next(iter(program.network.inputs)))
    measured = {name: Measured.whole(s) for name, s in spikes.items()}
    return Batch(inputs, rng.integers(0, classes, samples), measured, healthy or {})


def make_host(program, experiment, make=Dcll.make, **changes):
    twin = Twin(program, CHIP, SlayerSurrogate())
    return Host(twin, make(Setting(twin, experiment.model_copy(update=changes))))


def factors(host, done, name):
    """Local error x surrogate, presynaptic trace and spikes, (samples, neurons, steps)."""
    twin, population = host.twin, host.twin.network.populations[name]
    (s,) = [s for s in twin.synapses if s.target == name]
    spikes = done.measured[name].spikes
    sent = done.inputs if s.source == twin.input else done.measured[s.source].spikes
    late = np.zeros_like(sent)
    late[..., s.delay :] = sent[..., : -s.delay]
    trace = np.moveaxis(Trace.into(population).advance(np.moveaxis(late, -1, 0)), 0, -1)
    voltage = twin.replay(done.inputs, done.measured)[name].voltage
    error, _ = host.rule.judge.readouts[name].error(spikes.sum(axis=2), done.labels)
    slope = surrogate(voltage, population.threshold, host.rule.derivatives[name])
    return error[:, :, None] * slope, trace, spikes


def gate(local, spikes, keep_v):
    """D'[t] = D[t] - [spike at t] x sum over t' > t, to the next spike, of kv^(t'-t) D[t']."""
    gated = local.copy()
    later = np.zeros(local.shape[:2])
    for t in reversed(range(local.shape[2])):
        gated[:, :, t] -= spikes[:, :, t] * later
        later = keep_v * (local[:, :, t] + np.where(spikes[:, :, t], 0.0, later))
    return gated


@pytest.fixture(params=SHAPES, ids=str)
def case(small_program, experiment, request):
    """A host with the rule, and a batch for a program with delays and biases."""
    delays, axonal = request.param
    program = small_program(1, delays, axonal)
    host = make_host(program, experiment(scale=0.3), seed=2)
    return host, random_batch(program, np.random.default_rng(4))


def one_a_class(made):
    network = made.network.model_copy(update={"readout": Readout()})
    return made.model_copy(update={"network": network})


@pytest.mark.parametrize("name", ["hidden", "output"])
def test_one_update_of_the_host_is_the_autograd_gradient(case, name):
    host, done = case
    program, network = host.twin.program, host.twin.network
    shadow = {
        n: dequantize_weights(p.weight_mantissa, p.format) for n, p in network.projections.items()
    }
    state = HostState.start(shadow)
    host.update(state, program, done, [name], {name: 1e-3})
    expected, _ = autograd(host.rule, host.twin, done, name)
    ((projection, gradient),) = expected.items()
    assert np.abs(gradient).max() > 1e-4
    equal({projection: state.first[projection] / (1 - BETA1)}, expected)
    other = ({"a", "b"} - {projection}).pop()
    assert state.updates == {projection: 1, other: 0}
    np.testing.assert_array_equal(state.shadow[other], shadow[other])
    signs = np.sign(shadow[projection] - state.shadow[projection])
    inside = np.abs(gradient) > 1e-6
    assert np.mean(signs[inside] == np.sign(gradient[inside])) > 0.9


@settings(max_examples=10, deadline=None)
@given(
    network=networks(),
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([1, 9, 40]),
    burn_in=st.integers(0, 8),
)
def test_it_is_autograd_of_any_network(experiment, network, seed, steps, burn_in):
    """Convolution, pooling, sparse, skips, loops, delays; more steps than are done at a time."""
    rng, burn_in = np.random.default_rng(seed), min(burn_in, steps - 1)
    program = compile_program(network, CHIP, None, steps)
    classes = network.sizes[network.outputs[0]]
    host = make_host(program, one_a_class(experiment(scale=0.3, burn_in=burn_in)))
    done = random_batch(program, rng, 2, steps, classes)
    names = [*network.populations]
    found = host.rule.gradients(host.twin, done, names)
    expected = {}
    for name in names:
        gradients, loss = autograd(host.rule, host.twin, done, name, burn_in=burn_in)
        expected |= gradients
        if name in network.outputs:
            assert found.loss == pytest.approx(loss, rel=1e-9)
    equal(found.weights, expected)


def test_a_loop_of_its_own_is_left_out(small_loop, experiment):
    """The gradient through a population's own spikes is another: what the rule drops is not 0."""
    host = make_host(small_loop, experiment(scale=0.3))
    done = random_batch(small_loop, np.random.default_rng(0), 5, 24)
    found = host.rule.gradients(host.twin, done, ["hidden"]).weights
    assert found.keys() == {"in", "own"}
    injected = make_host(small_loop, experiment(scale=0.3), Injected.make)
    through = injected.rule.gradients(injected.twin, done, ["hidden"]).weights
    assert cosine(found["own"], through["own"]) < 0.99


def test_the_loss_is_the_cross_entropy_of_the_output(case):
    host, done = case
    found = host.rule.gradients(host.twin, done, ["hidden"])
    assert found.loss == pytest.approx(autograd(host.rule, host.twin, done, "output")[1], abs=1e-12)


def test_a_masked_neuron_gets_no_gradient(case):
    host, done = case
    masked = replace(done, healthy={"hidden": np.array([1.0, 0, 1, 1, 0, 1])})
    found = host.rule.gradients(host.twin, masked, ["hidden"]).weights
    expected, _ = autograd(host.rule, host.twin, done, "hidden")
    expected["a"][[1, 4]] = 0
    equal(found, expected)


def test_what_was_not_measured_is_the_models(small_program, experiment):
    """With the model's own spikes as the measurement, leaving some of them out changes nothing."""
    host = make_host(small_program(3, (2, 1), 3), experiment(scale=0.3))
    whole = random_batch(host.twin.program, np.random.default_rng(1), 4, 40)
    own = host.twin.replay(whole.inputs, {})
    whole = replace(whole, measured={n: Measured.whole(r.spikes) for n, r in own.items()})
    part = np.random.default_rng(2).random(own["hidden"].spikes.shape) < 0.5
    unsaid = Measured(own["hidden"].spikes & part, part)
    names = ["hidden", "output"]
    expected = host.rule.gradients(host.twin, whole, names).weights
    for measured in ({}, {"hidden": unsaid}, {"output": whole.measured["output"]}):
        found = host.rule.gradients(host.twin, replace(whole, measured=measured), names).weights
        equal(found, expected)
    wrong = Measured.whole(own["hidden"].spikes & part)
    other = host.rule.gradients(host.twin, replace(whole, measured={"hidden": wrong}), names)
    assert np.abs(other.weights["b"] - expected["b"]).max() > 1e-6


@pytest.mark.parametrize("name", ["hidden", "output"])
def test_the_gated_form_is_autograd_of_a_reset_that_forgets(case, name):
    host, done = case
    local, trace, spikes = factors(host, done, name)
    _, keep_v = decays(host.twin.network.populations[name])
    ours = np.tensordot(gate(local, spikes, keep_v), trace, axes=((0, 2), (0, 2)))
    ((projection, expected),) = autograd(host.rule, host.twin, done, name, gated=True)[0].items()
    equal({projection: ours}, {projection: expected})
    plain = autograd(host.rule, host.twin, done, name)[0][projection]
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max(), "the two are not one"


def test_the_delta_rule_is_the_error_times_the_traces_of_the_last_layer(case, experiment):
    host, done = case
    delta = make_host(host.twin.program, experiment(scale=0.3, burn_in=5), DeltaRule.make, seed=2)
    found = delta.rule.gradients(delta.twin, done, ["hidden", "output"])
    _, trace, spikes = factors(host, done, "output")
    error, loss = host.rule.judge.readouts["output"].error(spikes[..., 5:].sum(2), done.labels)
    equal(found.weights, {"b": np.einsum("si,sjt->ij", error, trace[..., 5:])})
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert not delta.rule.gradients(delta.twin, done, ["hidden"]).weights


@pytest.mark.parametrize(
    "regularizer",
    [
        UpperRate(kind="upper_rate", rate=0.1, weight=7.0, populations=["hidden"]),
        LowerRate(kind="lower_rate", rate=0.9, weight=7.0),
        Sparsity(kind="sparsity", rate=0.05, weight=7.0),
    ],
    ids=lambda r: r.kind,
)
def test_a_regulariser_adds_the_derivative_of_its_penalty(case, experiment, regularizer):
    """By finite differences, of a spike more or less in a whole sample."""
    host, done = case
    settings = experiment(scale=0.3, burn_in=5, regularizers=[regularizer])
    judge = make_host(host.twin.program, settings, seed=2).rule.judge
    plain = make_host(host.twin.program, experiment(scale=0.3, burn_in=5), seed=2).rule.judge
    errors, without = (j.errors(host.twin, done) for j in (judge, plain))
    (penalty,), eps = judge.penalties, 1e-6
    rates = {n: m.spikes.mean(axis=2) for n, m in done.measured.items()}
    assert errors.loss - without.loss == pytest.approx(of_rates(penalty, rates), abs=1e-12)
    for name, rate in rates.items():
        numeric = np.zeros_like(rate)
        for index in np.ndindex(*rate.shape):
            ends = []
            for sign in (1, -1):
                moved = rate.copy()
                moved[index] += sign * eps / 24
                ends.append(of_rates(penalty, {**rates, name: moved}))
            numeric[index] = (ends[0] - ends[1]) / (2 * eps)
        found = errors.at(name, slice(0, 5))[0] - without.at(name, slice(0, 5))[0]
        np.testing.assert_allclose(found, numeric, atol=1e-7)
        late = errors.at(name, slice(5, 24)) - without.at(name, slice(5, 24))
        np.testing.assert_allclose(late, np.broadcast_to(numeric, late.shape), atol=1e-7)
    used = regularizer.populations or ["hidden", "output"]
    assert all(np.abs(errors.always[name]).max() > 1e-4 for name in used)


def of_rates(penalty, rates):
    return float(penalty({n: torch.tensor(rate)[..., None] for n, rate in rates.items()}))


def test_a_burn_in_of_the_whole_sample_is_refused(case, experiment):
    host, done = case
    late = make_host(host.twin.program, experiment(burn_in=24))
    with pytest.raises(ConfigError, match="burn_in: found 24 steps, allowed fewer than the 24"):
        late.rule.gradients(late.twin, done, ["output"])


def test_memory_does_not_grow_with_the_steps_and_that_of_backpropagation_does(
    small_program, experiment
):
    program, rng, peaks = small_program(n=(40, 60, 8)), np.random.default_rng(0), {}
    lengths = (64, 128, 256, 512)
    for make in (Dcll.make, Injected.make):
        host = make_host(program, experiment(), make)
        used = []
        for steps in lengths:
            done = random_batch(program, rng, 8, steps)
            sizes = Largest()
            with sizes:
                host.rule.gradients(host.twin, done, ["hidden", "output"])  # what is made once
            tracemalloc.start()
            host.rule.gradients(host.twin, done, ["hidden", "output"])
            used.append(tracemalloc.get_traced_memory()[1] + sizes.bytes)
            tracemalloc.stop()
        peaks[make.__self__] = used
    flat, growing = peaks[Dcll], peaks[Injected]
    assert max(flat) < 1.05 * min(flat), flat
    assert np.corrcoef(lengths, growing)[0, 1] ** 2 > 0.99, growing
    assert growing[-1] > 4 * growing[0]
    print(f"bytes at {lengths} steps: dcll {flat}, backpropagation {growing}")


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that torch made: tracemalloc sees numpy's arrays and not torch's."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, torch.Tensor):
                self.bytes = max(self.bytes, made.numel() * made.element_size())
        return out


def test_the_local_error_is_the_derivative_of_its_loss():
    rng = np.random.default_rng(0)
    readout = random_readout(6, 4, 0.3, rng)
    counts, labels = rng.integers(0, 9, (5, 6)), rng.integers(0, 4, 5)
    error, _ = readout.error(counts, labels)
    numeric = np.empty_like(error)
    for index in np.ndindex(*counts.shape):
        step = np.zeros(counts.shape)
        step[index] = 1e-6
        ends = [readout.error(counts + sign * step, labels)[1] for sign in (1, -1)]
        numeric[index] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(error, numeric, atol=1e-8)


def test_readouts_are_what_they_say():
    summed = class_readout(6, 2, 0.5)
    np.testing.assert_array_equal(summed.weight, np.repeat(np.eye(3), 2, axis=1))
    drawn = random_readout(100, 10, 1.0, np.random.default_rng(0))
    assert drawn.weight.shape == (10, 100)
    assert np.abs(drawn.weight).max() <= 0.1
    assert np.abs(drawn.weight).max() > 0.09
    assert abs(drawn.weight.mean()) < 0.01


def test_a_loss_of_many_spikes_stays_finite():
    error, loss = LocalReadout(np.eye(3), 1.0).error(np.array([[10_000, 0, 0]]), np.array([1]))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(error))


def test_the_surrogate_is_one_at_the_threshold_and_falls_on_both_sides():
    at = 80 << 6
    width = 3.75
    rho = replace(derivative(SlayerSurrogate(tau_grad=0.03), 1.25), peak=1.0)
    values = surrogate(np.array([at, at + STATE_SCALE, at - STATE_SCALE]), 80, rho)
    np.testing.assert_allclose(values, [1, np.exp(-1 / width), np.exp(-1 / width)], rtol=1e-15)


def test_the_trace_is_the_derivative_of_the_voltage_by_a_weight(small_program):
    """In closed form: sum over spikes of (ku^(n+1) - kv^(n+1)) / (ku - kv), n steps later."""
    population = small_program().network.populations["hidden"]
    keep_u, keep_v = decays(population)
    arriving = np.zeros((20, 1, 2), dtype=np.bool_)
    arriving[[2, 5], 0, 0] = True
    trace = Trace.into(population)
    found = np.concatenate([trace.advance(part) for part in np.split(arriving, [3, 4, 11])])
    expected = np.zeros(20)
    for came in (2, 5):
        later = np.arange(20) - came
        kernel = (keep_u ** (later + 1.0) - keep_v ** (later + 1.0)) / (keep_u - keep_v)
        expected += np.where(later >= 0, kernel, 0)
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-12)
    assert not found[:, 0, 1].any()


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_the_bias_of_a_trace_that_no_reset_clears(study, experiment, record_property):
    """How far the rule's direction is from that of the gated rule, on the faulty simulator.

    Measured on the trained network of examples/digits (2 batches of 256 samples, before and after
    4 rounds, healthy and faulty): cosine 0.76 to 0.79 for the hidden layer, 0.62 to 0.87 for the
    output; 85 % of the signs of the larger entries agree at least; the ungated gradient is about
    three times as long. Here the network is a small one that learns for two rounds.
    """
    chosen = study(
        experiment(
            hidden=64,
            steps=32,
            validation=300,
            test=600,
            rounds=2,
            readout_rounds=1,
            hidden_lr=1e-3,
        )
    )
    with chosen.open() as session:
        loop = chosen.loop(session)
        loop.run()
        done = loop._measure(loop._train, slice(256))
        loop._host.twin.deploy(session.program)
    for name in ("hidden", "output"):
        local, trace, spikes = factors(loop._host, done, name)
        _, keep_v = decays(loop._host.twin.network.populations[name])
        gated = gate(local, spikes, keep_v)
        full = np.tensordot(local, trace, axes=((0, 2), (0, 2)))
        exact = np.tensordot(gated, trace, axes=((0, 2), (0, 2)))
        found = cosine(full, exact)
        record_property(f"cosine {name}", found)
        print(f"cosine of the rule and the gated rule, {name}: {found:.3f}")
        assert 0.6 < found < 0.97
