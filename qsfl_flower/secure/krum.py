r"""Multi-Krum on exact integer distances.

The score of a vector is the sum of its n - f - 2 smallest squared distances to the others; the m
vectors of the smallest scores are selected. Integers of any size are added exactly, and ties go to
the vector that comes first, so whoever knows the distances selects the same vectors.

References
----------
P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries:
Byzantine tolerant gradient descent", 2017. arXiv:1703.02757.
"""

from __future__ import annotations

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.field import Elements, P, reduce_once

_P = np.uint64(P)


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two indices of every pair ``i < j`` of n clients, in the order of exchange."""
    return np.triu_indices(n, 1)


def distances_of_gram(gram: Elements) -> Elements:
    """Return ``G_ii + G_jj - 2 G_ij`` modulo p for every pair: the squared distances, or shares.

    Parameters
    ----------
    gram : ndarray of uint64, shape (n, n)
        Inner products modulo p of the vectors, or of one member's shares of them.
    """
    i, j = pairs(len(gram))
    squares = np.diagonal(gram)
    cross = gram[i, j]
    out: Elements = squares[i] + squares[j]
    reduce_once(out)
    for _ in range(2):
        out += _P
        out -= cross
        reduce_once(out)
    return out


def scores(distances: Elements, n: int, byzantine: int) -> list[int]:
    """Return the Krum score of each of n vectors, exactly.

    Parameters
    ----------
    distances : ndarray of uint64, shape (n (n - 1) / 2,)
        Squared distances in the order of `pairs`.
    n : int
        Number of vectors, at least ``2 byzantine + 3``.
    byzantine : int
        f, how many of the vectors may be anything.
    """
    check_size(n, byzantine)
    matrix = np.zeros((n, n), np.uint64)
    matrix[pairs(n)] = distances
    matrix += matrix.T
    # The distance to itself, 0, sorts first and is left out.
    nearest = np.sort(matrix, axis=1)[:, 1 : n - byzantine - 1]
    return [sum(row) for row in nearest.tolist()]


def select(scores: list[int], count: int) -> tuple[int, ...]:
    """Return the indices of the `count` smallest scores, ascending; ties go to the first."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    return tuple(sorted(order[:count]))


def check_size(n: int, byzantine: int) -> None:
    """Raise `ConfigError` unless n vectors are enough for f Byzantine ones: n >= 2 f + 3."""
    if byzantine < 0 or n < 2 * byzantine + 3:
        raise ConfigError(
            f"Krum with {byzantine} Byzantine clients needs at least {2 * byzantine + 3} clients, "
            f"there are {n}"
        )
