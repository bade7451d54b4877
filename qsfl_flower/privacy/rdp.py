r"""Renyi differential privacy of releases, and its conversion to (epsilon, delta).

The same quantities as Opacus' RDP accountant (tests compare them), vectorised, up to order 4096
without overflow, and accumulated instead of recomputed.

References
----------
I. Mironov, K. Talwar, L. Zhang, "Renyi differential privacy of the sampled Gaussian mechanism",
2019.
B. Balle et al., "Hypothesis testing interpretations and Renyi differential privacy", 2020
(theorem 21: the conversion).
C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020 (the
discrete Gaussian obeys the same bound as the continuous one, without sampling).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from qsfl_flower.privacy.events import AnyEvent, PureEvent
from qsfl_flower.privacy.gaussian import check_delta

Floats = NDArray[np.float64]

_LOW = np.concatenate([1 + np.geomspace(0.001, 0.1, 20, endpoint=False), np.arange(1.1, 12, 0.1)])
_HIGH = np.unique(np.concatenate([np.arange(12, 65), np.geomspace(64, 4096, 50).round()]))
ORDERS: Floats = np.concatenate([_LOW, _HIGH])
"""Orders alpha at which losses are tracked.

With orders up to 10.9 no epsilon below 1 could ever be shown at delta = 1e-5, whatever the noise.
"""


def rdp_of(event: AnyEvent) -> Floats:
    """Return the Renyi divergence bound of one of the event's releases at every order."""
    if isinstance(event, PureEvent):
        return _pure(event.epsilon)
    if event.sampling_rate == 1:
        return ORDERS / (2 * event.noise_multiplier**2)
    return _sampled_gaussian(event.noise_multiplier, event.sampling_rate)


def epsilon_of(rdp: Floats, delta: float) -> float:
    r"""Return the least epsilon over all orders.

    .. math:: \mathrm{RDP}(\alpha) + \log\frac{\alpha-1}{\alpha}
       - \frac{\log\delta + \log\alpha}{\alpha - 1}
    """
    check_delta(delta)
    if not rdp.any():
        return 0.0
    bounds = rdp + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(np.nanmin(bounds)))


@lru_cache(maxsize=512)
def _sampled_gaussian(noise_multiplier: float, rate: float) -> Floats:
    sigma = noise_multiplier
    log_a = np.concatenate(
        [
            _log_a_by_integral(sigma, rate, _LOW),
            [_log_a_by_sum(sigma, rate, int(order)) for order in _HIGH],
        ]
    )
    # log A is at least 0; rounding may leave it at -1e-16.
    result: Floats = np.maximum(log_a, 0.0) / (ORDERS - 1)
    # The sampled release is never worse than the unsampled one.
    result = np.minimum(result, ORDERS / (2 * sigma**2))
    result.flags.writeable = False
    return result


def _log_a_by_sum(sigma: float, rate: float, order: int) -> float:
    """Return log A for an integer order: the binomial expansion."""
    i = np.arange(order + 1)
    terms = (
        gammaln(order + 1)
        - gammaln(i + 1)
        - gammaln(order - i + 1)
        + i * math.log(rate)
        + (order - i) * math.log1p(-rate)
        + (i * i - i) / (2 * sigma**2)
    )
    return float(logsumexp(terms))


def _log_a_by_integral(sigma: float, rate: float, orders: Floats) -> Floats:
    r"""Return log A for small orders: :math:`E_{x \sim N(0,1)} (1 - q + q e^{x/s - 1/2s^2})^a`.

    The trapezoidal rule converges exponentially here: the integrand is analytic in the strip
    :math:`|\Im x| < \pi s`, and negligible beyond twelve standard deviations of either peak.
    """
    step = min(0.05, sigma / 4)
    x = np.arange(-12.0, float(orders[-1]) / sigma + 12.0, step)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + x / sigma - 1 / (2 * sigma**2))
    weights = -x * x / 2 + math.log(step / math.sqrt(2 * math.pi))
    result: Floats = logsumexp(orders[:, None] * loss + weights, axis=1)
    return result


def _pure(epsilon: float) -> Floats:
    """Return the divergence of randomised response, the worst (epsilon, 0)-DP mechanism."""
    log_p, log_r = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    total = np.logaddexp(
        ORDERS * log_p + (1 - ORDERS) * log_r, ORDERS * log_r + (1 - ORDERS) * log_p
    )
    result: Floats = np.minimum(np.maximum(total, 0.0) / (ORDERS - 1), epsilon)
    return result
