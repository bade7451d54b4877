from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.scenarios import drift

PARAMETERS = 60


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return drift.run(tmp_path_factory.mktemp("drift"), parameters=PARAMETERS)


def windows(losses: list[float], size: int = 50) -> np.ndarray:
    """Means over windows: a correct run with gradient noise is not monotone round by round."""
    return np.array(losses).reshape(-1, size).mean(axis=1)


def test_float32_drops_a_thousand_small_updates():
    weight = drift.one_weight()
    assert weight["float32"] == 1.0
    assert weight["compensated"] == pytest.approx(1 + 1e-6, abs=1e-13)


def test_training_in_float32_stands_still_and_the_others_go_on():
    losses = drift.lost_updates(drift.Problem.make(20, PARAMETERS, 0, 0.0), 1000)
    assert len(set(losses["float32"][550:])) == 1
    assert losses["float32"][-1] > 10 * losses["one rounding"][-1]
    assert losses["one rounding"][-1] > 10 * losses["float64 model"][-1]
    trend = windows(losses["float64 model"][:800])
    assert (np.diff(trend) < 0).all()


def test_a_float32_running_sum_makes_the_loss_rise_again_after_500_rounds():
    losses = drift.running_sum(drift.Problem.make(20, PARAMETERS, 0, 0.1), 1000, 0)
    bad, good = windows(losses["float32"]), windows(losses["compensated"])
    assert bad[9] < bad[0] / 1e5  # it looks fine for 500 rounds
    assert bad[-1] > 1.3 * bad[10]
    assert bad[-1] > 10 * good[-1]
    assert good[-1] < good[10] * 1.2


def test_the_monitor_notices_the_rise_and_only_that():
    losses = drift.running_sum(drift.Problem.make(20, 300, 0, 0.1), 1000, 0)
    alarm = drift.first_alarm(losses["float32"])
    assert alarm is not None
    assert losses["float32"][alarm] < losses["float32"][0] / 1e4  # long before it hurts
    assert drift.first_alarm(losses["compensated"]) is None


def test_overflow_of_a_sum_whose_mean_is_representable():
    found = drift.overflow()
    assert found["float32"] is None
    assert found["float64"] == found["exact"] == float(np.float32(1e34))
    assert found["float32 scaled by a power of two"] == pytest.approx(1e34, rel=1e-6)


def test_results_are_json_and_pictures_are_written(result):
    json.dumps(result, allow_nan=False)
    assert result["rounds"] == 1000
    assert 500 < result["stands_still_from"]["float32"] < 550
    for file in result["files"]:
        assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_numbers(result, tmp_path):
    again = drift.run(tmp_path, parameters=PARAMETERS)
    assert {**again, "files": None} == {**result, "files": None}


@pytest.mark.parametrize("bad", [{"parameters": 0}, {"clients": 0}, {"rounds": 1}])
def test_impossible_sizes_are_refused(bad, tmp_path):
    with pytest.raises(ConfigError, match="drift: "):
        drift.run(tmp_path, **bad)
    assert not list(tmp_path.iterdir())
