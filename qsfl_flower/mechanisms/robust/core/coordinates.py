"""Rules that look at every coordinate by itself: medians and trimmed means.

Blocks of many rows are transposed, so that the n values of one coordinate lie side by side, and
sorted there by NumPy's vectorized sort; few rows are sorted as they are, by a network of minima and
maxima of two rows. Models of float32 are sorted as they were sent: subtracting the same number from
all values does not change their order, so the global model is subtracted from the result.

References
----------
D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-robust distributed learning: towards
optimal statistical rates", 2018. arXiv:1803.01498.
C. Xie, O. Koyejo, I. Gupta, "Generalized Byzantine-tolerant SGD", 2018. arXiv:1802.10116 (mean
around the median).
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.rule import Aggregate, NotFinite, Rule
from qsfl_flower.mechanisms.robust.core.updates import Updates, each_part
from qsfl_flower.numerics.blas import one_blas_thread
from qsfl_flower.numerics.blocks import Floats

SMALL = 12
"""Up to so many rows are sorted by a network of minima and maxima."""


class CoordinateRule(Rule):
    """A rule of which each coordinate of the result depends on that coordinate of the updates."""

    lazy = True

    @abstractmethod
    def combine(self, ranks: NDArray[Any], f: int) -> Floats:
        """Return one number per column of `ranks`, shape (n, coordinates), each sorted."""

    def aggregate(self, geometry: Geometry, f: int) -> Aggregate:
        """Sort and combine block by block."""
        updates = geometry.updates
        sent, base = updates.common_base()
        count, width = updates.count, updates.width()
        out = np.empty(updates.size)
        dtype = np.float32 if sent else np.float64
        source = Updates(updates.vectors) if sent else updates

        def work(part: int, lo: int, hi: int) -> None:
            del part
            spare = np.empty(width * (count + 1), dtype)
            shift = np.empty(0 if base is None else width)
            for start, stop, block in source.blocks(lo, hi, dtype):
                ranks = sort_columns(block, spare)
                # NaN is sorted to the end, or spreads through the network to both ends.
                if not (np.isfinite(ranks[0]) & np.isfinite(ranks[-1])).all():
                    raise NotFinite("an update holds NaN or infinity")
                result = self.combine(ranks, f)
                if base is not None:
                    result = result - base.view(start, stop, shift[: stop - start])
                np.add(result, 0.0, out=out[start:stop])  # turns -0 into 0

        # Mixtures are matrix products.
        with nullcontext() if updates.mix is None else one_blas_thread():
            each_part(updates, geometry.threads, work)
        return Aggregate(out, f, np.ones(count, np.bool_))


@dataclass(frozen=True)
class Median(CoordinateRule):
    """The median of each coordinate; of an even number the mean of the two in the middle."""

    name = "median"

    def combine(self, ranks: NDArray[Any], f: int) -> Floats:
        """Take the middle."""
        del f
        count = len(ranks)
        low, high = (ranks[rank].astype(np.float64) for rank in ((count - 1) // 2, count // 2))
        return np.asarray((low + high) / 2)


@dataclass(frozen=True)
class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its f smallest and its f largest values.

    Parameters
    ----------
    share : float, optional
        Which share of the updates to assume as liars instead of `num_byzantine`, in [0, 0.5).
    """

    share: float | None = None

    name = "trimmed_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and not 0 <= self.share < 0.5:
            raise ConfigError(f"share is {self.share!r}; allowed is a number in [0, 0.5)")

    def liars(self, count: int, rows: int) -> int:
        """Return f, rounded down where a share is given."""
        return super().liars(count, rows) if self.share is None else int(self.share * rows)

    def combine(self, ranks: NDArray[Any], f: int) -> Floats:
        """Add up the middle."""
        count = len(ranks)
        return sums(ranks[f : count - f]) / (count - 2 * f)


@dataclass(frozen=True)
class MeaMed(CoordinateRule):
    """The mean of the n - f values of each coordinate that are closest to its median."""

    name = "meamed"

    def combine(self, ranks: NDArray[Any], f: int) -> Floats:
        """Average around the median."""
        return around_median(ranks, len(ranks) - f)


@dataclass(frozen=True)
class Around(CoordinateRule):
    """The mean of the m values of each coordinate that are closest to its median."""

    m: int = 1

    name = "around_median"

    def combine(self, ranks: NDArray[Any], f: int) -> Floats:
        """Average around the median."""
        del f
        return around_median(ranks, self.m)


def around_median(ranks: NDArray[Any], m: int) -> Floats:
    r"""Return the mean of the m values closest to the median in each column of sorted values.

    They are neighbours in the order: those from rank s on, where s is the number of ranks r with
    :math:`\mu - x_r > x_{r+m} - \mu`. Of two equally distant values the lower one counts.
    """
    rest = len(ranks) - m
    middle = Median().combine(ranks, 0)
    chosen = ranks[:m].astype(np.float64)
    for start in range(0, rest, m):
        low = ranks[start : min(start + m, rest)]
        high = ranks[start + m : min(start + m, rest) + m]
        np.copyto(chosen[: len(low)], high, where=middle - low > high - middle)
    return sums(chosen) / m


def sums(values: NDArray[Any]) -> Floats:
    """Add up each column in float64."""
    return np.asarray(np.einsum("ij->j", values, dtype=np.float64, casting="safe"))


def sort_columns(block: NDArray[Any], spare: NDArray[Any]) -> NDArray[Any]:
    """Return `block`, shape (n, coordinates), with every column sorted.

    The result lies in `spare`, which has room for it and one row more; `block` is written over.
    """
    count, length = block.shape
    if count > SMALL:
        turned = spare[: block.size].reshape(length, count)
        np.copyto(turned, block.T)
        turned.sort(axis=1)
        return turned.T
    rows, free = list(block), spare[block.size : block.size + length]
    for i, j in network(count):
        low, high = rows[i], rows[j]
        np.minimum(low, high, out=free)
        np.maximum(low, high, out=high)
        rows[i], free = free, low
    ranks = spare[: block.size].reshape(count, length)
    return np.stack(rows, out=ranks)


@cache
def network(count: int) -> list[tuple[int, int]]:
    """Return which two of `count` values to put in order, one after the other, to sort them all.

    References
    ----------
    K. E. Batcher, "Sorting networks and their applications", 1968. doi:10.1145/1468075.1468121
    (odd-even merging).
    D. E. Knuth, "The art of computer programming", volume 3, 1973 (for any number of values).
    """
    pairs, run = [], 1
    while run < count:
        apart = run
        while apart:
            for start in range(apart % run, count - apart, 2 * apart):
                for i in range(start, min(start + apart, count - apart)):
                    if i // (2 * run) == (i + apart) // (2 * run):
                        pairs.append((i, i + apart))
            apart //= 2
        run *= 2
    return pairs
