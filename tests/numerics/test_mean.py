from __future__ import annotations

import math
import random
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import blocks
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.mean import BATCH, GROUP, CompensatedSum, sum_and_measure, weighted_sum
from qsfl_flower.numerics.norms import Measure, measure
from qsfl_flower.numerics.vector import Vector

UNIT = 2.0**-53


def dense(rows) -> list[Vector]:
    return [Vector.dense(row) for row in rows]


def exact_errors(result, rows, coefficients) -> np.ndarray:
    """Error of each coordinate in units of the sum of magnitudes, against exact arithmetic."""
    errors = []
    for value, column in zip(result, np.asarray(rows).T, strict=True):
        terms = [
            Fraction(float(c)) * Fraction(float(x))
            for c, x in zip(coefficients, column, strict=True)
        ]
        size = sum(map(abs, terms))
        error = abs(Fraction(float(value)) - sum(terms))
        errors.append(float(error / size) if size else float(error))
    return np.array(errors)


def wide_updates(clients: int, size: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes from 1e-8 to 1e8 with mixed signs, and uneven weights."""
    rng = np.random.default_rng(0)
    magnitudes = 10 ** rng.uniform(-8, 8, (clients, size))
    rows = (magnitudes * rng.choice([-1, 1], (clients, size))).astype(dtype)
    weights = rng.integers(1, 1000, clients)
    return rows, weights / weights.sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thousand_clients_over_sixteen_orders_of_magnitude(dtype):
    rows, weights = wide_updates(1000, 100, dtype)
    errors = exact_errors(weighted_sum(dense(rows), weights), rows, weights)
    assert errors.max() <= 14 * UNIT  # the bound of the docstring, 1.6e-15
    oracle = [math.fsum(weights * column) for column in rows.T.astype(np.float64)]
    sizes = np.abs(rows.astype(np.float64) * weights[:, None]).sum(axis=0)
    assert (np.abs(weighted_sum(dense(rows), weights) - oracle) / sizes).max() <= 1e-15


def test_a_float32_sum_would_fail_this_test():
    rows, weights = wide_updates(1000, 100, "float32")
    total = np.zeros(100, np.float32)
    for weight, row in zip(weights, rows, strict=True):
        total += row * np.float32(weight)
    assert exact_errors(total, rows, weights).max() > 1e-9


@pytest.mark.parametrize("sum_up", ["weighted_sum", "CompensatedSum"])
def test_the_error_does_not_grow_with_the_number_of_terms(sum_up):
    """20,000 terms of half a last bit: a plain float64 sum stays at 1, two trillionths too low."""
    rows = [np.ones(1)] + [np.full(1, 2.0**-54)] * 20_000
    if sum_up == "weighted_sum":
        value = weighted_sum(dense(rows), np.ones(len(rows)))[0]
    else:
        running = CompensatedSum(1)
        for vector in dense(rows):
            running.add(vector, 1.0)
        value = running.value()[0]
    plain = 1.0
    for row in rows[1:]:
        plain += row[0]
    assert plain == 1.0
    assert abs(value - (1 + 20_000 * 2.0**-54)) <= 13 * UNIT


def test_compensation_survives_a_term_larger_than_the_sum():
    """1, 1e100, 1, -1e100 leave 2; Kahan's sum without Neumaier's or Knuth's care gives 0."""
    running = CompensatedSum(1)
    for value in (1.0, 1e100, 1.0, -1e100):
        running.add(Vector.dense(np.array([value])), 1.0)
    assert running.value()[0] == 2.0
    rows = [np.array([v]) for v in (1.0, 1e100, 1.0, -1e100) for _ in range(GROUP)]
    assert weighted_sum(dense(rows), np.ones(len(rows)))[0] == 2.0 * GROUP


numbers = st.floats(-1e100, 1e100, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-90)


@given(st.data(), st.integers(1, 3 * GROUP), st.integers(0, 4))
def test_the_bound_holds(data, clients, size):
    rows = [
        np.array(data.draw(st.lists(numbers, min_size=size, max_size=size))) for _ in range(clients)
    ]
    coefficients = data.draw(st.lists(numbers, min_size=clients, max_size=clients))
    result = weighted_sum(dense(rows), coefficients)
    assert result.shape == (size,)
    assert (
        exact_errors(result, np.reshape(rows, (clients, size)), coefficients) <= 13 * UNIT
    ).all()


@pytest.mark.parametrize(
    "clients", [1, BATCH - 1, BATCH, BATCH + 1, GROUP, GROUP + 1, 2 * GROUP + 9]
)
def test_whole_numbers_are_exact_at_every_group_border(clients):
    rows = np.arange(clients * 3).reshape(clients, 3).astype(np.float32)
    coefficients = np.arange(1, clients + 1)
    expected = coefficients @ rows.astype(np.int64)
    np.testing.assert_array_equal(weighted_sum(dense(rows), coefficients), expected)


def test_a_weight_ratio_of_ten_is_exactly_ten():
    """A has 1000 examples, B 100; (10 * 0.5 + 1 * 0.25) / 11 in numbers that float64 holds."""
    a, b = np.array([11 * 0.5]), np.array([11 * 0.25])
    total = weighted_sum(dense([a, b]), [1000.0, 100.0])[0] / 1100
    assert total == 10 * 0.5 + 0.25


big = 3 * blocks.BLOCK + 1234


@pytest.fixture(scope="module")
def large() -> tuple[list[Vector], np.ndarray]:
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal(big, dtype=np.float32) for _ in range(GROUP + BATCH + 3)]
    cut = big // 3
    return [Vector([row[:cut], row[cut:]]) for row in rows], rng.random(len(rows))


