"""How a client trains in a round."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsfl_flower.errors import ConfigError

OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a client trains in one round.

    Parameters
    ----------
    epochs : int
        Passes over the client's examples, >= 1.
    batch_size : int
        Examples per step, >= 1.
    learning_rate : float
        Step size in round 1, > 0.
    lr_decay : float
        0 < lr_decay <= 1; the step size of round r is ``learning_rate * lr_decay ** (r - 1)``.
    warmup_rounds : int
        >= 0; in these first rounds the step size grows linearly to its value.
    cosine_rounds : int or None
        >= 1; over these rounds the step size also falls from its value to zero like half a cosine.
    optimizer : {"sgd", "adam", "adamw"}
        Its state starts anew every round.
    momentum : float
        0 <= momentum < 1, for ``sgd``.
    weight_decay : float
        >= 0.
    grad_clip_norm : float or None
        Bound on the norm of a batch's gradient, > 0, for stability only: it bounds nobody's
        influence and gives no privacy.
    loss : str
        A name in `qsfl_flower.clients.losses.LOSSES`.
    mixed_precision : bool
        Run the forward pass in bfloat16 where that is safe; weights and sums stay in float32.
    augment : bool
        Shift pictures by up to an eighth at random; mirror those of three channels (photographs;
        mirrored digits would be other signs).

    Examples
    --------
    >>> config = TrainConfig(epochs=2, learning_rate=0.1, lr_decay=0.5)
    >>> config.rate(server_round=2)
    0.05
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    lr_decay: float = 1.0
    warmup_rounds: int = 0
    cosine_rounds: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    grad_clip_norm: float | None = None
    mixed_precision: bool = False
    augment: bool = False
    loss: str = "cross-entropy"

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 1, ">= 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "> 0"),
            ("lr_decay", 0 < self.lr_decay <= 1, "> 0 and <= 1"),
            ("warmup_rounds", self.warmup_rounds >= 0, ">= 0"),
            (
                "cosine_rounds",
                self.cosine_rounds is None or self.cosine_rounds >= 1,
                ">= 1 or null",
            ),
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            ("momentum", 0 <= self.momentum < 1, ">= 0 and < 1"),
            ("momentum", self.momentum == 0 or self.optimizer == "sgd", "0 unless sgd is used"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, ">= 0"),
            (
                "grad_clip_norm",
                self.grad_clip_norm is None or 0 < self.grad_clip_norm < math.inf,
                "> 0 or null",
            ),
        )
        for field, valid, allowed in rules:
            if not valid:
                raise ConfigError(f"{field} must be {allowed}, found {getattr(self, field)!r}")

    def rate(self, server_round: int) -> float:
        """Return the step size of a round, counted from 1."""
        before = max(server_round - 1, 0)
        rate = self.learning_rate * self.lr_decay**before
        if before < self.warmup_rounds:
            rate *= (before + 1) / self.warmup_rounds
        if self.cosine_rounds is not None:
            rate *= 0.5 * (1 + math.cos(math.pi * min(before / self.cosine_rounds, 1.0)))
        return rate
