from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.field import P, gram
from qsfl_flower.secure.krum import distances_of_gram, pairs, scores, select


def brute_force(vectors, f, count):
    """Krum in Python integers, by its definition."""
    n = len(vectors)
    found = []
    for i in range(n):
        apart = sorted(
            sum((a - b) ** 2 for a, b in zip(vectors[i], vectors[j], strict=True))
            for j in range(n)
            if j != i
        )
        found.append(sum(apart[: n - f - 2]))
    order = sorted(range(n), key=lambda i: (found[i], i))
    return found, tuple(sorted(order[:count]))


def elements(vectors):
    return [np.array([v % P for v in vector], np.uint64) for vector in vectors]


@given(st.integers(3, 9), st.data())
def test_scores_and_selection_are_those_of_the_definition(n, data):
    f = data.draw(st.integers(0, (n - 3) // 2))
    value = st.one_of(st.integers(-3, 3), st.integers(-(1 << 27), 1 << 27))
    row = st.lists(value, min_size=4, max_size=4)
    vectors = data.draw(st.lists(row, min_size=n, max_size=n))
    count = data.draw(st.integers(1, n))
    found = scores(distances_of_gram(gram(elements(vectors))), n, f)
    expected, chosen = brute_force(vectors, f, count)
    assert found == expected
    assert select(found, count) == chosen


def test_scores_of_a_hundred_far_vectors_do_not_wrap():
    n, f = 100, 20
    distances = np.full(len(pairs(n)[0]), P - 1, np.uint64)
    assert scores(distances, n, f) == [(n - f - 2) * (P - 1)] * n


def test_ties_go_to_the_first():
    assert select([5, 3, 3, 3, 9], 2) == (1, 2)
    assert select([1, 1, 1], 1) == (0,)


def test_too_few():
    with pytest.raises(ConfigError, match="at least 9 clients, there are 8"):
        scores(np.zeros(28, np.uint64), 8, 3)
    with pytest.raises(ConfigError):
        scores(np.zeros(28, np.uint64), 8, -1)
