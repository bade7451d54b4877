"""Clients whose records are protected, one by one."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.dpsgd import DPSGD, GradientSums
from qsfl_flower.clients.per_example import Loss
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy


class PrivateTrainingClient(TrainingClient):
    """A `TrainingClient` that protects every single record.

    Parameters
    ----------
    model, data, config, seed, client_id
        As for `TrainingClient`.
    privacy : RecordPrivacy
        Clipping, noise and sampling.
    loss : callable
        Takes the model's outputs and the labels of a batch, and returns one number: the loss to
        train by, whatever the outputs are.
    at_once : int or None
        Records whose gradients are in memory at a time, at most; >= 1. The sum is the same.
    copies : int
        As for `DPSGD`; >= 1.

    Raises
    ------
    ConfigError
        If the gradients of single records cannot be bounded, with the name of the layer.

    Notes
    -----
    Who sees what: the server sees noisy parameters, the number of records, and what was done for
    their privacy, which the strategy's stage `RecordDP` compares with its requirement. It sees no
    loss and no accuracy of the records. `evaluate` is not protected: ask for it on public data, or
    not at all. Noise is secret, so two calls never give the same result.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from qsfl_flower.privacy.record import RecordPrivacy
    >>> privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.2, steps=2)
    >>> client = PrivateTrainingClient(
    ...     model, data, TrainConfig(), privacy, seed=1, client_id="client-0"
    ... )
    >>> arrays, examples, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    >>> metrics["dp-noise-multiplier"]
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        privacy: RecordPrivacy,
        *,
        seed: int,
        client_id: int | str,
        loss: Loss = functional.cross_entropy,
        at_once: int | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__(
            model, data, config, seed=seed, client_id=client_id,
            records=DPSGD(privacy, loss, at_once, copies),
        )  # fmt: skip


class GradientSumClient(TrainingClient):
    r"""A `TrainingClient` that sends the sum of its records' clipped gradients, without noise.

    One round is one step: with the stage `DistributedDP` the mod adds a share of the noise, and the
    secure sum over all clients is the noisy sum of central DP-SGD on all records together. The
    step size is the server optimizer's (`ServerMomentum`).

    Parameters
    ----------
    model, data, seed, client_id
        As for `TrainingClient`.
    batch : RecordBatch
        Clipping and sampling.
    loss, at_once
        As for `PrivateTrainingClient`.

    Notes
    -----
    Who sees what: by itself this client protects nothing. Under `DistributedDP` the server sees the
    noisy sum over all clients and the numbers of records count as public; the mod lets no metrics
    out. Batches are secret, so two calls never give the same result.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from qsfl_flower.privacy.record import RecordBatch
    >>> batch = RecordBatch(clip_norm=1.0, sampling_rate=0.2, sum_norm=20.0)
    >>> client = GradientSumClient(model, data, batch, seed=1, client_id="client-0")
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        batch: RecordBatch,
        *,
        seed: int,
        client_id: int | str,
        loss: Loss = functional.cross_entropy,
        at_once: int | None = None,
    ) -> None:
        super().__init__(
            model, data, TrainConfig(), seed=seed, client_id=client_id,
            records=GradientSums(batch, loss, at_once),
        )  # fmt: skip
