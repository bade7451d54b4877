"""Many flat updates seen as the rows of a matrix that is never built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Vector
from qsfl_flower.numerics.blocks import Floats, map_threads, threads_for

PARTS = 16
"""Runs of coordinates that threads share: fixed, so that no bit depends on how many share them."""

_SCRATCH = 1 << 18
"""Numbers in one scratch block: 2 MiB of float64, about what a core's cache holds."""


@dataclass(frozen=True, eq=False, repr=False)
class Updates:
    r"""The updates :math:`x_i = s_i (v_i - b_i)` of n clients, or mixtures of them.

    Parameters
    ----------
    vectors : Sequence[Vector]
        What the clients sent, n >= 1 vectors of d coordinates, in canonical order.
    bases : Sequence[Vector or None], optional
        What to subtract from each: the global model from a model, None from an update.
    scales : ndarray of float64, shape (n,) or (n, len(parts)), optional
        Factors, 1 by default; with `parts` one per part of the vector.
    parts : Sequence[slice]
        Consecutive coordinate ranges with factors of their own.
    mix : ndarray of float64, shape (m, n), optional
        If given, row i stands for :math:`\sum_j M_{ij} x_j`.
    """

    vectors: Sequence[Vector]
    bases: Sequence[Vector | None] | None = None
    scales: Floats | None = None
    parts: Sequence[slice] = ()
    mix: Floats | None = None

    def __post_init__(self) -> None:
        sizes = {v.size for v in (*self.vectors, *(self.bases or ())) if v is not None}
        if len(sizes) != 1 or (self.bases is not None and len(self.bases) != len(self.vectors)):
            raise ConfigError(
                f"{len(self.vectors)} updates of sizes {sorted(sizes)} are given; "
                "needed are at least one, all of one size, and one base each if any"
            )

    @classmethod
    def of(cls, matrix: NDArray[Any] | Sequence[NDArray[Any]]) -> Updates:
        """See the rows of a matrix as updates; nothing is copied."""
        return cls([Vector.dense(row) for row in matrix])

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.vectors) if self.mix is None else len(self.mix)

    @property
    def size(self) -> int:
        """The number d of coordinates."""
        return self.vectors[0].size

    def keep(self, rows: Sequence[int] | NDArray[np.intp]) -> Updates:
        """Return only some rows, in the order given."""
        if self.mix is not None:
            return replace(self, mix=self.mix[rows])
        return replace(
            self,
            vectors=[self.vectors[i] for i in rows],
            bases=None if self.bases is None else [self.bases[i] for i in rows],
            scales=None if self.scales is None else self.scales[rows],
        )

    def common_base(self) -> tuple[bool, Vector | None]:
        """Tell whether all rows are float32 less one common base, and which.

        Order statistics may then be taken of what was sent, since subtracting the same number from
        all values does not change their order.
        """
        if self.mix is not None or self.scales is not None:
            return False, None
        base = None if self.bases is None else self.bases[0]
        same = self.bases is None or all(b is base for b in self.bases)
        single = all(p.dtype == np.float32 for v in self.vectors for p in v.pieces)
        return same and single, base

    def read(self, lo: int, hi: int, out: NDArray[Any]) -> None:
        """Write the coordinates ``lo <= i < hi`` of all rows into `out`, shape (count, hi - lo).

        `out` is C-contiguous, and of float64 unless the rows are what float32 vectors hold.
        """
        if self.mix is not None:
            inner = np.empty((len(self.vectors), hi - lo))
            replace(self, mix=None).read(lo, hi, inner)
            np.matmul(self.mix, inner, out=out)
            return
        # One call for all rows: threads that return to the interpreter for each of them wait for
        # each other.
        spans = [span for vector in self.vectors for span in vector.spans(lo, hi)]
        np.concatenate(spans, out=out.reshape(-1, copy=False))
        if self.bases is not None:
            spare = values = np.empty(hi - lo)
            known = None
            for base, row in zip(self.bases, out, strict=True):
                if base is not None:
                    if base is not known:
                        known, values = base, base.view(lo, hi, spare)
                    np.subtract(row, values, out=row)
        if self.scales is not None:
            self._scale(lo, hi, out, self.scales)

    def blocks(
        self, lo: int, hi: int, dtype: type[np.floating[Any]] = np.float64
    ) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Read the coordinates ``lo <= i < hi`` of all rows block by block.

        Yields
        ------
        start, stop, block
            Borders, and the rows between them; the next block takes their place.
        """
        width = self.width()
        scratch = np.empty(self.count * min(width, hi - lo), dtype)
        for start in range(lo, hi, width):
            stop = min(start + width, hi)
            block = scratch[: self.count * (stop - start)].reshape(self.count, -1)
            self.read(start, stop, block)
            yield start, stop, block

    def _scale(self, lo: int, hi: int, out: Floats, scales: Floats) -> None:
        if scales.ndim == 1:
            np.multiply(out, scales[:, np.newaxis], out=out)
            return
        for index, part in enumerate(self.parts):
            span = out[:, max(part.start - lo, 0) : max(part.stop - lo, 0)]
            np.multiply(span, scales[:, index : index + 1], out=span)

    def sum(self, weights: Floats, *, threads: int | None = None) -> Floats:
        r"""Return :math:`\sum_i w_i x_i`, added up in float64 row by row.

        With unit round-off :math:`u = 2^{-53}` each coordinate is known to
        :math:`(n + 2)\,u \sum_i |w_i x_i|`, and its bits are the same on every run. Rows of weight
        zero are not looked at: they may hold anything. The common base is subtracted once.
        """
        weights = weights if self.mix is None else weights @ self.mix
        rows = np.flatnonzero(weights)
        out = np.zeros(self.size)
        if not rows.size:
            return out
        whole = self.scales is None or self.scales.ndim == 1
        for index, part in enumerate([slice(0, self.size)] if whole else self.parts):
            scales = 1.0 if self.scales is None else self.scales if whole else self.scales[:, index]
            vectors, factors = self._terms(rows, weights * scales)
            chosen = Updates(vectors)

            def work(
                number: int, lo: int, hi: int, chosen: Updates = chosen, factors: Floats = factors
            ) -> None:
                del number
                # New threads begin with NumPy's default error handling.
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                    for start, stop, block in chosen.blocks(lo, hi):
                        # Plain loops over the rows, in order: no BLAS, no further buffer.
                        np.einsum("i,ij->j", factors, block, out=out[start:stop])

            each_part(chosen, threads, work, part)
        return out

    def _terms(self, rows: NDArray[np.intp], factors: Floats) -> tuple[list[Vector], Floats]:
        vectors, chosen = [self.vectors[i] for i in rows], [float(factors[i]) for i in rows]
        for base in dict.fromkeys(() if self.bases is None else self.bases):
            if base is not None and self.bases is not None:
                vectors.append(base)
                chosen.append(-float(sum(factors[i] for i in rows if self.bases[i] is base)))
        return vectors, np.array(chosen)

    def width(self) -> int:
        """Return how many coordinates of all rows to look at together.

        An odd number of cache lines: rows a power of two apart would share a few sets of the cache.
        """
        share = max(2048, self.size // 96)
        fitting = min(_SCRATCH // max(self.count, len(self.vectors)), share)
        return max(1024, min(16384, fitting)) // 32 * 32 + 16


def each_part(
    updates: Updates,
    threads: int | None,
    work: Callable[[int, int, int], None],
    within: slice | None = None,
) -> None:
    """Call ``work(part, lo, hi)`` on at most `PARTS` runs of coordinates, all or those `within`.

    Their borders depend only on the shape of the updates. By default there is one thread where
    blocks are small: NumPy's work on one is over before threads have agreed on whose turn it is.
    """
    first, end = (0, updates.size) if within is None else (within.start, within.stop)
    width = updates.width()
    blocks = -(-(end - first) // width)
    count = max(1, min(PARTS, blocks))
    borders = [min(end, first + width * (blocks * part // count)) for part in range(count)]
    borders.append(end)
    small = threads is None and updates.count * width < _SCRATCH // 2
    map_threads(
        lambda part: work(part, borders[part], borders[part + 1]),
        range(count),
        threads_for(1 if small else count, threads),
    )
