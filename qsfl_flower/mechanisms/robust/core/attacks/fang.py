"""Attacks on one rule each, with full knowledge.

References
----------
M. Fang, X. Cao, J. Jia, N. Z. Gong, "Local model poisoning attacks to Byzantine-robust federated
learning", 2020. arXiv:1911.11815 (the paper perturbs models, here updates are perturbed: models
relative to the round's global model).
"""

from __future__ import annotations

import math

import numpy as np

from qsfl_flower.mechanisms.robust.attacks import (
    FangKrumOptions,
    FangTrimmedMeanOptions,
)
from qsfl_flower.mechanisms.robust.core.attacks.base import Collusion, Floats, View

_SMALLEST = 1e-5
"""Below this step, relative to the first one, Krum cannot be fooled."""


class FangKrum(Collusion, FangKrumOptions):
    r"""Send :math:`-\lambda s` from all colluders, with the largest step that Krum would choose.

    s holds the signs of the honest mean. The step is halved until Krum, on the known updates and f
    copies of the poison, picks a copy; if it never does, the smallest step is sent.

    Parameters
    ----------
    knowledge : {"all", "colluders"}
        Whose updates are known.
    """

    name = "fang-krum"

    def craft(self, view: View) -> Floats:
        """Return the poison."""
        known, copies = view.known, view.attackers
        signs: Floats = np.sign(known.mean(axis=0))
        gram = known @ known.T
        squares = gram.diagonal()
        between = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
        along, size = known @ signs, float(signs @ signs)
        if size == 0.0:
            return np.zeros_like(view.own)
        neighbours = max(1, len(known) - 2)  # n - f - 2, with n - f known honest clients
        step = first = self._upper_bound(between, squares, size, neighbours, copies)
        while step > _SMALLEST * first:
            to_honest = squares + 2 * step * along + step * step * size
            if _chosen(between, to_honest, copies, neighbours):
                break
            step /= 2
        return -step * signs

    @staticmethod
    def _upper_bound(
        between: Floats, squares: Floats, size: float, neighbours: int, copies: int
    ) -> float:
        closest = np.sort(between, axis=1)[:, 1 : 1 + neighbours].sum(axis=1).min()
        honest_needed = max(1, neighbours - copies + 1)
        bound = math.sqrt(float(closest) / (honest_needed * size))
        return bound + math.sqrt(float(squares.max()) / size)


def _chosen(between: Floats, to_honest: Floats, copies: int, neighbours: int) -> bool:
    """Tell whether Krum prefers a copy of the poison to every honest update."""
    honest_needed = max(0, neighbours - (copies - 1))
    own = float(np.sort(to_honest)[:honest_needed].sum())
    repeated = np.repeat(to_honest[:, None], copies, axis=1)
    others = np.sort(np.hstack([between, repeated]), axis=1)[:, 1 : 1 + neighbours].sum(axis=1)
    return own < float(others.min())


class FangTrimmedMean(Collusion, FangTrimmedMeanOptions):
    """Send values just outside the honest ones, on the side where the honest mean does not go.

    Where the mean would grow, the values are drawn from between the honest minimum m and m / b or
    b m, whichever is below; where it would fall, from above the maximum. It is aimed at the trimmed
    mean and the median.

    Parameters
    ----------
    spread : float
        The factor b, > 1.
    knowledge : {"all", "colluders"}
        Whose updates are known.
    """

    name = "fang-trimmed-mean"

    def craft(self, view: View) -> Floats:
        """Return the poison; each colluder draws its own."""
        grows = view.known.mean(axis=0) > 0
        edge: Floats = np.where(grows, view.known.min(axis=0), view.known.max(axis=0))
        outward = (edge > 0) != grows  # away from zero is away from the honest values
        far = np.where(outward, self.spread * edge, edge / self.spread)
        sent: Floats = edge + view.rng.random(edge.size) * (far - edge)
        return sent
