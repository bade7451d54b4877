"""Krum's scores and selections equal those computed by hand, ties and integers included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import bulyan_select, krum_scores, multi_krum_select
from qsfl_flower.mechanisms.robust.core.diameter import smallest_diameter
from tests.robust.conftest import distances_by_hand


def scores_by_hand(squared, f):
    count = len(squared)
    wanted = min(count - 1, max(1, count - f - 2))
    return [
        sum(sorted(squared[i][j] for j in range(count) if j != i)[:wanted]) for i in range(count)
    ]


def selection_by_hand(scores, m):
    return sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:m])


@st.composite
def clouds(draw, most=9):
    """Points on a small grid, so that ties abound."""
    count, size = draw(st.integers(1, most)), draw(st.integers(1, 3))
    whole = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    return np.array([draw(whole) for _ in range(count)], dtype=np.float64)


@given(clouds(), st.integers(0, 4))
def test_scores_and_selection(rows, f):
    squared = distances_by_hand(rows)
    scores = krum_scores(squared, f)
    assert scores.tolist() == scores_by_hand(squared, f)
    for m in range(1, len(rows) + 1):
        assert multi_krum_select(scores, m).tolist() == selection_by_hand(scores, m)


@given(clouds(), st.integers(0, 2))
def test_bulyan_selects_by_krum_again_and_again(rows, f):
    squared = distances_by_hand(rows)
    m = max(1, len(rows) - 2 * f)
    left, chosen = list(range(len(rows))), []
    for _ in range(m):
        scores = scores_by_hand(squared[np.ix_(left, left)], f)
        chosen.append(left.pop(selection_by_hand(scores, 1)[0]))
    assert bulyan_select(squared, f, m).tolist() == sorted(chosen)


def test_whole_numbers_of_any_size_are_exact():
    """A difference of one in 10^40, far beyond float64, decides."""
    big = 10**40
    squared = np.array([[0, big, big], [big, 0, big + 1], [big, big + 1, 0]], dtype=object)
    scores = krum_scores(squared, 0)
    assert scores.tolist() == [big, big, big]
    squared[0, 1] = squared[1, 0] = big - 1
    scores = krum_scores(squared, 0)
    assert scores.tolist() == [big - 1, big - 1, big]
    assert multi_krum_select(scores, 2).tolist() == [0, 1]
    assert multi_krum_select(np.array([big + 1, big, big], dtype=object), 1).tolist() == [1]


def test_what_cannot_be_selected_is_an_error():
    with pytest.raises(ConfigError, match="square"):
        krum_scores(np.zeros((2, 3)), 0)
    with pytest.raises(ConfigError, match="f >= 0"):
        krum_scores(np.zeros((3, 3)), -1)
    for m in (0, 4):
        with pytest.raises(ConfigError, match="1 to 3"):
            multi_krum_select(np.zeros(3), m)


@given(clouds(8), st.integers(0, 3))
def test_smallest_diameter_against_all_subsets(rows, f):
    squared = distances_by_hand(rows)
    count = len(rows)
    f = min(f, count - 1)
    best = min(
        itertools.combinations(range(count), count - f),
        key=lambda subset: squared[np.ix_(subset, subset)].max(),
    )
    assert smallest_diameter(squared, f).tolist() == list(best)


def test_smallest_diameter_gives_up_in_time_and_is_at_most_twice_as_large(rng, monkeypatch):
    rows = rng.standard_normal((12, 3))
    squared = distances_by_hand(rows)
    exact = smallest_diameter(squared, 4)
    monkeypatch.setattr("qsfl_flower.mechanisms.robust.core.diameter.STEPS", 3)
    rough = smallest_diameter(squared, 4)
    diameters = [np.sqrt(squared[np.ix_(s, s)].max()) for s in (exact, rough)]
    assert len(rough) == 8
    assert diameters[0] <= diameters[1] <= 2 * diameters[0]
