r"""Renyi differential privacy of releases, and its conversion to (epsilon, delta).

A bound that is 5 to 10 % above the smallest epsilon and holds at any delta and any epsilon: it says
how wide the grids of `privacy.pld` must be, and serves where they do not. The same quantities as
Opacus' RDP accountant (tests compare them), vectorized, up to order 4096 without overflow.

References
----------
I. Mironov, K. Talwar, L. Zhang, "Renyi differential privacy of the sampled Gaussian mechanism",
2019. arXiv:1908.10530.
B. Balle, G. Barthe, M. Gaboardi, J. Hsu, T. Sato, "Hypothesis testing interpretations and Renyi
differential privacy", 2020. arXiv:1905.09982 (theorem 21: the conversion).
C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020.
arXiv:2004.00010 (the discrete Gaussian obeys the same bound as the continuous one, without
sampling).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from qsfl_flower.privacy.events import AnyEvent, PureEvent
from qsfl_flower.privacy.gaussian import check_delta

Floats = NDArray[np.float64]

_LOW = np.concatenate([1 + np.geomspace(0.001, 0.1, 20, endpoint=False), np.arange(1.1, 12, 0.1)])
_HIGH = np.unique(np.concatenate([np.arange(12, 65), np.geomspace(64, 4096, 50).round()]))
ORDERS: Floats = np.concatenate([_LOW, _HIGH])
"""Orders alpha at which losses are tracked.

With orders up to 10.9 no epsilon below 1 could ever be shown at delta = 1e-5, whatever the noise.
"""


_LEAST_NOISE = 0.05
"""Below it sampling is not rewarded: a release costs epsilon 200 anyway, and integrals get long."""


def rdp_of(event: AnyEvent) -> Floats:
    """Return the Renyi divergence bound of one of the event's releases at every order."""
    if isinstance(event, PureEvent):
        return _pure(event.epsilon)
    noise = min(event.noise_multiplier, 1e100)  # squares must stay finite
    if event.sampling_rate == 1 or noise < _LEAST_NOISE:
        return _gaussian(noise)
    return _sampled_gaussian(noise, event.sampling_rate)


def epsilon_of(rdp: Floats, delta: float) -> float:
    """Return the least epsilon over all orders."""
    return least_epsilon(rdp, delta)[0]


def least_epsilon(rdp: Floats, delta: float) -> tuple[float, float]:
    r"""Return the least epsilon over all orders, and its order.

    .. math:: \mathrm{RDP}(\alpha) + \log\frac{\alpha-1}{\alpha}
       - \frac{\log\delta + \log\alpha}{\alpha - 1}
    """
    check_delta(delta)
    bounds = rdp + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    best = int(np.nanargmin(bounds))
    return max(0.0, float(bounds[best])) if rdp.any() else 0.0, float(ORDERS[best])


def _gaussian(noise_multiplier: float) -> Floats:
    result: Floats = ORDERS * (0.5 / max(noise_multiplier, 1e-100) ** 2)
    return result


@lru_cache(maxsize=4096)
def _sampled_gaussian(noise_multiplier: float, rate: float) -> Floats:
    low = _log_a_by_integral(noise_multiplier, rate)
    high = _log_a_by_sums(noise_multiplier, rate)
    # log A is at least 0; rounding may leave it at -1e-16.
    result: Floats = np.maximum(np.concatenate([low, high]), 0.0) / (ORDERS - 1)
    # The sampled release is never worse than the unsampled one.
    result = np.minimum(result, _gaussian(noise_multiplier))
    result.flags.writeable = False
    return result


_STARTS = np.concatenate([[0], np.cumsum(_HIGH + 1)[:-1]]).astype(np.int64)
_ORDER = np.repeat(_HIGH, (_HIGH + 1).astype(np.int64))
_TERM = np.concatenate([np.arange(order + 1) for order in _HIGH])
_LOG_BINOMIAL = gammaln(_ORDER + 1) - gammaln(_TERM + 1) - gammaln(_ORDER - _TERM + 1)


def _log_a_by_sums(sigma: float, rate: float) -> Floats:
    """Return log A for the integer orders from 12 on: the binomial expansion of each."""
    terms = (
        _LOG_BINOMIAL
        + _TERM * (math.log(rate) - 1 / (2 * sigma**2))
        + (_ORDER - _TERM) * math.log1p(-rate)
        + _TERM * _TERM / (2 * sigma**2)
    )
    largest = np.maximum.reduceat(terms, _STARTS)
    terms -= np.repeat(largest, (_HIGH + 1).astype(np.int64))
    result: Floats = largest + np.log(np.add.reduceat(np.exp(terms), _STARTS))
    return result


def _log_a_by_integral(sigma: float, rate: float) -> Floats:
    r"""Return log A for orders below 12: :math:`E_{x \sim N(0,1)} (1 - q + q e^{x/s - 1/2s^2})^a`.

    The trapezoidal rule converges exponentially here: the integrand is analytic in the strip
    :math:`|\Im x| < \pi s`, and negligible beyond ten standard deviations of either peak.
    """
    step = min(0.1, sigma / 4)
    x = np.arange(-10.0, float(_LOW[-1]) / sigma + 10.0, step)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + x / sigma - 1 / (2 * sigma**2))
    terms = _LOW[:, None] * loss - x * x / 2
    largest = terms.max(axis=1)
    total = np.exp(terms - largest[:, None]).sum(axis=1)
    result: Floats = largest + np.log(total * (step / math.sqrt(2 * math.pi)))
    return result


def _pure(epsilon: float) -> Floats:
    """Return the divergence of randomized response, the worst (epsilon, 0)-DP mechanism."""
    log_p, log_r = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    total = np.logaddexp(
        ORDERS * log_p + (1 - ORDERS) * log_r, ORDERS * log_r + (1 - ORDERS) * log_p
    )
    result: Floats = np.minimum(np.maximum(total, 0.0) / (ORDERS - 1), epsilon)
    return result
