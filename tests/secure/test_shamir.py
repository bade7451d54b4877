from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure import shamir
from qsfl_flower.secure.field import BLOCK, P, accumulate, is_canonical
from qsfl_flower.secure.fixed_point import FixedPoint, signed
from qsfl_flower.secure.shamir import Shares, Sharing, interpolate, lagrange, share

SCHEMES = st.integers(2, 9).flatmap(lambda m: st.builds(Sharing, st.just(m), st.integers(2, m)))


# The slow reference, in Python integers and for any prime.
def reference_share(secret: int, m: int, t: int, p: int, rng: random.Random) -> list[int]:
    coefficients = [secret, *(rng.randrange(p) for _ in range(t - 1))]
    return [sum(c * pow(x, k, p) for k, c in enumerate(coefficients)) % p for x in range(1, m + 1)]


def reference_open(values: dict[int, int], p: int, at: int = 0) -> int:
    total = 0
    for i, value in values.items():
        factor = Fraction(1)
        for j in values:
            if j != i:
                factor *= Fraction(at - j, i - j)
        total += value * factor.numerator * pow(factor.denominator, -1, p)
    return total % p


@pytest.mark.parametrize("p", [P, 2**127 - 1])
def test_the_reference_opens_what_it_shares(p):
    rng = random.Random(1)
    for m, t in [(2, 2), (5, 3), (7, 4)]:
        secret = rng.randrange(p)
        shares = reference_share(secret, m, t, p, rng)
        for subset in itertools.combinations(range(1, m + 1), t):
            assert reference_open({j: shares[j - 1] for j in subset}, p) == secret


@given(SCHEMES, st.integers(0, 2**32))
def test_shares_lie_on_the_polynomial_that_the_reference_draws_through_them(sharing, seed):
    rng = np.random.default_rng(seed)
    secret = rng.integers(0, P, 3, dtype=np.uint64)
    secret[0] = rng.choice(np.array([0, 1, P - 1], np.uint64))
    shares = share(secret, sharing)
    for c, value in enumerate(secret.tolist()):
        through = {0: value} | {j: int(shares.of(j)[c]) for j in range(1, sharing.threshold)}
        for j in range(1, sharing.members + 1):
            assert int(shares.of(j)[c]) == reference_open(through, P, at=j)


@pytest.mark.parametrize("size", [1, BLOCK, 2 * BLOCK + 17])
def test_every_subset_of_t_opens_the_sum_of_n(size):
    sharing = Sharing()
    rng = np.random.default_rng(size)
    totals = {j: np.zeros(size, np.uint64) for j in range(1, 6)}
    expected = np.zeros(size, np.uint64)
    for _ in range(4):
        secret = rng.integers(0, P, size, dtype=np.uint64)
        secret[: min(size, 2)] = [0, P - 1][: min(size, 2)]
        expected = (expected + secret) % P
        shares = share(secret, sharing)
        totals = {j: (total + shares.of(j)) % P for j, total in totals.items()}
    for subset in itertools.combinations(totals, 3):
        opened = interpolate({j: totals[j] for j in subset})
        assert is_canonical(opened)
        assert np.array_equal(opened, expected)
        # Also any other value of the polynomial: what the consistency checks use.
        assert np.array_equal(interpolate({j: totals[j] for j in subset}, at=4), totals[4])


