"""Which examples are adapted to, and which judge the result: never the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError

Rows = NDArray[np.int64]


def support_and_query(count: int, query_share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide a client's training examples once and for all.

    Parameters
    ----------
    count : int
        Examples, >= 2.
    query_share : float
        Share of the query, in (0, 1); both parts have at least one example.
    seed : int
        The same seed gives the same parts in every round.

    Returns
    -------
    support, query : numpy.ndarray
        Row numbers, disjoint, together all of them, ascending.
    """
    if count < 2 or not 0 < query_share < 1:
        raise ConfigError(
            f"{count} examples cannot be divided by a query_share of {query_share!r}; at least two "
            "are needed, and a share between 0 and 1"
        )
    amount = min(max(round(count * query_share), 1), count - 1)
    rows = np.random.default_rng(seed).permutation(count)
    return np.sort(rows[amount:]), np.sort(rows[:amount])


def few_shots(labels: NDArray[np.integer[Any]], shots: int, seed: int) -> Rows:
    """Draw a few examples, the classes as evenly as possible.

    Parameters
    ----------
    labels : numpy.ndarray
        Labels of all examples.
    shots : int
        How many, at most as many as there are.
    seed : int
        Of the draw; fewer shots with the same seed are a part of more.

    Returns
    -------
    numpy.ndarray
        Row numbers in the order of the draw.
    """
    rows = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(rows), dtype=np.int64)
    for label in np.unique(labels):
        mine = labels[rows] == label
        turn[mine] = np.arange(mine.sum())
    return rows[np.argsort(turn, kind="stable")][:shots]
