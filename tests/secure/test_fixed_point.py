from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.secure.field import BLOCK, P, combine, is_canonical
from qsfl_flower.secure.fixed_point import FixedPoint, signed

FORMAT = FixedPoint(bits=24, bound=5.0, terms=200)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_nearest_is_half_a_unit_and_equals_exact_rounding(values):
    encoded = FORMAT.encode(np.array(values))
    assert is_canonical(encoded)
    assert signed(encoded).tolist() == [round(Fraction(v) * 2**24) for v in values]
    assert np.abs(FORMAT.decode(encoded) - values).max() <= 2**-25


@pytest.mark.parametrize("n", [2, 7, 200])
def test_the_decoded_sum_is_the_sum_of_the_encoded_values_at_the_extremes(n):
    rng = np.random.default_rng(n)
    vectors = rng.uniform(-5, 5, (n, BLOCK + 3))
    vectors[:, 0], vectors[:, 1], vectors[:, 2] = 5, -5, 0
    total = np.zeros(BLOCK + 3, np.uint64)
    for vector in vectors:
        total = (total + FORMAT.encode(vector)) % P
    exact = np.rint(vectors * 2.0**24).astype(np.int64).sum(axis=0)
    assert np.array_equal(signed(total), exact)
    assert np.array_equal(FORMAT.decode(total), exact / 2.0**24)
    mean = FORMAT.decode(total) / n
    assert np.abs(mean - vectors.mean(axis=0)).max() < 1e-6


def test_weights_use_up_room():
    weighted = FixedPoint(bits=24, bound=1.0, terms=2 * 100)
    vectors = [np.array([1.0, -1.0, 0.25]), np.array([1.0, -1.0, -0.5])]
    total = combine([100, 37], [weighted.encode(v) for v in vectors])
    assert weighted.decode(total).tolist() == [137.0, -137.0, 25 - 18.5]


def test_the_room_is_exactly_half_the_field():
    largest = P // 2
    assert FixedPoint(bits=0, bound=1.0, terms=largest).terms == largest
    with pytest.raises(ConfigError, match="the field has 61"):
        FixedPoint(bits=0, bound=1.0, terms=largest + 1)
    with pytest.raises(ConfigError, match="the field has 61"):
        FixedPoint(bits=52, bound=300.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(bad):
    values = np.zeros(BLOCK + 2)
    values[-1] = bad
    with pytest.raises(RejectedUpdate, match="not-finite"):
        FORMAT.encode(values)


@pytest.mark.parametrize("bad", [5.01, -5.01, 1e300, -1e300])
def test_out_of_range(bad):
    with pytest.raises(RejectedUpdate, match="out-of-range"):
        FORMAT.encode(np.array([0.0, bad]))


def test_a_summand_that_wraps_is_found_in_the_sum():
    fmt = FixedPoint(bits=24, bound=5.0, terms=3)
    total = fmt.encode(np.array([4.0, 0.0]))
    total += np.array([0, P // 2], np.uint64)
    with pytest.raises(RejectedUpdate, match="out-of-range"):
        fmt.decode(total)
    # At the very limit it is still a possible sum, and one unit beyond it is not.
    edge = 3 * fmt.limit
    assert fmt.decode(np.array([edge, P - edge], np.uint64)).tolist() == [15.0, -15.0]
    for beyond in (edge + 1, P - edge - 1):
        with pytest.raises(RejectedUpdate):
            fmt.decode(np.array([beyond], np.uint64))


def test_stochastic_rounding_is_unbiased_and_within_a_unit():
    """The mean of N roundings is off by more than 6 standard deviations with p < 2e-9 each."""
    fmt = FixedPoint(bits=4, bound=2.0, rounding="stochastic")
    count = 40_000
    for value in (0.3, -0.3, 1.99, 0.0, 2.0, -2.0):
        found = signed(fmt.encode(np.full(count, value), seed=b"r" * 32)) / 16
        assert np.abs(found - value).max() < 1 / 16
        share = value * 16 - math.floor(value * 16)
        deviation = math.sqrt(share * (1 - share) / count) / 16
        assert abs(found.mean() - value) <= 6 * deviation + 1e-12
    assert not np.array_equal(fmt.encode(np.full(99, 0.3)), fmt.encode(np.full(99, 0.3)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": -1},
        {"bits": 53},
        {"bound": 0},
        {"bound": math.inf},
        {"terms": 0},
        {"rounding": "up"},
    ],
)
def test_wrong_parameters(wrong):
    with pytest.raises(ConfigError):
        FixedPoint(**wrong)


def test_empty_vector():
    assert FORMAT.decode(FORMAT.encode(np.empty(0))).size == 0
