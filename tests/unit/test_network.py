from dataclasses import replace

import numpy as np
import pytest

from nmtool.errors import ConfigError
from nmtool.network import (
    CubaLif,
    Input,
    Network,
    PeriodicReset,
    Population,
    Projection,
    SigmaDelta,
    data_flow,
)
from nmtool.operations import Conv, Dense, Flatten, Sparse, SumPool

NEURON = CubaLif(1.0, 0.25, 0.03)


def dense(source, target, rows, columns, delay=0):
    return Projection.dense(source, target, np.ones((rows, columns)), delay)


NETWORK = Network(
    "two",
    {"input": Input((2, 3))},
    {"first": Population((4,), NEURON), "second": Population((5,), NEURON)},
    {
        "in": dense("input", "first", 4, 6),
        "on": dense("first", "second", 5, 4),
        "back": dense("second", "first", 4, 5),
    },
    ("second",),
)


def test_sizes_are_those_of_all_sources():
    assert NETWORK.sizes == {"input": 6, "first": 4, "second": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": ()}, "network: found no outputs, allowed one or more of first, second"),
        (
            {"populations": {}, "projections": {}, "outputs": ()},
            "network: found no populations, allowed one or more",
        ),
        ({"inputs": {"input": 6}}, "input input: found a int, allowed an Input"),
        (
            {"populations": {"first": np.ones(4), "second": NEURON}},
            "population first: found a ndarray, allowed a Population",
        ),
        (
            {"projections": {"p": np.ones((4, 6))}},
            "projection p: found a ndarray, allowed a Projection; Projection.dense",
        ),
        (
            {"projections": {"p": Projection("input", "first", (np.ones((4, 6)),))}},
            "projection p: found a ndarray among its operations, allowed Dense, Sparse",
        ),
        ({"outputs": ("third",)}, "found the output 'third', allowed first, second"),
        (
            {"projections": {"p": dense("inptu", "first", 4, 6)}},
            "projection p: found the source 'inptu', allowed input, first, second",
        ),
        (
            {"projections": {"p": dense("first", "input", 6, 4)}},
            "projection p: found the target 'input', allowed first, second",
        ),
        (
            {"projections": {"p": dense("input", "first", 6, 4)}},
            r"found weights of shape \(6, 4\), allowed \(4, 6\) \(first, input\)",
        ),
        (
            {"projections": {"p": dense("input", "first", 4, 6, np.zeros((4, 1), dtype=int))}},
            r"found delays of shape \(4, 1\), allowed one number or \(4, 6\)",
        ),
        ({"inputs": {"first": Input((1,))}}, r"found \['first'\] as input and as population"),
        ({"inputs": {"input": Input((0,))}}, "input: found no neurons"),
    ],
)
def test_a_network_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(NETWORK, **changes)


def test_a_bias_of_another_shape_is_refused():
    populations = {**NETWORK.populations, "first": Population((4,), NEURON, np.ones(3))}
    with pytest.raises(
        ConfigError, match=r"population first: found a bias of shape \(3,\), allowed \(4,\)"
    ):
        replace(NETWORK, populations=populations)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "voltage:a", "a,b", "a\0", "a\n"])
def test_names_that_files_or_probes_cannot_hold_are_refused(name):
    with pytest.raises(ConfigError, match="network: found the name"):
        replace(NETWORK, inputs={**NETWORK.inputs, name: Input((1,))})


@pytest.mark.parametrize("name", ["layer0", "a b", "ü", "a.b", "in->out", "x" * 300])
def test_other_names_are_allowed(name):
    assert replace(NETWORK, inputs={**NETWORK.inputs, name: Input((1,))}).sizes[name] == 1


def test_data_flow_is_the_order_in_which_spikes_arrive():
    names = ("d", "c", "b", "a")
    populations = {name: Population((1,), NEURON) for name in names}
    edges = [("in", "a"), ("a", "b"), ("b", "a"), ("b", "c"), ("in", "c")]
    projections = {f"{s}{t}": dense(s, t, 1, 1) for s, t in edges}
    order = list(data_flow({"in": Input((1,))}, populations, projections))
    assert order == ["a", "c", "b", "d"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Input((4,), "bias"), "input d: found a bias that drives nothing, allowed the name of a"),
        (Input((4,), "graded", "x"), "input d: found that it drives 'x', allowed first, second"),
        (Input((4,), "spikes", "first"), "input d: found spikes that drive first, allowed graded"),
        (Input((5,), "graded", "first"), "input d: found 5 lines, allowed 4 as first has neurons"),
    ],
)
def test_inputs_that_drive_what_they_cannot_are_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        replace(NETWORK, inputs={**NETWORK.inputs, "d": source})


def test_an_input_that_drives_has_no_synapses():
    inputs = {"input": Input((6,), "graded", "first")}
    populations = {"first": Population((6,), NEURON)}
    with pytest.raises(ConfigError, match="found the source 'input', allowed first"):
        Network("n", inputs, populations, {"p": dense("input", "first", 6, 6)}, ())


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ((Conv(np.ones((1, 2, 2, 1))),), r"projection p: conv: found a source of shape \(2, 3\)"),
        ((Flatten(),), r"ends in the shape \(6,\), allowed \(4,\) as first has; Flatten\(\) puts"),
        ((), r"ends in the shape \(2, 3\), allowed \(4,\)"),
        (
            (Flatten(), Dense(np.ones((4, 5)))),
            r"p: dense: found .* allowed \(target, 6\)",
        ),
        ((Sparse.from_matrix(np.ones((4, 5))),), "projection p: sparse: found 5 source neurons"),
    ],
)
def test_a_chain_that_does_not_fit_its_ends_is_refused(chain, message):
    with pytest.raises(ConfigError, match=message):
        replace(NETWORK, projections={"p": Projection("input", "first", chain)})


def test_axes_of_length_1_may_differ_and_the_order_of_others_not():
    inputs = {"in": Input((3, 2, 2))}

    def pooled(shape):
        chain = (SumPool((1, 2), (1, 2)),)
        populations = {"a": Population(shape, NEURON)}
        return Network("n", inputs, populations, {"p": Projection("in", "a", chain)}, ("a",))

    assert pooled((3, 1, 2)).sizes == pooled((3, 2)).sizes == {"in": 12, "a": 6}
    for shape in [(2, 3), (6,), (2, 1, 3)]:
        with pytest.raises(ConfigError, match="found that it ends in the shape"):
            pooled(shape)


def test_axonal_delays_of_another_shape_are_refused():
    populations = {
        **NETWORK.populations,
        "first": Population((4,), NEURON, axonal_delay=np.zeros(3, int)),
    }
    with pytest.raises(ConfigError, match=r"found an axonal delay of shape \(3,\), allowed \(4,\)"):
        replace(NETWORK, populations=populations)


@pytest.mark.parametrize("interval", [0, -1])
def test_a_reset_needs_an_interval(interval):
    with pytest.raises(ConfigError, match=f"reset: found an interval of {interval}, allowed 1"):
        PeriodicReset(interval)


def test_an_unknown_activation_is_refused_with_the_name_of_its_population():
    populations = {"layer": Population((4,), SigmaDelta(1.0, "tanh"))}
    with pytest.raises(ConfigError, match="population layer: found the activation 'tanh', allowed"):
        Network("n", {}, populations, {}, ("layer",))
