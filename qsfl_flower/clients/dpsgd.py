"""DP-SGD: trainings in which the influence of every single record is bounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.batches import augmented, inputs_of
from qsfl_flower.clients.data import Normalization
from qsfl_flower.clients.per_example import ClippedGradients, ClippedSum, Loss, made_up
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.training import LocalTraining, TrainResult
from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy


class RecordTraining(Protocol):
    """How a client bounds what each of its records does: `DPSGD` or `GradientSums`."""

    @property
    def noisy(self) -> bool:
        """Whether all that training moves has noise in it already."""

    @property
    def loss(self) -> Loss:
        """The loss to train by."""

    @property
    def at_once(self) -> int | None:
        """Records whose gradients are in memory at a time, at most."""

    def told(self) -> dict[str, float]:
        """Return the metrics with which a client says what it does for its records."""

    def steps(self, factor: float = 1.0) -> int:
        """Return the steps of a round, or of a part of it; >= 1."""

    def everything(self) -> Self:
        """Return the same for one step on all records, to measure what that needs."""

    def training(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        gradients: ClippedGradients,
        **options: Any,
    ) -> LocalTraining:
        """Return a training; the options are those of `LocalTraining`, but no seed."""


@dataclass(frozen=True)
class DPSGD:
    """Train by DP-SGD; see `PrivateTraining`.

    Parameters
    ----------
    privacy : RecordPrivacy
        Clipping, noise and sampling.
    loss : callable
        Takes the model's outputs and the labels of a batch, and returns one number: the loss to
        train by, whatever the outputs are.
    at_once : int or None
        Records whose gradients are in memory at a time, at most; >= 1. The sum is the same.
    copies : int
        Augmented copies of each record in a batch, >= 1; its gradient is the mean over them, so
        that they cost no privacy (De et al. 2022).

    Examples
    --------
    >>> from qsfl_flower.privacy.record import RecordPrivacy
    >>> how = DPSGD(RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.2, steps=9))
    >>> how.steps(0.5)
    4
    """

    privacy: RecordPrivacy
    loss: Loss = functional.cross_entropy
    at_once: int | None = None
    copies: int = 1
    noisy = True

    def told(self) -> dict[str, float]:
        """Return the fields of `RecordPrivacy`: what is done at most."""
        return self.privacy.told()

    def steps(self, factor: float = 1.0) -> int:
        """Return the steps of a round, or of a part of it."""
        return max(1, round(self.privacy.steps * factor))

    def everything(self) -> DPSGD:
        """Return one step on all records."""
        return replace(self, privacy=replace(self.privacy, sampling_rate=1.0, steps=1))

    def training(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        gradients: ClippedGradients,
        **options: Any,
    ) -> LocalTraining:
        """Return a training with secret randomness."""
        return PrivateTraining(
            model, x, y, normalization, config, self.privacy, gradients, Keystream.secure(),
            copies=self.copies, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class GradientSums:
    """Take one step of the sum of clipped gradients; see `GradientSumTraining`.

    Parameters
    ----------
    batch : RecordBatch
        Clipping and sampling.
    loss, at_once
        As for `DPSGD`.

    Examples
    --------
    >>> from qsfl_flower.privacy.record import RecordBatch
    >>> GradientSums(RecordBatch(clip_norm=1.0, sampling_rate=0.2, sum_norm=20.0)).noisy
    False
    """

    batch: RecordBatch
    loss: Loss = functional.cross_entropy
    at_once: int | None = None
    noisy = False

    def told(self) -> dict[str, float]:
        """Return the fields of `RecordBatch`."""
        return self.batch.told()

    def steps(self, factor: float = 1.0) -> int:
        """Return 1."""
        del factor
        return 1

    def everything(self) -> GradientSums:
        """Return a step on all records."""
        return replace(self, batch=replace(self.batch, sampling_rate=1.0))

    def training(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        gradients: ClippedGradients,
        **options: Any,
    ) -> LocalTraining:
        """Return a training with secret randomness."""
        return GradientSumTraining(
            model, x, y, normalization, config, self.batch, gradients, Keystream.secure(), **options
        )


class _Poisson(LocalTraining):
    """A training whose batches hold each record by a secret coin.

    What can be known of its progress, time and memory is the same whichever records a batch holds:
    `last_batch` is how many are expected.
    """

    def __init__(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        gradients: ClippedGradients,
        source: Keystream,
        rate: float,
        *,
        micro_batch: int | None = None,
        **options: Any,
    ) -> None:
        seed = int(source.below(1 << 62, 1)[0])
        super().__init__(model, x, y, normalization, config, seed=seed, **options)
        self._normalization, self._gradients, self._fits = normalization, gradients, micro_batch
        self._source, self._rate = source, rate
        self._last_batch = max(1, round(rate * len(y)))

    @property
    def planned(self) -> int:
        """Steps of the whole training."""
        return (self._max_steps or 0) if len(self._labels) else 0

    def result(self) -> TrainResult:
        """Return what training did; nothing of it depends on single records."""
        state = self._model.state_dict().values()
        usable = len(self._labels) > 0 and all(bool(v.isfinite().all()) for v in state)
        return TrainResult(len(self._labels) if usable else 0, 0.0, 0.0, 0, self._steps)

    def _next(self) -> Tensor | None:
        if self._batches >= self.planned:
            return None
        self._batches += 1
        return self._draw()

    def _draw(self) -> Tensor:
        chosen = self._source.uniforms(len(self._labels)) < self._rate
        return torch.from_numpy(chosen).nonzero().squeeze(1)

    def _clipped(self, rows: Tensor, clip_norm: float, copies: int = 1) -> Tensor:
        """Return the clipped sum of a batch, which may be empty, as one vector."""
        batch, target = (t[rows].repeat_interleave(copies, 0) for t in (self._images, self._labels))
        if self._config.augment and batch.dim() == 4:
            batch = augmented(batch, self._shuffle)
        batch = inputs_of(self._model, batch, self._normalization)
        fits = None if self._fits is None else max(1, self._fits // copies)
        return flat(self._gradients.sum(batch, target, clip_norm, copies=copies, at_once=fits))

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]


class PrivateTraining(_Poisson):
    r"""A training in which every single record is protected, whatever becomes of the model.

    Each of T steps draws a Poisson batch B and follows

    .. math:: \frac{1}{q n} \Big( \sum_{i \in B} g_i \min(1, C / \lVert g_i \rVert)
       + \mathcal N(0, z^2 C^2) \Big)

    where n is the client's number of records, which counts as public. :math:`g_i` has all that is
    trained, so that its norm is that of sent and of kept layers together: both move by noisy sums
    alone. Interrupted and taken up again it draws fresh coins and fresh noise.

    Parameters
    ----------
    model, x, y, normalization, config
        As for `LocalTraining`; `epochs` and `batch_size` are not used.
    privacy : RecordPrivacy
        Clipping, noise and sampling.
    gradients : ClippedGradients
        What `gradients_of` returned for this model and data.
    source : Keystream
        Randomness of batches and noise; ``Keystream.secure()`` outside tests.
    copies : int
        As for `DPSGD`.
    max_steps : int or None
        T; None: the steps of `privacy`.
    **options
        `server_round`, `proximal_mu`, `correction` and `micro_batch` of `LocalTraining`; the
        correction of a step is added to the noisy gradient.

    References
    ----------
    M. Abadi et al., "Deep learning with differential privacy", 2016. arXiv:1607.00133.
    S. De et al., "Unlocking high-accuracy differentially private image classification through
    scale", 2022. arXiv:2204.13650.
    """

    def __init__(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        privacy: RecordPrivacy,
        gradients: ClippedGradients,
        source: Keystream,
        *,
        copies: int = 1,
        max_steps: int | None = None,
        **options: Any,
    ) -> None:
        if copies < 1 or (copies > 1 and not config.augment):
            raise ConfigError(f"copies must be >= 1, and 1 without augment, found {copies}")
        super().__init__(
            model, x, y, normalization, config, gradients, source, privacy.sampling_rate,
            max_steps=max_steps or privacy.steps, **options,
        )  # fmt: skip
        self._privacy, self._copies = privacy, copies

    def _step(self, rows: Tensor) -> bool:
        p = self._privacy
        total = self._clipped(rows, p.clip_norm, self._copies)
        noisy, _ = add_noise(total.numpy(), p.clip_norm, p.noise_multiplier, self._source)
        with torch.no_grad():
            steps = self._split(torch.from_numpy(noisy / (self._rate * len(self._labels))))
            for parameter, gradient in zip(self._parameters, steps, strict=True):
                parameter.grad = gradient.to(parameter.dtype, copy=True)
            return self._move()


class GradientSumTraining(_Poisson):
    r"""One step of the sum of a Poisson batch's clipped gradients, without noise.

    Parameters
    ----------
    model, x, y, normalization, config, gradients, source
        As for `PrivateTraining`; the step size is 1.
    batch : RecordBatch
        Clipping and sampling.
    **options
        `micro_batch` and `server_round` of `LocalTraining`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: NDArray[np.generic],
        y: NDArray[Any],
        normalization: Normalization,
        config: TrainConfig,
        batch: RecordBatch,
        gradients: ClippedGradients,
        source: Keystream,
        **options: Any,
    ) -> None:
        coins = source.uniforms(len(y))
        options["max_steps"] = 1
        super().__init__(
            model, x, y, normalization, config, gradients, source, batch.sampling_rate, **options
        )
        self._batch, self._rows = batch, torch.from_numpy(coins < self._rate).nonzero().squeeze(1)

    def _draw(self) -> Tensor:
        return self._rows

    def _step(self, rows: Tensor) -> bool:
        total = self._clipped(rows, self._batch.clip_norm)
        total *= min(1.0, self._batch.sum_norm / max(float(total.norm()), 1e-300))
        with torch.no_grad():
            for parameter, part in zip(self._parameters, self._split(total), strict=True):
                parameter.sub_(part)
        return True


def gradients_of(
    model: nn.Module,
    x: NDArray[np.generic],
    y: NDArray[Any],
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
