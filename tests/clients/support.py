"""DP-SGD of a model by itself, with randomness that repeats."""

from __future__ import annotations

from typing import Any

from qsfl_flower.clients.dpsgd import PrivateTraining, gradients_of


def train_privately(
    model: Any, x: Any, y: Any, scale: Any, config: Any, privacy: Any, *, source: Any, **how: Any
) -> bool:
    """Train a model in place, and return whether it may be used."""
    gradients = how.pop("gradients", None) or gradients_of(model, x, y, scale)
    training = PrivateTraining(model, x, y, scale, config, privacy, gradients, source, **how)
    training.run()
    return training.result().num_examples > 0
