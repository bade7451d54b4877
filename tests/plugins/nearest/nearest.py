"""A robust rule of a third party, in one file."""

from dataclasses import dataclass

import numpy as np

from qsfl_flower.mechanisms.robust.core.rule import Choice, LinearRule
from qsfl_flower.plugins import Extension, option


@dataclass(frozen=True)
class Nearest(LinearRule):
    """The mean of the updates that are nearest to where they are measured from."""

    name = "nearest"
    anchored = True
    share: float = option("Share of the updates that count.", 0.5, gt=0, le=1)

    def choose(self, geometry, f):
        """Take the shortest ones."""
        squares = geometry.squares
        count = max(1, int(self.share * len(squares)))
        weights = np.zeros(len(squares))
        weights[np.argsort(squares, kind="stable")[:count]] = 1 / count
        return Choice(weights, np.sqrt(squares))


QSFL_PLUGINS = [Extension("rule", Nearest)]
