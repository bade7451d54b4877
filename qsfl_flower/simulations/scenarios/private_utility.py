"""What privacy costs on MNIST at epsilon = 1: for records of ten silos, and for whole clients.

Records: every silo computes scattering features, which no data has shaped, draws a Poisson batch,
clips every record's gradient, adds its share of discrete Gaussian noise on the integer grid, and
hands the integers to a sum; only the noisy sum is used. That is exactly what a secure sum would
reveal; the sum itself is plain here: these are the numbers of the protected federation without its
cost.

The same federation without privacy differs in nothing but clipping and noise, and has its own step
size. Whole clients, by their number, are in `client_utility`. All settings were chosen on the last
10,000 training records, which were held out for that.

References
----------
F. Tramer, D. Boneh, "Differentially private learning needs better features (or much more data)",
2021. arXiv:2011.11660.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.clients.scattering import scattering
from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.simulations.scenarios import client_utility

SILOS, EPSILON, DELTA = 10, 1.0, 1e-5
STEPS, RATE, CLIP, MOMENTUM = 200, 0.2, 1.0, 0.9
STEP_PRIVATE, STEP_PLAIN = 1.0, 0.02
DROPOUTS = 2
"""Silos that may be missing from a sum without weakening it."""


def run(
    folder: Path, *, steps: int = STEPS, sizes: Sequence[int] = client_utility.SIZES
) -> dict[str, Any]:
    """Train all federations and return their accuracy on the test set.

    Parameters
    ----------
    folder : Path
        Where the features are kept for the next time (1.1 GB).
    steps : int
        Noisy sums of the silos, >= 1.
    sizes : sequence of int
        Numbers of clients.

    Returns
    -------
    dict
        JSON values: accuracy with and without privacy, the loss in points, epsilon and the noise,
        for the records of ten silos and for every number of clients.
    """
    data = load_dataset("mnist")
    train = _features(folder / "scattering-train.npy", data.x_train)
    test = _features(folder / "scattering-test.npy", data.x_test)
    labels = torch.tensor(data.y_train)
    owners = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)) % SILOS)
    size = 10 * (train.shape[1] + 1)
    noise = noise_multiplier_for(EPSILON, DELTA, steps, RATE, slack=1e-12)
    share = NoiseShare(clip_norm=CLIP, noise_multiplier=noise, fewest=SILOS - DROPOUTS, size=size)
    private = _train(train, labels, owners, steps, STEP_PRIVATE, share)
    plain = _train(train, labels, owners, steps, STEP_PLAIN, None)
    found = {
        name: float((_logits(test, w).argmax(1).numpy() == data.y_test).mean())
        for name, w in (("private", private), ("plain", plain))
    }
    events = [replace(share.event(RATE), count=steps)]
    records = {
        "accuracy_private": found["private"],
        "accuracy_without_privacy": found["plain"],
        "points_lost": round(100 * (found["plain"] - found["private"]), 2),
        "epsilon": epsilon_of_events(events, DELTA),
        "delta": DELTA,
        "noise_multiplier": noise,
        "silos": SILOS,
        "steps": steps,
    }
    clients = client_utility.table(train, labels, test, data.y_test, sizes)
    return {"records of ten silos": records, "clients": clients}


def _features(cache: Path, pictures: Any) -> Tensor:
    if cache.exists():
        kept: Tensor = torch.from_numpy(np.load(cache))
        return kept
    found = scattering(torch.tensor(pictures).reshape(-1, 1, 28, 28).float() / 255)
    np.save(cache, found.numpy())
    return found


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    logits: Tensor = x @ weights[:, :-1].T + weights[:, -1]
    return logits


def _train(
    x: Tensor, y: Tensor, owners: Tensor, steps: int, step_size: float, share: NoiseShare | None
) -> Tensor:
    """Train a linear model by sums over the silos' batches; with noise if there is a share."""
    weights: Tensor = torch.zeros(10, x.shape[1] + 1)
    velocity = torch.zeros_like(weights)
    sizes = (x.square().sum(1) + 1).sqrt()
    draws = torch.Generator().manual_seed(0)
    source = Keystream.secure()
    for _ in range(steps):
        total = np.zeros(weights.numel(), dtype=np.int64 if share else np.float64)
        drawn = torch.rand(len(y), generator=draws) < RATE
        for silo in range(SILOS):
            rows = torch.nonzero(drawn & (owners == silo)).squeeze(1)
            batch = x[rows]
            error = torch.softmax(_logits(batch, weights), 1)
            error[torch.arange(len(rows)), y[rows]] -= 1
            if share is not None:
                error *= (CLIP / (error.norm(dim=1) * sizes[rows])).clamp(max=1)[:, None]
            gradient = torch.cat([error.T @ batch, error.sum(0)[:, None]], 1)
            values = gradient.double().numpy().reshape(-1)
            if share is None:
                total += values
            else:
                total += share.privatize(values, CLIP * max(1, len(rows)), source)
        mean = total * (share.resolution if share else 1.0) / (RATE * len(y))
        velocity = MOMENTUM * velocity + torch.from_numpy(mean).float().view_as(weights)
        weights = weights - step_size * velocity
    return weights
