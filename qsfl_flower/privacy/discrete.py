"""Exact samples of the discrete Gaussian and the discrete Laplace distribution.

Only integer arithmetic and exactly uniform integers are used, so no rounding of a floating-point
number can show through (Mironov 2012), and the accountant's formulas hold for what is sampled.

References
----------
C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020.
I. Mironov, "On significance of the least significant bits for differential privacy", 2012.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.randomness import Keystream

Integers = NDArray[np.int64]

LARGEST = 1 << 26
"""Largest numerator of a scale: products of two such numbers and a small factor fit 62 bits."""

_PIECE = 1 << 16
"""Values sampled at a time, so that they stay in the cache."""

_FAR = 1 << 31
"""Distances are cut here; a value so far out survives with probability below e^-450."""


def discrete_gaussian(scale: Fraction | int, count: int, source: Keystream) -> Integers:
    r"""Return independent integers x with probability proportional to :math:`e^{-x^2/2\sigma^2}`.

    Rejection from the discrete Laplace distribution of the same scale (CKS 2020, algorithm 3):
    x is kept with probability :math:`\exp(-(|x| - \sigma)^2 / 2\sigma^2)`, about 0.76 in the mean.

    Parameters
    ----------
    scale : Fraction or int
        Parameter sigma, > 0, with numerator and denominator up to 2^26. The variance is below
        sigma^2, and equal to it up to 1e-30 from sigma = 2 on.
    count : int
        How many, >= 0.
    source : Keystream
        Where the randomness comes from.

    Returns
    -------
    ndarray of int64, shape (count,)
    """
    top, bottom = _ratio(scale)
    out = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        draws = discrete_laplace(scale, int(min(count - done, _PIECE) * 1.35) + 16, source)
        distance = np.minimum(np.abs(np.abs(draws) * bottom - top), _FAR)
        kept = draws[_bernoulli_exp(distance * distance, 2 * top * top, source)][: count - done]
        out[done : done + kept.size] = kept
        done += kept.size
    return out


def discrete_laplace(scale: Fraction | int, count: int, source: Keystream) -> Integers:
    r"""Return independent integers x with probability proportional to :math:`e^{-|x|/s}`.

    Parameters
    ----------
    scale : Fraction or int
        Parameter s, > 0, with numerator and denominator up to 2^26.
    count : int
        How many, >= 0.
    source : Keystream
        Where the randomness comes from.

    Returns
    -------
    ndarray of int64, shape (count,)
    """
    top, bottom = _ratio(scale)
    out = np.empty(count, dtype=np.int64)
    done = 0
    # Share of draws that survive both rejections: a lower estimate only costs time.
    rate = 0.6 if top > bottom else 0.3
    while done < count:
        fine = source.below(top, int((count - done) / rate) + 16)
        fine = fine[_bernoulli_exp(fine, top, source)]
        size = (fine + top * _geometric(fine.size, source)) // bottom
        negative = source.below(2, size.size) == 1
        kept = np.where(negative, -size, size)[~(negative & (size == 0))][: count - done]
        out[done : done + kept.size] = kept
        done += kept.size
    return out


def _ratio(scale: Fraction | int) -> tuple[int, int]:
    ratio = Fraction(scale)
    if not (ratio > 0 and max(ratio.numerator, ratio.denominator) <= LARGEST):
        raise ConfigError(
            f"scale {scale} must be a positive ratio of integers up to {LARGEST}; choose a finer "
            "or coarser grid"
        )
    return ratio.numerator, ratio.denominator


def _geometric(count: int, source: Keystream) -> Integers:
    """Return how often in a row an event of probability 1/e happens, for each of `count`."""
    successes = np.zeros(count, dtype=np.int64)
    alive = np.arange(count)
    while alive.size:
        alive = alive[_bernoulli_exp(np.ones(alive.size, dtype=np.int64), 1, source)]
        successes[alive] += 1
    return successes


def _bernoulli_exp(numerators: Integers, denominator: int, source: Keystream) -> NDArray[np.bool_]:
    """Return true with probability exactly exp(-numerator / denominator), for each numerator."""
    whole, rest = np.divmod(numerators, denominator)
    result = np.zeros(numerators.size, dtype=bool)
    active = np.arange(numerators.size)
    while (steps := active[whole[active] > 0]).size:
        # exp(-w) = exp(-1)^w: all of a value's unit steps must succeed, the first failure ends it.
        passed = _bernoulli_below_one(np.ones(steps.size, dtype=np.int64), 1, source)
        failed = np.zeros(numerators.size, dtype=bool)
        failed[steps[~passed]] = True
        whole[steps] -= 1
        active = active[~failed[active]]
    result[active] = _bernoulli_below_one(rest[active], denominator, source)
    return result


def _bernoulli_below_one(
    numerators: Integers, denominator: int, source: Keystream
) -> NDArray[np.bool_]:
    """As `_bernoulli_exp` for ratios of at most 1 (CKS 2020, algorithm 1).

    The first k for which an event of probability ratio / k fails is odd with probability
    exp(-ratio).
    """
    odd = np.empty(numerators.size, dtype=bool)
    active = np.arange(numerators.size)
    k = 1
    while active.size:
        happens = source.below(denominator * k, active.size) < numerators[active]
        odd[active[~happens]] = k % 2 == 1
        active = active[happens]
        k += 1
    return odd
