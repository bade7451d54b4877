from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics.norms import Measure, measure
from qsfl_flower.numerics.validation import bounded_weights, check_finite_and_size, example_count
from qsfl_flower.numerics.vector import Vector


def weigh(*claims, limit=None, ratio=10.0):
    weights, capped = bounded_weights(claims, max_num_examples=limit, max_weight_ratio=ratio)
    return weights.tolist(), capped.tolist()


def test_finite_updates_of_honest_size_pass():
    check_finite_and_size(Measure(1e15), 1e15)
    check_finite_and_size(Measure(1e300), math.inf)


def test_an_update_that_is_not_finite_is_refused():
    bad = measure(Vector.dense(np.array([1.0, math.nan])))
    with pytest.raises(RejectedUpdate) as caught:
        check_finite_and_size(bad, math.inf)
    assert caught.value.reason == "not-finite"


def test_an_absurd_but_finite_update_is_refused():
    for value in (1e100, 1e200):
        with pytest.raises(RejectedUpdate) as caught:
            check_finite_and_size(measure(Vector.dense(np.array([value]))), 1e15)
        assert caught.value.reason == "too-large"
        assert "at most 1e+15" in caught.value.detail


def test_a_float32_update_cannot_hold_1e100():
    """It arrives as infinity, and is refused as that."""
    with np.errstate(over="ignore"):
        vector = Vector.dense(np.array([1e100]).astype(np.float32))
    with pytest.raises(RejectedUpdate, match="not-finite"):
        check_finite_and_size(measure(vector), 1e15)


@pytest.mark.parametrize("value", [0, 0.0, 7, 2.5, 2**53, np.int64(3), np.float32(1.5)])
def test_counts_that_are_accepted(value):
    assert example_count(value) == float(value)
    assert type(example_count(value)) is float


@pytest.mark.parametrize(
    "value",
    [True, np.True_, None, "12", [3], 1j, -1, -0.5, math.nan, math.inf, 2**53 + 1, 10**400, 1e300],
)
def test_counts_that_are_refused(value):
    with pytest.raises(RejectedUpdate) as caught:
        example_count(value)
    assert caught.value.reason == "bad-num-examples"


def test_ratios_are_exact_where_nothing_is_capped():
    assert weigh(1000.0, 100.0) == ([1000.0, 100.0], [False, False])
    assert weigh(3.0, 1.0, 2.5) == ([3.0, 1.0, 2.5], [False, False, False])


def test_no_claim_counts_for_more_than_the_limit():
    assert weigh(50.0, 200.0, limit=100) == ([50.0, 100.0], [False, True])


def test_no_claim_counts_for_more_than_ten_medians():
    claims = [1.0] * 20 + [1e9]
    assert weigh(*claims) == ([1.0] * 20 + [10.0], [False] * 20 + [True])


def test_of_three_or_more_nobody_owns_more_than_half():
    assert weigh(2.0, 1.0, 9.0) == ([2.0, 1.0, 3.0], [False, False, True])


def test_clients_without_examples_have_no_say():
    """Zeros would drag the median to zero, and everybody's weight with it."""
    assert weigh(0.0, 0.0, 0.0, 5.0, 4.0)[0] == [0.0, 0.0, 0.0, 5.0, 4.0]
    assert weigh(0.0, 0.0, 5.0)[0] == [0.0, 0.0, 5.0]
    assert weigh(0.0, 0.0) == ([0.0, 0.0], [False, False])
    assert weigh() == ([], [])


claims = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 2.0**53)), max_size=12)


@given(claims, st.one_of(st.none(), st.floats(1, 1e6)), st.floats(1, 100), st.randoms())
def test_the_bounds_hold_in_any_order(values, limit, ratio, rng):
    weights, capped = bounded_weights(values, max_num_examples=limit, max_weight_ratio=ratio)
    assert (weights <= values).all()
    assert ((weights > 0) == (np.array(values) > 0)).all()
    assert (weights[~capped] == np.array(values)[~capped]).all()
    if limit is not None:
        assert (weights <= limit).all()
    positive = weights[weights > 0]
    if positive.size >= 3:
        top = int(np.argmax(weights))
        assert weights[top] <= math.fsum(np.delete(weights, top))
    order = list(range(len(values)))
    rng.shuffle(order)
    shuffled, _ = bounded_weights(
        [values[i] for i in order], max_num_examples=limit, max_weight_ratio=ratio
    )
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(weights))


@given(st.integers(1, 20), st.floats(0, 2.0**53))
def test_one_liar_among_equals_gets_at_most_ten_shares(honest, lie):
    weights, _ = bounded_weights([100.0] * honest + [lie], max_num_examples=None)
    if honest >= 2:
        assert weights[-1] <= min(1000, 100 * honest)


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_limit_must_be_above_zero(limit):
    with pytest.raises(ConfigError, match="max_num_examples"):
        weigh(1.0, limit=limit)


@pytest.mark.parametrize("ratio", [0.5, -1, math.nan])
def test_a_ratio_must_be_at_least_one(ratio):
    with pytest.raises(ConfigError, match="max_weight_ratio"):
        weigh(1.0, ratio=ratio)
