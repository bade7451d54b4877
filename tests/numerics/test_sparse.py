from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout, Vector, measure, rough_norms, weighted_sum
from qsfl_flower.numerics.sparse import SparseVector


@given(st.integers(0, 60), st.data())
def test_reads_like_the_dense_vector(size, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, max(0, size - 1)), max_size=size)))
    indices = np.array(chosen if size else [], np.uint32)
    values = np.arange(1, indices.size + 1, dtype=np.float32)
    dense = np.zeros(size)
    dense[indices] = values
    vector = SparseVector(size, indices, values)
    lo = data.draw(st.integers(0, size))
    hi = data.draw(st.integers(lo, size))
    out = np.full(hi - lo, -1.0)
    vector.read(lo, hi, out)
    np.testing.assert_array_equal(out, dense[lo:hi])
    np.testing.assert_array_equal(vector.view(lo, hi, np.empty(hi - lo)), dense[lo:hi])


def test_sums_and_norms_have_the_bits_of_dense_vectors():
    rng, size = np.random.default_rng(0), 200_000
    sparse, dense = [], []
    for _ in range(5):
        indices = np.sort(rng.choice(size, 2000, replace=False))
        values = rng.standard_normal(2000).astype(np.float32)
        whole = np.zeros(size, np.float32)
        whole[indices] = values
        sparse.append(SparseVector(size, indices, values))
        dense.append(Vector.dense(whole))
    shares = [0.1, 0.2, 0.3, 0.2, 0.2]
    np.testing.assert_array_equal(weighted_sum(sparse, shares), weighted_sum(dense, shares))
    layout = Layout(("a", "b"), ((150_000,), (50_000,)), ("float32", "float32"))
    assert measure(sparse[0], None, layout) == measure(dense[0], None, layout)
    np.testing.assert_allclose(rough_norms(sparse), rough_norms(dense), rtol=1e-5)


@pytest.mark.parametrize("indices", [[0, 0], [1, 0], [-1, 0], [0, 5], [0], [0.0, 1.0]], ids=str)
def test_indices_that_do_not_fit_are_refused(indices):
    with pytest.raises(ConfigError, match="increasing indices below 5"):
        SparseVector(5, np.array(indices), np.ones(2, np.float32))


@pytest.mark.parametrize(("lo", "hi", "room"), [(-1, 1, 2), (2, 1, 0), (0, 6, 6), (0, 2, 3)])
def test_a_range_that_does_not_fit_is_refused(lo, hi, room):
    with pytest.raises(ConfigError, match="do not fit a buffer"):
        SparseVector(5, np.array([1]), np.ones(1)).read(lo, hi, np.empty(room))
