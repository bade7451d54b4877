"""How many members and clients the sums of a committee need, in numbers."""

from __future__ import annotations


def least_quorum(members: int, threshold: int) -> int:
    """Return how many of m members must answer alike, so that only one question can be opened.

    Two sets of so many members share one that is not among t - 1 which may answer both:
    ``2 q > m + t - 1``.

    Examples
    --------
    >>> least_quorum(5, 3), least_quorum(7, 3)
    (4, 5)
    """
    return (members + threshold - 1) // 2 + 1


def fewest_answers(members: int, threshold: int) -> int:
    """Return how many members must answer before a distance or a norm, of degree 2t - 2, opens."""
    return max(2 * threshold - 1, least_quorum(members, threshold))


def fewest_clients(
    members: int, min_clients: int, byzantine: int | None = None, selected: int | None = None
) -> int:
    """Return the size of the smallest federation that can open a sum.

    Every member is a client of the round. Under Krum a round needs ``2 f + 3`` clients, and those
    that are selected, n - f - 2 by default, must be enough for a sum. For every client that may be
    missing it takes one more.

    Parameters
    ----------
    members : int
        m.
    min_clients : int
        Least number of clients in a sum.
    byzantine : int, optional
        f of Krum; None: all updates are added up.
    selected : int, optional
        How many updates are selected, if not n - f - 2.

    Examples
    --------
    >>> fewest_clients(5, 3), fewest_clients(5, 3, byzantine=1), fewest_clients(7, 3, byzantine=3)
    (5, 6, 9)
    """
    least = max(members, min_clients)
    if byzantine is None:
        return least
    summed = byzantine + 2 + min_clients if selected is None else 0
    return max(least, 2 * byzantine + 3, summed)
