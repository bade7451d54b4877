from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.secure.decoding import Inconsistent, find_liars, open_vectors
from qsfl_flower.secure.field import P


def values_at(coefficients, points):
    return {x: sum(c * x**k for k, c in enumerate(coefficients)) % P for x in points}


@given(st.integers(1, 6), st.integers(2, 11), st.data())
def test_as_many_liars_as_the_code_allows_are_named(degree, members, data):
    if members < degree + 1:
        members = degree + 1
    element = st.integers(0, P - 1)
    coefficients = data.draw(st.lists(element, min_size=degree + 1, max_size=degree + 1))
    values = values_at(coefficients, range(1, members + 1))
    most = (members - degree - 1) // 2
    liars = data.draw(st.sets(st.integers(1, members), max_size=most))
    for liar in liars:
        values[liar] = (values[liar] + data.draw(st.integers(1, P - 1))) % P
    assert find_liars(values, degree) == liars


def test_one_more_value_than_needed_shows_a_lie_but_not_the_liar():
    values = values_at([5, 6, 7], [1, 2, 4, 5])
    values[2] ^= 1
    with pytest.raises(Inconsistent, match="no polynomial of degree 2"):
        find_liars(values, 2)


def test_too_few_values():
    with pytest.raises(Inconsistent, match="2 values"):
        find_liars({1: 3, 2: 4}, 2)
    # Exactly enough: nothing to compare with.
    assert find_liars({1: 3, 2: 4, 3: 9}, 2) == frozenset()


def vectors(size, members, degree, seed=0):
    rng = np.random.default_rng(seed)
    coefficients = rng.integers(0, P, (size, degree + 1), dtype=np.uint64).tolist()
    columns = [values_at(row, range(1, members + 1)) for row in coefficients]
    found = {
        x: np.array([column[x] for column in columns], np.uint64) for x in range(1, members + 1)
    }
    return [row[0] for row in coefficients], found


def test_a_lie_in_one_coordinate_of_one_member_is_corrected():
    secret, values = vectors(50, 5, 2)
    for liar, coordinate in itertools.product(values, (0, 49)):
        told = {x: v.copy() for x, v in values.items()}
        told[liar][coordinate] ^= np.uint64(1)
        opened = open_vectors(told, 2)
        assert opened.liars == {liar}
        assert opened.vector.tolist() == secret


def test_a_lie_is_detected_or_undetectable_by_the_number_of_values():
    secret, values = vectors(8, 4, 2)
    assert open_vectors(values, 2).vector.tolist() == secret
    values[1][3] ^= np.uint64(1)
    with pytest.raises(Inconsistent):
        open_vectors(values, 2)
    del values[4]
    assert open_vectors(values, 2).vector.tolist() != secret


def test_opened_values_do_not_print():
    _, values = vectors(2, 3, 2)
    assert "array" not in repr(open_vectors(values, 2))
