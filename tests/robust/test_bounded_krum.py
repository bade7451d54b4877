"""The fast search chooses what Krum chooses, and its bounds hold."""

from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import (
    Updates,
    bounded_krum,
    fast_krum,
    krum_scores,
    multi_krum_select,
    squared_distances,
)

COUNT, SIZE, LIARS = 240, 1000, 60


@pytest.fixture(autouse=True)
def _search_among_few(monkeypatch):
    monkeypatch.setattr("qsfl_flower.mechanisms.robust.core.bounded_krum.FEW", 1)


def cloud(kind, seed):
    """Clients of different spread round a common direction, and what liars make of it."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((COUNT, SIZE)) * np.exp(0.4 * rng.standard_normal((COUNT, 1)))
    rows += rng.standard_normal(SIZE)
    lies = rows[:LIARS]
    if kind == "reversed":
        lies *= -5
    elif kind == "huge":
        lies *= 1e12
    elif kind == "together":
        lies[:] = rows[LIARS:].mean(axis=0) + 3 * rng.standard_normal(SIZE) + 0.5 * lies
    elif kind == "few coordinates":
        lies[:, 5:] = rows[LIARS:, 5:].mean(axis=0)
        lies[:, :5] += 20
    elif kind == "equally noisy":
        rows[:] = rng.standard_normal((COUNT, SIZE))
    elif kind == "one point":
        lies[:] = rows[-1]
    return rows[rng.permutation(COUNT)]


KINDS = ["benign", "reversed", "huge", "together", "few coordinates", "equally noisy", "one point"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 5])
def test_the_choice_is_krums_and_the_bounds_hold(kind, m):
    updates = Updates.of(cloud(kind, m))
    scores = krum_scores(squared_distances(updates), LIARS)
    found = fast_krum(updates, LIARS, m, seed=m)
    assert found.rows.tolist() == multi_krum_select(scores, m).tolist()
    assert (found.scores <= scores * (1 + 1e-9)).all()
    bounds = bounded_krum._lower_bounds(updates, COUNT - LIARS - 2, m, None)
    assert (bounds <= scores * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", ["benign", "reversed", "huge"])
def test_most_scores_need_not_be_computed(kind):
    assert fast_krum(Updates.of(cloud(kind, 0)), LIARS, seed=0).measured <= COUNT // 4


def test_where_bounds_do_not_separate_all_pairs_are_compared():
    assert fast_krum(Updates.of(cloud("equally noisy", 0)), LIARS, seed=0).measured == COUNT


def test_a_bound_that_is_too_high_would_be_noticed(monkeypatch):
    """The test can fail: without the eigenvalue the bounds exceed the scores."""
    monkeypatch.setattr("qsfl_flower.mechanisms.robust.core.bounded_krum.math.exp", lambda x: 0.0)
    updates = Updates.of(cloud("benign", 0))
    scores = krum_scores(squared_distances(updates), LIARS)
    bounds = bounded_krum._lower_bounds(updates, COUNT - LIARS - 2, 0, None)
    assert (bounds > scores * (1 + 1e-9)).any()


def test_zero_updates_and_few_updates():
    assert fast_krum(Updates.of(np.zeros((12, 4))), 3).rows.tolist() == [0]
    assert fast_krum(Updates.of(np.ones((1, 4))), 0).rows.tolist() == [0]
    with pytest.raises(ConfigError, match="2 of 1"):
        fast_krum(Updates.of(np.ones((1, 4))), 0, 2)
