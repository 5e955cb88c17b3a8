from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmtool.backends.base import Recording
from nmtool.config import Readout
from nmtool.errors import ConfigError
from nmtool.measure import class_counts, compare, measure, predict
from nmtool.spikes import SpikeTrain

SHAPE = (3, 4, 6)
NAMES = ("first", "second", "third")


def recording(seed=0, states=True, batched=True):
    rng = np.random.default_rng(seed)
    shape = SHAPE if batched else SHAPE[1:]
    draw = {name: rng.random(shape) < 0.3 for name in NAMES}
    values = {name: rng.integers(-99, 99, shape) for name in NAMES} if states else {}
    spikes = {name: SpikeTrain.from_raster(raster) for name, raster in draw.items()}
    return Recording(spikes, dict(values), {n: v * 2 for n, v in values.items()}, "b", "f", 6, 1.5)


def with_flips(original, name, places):
    raster = original.spikes[name].batch().copy()
    for place in places:
        raster[place] ^= True
    return replace(original, spikes={**original.spikes, name: SpikeTrain.from_raster(raster)})


def with_states(original, quantity, name, places):
    values = getattr(original, quantity)[name].copy()
    for place in places:
        values[place] += 1
    return replace(original, **{quantity: {**getattr(original, quantity), name: values}})


def test_a_recording_equals_itself():
    agreement = compare(recording(), recording(), NAMES)
    assert agreement.equal
    assert (agreement.first, agreement.missing, agreement.differing_spikes) == (None, (), 0)
    for population in agreement.populations:
        train = recording().spikes[population.population]
        assert population.spikes_a == population.spikes_b == len(train)
        assert (population.differing, population.states) == (0, 0)


places = st.tuples(*(st.integers(0, size - 1) for size in SHAPE))
planted = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["spikes", "current", "voltage"])),
    st.sets(places, min_size=1, max_size=4),
    min_size=1,
)


@given(planted, st.permutations(NAMES))
def test_the_first_of_any_planted_differences_is_found(differences, order):
    one = other = recording()
    for (name, quantity), where in differences.items():
        if quantity == "spikes":
            other = with_flips(other, name, where)
        else:
            other = with_states(other, quantity, name, where)
    agreement = compare(one, other, order, {"second": 7})
    kinds = ["spikes", "current", "voltage"]
    name, sample, step, neuron, kind = min(
        (
            (name, sample, step, neuron, quantity)
            for (name, quantity), where in differences.items()
            for sample, neuron, step in where
        ),
        key=lambda d: (order.index(d[0]), d[1], d[2], d[3], kinds.index(d[4])),
    )
    first = agreement.first
    assert (first.population, first.sample, first.step, first.neuron) == (
        name,
        sample,
        step,
        neuron,
    )
    assert first.quantity == kind
    assert first.threshold == (7 if name == "second" else None)
    place = sample, neuron, step
    for side, source in ((first.a, one), (first.b, other)):
        assert side["spike"] == int(source.spikes[name].batch()[place])
        assert side["current"] == int(source.current[name][place])
        assert side["voltage"] == int(source.voltage[name][place])
    for population in agreement.populations:
        spikes = differences.get((population.population, "spikes"), ())
        states = [differences.get((population.population, q), ()) for q in kinds[1:]]
        assert population.differing == len(spikes)
        assert population.states == sum(map(len, states))
    assert [p.population for p in agreement.populations] == list(order)
    assert agreement.as_json()["first"]["population"] == name
    assert agreement.as_json()["equal"] is False


def test_at_one_place_a_spike_comes_before_the_current_and_this_before_the_voltage():
    one, place = recording(), [(1, 2, 3)]
    both = with_states(with_states(one, "voltage", "first", place), "current", "first", place)
    assert compare(one, both).first.quantity == "current"
    assert compare(one, with_flips(both, "first", place)).first.quantity == "spikes"


def test_spikes_alone_compare_without_states():
    one = recording(states=False)
    other = with_flips(one, "second", [(1, 2, 3)])
    first = compare(one, other).first
    assert (first.sample, first.neuron, first.step) == (1, 2, 3)
    assert first.a["current"] is first.a["voltage"] is None
    assert compare(one, recording()).populations[0].states is None


def test_one_sample_without_a_sample_axis_compares_too():
    one = recording(batched=False)
    other = with_states(one, "voltage", "first", [(2, 5)])
    first = compare(one, other).first
    assert (first.quantity, first.sample, first.neuron, first.step) == ("voltage", 0, 2, 5)


def only(original, *names):
    """A recording of some populations."""
    kept = {
        quantity: {n: values for n, values in getattr(original, quantity).items() if n in names}
        for quantity in ("spikes", "current", "voltage")
    }
    return replace(original, **kept)


def renamed(original, name):
    first = only(original, "first")
    kept = {
        quantity: {name: getattr(first, quantity)["first"]}
        for quantity in ("spikes", "current", "voltage")
    }
    return replace(first, **kept)


