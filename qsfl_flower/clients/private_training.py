"""DP-SGD: the local training loop with record-level differential privacy."""

from __future__ import annotations

import time

import numpy as np
import torch
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor, nn

from qsfl_flower.clients.batches import augmented, scale_of
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.optimizer import Optimizer
from qsfl_flower.clients.per_example import clipped_gradient_sum
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trainer import TrainingClient, number
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy


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

    Returns
    -------
    bool
        Whether there were records and all weights are finite.

    References
    ----------
    M. Abadi et al., "Deep learning with differential privacy", 2016.
    """
    if len(y) == 0:
        return False
    images, labels = torch.tensor(x), torch.tensor(y)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters] if proximal_mu > 0 else []
    step = Optimizer(parameters, config, server_round)
    mean, std = scale_of(normalization, images.dim())
    sizes = [p.numel() for p in parameters]
    expected = privacy.sampling_rate * len(y)
    model.train()
    with torch.random.fork_rng(devices=[]):
        seed = int(source.below(1 << 62, 1)[0])
        torch.default_generator.manual_seed(seed)
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(privacy.steps):
            rows = torch.from_numpy(source.uniforms(len(y)) < privacy.sampling_rate)
            total = torch.zeros(sum(sizes))
            if bool(rows.any()):
                batch, target = images[rows], labels[rows]
                if config.augment and batch.dim() == 4:
                    batch = augmented(batch, shuffle)
                batch = batch.to(torch.float32).sub_(mean).div_(std)
                clipped = clipped_gradient_sum(model, batch, target, privacy.clip_norm)
                total = torch.cat([g.reshape(-1) for g in clipped.gradients])
            noisy, _ = add_noise(
                total.numpy().astype(np.float64),
                privacy.clip_norm,
                privacy.noise_multiplier,
                source,
            )
            with torch.no_grad():
                flat = torch.from_numpy(noisy / expected).to(torch.float32)
                for p, gradient in zip(parameters, torch.split(flat, sizes), strict=True):
                    p.grad = gradient.view_as(p).clone()
                for p, start in zip(parameters, anchor, strict=False):
                    if p.grad is not None:
                        p.grad.add_(p - start, alpha=proximal_mu)
                step()
    model.zero_grad(set_to_none=True)
    return all(bool(v.isfinite().all()) for v in model.state_dict().values())


class PrivateTrainingClient(TrainingClient):
    """A `TrainingClient` that protects every single record.

    Parameters
    ----------
    model, data, config, seed, client_id
        As for `TrainingClient`.
    privacy : RecordPrivacy
        Clipping, noise and sampling.

    Notes
    -----
    Who sees what: the server sees noisy parameters, the number of records, and what was done for
    their privacy, which the strategy's stage `RecordDP` compares with its requirement. It sees no
    loss and no accuracy of the records. `evaluate` is not protected: ask for it on public data, or
    not at all. Noise is secret, so two calls never give the same result.
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
    ) -> None:
        super().__init__(model, data, config, seed=seed, client_id=client_id)
        self._privacy = privacy

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
        )
        if not usable:
            self._load(parameters)
        told: dict[str, Scalar] = {**self._privacy.told(), "seconds": time.perf_counter() - started}
        return self.get_parameters({}), len(self._data.y_train) if usable else 0, told
