import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmtool import fixedpoint as fp

LIMIT = 2**23
states = st.integers(-LIMIT, LIMIT)
wide = st.one_of(
    st.integers(-(2**50), 2**50),
    states,
    st.sampled_from([k * LIMIT + d for k in range(-4, 5) for d in (-1, 0, 1)]),
)
arrays = st.lists(wide, min_size=1, max_size=20)
factors = st.one_of(st.integers(0, 4096), st.sampled_from([0, 1, 4095, 4096]))


@given(arrays, factors)
def test_decay_equals_the_formula(xs, factor):
    assert fp.decay(xs, factor).tolist() == [oracle.decay(x, factor) for x in xs]


@given(states)
def test_decay_extremes_and_symmetry(x):
    assert fp.decay(x, 0) == x
    assert fp.decay(x, 4096) == 0
    assert fp.decay(-x, 1234) == -fp.decay(x, 1234)
    assert abs(int(fp.decay(x, 1))) <= abs(x)


@pytest.mark.parametrize("factor", [-1, 4097])
def test_decay_refuses_a_factor_outside_the_register(factor):
    with pytest.raises(ValueError, match=f"found factor {factor}, allowed 0 to 4096"):
        fp.decay([1], factor)


@given(arrays)
def test_wrap_equals_the_formula_and_lands_in_the_register(xs):
    result = fp.wrap(xs).tolist()
    assert result == [oracle.wrap(x) for x in xs]
    for x, r in zip(xs, result, strict=True):
        assert -LIMIT < r <= LIMIT
        assert (x - r) % 2**24 == 0


def test_wrap_at_the_edges():
    assert fp.wrap([LIMIT, LIMIT + 1, -LIMIT, -LIMIT + 1]).tolist() == [
        LIMIT,
        -LIMIT + 1,
        LIMIT,
        -LIMIT + 1,
    ]
    assert fp.wrap(11379200) == -5398016


@given(arrays)
def test_saturate_equals_the_formula(xs):
    assert fp.saturate(xs).tolist() == [oracle.saturate(x) for x in xs]


@given(st.lists(st.integers(-(2**40), 2**40)), st.integers(-8, 8))
def test_shift_floors_and_exact_shift_knows(xs, exponent):
    wanted = [x * 2**exponent if exponent >= 0 else x // 2**-exponent for x in xs]
    assert fp.shift(xs, exponent).tolist() == wanted
    exact = all(x % 2 ** max(-exponent, 0) == 0 for x in xs)
    assert fp.exact_shift(xs, exponent) == exact


@given(st.integers(-(2**53), 2**53).map(lambda n: n / 8))
def test_round_nearest_is_python_s_round(x):
    assert int(fp.round_nearest(x)) == round(x)


def test_round_nearest_keeps_the_sign_beyond_64_bits():
    assert fp.round_nearest([1e300, -1e300, np.inf, 1e19]).tolist() == [
        2**62,
        -(2**62),
        2**62,
        2**62,
    ]
    assert fp.round_nearest([0.5, 1.5, 2.5, -0.5]).tolist() == [0, 2, 2, 0]


@given(states, st.integers(-(2**20), 2**20), st.integers(0, 4095))
def test_current_step(u, arriving, decay_u):
    wanted = oracle.wrap(oracle.decay(u, decay_u + 1) + 64 * arriving)
    assert fp.current_step(np.array(u), np.array(arriving), decay_u) == wanted


@given(states, states, st.integers(-(2**20), 2**20), st.integers(0, 4095))
def test_voltage_step(v, u, bias, decay_v):
    wanted = oracle.saturate(oracle.decay(v, decay_v) + u + bias)
    assert fp.voltage_step(np.array(v), np.array(u), np.array(bias), decay_v) == wanted


@given(st.integers(0, 131071))
def test_a_neuron_fires_strictly_above_its_threshold(threshold):
    at = threshold * 64
    assert fp.fires(np.array([at - 1, at, at + 1]), threshold).tolist() == [False, False, True]
    assert fp.scaled(threshold) == at


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1))
def test_words_of_32_bits_equal_the_oracle(xs):
    assert fp.wrap_word(xs).tolist() == [oracle.word(x) for x in xs]
