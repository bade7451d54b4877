from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.audit import audit, epsilon_lower_bound, p_value
from qsfl_flower.privacy.gaussian import add_noise, gaussian_noise_multiplier
from qsfl_flower.privacy.randomness import Keystream


def one_run(noise_multiplier: float, canaries: int = 1000, seed: int = 0) -> tuple:
    """Canaries are unit vectors of their own; each is added or not, and the noisy sum released."""
    included = np.random.default_rng(seed).random(canaries) < 0.5
    released = included.astype(float)
    if noise_multiplier:
        released, _ = add_noise(released, 1.0, noise_multiplier, Keystream.seeded("audit", seed))
    return released, included


def test_without_delta_the_bound_is_the_binomial_one():
    assert p_value(100, 50, 40, 0.0, 0.0) == pytest.approx(binom.sf(39, 50, 0.5))
    assert p_value(100, 50, 40, 0.0, 1e-3) > p_value(100, 50, 40, 0.0, 0.0)


def test_more_right_guesses_refute_more():
    bounds = [epsilon_lower_bound(1000, 500, c, 1e-5) for c in (250, 300, 400, 450, 500)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    assert bounds[-1] > 4


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_honest_mechanism_stays_below_its_claim(epsilon, seed):
    scores, included = one_run(gaussian_noise_multiplier(epsilon, 1e-5), seed=seed)
    assert audit(scores, included, delta=1e-5, guesses=100).epsilon <= epsilon


def test_the_audit_sees_something_where_there_is_something_to_see():
    scores, included = one_run(gaussian_noise_multiplier(4.0, 1e-5))
    assert audit(scores, included, delta=1e-5, guesses=100).epsilon > 0.3


@pytest.mark.parametrize("broken", [0.0, 0.05], ids=["noise off", "clip off: canaries 20 times C"])
def test_a_broken_mechanism_is_caught(broken):
    scores, included = one_run(broken)
    result = audit(scores, included, delta=1e-5, guesses=100)
    assert result.correct == result.guesses == 100
    assert result.epsilon > 2.5  # refutes claims of 1 and 2 with confidence 0.95


def test_the_bound_is_wrong_no_more_often_than_stated():
    # Randomized response meets its epsilon exactly: the bound exceeds it in at most 5 % of runs.
    # 400 runs: more than 40 exceedances happen with probability below 1e-4 if the rate is 5 %.
    rng, epsilon, canaries = np.random.default_rng(0), 1.0, 200
    truth = rng.random((400, canaries)) < 0.5
    told = np.where(rng.random(truth.shape) < 1 / (1 + np.exp(-epsilon)), truth, ~truth)
    correct = (truth == told).sum(axis=1)
    bounds = [epsilon_lower_bound(canaries, canaries, int(c), 0.0) for c in correct]
    assert sum(b > epsilon for b in bounds) <= 40


@pytest.mark.parametrize("guesses", [0, 3, 12])
def test_guesses_must_make_sense(guesses):
    with pytest.raises(ConfigError):
        audit(np.zeros(10), np.zeros(10, dtype=bool), delta=0.0, guesses=guesses)
