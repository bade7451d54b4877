"""What the rules look at: norms, inner products and distances, measured when first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.robust.core.distances import dots, gram, squared_distances
from qsfl_flower.mechanisms.robust.core.updates import Updates
from qsfl_flower.numerics.blocks import Floats


@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """The shape of a cloud of updates.

    Parameters
    ----------
    updates : Updates
        n rows of d coordinates.
    threads : int, optional
        Threads over coordinates; by default one per core, at most four.
    """

    updates: Updates
    threads: int | None = None

    @cached_property
    def products(self) -> Floats:
        """Inner products of all pairs, shape (n, n)."""
        return gram(self.updates, threads=self.threads)

    @cached_property
    def distances(self) -> Floats:
        """Squared distances of all pairs, shape (n, n)."""
        return squared_distances(self.updates, self.products, threads=self.threads)

    @cached_property
    def squares(self) -> Floats:
        """Square norms, shape (n,), without the products of pairs if nobody needed them yet."""
        if "products" in self.__dict__:
            return np.diag(self.products)
        return dots(self.updates, threads=self.threads)

    def keep(self, rows: NDArray[np.intp]) -> Geometry:
        """Return the geometry of some rows; nothing is measured again."""
        kept = Geometry(self.updates.keep(rows), self.threads)
        for name in ("products", "distances"):
            if name in self.__dict__:
                kept.__dict__[name] = self.__dict__[name][np.ix_(rows, rows)]
        if "squares" in self.__dict__:
            kept.__dict__["squares"] = self.squares[rows]
        return kept

    def mixed(self, mix: Floats) -> Geometry:
        r"""Return the geometry of mixtures of the rows; nothing is measured again.

        With :math:`u = M_i - M_j`, whose entries sum to zero, the squared distance of two mixtures
        is :math:`-\frac12 u^\top D u`.

        Parameters
        ----------
        mix : ndarray of float64, shape (m, n)
            Rows that sum to 1.
        """
        kept = Geometry(
            Updates(
                self.updates.vectors,
                self.updates.bases,
                self.updates.scales,
                self.updates.parts,
                mix,
            ),
            self.threads,
        )
        distances = np.zeros((len(mix), len(mix)))
        for i, row in enumerate(mix):
            apart = row - mix
            distances[i] = np.maximum(-0.5 * np.vecdot(apart @ self.distances, apart), 0.0)
        kept.__dict__["distances"] = np.minimum(distances, distances.T)
        kept.__dict__["products"] = mix @ self.products @ mix.T
        return kept
