"""Intervals that hold what the noise hides, at a stated rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Estimate:
    """A number, and where the one without noise is.

    Parameters
    ----------
    value : float
        The estimate.
    low, high : float
        The interval; it holds the true number of the clients' rows with the stated probability.
    """

    value: float
    low: float
    high: float

    def scaled(self, factor: float, shift: float = 0.0) -> Estimate:
        """Return ``factor * x + shift``, for a factor > 0."""
        return Estimate(*(factor * x + shift for x in (self.value, self.low, self.high)))

    def within(self, low: float, high: float) -> Estimate:
        """Return the estimate cut to what is possible."""
        return Estimate(*(min(max(x, low), high) for x in (self.value, self.low, self.high)))

    def times(self, other: Estimate) -> Estimate:
        """Return the product, by the arithmetic of intervals."""
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Estimate(self.value * other.value, min(ends), max(ends))

    def squared(self) -> Estimate:
        """Return the square."""
        ends = [self.low**2, self.high**2]
        least = 0.0 if self.low <= 0 <= self.high else min(ends)
        return Estimate(self.value**2, least, max(ends))

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference, by the arithmetic of intervals."""
        return Estimate(self.value - other.value, self.low - other.high, self.high - other.low)

    def root(self) -> Estimate:
        """Return the square root of what is not negative."""
        return Estimate(*(math.sqrt(max(x, 0.0)) for x in (self.value, self.low, self.high)))


def deviations(level: float, numbers: int = 1) -> float:
    """Return how many standard deviations hold so many numbers at once with this probability.

    By the union bound, whatever their noise has in common.
    """
    return NormalDist().inv_cdf(1 - (1 - level) / (2 * numbers))


def around(value: float, std: float, level: float, numbers: int = 1) -> Estimate:
    """Return a number that was measured with Gaussian noise."""
    reach = deviations(level, numbers) * std
    return Estimate(value, value - reach, value + reach)


def ratio(
    top: float,
    top_std: float,
    bottom: float,
    bottom_std: float,
    level: float,
    low: float,
    high: float,
) -> Estimate:
    r"""Return a ratio in [low, high] of two numbers with independent Gaussian noise.

    The interval holds all m with :math:`(T - m B)^2 \le q^2 (\sigma_T^2 + m^2 \sigma_B^2)`, which
    is exact for the true ratio m.

    References
    ----------
    E. C. Fieller, "Some problems in interval estimation", 1954.
    doi:10.1111/j.2517-6161.1954.tb00159.x.
    """
    q = deviations(level)
    value = min(max(top / bottom, low), high) if bottom > 0 else (low + high) / 2
    square = bottom**2 - (q * bottom_std) ** 2
    rest = (top * bottom) ** 2 - square * (top**2 - (q * top_std) ** 2)
    if bottom <= 0 or square <= 0 or rest < 0:  # nothing is known of the number of rows
        return Estimate(value, low, high)
    reach = math.sqrt(rest)
    ends = ((top * bottom - reach) / square, (top * bottom + reach) / square)
    found = Estimate(value, *ends).within(low, high)
    return Estimate(value, min(found.low, value), max(found.high, value))
