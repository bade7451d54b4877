"""Meta-steps on a client, and the model as a function of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from qsfl_flower.clients.batches import scale_of
from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.losses import Loss
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.training import LocalTraining, TrainResult
from qsfl_flower.personalization import Personalization, hessian_free_gradient, meta_gradient

Batch = tuple[Tensor, Tensor]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Weights:
    """A model's loss as a function of its weights.

    Parameters
    ----------
    model : torch.nn.Module
        Whose weights are read and written.
    data : Dataset
        The client's examples.
    how : Loss
        What is minimized.
    """

    model: nn.Module
    data: Dataset
    how: Loss

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean loss of a batch under other weights."""
        images, labels = batch
        return self.how.function(functional_call(self.model, dict(weights), (images,)), labels)

    def batch(self, rows: Rows) -> Batch:
        """Return training examples, standardized."""
        images = torch.tensor(self.data.x_train[rows], dtype=torch.float32)
        mean, std = scale_of(self.data.normalization, images.dim())
        return images.sub_(mean).div_(std), torch.tensor(self.data.y_train[rows])

    def now(self) -> dict[str, Tensor]:
        """Return the weights that are trained."""
        return {k: v.detach() for k, v in self.model.named_parameters() if v.requires_grad}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model other weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])


class MetaTraining(LocalTraining):
    """Meta-steps; batches are drawn for every step, from two parts of the examples.

    Parameters
    ----------
    model, data, config
        As for `TrainingClient`.
    how : Personalization
        The method; its rate, number and kind of steps.
    parts : tuple of numpy.ndarray
        Rows of the support and of the query.
    seed : int
        Of the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        how: Personalization,
        parts: tuple[Rows, Rows],
        seed: int,
    ) -> None:
        self._generator = np.random.default_rng(seed)
        super().__init__(
            model, data.x_train, data.y_train, data.normalization, config,
            seed=int(self._generator.integers(2**62)), max_steps=how.meta_steps,
        )  # fmt: skip
        self._how, self._rows, self._weights = how, parts, Weights(model, data, self._loss)

    @property
    def planned(self) -> int:
        """Meta-steps of the whole training."""
        return self._max_steps or 0

    def result(self) -> TrainResult:
        """Return what training did; ``num_examples`` is 0 if the model must not be used."""
        if self._skipped:
            return TrainResult(0, 0.0, 0.0, 0, self._steps)
        return TrainResult(len(self._labels), self._loss_sum / self._steps, 0.0, 0, self._steps)

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """As `LocalTraining.save`, with the state of the draws."""
        arrays, numbers = super().save()
        return arrays, {**numbers, "generator": self._generator.bit_generator.state}

    def restore(self, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Continue from what `save` returned."""
        super().restore(arrays, {k: v for k, v in numbers.items() if k != "generator"})
        self._generator.bit_generator.state = numbers["generator"]

    def _next(self) -> Tensor | None:
        if self._batches >= self.planned or self._skipped:
            return None
        self._batches += 1
        return torch.from_numpy(self._draw(self._rows[0]))

    def _draw(self, part: Rows) -> Rows:
        return self._generator.choice(part, min(self._how.meta_batch, len(part)), replace=False)

    def _step(self, rows: Tensor) -> bool:
        how, of = self._how, self._weights
        query, more = of.batch(self._draw(self._rows[1])), of.batch(self._draw(self._rows[0]))
        support, weights = of.batch(rows.numpy()), of.now()
        self._last_batch = len(support[1]) + len(query[1])
        slope, loss = meta_gradient(
            of.loss, weights, support, query, how.inner_rate, how.inner_steps,
            first_order=how.order != "second",
        )  # fmt: skip
        if how.order == "hessian-free":
            slope = hessian_free_gradient(of.loss, weights, support, query, more, how.inner_rate)
        if not all(bool(g.isfinite().all()) for g in slope.values()):
            return False
        of.put({k: v - how.meta_rate * slope[k] for k, v in weights.items()})
        self._loss_sum += loss
        return True
