from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.mechanisms.detection.core import Detection, Memory, extract, inspect, opposed
from qsfl_flower.mechanisms.detection.core.opposed import _leading, _limit
from qsfl_flower.mechanisms.robust.core import Updates
from qsfl_flower.numerics import Layout


def against(x: np.ndarray, last: np.ndarray | None = None, **more: np.ndarray) -> list[int]:
    """The rows found among updates."""
    layout = Layout(("w",), ((x.shape[1],),), ("float64",))
    return sorted(opposed(extract(Updates.of(x), layout, last, **more)))


def aimless(seed: int, clients: int, size: int) -> np.ndarray:
    """Updates without a common direction."""
    return np.random.default_rng([seed, 11]).normal(size=(clients, size))


@pytest.mark.parametrize("clients", [10, 20, 21, 50])
@pytest.mark.parametrize("seed", range(3))
def test_every_minority_that_turns_its_updates_round_is_found(cohort, clients, seed):
    for count in range(1, (clients - 1) // 2 + 1):
        x = cohort(clients, seed=seed)
        chosen = np.random.default_rng([seed, count]).choice(clients, count, replace=False)
        x[chosen] *= -np.linspace(0.1, 5, count)[:, None]
        assert against(x) == sorted(chosen.tolist())


@pytest.mark.parametrize("shared", [1.0, 0.1, 0.0])
def test_the_axis_of_a_large_cohort_is_that_of_all_eigenvectors(shared):
    x = aimless(0, 300, 400) + shared * np.random.default_rng(1).normal(size=400)
    x /= np.linalg.norm(x, axis=1)[:, None]
    values, vectors = np.linalg.eigh(x @ x.T)
    value, vector = _leading(x @ x.T)
    assert value == pytest.approx(values[-1], rel=1e-12)
    assert abs(vector @ vectors[:, -1]) == pytest.approx(1, abs=1e-9)


def test_half_of_the_clients_are_no_minority(cohort):
    x = cohort(20)
    x[:10] *= -1
    assert against(x) == []


@pytest.mark.parametrize("detector", ["isolation-forest", "robust-z"])
def test_opponents_among_widely_spread_clients_are_flagged_and_told_why(detector):
    """Cosines to the common direction are from 0.3 to 0.8, as with Dirichlet(0.3)."""
    layout = Layout(("w",), ((1000,),), ("float32",))
    names, memory = [str(client) for client in range(20)], Memory.new(0)
    common = np.random.default_rng(5).normal(size=1000)
    for server_round in range(1, 6):
        rng = np.random.default_rng([server_round, 3])
        x = common + np.geomspace(0.75, 3.0, 20)[:, None] * rng.normal(size=(20, 1000))
        x[::4] *= -1
        table = extract(Updates.of(x), layout, trusted=memory.trusted(names, server_round))
        findings, memory = inspect(table, names, memory, Detection(detector), server_round)
        for finding in findings[::4]:
            assert finding.flagged
            assert finding.score >= 0.75
            assert "moves against the others; cosine to the axis of the round -0." in finding.why
        assert not any("against" in f.why for row, f in enumerate(findings) if row % 4)
    assert memory.trusted(names, 6).tolist() == [row % 4 != 0 for row in range(20)]


@pytest.mark.parametrize("seed", range(10))
def test_the_last_step_shows_opponents_when_a_round_has_no_axis(seed):
    """A converged model: what clients share is small beside what tells them apart."""
    last = np.random.default_rng([seed, 1]).normal(size=500)
    x = 0.3 * last + aimless(seed, 20, 500)
    x[:6] *= -1
    assert against(x, last) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("clients", [3, 5, 20, pytest.param(200, marks=pytest.mark.slow)])
def test_clients_with_a_common_direction_are_never_opposed(cohort, clients):
    assert not any(against(cohort(clients, seed=seed)) for seed in range(50))


@pytest.mark.parametrize("size", [8, 50])
@pytest.mark.parametrize("clients", [5, 10, 20, 120])
def test_without_a_common_direction_one_round_in_a_hundred_is_a_false_alarm(clients, size):
    """Of 400 cohorts more than 13 with probability below 1e-4 at one in a hundred."""
    assert sum(bool(against(aimless(seed, clients, size))) for seed in range(400)) <= 13


@pytest.mark.parametrize(("clients", "limit"), [(5, 201), (10, 18), (20, 8.4)])
def test_the_limit_is_what_made_up_cohorts_reach(clients, limit):
    """The figures of the documentation; LAPACKs differ in the last bits only."""
    assert _limit(clients) == pytest.approx(limit, rel=0.03)


def test_order_makes_no_difference(cohort):
    x = cohort(20)
    x[[2, 3, 11, 17]] *= -1
    order = np.random.default_rng(0).permutation(20)
    assert sorted(order[against(x[order])].tolist()) == [2, 3, 11, 17]


def test_updates_at_right_angles_oppose_nobody():
    """Noise among 10,000 coordinates has a cosine of 0.01, the limit is five times that."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=10_000) + rng.normal(size=(20, 10_000))
        x[0] = 3 * rng.normal(size=10_000)
        assert against(x, x[1]) == []


@pytest.mark.parametrize("clients", [1, 2, 3, 9, 20])
def test_nobody_is_opposed_on_a_line(clients):
    """The updates of a model with one parameter have cosines 1 and -1, whoever is honest."""
    last = np.ones(1)
    for seed in range(20):
        assert against(aimless(seed, clients, 1), last) == []
    assert against(np.where(np.arange(clients) < clients // 3, -1.0, 1.0)[:, None], last) == []


@pytest.mark.parametrize("clients", [1, 2, 3, 20])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_equal_updates_oppose_nobody(clients, value):
    x = np.full((clients, 100), value)
    assert against(x) == []
    assert against(x, -np.ones(100)) == []


def test_an_update_of_zero_is_on_neither_side(cohort):
    x = cohort(20)
    x[0] = 0
    x[4:8] *= -1
    assert against(x) == [4, 5, 6, 7]


def test_those_in_quarantine_have_no_say_in_where_most_point(cohort):
    """Eleven of twenty turn their updates round, nine of them in quarantine."""
    x = cohort(20)
    x[:11] *= -1
    assert against(x) == list(range(11, 20))
    assert against(x, trusted=np.arange(20) >= 9) == []


def test_one_update_beyond_squares_does_not_blind_the_others(cohort):
    x = cohort(20)
    x[0] *= 1e200
    x[1:6] *= -1
    with np.errstate(all="ignore"):
        assert against(x) == [1, 2, 3, 4, 5]
