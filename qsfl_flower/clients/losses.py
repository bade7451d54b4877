"""Losses by name, for each task that a data set may set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from qsfl_flower.errors import ConfigError


@dataclass(frozen=True)
class Loss:
    """What training minimizes.

    Parameters
    ----------
    task : str
        Of the data sets that it fits: ``classes``, ``labels`` or ``values``.
    function : Callable[..., Tensor]
        Takes outputs of shape (N, k) and targets, of shape (N,) for classes and (N, k) for others;
        its mean over examples and outputs by default, with ``reduction="sum"`` the sum.

    Examples
    --------
    >>> import torch
    >>> outputs, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    >>> LOSSES["binary-cross-entropy"].right(outputs, targets)  # of two labels
    0.5
    """

    task: str
    function: Callable[..., Tensor]

    def total(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the sum over the examples."""
        each = 1 if self.task == "classes" else outputs.shape[1]
        return float(self.function(outputs, targets, reduction="sum").item()) / each

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which answers are right, shape of the targets; None where there is no right."""
        if self.task == "values":
            return None
        if self.task == "labels":
            return (outputs > 0) == (targets > 0.5)
        return outputs.argmax(dim=1) == targets

    def right(self, outputs: Tensor, targets: Tensor) -> float:
        """Return how many examples are right; with several labels each counts for its share."""
        hits = self.hits(outputs, targets)
        return 0.0 if hits is None else float(hits.sum()) / (hits.numel() / len(hits))


LOSSES = {
    "cross-entropy": Loss("classes", functional.cross_entropy),
    "binary-cross-entropy": Loss("labels", functional.binary_cross_entropy_with_logits),
    "mse": Loss("values", functional.mse_loss),
    "l1": Loss("values", functional.l1_loss),
    "huber": Loss("values", functional.huber_loss),
}
"""By name; the first of a task is its default."""


def loss_named(name: str) -> Loss:
    """Return a loss by its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss {name!r} is not one of {', '.join(LOSSES)}")
    return LOSSES[name]
