from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from distributions import discrete_gaussian_pmf, fits_normal, fits_pmf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy import discrete
from qsfl_flower.privacy.calibration import noise_multiplier_for
from qsfl_flower.privacy.discrete import discrete_gaussian
from qsfl_flower.privacy.gaussian import (
    add_noise,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    grid_slack,
)
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy


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


SCALES = [Fraction(1, 3), Fraction(1, 2), 1, Fraction(7, 2), 20, 150]


def bins(scale, reach):
    """Probabilities of a continuous Gaussian between whole numbers."""
    x = np.arange(-reach, reach + 1)
    # Differences of tails: right in both.
    tails = stats.norm.sf(np.abs(x[:, None] + np.array([0, 1])) / scale)
    return x, np.where(x == np.clip(x, -1, 0), 0.5 - tails.min(axis=1), np.ptp(tails, axis=1))


@pytest.mark.parametrize("scale", [64, 192])
def test_discrete_gaussian_has_its_distribution(scale):
    samples = discrete_gaussian(scale, 400_000, Keystream.seeded(str(scale)))
    assert fits_pmf(samples, *discrete_gaussian_pmf(float(scale), 12 * scale))


@pytest.mark.parametrize(("scale", "drop"), [(1 << 64, 58), (192 << 50, 50), (1 << 40, 34)])
def test_dropped_bits_leave_a_rounded_gaussian(scale, drop):
    samples = discrete_gaussian(scale, 400_000, Keystream.seeded(str(scale)), drop)
    # 2^34 and more fine values to a whole one: the difference to the continuous one is nothing.
    assert fits_pmf(samples, *bins(scale / 2**drop, 12 * (scale >> drop)))


def test_the_weights_of_the_blocks_are_right_to_seventy_digits():
    with localcontext(prec=90):
        weights = [(-Decimal(b * b) / 8192).exp() for b in range(discrete._LAST)]
        whole, part = sum(weights), Decimal(0)
        for weight, end in zip(weights, discrete._table().ends, strict=False):
            part += weight
            assert abs(Decimal(end) / Decimal(1 << 256) - part / whole) < Decimal("1e-70")
    # What comes after the last block.
    assert math.log2(2 * stats.norm.sf(19)) < -260


class Scripted(Keystream):
    """Gives out what it is told, and nothing else."""

    def __init__(self, words):
        self.left = list(words)

    def words(self, count):
        given, self.left = self.left[:count], self.left[count:]
        assert len(given) == count
        return np.array(given, dtype=np.uint64)


@pytest.mark.parametrize("block", [0, 1, 40, 63, 300])
@pytest.mark.parametrize("beyond", [-1, 0])
def test_a_block_is_chosen_by_all_bits_of_its_border(block, beyond):
    exact = discrete._table().ends[block] + beyond
    pieces = [exact >> shift & (2**64 - 1) for shift in (192, 128, 64, 0)]
    first, second = pieces[0] & ~(2**48 - 1), pieces[0] << 16 & (2**64 - 1)
    source = Scripted([second, *pieces[1:]])
    (found,) = discrete._blocks(np.array([first], dtype=np.uint64), source)
    assert found == block + 1 + beyond
    assert source.left == []


def test_a_value_takes_few_random_words():
    """Time goes by words and passes over them; the old sampler took 30."""
    drawn = []

    class Counted(Keystream):
        def words(self, count):
            drawn.append(count)
            return super().words(count)

    discrete_gaussian(1 << 64, 100_000, Counted(bytes(32)), 32)
    assert sum(drawn) < 250_000


@pytest.mark.parametrize("scale", [1 << 20, 1 << 26, 12_345_664])
def test_large_scales_are_normal(scale):
    assert fits_normal(discrete_gaussian(scale, 200_000, Keystream.seeded(scale)), scale)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda x: np.rint(0.9 * x), id="a tenth less noise"),
        pytest.param(lambda x: x[np.abs(x) <= 192], id="tails cut off"),
        pytest.param(lambda x: np.abs(x), id="one sign"),
        pytest.param(lambda x: x + (x >= 0), id="no zero"),
        pytest.param(lambda x: np.where(x == -1, 0, x), id="zero twice"),
    ],
)
def test_a_wrong_discrete_gaussian_is_noticed(mutant):
    samples = mutant(discrete_gaussian(64, 400_000, Keystream.seeded("mutant")))
    assert not fits_pmf(samples, *discrete_gaussian_pmf(64.0, 800))


def test_a_sampler_that_keeps_everything_is_noticed(monkeypatch):
    monkeypatch.setattr(discrete, "_kept", lambda first, *_: np.ones(first.size, dtype=bool))
    samples = discrete_gaussian(64, 4_000_000, Keystream.seeded("keeps"))
    assert not fits_pmf(samples, *discrete_gaussian_pmf(64.0, 800))


def test_scales_beyond_the_integers_are_refused():
    for scale, drop in ((0, 0), (-64, 0), (65, 0), (64, 1), (1 << 65, 32), (1 << 64, 0), (64, -1)):
        with pytest.raises(ConfigError, match="grid"):
            discrete_gaussian(scale, 1, Keystream.seeded(0), drop)


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
        grid = std / 2**32
        grids.add(grid)
        assert np.array_equal(noisy, np.rint(noisy / grid) * grid)
    assert len(grids) == 1


@pytest.mark.parametrize("size", [10**3, 10**6, 10**8])
@pytest.mark.parametrize("epsilon", [1.0, 8.0, 20.0])
def test_larger_models_do_not_get_more_noise(size, epsilon):
    """The grid takes less than a percent, whatever the size."""
    plan = {"clip_norm": 1.0, "sampling_rate": 0.05, "steps": 20}
    found = RecordPrivacy.within(epsilon, 1e-5, 20, size=size, **plan).noise_multiplier
    none = noise_multiplier_for(epsilon, 1e-5, 400, 0.05)
    # The search is right to 1 in 100,000.
    assert (1 - 1e-5) * none <= found <= 1.001 * none
    # Sensitivity 1 + what rounding moves, in steps of which 2^32 are the noise.
    assert found * (math.sqrt(size) + 256) / 2**32 < 0.009


def test_noise_that_rounding_would_outgrow_is_refused():
    with pytest.raises(ConfigError, match="finer grid"):
        add_noise(np.zeros(10_000), 1.0, 2e7, Keystream.seeded(0))


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


@pytest.mark.parametrize("scale", [16, 40, 200])
def test_the_distance_to_the_continuous_gaussian_is_below_its_bound(scale):
    x, pmf = discrete_gaussian_pmf(scale, 12 * scale)
    rounded = stats.norm.cdf((x + 0.5) / scale) - stats.norm.cdf((x - 0.5) / scale)
    centre = np.abs(x) < 6 * scale  # beyond, differences of float64 are no ratio any more
    difference = np.log(pmf[centre] / rounded[centre])
    # E_P[log P/Q] cancels nearly to nothing: E_P[log P/Q + Q/P - 1] is the same and positive.
    divergence = (pmf[centre] * (difference + np.expm1(-difference))).sum()
    assert math.sqrt(divergence / 2) <= grid_slack(1, scale)
    assert math.sqrt(100 * divergence / 2) <= grid_slack(100, scale)
    assert np.abs(pmf - rounded).sum() / 2 <= grid_slack(1, scale)
