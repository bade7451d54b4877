from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.vector import Vector


@given(
    st.lists(st.tuples(st.sampled_from(["f2", "f4", "f8"]), st.integers(0, 5)), max_size=6),
    st.data(),
)
def test_reads_across_the_borders_of_pieces(kinds, data):
    counter = 0
    pieces = []
    for dtype, count in kinds:
        pieces.append(np.arange(counter, counter + count).astype(dtype))
        counter += count
    vector = Vector(pieces)
    assert vector.size == counter
    lo = data.draw(st.integers(0, counter))
    hi = data.draw(st.integers(lo, counter))
    out = np.full(hi - lo, -1.0)
    vector.read(lo, hi, out)
    np.testing.assert_array_equal(out, np.arange(lo, hi))
    np.testing.assert_array_equal(vector.view(lo, hi, np.empty(hi - lo)), np.arange(lo, hi))


def test_follows_the_layout_not_the_order_of_the_arrays():
    model = {"a": np.ones((2, 2), np.float32), "n": np.array(3), "b": np.array(5.0)}
    layout = Layout.of(model)
    vector = Vector.of(dict(reversed(model.items())), layout)
    out = np.empty(5)
    vector.read(0, 5, out)
    np.testing.assert_array_equal(out, [1, 1, 1, 1, 5])


def test_refers_to_the_arrays_and_never_writes():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    vector = Vector.dense(array)
    out = np.empty(2)
    vector.read(1, 3, out)
    out += 1
    assert array.tolist() == [0, 0, 0]


def test_one_piece_of_float64_is_viewed_in_place():
    values = np.arange(5.0)
    spare = np.empty(2)
    assert np.shares_memory(Vector.dense(values).view(1, 3, spare), values)
    assert Vector.dense(values.astype(np.float32)).view(1, 3, spare) is spare


@pytest.mark.parametrize(("lo", "hi", "room"), [(-1, 1, 2), (2, 1, 0), (0, 4, 4), (0, 2, 3)])
def test_a_range_that_does_not_fit_is_refused(lo, hi, room):
    with pytest.raises(ConfigError, match="do not fit"):
        Vector.dense(np.zeros(3)).read(lo, hi, np.empty(room))


@pytest.mark.parametrize("piece", [np.zeros((2, 2)), np.zeros(2, int), np.zeros(2, complex)])
def test_pieces_are_one_dimensional_floats(piece):
    with pytest.raises(ConfigError, match="one-dimensional float"):
        Vector([piece])
