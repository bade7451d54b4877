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
        Of the data sets that it fits: ``classes``, ``labels``, ``values`` or ``tokens``.
    function : Callable[..., Tensor]
        Takes outputs of shape (N, k) and targets, of shape (N,) for classes and (N, k) for others;
        its mean over examples and outputs by default, with ``reduction="sum"`` the sum. For tokens
        see `token_cross_entropy`.

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
        each = 1 if self.task in ("classes", "tokens") else outputs.shape[1]
        return float(self.function(outputs, targets, reduction="sum").item()) / each

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which answers are right, shape of the targets; None where there is no right."""
        if self.task == "values":
            return None
        if self.task == "labels":
            return (outputs > 0) == (targets > 0.5)
        return outputs.argmax(dim=-1) == targets

    def right(self, outputs: Tensor, targets: Tensor) -> float:
        """Return how many examples are right; with several labels each counts for its share."""
        hits = self.hits(outputs, targets)
        if hits is not None and self.task == "tokens":
            return float((hits.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)).sum())
        return 0.0 if hits is None else float(hits.sum()) / (hits.numel() / len(hits))


IGNORED = -100
"""The target of a token that does not count."""


def token_cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss of sequences: each has the mean over those of its tokens that count.

    Parameters
    ----------
    outputs : Tensor, shape (N, T, V)
        Logits of the tokens.
    targets : Tensor of int64, shape (N, T)
        The right tokens; `IGNORED` where a token does not count. A sequence in which none counts
        has the loss 0.
    reduction : {"mean", "sum"}
        Over the sequences, each of which weighs the same.

    Examples
    --------
    >>> import torch
    >>> targets = torch.tensor([[1, IGNORED]])
    >>> round(float(token_cross_entropy(torch.zeros(1, 2, 4), targets)), 4)  # log 4
    1.3863
    """
    each = functional.cross_entropy(
        outputs.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    means = each.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
    return means.sum() if reduction == "sum" else means.mean()


TOKENS = "token-cross-entropy"
"""Name of `token_cross_entropy`, which clients of language models use."""

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
    if name == TOKENS:
        return Loss("tokens", token_cross_entropy)
    if name not in LOSSES:
        raise ConfigError(f"loss {name!r} is not one of {', '.join(LOSSES)}")
    return LOSSES[name]
