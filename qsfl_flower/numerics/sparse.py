"""A flat vector of which few coordinates are not zero, read like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.vector import Vector


class SparseVector(Vector):
    """Values at given coordinates, zero elsewhere; summed block by block without becoming dense.

    Parameters
    ----------
    size : int
        Number of coordinates, zeros included.
    indices : ndarray of integer, shape (k,)
        The coordinates of the values, strictly increasing, within ``0 <= i < size``.
    values : ndarray of float, shape (k,)
        Neither array is copied or written to.
    """

    __slots__ = ("indices", "values")

    def __init__(self, size: int, indices: NDArray[Any], values: NDArray[Any]) -> None:
        super().__init__([values])
        if (
            indices.shape != values.shape
            or indices.dtype.kind not in "iu"
            or (indices.size and not 0 <= int(indices[0]) <= int(indices[-1]) < size)
            or not np.all(indices[1:] > indices[:-1])
        ):
            raise ConfigError(
                f"{values.size} values need as many increasing indices below {size}; "
                f"got {indices.size} of {indices.dtype}"
            )
        self.size = size
        self.indices = indices
        self.values = values

    def read(self, lo: int, hi: int, out: NDArray[np.float64]) -> None:
        """Write the coordinates ``lo <= i < hi`` as float64 into `out`, of shape ``(hi - lo,)``."""
        if not 0 <= lo <= hi <= self.size or out.shape != (hi - lo,):
            raise ConfigError(
                f"coordinates {lo} to {hi} of a vector of {self.size} "
                f"do not fit a buffer of shape {out.shape}"
            )
        first, last = np.searchsorted(self.indices, (lo, hi))
        out.fill(0.0)
        out[self.indices[first:last] - lo] = self.values[first:last]

    def spans(self, lo: int, hi: int) -> list[NDArray[Any]]:
        """Return the coordinates ``lo <= i < hi`` as one new array."""
        out = np.empty(hi - lo)
        self.read(lo, hi, out)
        return [out]

    def view(self, lo: int, hi: int, spare: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the coordinates ``lo <= i < hi``, read into `spare`."""
        self.read(lo, hi, spare)
        return spare
