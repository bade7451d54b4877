from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics import norms
from qsfl_flower.numerics.blocks import ROW
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.norms import Measure, clip_scale, clip_scales, measure, rough_norms
from qsfl_flower.numerics.vector import Vector


def of(values, dtype="float64") -> Vector:
    return Vector.dense(np.array(values, dtype))


def test_three_four_five():
    assert measure(of([3.0, -4.0])) == Measure(norm=5.0, finite=True, layer_norms=None)
    assert measure(of([4.0, -3.0], "float16"), of([1.0, 1.0], "float32")).norm == 5.0


def test_layer_norms_follow_the_layout_and_add_up():
    layout = Layout.of(
        {"a": np.zeros((1, 2)), "n": np.array(1), "b": np.zeros(0), "c": np.zeros(2)}
    )
    found = measure(of([3, 4, 5, 12]), layout=layout)
    assert found.layer_norms == (5.0, 0.0, 13.0)
    assert found.norm == pytest.approx(math.sqrt(25 + 169), rel=1e-15)


def test_long_vectors_in_pieces_match_an_exact_sum():
    rng = np.random.default_rng(0)
    size = 2 * norms._BLOCK + ROW + 77
    values, base = rng.standard_normal((2, size), dtype=np.float32)
    delta = values.astype(np.float64) - base
    exact = math.sqrt(math.fsum((delta * delta).tolist()))
    pieces = Vector([values[:100_001], values[100_001:]])
    for against in (Vector.dense(base), Vector.dense(base.astype(np.float64))):
        assert measure(pieces, against).norm == pytest.approx(exact, rel=1e-13)
    layout = Layout.of({"a": values[:9], "b": values[9:]})
    assert measure(pieces, Vector.dense(base), layout).norm == pytest.approx(exact, rel=1e-13)


def test_an_empty_vector_and_a_zero_update():
    assert measure(Vector([])) == Measure(0.0)
    assert measure(of([1e30, 2.0]), of([1e30, 2.0])) == Measure(0.0)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1e200, 0.0], "float64", 1e200),  # squares overflow float64
        ([3e200, 4e200], "float64", 5e200),
        ([3e-200, 4e-200], "float64", 5e-200),  # squares vanish in float64
        ([5e-324], "float64", 5e-324),
        ([1.7e308], "float64", 1.7e308),
        ([3e38, 0], "float32", float(np.float32(3e38))),  # squares overflow float32
        ([1e-30], "float32", float(np.float32(1e-30))),  # squares vanish in float32
        ([6e4, 6e4], "float16", 6e4 * math.sqrt(2)),
    ],
)
def test_extreme_values_keep_their_norm(values, dtype, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(of(values, dtype))
    assert found.finite
    assert found.norm == pytest.approx(expected, rel=1e-3 if dtype == "float16" else 1e-14)


def test_a_finite_vector_may_have_an_infinite_norm():
    found = measure(of([1.7e308] * 4))
    assert found.finite
    assert found.norm == math.inf
    assert clip_scales(found, 1.0) == 0.0


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_one_bad_coordinate_is_found(poison, dtype, size):
    values = np.ones(size, dtype)
    values[size // 2] = poison
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base in (None, Vector.dense(np.ones(size, dtype))):
            found = measure(Vector.dense(values), base)
            assert not found.finite
            assert math.isnan(found.norm)
    assert not measure(Vector.dense(np.ones(size, dtype)), Vector.dense(values)).finite


def test_a_bad_coordinate_is_not_hidden_by_the_same_in_the_base():
    assert not measure(of([math.inf]), of([math.inf])).finite


def test_the_same_vector_always_gives_the_same_bits():
    values = np.random.default_rng(2).standard_normal(300_000)
    assert len({measure(Vector.dense(values.copy())).norm.hex() for _ in range(5)}) == 1


def test_sizes_must_fit():
    with pytest.raises(ConfigError, match="2 cannot be compared with one of 3"):
        measure(of([1, 2]), of([1, 2, 3]))
    with pytest.raises(ConfigError, match="layout of 1"):
        measure(of([1, 2]), layout=Layout.of({"a": np.zeros(1)}))


positive = st.floats(5e-324, 1.7e308)


@given(positive, positive)
def test_clipping_never_exceeds_the_bound_by_a_bit(norm, bound):
    scale = clip_scale(norm, bound)
    assert 0 <= scale <= 1
    assert scale * norm <= bound
    assert Fraction(scale) * Fraction(norm) <= Fraction(bound)
    if norm <= bound:
        assert scale == 1
    elif bound / norm > 1e-300:
        assert scale >= bound / norm * (1 - 2**-51)  # and wastes nothing


def test_clip_scale_at_the_edges():
    assert clip_scale(0.0, 1.0) == 1.0
    assert clip_scale(1.0, 1.0) == 1.0
    assert clip_scale(math.nextafter(1.0, 2), 1.0) < 1.0
    assert clip_scale(10.0, 1.0) == pytest.approx(0.1)
    assert clip_scale(1.7e308, 5e-324) == 0.0
    with pytest.raises(RejectedUpdate, match="not-finite"):
        clip_scale(math.nan, 1.0)


def test_a_huge_update_is_clipped_and_keeps_its_direction():
    update = np.array([6e9, -8e9])
    scale = clip_scales(measure(Vector.dense(update)), 1.0)
    np.testing.assert_allclose(update * scale, [0.6, -0.8], rtol=1e-15)


def test_per_layer_factors():
    """Two layers of norms 5 and 1 and C = sqrt(2): each layer gets 1."""
    found = Measure(math.sqrt(26), True, (5.0, 1.0))
    scales = clip_scales(found, math.sqrt(2), per_layer=True)
    np.testing.assert_allclose(scales, [0.2, 1.0], rtol=1e-15)


@given(st.lists(st.floats(0, 1e100), min_size=1, max_size=20), st.floats(1e-10, 1e10))
def test_per_layer_clipping_bounds_the_whole(layer_norms, bound):
    found = Measure(math.hypot(*layer_norms), True, tuple(layer_norms))
    scales = clip_scales(found, bound, per_layer=True)
    parts = [Fraction(float(s)) * Fraction(n) for s, n in zip(scales, layer_norms, strict=True)]
    assert sum(part**2 for part in parts) <= Fraction(bound) ** 2


def test_per_layer_needs_layer_norms_and_a_finite_update():
    with pytest.raises(ConfigError, match="measure with a layout"):
        clip_scales(Measure(2.0), 1.0, per_layer=True)
    for per_layer in (False, True):
        with pytest.raises(RejectedUpdate, match="not-finite"):
            clip_scales(measure(of([math.nan])), 1.0, per_layer)


def test_a_model_without_floats_needs_no_clipping():
    layout = Layout.of({"n": np.array(1)})
    assert clip_scales(measure(Vector([]), layout=layout), 1.0, per_layer=True).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 20_000])
def test_rough_norms_are_close(dtype, size):
    generator = np.random.default_rng(size)
    pieces = [generator.normal(size=n).astype(dtype) for n in (size, 0, 3)]
    vector = Vector(pieces)
    (rough,) = rough_norms([vector])
    assert rough == pytest.approx(measure(vector).norm, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 8191, 8192, 9000])
def test_rough_norms_never_pass_what_is_not_finite_or_overflows(bad, place):
    values = np.zeros(9001, np.float32)
    values[place] = bad
    good = Vector.dense(np.ones(5, np.float32))
    norms = rough_norms([good, Vector.dense(values), good])
    assert norms[0] == norms[2] == pytest.approx(5**0.5)
    assert not norms[1] <= 1e15
