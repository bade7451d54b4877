"""The subset of updates with the smallest diameter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.numerics.blocks import Floats

STEPS = 20_000
"""Most steps of a search that is exponential in the number of liars at worst."""

Mask = NDArray[np.bool_]


class _OutOfSteps(Exception):
    """The search takes too long."""


def smallest_diameter(squared_distances: Floats, f: int) -> NDArray[np.intp]:
    """Return n - f rows whose largest distance to each other is smallest, ascending.

    A diameter can be reached if f rows cover all pairs that are farther apart; the diameters that
    occur are tried by bisection. Of equally good sets the first in lexicographic order is taken.
    The search is cut off after `STEPS` steps; then the result is the best found so far, starting
    from the rows closest to one of them, whose diameter is at most twice the smallest.

    Parameters
    ----------
    squared_distances : ndarray of float64, shape (n, n)
        Zero on the diagonal.
    f : int
        How many rows to leave out, 0 <= f < n.
    """
    count = len(squared_distances)
    radii = np.sort(squared_distances, axis=1)[:, count - f - 1]
    nearest = np.argsort(squared_distances[np.argmin(radii)], kind="stable")
    best = np.sort(nearest[: count - f])
    diameters = np.unique(squared_distances)
    low = 0
    high = int(np.searchsorted(diameters, squared_distances[np.ix_(best, best)].max()))
    search = _Search()
    try:
        while low < high:
            middle = (low + high) // 2
            conflicts = squared_distances > diameters[middle]
            if search.coverable(conflicts, f):
                high = middle
            else:
                low = middle + 1
        return search.first_set(squared_distances > diameters[high], f)
    except _OutOfSteps:
        return best


class _Search:
    """A search for few rows that cover all conflicts, which counts its steps."""

    def __init__(self) -> None:
        self._steps = 0

    def coverable(self, conflicts: Mask, f: int) -> bool:
        """Tell whether leaving out f rows leaves no conflict."""
        self._steps += 1
        if self._steps > STEPS:
            raise _OutOfSteps
        degrees = conflicts.sum(axis=1)
        row = int(np.argmax(degrees))
        worst = int(degrees[row])
        if worst == 0:
            return True
        if f <= 0 or degrees.sum() > 2 * f * worst:
            return False
        if self.coverable(_without(conflicts, [row]), f - 1):
            return True
        # If the row stays, all that conflict with it must go.
        return worst <= f and self.coverable(_without(conflicts, conflicts[row]), f - worst)

    def first_set(self, conflicts: Mask, f: int) -> NDArray[np.intp]:
        """Return the lexicographically first n - f rows without a conflict."""
        count = len(conflicts)
        taken: list[int] = []
        out = np.zeros(count, np.bool_)
        left = conflicts
        for row in range(count):
            if len(taken) == count - f:
                break
            if out[row]:
                continue
            without = out | left[row]
            rest = _without(left, without)
            if without.sum() <= f and self.coverable(rest, f - int(without.sum())):
                taken.append(row)
                out, left = without, rest
            else:
                out[row] = True
                left = _without(left, [row])
        return np.array(taken, np.intp)


def _without(conflicts: Mask, rows: Mask | list[int]) -> Mask:
    left = conflicts.copy()
    left[rows], left[:, rows] = False, False
    return left
