from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.carried import combine_carried, median_carried

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def oracle(values: list[int], weights: list[float]) -> int:
    total = sum(map(Fraction, weights))
    return round(sum(Fraction(w) * v for w, v in zip(weights, values, strict=True)) / total)


def test_counters_of_batch_normalization():
    """(1 * 10 + 3 * 20) / 4 = 17.5, a tie that goes to the even 18."""
    result = combine_carried([np.array(10), np.array(20)], [1.0, 3.0])
    assert result.shape == ()
    assert result.dtype == np.int64
    assert result == 18


def test_ties_go_to_the_even_number():
    pairs = np.array([[0, 1], [1, 2], [-1, 0], [-2, -1], [2, 3]])
    result = combine_carried([pairs[:, 0], pairs[:, 1]], [0.5, 0.5])
    assert result.tolist() == [0, 2, 0, -2, 2]


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 6), st.integers(0, 4))
def test_exact_for_every_integer_and_whole_weights(data, dtype, clients, size):
    info = np.iinfo(dtype)
    values = st.one_of(
        st.integers(int(info.min), int(info.max)),
        st.sampled_from([int(info.min), int(info.min) + 1, 0, int(info.max) - 1, int(info.max)]),
    )
    rows = [data.draw(st.lists(values, min_size=size, max_size=size)) for _ in range(clients)]
    weights = data.draw(
        st.lists(st.integers(0, 2**49), min_size=clients, max_size=clients).filter(any)
    )
    arrays = [np.array(row, dtype) for row in rows]
    result = combine_carried(arrays, weights)
    assert result.dtype == np.dtype(dtype)
    assert result.tolist() == [oracle(list(column), weights) for column in zip(*rows, strict=True)]


@given(
    st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats(1e-6, 1)), min_size=1, max_size=9)
)
def test_weights_with_many_digits_are_as_good_as_exact(pairs):
    values, weights = map(list, zip(*pairs, strict=True))
    total = sum(map(Fraction, weights))
    mean = sum(Fraction(w) * v for w, v in zip(weights, values, strict=True)) / total
    result = int(combine_carried([np.array(v) for v in values], weights))
    assert abs(result - mean) <= Fraction(1, 2) + Fraction(1, 10**8)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=7))
def test_booleans_follow_the_majority_of_weight(votes):
    values, weights = zip(*votes, strict=True)
    if not any(weights):
        return
    result = combine_carried([np.array(v) for v in values], weights)
    yes = sum(w for v, w in votes if v)
    assert result.dtype == np.bool_
    assert bool(result) == (2 * yes > sum(weights))


def test_extreme_weights():
    arrays = [np.array([1, 2]), np.array([101, 102])]
    assert combine_carried(arrays, [1e-300, 1e-300]).tolist() == [51, 52]
    assert combine_carried(arrays, [1e300, 1.0]).tolist() == [1, 2]
    assert combine_carried(arrays, [0.0, 5e-324]).tolist() == [101, 102]


def test_inputs_are_not_changed_and_the_shape_is_kept():
    arrays = [np.full((2, 3), i, np.uint8) for i in (1, 2)]
    for array in arrays:
        array.flags.writeable = False
    result = combine_carried(arrays, [1, 3])
    assert result.shape == (2, 3)
    assert (result == 2).all()
    assert not np.shares_memory(result, arrays[1])


def test_hostile_values_in_a_large_array_take_no_minutes():
    rng = np.random.default_rng(0)
    info = np.iinfo(np.int64)
    arrays = [rng.integers(info.min, info.max, 200_000) for _ in range(5)]
    weights = [0.1, 0.7, 0.3, 0.2, 1 / 3]
    start = time.perf_counter()
    result = combine_carried(arrays, weights)
    assert time.perf_counter() - start < 5  # takes about 0.1 s; exact fractions take 4 s and more
    for index in (0, 99_999, 199_999):
        column = [int(array[index]) for array in arrays]
        assert abs(int(result[index]) - oracle(column, weights)) <= 2**14  # weights of 53 bits


@pytest.mark.parametrize(
    ("arrays", "weights"),
    [
        ([], []),
        ([np.array(1)], [1, 2]),
        ([np.array(1), np.array(2)], [0, 0]),
        ([np.array(1), np.array(2)], [1, -1]),
        ([np.array(1), np.array(2)], [1, math.nan]),
        ([np.array(1), np.array([2])], [1, 1]),
        ([np.array(1), np.array(2, np.int32)], [1, 1]),
    ],
)
def test_what_does_not_fit_together_is_refused(arrays, weights):
    with pytest.raises(ConfigError, match="cannot be combined"):
        combine_carried(arrays, weights)


def test_complex_numbers_are_not_carried():
    with pytest.raises(ConfigError, match="complex128 is not carried"):
        median_carried([np.array(1.5j)])


@given(
    st.lists(st.tuples(st.floats(-1e30, 1e30), st.floats(1e-6, 10)), min_size=1, max_size=9),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_the_mean_of_floats_is_rounded_once_and_stays_in_their_range(pairs, dtype):
    most = np.finfo(dtype).max
    values = [np.array(max(-most, min(most, v)), dtype) for v, _ in pairs]
    weights = [w for _, w in pairs]
    result = combine_carried(values, weights)
    assert result.dtype == np.dtype(dtype)
    assert min(values) <= result <= max(values)
    total = sum(map(Fraction, weights))
    mean = sum(Fraction(w) * Fraction(float(v)) for w, v in zip(weights, values, strict=True))
    scale = max(abs(float(v)) for v in values)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert abs(float(mean / total) - float(result)) <= np.finfo(dtype).eps * scale + tiny


def test_equal_floats_stay_as_they_are():
    value = np.array([0.1, 1e-45, 3e38], np.float32)
    assert combine_carried([value] * 3, [0.1, 0.2, 0.7]).tobytes() == value.tobytes()


@given(st.data(), st.sampled_from([*DTYPES, "bool"]), st.integers(1, 9))
def test_the_median_is_that_of_the_sorted_values(data, dtype, clients):
    info = None if dtype == "bool" else np.iinfo(dtype)
    values = st.booleans() if info is None else st.integers(int(info.min), int(info.max))
    rows = data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=clients,
                              max_size=clients))  # fmt: skip
    result = median_carried([np.array(row, dtype) for row in rows])
    assert result.dtype == np.dtype(dtype)
    for column in range(3):
        assert result[column] == sorted(row[column] for row in rows)[(clients - 1) // 2]


@given(st.data(), st.integers(1, 4))
def test_fewer_than_half_cannot_move_the_median_out_of_the_others_range(data, liars):
    numbers = st.integers(-(2**63), 2**63 - 1)
    honest = data.draw(st.lists(numbers, min_size=liars + 1, max_size=liars + 4))
    lies = data.draw(st.lists(numbers, min_size=liars, max_size=liars))
    result = int(median_carried([np.array(v) for v in data.draw(st.permutations(honest + lies))]))
    assert min(honest) <= result <= max(honest)


def test_medians_of_different_kinds_are_refused():
    for arrays in ([], [np.array(1), np.array([1])], [np.array(1j)]):
        with pytest.raises(ConfigError):
            median_carried(arrays)
