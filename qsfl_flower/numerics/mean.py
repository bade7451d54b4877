"""Weighted sums of many vectors with an error that does not grow with their number.

The sum is blocked fast-and-accurate summation: batches of products are added plainly in float64,
the sums of a few batches form a group, and the groups are added with compensation.

References
----------
P. Blanchard, N. J. Higham, T. Mary, "A class of fast and accurate summation algorithms", SIAM
Journal on Scientific Computing 42(3), 2020.
T. Ogita, S. M. Rump, S. Oishi, "Accurate sum and dot product", SIAM Journal on Scientific
Computing 26(6), 2005.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.blocks import BLOCK, Floats, blocks, each_range
from qsfl_flower.numerics.vector import Vector

BATCH = 8
"""Products added one after the other."""

GROUP = 32
"""Vectors between two compensated additions, whose eight operations per coordinate then weigh
little."""


def weighted_sum(
    vectors: Sequence[Vector],
    coefficients: Sequence[float] | Floats,
    *,
    lo: int = 0,
    hi: int | None = None,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    r"""Compute :math:`s = \sum_i c_i v_i` coordinate by coordinate in float64.

    With unit round-off :math:`u = 2^{-53}`, each coordinate obeys

    .. math:: |\hat s - s| \le 13\,u \sum_i |c_i v_i| + O(n u^2)

    (one rounding of the product, 7 in a batch of 8, 3 between the 4 batches of a group, 1 at the
    end, the compensated additions contributing only to the second term)
    whatever the number n of vectors, as long as no partial sum leaves the range of float64. The
    bound is relative to the sum of the magnitudes: where terms cancel, no summation in float64
    promises digits of the small remainder.

    Each coordinate goes through correctly rounded additions and multiplications in the order in
    which the vectors are given. The result therefore has the same bits on every run, for any
    number of threads and any range of coordinates, and on every processor for which NumPy was
    built without fused multiply-add (all of x86-64; elsewhere last bits may differ). Another order
    of the vectors may change the last bits as well, so callers sort by client first.

    Beside the result, memory for 12 blocks per thread is used, whatever the number of vectors.

    Parameters
    ----------
    vectors : sequence of Vector
        At least one; all of the same size.
    coefficients : sequence of float
        One finite factor per vector.
    lo, hi : int
        Compute only the coordinates ``lo <= i < hi``; by default all.
    threads : int, optional
        Threads over disjoint coordinates; by default one per core, at most four.
    out : ndarray of float64, shape (hi - lo,), optional
        Where to put the result.

    Returns
    -------
    ndarray of float64, shape (hi - lo,)
        The sum. A coordinate is not finite if, and only if, some vector is not finite there or a
        partial sum leaves the range of float64; so a finite sum proves all vectors finite.

    Raises
    ------
    ConfigError
        If sizes or numbers do not fit together.
    """
    hi = _check(vectors, coefficients, lo, hi)
    out = np.empty(hi - lo) if out is None else out
    if out.shape != (hi - lo,) or out.dtype != np.float64:
        raise ConfigError(
            f"the output needs shape {(hi - lo,)} and float64; it has {out.shape} and {out.dtype}"
        )
    factors = np.asarray(coefficients, dtype=np.float64)

    def work(start: int, stop: int) -> None:
        # Rows are wider than one number, or einsum would add along the column in its own order.
        scratch = np.empty((BATCH + 4, max(16, min(stop - start, BLOCK))))
        # New threads begin with NumPy's default error handling, so this belongs inside.
        with np.errstate(over="ignore", invalid="ignore"):
            for first, last in blocks(start, stop):
                _sum_block(vectors, factors, first, last, out[first - lo : last - lo], scratch)

    each_range(lo, hi, threads, work)
    return out


class CompensatedSum:
    r"""A running sum :math:`\sum_i c_i v_i` for callers that see one vector at a time.

    The state is two float64 vectors: the sum, and what its roundings lost. The error bound is
    even smaller than that of `weighted_sum`, :math:`2u \sum_i |c_i v_i|`; the bits are
    not those of `weighted_sum`, but as reproducible.

    Parameters
    ----------
    size : int
        Number of coordinates, at least 0.
    """

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self._lost = np.zeros(size)

    def add(self, vector: Vector, coefficient: float, *, threads: int | None = None) -> None:
        """Add ``coefficient * vector``, where the vector has the size of the sum."""
        if vector.size != self._sum.size:
            raise ConfigError(f"a vector of {vector.size} cannot be added to {self._sum.size}")

        def work(start: int, stop: int) -> None:
            term, spare, rounded = np.empty((3, min(stop - start, BLOCK)))
            with np.errstate(over="ignore", invalid="ignore"):
                for first, last in blocks(start, stop):
                    count = last - first
                    product = term[:count]
                    vector.read(first, last, product)
                    np.multiply(product, coefficient, out=product)
                    total, lost = self._sum[first:last], self._lost[first:last]
                    _two_sum(total, product, lost, spare[:count], rounded[:count])

        each_range(0, vector.size, threads, work)

    def value(self) -> Floats:
        """Return the sum so far as a new vector."""
        return self._sum + self._lost


def _check(
    vectors: Sequence[Vector], coefficients: Sequence[float] | Floats, lo: int, hi: int | None
) -> int:
    if not vectors or len(vectors) != len(coefficients):
        raise ConfigError(
            f"{len(vectors)} vectors and {len(coefficients)} coefficients were given; "
            "one of each per client and at least one client are needed"
        )
    sizes = {vector.size for vector in vectors}
    if len(sizes) > 1:
        raise ConfigError(f"vectors of different sizes cannot be added: {sorted(sizes)}")
    size = sizes.pop()
    hi = size if hi is None else hi
    if not 0 <= lo <= hi <= size:
        raise ConfigError(f"coordinates {lo} to {hi} are not within a vector of {size}")
    return hi


def _sum_block(
    vectors: Sequence[Vector],
    factors: Floats,
    first: int,
    last: int,
    total: Floats,
    scratch: Floats,
) -> None:
    """Write the sum over all vectors of the coordinates ``first <= i < last`` into `total`."""
    rows = scratch[:BATCH, : total.size]
    part, group, spare, lost = scratch[BATCH:, : total.size]
    lost.fill(0.0)
    for begin in range(0, len(vectors), GROUP):
        target = group if begin else total
        end = min(begin + GROUP, len(vectors))
        for start in range(begin, end, BATCH):
            count = min(BATCH, end - start)
            for row, vector in zip(rows, vectors[start : start + count], strict=False):
                vector.read(first, last, row)
            # A sum of products in plain loops over the rows, in order: no BLAS, no extra buffer.
            result = target if start == begin else part
            np.einsum("i,ij->j", factors[start : start + count], rows[:count], out=result)
            if start > begin:
                np.add(target, part, out=target)
        if begin:
            _two_sum(total, group, lost, spare, part)
    np.add(total, lost, out=total)


def _two_sum(total: Floats, term: Floats, lost: Floats, spare: Floats, rounded: Floats) -> None:
    """Add `term` to `total`, and to `lost` what rounding took away: Knuth's TwoSum.

    Unlike Kahan's three operations it is exact also where the term exceeds the total. `term`,
    `spare` and `rounded` are overwritten.
    """
    np.add(total, term, out=rounded)
    np.subtract(rounded, total, out=spare)  # the part of the term that arrived
    np.subtract(term, spare, out=term)  # what is missing of the term
    np.subtract(rounded, spare, out=spare)  # the part of the total that survived
    np.subtract(total, spare, out=spare)  # what is missing of the total
    np.add(term, spare, out=term)
    np.add(lost, term, out=lost)
    np.copyto(total, rounded)
