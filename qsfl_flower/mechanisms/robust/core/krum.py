"""Krum's selection, on any matrix of squared distances.

References
----------
P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries:
Byzantine tolerant gradient descent", 2017. arXiv:1703.02757.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError


def krum_scores(squared_distances: NDArray[Any], f: int) -> NDArray[Any]:
    r"""Return the sum of each row's distances to its n - f - 2 closest others.

    .. math:: s_i = \sum_{j \in N_i} \|x_i - x_j\|^2, \quad |N_i| = \max(1, n - f - 2)

    Parameters
    ----------
    squared_distances : ndarray of float64 or object, shape (n, n)
        Not negative, zero on the diagonal. With Python integers (dtype object) everything is
        exact, for distances that were reconstructed in a field.
    f : int
        How many rows may lie, >= 0.

    Returns
    -------
    ndarray, shape (n,)
        Of the same dtype.
    """
    count = len(squared_distances)
    if squared_distances.shape != (count, count) or f < 0:
        raise ConfigError(
            f"Krum needs a square matrix and f >= 0; given are {squared_distances.shape} and {f}"
        )
    neighbours = min(count - 1, max(1, count - f - 2))
    # The first of a sorted row is its distance to itself, or one that is zero as well.
    return np.asarray(np.sort(squared_distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1))


def multi_krum_select(scores: NDArray[Any], m: int) -> NDArray[np.intp]:
    """Return the m rows with the lowest scores, ascending by row; of equal ones the first rows.

    Parameters
    ----------
    scores : ndarray of float64 or object, shape (n,)
        As from `krum_scores`.
    m : int
        How many rows to select, 1 <= m <= n.

    Returns
    -------
    ndarray of int, shape (m,)
    """
    if not 1 <= m <= len(scores):
        raise ConfigError(f"{m} of {len(scores)} cannot be selected; allowed is 1 to {len(scores)}")
    return np.sort(np.argsort(scores, kind="stable")[:m])


def bulyan_select(squared_distances: NDArray[Any], f: int, m: int) -> NDArray[np.intp]:
    """Return m rows, ascending: Krum's choice again and again, each time without the chosen ones.

    Parameters
    ----------
    squared_distances : ndarray, shape (n, n)
        As for `krum_scores`.
    f : int
        How many rows may lie, >= 0.
    m : int
        How many rows to select, 1 <= m <= n.

    References
    ----------
    E. M. El Mhamdi, R. Guerraoui, S. Rouault, "The hidden vulnerability of distributed learning in
    Byzantium", 2018. arXiv:1802.07927.
    """
    left = np.arange(len(squared_distances))
    for _ in range(m):
        scores = krum_scores(squared_distances[np.ix_(left, left)], f)
        left = np.delete(left, np.argmin(scores))
    return np.setdiff1d(np.arange(len(squared_distances)), left)
