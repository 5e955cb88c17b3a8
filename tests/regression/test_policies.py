from dataclasses import replace

import numpy as np
import pytest
import regression_networks as nets
from hypothesis import given
from hypothesis import strategies as st

from nmtool.errors import ConfigError
from nmtool.regression.policies import judge, parse_policy, van_rossum
from nmtool.spikes import SpikeTrain

PROGRAM = nets.make_program("dense")
GOLDEN = nets.make_golden(PROGRAM)


def with_output(raster):
    spikes = {**GOLDEN.expected.spikes, "o": SpikeTrain.from_raster(raster)}
    return replace(GOLDEN.expected, spikes=spikes)


def output():
    return GOLDEN.expected.spikes["o"].to_raster().copy()


def verdict(run, *policies):
    (found,) = judge(GOLDEN, run, policies)
    return found


@pytest.mark.parametrize(
    "policy", ["exact", "jitter=0", "rate=0", "van_rossum=5:0", "latency=0", "accuracy"]
)
def test_a_run_passes_against_itself(policy):
    assert verdict(GOLDEN.expected, policy).passed


def moved(by):
    """The first output spike that has room, ``by`` steps later."""
    raster = output()
    for sample, neuron, step in np.argwhere(raster):
        if (
            step + by < raster.shape[2]
            and not raster[sample, neuron, step : step + by + 1].sum() > 1
        ):
            raster[sample, neuron, step], raster[sample, neuron, step + by] = False, True
            return raster
    raise AssertionError("no spike has room")


def test_one_spike_more_is_a_regression_of_exact_and_is_located():
    raster = output()
    sample, neuron, step = np.argwhere(~raster)[0]
    raster[sample, neuron, step] = True
    found = verdict(with_output(raster), "exact")
    assert not found.passed
    assert (
        f"1 differing spikes, 0 differing states, first in o: sample {sample}, step {step}, "
        f"neuron {neuron}" in found.found
    )


@pytest.mark.parametrize(("by", "allowed", "passes"), [(1, 1, True), (2, 1, False), (2, 2, True)])
def test_jitter_allows_shifts_up_to_its_steps(by, allowed, passes):
    assert verdict(with_output(moved(by)), f"jitter={allowed}").passed is passes


def test_jitter_wants_a_partner_for_every_spike():
    raster = output()
    raster[tuple(np.argwhere(raster)[0])] = False
    found = verdict(with_output(raster), "jitter=100")
    assert not found.passed
    assert "1 spike without a partner" in found.found


def test_rate_compares_the_number_of_spikes_of_each_population():
    raster = output()
    places = np.argwhere(raster)
    lost = len(places) // 4
    for place in places[:lost]:
        raster[tuple(place)] = False
    share = lost / len(places)
    assert verdict(with_output(raster), f"rate={share + 1e-9}").passed
    assert not verdict(with_output(raster), f"rate={share - 1e-3}").passed


def test_rate_of_a_silent_population_allows_no_spike():
    quiet = replace(GOLDEN, expected=with_output(np.zeros_like(output())))
    (found,) = judge(quiet, GOLDEN.expected, ["rate=0.5"])
    assert not found.passed


def test_latency_grows_with_the_first_output_spikes():
    raster = output()
    later = np.zeros_like(raster)
    later[:, :, 3:] = raster[:, :, :-3]
    assert not verdict(with_output(later), "latency=2.9").passed
    assert verdict(with_output(later), "latency=3.1").passed
    assert not verdict(with_output(np.zeros_like(raster)), "latency=100").passed


def answering(*steps):
    """A golden run of one input spike at step 5, and the output's first spike at each step."""
    entering = np.zeros((len(steps), 20, nets.STEPS), dtype=bool)
    entering[:, 0, 5] = True
    leaving = np.zeros((len(steps), 10, nets.STEPS), dtype=bool)
    for sample, step in enumerate(steps):
        if step is not None:
            leaving[sample, 0, step] = True
    spikes = {"o": SpikeTrain.from_raster(leaving)}
    inputs = {"i": SpikeTrain.from_raster(entering)}
    return replace(
        GOLDEN, inputs=inputs, labels=None, expected=replace(GOLDEN.expected, spikes=spikes)
    )


def test_a_golden_run_that_spikes_before_its_input_has_no_latency():
    golden = answering(9, 3)
    assert "latency" not in golden.metrics
    with pytest.raises(ConfigError, match=r"2 steps before the first input spike in sample 1 of"):
        judge(golden, golden.expected, ["latency=100"])


def test_an_output_spike_before_the_input_is_a_regression_of_latency():
    (found,) = judge(answering(9, 9), answering(9, 1).expected, ["latency=100"])
    assert not found.passed
    assert "4 steps before the first input spike in sample 1" in found.found


