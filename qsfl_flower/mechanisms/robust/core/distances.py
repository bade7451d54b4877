r"""Inner products and squared distances of all pairs of updates, in float64.

One product of a block with its own transpose gives all pairs at once:

.. math:: \|x_i - x_j\|^2 = \|x_i\|^2 + \|x_j\|^2 - 2 \langle x_i, x_j \rangle.

The subtraction cancels where two updates are much closer to each other than to the origin. Those
pairs are found, and measured again from one of them as the origin, until none is left: every
distance has at least nine correct digits, whatever the others are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.robust.core.updates import Updates, each_part
from qsfl_flower.numerics.blas import one_blas_thread
from qsfl_flower.numerics.blocks import Floats

LARGEST_SQUARE = 1e200
"""Updates with a larger square norm, or NaN or infinity in it, are not usable."""

_CANCELLED = 2.0**-13
"""A distance below this share of the square norms is measured again.

The inner product of float64 rows is known to 1e-13 of the norms at least (blocks of a few thousand
products, a few hundred blocks), so what is not measured again has nine correct digits.
"""


def gram(updates: Updates, *, origin: int | None = None, threads: int | None = None) -> Floats:
    r"""Return all inner products :math:`\langle x_i - x_o, x_j - x_o \rangle`.

    Parameters
    ----------
    updates : Updates
        n rows of d coordinates.
    origin : int, optional
        The row :math:`x_o` from which is measured; by default zero, for updates the global model.
    threads : int, optional
        Threads over coordinates; by default one per core. BLAS itself runs on one thread, over
        ranges of coordinates that depend only on n and d, so the bits do not depend on `threads`.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric. Rows and columns of vectors that are not finite are not finite.
    """
    count = updates.count
    parts: dict[int, Floats] = {}

    def work(part: int, lo: int, hi: int) -> None:
        product, total = np.empty((count, count)), np.zeros((count, count))
        with np.errstate(all="ignore"):
            for _, _, block in updates.blocks(lo, hi):
                if origin is not None:
                    np.subtract(block, block[origin].copy(), out=block)
                np.add(total, np.matmul(block, block.T, out=product), out=total)
        parts[part] = total

    with one_blas_thread():
        each_part(updates, threads, work)
    with np.errstate(all="ignore"):
        total = sum((parts[part] for part in sorted(parts)), np.zeros((count, count)))
    below = np.tril_indices(count, -1)
    total[below] = total.T[below]
    return total


def dots(updates: Updates, other: Floats | None = None, *, threads: int | None = None) -> Floats:
    r"""Return :math:`\langle x_i, y \rangle` for one vector y, or the square norms without one.

    Parameters
    ----------
    updates : Updates
        n rows of d coordinates.
    other : ndarray of float64, shape (d,), optional
        The vector y.
    threads : int, optional
        As for `gram`.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    count = updates.count
    parts: dict[int, Floats] = {}

    def work(part: int, lo: int, hi: int) -> None:
        total = np.zeros(count)
        with np.errstate(all="ignore"):
            for start, stop, block in updates.blocks(lo, hi):
                total += np.vecdot(block, block if other is None else other[start:stop])
        parts[part] = total

    with one_blas_thread():
        each_part(updates, threads, work)
    with np.errstate(all="ignore"):
        return sum((parts[part] for part in sorted(parts)), np.zeros(count))


def squared_distances(
    updates: Updates, products: Floats | None = None, *, threads: int | None = None
) -> Floats:
    """Return the squared distances of all pairs, each with at least nine correct digits.

    Parameters
    ----------
    updates : Updates
        n rows of d coordinates.
    products : ndarray of float64, shape (n, n), optional
        Their inner products, if known.
    threads : int, optional
        As for `gram`.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric, zero on the diagonal, never negative; infinite in the rows and columns of
        vectors that are not usable.
    """
    products = gram(updates, threads=threads) if products is None else products
    squares = np.diag(products)
    usable = usable_squares(squares)
    with np.errstate(all="ignore"):
        sums = squares[:, np.newaxis] + squares
        found = np.maximum(sums - 2 * products, 0.0)
        close = (found < _CANCELLED * sums) & usable & usable[:, np.newaxis]
    np.fill_diagonal(close, False)
    for group in _groups(close):
        near = updates.keep(group)
        # From the first of the group nothing is close to the first, so that groups get smaller.
        nearer = gram(near, origin=0, threads=threads)
        found[np.ix_(group, group)] = squared_distances(near, nearer, threads=threads)
    found[~usable], found[:, ~usable] = np.inf, np.inf
    np.fill_diagonal(found, 0.0)
    return found


def usable_squares(squares: Floats) -> NDArray[np.bool_]:
    """Tell which square norms belong to vectors that can be worked with."""
    return squares <= LARGEST_SQUARE  # NaN compares as false


def _groups(close: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return the sets of more than one row that are connected by close pairs."""
    if not close.any():
        return []
    from scipy.sparse import csr_array  # slow to load, and updates are rarely that close
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(csr_array(close), directed=False)
    groups = [np.flatnonzero(labels == label) for label in range(count)]
    return [group for group in groups if group.size > 1]
