"""DP-SGD: the local training loop with record-level differential privacy."""

from __future__ import annotations

import time

import numpy as np
import torch
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.batches import augmented, inputs_of
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.optimizer import Optimizer
from qsfl_flower.clients.per_example import ClippedGradients, ClippedSum, Loss, made_up
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trainer import TrainingClient, number
from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy


def train_privately(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    normalization: Normalization,
    config: TrainConfig,
    privacy: RecordPrivacy,
    *,
    source: Keystream,
    server_round: int = 1,
    proximal_mu: float = 0.0,
    gradients: ClippedGradients | None = None,
    copies: int = 1,
) -> bool:
    r"""Train a model in place so that every single record is protected.

    Each of `steps` steps draws a Poisson batch B and follows

    .. math:: \frac{1}{q n} \Big( \sum_{i \in B} g_i \min(1, C / \lVert g_i \rVert)
       + \mathcal N(0, z^2 C^2) \Big)

    where n is the client's number of records, which counts as public.

    Parameters
    ----------
    model, x, y, normalization, config, server_round, proximal_mu
        As for :func:`~qsfl_flower.clients.training.train`; `epochs` and `batch_size` are not used.
    privacy : RecordPrivacy
        Clipping, noise and sampling.
    source : Keystream
        Randomness of batches and noise; ``Keystream.secure()`` outside tests.
    gradients : ClippedGradients or None
        What `gradients_of` returned for this model and data, or None to have it made here.
    copies : int
        Augmented copies of each record in a batch, >= 1; its gradient is the mean over them, so
        that they cost no privacy (De et al. 2022).

    Returns
    -------
    bool
        Whether there were records and all weights are finite.

    References
    ----------
    M. Abadi et al., "Deep learning with differential privacy", 2016. arXiv:1607.00133.
    S. De et al., "Unlocking high-accuracy differentially private image classification through
    scale", 2022. arXiv:2204.13650.
    """
    if copies < 1 or (copies > 1 and not config.augment):
        raise ConfigError(f"copies must be >= 1, and 1 without augment, found {copies}")
    if gradients is None:
        gradients = gradients_of(model, x, y, normalization)
    if len(y) == 0:
        return False
    images, labels = torch.tensor(x), torch.tensor(y)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters] if proximal_mu > 0 else []
    step = Optimizer(parameters, config, server_round)
    sizes = [p.numel() for p in parameters]
    expected = privacy.sampling_rate * len(y)
    model.train()
    with torch.random.fork_rng(devices=[]):
        seed = int(source.below(1 << 62, 1)[0])
        torch.default_generator.manual_seed(seed)
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(privacy.steps):
            batch, target = poisson_batch(images, labels, privacy.sampling_rate, source)
            batch, target = (t.repeat_interleave(copies, 0) for t in (batch, target))
            if config.augment and batch.dim() == 4:
                batch = augmented(batch, shuffle)
            batch = inputs_of(model, batch, normalization)
            total = flat(gradients.sum(batch, target, privacy.clip_norm, copies=copies))
            noisy, _ = add_noise(
                total.numpy(),
                privacy.clip_norm,
                privacy.noise_multiplier,
                source,
            )
            with torch.no_grad():
                step_of = torch.split(torch.from_numpy(noisy / expected), sizes)
                for p, gradient in zip(parameters, step_of, strict=True):
                    p.grad = gradient.view_as(p).to(p.dtype, copy=True)
                for p, start in zip(parameters, anchor, strict=False):
                    if p.grad is not None:
                        p.grad.add_(p - start, alpha=proximal_mu)
                step()
    model.zero_grad(set_to_none=True)
    return all(bool(v.isfinite().all()) for v in model.state_dict().values())


def poisson_batch(
    images: Tensor, labels: Tensor, sampling_rate: float, source: Keystream
) -> tuple[Tensor, Tensor]:
    """Return the records of a batch: each with the given probability, by a secret coin."""
    rows = torch.from_numpy(source.uniforms(len(labels)) < sampling_rate)
    return images[rows], labels[rows]


def gradients_of(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    normalization: Normalization,
    *,
    loss: Loss = functional.cross_entropy,
    at_once: int | None = None,
) -> ClippedGradients:
    """Probe a model on made-up records of the data's shape and type; see `ClippedGradients`.

    Raises
    ------
    ConfigError
        If single gradients cannot be bounded, with the name of the layer.
    """
    model.train()
    images, labels = made_up(torch.tensor(x[:0])), made_up(torch.tensor(y[:0]))
    batch = inputs_of(model, images, normalization)
    return ClippedGradients(model, batch, labels, loss=loss, at_once=at_once)


def flat(found: ClippedSum) -> Tensor:
    """Return a clipped sum as one vector, float64."""
    return torch.cat([gradient.reshape(-1).double() for gradient in found.gradients])


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
        As for `train_privately`; >= 1.

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
        super().__init__(model, data, config, seed=seed, client_id=client_id)
        self._privacy, self._copies = privacy, copies
        self._gradients = gradients_of(
            model, data.x_train, data.y_train, data.normalization, loss=loss, at_once=at_once
        )

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train privately from the given parameters; see `TrainingClient.fit`.

        Returns
        -------
        parameters, num_examples
            As for `TrainingClient.fit`.
        metrics : dict
            ``seconds`` and, under ``dp-...``, the fields of `RecordPrivacy`.
        """
        started = time.perf_counter()
        self._load(parameters)
        usable = train_privately(
            self._model,
            self._data.x_train,
            self._data.y_train,
            self._data.normalization,
            self._config,
            self._privacy,
            source=Keystream.secure(),
            server_round=int(number(config, "server-round", 1, 0)),
            proximal_mu=number(config, "proximal-mu", 0.0, 0),
            gradients=self._gradients,
            copies=self._copies,
        )
        if not usable:
            self._load(parameters)
        told: dict[str, Scalar] = {**self._privacy.told(), "seconds": time.perf_counter() - started}
        return self.get_parameters({}), len(self._data.y_train) if usable else 0, told


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
        super().__init__(model, data, TrainConfig(), seed=seed, client_id=client_id)
        self._batch = batch
        self._gradients = gradients_of(
            model, data.x_train, data.y_train, data.normalization, loss=loss, at_once=at_once
        )

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Return the given parameters minus the sum of a Poisson batch's clipped gradients.

        Returns
        -------
        parameters, num_examples
            As for `TrainingClient.fit`.
        metrics : dict
            Under ``dp-...`` the fields of `RecordBatch`.
        """
        self._load(parameters)
        images, labels = torch.tensor(self._data.x_train), torch.tensor(self._data.y_train)
        source = Keystream.secure()
        batch, target = poisson_batch(images, labels, self._batch.sampling_rate, source)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._model.train()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(source.below(1 << 62, 1)[0]))
            batch = inputs_of(self._model, batch, self._data.normalization)
            total = flat(self._gradients.sum(batch, target, self._batch.clip_norm))
        total *= min(1.0, self._batch.sum_norm / max(float(total.norm()), 1e-300))
        with torch.no_grad():
            parts = torch.split(total, [p.numel() for p in trained])
            for p, part in zip(trained, parts, strict=True):
                p.sub_(part.view_as(p))
        return self.get_parameters({}), len(labels), {**self._batch.told()}
