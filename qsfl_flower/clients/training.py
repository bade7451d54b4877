"""The local training loop and evaluation, as functions of a model and arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from qsfl_flower.clients.data import Normalization
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
    optimizer : {"sgd", "adam", "adamw"}
        Its state starts anew every round.
    momentum : float
        0 <= momentum < 1, for ``sgd``.
    weight_decay : float
        >= 0.
    grad_clip_norm : float or None
        Bound on the norm of a batch's gradient, > 0, for stability only: it bounds nobody's
        influence and gives no privacy.
    augment : bool
        Shift pictures by up to an eighth at random; mirror those of three channels (photographs;
        mirrored digits would be other signs).
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    lr_decay: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    grad_clip_norm: float | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 1, ">= 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "> 0"),
            ("lr_decay", 0 < self.lr_decay <= 1, "> 0 and <= 1"),
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


@dataclass(frozen=True)
class TrainResult:
    """What local training did.

    Parameters
    ----------
    num_examples : int
        Examples that training used per epoch; less than the client has when batches were skipped,
        0 when the model is useless.
    loss, accuracy : float
        Means over the used examples while training (without the proximal term); 0 if none.
    skipped_batches : int
        Batches left out because the loss or the gradient was not finite.
    """

    num_examples: int
    loss: float
    accuracy: float
    skipped_batches: int


def train(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    normalization: Normalization,
    config: TrainConfig,
    *,
    seed: int,
    server_round: int = 1,
    proximal_mu: float = 0.0,
) -> TrainResult:
    """Train a model in place; the result depends on the arguments alone, bit for bit.

    Minimises the mean cross-entropy plus ``proximal_mu / 2 * |w - w_0|^2``, w_0 being the weights
    at the start. A batch whose loss or gradient is not finite changes nothing and is counted.

    Parameters
    ----------
    model : torch.nn.Module
        Maps a float32 batch to logits.
    x, y : ndarray
        Examples as in :class:`~qsfl_flower.clients.data.Dataset`, and their labels.
    normalization : Normalization
        Applied to every batch.
    config : TrainConfig
        How to train.
    seed : int
        Seed of shuffling, augmentation and dropout. Equal results also need the same number of
        torch threads.
    server_round : int
        >= 1, for the decay of the step size.
    proximal_mu : float
        FedProx's weight, >= 0.

    Returns
    -------
    TrainResult
        ``num_examples`` is 0 if the model must not be used.

    References
    ----------
    T. Li et al., "Federated Optimization in Heterogeneous Networks", 2020.
    """
    if len(y) == 0:
        return TrainResult(0, 0.0, 0.0, 0)
    images, labels = torch.tensor(x), torch.tensor(y)
    # Looked at before the forward pass, which would carry a NaN into batch norm's statistics.
    usable = images.flatten(1).isfinite().all(dim=1)
    shuffle = torch.Generator().manual_seed(seed)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters] if proximal_mu > 0 else []
    step = _Optimizer(parameters, config, server_round)
    mean, std = _scale(normalization, images.dim())
    used = correct = skipped = 0
    loss_sum = 0.0
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _ in range(config.epochs):
            order = torch.randperm(len(labels), generator=shuffle)
            for rows in torch.split(order, config.batch_size):
                if not usable[rows].all():
                    skipped += 1
                    continue
                batch, target = images[rows], labels[rows]
                if config.augment and batch.dim() == 4:
                    batch = _augmented(batch, shuffle)
                batch = batch.to(torch.float32).sub_(mean).div_(std)
                logits = model(batch)
                loss = functional.cross_entropy(logits, target)
                value = loss.item()
                if not math.isfinite(value):
                    skipped += 1
                    continue
                model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for p, start in zip(parameters, anchor, strict=False):
                        if p.grad is not None:
                            p.grad.add_(p - start, alpha=proximal_mu)
                    if not step():
                        skipped += 1
                        continue
                used += len(rows)
                loss_sum += value * len(rows)
                correct += int((logits.argmax(dim=1) == target).sum())
    model.zero_grad(set_to_none=True)
    if used == 0 or not all(bool(v.isfinite().all()) for v in model.state_dict().values()):
        return TrainResult(0, 0.0, 0.0, skipped)
    examples = max(1, used // config.epochs)
    return TrainResult(examples, loss_sum / used, correct / used, skipped)


def evaluate_model(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    normalization: Normalization,
    batch_size: int = 512,
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy of a model, both summed in float64.

    Parameters
    ----------
    model : torch.nn.Module
        Maps a float32 batch to logits; used in evaluation mode, left in its own.
    x, y : ndarray
        Examples and labels; at least one.
    normalization : Normalization
        Applied to every batch.
    batch_size : int
        Examples at a time, >= 1; it bounds memory.

    Returns
    -------
    loss, accuracy : float
        The loss is NaN or infinite if the model is.
    """
    mean, std = _scale(normalization, x.ndim)
    loss, correct = 0.0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(y), batch_size):
            batch = torch.tensor(x[start : start + batch_size], dtype=torch.float32)
            target = torch.tensor(y[start : start + batch_size])
            logits = model(batch.sub_(mean).div_(std)).double()
            loss += functional.cross_entropy(logits, target, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == target).sum())
    model.train(training)
    return loss / len(y), correct / len(y)


class _Optimizer:
    """One update rule over torch's functional kernels, bit-identical to ``torch.optim``.

    The classes of ``torch.optim`` import torch's compiler when they are built, which costs every
    client process 1.5 s and 150 MB.
    """

    def __init__(self, parameters: list[Tensor], config: TrainConfig, server_round: int) -> None:
        self._parameters = parameters
        self._config = config
        self._rate = config.learning_rate * config.lr_decay ** max(server_round - 1, 0)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = [torch.zeros(()) for _ in parameters]

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
            [values[i] for i in chosen]
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


def _scale(normalization: Normalization, dimensions: int) -> tuple[Tensor, Tensor]:
    shape = (1, -1) + (1,) * (dimensions - 2)
    return (
        torch.tensor(normalization.mean, dtype=torch.float32).reshape(shape),
        torch.tensor(normalization.std, dtype=torch.float32).reshape(shape),
    )


def _augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures shifted (edges filled with zeros), and mirrored if they have colours."""
    count, channels, height, width = pictures.shape
    room = max(1, min(height, width) // 8)
    padded = functional.pad(pictures, (room, room, room, room))
    top, left = torch.randint(0, 2 * room + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if channels == 3:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    example = torch.arange(count)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
