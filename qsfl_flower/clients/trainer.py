"""A Flower ``NumPyClient`` around the training loop."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar
from torch import nn

from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.models import get_arrays, set_arrays
from qsfl_flower.clients.session import Declined, Session
from qsfl_flower.clients.training import (
    LocalTraining,
    TrainConfig,
    TrainResult,
    evaluate_classes,
    evaluate_model,
)
from qsfl_flower.errors import ConfigError
from qsfl_flower.wire import DETAIL_KEY, REFUSED_KEY

if TYPE_CHECKING:
    from qsfl_flower.clients.dpsgd import RecordTraining
    from qsfl_flower.clients.mobile_session import Device
    from qsfl_flower.clients.per_example import ClippedGradients
    from qsfl_flower.clients.workload import MemoryModel

__all__ = ["TrainConfig", "TrainResult", "TrainingClient", "evaluate_model", "number"]


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
    records : DPSGD or GradientSums, optional
        Bounds what each record does; see `PrivateTrainingClient` and `GradientSumClient`.
    device : Device, optional
        What it runs on, where that is not always there and willing; see `MobileClient`.

    Raises
    ------
    ConfigError
        With `records`: if the gradients of single records cannot be bounded, with the name of the
        layer.

    Notes
    -----
    Who sees what: the server sees the trained parameters, the number of examples and the metrics;
    with `records` no metrics but what is done for them.

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
        records: RecordTraining | None = None,
        device: Device | None = None,
    ) -> None:
        if device is not None:
            config = replace(config, epochs=device.amount(config.epochs))
        self._model = model
        self._data = data
        self._config = config
        self._seed = seed
        self._client_id = client_id
        self._declare_labels = declare_labels
        self._records, self._device = records, device
        self._engines: dict[tuple[bool, ...], ClippedGradients] = {}
        if records is not None:
            self._clipped_gradients(records)

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
            ``skipped-batches`` and ``seconds``; in place of the first three, with `records`, what
            is done for them under ``dp-...``. A device adds what `MobileClient` says.

        Raises
        ------
        ConfigError
            If the parameters do not fit the model or the configuration is out of range.
        """
        server_round = int(number(config, "server-round", 1, 0))
        proximal_mu = number(config, "proximal-mu", 0.0, 0)
        try:
            if self._device is None:
                session = Session(parameters, server_round, proximal_mu)
            else:
                session = self._device.session(
                    parameters,
                    server_round,
                    proximal_mu,
                    deadline=number(config, "deadline", float("inf"), 0),
                    wanted=self._at_once(),
                    memory=self._memory,
                    owner=self._owner(),
                )
            arrays, result = self._train_round(session)
        except Declined as why:
            return parameters, 0, {REFUSED_KEY: why.reason, DETAIL_KEY: why.detail}
        arrays = session.finish(arrays)
        told = self._told(result) | session.told()
        return (arrays if result.num_examples else parameters), result.num_examples, told

    def _train_round(self, session: Session) -> tuple[NDArrays, TrainResult]:
        """Train from the session's model; what a method of training is made of."""
        self._load(session.base)
        result = session.run(self._training(session))
        return self.get_parameters({}), result

    def _training(
        self,
        session: Session,
        config: TrainConfig | None = None,
        *,
        share: float = 1.0,
        **options: Any,
    ) -> LocalTraining:
        """Return a training of the model as it is now, which is also what it is held near to.

        Parameters
        ----------
        session : Session
            The round.
        config : TrainConfig, optional
            Where it is not the client's.
        share : float
            Part of the round's noisy steps, in (0, 1]; used with `records` only.
        **options
            As for `LocalTraining`.
        """
        data, records, config = self._data, self._records, config or self._config
        where = (self._model, data.x_train, data.y_train, data.normalization, config)
        options = {
            "server_round": session.server_round,
            "proximal_mu": session.proximal_mu,
            "micro_batch": session.micro_batch,
            **options,
        }
        if records is None:
            return LocalTraining(*where, seed=self._seed_of(session), **options)
        steps = records.steps(share)
        if self._device is not None:
            steps = self._device.amount(steps)
        gradients = self._clipped_gradients(records)
        return records.training(*where, gradients, max_steps=steps, **options)

    def _seed_of(self, session: Session) -> int:
        return derive_seed(self._seed, self._client_id, session.server_round)

    def _clipped_gradients(self, records: RecordTraining) -> ClippedGradients:
        """Return what computes single gradients of the parameters that are trained now."""
        from qsfl_flower.clients.dpsgd import gradients_of

        key = tuple(p.requires_grad for p in self._model.parameters())
        if key not in self._engines:
            self._engines[key] = gradients_of(
                self._model, self._data.x_train, self._data.y_train, self._data.normalization,
                loss=records.loss, at_once=records.at_once,
            )  # fmt: skip
        return self._engines[key]

    def _at_once(self) -> int:
        """Return the examples that a step works on at a time, if there is room for them."""
        return self._config.batch_size if self._records is None else max(1, len(self._data.y_train))

    def _memory(self) -> MemoryModel:
        """Return what a step needs, measured once for a model on a device."""
        from qsfl_flower.clients.workload import measure_memory, remembered

        config = self._config
        what: list[Any] = [self._shapes(), config.optimizer, config.momentum > 0]
        what += [config.mixed_precision, *([] if self._records is None else ["records"])]
        store = None if self._device is None else self._device.checkpoints
        return remembered(
            hashlib.sha256(json.dumps(what).encode()).hexdigest(),
            None if store is None else store.folder,
            lambda: measure_memory(
                lambda: copy.deepcopy(self._model),
                self._data.input_shape,
                config,
                self._records,
                self._data.y_train[:0],
            ),
        )

    def _owner(self) -> str:
        """Identify client, data and settings: other checkpoints are not this client's."""
        labels = hashlib.sha256(self._data.y_train.tobytes()).hexdigest()
        what: list[Any] = [type(self).__name__, str(self._client_id), self._seed, labels]
        what += [asdict(self._config), self._shapes(), self._method()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _method(self) -> list[Any]:
        """Return how is trained, as JSON."""
        return [] if self._records is None else [self._records.told()]

    def _shapes(self) -> list[Any]:
        return [(k, list(v.shape)) for k, v in self._model.state_dict().items()]

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

    def _told(self, result: TrainResult) -> dict[str, Scalar]:
        if self._records is not None:
            return {**self._records.told()}
        labels: dict[str, Scalar] = {}
        if self._declare_labels and len(self._data.y_train):
            counts = np.bincount(self._data.y_train, minlength=self._data.num_classes)
            labels = {f"label-{k}": float(n / counts.sum()) for k, n in enumerate(counts)}
        accuracy: dict[str, Scalar] = {"train-accuracy": result.accuracy}
        return labels | {
            "train-loss": result.loss,
            **(accuracy if self._data.task != "values" else {}),
            "skipped-batches": result.skipped_batches,
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
