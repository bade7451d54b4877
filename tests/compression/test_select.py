from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.compression.core import above, keep_count, random_k, top_k


def reference(values, count):
    """The definition, word by word."""
    return sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count])


@given(arrays(np.float64, st.integers(0, 60), elements=st.floats(-1e300, 1e300)), st.data())
def test_is_the_canonical_order(values, data):
    count = data.draw(st.integers(0, values.size))
    assert top_k(values, count).tolist() == reference(values.tolist(), count)


@given(arrays(np.float32, st.integers(0, 60), elements=st.sampled_from([-2, -1, 0, 1, 2])))
def test_ties_go_to_the_lower_index(values):
    for count in range(values.size + 1):
        assert top_k(values, count).tolist() == reference(values.tolist(), count)


def test_ten_equal_values():
    """`torch.topk` gives 8, 6, 7 here (SOURCES W-41)."""
    assert top_k(np.ones(10, np.float32), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", ["normal", "heavy", "equal", "late", "periodic"])
def test_large_vectors_whatever_the_sample_sees(shape):
    rng = np.random.default_rng(1)
    values = {
        "normal": lambda: rng.standard_normal(200_000),
        "heavy": lambda: rng.standard_cauchy(200_000),
        "equal": lambda: np.ones(200_000),
        "late": lambda: np.r_[np.zeros(199_000), np.ones(1000)],
        "periodic": lambda: np.where(np.arange(200_000) % 61 == 0, 9.0, rng.random(200_000)),
    }[shape]()
    for count in (1, 2000, 50_000, 199_999):
        order = np.lexsort((np.arange(values.size), -np.abs(values)))[:count]
        np.testing.assert_array_equal(top_k(values, count), np.sort(order))


def test_differences_below_float32_still_decide():
    values = np.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 1e39, 2e39, 1e-60, 2e-60])
    assert top_k(values, 1).tolist() == [4]
    assert top_k(values, 3).tolist() == [1, 3, 4]
    assert top_k(values, 6).tolist() == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_values_that_are_not_finite_are_refused(bad, count):
    values = np.linspace(-1, 1, 100)
    values[17] = bad
    with pytest.raises(ConfigError, match="NaN or infinite"):
        top_k(values, count)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        above(values, 0.5)


def test_threshold_includes_its_bound():
    assert above(np.array([0.5, -0.5, 0.49, 3.0]), 0.5).tolist() == [0, 1, 3]


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_beyond_the_vector_is_refused(count):
    with pytest.raises(ConfigError, match="cannot be kept"):
        top_k(np.ones(3), count)
    with pytest.raises(ConfigError, match="cannot be kept"):
        random_k(3, count, 0)


def test_the_ratio_of_ten_million():
    assert keep_count(10_000_000, 0.01) == 100_000
    assert [keep_count(1000, ratio) for ratio in (0.29, 0.57, 0.001, 1e-9, 1.0)] == [
        290,
        570,
        1,
        1,
        1000,
    ]


@given(st.integers(0, 400), st.integers(0, 2**64 - 1), st.data())
def test_random_sets_have_the_size_and_no_repetition(size, seed, data):
    count = data.draw(st.integers(0, size))
    chosen = random_k(size, count, seed)
    assert chosen.size == count
    assert np.all(np.diff(chosen) > 0)
    assert count == 0 or (chosen[0] >= 0 and chosen[-1] < size)
    np.testing.assert_array_equal(chosen, random_k(size, count, seed))


def test_a_seed_means_the_same_set_for_ever():
    """The receiver has only the seed, so this is part of the wire format."""
    assert random_k(1000, 8, 2024).tolist() == [344, 457, 515, 653, 750, 753, 828, 830]
    assert random_k(10, 8, 7).tolist() == [i for i in range(10) if i not in random_k(10, 2, 7)]


def test_every_coordinate_is_equally_likely():
    """Chi-square over 50 coordinates; a sound sampler fails with probability 1e-6.

    Counts of a set without repetition vary less than multinomial ones, by (1 - k/d).
    """
    size, count, draws = 50, 12, 4000
    seen = np.zeros(size)
    for seed in range(draws):
        seen[random_k(size, count, seed)] += 1
    expected = draws * count / size
    statistic = ((seen - expected) ** 2 / expected).sum() / (1 - count / size) * (size - 1) / size
    assert chi2.ppf(1e-6, size - 1) < statistic < chi2.isf(1e-6, size - 1)