def test_threads_and_ranges_do_not_change_a_bit(large):
    vectors, coefficients = large
    whole = weighted_sum(vectors, coefficients, threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(
            weighted_sum(vectors, coefficients, threads=threads), whole, strict=True
        )
    for lo, hi in ((0, 1), (17, 18), (big - 1, big), (100, blocks.BLOCK + 101), (5, 5)):
        part = weighted_sum(vectors, coefficients, lo=lo, hi=hi, threads=2)
        np.testing.assert_array_equal(part, whole[lo:hi])


def test_the_running_sum_does_not_depend_on_threads(large):
    vectors, coefficients = large
    values = []
    for threads in (1, 3):
        running = CompensatedSum(big)
        for vector, coefficient in zip(vectors, coefficients, strict=True):
            running.add(vector, coefficient, threads=threads)
        values.append(running.value())
    np.testing.assert_array_equal(*values)
    np.testing.assert_allclose(values[0], weighted_sum(vectors, coefficients), rtol=0, atol=1e-14)


def test_blocks_do_not_change_a_bit(large, monkeypatch):
    vectors, coefficients = large
    whole = weighted_sum(vectors, coefficients, lo=0, hi=2000)
    for size in (1, 7, 64, 1999):
        monkeypatch.setattr("qsfl_flower.numerics.mean.blocks", lambda a, b, s=size: _cut(a, b, s))
        np.testing.assert_array_equal(weighted_sum(vectors, coefficients, lo=0, hi=2000), whole)


def _cut(lo: int, hi: int, size: int):
    return ((start, min(start + size, hi)) for start in range(lo, hi, size))


def test_the_order_of_arrival_does_not_matter_to_a_caller_who_sorts():
    rows, weights = wide_updates(100, 50, "float32")
    arrivals = list(zip(range(100), rows, weights, strict=True))
    results = []
    for seed in range(5):
        random.Random(seed).shuffle(arrivals)
        _, in_order, factors = zip(*sorted(arrivals, key=lambda item: item[0]), strict=True)
        results.append(weighted_sum(dense(in_order), factors).tobytes())
    assert len(set(results)) == 1


def test_the_sum_is_what_separate_multiplications_and_additions_give():
    """The portable definition: no fused operation, products added in order."""
    rows, weights = wide_updates(BATCH, 1000, "float32")
    total = np.zeros(1000)
    for row, weight in zip(rows, weights, strict=True):
        total = total + row.astype(np.float64) * weight
    np.testing.assert_array_equal(weighted_sum(dense(rows), weights), total)


def test_bases_are_subtracted_first():
    """2 * (5 - 1) + 3 * 7 - 1 * (2 - 4), where the second is an update already."""
    rows = [np.array([5.0]), np.array([7.0], np.float32), np.array([2.0])]
    bases = [Vector.dense(np.array([1.0], np.float16)), None, Vector.dense(np.array([4.0]))]
    assert weighted_sum(dense(rows), [2, 3, -1], bases).tolist() == [31.0]


def test_a_difference_is_not_rounded_to_the_magnitude_of_the_model():
    """Updates of 1e-12 on a model of 1e3: x minus g per client, not two large sums."""
    model = np.full(50, 1000.0)
    rows = model + np.random.default_rng(4).normal(0, 1e-9, (40, 50))
    base = Vector.dense(model)
    result = weighted_sum(dense(rows), np.full(40, 1 / 40), [base] * 40)
    assert exact_errors(result, rows - model, np.full(40, 1 / 40)).max() <= 14 * UNIT


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sum_and_measure_gives_the_bits_of_both(large, threads):
    vectors, coefficients = large
    base = Vector.dense(np.random.default_rng(5).standard_normal(big, dtype=np.float32))
    bases = [None if i % 5 == 0 else base for i in range(len(vectors))]
    total, measures = sum_and_measure(vectors, coefficients, bases, threads=threads)
    np.testing.assert_array_equal(total, weighted_sum(vectors, coefficients, bases))
    assert measures == [measure(v, b) for v, b in zip(vectors, bases, strict=True)]


def test_sum_and_measure_where_squares_fail():
    rows = [np.array(r) for r in ([1e200, 0.0], [math.nan, 1.0], [3e-200, 4e-200], [0.0, 0.0])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total, measures = sum_and_measure(dense(rows), [1.0, 1.0, 1.0, 1.0])
    assert np.isnan(total[0])
    assert total[1] == 1.0
    assert [m.finite for m in measures] == [True, False, True, True]
    assert [measures[i].norm for i in (0, 2, 3)] == pytest.approx([1e200, 5e-200, 0.0], rel=1e-15)


def test_sum_and_measure_of_nothing():
    total, measures = sum_and_measure([Vector([])], [1.0])
    assert total.shape == (0,)
    assert measures == [Measure(0.0)]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_a_finite_sum_proves_finite_vectors(poison, coefficient):
    for clients in (1, 2, GROUP + 1):
        rows = np.ones((clients, 5))
        rows[-1, 3] = poison
        coefficients = np.full(clients, 0.25)
        coefficients[-1] = coefficient
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            finite = np.isfinite(weighted_sum(dense(rows), coefficients))
        assert finite.tolist() == [True, True, True, False, True]


def test_a_sum_beyond_float64_is_not_finite_and_not_an_error():
    rows = np.full((GROUP + 1, 2), 1e308)
    rows[:, 1] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finite = np.isfinite(weighted_sum(dense(rows), np.ones(GROUP + 1)))
    assert finite.tolist() == [False, True]


def test_the_result_goes_where_the_caller_wants_it():
    out = np.full(4, 9.0)
    result = weighted_sum(dense(np.ones((2, 6))), [1, 2], lo=1, hi=3, out=out[1:3])
    assert np.shares_memory(result, out)
    assert out.tolist() == [9, 3, 3, 9]


@pytest.mark.parametrize(
    ("rows", "coefficients", "options", "words"),
    [
        ([], [], {}, "at least one client"),
        ([np.ones(2)], [1, 2], {}, "1 vectors, 2 coefficients"),
        ([np.ones(2)], [1], {"bases": [None, None]}, "2 bases"),
        ([np.ones(2)], [1], {"bases": [Vector.dense(np.ones(3))]}, "different sizes"),
        ([np.ones(2), np.ones(3)], [1, 2], {}, "different sizes"),
        ([np.ones(2)], [1], {"lo": 1, "hi": 3}, "not within a vector of 2"),
        ([np.ones(2)], [1], {"lo": -1}, "not within"),
        ([np.ones(2)], [1], {"out": np.ones(3)}, "needs shape"),
        ([np.ones(2)], [1], {"out": np.ones(2, np.float32)}, "float64"),
    ],
)
def test_what_does_not_fit_together_is_refused(rows, coefficients, options, words):
    with pytest.raises(ConfigError, match=words):
        weighted_sum(dense(rows), coefficients, **options)


def test_a_running_sum_refuses_another_size():
    with pytest.raises(ConfigError, match="3 cannot be added to 2"):
        CompensatedSum(2).add(Vector.dense(np.ones(3)), 1.0)


def peak_of(clients: int, size: int, threads: int) -> int:
    vectors = dense([np.ones(size, np.float32)] * clients)
    tracemalloc.start()
    weighted_sum(vectors, np.ones(clients), threads=threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_clients():
    size = 4 * blocks.BLOCK
    few, many = peak_of(10, size, 1), peak_of(100, size, 1)
    assert many < few + 100_000
    result, scratch = 8 * size, 13 * 8 * blocks.BLOCK
    assert peak_of(100, size, 2) <= result + 2 * scratch + 200_000


def rounds(model: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Average a model with nine copies of itself, `count` times over."""
    layout = Layout.of(model)
    weights = np.arange(1.0, 11.0)
    weights /= weights.sum()
    for _ in range(count):
        vectors = [Vector.of(model, layout)] * 10
        model = layout.unpack(weighted_sum(vectors, weights), {})
    return model


def test_a_thousand_rounds_of_agreement_leave_a_float32_model_untouched():
    start = {"w": np.random.default_rng(2).standard_normal(200, dtype=np.float32)}
    np.testing.assert_array_equal(rounds(start, 1000)["w"], start["w"])


def test_a_thousand_rounds_move_a_float64_model_by_less_than_the_bound():
    start = {"w": np.random.default_rng(3).standard_normal(200)}
    drift = np.abs(rounds(start, 1000)["w"] / start["w"] - 1)
    assert drift.max() <= 1000 * 14 * UNIT


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32))
def test_linear_in_the_vectors(clients, size, seed):
    """Doubling every vector doubles the sum exactly; so does doubling every coefficient."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((clients, size))
    coefficients = rng.standard_normal(clients)
    single = weighted_sum(dense(rows), coefficients)
    np.testing.assert_array_equal(weighted_sum(dense(2 * rows), coefficients), 2 * single)
    np.testing.assert_array_equal(weighted_sum(dense(rows), 2 * coefficients), 2 * single)
