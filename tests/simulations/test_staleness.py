"""The demonstration of divergence from stale updates does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.scenarios import staleness
from qsfl_flower.simulations.scenarios.staleness import SERVERS, critical, train


@pytest.fixture(scope="module")
def losses():
    return {name: np.array(train(server, 500, 0)[0]) for name, server in SERVERS.items()}


def test_constant_weights_look_fine_then_swing_then_explode(losses):
    """Three phases, as in the source: falling to round 100, swinging to 300, then beyond 1e6."""
    bad = losses["constant weights"]
    assert (np.diff(bad[20:100].reshape(-1, 20).mean(axis=1)) < 0).all()
    swings = np.diff(np.sign(np.diff(bad[120:300])))
    assert (swings != 0).sum() > 10
    assert bad[:200].max() < 1
    assert bad[400:].max() > 1e6


@pytest.mark.parametrize(
    "name",
    [
        "constant weights, guard",
        "weights 1 / (1 + s)",
        "rate / (1 + mean s)",
        "the same, corrected",
    ],
)
def test_each_remedy_keeps_the_loss_falling(losses, name):
    good = losses[name]
    assert good[300:].max() < 1e3  # what the source asks for
    assert good[450:].mean() < good[250:300].mean() < good[0]


def test_momentum_needs_its_correction(losses):
    assert losses["weights and momentum"][-50:].max() > 1e6


def test_the_mix_of_the_source_does_not_diverge(losses):
    """Half of the buffer fresh, half 5 to 10 versions old, constant weights, rate 0.1."""
    mixed = losses["constant, half of them fresh"]
    assert mixed[-1] < 1e-6


@pytest.mark.parametrize("delay", [1, 5, 10])
@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (1.02, False)])
def test_the_critical_step_of_a_fixed_delay(delay, factor, stable):
    """x(t+1) = x(t) - c x(t - delay), 40,000 steps on both sides of the limit."""
    x = [1.0] * (delay + 1)
    for _ in range(40_000):
        x.append(x[-1] - factor * critical(delay) * x[-1 - delay])
        x.pop(0)
    assert (abs(x[-1]) < 1e-3) is stable


def test_results_are_json_with_one_picture(tmp_path):
    result = staleness.run(tmp_path, rounds=450)
    json.dumps(result, allow_nan=False)
    assert Path(result["file"]).read_bytes().startswith(b"\x89PNG")
    assert result["guard_reacts_in"][0] < 200
    assert set(result["loss"]["constant weights"]) == {"0", "100", "200", "300", "400"}
    with pytest.raises(ConfigError, match="staleness: 1 rounds"):
        staleness.run(tmp_path, rounds=1)
