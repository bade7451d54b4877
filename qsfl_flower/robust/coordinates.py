"""Rules that look at every coordinate by itself: medians and trimmed means.

Blocks of coordinates are transposed, so that the n values of one coordinate lie side by side, and
sorted there by NumPy's vectorised sort. Models of float32 are sorted as they were sent: subtracting
the same number from all values does not change their order, so the global model is subtracted from
the result.

References
----------
D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-robust distributed learning: towards
optimal statistical rates", ICML 2018.
C. Xie, O. Koyejo, I. Gupta, "Generalized Byzantine-tolerant SGD", 2018 (mean around the median).
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.blas import one_blas_thread
from qsfl_flower.numerics.blocks import Floats
from qsfl_flower.robust.geometry import Geometry
from qsfl_flower.robust.rule import Aggregate, NotFinite, Rule
from qsfl_flower.robust.updates import Updates, each_part


class CoordinateRule(Rule):
    """A rule of which each coordinate of the result depends on that coordinate of the updates."""

    lazy = True

    @abstractmethod
    def combine(self, ascending: NDArray[Any], f: int) -> Floats:
        """Return one number per row of `ascending`, shape (coordinates, n), sorted in each row."""

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
            turned = np.empty((width, count), dtype)
            shift = np.empty(0 if base is None else width)
            for start, stop, block in source.blocks(lo, hi, dtype):
                ascending = turned[: stop - start]
                np.copyto(ascending, block.T)
                ascending.sort(axis=1)
                # NaN is sorted to the end.
                if not (np.isfinite(ascending[:, 0]) & np.isfinite(ascending[:, -1])).all():
                    raise NotFinite("an update holds NaN or infinity")
                result = self.combine(ascending, f)
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

    def combine(self, ascending: NDArray[Any], f: int) -> Floats:
        """Take the middle."""
        del f
        count = ascending.shape[1]
        low, high = (
            ascending[:, rank].astype(np.float64) for rank in ((count - 1) // 2, count // 2)
        )
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

    def combine(self, ascending: NDArray[Any], f: int) -> Floats:
        """Add up the middle."""
        count: int = ascending.shape[1]
        return row_sums(ascending[:, f : count - f]) / (count - 2 * f)


@dataclass(frozen=True)
class MeaMed(CoordinateRule):
    """The mean of the n - f values of each coordinate that are closest to its median."""

    name = "meamed"

    def combine(self, ascending: NDArray[Any], f: int) -> Floats:
        """Average around the median."""
        return around_median(ascending, ascending.shape[1] - f)


@dataclass(frozen=True)
class Around(CoordinateRule):
    """The mean of the m values of each coordinate that are closest to its median."""

    m: int = 1

    name = "around_median"

    def combine(self, ascending: NDArray[Any], f: int) -> Floats:
        """Average around the median."""
        del f
        return around_median(ascending, self.m)


def around_median(ascending: NDArray[Any], m: int) -> Floats:
    r"""Return the mean of the m values closest to the median in each row of sorted values.

    They are neighbours in the order: those from rank s on, where s is the number of ranks r with
    :math:`\mu - x_r > x_{r+m} - \mu`. Of two equally distant values the lower one counts.
    """
    rest = ascending.shape[1] - m
    middle = Median().combine(ascending, 0)[:, np.newaxis]
    chosen = ascending[:, :m].astype(np.float64)
    for start in range(0, rest, m):
        low = ascending[:, start : min(start + m, rest)]
        high = ascending[:, start + m : min(start + m, rest) + m]
        np.copyto(chosen[:, : low.shape[1]], high, where=middle - low > high - middle)
    return row_sums(chosen) / m


def row_sums(values: NDArray[Any]) -> Floats:
    """Add up each row in float64."""
    return np.asarray(np.einsum("ij->i", values, dtype=np.float64, casting="safe"))
