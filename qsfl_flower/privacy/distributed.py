r"""Noise that is split over the clients, so that only a noisy sum ever exists.

Every client rounds its vector to an integer grid, adds its share of discrete Gaussian noise, and
hands the integers to the secure sum. Shares are sized for the fewest honest contributions that
may be combined: with at least h of them the sum carries at least the promised variance, whoever
else drops out or leaves the noise out.

References
----------
P. Kairouz, Z. Liu, T. Steinke, "The distributed discrete Gaussian mechanism for federated learning
with secure aggregation", 2021. arXiv:2102.06387.
C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020.
arXiv:2004.00010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.discrete import BLOCKS, discrete_gaussian
from qsfl_flower.privacy.events import ADD_OR_REMOVE, Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.randomness import Keystream

LEAST_STEPS = 1 << 10
"""Least standard deviation of a share in grid steps. The distance between a sum of discrete
Gaussians and one discrete Gaussian is then below 10 n exp(-pi^2 2^20) (Kairouz et al., theorem 1),
which is nothing."""

MOST_STEPS = 1 << 26
"""Most steps before a coarser grid is taken, so that a client's values stay far below 2^53."""

FALSE_ALARM = 1e-12
"""Probability with which a sum of honest contributions counts as too long, see `reach`."""

TOLERANCE = 1e-9
"""Relative excess of a norm over its bound, left by clipping in float64; the noise covers it."""


