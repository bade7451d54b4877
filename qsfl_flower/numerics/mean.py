"""Weighted sums of many vectors with an error that does not grow with their number.

The sum is blocked fast-and-accurate summation: batches of products are added plainly in float64,
the sums of a few batches form a group, and the groups are added with compensation.

References
----------
P. Blanchard, N. J. Higham, T. Mary, "A class of fast and accurate summation algorithms", 2020.
doi:10.1137/19M1257780.
T. Ogita, S. M. Rump, S. Oishi, "Accurate sum and dot product", 2005. doi:10.1137/030601818.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.blocks import BLOCK, ROW, Floats, blocks, each_range
from qsfl_flower.numerics.norms import Measure, from_square, square_rows
from qsfl_flower.numerics.vector import Vector

BATCH = 8
"""Products added one after the other."""

GROUP = 32
"""Vectors between two compensated additions, whose eight operations per coordinate then weigh
little."""


def weighted_sum(
    vectors: Sequence[Vector],
    coefficients: Sequence[float] | Floats,
    bases: Sequence[Vector | None] | None = None,
    *,
    lo: int = 0,
    hi: int | None = None,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    r"""Compute :math:`s = \sum_i c_i (v_i - b_i)` coordinate by coordinate in float64.

    With unit round-off :math:`u = 2^{-53}`, each coordinate obeys

    .. math:: |\hat s - s| \le 14\,u \sum_i |c_i (v_i - b_i)| + O(n u^2)

    whatever the number n of vectors, as long as no partial sum leaves the range of float64: one
    rounding of the difference (none without a base), one of the product, 7 in a batch of 8, 3
    between the 4 batches of a group, 1 at the end, while the compensated additions contribute only
    to the second term. The bound is relative to the sum of the magnitudes: where terms cancel, no
    summation in float64 promises digits of the small remainder.

    Each coordinate goes through correctly rounded additions and multiplications in the order in
    which the vectors are given. The result therefore has the same bits on every run, for any
    number of threads and any range of coordinates, and on every processor for which NumPy was
    built without fused multiply-add (all of x86-64; elsewhere last bits may differ). Another order
    of the vectors may change the last bits as well, so callers sort by client first.

    Beside the result, memory for 13 blocks per thread is used, whatever the number of vectors.

    Parameters
    ----------
    vectors : sequence of Vector
        At least one; all of the same size.
    coefficients : sequence of float
        One finite factor per vector.
    bases : sequence of Vector or None, optional
        What to subtract from each vector before the multiplication: for a client's model the
        global model, for an update None.
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
    terms = _Terms.of(vectors, coefficients, bases)
    size = vectors[0].size
    hi = size if hi is None else hi
    if not 0 <= lo <= hi <= size:
        raise ConfigError(f"coordinates {lo} to {hi} are not within a vector of {size}")
    out = np.empty(hi - lo) if out is None else out
    if out.shape != (hi - lo,) or out.dtype != np.float64:
        raise ConfigError(
            f"the output needs shape {(hi - lo,)} and float64; it has {out.shape} and {out.dtype}"
        )
    _sum(terms, lo, hi, out, None, threads)
    return out


