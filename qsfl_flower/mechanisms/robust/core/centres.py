r"""Rules that look for a centre step by step: geometric median and centered clipping.

Every centre they visit is a weighted sum of the updates, so the steps need only the inner products
of all pairs, and the updates are read once more at the end. Updates that are far away enter divided
by their distance, or their squares would take all digits from the near ones.

References
----------
K. Pillutla, S. Kakade, Z. Harchaoui, "Robust aggregation for federated learning", 2022.
arXiv:1912.13445 (smoothed Weiszfeld algorithm).
S. P. Karimireddy, L. He, M. Jaggi, "Learning from history for Byzantine robust optimization", 2021.
arXiv:2012.10333 (centered clipping).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.rule import Choice, LinearRule
from qsfl_flower.numerics.blocks import Floats

_TINY = 1e-150
"""Distances below this count as this."""

_FAR = 2.0**10
"""From this many median distances on, an update is far."""


class _Frame:
    """Inner products seen from an origin, each row divided by its own scale."""

    def __init__(self, products: Floats, far: Floats) -> None:
        self.scales = far
        self.products = products / far / far[:, np.newaxis]

    def distances(self, factors: Floats) -> Floats:
        """Return the distance of each row to the sum of the scaled rows times `factors`."""
        along = self.products @ factors
        squares = np.diag(self.products) * self.scales**2 - 2 * self.scales * along
        return np.sqrt(np.maximum(squares + factors @ along, 0.0))


def _scales(lengths: Floats) -> Floats:
    """Return what to divide each row by: its length in median lengths if it is far, else 1."""
    usual = float(np.median(lengths)) or float(lengths[lengths > 0].min(initial=np.inf))
    relative = lengths / usual
    return np.where(relative > _FAR, relative, 1.0)


@dataclass(frozen=True)
class GeometricMedian(LinearRule):
    r"""The point with the smallest sum of distances to the updates.

    Found by the smoothed Weiszfeld steps

    .. math:: z \leftarrow \sum_i w_i x_i / \sum_i w_i, \quad w_i = 1 / \max(\nu, \|x_i - z\|).

    The first z is the update with the smallest sum of distances.

    Parameters
    ----------
    smoothing : float
        The distance :math:`\nu` in units of the median distance to the first z, above 0.
    iterations : int
        Most steps, at least 1; they end earlier when the factors stand still.
    """

    smoothing: float = 1e-6
    iterations: int = 100

    name = "geometric_median"
    pairs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smoothing < np.inf or self.iterations < 1:
            raise ConfigError(
                f"smoothing is {self.smoothing!r} and iterations {self.iterations!r}; allowed are "
                "a finite number above 0 and at least 1"
            )

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Iterate; the score is the distance to the centre."""
        del f
        squares, products = geometry.distances, geometry.products
        apart = np.sqrt(squares)
        first = int(np.argmin(apart.sum(axis=1)))
        far = _scales(apart[first])
        # Products from the first row: by distances, which are exact for near rows, or directly.
        seen = (squares[first] + squares[first][:, np.newaxis] - squares) / 2
        away = far > 1
        direct = (products - products[first]) - (products[:, [first]] - products[first, first])
        seen = np.where(away | away[:, np.newaxis], direct, seen)
        frame = _Frame(seen, far)
        smallest = max(self.smoothing * float(np.median(apart[first])), _TINY)
        distances = apart[first]
        weights = np.zeros(len(far))
        for _ in range(self.iterations):
            previous = weights
            weights = 1 / np.maximum(distances, smallest)
            weights /= weights.sum()
            distances = frame.distances(weights * far)
            if np.abs((weights - previous) * far).max() < 1e-12:
                break
        return Choice(weights, distances)


@dataclass(frozen=True)
class CenteredClipping(LinearRule):
    r"""A centre that every update may pull by at most a radius.

    .. math:: z \leftarrow z + \frac1n \sum_i \min(1, \tau / \|x_i - z\|) (x_i - z).

    The first z is zero, for updates the global model.

    Parameters
    ----------
    radius : float, optional
        The radius :math:`\tau`, above 0; by default the median distance to z in each step.
    iterations : int
        Number of steps, at least 1.
    """

    radius: float | None = None
    iterations: int = 3

    name = "centered_clipping"
    anchored = True
    pairs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.radius is not None and not 0 < self.radius < np.inf) or self.iterations < 1:
            raise ConfigError(
                f"radius is {self.radius!r} and iterations {self.iterations!r}; allowed are "
                "a finite number above 0 and at least 1"
            )

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Iterate; the score is the distance to the centre."""
        del f
        distances = np.sqrt(np.diag(geometry.products))
        frame = _Frame(geometry.products, _scales(distances))
        factors = np.zeros(len(distances))
        for _ in range(self.iterations):
            radius = float(np.median(distances)) if self.radius is None else self.radius
            pull = np.minimum(1.0, radius / np.maximum(distances, _TINY))
            factors = (1 - pull.mean()) * factors + pull * frame.scales / len(pull)
            distances = frame.distances(factors)
        return Choice(factors / frame.scales, distances)
