"""The local training loop and evaluation, as functions of a model and arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qsfl_flower.clients.batches import augmented, batch_end, is_tokens, least_batch, scale_of
from qsfl_flower.clients.data import Normalization
from qsfl_flower.clients.losses import loss_named
from qsfl_flower.clients.optimizer import Optimizer
from qsfl_flower.clients.train_config import OPTIMIZERS, TrainConfig
from qsfl_flower.errors import DataError

__all__ = [
    "OPTIMIZERS",
    "After",
    "LocalTraining",
    "TrainConfig",
    "TrainResult",
    "evaluate_classes",
    "evaluate_model",
    "train",
]


class After(Enum):
    """What to do after a step."""

    GO_ON = "go on"
    PAUSE = "pause"
    """Stop here; `LocalTraining.save` tells how to go on later."""
    FINISH = "finish"
    """Be content with the steps so far."""


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
    steps : int
        Steps of the optimizer.
    """

    num_examples: int
    loss: float
    accuracy: float
    skipped_batches: int
    steps: int = 0


def train(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[Any],
    normalization: Normalization,
    config: TrainConfig,
    *,
    seed: int,
    server_round: int = 1,
    proximal_mu: float = 0.0,
) -> TrainResult:
    """Train a model in place, from the first step to the last; see `LocalTraining`."""
    training = LocalTraining(
        model,
        x,
        y,
        normalization,
        config,
        seed=seed,
        server_round=server_round,
        proximal_mu=proximal_mu,
    )
    training.run()
    return training.result()


