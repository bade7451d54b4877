"""Trust from the server's own data: FLTrust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.distances import dots
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.rule import Choice, LinearRule
from qsfl_flower.numerics import Vector, measure
from qsfl_flower.numerics.blocks import Floats


@dataclass(frozen=True)
class FLTrust(LinearRule):
    r"""The mean of updates weighted by their cosine to an update from the server's own data.

    .. math:: \frac{1}{\sum_i t_i} \sum_i t_i \frac{\|r\|}{\|x_i\|} x_i,
              \quad t_i = \max(0, \cos(x_i, r)).

    Withstands any number of liars, as far as the server's data are representative.

    Parameters
    ----------
    root : ndarray of float64, shape (d,)
        The server's update r.

    References
    ----------
    X. Cao, M. Fang, J. Liu, N. Z. Gong, "FLTrust: Byzantine-robust federated learning via trust
    bootstrapping", 2021. arXiv:2012.13995.
    """

    root: Floats | None = None

    name = "fltrust"
    anchored = True
    needs = (1, 0)

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Weigh by cosine; the score is one less the cosine."""
        del f
        if self.root is None:
            raise ConfigError("FLTrust needs the update that the server trained on its own data")
        size = measure(Vector.dense(self.root)).norm
        norms = np.sqrt(geometry.squares)
        along = dots(geometry.updates, self.root, threads=geometry.threads)
        safe = np.where(norms > 0, norms, 1.0)
        cosines = along / safe / (size if size > 0 else 1.0)
        trust = np.maximum(cosines, 0.0)
        total = float(trust.sum())
        weights = trust / total * (size / safe) if total > 0 else np.zeros(len(trust))
        return Choice(weights, 1 - cosines)
