"""A Flower ``NumPyClient`` around the training loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar
from torch import nn

from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.models import get_arrays, set_arrays
from qsfl_flower.clients.training import (
    TrainConfig,
    TrainResult,
    evaluate_classes,
    evaluate_model,
    train,
)
from qsfl_flower.errors import ConfigError

__all__ = ["TrainConfig", "TrainResult", "TrainingClient", "evaluate_model", "number", "train"]


class TrainingClient(NumPyClient):
    """Train and evaluate a torch model on one client's data.

    The client keeps no state between calls: the same parameters, configuration and round give the
    same result bit for bit, in whichever process.

    Parameters
    ----------
    model : torch.nn.Module
        Workspace; every call loads the parameters it is given.
    data : Dataset
        The client's own examples (see :meth:`~qsfl_flower.clients.data.Dataset.client_view`).
    config : TrainConfig
        How to train.
    seed : int
        The run's seed.
    client_id : int or str
        Makes the client's random numbers its own.
    declare_labels : bool
        Tell the server the share of each label, for the policy ``diverse``.

    Notes
    -----
    Who sees what: the server sees the trained parameters, the number of examples and the metrics.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> client = TrainingClient(model, data, TrainConfig(), seed=1, client_id="client-0")
    >>> arrays, examples, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    >>> examples
    60
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        declare_labels: bool = False,
    ) -> None:
        self._model = model
        self._data = data
        self._config = config
        self._seed = seed
        self._client_id = client_id
        self._declare_labels = declare_labels

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """Return what the client tells about itself: its numbers of examples."""
        return {
            "num-train-examples": len(self._data.y_train),
            "num-test-examples": len(self._data.y_test),
        }

    @property
    def model(self) -> nn.Module:
        """The workspace."""
        return self._model

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return the model's arrays in ``state_dict`` order."""
        return list(get_arrays(self._model).values())

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the given parameters.

        Parameters
        ----------
        parameters : list of ndarray
            The global model, in ``state_dict`` order.
        config : dict
            ``server-round`` (>= 1, default 1) and ``proximal-mu`` (>= 0, default 0) are used.

        Returns
        -------
        parameters : list of ndarray
            The trained model; the given one, unchanged, if training gave nothing usable.
        num_examples : int
            Weight of the update; 0 if it must not be used.
        metrics : dict
            ``train-loss``, ``train-accuracy`` (both 0 when nothing was usable),
            ``skipped-batches`` and ``seconds``.

        Raises
        ------
        ConfigError
            If the parameters do not fit the model or the configuration is out of range.
        """
        started = time.perf_counter()
        server_round = int(number(config, "server-round", 1, 0))
        proximal_mu = number(config, "proximal-mu", 0.0, 0)
        self._load(parameters)
        result = train(
            self._model,
            self._data.x_train,
            self._data.y_train,
            self._data.normalization,
            self._config,
            seed=derive_seed(self._seed, self._client_id, server_round),
            server_round=server_round,
            proximal_mu=proximal_mu,
        )
        if result.num_examples == 0:
            self._load(parameters)
        metrics = self._told(result, time.perf_counter() - started)
        return self.get_parameters({}), result.num_examples, metrics

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Return loss, number of examples and accuracy on the held-out examples, if there is one.

        If ``config`` has a true ``per-class``, the metrics also tell the accuracy on each class
        that the client holds (``accuracy-class-3``). A client without held-out examples returns
        zeros.
        """
        count = len(self._data.y_test)
        if count == 0:
            return 0.0, 0, {"accuracy": 0.0}
        self._load(parameters)
        loss, (examples, right) = evaluate_classes(
            self._model,
            self._data.x_test,
            self._data.y_test,
            self._data.normalization,
            loss=self._config.loss,
        )
        metrics: dict[str, Scalar] = {}
        if examples.any():
            metrics["accuracy"] = int(right.sum()) / int(examples.sum())
        if config.get("per-class"):
            for label in np.flatnonzero(examples):
                metrics[f"accuracy-class-{label}"] = float(right[label] / examples[label])
        return loss, count, metrics

    def _told(self, result: TrainResult, seconds: float) -> dict[str, Scalar]:
        labels: dict[str, Scalar] = {}
        if self._declare_labels and len(self._data.y_train):
            counts = np.bincount(self._data.y_train, minlength=self._data.num_classes)
            labels = {f"label-{k}": float(n / counts.sum()) for k, n in enumerate(counts)}
        accuracy: dict[str, Scalar] = {"train-accuracy": result.accuracy}
        return labels | {
            "train-loss": result.loss,
            **(accuracy if self._data.task != "values" else {}),
            "skipped-batches": result.skipped_batches,
            "seconds": seconds,
        }

    def _load(self, parameters: NDArrays) -> None:
        keys = list(self._model.state_dict())
        if len(parameters) != len(keys):
            raise ConfigError(f"the model has {len(keys)} arrays, {len(parameters)} were sent")
        set_arrays(self._model, dict(zip(keys, parameters, strict=True)))


def derive_seed(seed: int, client_id: int | str, server_round: int) -> int:
    """Return a 63-bit seed that belongs to one client in one round of one run.

    Parameters
    ----------
    seed : int
        The run's seed.
    client_id : int or str
        ``7`` and ``"7"`` are the same client.
    server_round : int
        The round.

    Returns
    -------
    int
        Unrelated for different arguments (SHA-256), so that no two clients or rounds share
        random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{server_round}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def number(config: Mapping[str, Any], key: str, default: float, minimum: float) -> float:
    """Return a number that the server sent, or its default.

    Raises
    ------
    ConfigError
        If it is no number, or less than `minimum`.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= minimum:
        raise ConfigError(f"{key} must be a number >= {minimum}, found {value!r}")
    return value