@pytest.mark.parametrize("quantity", ["current", "voltage"])
def test_states_without_spikes_are_compared(quantity):
    one = recording()
    bare = {"spikes": {}, "current": {}, "voltage": {}}
    one = replace(one, **{**bare, quantity: {"second": getattr(one, quantity)["second"]}})
    (same,) = compare(one, one).populations
    assert (same.population, same.spikes_a, same.spikes_b, same.differing) == (
        "second",
        None,
        None,
        None,
    )
    assert same.states == 0
    other = with_states(one, quantity, "second", [(2, 1, 4)])
    agreement = compare(one, other, NAMES)
    assert agreement.populations[0].states == 1
    assert agreement.differing_spikes == 0
    first = agreement.first
    assert (first.quantity, first.sample, first.neuron, first.step) == (quantity, 2, 1, 4)
    assert first.a["spike"] is None
    assert first.b[quantity] == first.a[quantity] + 1
    assert agreement.missing == ()


def test_a_quantity_on_one_side_only_is_listed():
    one = recording()
    other = replace(one, voltage={}, spikes={"second": one.spikes["second"]})
    agreement = compare(one, other, NAMES)
    assert agreement.equal
    assert [p.population for p in agreement.populations] == [*NAMES]
    assert agreement.missing == (
        *("spikes:first", "voltage:first", "voltage:second"),
        *("spikes:third", "voltage:third"),
    )


def test_a_message_is_not_called_a_spike():
    values = np.random.default_rng(0).integers(-3, 4, SHAPE)
    changed = values.copy()
    changed[1, 2, 3] += 10
    one, other = (
        replace(recording(), spikes={"first": SpikeTrain.from_raster(v, graded=True)})
        for v in (values, changed)
    )
    agreement = compare(one, other, ("first",), {"first": 5})
    assert agreement.populations[0].graded
    assert agreement.first.quantity == "messages"
    assert agreement.first.a["message"] == values[1, 2, 3]
    assert agreement.first.b["message"] == values[1, 2, 3] + 10
    assert "spike" not in agreement.first.a
    assert agreement.first.threshold == 5


def test_what_is_not_compared_is_listed():
    one = recording()
    other = only(one, "first")
    assert compare(one, other).missing == ("second", "third")
    assert compare(one, one, ("second",)).missing == ("first", "third")
    assert compare(one, other).as_json()["not_compared"] == ["second", "third"]


def test_recordings_that_cannot_be_compared_are_refused():
    one = recording()
    with pytest.raises(ConfigError, match="allowed recordings with a population in common"):
        compare(one, renamed(one, "other"))
    shorter = SpikeTrain.from_raster(np.zeros((3, 4, 5)))
    with pytest.raises(
        ConfigError, match=r"population first: found .* \(3, 4, 6\) and \(3, 4, 5\)"
    ):
        compare(one, replace(one, spikes={"first": shorter}))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_class_counts_and_prediction(n_classes, per_class, seed):
    rng = np.random.default_rng(seed)
    raster = rng.random((5, n_classes * per_class, 7)) < 0.4
    readout = Readout(neurons_per_class=per_class)
    counts = class_counts(SpikeTrain.from_raster(raster), readout)
    for sample in range(5):
        wanted = [
            int(raster[sample, c * per_class : (c + 1) * per_class].sum()) for c in range(n_classes)
        ]
        assert counts[sample].tolist() == wanted
        found = predict(SpikeTrain.from_raster(raster), readout)[sample]
        assert found == wanted.index(max(wanted))


def test_a_tie_goes_to_the_lower_class():
    assert predict(SpikeTrain.from_raster(np.ones((2, 4, 3))), Readout()).tolist() == [0, 0]
    assert predict(SpikeTrain.from_raster(np.zeros((3, 2))), Readout()).tolist() == [0]


def test_neurons_that_do_not_divide_into_classes_are_refused():
    with pytest.raises(ConfigError, match=r"found 4 output neurons, allowed a multiple of .* 3"):
        class_counts(recording().spikes["first"], Readout(neurons_per_class=3))


def test_measure_counts_and_never_calls_a_count_measured():
    one = recording()
    labels = predict(one.spikes["third"], Readout())
    wrong = labels.copy()
    wrong[0] = (wrong[0] + 1) % 4
    result = measure(one, "third", Readout(), wrong)
    assert result.quantities["accuracy"].value == pytest.approx(2 / 3)
    for name in NAMES:
        count = len(one.spikes[name])
        assert result.quantities[f"spikes.{name}"].value == count
        assert result.quantities[f"rate.{name}"].value == pytest.approx(count / np.prod(SHAPE))
    bases = {name: q.basis for name, q in result.quantities.items()}
    assert bases.pop("wall_time") == "measured"
    assert set(bases.values()) == {"counted"}
    assert result.as_json()["wall_time"] == {"value": 1.5, "unit": "s", "basis": "measured"}
    assert result.backend == "b"


def test_no_accuracy_without_labels_readout_or_output():
    one = recording()
    labels = np.zeros(3, dtype=np.int64)
    for output, readout, given_labels in (
        ("third", Readout(), None),
        ("third", None, labels),
        ("fourth", Readout(), labels),
    ):
        assert "accuracy" not in measure(one, output, readout, given_labels).quantities
    with pytest.raises(ConfigError, match=r"labels: found shape \(2,\), allowed \(3,\)"):
        measure(one, "third", Readout(), labels[:2])


def test_comparison_is_symmetric_in_its_counts():
    one, other = recording(0), recording(1)
    forth, back = compare(one, other), compare(other, one)
    assert forth.differing_spikes == back.differing_spikes > 0
    assert forth.first.a == back.first.b
