"""What a detector is, and detectors by name.

A detector is a pure function: rows of features in, suspicion out. What it learns from is handed to
it, so that it keeps no state of its own. Register yours with one line::

    DETECTORS["mine"] = MyDetector()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a detector thinks of the rows of a round.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,)
        From 0, as usual as anything seen before, to 1; above 0.5 is unusual.
    reasons : ndarray of float64, shape (n, F)
        How much each feature contributes; larger is more suspicious. The unit is the detector's.
    """

    scores: Floats
    reasons: Floats


class Detector(ABC):
    """Tells unusual rows from usual ones."""

    @abstractmethod
    def judge(self, rows: Floats, reference: Floats, seed: int) -> Judgement:
        """Judge the rows of one round.

        Parameters
        ----------
        rows : ndarray of float64, shape (n, F)
            Features of the round's clients, in units of the usual spread around 0.
        reference : ndarray of float64, shape (m, F)
            Rows of past rounds that were not suspicious, m >= 1; at first of made-up cohorts.
        seed : int
            Same arguments, same result.
        """


class RobustZ(Detector):
    """Root mean square of the features, against what past rounds showed.

    Simple, fast, and needs no scikit-learn: the yardstick for the others.
    """

    def judge(self, rows: Floats, reference: Floats, seed: int) -> Judgement:
        """Judge by distance from 0; a feature's reason is its share of the mean square."""
        del seed
        squares = rows**2
        sizes = np.sqrt(squares.mean(axis=1))
        usual = np.sqrt((reference**2).mean(axis=1))
        return Judgement(calibrated(sizes, usual), squares / rows.shape[1])


def calibrated(values: Floats, usual: Floats, quantile: float = 0.99) -> Floats:
    """Map a detector's raw values to scores by those of the reference.

    Parameters
    ----------
    values, usual : ndarray of float64, shapes (n,) and (m,)
        Raw values of the round and of the reference; larger is more unusual.
    quantile : float
        This quantile of the reference becomes the score 0.5, its median 0.

    Notes
    -----
    An isolation forest's own value never comes near 1 (gross outliers reach about 0.76), so a fixed
    threshold on it would not fire; and a fixed contamination would flag that share of honest
    clients whatever they do. Quantiles of what past rounds showed do neither.
    """
    middle, high = np.quantile(usual, [0.5, quantile])
    scores: Floats = np.clip(0.5 * (values - middle) / max(high - middle, 1e-9), 0.0, 1.0)
    return scores
