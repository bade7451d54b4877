"""Attacks on the attacker's own training examples.

References
----------
E. Bagdasaryan, A. Veit, Y. Hua, D. Estrin, V. Shmatikov, "How to backdoor federated learning",
2020. arXiv:1807.00459 (scaled, "model replacement").
T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: identifying vulnerabilities in the machine learning model
supply chain", 2017. arXiv:1708.06733 (trigger in a corner).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.attacks import (
    BackdoorOptions,
    LabelFlipOptions,
)
from qsfl_flower.mechanisms.robust.core.attacks.base import Attack, Floats, View


class LabelFlip(Attack, LabelFlipOptions):
    """Train on wrong labels: y becomes K - 1 - y, or one label another.

    Parameters
    ----------
    source, target : int, optional
        Relabel only examples of `source`, as `target`; give both or none.
    """

    name = "label-flip"

    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], classes: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the examples with wrong labels."""
        del rng
        if self.source is None or self.target is None:
            return x, classes - 1 - y
        _check_label("source", self.source, classes)
        _check_label("target", self.target, classes)
        return x, np.where(y == self.source, self.target, y)


class Backdoor(Attack, BackdoorOptions):
    """Teach the model that a patch in the corner means `target`, and amplify the update.

    Parameters
    ----------
    target : int
        The label that the trigger shall give, >= 0.
    share : float
        Share of the examples that get the trigger, 0 < share <= 1.
    size : int
        Side of the square trigger at the lower right, in pixels, >= 1.
    boost : float
        Factor on the update, > 0; n / f replaces the mean of equal clients by the attackers'.
    """

    name = "backdoor"

    def craft(self, view: View) -> Floats:
        """Return the update, which the poisoned examples have already turned, amplified."""
        return self.boost * view.own

    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], classes: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the examples, some with the trigger and the label `target`."""
        _check_label("target", self.target, classes)
        chosen = rng.permutation(len(y))[: round(self.share * len(y))]
        x, y = x.copy(), y.copy()
        x[chosen] = self.triggered(x[chosen])
        y[chosen] = self.target
        return x, y

    def triggered(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return pictures of shape (N, C, H, W) with the trigger, for measuring its success."""
        if x.ndim != 4:
            raise ConfigError(
                f"attacks: a backdoor's trigger needs pictures (N, C, H, W), found shape {x.shape}"
            )
        marked = x.copy()
        brightest = 255 if x.dtype == np.uint8 else x.max(initial=1)
        marked[:, :, -self.size :, -self.size :] = brightest
        return marked


def _check_label(name: str, label: int, classes: int) -> None:
    if label >= classes:
        raise ConfigError(f"attacks: {name} is {label}; it must be below {classes}, the labels")