class LocalTraining:
    """One client's training in one round, which can be saved after any step and taken up again.

    Minimizes the mean loss (`TrainConfig.loss`) plus ``proximal_mu / 2 * |w - w_0|^2``, w_0 being
    the weights at the start. A batch whose loss or gradient is not finite changes nothing and is
    counted. Under batch norm a last batch of one example joins the batch before it; a client that
    has only one example skips it where batch norm cannot normalize it. The result depends on the
    arguments alone, bit for bit, interrupted or not.

    Parameters
    ----------
    model : torch.nn.Module
        Maps a float32 batch to logits; trained in place.
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
        >= 1, for the schedule of the step size.
    proximal_mu : float
        FedProx's weight, >= 0.
    correction : Sequence[Tensor]
        Added to the gradient of each trained parameter in every step (SCAFFOLD's ``c - c_i``).
    micro_batch : int or None
        Examples that are worked on at a time, >= 1: gradients of the parts of a batch are added up,
        so that less memory gives the same step up to rounding (not with batch norm or dropout).
    max_steps : int or None
        Batches at most, >= 1.

    References
    ----------
    T. Li et al., "Federated optimization in heterogeneous networks", 2020. arXiv:1812.06127.
    """

    def __init__(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        *,
        seed: int,
        server_round: int = 1,
        proximal_mu: float = 0.0,
        correction: Sequence[Tensor] = (),
        micro_batch: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self._model, self._config, self._mu = model, config, proximal_mu
        self._images, self._labels = torch.tensor(x), torch.tensor(y)
        self._loss = loss_named(config.loss)
        # Looked at before the forward pass, which would carry a NaN into batch norm's statistics.
        usable = self._images.flatten(1).isfinite().all(dim=1)
        self._usable = None if usable.all() else usable
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._anchor = [p.detach().clone() for p in self._parameters] if proximal_mu > 0 else []
        self._correction = correction
        self._optimizer = Optimizer(self._parameters, config, server_round)
        self._mean, self._std = scale_of(normalization, self._images.dim())
        self._micro_batch = micro_batch or config.batch_size
        self._max_steps = max_steps
        self._shuffle = torch.Generator().manual_seed(seed)
        self._dropout = torch.Generator().manual_seed(seed).get_state()
        self._order = torch.zeros(0, dtype=torch.int64)
        self._epoch = self._position = self._batches = self._steps = 0
        self._used = self._skipped = self._last_batch = 0
        self._least = least_batch(model)
        self._correct = self._loss_sum = 0.0
        self._running = False

    @property
    def batches(self) -> int:
        """Batches worked on so far, skipped ones included."""
        return self._batches

    @property
    def last_batch(self) -> int:
        """Examples of the last batch."""
        return self._last_batch

    @property
    def planned(self) -> int:
        """Batches of the whole training."""
        count = len(self._labels)
        batches = math.ceil((count - self._least + 1) / self._config.batch_size)
        whole = self._config.epochs * max(batches, min(count, 1))
        return whole if self._max_steps is None else min(whole, self._max_steps)

    def halve(self) -> None:
        """Plan half of the batches, at least one."""
        self._max_steps = max(1, self.planned // 2)

    def run(self, after: Callable[[LocalTraining], After] | None = None) -> bool:
        """Train on, and return whether training is finished.

        Parameters
        ----------
        after : Callable[[LocalTraining], After], optional
            Asked after every batch.
        """
        self._model.train()
        finished = True
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(self._dropout)
            self._running = True
            while (rows := self._next()) is not None:
                if self._step(rows):
                    self._steps += 1
                else:
                    self._skipped += 1
                what = After.GO_ON if after is None else after(self)
                if what is not After.GO_ON:
                    finished = what is After.FINISH
                    break
            self._dropout = torch.default_generator.get_state()
            self._running = False
        self._forget_gradients()
        return finished

    def result(self) -> TrainResult:
        """Return what training did; ``num_examples`` is 0 if the model must not be used."""
        finite = all(bool(v.isfinite().all()) for v in self._model.state_dict().values())
        if self._used == 0 or not finite:
            return TrainResult(0, 0.0, 0.0, self._skipped, self._steps)
        used = self._used
        return TrainResult(
            max(1, used // self._epoch),
            self._loss_sum / used,
            self._correct / used,
            self._skipped,
            self._steps,
        )

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that the remaining steps depend on, as arrays and JSON values.

        To be called between two steps: inside `run`'s callback, or after it.
        """
        dropout = torch.default_generator.get_state() if self._running else self._dropout
        tensors = {f"model/{k}": v for k, v in self._model.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in self._optimizer.state().items()}
        tensors["shuffle"] = self._shuffle.get_state()
        tensors["dropout"] = dropout
        tensors["order"] = self._order
        numbers = {name: getattr(self, f"_{name}") for name in _NUMBERS}
        return {k: v.numpy(force=True).copy() for k, v in tensors.items()}, numbers

    def restore(self, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; the model must be what it was at the start.

        Raises
        ------
        ValueError, KeyError
            If it belongs to another model, optimizer or amount of data.
        """
        targets = {f"model/{k}": v for k, v in self._model.state_dict().items()}
        targets |= {f"optimizer/{k}": v for k, v in self._optimizer.state().items()}
        found = {k: torch.tensor(v) for k, v in arrays.items()}
        shapes = {k: (v.shape, v.dtype) for k, v in targets.items()}
        if shapes != {k: (v.shape, v.dtype) for k, v in found.items() if "/" in k}:
            raise ValueError("the saved arrays are those of another model or optimizer")
        order = found["order"]
        if len(order) not in (0, len(self._labels)) or set(numbers) != set(_NUMBERS):
            raise ValueError("the saved position is that of other data")
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(found[name])
        self._shuffle.set_state(found["shuffle"])
        self._dropout, self._order = found["dropout"], order
        for name in _NUMBERS:
            setattr(self, f"_{name}", numbers[name])

    def _next(self) -> Tensor | None:
        """Return the rows of the next batch, or None after the last."""
        if self._max_steps is not None and self._batches >= self._max_steps:
            return None
        if self._position >= len(self._order):
            if self._epoch == self._config.epochs or len(self._labels) == 0:
                return None
            self._epoch, self._position = self._epoch + 1, 0
            self._order = torch.randperm(len(self._labels), generator=self._shuffle)
        end = batch_end(self._position, self._config.batch_size, len(self._order), self._least)
        rows = self._order[self._position : end]
        self._position, self._last_batch = end, len(rows)
        self._batches += 1
        return rows

    def _step(self, rows: Tensor) -> bool:
        """Train on a batch; return False, having changed nothing, if it is not usable."""
        if self._usable is not None and not self._usable[rows].all():
            return False
        pictures, target = self._images[rows], self._labels[rows]
        if self._config.augment and pictures.dim() == 4:
            pictures = augmented(pictures, self._shuffle)
        self._forget_gradients()
        value, correct = 0.0, 0.0
        for part in self._parts(len(rows)):
            batch = pictures[part]
            if not is_tokens(batch):
                batch = batch.to(torch.float32).sub_(self._mean).div_(self._std)
            mixed = self._config.mixed_precision
            try:
                with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                    logits = self._model(batch)
            except ValueError:
                if len(batch) >= self._least:
                    raise
                return False  # batch norm cannot normalize one value per channel
            logits, labels = logits.float(), target[part]
            loss = self._loss.function(logits, labels)
            if len(batch) < len(rows):
                loss = loss * (len(batch) / len(rows))
            value += loss.item()
            if not math.isfinite(value):
                return False
            loss.backward()  # type: ignore[no-untyped-call]
            correct += self._loss.right(logits, labels)
        if not self._move():
            return False
        self._used += len(rows)
        self._loss_sum += value * len(rows)
        self._correct += correct
        return True

    def _move(self) -> bool:
        """Take the optimizer's step; return False, having changed nothing, if it is not usable."""
        with torch.no_grad():
            for p, start in zip(self._parameters, self._anchor, strict=False):
                if p.grad is not None:
                    p.grad.add_(p - start, alpha=self._mu)
            for p, shift in zip(self._parameters, self._correction, strict=False):
                if p.grad is not None:
                    p.grad.add_(shift)
            return self._optimizer()

    def _parts(self, count: int) -> Iterator[slice]:
        """Yield which examples of a batch are worked on at a time."""
        start = 0
        while start < count:
            end = batch_end(start, self._micro_batch, count, self._least)
            yield slice(start, end)
            start = end

    def _forget_gradients(self) -> None:
        for p in self._parameters:
            p.grad = None


_NUMBERS = (
    "epoch", "position", "batches", "steps", "used", "correct", "skipped", "loss_sum", "max_steps",
)  # fmt: skip


def evaluate_model(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[Any],
    normalization: Normalization,
    batch_size: int = 512,
    loss: str = "cross-entropy",
) -> tuple[float, float]:
    """Return mean loss and accuracy of a model, NaN in a regression; see `evaluate_classes`."""
    found, (examples, right) = evaluate_classes(model, x, y, normalization, batch_size, loss)
    return found, int(right.sum()) / int(examples.sum()) if examples.any() else math.nan


def evaluate_classes(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[Any],
    normalization: Normalization,
    batch_size: int = 512,
    loss: str = "cross-entropy",
) -> tuple[float, NDArray[np.int64]]:
    """Evaluate a model class by class; the loss is summed in float64.

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
    loss : str
        A name in `qsfl_flower.clients.losses.LOSSES`.

    Returns
    -------
    loss : float
        The mean; NaN or infinite if the model is.
    counts : ndarray of int64, shape (2, classes)
        Examples of each class, and how many of them were recognized; with several labels, answers
        to each of them; in a regression 0.

    Raises
    ------
    DataError
        If there is no example.
    """
    if len(y) == 0:
        raise DataError("a model cannot be evaluated on 0 examples; at least 1 is needed")
    mean, std = scale_of(normalization, x.ndim)
    how = loss_named(loss)
    total, hits = 0.0, []
    training = model.training
    model.eval()
    classes = 0
    with torch.inference_mode():
        for start in range(0, len(y), batch_size):
            batch = torch.tensor(x[start : start + batch_size])
            target = torch.tensor(y[start : start + batch_size])
            if not is_tokens(batch):
                batch = batch.to(torch.float32).sub_(mean).div_(std)
            outputs = model(batch).double()
            total += how.total(outputs, target)
            hits.append(how.hits(outputs, target))
            classes = outputs.shape[1]
    model.train(training)
    counts = np.zeros((2, classes), np.int64)
    if how.task != "values":
        right = torch.cat([hit for hit in hits if hit is not None]).numpy()
        counts = np.array(
            [np.bincount(labels, minlength=classes) for labels in (y, y[right])]
            if how.task == "classes"
            else [np.full(classes, len(y)), right.sum(axis=0)]
        )
    return total / len(y), counts