@dataclass(frozen=True, kw_only=True)
class NoiseShare(Options):
    """What every client of a round adds; the same object on both ends.

    Parameters
    ----------
    clip_norm : float
        Largest L2 change of the sum when the protected unit comes or goes, > 0: a client's clip
        norm, or a record's.
    noise_multiplier : float
        Promised standard deviation of the noise of the sum over `clip_norm`, > 0.
    fewest : int
        Fewest contributions that are combined, >= 1; with fewer the round must fail.
    non_contributors : int
        How many of them may add no noise (and know their own, if they did), >= 0, < `fewest`.
    size : int
        Number of coordinates d, >= 1.
    resolution : float
        Finest grid that the secure sum can carry, > 0.
    """

    clip_norm: float = option("Largest change of the sum by the protected unit (L2).", gt=0)
    noise_multiplier: float = option("Noise of the sum over clip_norm.", gt=0)
    fewest: int = option("Fewest contributions that are combined.", ge=1)
    non_contributors: int = option("How many of them may add no noise.", 0, ge=0)
    size: int = option("Number of coordinates.", ge=1)
    resolution: float = option("Finest grid that the sum can carry.", 2.0**-24, gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.non_contributors >= self.fewest:
            raise ConfigError(
                f"non_contributors is {self.non_contributors}; it must be < fewest = {self.fewest}:"
                " some clients have to add the noise"
            )
        if self.steps < LEAST_STEPS:
            raise ConfigError(
                f"a noise share of {self.steps} steps of {self.resolution} is too coarse; at least "
                f"{LEAST_STEPS} are needed: use a finer resolution"
            )

    @property
    def honest(self) -> int:
        """Contributions that are sure to carry noise."""
        return self.fewest - self.non_contributors

    @property
    def shift(self) -> int:
        """Coarsening j: values and noise are multiples of 2^j steps of the resolution."""
        excess = self._share(self.resolution) / MOST_STEPS
        return max(0, math.ceil(math.log2(excess))) if excess > 1 else 0

    @property
    def grid(self) -> float:
        """Distance between the values that a client may send."""
        return self.resolution * 2.0**self.shift

    @property
    def steps(self) -> int:
        """Standard deviation of a share in steps of `grid`: a multiple of 64."""
        return BLOCKS * math.ceil(self._share(self.grid) / BLOCKS)

    def _share(self, grid: float) -> float:
        # Rounding can move two neighbouring vectors apart by sqrt(d) steps; the noise covers it.
        sensitivity = self.clip_norm * (1 + TOLERANCE) / grid + math.sqrt(self.size)
        return self.noise_multiplier * sensitivity / math.sqrt(self.honest)

    def std(self, contributions: int) -> float:
        """Return the standard deviation of the noise in a sum of so many honest contributions."""
        return self.steps * self.grid * math.sqrt(contributions)

    def reach(self, bound: float, contributions: int, failure: float = FALSE_ALARM) -> float:
        r"""Return the norm that a sum of honest contributions exceeds with probability `failure`.

        .. math:: k (C + \tfrac12 g \sqrt d)
                  + \sigma \sqrt k \sqrt{d + 2 \sqrt{d t} + 2 t}, \quad t = \ln(1 / \text{failure})

        for k contributions of norm C on a grid g with shares of standard deviation
        :math:`\sigma`, whose discrete Gaussian is :math:`\sigma`-subgaussian. A longer sum holds a
        vector that is not within its bound.

        Parameters
        ----------
        bound : float
            Largest L2 norm C of a contribution before noise, > 0.
        contributions : int
            How many are summed, k >= 1.
        failure : float
            Probability with which a sum of honest contributions is longer, in (0, 1).

        References
        ----------
        D. Hsu, S. Kakade, T. Zhang, "A tail inequality for quadratic forms of subgaussian random
        vectors", 2012. arXiv:1110.2842.
        C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020.
        arXiv:2004.00010 (for the discrete Gaussian).
        """
        d, t = self.size, -math.log(failure)
        values = contributions * (bound * (1 + TOLERANCE) + self.grid * math.sqrt(d) / 2)
        return values + self.std(contributions) * math.sqrt(d + 2 * math.sqrt(d * t) + 2 * t)

    def largest(self, bound: float) -> int:
        """Return what no coordinate of a client exceeds in steps of `resolution`.

        `bound` is the largest size of a value before noise. Noise beyond 40 standard deviations
        (probability below 1e-300) is redrawn by `privatize`.
        """
        return (math.ceil(bound / self.grid) + 1 + 40 * self.steps) << self.shift

    def privatize(
        self, values: NDArray[np.float64], bound: float, source: Keystream
    ) -> NDArray[np.int64]:
        """Round a client's vector and add its noise share.

        Parameters
        ----------
        values : ndarray of float64, shape (d,)
            The clipped vector.
        bound : float
            Its largest allowed L2 norm, > 0; `clip_norm` where the unit is the client.
        source : Keystream
            Randomness of the noise.

        Returns
        -------
        ndarray of int64, shape (d,)
            Multiples of `resolution`.

        Raises
        ------
        ConfigError
            If the size is wrong, or the norm is larger than promised: nothing may be sent then.
        """
        norm = float(np.linalg.norm(values))
        if values.shape != (self.size,) or not norm <= bound * (1 + TOLERANCE):
            raise ConfigError(
                f"a vector of shape {values.shape} was to be privatized whose shape is not "
                f"({self.size},), or whose norm is not up to {bound:.6g}"
            )
        noise = discrete_gaussian(self.steps, self.size, source)
        while np.abs(noise).max() > 40 * self.steps:
            noise = discrete_gaussian(self.steps, self.size, source)
        return (np.rint(values / self.grid).astype(np.int64) + noise) << self.shift

    def event(self, sampling_rate: float = 1.0, relation: str = ADD_OR_REMOVE) -> Event:
        """Return what one release of the sum costs.

        Parameters
        ----------
        sampling_rate : float
            Rate of a Poisson sample that stays hidden from the server: the records of a client.
            The server knows which clients take part, so for clients it is 1.
        relation : str
            Which data sets are neighbours, one of `privacy.events.RELATIONS`.
        """
        slack = grid_slack(self.size, self.steps * math.sqrt(self.honest))
        return Event(self.noise_multiplier, sampling_rate, 1, slack, relation)
