"""Rules that choose among the updates by their distances to each other or by their norms.

References
----------
P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries:
Byzantine tolerant gradient descent", 2017. arXiv:1703.02757 (Krum, Multi-Krum).
E. M. El Mhamdi, R. Guerraoui, S. Rouault, "The hidden vulnerability of distributed learning in
Byzantium", 2018. arXiv:1802.07927 (Bulyan, minimum-diameter averaging).
N. Gupta, S. Liu, N. Vaidya, "Byzantine fault-tolerant distributed machine learning using stochastic
gradient descent (SGD) and norm-based comparative gradient elimination (CGE)", 2021.
arXiv:2008.04699.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.coordinates import Around
from qsfl_flower.mechanisms.robust.core.diameter import smallest_diameter
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.krum import bulyan_select, krum_scores, multi_krum_select
from qsfl_flower.mechanisms.robust.core.rule import Aggregate, Choice, LinearRule, Rule
from qsfl_flower.numerics.blocks import Floats


def mean_of(rows: NDArray[np.intp], count: int) -> Floats:
    """Return the factors of the mean of some of `count` rows."""
    weights = np.zeros(count)
    weights[rows] = 1 / len(rows)
    return weights


@dataclass(frozen=True)
class Mean(LinearRule):
    """The plain mean, which withstands nobody: for comparison."""

    name = "mean"

    def most(self, count: int) -> int:
        """Return 0: one liar moves the mean anywhere."""
        del count
        return 0

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Count all alike; the score is the norm."""
        del f
        return Choice(
            mean_of(np.arange(geometry.updates.count), geometry.updates.count),
            np.sqrt(geometry.squares),
        )


@dataclass(frozen=True)
class Krum(LinearRule):
    """The one update that is closest to its n - f - 2 neighbours."""

    name = "krum"
    needs = (2, 3)
    pairs = True

    def chosen(self, count: int, f: int) -> int:
        """Return how many updates to select."""
        del count, f
        return 1

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Select by the lowest scores."""
        scores = krum_scores(geometry.distances, f)
        rows = multi_krum_select(scores, min(self.chosen(len(scores), f), len(scores)))
        return Choice(mean_of(rows, len(scores)), scores)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m updates that are closest to their n - f - 2 neighbours.

    Parameters
    ----------
    num_selected : int, optional
        How many updates to select, m >= 1; by default n - f. The proof of resilience holds for at
        most n - f - 2; n - f, the usual choice, drops as many updates as may lie.
    """

    num_selected: int | None = None

    name = "multi_krum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_selected is not None and not self.num_selected >= 1:
            raise ConfigError(f"num_selected is {self.num_selected!r}; allowed is at least 1")

    def chosen(self, count: int, f: int) -> int:
        """Return m."""
        return count - f if self.num_selected is None else self.num_selected


@dataclass(frozen=True)
class Bulyan(Rule):
    """Krum's choice of n - 2f updates, then per coordinate the n - 4f values around the median.

    Krum alone lets one coordinate of a selected update be far off, which matters where d is large.
    """

    name = "bulyan"
    needs = (4, 3)
    pairs = True

    def aggregate(self, geometry: Geometry, f: int) -> Aggregate:
        """Select, then average around the median."""
        count = geometry.updates.count
        rows = bulyan_select(geometry.distances, f, max(1, count - 2 * f))
        inner = Around(m=max(1, count - 4 * f)).aggregate(geometry.keep(rows), f)
        selected = np.isin(np.arange(count), rows)
        return replace(inner, selected=selected, scores=krum_scores(geometry.distances, f))


@dataclass(frozen=True)
class MDA(LinearRule):
    """The mean of the n - f updates whose largest distance to each other is smallest.

    See `smallest_diameter` for how it is found.
    """

    name = "mda"
    pairs = True

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Select the subset; the score is the distance to its farthest member."""
        rows = smallest_diameter(geometry.distances, f)
        scores = np.sqrt(geometry.distances[:, rows].max(axis=1))
        return Choice(mean_of(rows, len(scores)), scores)


@dataclass(frozen=True)
class CGE(LinearRule):
    """The mean of the n - f updates with the smallest norms."""

    name = "cge"
    anchored = True

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Select by norm."""
        norms = np.sqrt(geometry.squares)
        return Choice(mean_of(multi_krum_select(norms, len(norms) - f), len(norms)), norms)


@dataclass(frozen=True)
class NormBoundedMean(LinearRule):
    r"""The mean after every update was scaled down to norm B: :math:`\frac1n\sum\min(1,B/\|x\|)x`.

    No update moves the result by more than B / n. Unlike selection it needs no comparison of
    updates, and so works on hidden ones too.

    Parameters
    ----------
    bound : float, optional
        The norm B, above 0; by default the median norm of the round.

    References
    ----------
    Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can you really backdoor federated learning?",
    2019. arXiv:1911.07963.
    """

    bound: float | None = None

    name = "norm_bounded"
    anchored = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound is not None and not 0 < self.bound < np.inf:
            raise ConfigError(f"bound is {self.bound!r}; allowed is a finite number above 0")

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Scale by norm."""
        del f
        norms = np.sqrt(geometry.squares)
        bound = np.median(norms) if self.bound is None else self.bound
        scales = np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)
        return Choice(scales / len(norms), norms)
