from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from distributions import discrete_gaussian_pmf, discrete_laplace_pmf, fits_normal, fits_pmf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.discrete import LARGEST, discrete_gaussian, discrete_laplace
from qsfl_flower.privacy.gaussian import (
    add_noise,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    grid_slack,
)
from qsfl_flower.privacy.mechanisms import add_laplace_noise, exponential_choice
from qsfl_flower.privacy.randomness import Keystream


def test_a_seeded_stream_repeats_and_a_secure_one_does_not():
    assert np.array_equal(Keystream.seeded(1, "a").words(9), Keystream.seeded(1, "a").words(9))
    assert not np.array_equal(Keystream.seeded(1).words(9), Keystream.seeded(2).words(9))
    assert not np.array_equal(Keystream.secure().words(9), Keystream.secure().words(9))
    assert repr(Keystream.seeded(1)) == "Keystream(...)"


def test_words_come_out_of_one_stream_whatever_the_pieces():
    whole = Keystream.seeded(3).words(400_000)
    source = Keystream.seeded(3)
    assert np.array_equal(np.concatenate([source.words(7), source.words(399_993)]), whole)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 1000])
def test_integers_below_a_bound_are_uniform(bound):
    values = Keystream.seeded(bound).below(bound, 50_000)
    assert fits_pmf(values, np.arange(bound), np.full(bound, 1 / bound))


def test_bounds_that_are_not_served_are_refused():
    for bound in (0, -1, (1 << 62) + 1):
        with pytest.raises(ConfigError):
            Keystream.seeded(0).below(bound, 1)


def test_normal_values_are_normal():
    assert fits_normal(Keystream.seeded("normals").normals(200_000), 1.0)


SCALES = [Fraction(1, 3), Fraction(1, 2), 1, Fraction(7, 2), 20, 150]


@pytest.mark.parametrize("scale", SCALES)
def test_discrete_gaussian_has_its_distribution(scale):
    samples = discrete_gaussian(scale, 200_000, Keystream.seeded(str(scale)))
    assert fits_pmf(samples, *discrete_gaussian_pmf(float(scale), math.ceil(12 * scale) + 3))


@pytest.mark.parametrize("scale", SCALES)
def test_discrete_laplace_has_its_distribution(scale):
    samples = discrete_laplace(scale, 200_000, Keystream.seeded(str(scale)))
    assert fits_pmf(samples, *discrete_laplace_pmf(float(scale), math.ceil(40 * scale) + 3))


@pytest.mark.parametrize("scale", [1 << 20, LARGEST, 12_345_677])
def test_large_scales_are_normal(scale):
    assert fits_normal(discrete_gaussian(scale, 200_000, Keystream.seeded(scale)), scale)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda x: np.rint(0.9 * x), id="a tenth less noise"),
        pytest.param(lambda x: x[np.abs(x) <= 60], id="tails cut off"),
        pytest.param(lambda x: np.abs(x), id="one sign"),
        pytest.param(lambda x: x + (x >= 0), id="no zero"),
    ],
)
def test_a_wrong_discrete_gaussian_is_noticed(mutant):
    samples = mutant(discrete_gaussian(20, 200_000, Keystream.seeded("mutant")))
    assert not fits_pmf(samples, *discrete_gaussian_pmf(20.0, 250))


def test_scales_beyond_the_integers_are_refused():
    for scale in (0, -1, LARGEST + 1, Fraction(1, LARGEST + 1)):
        with pytest.raises(ConfigError, match="grid"):
            discrete_gaussian(scale, 1, Keystream.seeded(0))


def test_one_release_needs_the_analytic_noise():
    assert gaussian_noise_multiplier(1.0, 1e-5) == pytest.approx(3.7306, abs=1e-4)
    # Beyond epsilon = 1 the classic formula gives too little noise.
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 50
    assert gaussian_delta(50.0, 1 / classic) > 1e-5


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 30), st.floats(-12, -2))
def test_calibration_inverts_accounting(epsilon, exponent):
    delta = 10**exponent
    multiplier = gaussian_noise_multiplier(epsilon, delta)
    assert gaussian_delta(epsilon, 1 / multiplier) <= delta
    assert gaussian_epsilon(1 / multiplier, delta) == pytest.approx(epsilon, rel=1e-6)