def test_a_sample_that_falls_silent_is_a_regression_of_latency_though_the_mean_shrinks():
    (found,) = judge(answering(7, 30), answering(7, None).expected, ["latency=5"])
    assert not found.passed
    assert found.found == "no output spike in 1 samples, first 1"
    assert judge(answering(7, None), answering(8, 20).expected, ["latency=1"])[0].passed


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        *(("jitter=2e9", "0 to 1e9"), ("rate=2e9", "0 to 1e9"), ("latency=2e9", "0 to 1e9")),
        *(("van_rossum=2e9:1", "1e-9 to 1e9 steps"), ("accuracy=0.9999999", "0 to 0.999999")),
    ],
)
def test_a_number_past_its_upper_limit_is_refused_with_the_limit(text, limits):
    with pytest.raises(ConfigError, match=limits):
        parse_policy(text)


@pytest.mark.parametrize("text", ["jitter=1234567", "van_rossum=2.5:0.12345678", "rate=1e-7"])
def test_no_digit_of_a_policy_is_lost(text):
    assert parse_policy(str(parse_policy(text))) == parse_policy(text)


def with_answers(golden, classes):
    """The golden's run with one output spike for each sample, of the given class."""
    raster = np.zeros((len(classes), 10, nets.STEPS), dtype=bool)
    raster[np.arange(len(classes)), classes, 5] = True
    spikes = {**golden.expected.spikes, "o": SpikeTrain.from_raster(raster)}
    return replace(golden.expected, spikes=spikes)


@pytest.mark.parametrize(
    ("losses", "gains", "passes"),
    [
        *((0, 0, True), (1, 0, True), (4, 0, True), (5, 0, False)),
        *((8, 3, True), (9, 2, False), (0, 9, True)),
    ],
)
def test_accuracy_fails_where_the_loss_is_significant(losses, gains, passes):
    """McNemar: 4 of 4 changes for the worse have p = 1/16, 5 of 5 have 1/32."""
    golden = nets.make_golden(PROGRAM, samples=40)
    right = np.arange(40) % 10
    before, after = right.copy(), right.copy()
    before[:gains] = (before[:gains] + 1) % 10
    after[20 : 20 + losses] = (after[20 : 20 + losses] + 1) % 10
    golden = replace(golden, labels=right, expected=with_answers(golden, before))
    (found,) = judge(golden, with_answers(golden, after), ["accuracy=0.95"])
    assert found.passed is passes
    assert f"{losses} samples lost and {gains} won" in found.found


def test_accuracy_without_labels_is_refused():
    with pytest.raises(ConfigError, match="no labels"):
        judge(replace(GOLDEN, labels=None), GOLDEN.expected, ["accuracy"])


@pytest.mark.parametrize(
    "text",
    ["", "nearly", "jitter", "jitter=x", "jitter=-1", "exact=1", "van_rossum=5", "van_rossum=0:1",
     "rate=nan", "accuracy=1", "latency=1:2", "jitter="],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match=r"policy: found .*, allowed "):
        parse_policy(text)


@given(st.integers(0, 10**6))
def test_the_text_of_a_policy_is_read_back(number):
    for text in ("exact", f"jitter={number}", f"van_rossum=2.5:{number}", "accuracy=0.9"):
        assert parse_policy(str(parse_policy(text))) == parse_policy(text)


def brute_van_rossum(a, b, tau):
    """By definition, with the tail summed for a long time."""
    q = np.exp(-1 / tau)
    total, f, g = 0.0, 0.0, 0.0
    for t in range(len(a) + 4000):
        f, g = q * f, q * g
        if t < len(a):
            f, g = f + a[t], g + b[t]
        total += (f - g) ** 2
    return np.sqrt((1 - q * q) * total)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([0.5, 3.0, 20.0]),
)
def test_van_rossum_equals_its_definition(pairs, tau):
    a, b = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    trains = [SpikeTrain.from_raster(raster[None]) for raster in (a, b)]
    assert van_rossum(*trains, tau)[0, 0] == pytest.approx(brute_van_rossum(a, b, tau), abs=1e-9)


def test_a_spike_more_is_a_van_rossum_distance_of_one():
    one = np.zeros((1, 50), dtype=bool)
    one[0, 20] = True
    trains = [SpikeTrain.from_raster(raster) for raster in (one, np.zeros_like(one))]
    assert van_rossum(*trains, 7.0)[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("lost", ["spikes", "voltage"])
def test_what_was_not_measured_is_not_compared(lost):
    golden = nets.make_golden(PROGRAM, probe="spikes,voltage:o")
    gone = {n: x for n, x in getattr(golden.expected, lost).items() if n != "o"}
    with pytest.raises(ConfigError, match=f"no {lost} of o"):
        judge(golden, replace(golden.expected, **{lost: gone}))


@pytest.mark.parametrize("policy", ["exact", "rate=1e9"])
def test_a_recording_that_was_cut_short_breaks_every_policy(policy):
    short = {
        n: SpikeTrain.from_raster(t.to_raster()[..., :20])
        for n, t in GOLDEN.expected.spikes.items()
    }
    (verdict,) = judge(GOLDEN, replace(GOLDEN.expected, spikes=short, n_steps=20), [policy])
    assert not verdict.passed
    assert verdict.found.startswith("a truncated recording: ")
    assert verdict.found.endswith("ends after 20 of 40 steps")
