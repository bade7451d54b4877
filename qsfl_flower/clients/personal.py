"""A client that keeps or makes a model of its own; see `Personalization` for the methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from qsfl_flower.clients.batches import least_batch, scale_of
from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.losses import loss_named
from qsfl_flower.clients.models import get_arrays, set_arrays
from qsfl_flower.clients.trainer import TrainingClient, derive_seed, number
from qsfl_flower.clients.training import LocalTraining, TrainConfig, TrainResult, evaluate_model
from qsfl_flower.errors import ConfigError
from qsfl_flower.personalization import (
    Personalization,
    adapt,
    hessian_free_gradient,
    meta_gradient,
    support_and_query,
)
from qsfl_flower.wire import from_record, to_record

STATE = "qsfl-personal"
"""Record in Flower's client state that holds what stays on the device."""

Batch = tuple[Tensor, Tensor]


class PersonalClient(TrainingClient):
    """Train the common model and a personal one.

    The update that leaves the device is an ordinary one for every method: a difference of models,
    which passes through clipping, noise, compression and secure sums like any other. A
    meta-gradient g is sent as ``-meta_rate * g``.

    Parameters
    ----------
    model, data, config, seed, client_id
        As for `TrainingClient`. The held-out examples of `data` are never trained on, nor adapted
        to.
    personalization : Personalization
        The method.
    state : RecordDict
        The client's memory: ``context.state`` of Flower. Personal layers and models are kept there
        and are never sent.

    Notes
    -----
    Who sees what: the server sees the common part of the update and the metrics; the personal part
    stays in the client's memory.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from flwr.app import RecordDict
    >>> from qsfl_flower.personalization.settings import Personalization
    >>> client = PersonalClient(
    ...     model, data, TrainConfig(), seed=1, client_id="client-0",
    ...     personalization=Personalization(method="fine-tune"), state=RecordDict(),
    ... )
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        personalization: Personalization,
        state: RecordDict,
        declare_labels: bool = False,
    ) -> None:
        super().__init__(
            model, data, config, seed=seed, client_id=client_id, declare_labels=declare_labels
        )
        self._how = personalization
        self._state = state
        if personalization.method in ("fedper", "fedrep") and not self._kept():
            raise ConfigError(
                f"no parameter of the model begins with {' or '.join(personalization.head)}; it "
                f"has {', '.join(model.state_dict())}"
            )

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the given parameters; see `TrainingClient.fit`."""
        started = time.perf_counter()
        server_round = int(number(config, "server-round", 1, 0))
        self._load(parameters)
        method = self._how.method
        if method in ("maml", "per-fedavg"):
            result = self._meta_train(server_round)
        elif method in ("fedper", "fedrep"):
            result = self._train_with_head(parameters, server_round, config)
        else:
            result = self._train(server_round, number(config, "proximal-mu", 0.0, 0))
            if method == "ditto" and result.num_examples:
                result = self._with_own(parameters, server_round, result)
        if result.num_examples == 0:
            self._load(parameters)
        arrays = self.get_parameters({})
        return arrays, result.num_examples, self._told(result, time.perf_counter() - started)

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the common and the personal model on the held-out examples.

        Returns
        -------
        loss, num_examples, metrics
            Loss of the common model; ``accuracy`` of the common, ``personal-accuracy`` of the
            personal model, and ``gain``, their difference.
        """
        loss, count, metrics = super().evaluate(parameters, config)
        if count == 0:
            return loss, count, metrics
        personal_loss, personal = self.evaluate_personal(parameters)
        if math.isnan(personal):
            return loss, count, {**metrics, "personal-loss": personal_loss}
        told: dict[str, Scalar] = {"personal-accuracy": personal}
        return loss, count, {**metrics, **told, "gain": personal - float(metrics["accuracy"])}

    def evaluate_personal(
        self, parameters: NDArrays, rows: NDArray[np.int64] | None = None, steps: int | None = None
    ) -> tuple[float, float]:
        """Return loss and accuracy of the personal model on the held-out examples.

        Parameters
        ----------
        parameters : list of ndarray
            The common model.
        rows : numpy.ndarray, optional
            Training examples to adapt to; by default all.
        steps : int, optional
            Steps of adaptation; by default those of the method.
        """
        self.personalize(parameters, rows, steps)
        data = self._data
        return evaluate_model(
            self._model, data.x_test, data.y_test, data.normalization, loss=self._config.loss
        )

    def personalize(
        self, parameters: NDArrays, rows: NDArray[np.int64] | None = None, steps: int | None = None
    ) -> nn.Module:
        """Return the personal model on top of the given common one; see `evaluate_personal`."""
        self._load(parameters)
        kept = self._remembered()
        set_arrays(self._model, {**get_arrays(self._model), **kept})
        if kept or self._how.method == "ditto" or len(self._data.y_train) == 0:
            return self._model
        rows = np.arange(len(self._data.y_train)) if rows is None else rows
        steps = self._how.inner_steps if steps is None else steps
        if len(rows) and steps:
            self._model.eval()
            self._put(
                adapt(self._loss, self._weights(), self._batch(rows), self._how.inner_rate, steps)
            )
        return self._model

    def _train(
        self,
        server_round: int,
        proximal_mu: float,
        config: TrainConfig | None = None,
        start: Mapping[str, NDArray[Any]] | None = None,
    ) -> TrainResult:
        """Train the model as it is; its weights are the anchor also if it starts from others."""
        training = LocalTraining(
            self._model,
            self._data.x_train,
            self._data.y_train,
            self._data.normalization,
            config or self._config,
            seed=derive_seed(self._seed, self._client_id, server_round),
            server_round=server_round,
            proximal_mu=proximal_mu,
        )
        if start is not None:
            set_arrays(self._model, start)
        training.run()
        return training.result()

    def _train_with_head(
        self, parameters: NDArrays, server_round: int, config: Mapping[str, Scalar]
    ) -> TrainResult:
        """Train common layers and the device's own; leave the common model's head as it came."""
        set_arrays(self._model, {**get_arrays(self._model), **self._remembered()})
        proximal_mu = number(config, "proximal-mu", 0.0, 0)
        if self._how.method == "fedrep":
            with _frozen(self._model, lambda name: not self._how.stays(name)):
                self._train(server_round, 0.0)
            with _frozen(self._model, self._how.stays):
                result = self._train(server_round, proximal_mu, replace(self._config, epochs=1))
        else:
            result = self._train(server_round, proximal_mu)
        trained = get_arrays(self._model)
        kept = self._kept()
        if result.num_examples:
            self._state[STATE] = to_record({k: trained[k] for k in kept})
        common = dict(zip(trained, parameters, strict=True))
        set_arrays(self._model, {**trained, **{k: common[k] for k in kept}})
        return result

    def _with_own(
        self, parameters: NDArrays, server_round: int, result: TrainResult
    ) -> TrainResult:
        """Train Ditto's own model beside the common one, towards the model that was sent."""
        common = get_arrays(self._model)
        self._load(parameters)
        own = self._train(
            server_round, self._how.proximal, start=self._remembered() or get_arrays(self._model)
        )
        if own.num_examples:
            self._state[STATE] = to_record(get_arrays(self._model))
        set_arrays(self._model, common)
        return result

    def _meta_train(self, server_round: int) -> TrainResult:
        """Take meta-steps; the data are divided once, batches are drawn for every step."""
        how, count = self._how, len(self._data.y_train)
        if count < 2:
            return TrainResult(0, 0.0, 0.0, 0)
        parts = support_and_query(
            count, how.query_share, derive_seed(self._seed, self._client_id, 0)
        )
        if min(how.meta_batch, *map(len, parts)) < least_batch(self._model):
            return TrainResult(0, 0.0, 0.0, how.meta_steps)
        generator = np.random.default_rng(derive_seed(self._seed, self._client_id, server_round))
        self._model.train()
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator.integers(2**62)))
            for _ in range(how.meta_steps):
                support, query, more = (
                    self._batch(generator.choice(p, min(how.meta_batch, len(p)), replace=False))
                    for p in (parts[0], parts[1], parts[0])
                )
                weights = self._weights()
                slope, loss = meta_gradient(
                    self._loss, weights, support, query, how.inner_rate, how.inner_steps,
                    first_order=how.order != "second",
                )  # fmt: skip
                if how.order == "hessian-free":
                    slope = hessian_free_gradient(
                        self._loss, weights, support, query, more, how.inner_rate
                    )
                if not all(bool(g.isfinite().all()) for g in slope.values()):
                    return TrainResult(0, 0.0, 0.0, how.meta_steps)
                self._put({k: v - how.meta_rate * slope[k] for k, v in weights.items()})
                losses.append(loss)
        return TrainResult(count, float(np.mean(losses)), 0.0, 0, how.meta_steps)

    def _loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        images, labels = batch
        outputs = functional_call(self._model, dict(weights), (images,))
        return loss_named(self._config.loss).function(outputs, labels)

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        images = torch.tensor(self._data.x_train[rows], dtype=torch.float32)
        mean, std = scale_of(self._data.normalization, images.dim())
        return images.sub_(mean).div_(std), torch.tensor(self._data.y_train[rows])

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach() for k, v in self._model.named_parameters() if v.requires_grad}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])

    def _kept(self) -> list[str]:
        """Names of the arrays that stay on the device."""
        return [name for name in self._model.state_dict() if self._how.stays(name)]

    def _remembered(self) -> dict[str, NDArray[Any]]:
        record = self._state.array_records.get(STATE)
        return {} if record is None else from_record(record)


@contextmanager
def _frozen(model: nn.Module, test: Callable[[str], bool]) -> Iterator[None]:
    """Leave the parameters whose names pass a test out of training."""
    chosen = [p for name, p in model.named_parameters() if p.requires_grad and test(name)]
    for p in chosen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in chosen:
            p.requires_grad_(True)
