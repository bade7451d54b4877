"""The Laplace and the exponential mechanism.

References
----------
C. Dwork, A. Roth, "The algorithmic foundations of differential privacy", 2014.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.discrete import discrete_laplace
from qsfl_flower.privacy.randomness import Keystream

_STEPS = 1 << 25


def add_laplace_noise(
    values: NDArray[np.float64], l1_sensitivity: float, epsilon: float, source: Keystream
) -> NDArray[np.float64]:
    r"""Release a vector with (epsilon, 0)-DP: noise of scale (L1 sensitivity) / epsilon.

    Values and noise lie on a grid of powers of two, at most scale / 2^25 wide; the noise covers the
    d steps by which rounding can raise the L1 sensitivity.

    Parameters
    ----------
    values : ndarray of float64, shape (d,)
        What is released, finite.
    l1_sensitivity : float
        Largest L1 change of `values` when the protected unit comes or goes, > 0.
    epsilon : float
        > 0.
    source : Keystream
        Randomness of the noise; every coordinate gets its own.

    Returns
    -------
    ndarray of float64, shape (d,)
    """
    if not (0 < l1_sensitivity < math.inf and 0 < epsilon < math.inf):
        raise ConfigError(
            "Laplace noise needs a sensitivity and an epsilon that are positive and finite, found "
            f"{l1_sensitivity!r} and {epsilon!r}"
        )
    grid = 2.0 ** math.floor(math.log2(l1_sensitivity / epsilon)) / _STEPS
    steps = math.ceil((l1_sensitivity / grid + values.size) / epsilon)
    rounded: NDArray[np.float64] = np.rint(values / grid)
    if not np.all(np.abs(rounded) < 2.0**52):
        raise ConfigError("a value is not finite or far too large for its sensitivity")
    rounded += discrete_laplace(steps, values.size, source)
    return rounded * grid


def exponential_choice(
    scores: NDArray[np.float64], sensitivity: float, epsilon: float, source: Keystream
) -> int:
    r"""Choose an index with probability proportional to :math:`e^{\epsilon s_i / 2 \Delta}`.

    (epsilon, 0)-DP, up to the rounding of the probabilities in float64 (relative 1e-15).

    Parameters
    ----------
    scores : ndarray of float64, shape (k,)
        How good each candidate is, finite; k >= 1.
    sensitivity : float
        Largest change of any score when the protected unit comes or goes, > 0.
    epsilon : float
        > 0.
    source : Keystream
        Randomness of the choice.

    Returns
    -------
    int
        0 <= index < k.
    """
    if not (0 < sensitivity < math.inf and 0 < epsilon < math.inf):
        raise ConfigError(
            "a private choice needs a sensitivity and an epsilon that are positive and finite, "
            f"found {sensitivity!r} and {epsilon!r}"
        )
    if scores.size == 0 or not np.all(np.isfinite(scores)):
        raise ConfigError("a private choice needs at least one score, all of them finite")
    weights = np.exp((scores - scores.max()) * (epsilon / (2 * sensitivity)))
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, float(source.uniforms(1)[0]) * cumulative[-1], "right"))
