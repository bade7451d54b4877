"""Attacks that hide in the spread of the honest updates.

References
----------
G. Baruch, M. Baruch, Y. Goldberg, "A little is enough: circumventing defenses for distributed
learning", 2019. arXiv:1902.06156 (ALIE).
C. Xie, O. Koyejo, I. Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
manipulation", 2020. arXiv:1903.03936.
S. P. Karimireddy, L. He, M. Jaggi, "Byzantine-robust learning on heterogeneous datasets via
bucketing", 2022. arXiv:2006.09365 (mimic).
V. Shejwalkar, A. Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and
defenses for federated learning", 2021. doi:10.14722/ndss.2021.24498 (min-max, min-sum).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from statistics import NormalDist

import numpy as np

from qsfl_flower.mechanisms.robust.attacks import (
    AlieOptions,
    InnerProductOptions,
    MimicOptions,
    MinMaxOptions,
    MinSumOptions,
)
from qsfl_flower.mechanisms.robust.core.attacks.base import (
    Collusion,
    Floats,
    View,
)


class Alie(Collusion, AlieOptions):
    r"""A little is enough: send :math:`\mu - z \sigma` coordinate by coordinate.

    Parameters
    ----------
    z : float, optional
        Standard deviations from the mean, > 0. By default the largest with which enough honest
        clients are still further out: :math:`\Phi(z) = (n - f - s) / (n - f)` where
        :math:`s = \lfloor n/2 + 1 \rfloor - f` honest clients are needed for a majority.
    knowledge : {"all", "colluders"}
        Whose updates give mean and deviation.
    """

    name = "alie"

    def craft(self, view: View) -> Floats:
        """Return the mean shifted by z deviations."""
        z = largest_hidden(view.clients, view.attackers) if self.z is None else self.z
        sent: Floats = view.known.mean(axis=0) - z * view.known.std(axis=0)
        return sent


def largest_hidden(clients: int, attackers: int) -> float:
    """Return the default of ALIE's z for n clients and f attackers; at least 0."""
    honest = clients - attackers
    needed = clients // 2 + 1 - attackers
    share = (honest - needed) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if 0 < share < 1 else 0.0


class InnerProduct(Collusion, InnerProductOptions):
    r"""Send :math:`-\varepsilon \mu`: a sum with a negative inner product with the honest mean.

    Parameters
    ----------
    epsilon : float
        Small ones stay close to the honest updates, large ones reverse the mean, > 0.
    knowledge : {"all", "colluders"}
        Whose updates give the mean.
    """

    name = "inner-product"

    def craft(self, view: View) -> Floats:
        """Return the negated mean."""
        sent: Floats = -self.epsilon * view.known.mean(axis=0)
        return sent


class Mimic(Collusion, MimicOptions):
    """Copy the honest client that differs most, so that it counts f + 1 times.

    Nothing about the copy is malformed; it hurts rules that already prefer some clients when data
    differ. The copied client is the furthest along the direction in which the known updates vary
    most (Karimireddy et al. learn that direction over several rounds; here it is that of the
    round).

    Parameters
    ----------
    knowledge : {"all", "colluders"}
        Whose updates can be copied.
    """

    name = "mimic"

    def craft(self, view: View) -> Floats:
        """Return a copy of one known update."""
        centred = view.known - view.known.mean(axis=0)
        # The largest eigenvector of the small Gram matrix holds the clients' positions along the
        # direction of largest variance, up to one common factor.
        _, vectors = np.linalg.eigh(centred @ centred.T)
        copied: Floats = view.known[int(np.argmax(np.abs(vectors[:, -1])))].copy()
        return copied


class _MinDistance(Collusion, MinMaxOptions):
    r"""Send :math:`\mu + \gamma p` with the largest :math:`\gamma` that a distance allows.

    Parameters
    ----------
    direction : {"std", "unit", "sign"}
        The direction p: minus the coordinates' standard deviations, minus the mean's unit vector,
        or minus its signs.
    knowledge : {"all", "colluders"}
        Whose updates are known.
    """

    def craft(self, view: View) -> Floats:
        """Return the mean pushed as far as it stays unsuspicious."""
        mean: Floats = view.known.mean(axis=0)
        step = self._direction(view.known, mean)
        away = mean - view.known
        square = float(step @ step)
        gram = away @ away.T
        diagonal = gram.diagonal()
        between = np.maximum(diagonal[:, None] + diagonal[None, :] - 2 * gram, 0.0)
        if square == 0.0:
            return mean
        return mean + self._largest(square, away @ step, diagonal, between) * step

    def _direction(self, known: Floats, mean: Floats) -> Floats:
        if self.direction == "std":
            direction: Floats = known.std(axis=0)
        elif self.direction == "sign":
            direction = np.sign(mean)
        else:
            direction = mean / (float(np.linalg.norm(mean)) or 1.0)
        return -direction

    @abstractmethod
    def _largest(self, square: float, along: Floats, apart: Floats, between: Floats) -> float:
        """Return the factor, given |p|^2, (mu - x_i) p, |mu - x_i|^2 and |x_i - x_j|^2."""


class MinMax(_MinDistance):
    """No honest update is further from the poison than the two furthest honest ones are apart.

    The paper searches for the factor; each distance is a quadratic in it, so it is solved exactly.
    """

    name = "min-max"

    def _largest(self, square: float, along: Floats, apart: Floats, between: Floats) -> float:
        limit = float(between.max())
        return min(
            _root(square, float(b), float(c) - limit) for b, c in zip(along, apart, strict=True)
        )


class MinSum(_MinDistance, MinSumOptions):
    """The poison's squared distances sum up to no more than those of some honest update.

    Solved exactly, as for `MinMax`.
    """

    name = "min-sum"

    def _largest(self, square: float, along: Floats, apart: Floats, between: Floats) -> float:
        count = len(apart)
        limit = float(between.sum(axis=1).max())
        return _root(count * square, float(along.sum()), float(apart.sum()) - limit)


def _root(a: float, b: float, c: float) -> float:
    """Return the largest x >= 0 with a x^2 + 2 b x + c <= 0, or 0; a > 0."""
    inside = b * b - a * c
    return max(0.0, (-b + math.sqrt(inside)) / a) if inside > 0 else 0.0
