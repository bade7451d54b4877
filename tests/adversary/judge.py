"""What opened combinations of secrets say about few of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from qsfl_flower import testing


def fewest(rows: np.ndarray, known: Iterable[int], most: int) -> int:
    """Return how many secrets the smallest opened combination is about; `most` if no fewer.

    Parameters
    ----------
    rows : ndarray, shape (k, n)
        What was opened, as coefficients of the secrets.
    known : iterable of int
        Secrets that the coalition knows anyhow.
    most : int
        Combinations of so many are not looked for.
    """
    left = np.delete(rows, sorted(set(known)), axis=1)
    whole, used = testing.rank(left), np.flatnonzero(np.abs(left).max(axis=0, initial=0.0) > 1e-3)
    for count in range(1, most):
        for few in itertools.combinations(used, count):
            # Less is known of the others alone: some combination is about these few.
            if testing.rank(np.delete(left, few, axis=1)) < whole:
                return count
    return most
