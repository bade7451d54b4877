"""A client that keeps or makes a model of its own; see `Personalization` for the methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import nn

from qsfl_flower.clients.batches import least_batch
from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.losses import loss_named
from qsfl_flower.clients.meta_training import MetaTraining, Weights
from qsfl_flower.clients.models import get_arrays, set_arrays
from qsfl_flower.clients.session import Session
from qsfl_flower.clients.trainer import TrainingClient, derive_seed
from qsfl_flower.clients.training import LocalTraining, TrainConfig, TrainResult, evaluate_model
from qsfl_flower.errors import ConfigError
from qsfl_flower.personalization import Personalization, adapt, support_and_query
from qsfl_flower.wire import from_record, to_record

if TYPE_CHECKING:
    from qsfl_flower.clients.dpsgd import RecordTraining
    from qsfl_flower.clients.mobile_session import Device

STATE = "qsfl-personal"
"""Record in Flower's client state that holds what stays on the device."""


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
    records : DPSGD or GradientSums, optional
        As for `TrainingClient`. Layers that stay are trained by the same noisy steps as those that
        are sent, and a record's gradient is bounded over both: later gradients of the sent layers
        depend on the layers that stay, so that a head without noise would let every record
        show through. ditto's own model moves nothing that is sent and is trained without noise, as
        is adaptation before use.
    device : Device, optional
        As for `TrainingClient`. What stays is kept once the round is finished.

    Raises
    ------
    ConfigError
        If the model has no such layers, or `records` does not go with the method.

    Notes
    -----
    Who sees what: the server sees the common part of the update and the metrics; the personal part
    stays in the client's memory. `evaluate` tells how good it is on the held-out examples, which
    `records` does not protect.

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
        records: RecordTraining | None = None,
        device: Device | None = None,
    ) -> None:
        if records is not None:
            personalization.check_records(records.noisy, records.steps())
        self._how = personalization
        self._state = state
        super().__init__(
            model, data, config, seed=seed, client_id=client_id, declare_labels=declare_labels,
            records=records, device=device,
        )  # fmt: skip
        if personalization.method in ("fedper", "fedrep") and not self._kept():
            raise ConfigError(
                f"no parameter of the model begins with {' or '.join(personalization.head)}; it "
                f"has {', '.join(model.state_dict())}"
            )

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
        of = Weights(self._model, self._data, loss_named(self._config.loss))
        if kept or self._how.method == "ditto" or len(self._data.y_train) == 0:
            return self._model
        rows = np.arange(len(self._data.y_train)) if rows is None else rows
        steps = self._how.inner_steps if steps is None else steps
        if len(rows) and steps:
            self._model.eval()
            of.put(adapt(of.loss, of.now(), of.batch(rows), self._how.inner_rate, steps))
        return self._model

    def _train_round(self, session: Session) -> tuple[NDArrays, TrainResult]:
        """Train what stays, then what is sent."""
        self._load(session.base)
        method = self._how.method
        if method in ("fedper", "fedrep"):
            return self._train_with_head(session)
        if method in ("maml", "per-fedavg"):
            result = self._meta_train(session)
        else:
            if method == "ditto":
                self._train_own(session)
            result = session.run(self._training(session))
            if session.kept and result.num_examples:
                self._state[STATE] = to_record(session.kept)
        return self.get_parameters({}), result

    def _train_with_head(self, session: Session) -> tuple[NDArrays, TrainResult]:
        """Train common layers and the device's own; leave the common model's head as it came."""
        common = get_arrays(self._model)
        set_arrays(self._model, {**common, **self._remembered()})
        if self._how.method == "fedrep":
            # The head is trained for as many epochs as the client trains, the rest for one.
            share = self._config.epochs / (self._config.epochs + 1)
            if session.kept is None:
                with _frozen(self._model, lambda name: not self._how.stays(name)):
                    session.run(self._training(session, share=share, proximal_mu=0.0))
                session.kept = self._head()
            set_arrays(self._model, {**get_arrays(self._model), **session.kept})
            with _frozen(self._model, self._how.stays):
                once = replace(self._config, epochs=1)
                result = session.run(self._training(session, once, share=1 - share))
        else:
            result = session.run(self._training(session))
        head = self._head()
        if result.num_examples:
            self._state[STATE] = to_record(head)
        set_arrays(self._model, {**get_arrays(self._model), **{k: common[k] for k in head}})
        return self.get_parameters({}), result

    def _train_own(self, session: Session) -> None:
        """Train Ditto's own model, towards the model that was sent; that one is loaded after it."""
        if session.kept is None:
            own = LocalTraining(
                self._model, self._data.x_train, self._data.y_train, self._data.normalization,
                self._config, seed=self._seed_of(session), server_round=session.server_round,
                proximal_mu=self._how.proximal, micro_batch=session.micro_batch,
            )  # fmt: skip
            set_arrays(self._model, {**get_arrays(self._model), **self._remembered()})
            session.kept = get_arrays(self._model) if session.run(own).num_examples else {}
            self._load(session.base)

    def _meta_train(self, session: Session) -> TrainResult:
        """Take meta-steps; the data are divided once, batches are drawn for every step."""
        how, count = self._how, len(self._data.y_train)
        if count < 2:
            return TrainResult(0, 0.0, 0.0, 0)
        parts = support_and_query(
            count, how.query_share, derive_seed(self._seed, self._client_id, 0)
        )
        if min(how.meta_batch, *map(len, parts)) < least_batch(self._model):
            return TrainResult(0, 0.0, 0.0, how.meta_steps)
        seed = self._seed_of(session)
        training = MetaTraining(self._model, self._data, self._config, how, parts, seed)
        return session.run(training)

    def _head(self) -> dict[str, NDArray[Any]]:
        """Return the layers that stay, as they are now."""
        arrays = get_arrays(self._model)
        return {name: arrays[name] for name in self._kept()}

    def _method(self) -> list[Any]:
        return [*super()._method(), asdict(self._how)]

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
