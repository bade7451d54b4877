"""Weighted sums of many vectors with an error that does not grow with their number.

The sum is blocked fast-and-accurate summation: small groups of products are added plainly in float64, and the sums of
the groups are added with compensation.

References
----------
P. Blanchard, N. J. Higham, T. Mary, "A class of fast and accurate summation algorithms", SIAM J. Sci. Comput., 2020.
T. Ogita, S. M. Rump, S. Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput., 2005 (TwoSum cascade).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.vector import Vector

Floats = NDArray[np.float64]

BLOCK = 32_768
"""Coordinates worked on at a time: the buffers of a block (256 KiB each) stay in the cache of a core."""

GROUP = 16
"""Products added plainly before one compensated addition."""

MAX_THREADS = 4


def weighted_sum(
    vectors: Sequence[Vector],
    coefficients: Sequence[float] | Floats,
    *,
    lo: int = 0,
    hi: int | None = None,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    r"""Compute :math:`\sum_i c_i v_i` coordinate by coordinate in float64.

    With unit round-off :math:`u = 2^{-53}` and groups of :math:`g = 16`, each coordinate satisfies
    :math:`|\hat s - s| \le (g + 2)\,u \sum_i |c_i v_i| + O(n^2 u^2)`, whatever the number n of vectors.

    Every coordinate goes through the same additions and multiplications, all of them correctly rounded, in the order
    in which the vectors are given. The result therefore has the same bits for any number of threads and on any
    processor; another order of the vectors may change the last bits, so callers sort by client first.

    Parameters
    ----------
    vectors : sequence of Vector
        Finite vectors of equal size.
    coefficients : sequence of float
        One finite factor per vector.
    lo, hi : int
        Only the coordinates ``lo <= i < hi`` are computed.
    threads : int, optional
        Number of threads over disjoint coordinates; by default one per core, at most 4.
    out : ndarray of float64, shape (hi - lo,), optional
        Where to put the result.

    Returns
    -------
    ndarray of float64, shape (hi - lo,)
        The sum; infinite where it exceeds the range of float64.

    Raises
    ------
    ConfigError
        If there is no vector, or the sizes do not fit.
    """
    factors = [float(c) for c in coefficients]
    if not vectors or len(vectors) != len(factors):
        raise ConfigError(
            f"{len(vectors)} vectors and {len(factors)} coefficients: one each, at least one, is needed"
        )
    size = vectors[0].size
    if any(vector.size != size for vector in vectors):
        raise ConfigError(f"the vectors have different sizes: {sorted({v.size for v in vectors})}")
    hi = size if hi is None else hi
    if not 0 <= lo <= hi <= size:
        raise ConfigError(f"coordinates {lo} to {hi} are not within a vector of {size}")
    out = np.empty(hi - lo) if out is None else out
    if out.shape != (hi - lo,) or out.dtype != np.float64:
        raise ConfigError(
            f"the output needs shape {(hi - lo,)} and float64, it has {out.shape} and {out.dtype}"
        )

    blocks = range(lo, hi, BLOCK)
    workers = max(1, min(len(blocks), _cores() if threads is None else threads))

    def work(first: int) -> None:
        scratch = _Scratch()
        for start in blocks[first::workers]:
            stop = min(start + BLOCK, hi)
            _sum_block(vectors, factors, start, out[start - lo : stop - lo], scratch)

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return out


class CompensatedSum:
    r"""A running sum :math:`\sum_i c_i v_i` for callers that see one vector at a time.

    The state is two float64 vectors: the sum and what its roundings lost. The bound of `weighted_sum` holds with
    :math:`g = 1`.

    Parameters
    ----------
    size : int
        Number of coordinates.
    """

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self._lost = np.zeros(size)

    def add(self, vector: Vector, coefficient: float) -> None:
        """Add ``coefficient * vector``; the vector is finite and has the size of the sum."""
        if vector.size != self._sum.size:
            raise ConfigError(
                f"a vector of {vector.size} coordinates does not fit a sum of {self._sum.size}"
            )
        scratch = _Scratch()
        for start in range(0, vector.size, BLOCK):
            stop = min(start + BLOCK, vector.size)
            term, spare = scratch.term[: stop - start], scratch.spare[: stop - start]
            vector.read(start, stop, term)
            np.multiply(term, coefficient, out=term)
            _two_sum(
                self._sum[start:stop],
                term,
                self._lost[start:stop],
                spare,
                scratch.next[: stop - start],
            )

    def value(self) -> Floats:
        """Return the sum as a new vector."""
        return self._sum + np.where(np.isfinite(self._lost), self._lost, 0.0)


class _Scratch:
    """The buffers of one thread."""

    def __init__(self) -> None:
        self.term, self.group, self.spare, self.next, self.lost = (
            np.empty(BLOCK) for _ in range(5)
        )


def _sum_block(
    vectors: Sequence[Vector],
    factors: Sequence[float],
    start: int,
    total: Floats,
    scratch: _Scratch,
) -> None:
    """Write the sum over all vectors of the coordinates from `start` into `total`."""
    count = total.size
    term, group, lost = scratch.term[:count], scratch.group[:count], scratch.lost[:count]
    for first in range(0, len(vectors), GROUP):
        target = total if first == 0 else group
        for position in range(first, min(first + GROUP, len(vectors))):
            buffer = target if position == first else term
            vectors[position].read(start, start + count, buffer)
            np.multiply(buffer, factors[position], out=buffer)
            if position > first:
                np.add(target, term, out=target)
        if first == GROUP:
            lost.fill(0.0)
        if first:
            _two_sum(total, group, lost, scratch.spare[:count], scratch.next[:count])
    if len(vectors) > GROUP:
        if not np.isfinite(lost).all():  # the sum itself overflowed; keep its infinity
            lost[~np.isfinite(lost)] = 0.0
        np.add(total, lost, out=total)


def _two_sum(total: Floats, term: Floats, lost: Floats, spare: Floats, rounded: Floats) -> None:
    """Add `term` to `total` and the exact rounding error of that addition to `lost` (Knuth's TwoSum)."""
    with np.errstate(invalid="ignore", over="ignore"):
        np.add(total, term, out=rounded)
        np.subtract(rounded, total, out=spare)
        np.subtract(term, spare, out=term)
        np.subtract(rounded, spare, out=spare)
        np.subtract(total, spare, out=spare)
        np.add(spare, term, out=spare)
        np.add(lost, spare, out=lost)
        np.copyto(total, rounded)


def _cores() -> int:
    return min(
        MAX_THREADS,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
