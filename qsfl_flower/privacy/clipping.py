r"""A clip norm that follows a quantile of the clients' norms, learnt privately.

References
----------
G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially private learning with adaptive
clipping", 2021. arXiv:1905.03871.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import option
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.options import QuantileOptions
from qsfl_flower.privacy.randomness import Keystream


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip(QuantileOptions):
    r"""Parameters of the private quantile.

    Every client contributes :math:`b_i - 1/2` with :math:`b_i = 1` if its norm is at most C. The
    sum changes by 1/2 at most with one client, gets Gaussian noise, is divided by the expected
    cohort, and moves C by :math:`\exp(-\eta (\tilde b - \gamma))`.

    Parameters
    ----------
    initial : float
        Clip norm of the first round, > 0.
    quantile : float
        Share gamma of norms that should be within the clip norm, in (0, 1).
    learning_rate : float
        Rate eta, > 0.
    bit_noise : float
        Standard deviation of the noise on the sum of bits, in clients; a twentieth of the cohort
        is the paper's choice. Must exceed half of the round's noise multiplier.
    """

    bit_noise: float = option("Standard deviation of the noise on the sum of bits.", gt=0)

    def update_noise_multiplier(self, noise_multiplier: float) -> float:
        r"""Return the multiplier for the updates, so that bits and updates together cost the given.

        .. math:: z_\Delta = (z^{-2} - (2 \sigma_b)^{-2})^{-1/2}

        Raises
        ------
        ConfigError
            If the bits alone cost more.
        """
        rest = noise_multiplier**-2 - (2 * self.bit_noise) ** -2
        if rest <= 0:
            raise ConfigError(
                f"bit_noise {self.bit_noise} must exceed half of the noise multiplier "
                f"{noise_multiplier}: the bits alone would spend the budget"
            )
        return float(rest**-0.5)

    def next_clip(
        self, clip_norm: float, within: int, total: int, expected_cohort: float, source: Keystream
    ) -> tuple[float, float]:
        """Return the next clip norm and the noised share of clients within the current one.

        Parameters
        ----------
        clip_norm : float
            Current clip norm, > 0.
        within, total : int
            Clients whose norm is at most `clip_norm`, and all clients of the round.
        expected_cohort : float
            What the sum is divided by, > 0; never the actual number, which is private.
        source : Keystream
            Randomness of the noise.

        Returns
        -------
        clip_norm, share : float
            Both may be published.
        """
        centred = np.array([within - total / 2])
        noisy, _ = add_noise(centred, 0.5, 2 * self.bit_noise, source)
        share = min(1.0, max(0.0, float(noisy[0]) / expected_cohort + 0.5))
        return clip_norm * math.exp(-self.learning_rate * (share - self.quantile)), share