def test_released_noise_is_normal_with_the_stated_size():
    values = np.linspace(-5, 5, 100_000)
    noisy, std = add_noise(values, 0.5, 3.0, Keystream.seeded("release"))
    assert std == pytest.approx(1.5, rel=1e-3)
    assert std >= 1.5
    assert fits_normal(noisy - values, std)


@pytest.mark.parametrize("mutant", [lambda x: 0.9 * x, lambda x: np.clip(x, -4.4, 4.4)])
def test_wrong_released_noise_is_noticed(mutant):
    noisy, std = add_noise(np.zeros(100_000), 0.5, 3.0, Keystream.seeded("release"))
    assert not fits_normal(mutant(noisy), std)


def test_released_values_lie_on_one_grid_whatever_went_in():
    source = Keystream.seeded("grid")
    grids = set()
    for values in (np.zeros(50), np.full(50, math.pi), np.linspace(0, 1, 50)):
        noisy, std = add_noise(values, 1.0, 1.0, source)
        grid = 2.0 ** (math.floor(math.log2(std)) - 25)
        grids.add(grid)
        assert np.array_equal(noisy, np.rint(noisy / grid) * grid)
    assert len(grids) == 1


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-12, 1e12), st.floats(0.01, 1000), st.integers(1, 3000))
def test_noise_covers_what_rounding_adds(sensitivity, multiplier, size):
    _, std = add_noise(np.zeros(size), sensitivity, multiplier, Keystream.seeded(0))
    assert sensitivity * multiplier <= std <= sensitivity * multiplier * 1.01


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [1e300]])
def test_values_that_noise_cannot_protect_are_refused(values):
    with pytest.raises(ConfigError, match="not finite"):
        add_noise(np.array(values), 1.0, 1.0, Keystream.seeded(0))


@pytest.mark.parametrize(("sensitivity", "multiplier"), [(0, 1), (1, 0), (math.inf, 1), (1, -1)])
def test_no_noise_is_an_error(sensitivity, multiplier):
    with pytest.raises(ConfigError, match="positive"):
        add_noise(np.zeros(3), sensitivity, multiplier, Keystream.seeded(0))


@pytest.mark.parametrize("scale", [4, 10, 40])
def test_the_distance_to_the_continuous_gaussian_is_below_its_bound(scale):
    x, pmf = discrete_gaussian_pmf(scale, 20 * scale)
    rounded = stats.norm.cdf((x + 0.5) / scale) - stats.norm.cdf((x - 0.5) / scale)
    assert np.abs(pmf - rounded).sum() / 2 <= grid_slack(1, scale)


def test_laplace_noise_has_its_scale_in_every_coordinate():
    noise = add_laplace_noise(np.zeros(100_000), 2.0, 0.5, Keystream.seeded("laplace"))
    assert stats.kstest(noise / 4.0, "laplace").pvalue > 1e-6
    assert np.unique(noise).size > 99_000


def test_the_exponential_mechanism_has_its_probabilities():
    scores = np.array([0.0, 1.0, 3.0, -1000.0])
    source = Keystream.seeded("choice")
    chosen = np.array([exponential_choice(scores, 0.5, 1.0, source) for _ in range(20_000)])
    weights = np.exp(scores)
    assert fits_pmf(chosen, np.arange(4), weights / weights.sum())


def test_choices_without_a_meaning_are_refused():
    for scores in ([], [math.nan]):
        with pytest.raises(ConfigError):
            exponential_choice(np.array(scores), 1.0, 1.0, Keystream.seeded(0))
    with pytest.raises(ConfigError):
        add_laplace_noise(np.zeros(1), 1.0, 0.0, Keystream.seeded(0))
