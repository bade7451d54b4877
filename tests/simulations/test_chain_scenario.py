"""The full chain beside FedAvg: its parts on digits; what it promises, on MNIST (slow)."""

from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.mechanisms.robust.core.attacks import build_attack
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.simulations.scenarios import chain
from qsfl_flower.simulations.scenarios.silos import Gang, Silo, features_of, probabilities
from qsfl_flower.stages import SharedMask

MASK = SharedMask(Mask(ratio=0.1), seed=3, epoch=4)


def silo(noise=1e-8, clip_norm=1e3, gang=None, lies=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 40)).astype(np.float32)
    y = rng.integers(0, 10, 30)
    privacy = RecordPrivacy(clip_norm=clip_norm, noise_multiplier=noise, sampling_rate=1.0, steps=1)
    return Silo(2, x, y, privacy, MASK, 0.5, gang, lies)


def test_a_step_is_the_gradient_on_the_public_coordinates():
    weights = np.random.default_rng(1).normal(size=(10, 40)).astype(np.float32)
    one = silo()
    (found,), count, told = one.fit([weights], {"server-round": 6})
    error = probabilities(one.x, weights).astype(np.float64)
    error[np.arange(30), one.y] -= 1
    gradient = (error.T @ one.x / 30).ravel()
    expected = np.zeros(400)
    chosen = MASK.drawn(6, 400)
    assert len(chosen) == 40
    expected[chosen] = -0.5 * gradient[chosen]
    assert (found - weights).ravel() == pytest.approx(expected, abs=1e-5)
    assert (count, told["dp-steps"]) == (30, 1)
    # The coordinates stay for an epoch.
    assert np.array_equal(chosen, MASK.drawn(8, 400))
    assert not np.array_equal(chosen, MASK.drawn(9, 400))


def test_one_record_moves_a_step_by_no_more_than_its_clipped_gradient():
    weights = np.zeros((10, 40), np.float32)
    one = silo(noise=1e-5, clip_norm=0.3)
    one.x = one.x * 50
    (with_all,), *_ = one.fit([weights], {"server-round": 1})
    one.x, one.y = one.x[1:], one.y[1:]
    (without,), *_ = one.fit([weights], {"server-round": 1})
    moved = 30 * (with_all - weights) - 29 * (without - weights)
    assert np.linalg.norm(moved) == pytest.approx(0.5 * 0.3, rel=1e-3)


def test_the_noise_has_the_stated_size():
    """Over 40 coordinates x 50 steps the standard deviation is within 10 %: 1 in 10^9."""
    weights = np.zeros((10, 40), np.float32)
    one = silo(noise=4.0, clip_norm=0.5)
    steps = np.array([one.fit([weights], {"server-round": 1})[0][0] for _ in range(50)])
    moving = steps.reshape(50, 400)[:, MASK.drawn(1, 400)]
    assert (moving - moving.mean(axis=0)).std() * 30 / 0.5 == pytest.approx(2.0, rel=0.1)


def test_attackers_know_the_honest_updates():
    gang = Gang(build_attack("sign-flip", scale=10.0), 3, 18)
    weights = np.zeros((10, 40), np.float32)
    (honest,), *_ = silo(gang=gang).fit([weights], {"server-round": 1})
    (lie,), *_ = silo(gang=gang, lies=True).fit([weights], {"server-round": 1})
    assert len(gang.seen) == 1
    assert lie == pytest.approx(-10 * honest, rel=1e-3, abs=1e-4)


def test_features_are_kept(tmp_path):
    first = features_of("digits", tmp_path)
    assert first["x_train"].shape[1] == 325
    assert (first["x_train"][:, -1] == 1).all()
    again = features_of("digits", tmp_path)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_the_whole_chain_runs_and_leaves_the_liars_out(tmp_path):
    setting = chain.Setting("digits", True, "sign-flip", 8, 1e4)
    found = chain.federation(setting, tmp_path, 1)
    assert found["epsilon"] <= 1e4
    assert found["liars_heard"] > 10
    assert found["liars_selected"] == 0
    assert len(found["curve"]) == 9


def test_the_table_compares_with_the_reference():
    rows = [
        {"dataset": "d", "federation": "FedAvg, no attackers", "accuracy": 0.9, "curve": [0.1]},
        {"dataset": "d", "federation": "FedAvg, sign-flip", "accuracy": 0.1, "curve": [0.1]},
    ]
    assert chain.points_lost(rows)["d: FedAvg, sign-flip"] == 80.0
    assert "| d | FedAvg, sign-flip | 10.00% | 80.0 |" in chain.table(rows)
    assert chain.picture("d", rows, "sign-flip").png.startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no run of FedAvg, no attackers on d"):
        chain.table(rows[1:])


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the features alone take minutes
def test_mnist_under_attack_at_a_smaller_size(tmp_path):
    """A third of the rounds at epsilon = 3; the whole size stands in docs/full-chain.md.

    6.7 points were lost in one run. Secret noise moves such runs by tenths of a point.
    """
    try:
        found = chain.run(
            tmp_path, datasets={"mnist": (5, 36)}, attacks=("sign-flip",), epsilon=3.0
        )
    except DataError as error:
        pytest.skip(str(error))
    lost = found["points_lost"]
    assert lost["mnist: FedAvg, sign-flip"] > 50
    assert lost["mnist: full chain, sign-flip"] < 8
