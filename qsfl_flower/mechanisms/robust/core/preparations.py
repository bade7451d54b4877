"""Mix updates before a rule sees them, so that honest ones from different data look alike.

References
----------
S. P. Karimireddy, L. He, M. Jaggi, "Byzantine-robust learning on heterogeneous datasets via
bucketing", 2022. arXiv:2006.09365.
Y. Allouah, S. Farhadkhani, R. Guerraoui, N. Gupta, R. Pinot, J. Stephan, "Fixing by mixing: a
recipe for optimal Byzantine ML under heterogeneity", 2023. arXiv:2302.01772 (nearest-neighbour
mixing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.rule import Mixing, Preparation


@dataclass(frozen=True)
class Bucketing(Preparation):
    """Means of random buckets; a liar spoils one bucket, so f stays as it is.

    Parameters
    ----------
    size : int
        Updates per bucket, at least 1; the last bucket may have fewer.
    seed : int
        Of the random order, which is the same for the same seed and number of updates.
    """

    size: int = 2
    seed: int = 0

    name = "bucketing"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size is {self.size!r}; allowed is at least 1")

    def rows(self, count: int) -> int:
        """Return the number of buckets."""
        return -(-count // self.size)

    def mixing(self, geometry: Geometry, f: int) -> Mixing:
        """Average each bucket."""
        del f
        count = geometry.updates.count
        buckets = np.empty(count, np.intp)
        order = np.random.default_rng(self.seed).permutation(count)
        buckets[order] = np.arange(count) // self.size
        matrix = np.zeros((self.rows(count), count))
        matrix[buckets, np.arange(count)] = 1.0
        return Mixing(matrix / matrix.sum(axis=1, keepdims=True), buckets)


@dataclass(frozen=True)
class NearestNeighbourMixing(Preparation):
    """Each update is replaced by the mean of the n - f updates closest to it, itself included."""

    name = "nnm"

    def rows(self, count: int) -> int:
        """Return as many as there are updates."""
        return count

    def mixing(self, geometry: Geometry, f: int) -> Mixing:
        """Average the nearest; of equally distant ones the first."""
        count = geometry.updates.count
        nearest = np.argsort(geometry.distances, axis=1, kind="stable")[:, : count - f]
        matrix = np.zeros((count, count))
        np.put_along_axis(matrix, nearest, 1 / (count - f), axis=1)
        return Mixing(matrix, np.arange(count))