@pytest.mark.parametrize(
    ("n", "size"),
    [
        (2, 1),
        (3, 1000),
        (200, 17),
        pytest.param(200, 10_000, marks=pytest.mark.slow),
        pytest.param(2, 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_weighted_sums_of_floats_at_the_extremes_of_the_range(n, size):
    """Every subset opens the integer sum exactly; as a mean, it is off by less than 1e-6."""
    rng = np.random.default_rng(n + size)
    fmt = FixedPoint(bits=24, bound=5.0, terms=3 * n)
    totals = {j: np.zeros(size, np.uint64) for j in range(1, 6)}
    exact, floats, weights = np.zeros(size, np.int64), np.zeros(size), rng.integers(1, 4, n)
    for weight in weights.tolist():
        vector = rng.choice([-5.0, 5.0, 0.0, rng.uniform(-5, 5)], size)
        exact += weight * np.rint(vector * 2.0**24).astype(np.int64)
        floats += weight * vector
        shares = share(fmt.encode(vector), Sharing())
        for j, total in totals.items():
            accumulate(total, shares.of(j), weight)
    for subset in itertools.combinations(totals, 3):
        opened = interpolate({j: totals[j] for j in subset})
        assert np.array_equal(signed(opened), exact)
    mean = fmt.decode(opened) / weights.sum()
    assert np.abs(mean - floats / weights.sum()).max() < 1e-6


def test_given_seeds_fix_the_shares_and_the_output_may_be_reused():
    secret = np.arange(10, dtype=np.uint64)
    seeds = [bytes([k]) * 32 for k in range(2)]
    out = np.empty((3, 10), np.uint64)
    first = share(secret, Sharing(), seeds, out)
    assert first.vectors is out
    second = share(secret, Sharing(), seeds)
    assert np.array_equal(first.vectors, second.vectors)
    assert not np.array_equal(share(secret, Sharing()).vectors, second.vectors)


def test_shares_do_not_print():
    shares = Shares((b"k" * 32,), np.ones((2, 3), np.uint64))
    assert "k" * 8 not in repr(shares)
    assert "array" not in repr(shares)


def test_lagrange_of_the_usual_points_and_its_errors():
    assert lagrange([1, 2, 3]) == [3, P - 3, 1]
    assert sum(lagrange([2, 5, 9, 11], at=7)) % P == 1
    with pytest.raises(ConfigError, match="distinct"):
        lagrange([1, 2, P + 1])


@pytest.mark.parametrize(("members", "threshold"), [(1, 1), (17, 3), (5, 1), (5, 6)])
def test_impossible_committees(members, threshold):
    with pytest.raises(ConfigError):
        Sharing(members, threshold)


SAMPLES, BUCKETS = 200_000, 64
"""Chi-square for two samples over 64 buckets. A share whose law differs between the two secrets by
a total variation of 2 % or more has a non-centrality of at least SAMPLES / 2 * (2 * 0.02)^2 = 160,
so that at the threshold for a false alarm of 1e-6 per test it is seen with probability > 0.99."""


def two_sample_statistic(a, b) -> float:
    counts = [np.bincount((v >> np.uint64(55)).astype(int), minlength=BUCKETS) for v in (a, b)]
    first, second = (c.astype(float) for c in counts)
    return float((((first - second) ** 2) / np.maximum(first + second, 1)).sum())


@pytest.mark.parametrize("members", [(1, 2), (1, 5), (4, 5)])
def test_two_shares_of_five_tell_nothing_about_the_secret(members):
    """Every linear functional that colluders may think of is tested by its own chi-square."""
    small = np.zeros(SAMPLES, np.uint64)
    large = np.full(SAMPLES, P // 5, np.uint64)
    views = []
    for secret in (small, large):
        shares = share(secret, Sharing())
        a, b = (shares.of(j) for j in members)
        # The line through both shares at 0: what would open the secret if it were of degree 1.
        views.append((a, b, interpolate(dict(zip(members, (a, b), strict=True)))))
    limit = chi2.isf(1e-6, BUCKETS - 1)
    for a, b in zip(*views, strict=True):
        assert two_sample_statistic(a, b) < limit


def views_of_members_4_and_5(sharing: Sharing):
    for value in (0, P // 5):
        shares = share(np.full(SAMPLES, value, np.uint64), sharing)
        a, b = (shares.of(j) for j in (4, 5))
        yield a, interpolate({4: a, 5: b})


def test_the_indistinguishability_test_can_fail(monkeypatch):
    """Mutants: a polynomial of a degree too low, and coefficients of too few bits."""
    limit = chi2.isf(1e-6, BUCKETS - 1)
    first, second = views_of_members_4_and_5(Sharing(5, 2))
    assert two_sample_statistic(first[1], second[1]) > limit

    def short(seed, out, stream=0):
        expand(seed, out, stream)
        out >>= np.uint64(6)

    expand = shamir.expand
    monkeypatch.setattr(shamir, "expand", short)
    first, second = views_of_members_4_and_5(Sharing(5, 3))
    assert two_sample_statistic(first[0], second[0]) > limit
