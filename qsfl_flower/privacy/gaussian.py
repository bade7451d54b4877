r"""The Gaussian mechanism: exact calibration, and a release without floating-point holes.

A Gaussian release whose noise has standard deviation `noise_multiplier` times the L2 sensitivity
is called mu-Gaussian with :math:`\mu` = 1 / `noise_multiplier`. Independent releases add up:
together they are Gaussian with :math:`\mu^2 = \sum_i \mu_i^2`, exactly.

References
----------
B. Balle, Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy: analytical
calibration and optimal denoising", 2018.
I. Mironov, "On significance of the least significant bits for differential privacy", 2012.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.discrete import discrete_gaussian
from qsfl_flower.privacy.randomness import Keystream

GRID_STEPS = 1 << 25
"""Least standard deviation of released noise, in steps of the grid it lies on."""


def gaussian_delta(epsilon: float, mu: float) -> float:
    r"""Return the smallest delta of a mu-Gaussian release at epsilon >= 0.

    .. math:: \Phi(\mu/2 - \epsilon/\mu) - e^\epsilon \Phi(-\mu/2 - \epsilon/\mu)
    """
    if mu == 0:
        return 0.0
    lost = math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - lost)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of a mu-Gaussian release at 0 < delta < 1."""
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
    r"""Release a vector with Gaussian noise on a grid of powers of two.

    The values are rounded to multiples of g, at most std / 2^25, and a discrete Gaussian number of
    steps is added to each; what comes out are multiples of g whatever came in, so its last bits
    carry no information about the values (as the sum of two floats would). Two vectors that
    differ by `sensitivity` differ by at most :math:`\sqrt{d} g` more after rounding, and the
    noise covers that.

    Parameters
    ----------
    values : ndarray of float64, shape (d,)
        What is released, finite.
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
    grid = 2.0 ** math.floor(math.log2(sensitivity * noise_multiplier)) / GRID_STEPS
    steps = math.ceil(noise_multiplier * (sensitivity / grid + math.sqrt(values.size)))
    if steps > 2 * GRID_STEPS:  # the rounding took the noise over the next power of two
        grid *= 2
        steps = math.ceil(noise_multiplier * (sensitivity / grid + math.sqrt(values.size)))
    rounded: NDArray[np.float64] = np.rint(values / grid)
    if not np.all(np.abs(rounded) < 2.0**52):
        raise ConfigError(
            f"a value is not finite or more than {2**52 / steps:.0f} standard deviations of the "
            "noise; check the clipping"
        )
    rounded += discrete_gaussian(steps, values.size, source)
    return rounded * grid, steps * grid


def grid_slack(size: int, steps: float = GRID_STEPS) -> float:
    r"""Return the total variation distance of `size` discrete Gaussian values to continuous ones.

    A value of standard deviation `steps` has distance at most :math:`1 / (40\,\text{steps}^2)`
    to the rounded continuous Gaussian (relative error :math:`(x^2-1)/24` at x standard
    deviations, next term of fourth order), whose accounting holds for any sampling. A release
    within distance t of an (epsilon, delta)-DP one is (epsilon, delta + (1 + e^epsilon) t)-DP.
    """
    return size / (40.0 * steps * steps)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1)."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be between 0 and 1, both excluded, found {delta!r}")
