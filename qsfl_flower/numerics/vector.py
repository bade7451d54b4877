"""A flat vector in pieces: a client's arrays read as one vector without joining them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.layout import Layout


class Vector:
    """A sequence of one-dimensional float arrays, read as one vector of float64.

    Parameters
    ----------
    pieces : iterable of ndarray
        One-dimensional arrays of float16, float32 or float64. They are referred to, not copied,
        and never written to.
    """

    __slots__ = ("_pieces", "_starts", "size")

    def __init__(self, pieces: Iterable[NDArray[Any]]) -> None:
        self._pieces = [piece for piece in pieces if piece.size]
        self._starts: list[int] = []
        self.size = 0
        for piece in self._pieces:
            if piece.ndim != 1 or piece.dtype.kind != "f":
                raise ConfigError(
                    f"a piece has shape {piece.shape} and dtype {piece.dtype}; "
                    "allowed are one-dimensional float arrays"
                )
            self._starts.append(self.size)
            self.size += piece.size

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], layout: Layout) -> Vector:
        """Read the float arrays of a model in the layout's order.

        The arrays are taken as they are: check them with `Layout.check` first.
        """
        return cls(arrays[name].reshape(-1) for name in layout.slices)

    @classmethod
    def dense(cls, values: NDArray[Any]) -> Vector:
        """Read one flat array."""
        return cls([values])

    @property
    def pieces(self) -> Sequence[NDArray[Any]]:
        """The arrays that the vector is made of, empty ones left out."""
        return self._pieces

    def read(self, lo: int, hi: int, out: NDArray[np.float64]) -> None:
        """Write the coordinates ``lo <= i < hi`` as float64 into `out`, of shape ``(hi - lo,)``."""
        if not 0 <= lo <= hi <= self.size or out.shape != (hi - lo,):
            raise ConfigError(
                f"coordinates {lo} to {hi} of a vector of {self.size} "
                f"do not fit a buffer of shape {out.shape}"
            )
        if len(self._pieces) == 1:  # with thousands of vectors the search below would show
            out[:] = self._pieces[0][lo:hi]
            return
        position = 0
        for span in self.spans(lo, hi):
            out[position : position + span.size] = span
            position += span.size

    def spans(self, lo: int, hi: int) -> list[NDArray[Any]]:
        """Return the coordinates ``lo <= i < hi`` as views, one of each array that holds some."""
        if len(self._pieces) == 1:
            return [self._pieces[0][lo:hi]]
        found, index = [], bisect_right(self._starts, lo) - 1
        while lo < hi:
            piece, start = self._pieces[index], self._starts[index]
            stop = min(hi, start + piece.size)
            found.append(piece[lo - start : stop - start])
            lo, index = stop, index + 1
        return found

    def view(self, lo: int, hi: int, spare: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the coordinates ``lo <= i < hi``, not to be written to.

        They are a view if the vector is one piece of float64, else they are read into `spare`.
        """
        if len(self._pieces) == 1 and self._pieces[0].dtype == np.float64:
            return self._pieces[0][lo:hi]
        self.read(lo, hi, spare)
        return spare
