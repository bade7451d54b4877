from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.asynchrony import Draw, FasterFirst, Latencies, Tiered, Uniform, Versions, tiers
from qsfl_flower.errors import ConfigError

CLIENTS = list(range(10))
SLOW = {8, 9}


def latencies(unit=1.0, slow=10.0):
    known = Latencies()
    for client in CLIENTS:
        for _ in range(5):
            known = known.observe(client, unit * (slow if client in SLOW else 1.0))
    return known


def rounds(policy, known, count=5, times=50, seed=0):
    asked = np.zeros(10)
    for turn in range(times):
        chosen = policy.choose(Draw(CLIENTS, count, known, np.random.default_rng((seed, turn))))
        assert len(set(chosen)) == count
        asked[chosen] += 1
    return asked


def test_slow_clients_are_asked_less_often_but_at_least_their_share():
    """2 of 10 are ten times slower; 5 of 10 in each of 50 rounds.

    A draw among ten asks each slow one with probability at least 0.2 / 10, so one is among the five
    of a round with probability at least 1 - 0.98^5 = 0.096: 4.8 times in 50 rounds on average.
    """
    policy = FasterFirst(power=1.0, fairness=0.2)
    least = 1 - (1 - 0.2 / 10) ** 5
    totals = sum(rounds(policy, latencies(), seed=seed) for seed in range(40)) / 40
    assert totals[sorted(SLOW)].max() < 0.5 * totals[:8].min()
    assert totals[sorted(SLOW)].min() > least * 50
    one = rounds(policy, latencies())
    assert one[sorted(SLOW)].max() < one[:8].min()
    assert one[sorted(SLOW)].min() > 0


@given(
    seconds=st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    power=st.floats(0, 8),
    fairness=st.floats(0.01, 1),
)
def test_probabilities_sum_to_one_and_nobody_starves(seconds, power, fairness):
    known = Latencies()
    for client, value in enumerate(seconds):
        known = known.observe(client, value)
    chances = FasterFirst(power, fairness).probabilities(range(len(seconds)), known)
    assert chances.sum() == pytest.approx(1.0)
    assert chances.min() >= fairness / len(seconds) * (1 - 1e-12)


def test_the_unit_of_time_does_not_matter():
    for unit in (1e-3, 1.0, 86400.0):
        chances = FasterFirst().probabilities(CLIENTS, latencies(unit))
        np.testing.assert_allclose(chances, FasterFirst().probabilities(CLIENTS, latencies()))


def test_who_was_never_asked_counts_like_the_median_client():
    known = Latencies().observe(0, 1.0).observe(1, 3.0).observe(2, 5.0)
    assert known.typical([0, 1, 2, 3]).tolist() == [1.0, 3.0, 5.0, 3.0]
    assert Latencies().typical([0, 1]).tolist() == [1.0, 1.0]


def test_one_outlier_does_not_make_a_client_slow_and_old_news_is_forgotten():
    known = Latencies()
    for seconds in (1.0, 1.0, 500.0, 1.0, 1.0):
        known = known.observe(0, seconds)
    assert known.typical([0]).tolist() == [1.0]
    for _ in range(10):
        known = known.observe(0, 7.0)
    assert known.seen[0] == (7.0,) * 10


def test_tiers_have_equal_size_and_are_ordered_by_speed():
    known = Latencies()
    for client, seconds in enumerate([5, 1, 4, 2, 3, 3, 9]):
        known = known.observe(client, seconds)
    assert tiers(range(7), known, 3) == [[1, 3, 4], [5, 2], [0, 6]]


def test_a_tiered_round_waits_for_its_own_kind_only():
    policy, known = Tiered(tiers=5, fairness=0.2), latencies()
    mixed = 0
    for turn in range(200):
        chosen = set(policy.choose(Draw(CLIENTS, 2, known, np.random.default_rng(turn))))
        mixed += 0 < len(chosen & SLOW) < 2
    assert mixed == 0
    asked = rounds(policy, known, count=2, times=400)
    assert asked[sorted(SLOW)].min() > 0.02 * 400
    assert asked[sorted(SLOW)].max() < 0.5 * asked[:8].min()
    assert sorted(policy.choose(Draw(CLIENTS, 10, known, np.random.default_rng(0)))) == CLIENTS


def test_uniform_draws_ignore_latency():
    """1,000 draws of 5 of 10: each is expected 500 times, standard deviation 15.8; five of them."""
    asked = rounds(Uniform(), latencies(), times=1000)
    assert abs(asked - 500).max() < 79


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FasterFirst(power=-1), "power"),
        (lambda: FasterFirst(fairness=0), "fairness"),
        (lambda: Tiered(tiers=0), "tiers"),
        (lambda: Tiered(fairness=2), "fairness"),
        (lambda: Versions(0), "capacity"),
    ],
)
def test_impossible_parameters_are_named(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_only_models_that_somebody_trains_on_are_kept():
    held = Versions(capacity=3)
    for version in range(6):
        held = held.add(version, f"model {version}", needed={0, 3, 4})
    assert dict(held.held) == {3: "model 3", 4: "model 4", 5: "model 5"}
    assert set(held.add(6, "model 6", needed=set()).held) == {6}