def sum_and_measure(
    vectors: Sequence[Vector],
    coefficients: Sequence[float] | Floats,
    bases: Sequence[Vector | None] | None = None,
    *,
    threads: int | None = None,
) -> tuple[Floats, list[Measure]]:
    """Compute `weighted_sum` and the norm of every ``v - b`` while it is in the cache.

    Much cheaper than measuring first and adding up then. The bits are those of `weighted_sum` and
    `measure`. A caller whose factors depend on the norms computes with the factors that it
    expects, and adds up again only if a vector turns out to be unacceptable.

    Parameters
    ----------
    vectors, coefficients, bases, threads
        As for `weighted_sum`.

    Returns
    -------
    total : ndarray of float64, shape (size,)
        The sum; not finite where some vector is not.
    measures : list of Measure
        One per vector, without layer norms.
    """
    terms = _Terms.of(vectors, coefficients, bases)
    size = vectors[0].size
    out = np.empty(size)
    squares = np.zeros((len(vectors), -(-size // ROW)))
    _sum(terms, 0, size, out, squares, threads)
    measures = [
        from_square(float(square.sum()), vector, base)
        for square, vector, base in zip(squares, vectors, terms.bases, strict=True)
    ]
    return out, measures


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


@dataclass(frozen=True)
class _Terms:
    """What is added up: ``factors[i] * (vectors[i] - bases[i])``, of equal sizes."""

    vectors: Sequence[Vector]
    factors: Floats
    bases: Sequence[Vector | None]

    @classmethod
    def of(
        cls,
        vectors: Sequence[Vector],
        coefficients: Sequence[float] | Floats,
        bases: Sequence[Vector | None] | None,
    ) -> _Terms:
        bases = [None] * len(vectors) if bases is None else bases
        if not vectors or not len(vectors) == len(coefficients) == len(bases):
            raise ConfigError(
                f"{len(vectors)} vectors, {len(coefficients)} coefficients and {len(bases)} bases "
                "were given; one of each per client and at least one client are needed"
            )
        sizes = {vector.size for vector in (*vectors, *bases) if vector is not None}
        if len(sizes) > 1:
            raise ConfigError(f"vectors of different sizes cannot be added: {sorted(sizes)}")
        return cls(vectors, np.asarray(coefficients, dtype=np.float64), bases)


def _sum(
    terms: _Terms, lo: int, hi: int, out: Floats, squares: Floats | None, threads: int | None
) -> None:
    def work(start: int, stop: int) -> None:
        # Rows are wider than one number, or einsum would add along the column in its own order.
        scratch = np.empty((BATCH + 5, max(16, min(stop - start, BLOCK))))
        # New threads begin with NumPy's default error handling, so this belongs inside.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last in blocks(start, stop):
                _sum_block(terms, first, out[first - lo : last - lo], squares, scratch)

    each_range(lo, hi, threads, work)


def _sum_block(
    terms: _Terms, first: int, total: Floats, squares: Floats | None, scratch: Floats
) -> None:
    """Write the sum over all terms of the coordinates from `first` on into `total`."""
    rows = scratch[:BATCH, : total.size]
    part, group, spare, lost, spare_base = scratch[BATCH:, : total.size]
    count = len(terms.vectors)
    if count > GROUP:
        lost.fill(0.0)
    known: tuple[Vector | None, Floats] = (None, spare_base)
    for begin in range(0, count, GROUP):
        target = group if begin else total
        for start in range(begin, min(begin + GROUP, count), BATCH):
            stop = min(start + BATCH, begin + GROUP, count)
            for row, vector in zip(rows, terms.vectors[start:stop], strict=False):
                vector.read(first, first + total.size, row)
            for base, chosen in _by_base(terms.bases[start:stop], rows):
                if base is not known[0]:  # read once a block if all have the same base
                    known = base, base.view(first, first + total.size, spare_base)
                np.subtract(chosen, known[1], out=chosen)
            if squares is not None:
                square_rows(rows[: stop - start], squares[start:stop, first // ROW :])
            # A sum of products in plain loops over the rows, in order: no BLAS, no extra buffer.
            result = target if start == begin else part
            np.einsum("i,ij->j", terms.factors[start:stop], rows[: stop - start], out=result)
            if start > begin:
                np.add(target, part, out=target)
        if begin:
            _two_sum(total, group, lost, spare, part)
    if count > GROUP:
        np.add(total, lost, out=total)


def _by_base(bases: Sequence[Vector | None], rows: Floats) -> list[tuple[Vector, Floats]]:
    """Pair bases with the rows to subtract them from: all rows at once if they share one."""
    if bases[0] is not None and all(base is bases[0] for base in bases):
        return [(bases[0], rows[: len(bases)])]
    return [(base, row) for base, row in zip(bases, rows, strict=False) if base is not None]


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
