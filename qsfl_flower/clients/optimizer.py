"""Update rules for local training, whose state can be saved between two steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from qsfl_flower.clients.train_config import TrainConfig


class Optimizer:
    """One update rule over torch's functional kernels, bit-identical to ``torch.optim``.

    The classes of ``torch.optim`` import torch's compiler when they are built, which costs every
    client process 1.5 s and 150 MB.
    """

    def __init__(self, parameters: list[Tensor], config: TrainConfig, server_round: int) -> None:
        adaptive = config.optimizer != "sgd"
        self._parameters = parameters
        self._config = config
        self._rate = config.rate(server_round)
        self._first = _like(parameters, adaptive or config.momentum > 0)
        self._second = _like(parameters, adaptive)
        self._steps = [torch.zeros(()) for _ in parameters] if adaptive else []

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on besides parameters and gradients, by name."""
        groups = {"first": self._first, "second": self._second, "steps": self._steps}
        return {f"{name}.{i}": t for name, group in groups.items() for i, t in enumerate(group)}

    def __call__(self) -> bool:
        """Take a step; return False, having changed nothing, if a gradient is not finite."""
        config = self._config
        gradients: list[Tensor] = []
        chosen: list[int] = []
        for position, p in enumerate(self._parameters):
            if p.grad is not None:
                gradients.append(p.grad)
                chosen.append(position)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            return False
        if config.grad_clip_norm is not None:
            factor = (config.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        parameters, first, second, steps = (
            [values[i] for i in chosen if values]
            for values in (self._parameters, self._first, self._second, self._steps)
        )
        if config.optimizer == "sgd":
            momenta: list[Tensor | None] = [*(first if config.momentum else [None] * len(chosen))]
            sgd(
                parameters, gradients, momenta, foreach=False, weight_decay=config.weight_decay,
                momentum=config.momentum, lr=self._rate, dampening=0.0, nesterov=False,
                maximize=False,
            )  # fmt: skip
        else:
            kernel: Any = adam if config.optimizer == "adam" else adamw
            kernel(
                parameters, gradients, first, second, [], steps, foreach=False, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=self._rate, weight_decay=config.weight_decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip
        return True


def _like(parameters: list[Tensor], needed: bool) -> list[Tensor]:
    return [torch.zeros_like(p) for p in parameters] if needed else []
