r"""The Gaussian mechanism: exact calibration, and a release without floating-point holes.

A Gaussian release whose noise has standard deviation `noise_multiplier` times the L2 sensitivity
is called mu-Gaussian with :math:`\mu` = 1 / `noise_multiplier`. Independent releases add up:
together they are Gaussian with :math:`\mu^2 = \sum_i \mu_i^2`, exactly.

References
----------
B. Balle, Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy: analytical
calibration and optimal denoising", 2018. arXiv:1805.06530.
I. Mironov, "On significance of the least significant bits for differential privacy", 2012.
doi:10.1145/2382196.2382264.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.discrete import discrete_gaussian
from qsfl_flower.privacy.randomness import Keystream

STEPS = 1 << 32
"""Standard deviation of released noise, in steps of the grid it lies on."""

FINE_STEPS = 1 << 64
"""The same in steps of the finer grid on which the noise is drawn, before its last bits go."""

_FAR = 2.0**60
"""Longest vector that is released, in steps: quotients in float64 are then right to 2^7 steps."""


def gaussian_delta(epsilon: float, mu: float) -> float:
    r"""Return the smallest delta of a mu-Gaussian release at epsilon >= 0.

    .. math:: \Phi(\mu/2 - \epsilon/\mu) - e^\epsilon \Phi(-\mu/2 - \epsilon/\mu)
    """
    if mu == 0:
        return 0.0
    from scipy.special import log_ndtr, ndtr  # slow to load, and adding noise needs none of it

    lost = math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - lost)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of a mu-Gaussian release at 0 < delta < 1."""
    from scipy.optimize import brentq  # slow to load: 0.3 s and 25 MB

    check_delta(delta)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # delta(eps) <= Phi(mu/2 - eps/mu), which is below delta / 2 at this end.
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(2 / delta))
    root = brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, high, xtol=1e-12, rtol=1e-12)
    return float(root) * (1 + 1e-9)


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the least noise multiplier of one release with (epsilon, delta)-DP.

    The classic sqrt(2 ln(1.25 / delta)) / epsilon needs a third more noise at epsilon = 1 and is
    wrong above it.

    Examples
    --------
    >>> round(gaussian_noise_multiplier(1.0, 1e-5), 4)
    3.7306
    """
    from scipy.optimize import brentq

    check_delta(delta)
    if not epsilon > 0:
        raise ConfigError(f"epsilon must be greater than 0, found {epsilon!r}")
    low, high = 1e-6, 1.0
    while gaussian_delta(epsilon, 1 / high) > delta:
        high *= 2
    root = brentq(lambda z: gaussian_delta(epsilon, 1 / z) - delta, low, high, xtol=1e-13)
    return float(root) * (1 + 1e-9)


def add_noise(
    values: NDArray[np.float64], sensitivity: float, noise_multiplier: float, source: Keystream
) -> tuple[NDArray[np.float64], float]:
    r"""Release a vector with Gaussian noise on a grid.

    The values are rounded to multiples of g = std / 2^32, and a whole number of steps is added to
    each: a discrete Gaussian of standard deviation 2^64, divided by 2^32 and rounded down. Since
    rounded values are whole steps, the sum is what one gets by adding the discrete Gaussian on the
    grid g / 2^32 and rounding then: a function of a release whose distance to the continuous
    Gaussian mechanism is `grid_slack`. What comes out is a function of whole numbers whatever
    came in, so its last bits carry no information about the values (as the sum of two floats
    would). Two vectors that differ by `sensitivity` differ by at most
    :math:`\sqrt{d} + 2^8` steps more after rounding, and the noise covers that.

    Parameters
    ----------
    values : ndarray of float64, shape (d,)
        What is released, finite, no longer than 2^28 standard deviations of the noise.
    sensitivity : float
        Largest L2 change of `values` when the protected unit comes or goes, > 0.
    noise_multiplier : float
        Standard deviation of the noise over the sensitivity, > 0.
    source : Keystream
        Randomness of the noise.

    Returns
    -------
    noisy : ndarray of float64, shape (d,)
    std : float
        Standard deviation of the noise that was added to each coordinate.

    Raises
    ------
    ConfigError
        If a number is not positive and finite.
    """
    if not (0 < sensitivity < math.inf and 0 < noise_multiplier < math.inf):
        raise ConfigError(
            "Gaussian noise needs a sensitivity and a noise multiplier that are positive and "
            f"finite, found {sensitivity!r} and {noise_multiplier!r}"
        )
    # 2^32 steps = noise_multiplier * (sensitivity / grid + moved)
    moved = math.sqrt(values.size) + 2.0**8
    if noise_multiplier * moved > STEPS / 2:
        raise ConfigError(
            f"a noise multiplier of {noise_multiplier:.3g} on {values.size} values needs a finer "
            f"grid than there is; at most {STEPS / 2 / moved:.3g} is possible"
        )
    grid = (1 + 1e-12) * noise_multiplier * sensitivity / (STEPS - noise_multiplier * moved)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = values / grid
        far = not np.dot(steps, steps) < _FAR * _FAR
    if far:
        raise ConfigError(
            f"a value is not finite, or the values are longer than {_FAR / STEPS:.0f} standard "
            "deviations of the noise; check the clipping"
        )
    whole = np.rint(steps).astype(np.int64)
    whole += discrete_gaussian(FINE_STEPS, values.size, source, drop=32)
    noisy = whole.astype(np.float64)
    noisy *= grid
    return noisy, STEPS * grid


def grid_slack(size: int, steps: float = FINE_STEPS) -> float:
    r"""Return how far `size` discrete Gaussian values are from continuous ones, as a `slack`.

    The square root of half of the Kullback-Leibler divergence between them and continuous
    Gaussian values that are rounded to the same grid, at most
    :math:`\sqrt{\text{size}} / (17\,\text{steps}^2)` for standard deviations of at least 16 steps
    (docs/privacy-proof.md, lemma 0). By Pinsker's inequality it bounds the total variation
    distance, and divergences of many releases add up.
    """
    return math.sqrt(size) / (17.0 * steps * steps)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1)."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be between 0 and 1, both excluded, found {delta!r}")
