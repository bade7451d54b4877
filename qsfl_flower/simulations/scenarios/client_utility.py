"""What hiding whole clients costs, by their number: MNIST at epsilon = 1 with central noise.

Every client computes the gradient of a linear model on scattering features, which no data has
shaped, and clips it; the server adds the clipped gradients of all clients, divides by their fixed
number, adds noise and takes a step. With everybody in every round the ratio of signal to noise does
not depend on the number of rounds, and drawing clients at random would not raise it.

MNIST has 60,000 records. Beyond 1,000 clients the simulation is noise-equivalent: the updates are
those of 1,000 real clients and the noise is that of N clients, as if N / 1,000 clients had data
like each of them.

References
----------
F. Tramer, D. Boneh, "Differentially private learning needs better features (or much more data)",
2021. arXiv:2011.11660.
H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning differentially private recurrent language
models", 2018. arXiv:1710.06963.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import add_noise, grid_slack
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.sensitivity import Release, sensitivity

EPSILON, DELTA = 1.0, 1e-5
ROUNDS, CLIP, MOMENTUM, STEP = 60, 1.0, 0.9, 0.03
REAL = 1000
"""Clients that are really computed; more are simulated by their noise."""
SIZES = (100, 300, 1_000, 3_000, 10_000)
_TOGETHER = 500
"""Records whose gradients are computed at a time, at least one client's."""


def table(
    train: Tensor, y: Tensor, test: Tensor, truth: NDArray[np.int64], sizes: Sequence[int] = SIZES
) -> list[dict[str, Any]]:
    """Return one row per number of clients: accuracy with and without privacy.

    Parameters
    ----------
    train, y : Tensor
        Features, float32, shape (n, k), and labels of all clients together.
    test, truth : Tensor, ndarray
        Features and labels of the test set.
    sizes : sequence of int
        Numbers of clients.
    """
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    train, y = train[order], y[order]
    slack = grid_slack(10 * (train.shape[1] + 1))
    noise = noise_multiplier_for(EPSILON, DELTA, ROUNDS, slack=slack)
    epsilon = epsilon_of_events([Event(noise, 1.0, ROUNDS, slack)], DELTA)

    def accuracy(clients: int, size: int | None) -> float:
        weights = _train(train, y, clients, size, noise)
        logits = test @ weights[:, :-1].T + weights[:, -1]
        return float((logits.argmax(1).numpy() == truth).mean())

    # Without clipping the mean of the clients' gradients is that of all records, for any number.
    plain = accuracy(min(REAL, max(sizes)), None)
    rows = []
    for size in sizes:
        private = accuracy(min(size, REAL), size)
        rows.append(
            {
                "clients": size,
                "noise_equivalent": size > REAL,
                "accuracy_private": private,
                "accuracy_without_privacy": plain,
                "points_lost": round(100 * (plain - private), 2),
                "epsilon": epsilon,
                "delta": DELTA,
            }
        )
    return rows


def _train(x: Tensor, y: Tensor, clients: int, size: int | None, noise: float) -> Tensor:
    """Train with as many clients of equally many records; with the noise for `size`, if given."""
    each = len(y) // clients
    weights = torch.zeros(10, x.shape[1] + 1)
    velocity = torch.zeros_like(weights)
    source = Keystream.secure()
    rows = max(1, _TOGETHER // each) * each
    for _ in range(ROUNDS):
        mean = torch.zeros_like(weights)
        for start in range(0, each * clients, rows):
            part = slice(start, min(start + rows, each * clients))
            mean += _gradients(weights, x[part], y[part], each, size is not None) / clients
        if size is not None:
            bound = sensitivity(Release(clip_norm=CLIP, denominator=size))
            flat, _ = add_noise(mean.double().numpy().ravel(), bound.l2, noise, source)
            mean = torch.from_numpy(flat).float().view_as(mean)
        velocity = MOMENTUM * velocity + mean
        weights = weights - STEP * velocity
    return weights


def _gradients(weights: Tensor, x: Tensor, y: Tensor, each: int, clip: bool) -> Tensor:
    """Return the sum of the gradients of clients with `each` records, clipped or not."""
    error = torch.softmax(x @ weights[:, :-1].T + weights[:, -1], 1)
    error[torch.arange(len(y)), y] -= 1
    error = error.view(-1, each, 10) / each
    inner = torch.bmm(error.transpose(1, 2), x.view(len(error), each, -1))
    gradients = torch.cat([inner, error.sum(1)[:, :, None]], 2)
    if clip:
        gradients *= (CLIP / gradients.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]
    return gradients.sum(0)
