"""Clients that move against the direction that the others share."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.detection.core.detector import Floats
from qsfl_flower.mechanisms.detection.core.features import NAMES, Table

ALPHA = 0.01
"""Share of rounds in which a cohort without a common direction is said to have opponents."""

CLEARLY = -0.05
"""Mean cosine below which opponents point against a direction; an update of normal noise comes that
low once in twenty times among 1,000 coordinates, and never among 10,000."""

LINE = 0.99
"""Updates whose squared cosines to a direction have a mean above this lie on a line."""

_COHORTS, _DIMENSIONS, _MOST = 4000, 8, 100


def opposed(table: Table) -> dict[int, str]:
    """Find the minority that moves against the others.

    There are two directions to move against: the axis of the round, which is the leading
    eigenvector of the trusted clients' cosines, turned to where most of them point, and the last
    step of the global model. Turning an update round leaves the axis as it is, so that opponents
    cannot bend it by their number as they bend a median. The last step shows them when the model
    has converged and updates share little within a round.

    Parameters
    ----------
    table : Table
        The features of n updates.

    Returns
    -------
    dict of int to str
        The rows of the opponents, and what they do, in words.
    """
    directions = {
        "the axis of the round": _axis(table),
        "the last step": table.values[:, NAMES.index("last_cosine")],
    }
    told: dict[int, str] = {}
    for name, along in directions.items():
        for row in np.flatnonzero(minority(along)).tolist():
            told.setdefault(row, f"moves against the others; cosine to {name} {along[row]:.2f}")
    return told


def minority(along: Floats) -> NDArray[np.bool_]:
    r"""Find those whose cosines are on the other side of 0, if they stand apart.

    Negative cosines :math:`a_i` stand apart if they are fewer than half, if their mean is below
    -0.05, and if

    .. math:: \frac{\sum_i (a_i - \bar a)^2}{\sum_i (a_i - \bar a_{\text{side of } i})^2}

    exceeds what cohorts without any common direction reach in one round of a hundred. Honest
    clients of a converged model are such a cohort: half of them point against any axis, but all
    the way from -1 to 1. The limit is what made-up cohorts with random directions in eight
    dimensions reach along their leading axis: 8 for 20 clients, 18 for 10, 200 for 5.

    Nobody stands apart where updates lie on a line, as those of a model with one parameter: honest
    clients on both sides of their mean look exactly like attackers there.

    Parameters
    ----------
    along : ndarray of float64, shape (n,)
        Cosines to a direction.

    Returns
    -------
    ndarray of bool, shape (n,)
        Who stands apart.
    """
    low = along < 0
    apart = bool(
        _contrast(along[None])[0] > _limit(min(len(along), _MOST))
        and along[low].mean() < CLEARLY
        and (along**2).mean() <= LINE
    )
    return low if apart else np.zeros_like(low)


def _axis(table: Table) -> Floats:
    """Return the cosines to the trusted clients' leading axis, most of them positive."""
    among = table.cosines[:, table.trusted]
    value, vector = _leading(among[table.trusted])
    along: Floats = among @ vector / max(value, 1e-300) ** 0.5
    return -along if np.median(along[table.trusted]) < 0 else along


def _leading(square: Floats) -> tuple[float, Floats]:
    """Return the largest eigenvalue of a symmetric matrix and its vector, of length 1."""
    if len(square) > _MOST:
        from scipy.sparse.linalg import ArpackError, eigsh  # slow to load

        with suppress(ArpackError):  # two eigenvalues that are as good as equal
            values, vectors = eigsh(square, k=1, which="LA", v0=np.ones(len(square)))
            return float(values[0]), vectors[:, 0]
    values, vectors = np.linalg.eigh(square)
    return float(values[-1]), vectors[:, -1]


def _contrast(along: Floats) -> Floats:
    """Return total by remaining variation when each row is split at 0; 0 without a minority."""
    low = along < 0
    count, size = low.sum(axis=1), along.shape[1]
    rest = along.copy()
    for side in (low, ~low):
        means = np.where(side, along, 0.0).sum(axis=1) / np.maximum(side.sum(axis=1), 1)
        rest -= np.where(side, means[:, None], 0.0)
    ratio = size * along.var(axis=1) / np.maximum(np.vecdot(rest, rest), 1e-300)
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
