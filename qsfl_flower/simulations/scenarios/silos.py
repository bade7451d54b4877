"""Silos that train a linear model on scattering features: honest, private, and lying ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient
from numpy.typing import NDArray

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.clients.scattering import scattering
from qsfl_flower.mechanisms.robust.core.attacks import Attack, View
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.stages import SharedMask

Floats = NDArray[np.float32]

CLASSES = 10
BATCH, RATE = 64, 0.02
"""Of the training without privacy."""


def features_of(dataset: str, folder: Path) -> dict[str, NDArray[Any]]:
    """Return scattering features and labels of a data set, and keep them for the next time.

    Parameters
    ----------
    dataset : str
        Pictures in ten classes, with sides that are multiples of 4.
    folder : Path
        Where the features are kept, half precision.

    Returns
    -------
    dict
        ``x_train``, ``x_test`` of shape (n, d) with a column of ones; ``y_train``, ``y_test``.
    """
    data = load_dataset(dataset)
    found: dict[str, NDArray[Any]] = {"y_train": data.y_train, "y_test": data.y_test}
    for name, pictures in (("x_train", data.x_train), ("x_test", data.x_test)):
        kept = folder / f"scattering-{dataset}-{name}.npy"
        if not kept.exists():
            pixels = torch.tensor(pictures).float()
            pixels = pixels.reshape(-1, *pixels.shape[-3:]) / pixels.max()
            np.save(kept, scattering(pixels).numpy().astype(np.float16))
        x = np.load(kept, mmap_mode="r")
        found[name] = np.ones((len(x), x.shape[1] + 1), np.float32)
        found[name][:, :-1] = x
    return found


def probabilities(x: Floats, weights: Floats) -> Floats:
    """Return softmax probabilities, shape (n, 10)."""
    logits = x @ weights.T
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


@dataclass
class Gang:
    """What the attackers know: the honest updates of the last rounds, as they are made.

    Parameters
    ----------
    attack : Attack
        What they do.
    attackers, clients : int
        How many they are, among how many clients of a round.
    seen : list
        The latest honest updates, the newest last.
    """

    attack: Attack
    attackers: int
    clients: int
    seen: list[Floats] = field(default_factory=list)

    def watch(self, update: Floats) -> None:
        """Look at an honest update."""
        self.seen = [*self.seen, update][-self.clients :]

    def lie(self, own: Floats, client: int, server_round: int) -> Floats:
        """Return what an attacker sends instead of its honest update."""
        known = np.array([u.ravel() for u in self.seen or [own]], np.float64)
        rng = np.random.default_rng([client, server_round])
        flat = own.ravel().astype(np.float64)
        view = View(flat, known, self.clients, self.attackers, server_round, rng)
        return self.attack.craft(view).reshape(own.shape).astype(np.float32)


class Silo(NumPyClient):
    r"""One silo; with `privacy` it takes one private step on the coordinates that will be sent.

    .. math:: W \leftarrow W - \frac{\eta}{n} \Big(\sum_i g_i \min(1, C / \lVert g_i \rVert)
              + \mathcal N(0, z^2 C^2)\Big)

    over all n records, where g is the gradient on the round's public coordinates alone. Without it
    the silo makes one pass of plain SGD.

    Parameters
    ----------
    number : int
        Which one.
    x, y : ndarray
        Its features, shape (n, d), and labels.
    privacy : RecordPrivacy, optional
        Clipping and noise; all records are in every batch.
    mask : SharedMask, optional
        Names the coordinates, with `privacy`.
    step : float
        The step size of private steps.
    gang : Gang, optional
        The attackers; honest silos are watched by it.
    lies : bool
        Whether this silo is one of them.
    """

    def __init__(
        self,
        number: int,
        x: Floats,
        y: NDArray[np.int64],
        privacy: RecordPrivacy | None,
        mask: SharedMask | None,
        step: float,
        gang: Gang | None,
        lies: bool,
    ) -> None:
        self.number, self.x, self.y = number, x, y
        self.privacy, self.mask, self.step = privacy, mask, step
        self.gang, self.lies = gang, lies

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, Any]:
        """Train, or lie."""
        weights, server_round = parameters[0], int(config["server-round"])
        told: dict[str, float] = {}
        if self.privacy is None or self.mask is None:
            update = self._plainly(weights, server_round)
        else:
            update = self._privately(weights, server_round, self.privacy, self.mask)
            told = self.privacy.told()
        if self.gang is not None and self.lies:
            update = self.gang.lie(update, self.number, server_round)
        elif self.gang is not None:
            self.gang.watch(update)
        return [weights + update], len(self.y), told

    def _privately(
        self, weights: Floats, server_round: int, privacy: RecordPrivacy, mask: SharedMask
    ) -> Floats:
        chosen = np.zeros(weights.size, bool)
        chosen[mask.drawn(server_round, weights.size)] = True
        where = chosen.reshape(weights.shape)
        used = np.flatnonzero(where.any(axis=0))
        x, where = self.x[:, used], where[:, used]
        error = probabilities(self.x, weights)
        error[np.arange(len(self.y)), self.y] -= 1
        norms = np.sqrt((np.square(x) @ where.T.astype(np.float32) * np.square(error)).sum(axis=1))
        error *= np.minimum(1, privacy.clip_norm / np.maximum(norms, 1e-9))[:, None]
        total = (error.T @ x)[where].astype(np.float64)
        noisy, _ = add_noise(total, privacy.clip_norm, privacy.noise_multiplier, Keystream.secure())
        update = np.zeros_like(weights)
        inner = np.zeros(where.shape, np.float32)
        inner[where] = -self.step * noisy / len(self.y)
        update[:, used] = inner
        return update

    def _plainly(self, weights: Floats, server_round: int) -> Floats:
        found, rng = weights.copy(), np.random.default_rng([self.number, server_round])
        for rows in np.array_split(rng.permutation(len(self.y)), max(1, len(self.y) // BATCH)):
            x = self.x[rows]
            error = probabilities(x, found)
            error[np.arange(len(rows)), self.y[rows]] -= 1
            found -= RATE / len(rows) * (error.T @ x)
        return found - weights
