"""The table of whole clients, on features that two classes share out."""

from __future__ import annotations

import numpy as np
import torch

from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.simulations.scenarios import client_utility


def features(count, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, count)
    x = np.eye(10)[y] * 5 + rng.normal(size=(count, 10))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def test_more_clients_lose_less_and_beyond_the_real_ones_only_the_noise_changes(monkeypatch):
    # Fixed noise: the test always has the same result.
    secret = iter(range(10))
    monkeypatch.setattr(
        Keystream, "secure", classmethod(lambda cls: cls.seeded("table", next(secret)))
    )
    x, y = features(4000, 0)
    test, truth = features(1000, 1)
    rows = client_utility.table(x, y, test, truth.numpy(), sizes=(20, 1000, 100_000))
    assert [row["noise_equivalent"] for row in rows] == [False, False, True]
    lost = [row["points_lost"] for row in rows]
    assert lost[0] > 5
    assert lost[0] > lost[1] > lost[2] - 1
    assert abs(lost[2]) < 2
    assert all(0.95 < row["epsilon"] <= 1.0 for row in rows)


def test_gradients_are_clipped_client_by_client():
    x, y = features(60, 0)
    weights = torch.zeros(10, 11)
    plain = client_utility._gradients(weights, 100 * x, y, 20, clip=False)
    clipped = client_utility._gradients(weights, 100 * x, y, 20, clip=True)
    assert float(plain.norm()) > 3
    assert 1 < float(clipped.norm()) <= 3 * client_utility.CLIP * (1 + 1e-5)
    one = client_utility._gradients(weights, 100 * x[:20], y[:20], 20, clip=True)
    two = client_utility._gradients(weights, 100 * x[20:], y[20:], 20, clip=True)
    torch.testing.assert_close(one + two, clipped)
