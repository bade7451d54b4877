"""Clients that move against the direction that the others share."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.01
"""Share of rounds in which a cohort without a common direction is said to have opponents."""

CLEARLY = -0.1
"""Mean cosine to the axis below which opponents point against it rather than at right angles."""

LINE = 0.99
"""Updates whose mean squared cosine to the axis is above this lie on a line."""

_COHORTS, _DIMENSIONS, _MOST = 4000, 8, 100


def opposed(
    cosines: NDArray[np.float64], trusted: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    r"""Find the minority that moves against the others.

    The axis is the leading eigenvector of the trusted clients' cosines, turned to where most of
    them point. Turning an update round leaves the axis as it is, so that opponents cannot bend it
    by their number as they bend a median. Let :math:`a_i` be the cosines to the axis. Those below
    0 are opponents if they are fewer than half, if their mean is below -0.1, and if

    .. math:: \frac{\sum_i (a_i - \bar a)^2}{\sum_i (a_i - \bar a_{\text{side of } i})^2}

    exceeds what cohorts without any common direction reach in one round of a hundred. Honest
    clients of a converged model are such a cohort: half of them point against any axis, but all
    the way from -1 to 1; the made-up ones have random directions in eight dimensions, about as
    spread as with ten classes shared unevenly. For 20 clients the limit is about 8.

    Nobody is an opponent where updates lie on a line, as those of a model with one parameter:
    honest clients on both sides of their mean look exactly like attackers there.

    Parameters
    ----------
    cosines : ndarray of float64, shape (n, n)
        Between whole updates, see `qsfl_flower.robust.detection.Table`.
    trusted : ndarray of bool, shape (n,)
        Which clients make the axis, at least one.

    Returns
    -------
    against : ndarray of bool, shape (n,)
        The opponents.
    along : ndarray of float64, shape (n,)
        Cosines to the axis.
    """
    values, vectors = np.linalg.eigh(cosines[np.ix_(trusted, trusted)])
    along = cosines[:, trusted] @ vectors[:, -1] / max(float(values[-1]), 1e-300) ** 0.5
    if np.median(along[trusted]) < 0:
        along = -along
    against = along < 0
    if (
        _contrast(along[None])[0] <= _limit(min(len(along), _MOST))
        or along[against].mean() > CLEARLY
        or values[-1] > LINE * trusted.sum()
    ):
        against = np.zeros(len(along), dtype=np.bool_)
    return against, along


def _contrast(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return total by remaining variation when each row is split at 0; 0 without a minority."""
    low = along < 0
    count, size = low.sum(axis=1), along.shape[1]
    means = [
        np.where(side, along, 0.0).sum(axis=1) / np.maximum(side.sum(axis=1), 1)
        for side in (low, ~low)
    ]
    rest = along - np.where(low, means[0][:, None], means[1][:, None])
    total = size * along.var(axis=1)
    ratio = total / np.maximum(np.vecdot(rest, rest), 1e-300)
    return np.where((count > 0) & (2 * count < size), ratio, 0.0)


@cache
def _limit(clients: int) -> float:
    """Simulate what cohorts without a common direction reach; larger cohorts reach less."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_COHORTS, clients, _DIMENSIONS))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    axes = np.linalg.eigh(x.swapaxes(1, 2) @ x).eigenvectors[:, :, -1]
    along = (x @ axes[:, :, None])[:, :, 0]
    along *= np.where(np.median(along, axis=1) < 0, -1.0, 1.0)[:, None]
    return float(np.quantile(_contrast(along), 1 - ALPHA))
