r"""Quantiles from a tree of noisy counts.

The bounds are cut into b parts, each of these into b, and so on; a row adds one to a node of every
level. The counts of a level and the number of rows above it are independent measurements of sums
of the same leaves, and weighted least squares makes them agree. It needs two passes: upwards each
node averages its own count and the sum of its children, weighted by their variances; downwards each
node hands the difference to its children in equal parts.

References
----------
M. Hay, V. Rastogi, G. Miklau, D. Suciu, "Boosting the accuracy of differentially private histograms
through consistency", 2010. arXiv:0904.0942.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.analytics.core.intervals import Estimate, deviations

Floats = NDArray[np.float64]


class Tree:
    """Counts that agree with each other, and what noise is left in them.

    Parameters
    ----------
    levels : sequence of ndarray
        Noisy counts from the root (one number) to the leaves; each level has `branches` times as
        many as the one above.
    stds : sequence of float
        Standard deviation of the noise of each level, >= 0.
    branches : int
        b, >= 2.
    """

    def __init__(self, levels: Sequence[Floats], stds: Sequence[float], branches: int) -> None:
        self.branches = branches
        own = [max(std, 1e-12) ** 2 for std in stds]
        upwards, variances = [levels[-1]], [own[-1]]
        for level, variance in zip(levels[-2::-1], own[-2::-1], strict=True):
            below = upwards[0].reshape(-1, branches).sum(axis=1)
            spread = branches * variances[0]
            weight = spread / (spread + variance)
            upwards.insert(0, weight * level + (1 - weight) * below)
            variances.insert(0, weight * variance)
        self.variances, self._upwards = variances, upwards
        found = upwards[0]
        for level in upwards[1:]:
            children = level.reshape(-1, branches)
            change = (found - children.sum(axis=1)) / branches
            found = (children + change[:, None]).ravel()
        self.leaves: Floats = found
        self.rows = float(upwards[0][0])

    def deviations(self, quantile: float) -> Floats:
        r"""Return the standard deviation of ``rank(edge) - quantile * rows`` for every edge.

        Before child k of a node lies :math:`P = \frac{k + a}{b} \hat h + R`, where a is the share
        of the child's own estimate that counts and R consists of differences between siblings,
        which are uncorrelated with the node's own estimate.
        """
        edges = np.arange(self.leaves.size + 1)
        share, rest = np.zeros(edges.size), np.zeros(edges.size)
        for variance in self.variances[:0:-1]:
            edges, child = np.divmod(edges, self.branches)
            squares, whole = child + share**2, child + share
            rest += variance * (squares - whole**2 / self.branches)
            share = whole / self.branches
        share += edges  # the last edge lies behind the root
        found: Floats = np.sqrt(rest + (share - quantile) ** 2 * self.variances[0])
        return found

    def quantile(self, q: float, edges: Floats, level: float) -> Estimate:
        """Return the value below which a share q of the rows lies.

        The leaf that holds the quantile passes two one-sided tests with probability `level`; the
        interval goes from the first to the last leaf that does.

        Parameters
        ----------
        q : float
            In (0, 1).
        edges : ndarray, shape (leaves + 1,)
            Where the leaves begin and end.
        level : float
            Probability with which the interval holds the quantile.
        """
        ranks = np.concatenate(([0.0], np.cumsum(self.leaves)))
        excess = ranks - q * self.rows
        reach = deviations(level) * self.deviations(q)
        # No rows lie before the first edge, and all before the last.
        begins, ends = excess[:-1] <= reach[:-1], excess[1:] >= -reach[1:]
        begins[0], ends[-1] = True, True
        passed = np.flatnonzero(begins & ends)
        value = self._crossing(ranks, q, edges)
        low = min(float(edges[passed[0]]), value) if passed.size else float(edges[0])
        high = max(float(edges[passed[-1] + 1]), value) if passed.size else float(edges[-1])
        return Estimate(value, low, high)

    def _crossing(self, ranks: Floats, q: float, edges: Floats) -> float:
        """Return where the ranks, made monotone from both sides, cross the quantile."""
        upper = np.maximum.accumulate(ranks)
        lower = np.minimum.accumulate(ranks[::-1])[::-1]
        smooth = (upper + lower) / 2
        wanted = q * smooth[-1]
        right = int(np.clip(np.searchsorted(smooth, wanted), 1, len(edges) - 1))
        left = right - 1
        height = smooth[right] - smooth[left]
        share = (wanted - smooth[left]) / height if height > 0 else 0.5
        return float(edges[left] + min(max(share, 0.0), 1.0) * (edges[right] - edges[left]))
