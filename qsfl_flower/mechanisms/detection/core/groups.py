"""Clients whose updates are too much alike to have been trained on different data."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = 0.9, 0.95
"""The limit on cosines lies between these, whatever the cohort looks like.

Below the first, honest clients with the same few classes come out alike. A large group bends the
robust centre and with it all cosines, so that a limit learned from them alone would never be met;
the second bounds what it can do.
"""


def coordinated(likeness: NDArray[np.float64], alpha: float = 0.01) -> list[tuple[int, ...]]:
    r"""Find groups of clients that act together.

    Two clients are linked if the cosine between their differences to the robust centre exceeds

    .. math:: m + z_{1 - \alpha / P} \cdot 1.4826\, \mathrm{MAD}

    over all P pairs, within 0.9 to 0.95; so the limit rises where honest clients are alike, and
    with the number of pairs. Groups are connected clients; one of more than half of all is not an
    outlier but the majority, and is left alone. There are no groups either where most pairs
    point the same or the opposite way: updates on one line, as those of a model with one parameter,
    make two camps of honest clients.

    Parameters
    ----------
    likeness : ndarray of float64, shape (n, n)
        Symmetric cosines, see `qsfl_flower.mechanisms.detection.core.Table`.
    alpha : float
        Chance of any link among clients whose cosines are normally distributed, where neither bound
        applies; in (0, 1).

    Returns
    -------
    list of tuple of int
        Rows of each group, ascending, two or more.
    """
    count = len(likeness)
    upper = np.triu_indices(count, 1)
    cosines = likeness[upper]
    if not cosines.size:
        return []
    middle = float(np.median(cosines))
    spread = 1.4826 * float(np.median(np.abs(cosines - middle)))
    limit = middle + NormalDist().inv_cdf(1 - alpha / cosines.size) * spread
    limit = min(max(limit, LOWEST), HIGHEST)
    if float(np.median(np.abs(cosines))) > limit:
        return []
    linked = likeness > limit
    groups, seen = [], np.zeros(count, dtype=np.bool_)
    for start in range(count):
        if seen[start]:
            continue
        members = np.zeros(count, dtype=np.bool_)
        members[start] = True
        while ((grown := members | linked[members].any(axis=0)) != members).any():
            members = grown
        seen |= members
        if 2 <= members.sum() <= count / 2:
            groups.append(tuple(int(i) for i in np.flatnonzero(members)))
    return groups
