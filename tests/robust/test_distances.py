"""Distances are right where the usual formula cancels, and the same bits on any threads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.mechanisms.robust.core import Updates, dots, gram, krum_scores, multi_krum_select
from qsfl_flower.mechanisms.robust.core import squared_distances as distances
from qsfl_flower.numerics import Vector
from tests.robust.conftest import distances_by_hand

DIGITS = 1e-9


def check(rows):
    found, known = distances(Updates.of(rows)), distances_by_hand(rows)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all()
    np.testing.assert_array_less(abs(found - known), DIGITS * known + 1e-300)


def test_against_pairs_by_hand(rng):
    check(rng.standard_normal((9, 5000)))


def test_pairs_that_are_close_to_each_other_only(rng):
    """Close, closer, equal, far and close far ones: each pair has its nine digits."""
    rows = rng.standard_normal((12, 3000))
    rows[3] = rows[2]
    rows[4] = rows[2] * (1 + 1e-9)
    rows[5] = rows[4] + 1e-14
    rows[6] = 1e30
    rows[7] = rows[6] * (1 + 1e-10)
    rows[8] = 1e30 * rng.standard_normal(3000)
    check(rows)


def test_all_near_one_point_far_from_the_origin(rng):
    """Every pair would cancel: the usual formula has no digit left."""
    rows = 1e6 + 1e-4 * rng.standard_normal((7, 4000))
    check(rows)
    squares = (rows**2).sum(axis=1)
    usual = squares + squares[:, np.newaxis] - 2 * rows @ rows.T
    assert (abs(usual - distances_by_hand(rows)) > distances_by_hand(rows)).any()


@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_any_numbers(data, count, size):
    numbers = st.floats(-1e50, 1e50).filter(lambda x: x == 0 or abs(x) > 1e-50)
    rows = [data.draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(count)]
    check(np.array(rows))


def test_equal_and_zero_vectors_have_distance_zero():
    assert (distances(Updates.of(np.zeros((4, 10)))) == 0).all()
    assert (distances(Updates.of(np.full((4, 10), 0.1))) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e150])
def test_unusable_vectors_are_infinitely_far_and_spoil_no_other_pair(rng, bad):
    rows = rng.standard_normal((6, 2000))
    known = distances(Updates.of(rows))
    rows[2, 7] = bad
    found = distances(Updates.of(rows))
    others = [0, 1, 3, 4, 5]
    assert np.isinf(found[2, others]).all()
    assert np.isinf(found[others, 2]).all()
    np.testing.assert_array_equal(found[np.ix_(others, others)], known[np.ix_(others, others)])


def test_bits_do_not_depend_on_threads(rng):
    rows = rng.standard_normal((20, 100_001), dtype=np.float32)
    rows[4] = rows[3] * np.float32(1.000001)
    alone = distances(Updates.of(rows), threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(distances(Updates.of(rows), threads=threads), alone)


def test_updates_are_measured_not_models(rng):
    """Models less the global model, scaled, in pieces: as if the differences had been built."""
    model = rng.standard_normal(40_000)
    steps = 1e-5 * rng.standard_normal((5, 40_000))
    models = [Vector([(model + s)[:111], (model + s)[111:]]) for s in steps]
    base = Vector.dense(model)
    scales = np.array([1.0, 0.5, 1.0, 0.25, 1.0])
    rows = np.array([(model + s) - model for s in steps]) * scales[:, np.newaxis]
    updates = Updates(models, [base] * 5, scales)
    np.testing.assert_allclose(distances(updates), distances_by_hand(rows), rtol=1e-12)
    parts = [slice(0, 11_000), slice(11_000, 40_000)]
    factors = np.stack([scales, scales / 2], axis=1)
    rows[:, 11_000:] /= 2
    by_part = Updates(models, [base] * 5, factors, parts)
    np.testing.assert_allclose(distances(by_part), distances_by_hand(rows), rtol=1e-12)
    weights = np.arange(5.0)
    np.testing.assert_allclose(by_part.sum(weights), weights @ rows, rtol=0, atol=1e-14)


def test_products_and_dots(rng):
    rows, other = rng.standard_normal((6, 30_000)), rng.standard_normal(30_000)
    np.testing.assert_allclose(gram(Updates.of(rows)), rows @ rows.T, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(dots(Updates.of(rows), other), rows @ other, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(dots(Updates.of(rows)), (rows**2).sum(axis=1), rtol=1e-11)


@pytest.mark.parametrize(("model_std", "step_std"), [(0.05, 1e-5), (0.5, 1e-4)])
def test_flower_selects_attackers_late_in_training_and_we_do_not(model_std, step_std):
    """20 trials, 4 of 20 clients send twice the spread of the honest ones.

    Flower measures float32 models: most distances cancel to noise. We measure the same models less
    the global one.
    """
    flower = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    rng = np.random.default_rng(0)
    taken_by_flower = taken_by_us = 0
    for _ in range(20):
        model = (model_std * rng.standard_normal(50_000)).astype(np.float32)
        spread = np.where(np.arange(20) < 16, 1.0, 2.0)[:, np.newaxis]
        steps = step_std * spread * rng.standard_normal((20, 50_000))
        models = (model + steps).astype(np.float32)
        records = [SimpleNamespace(to_numpy_ndarrays=lambda m=m: [m]) for m in models]
        theirs = flower.compute_distances(records)
        updates = Updates([Vector.dense(m) for m in models], [Vector.dense(model)] * 20)
        taken_by_flower += (multi_krum_select(krum_scores(theirs, 4), 16) >= 16).sum()
        ours = distances(updates)
        taken_by_us += (multi_krum_select(krum_scores(ours, 4), 16) >= 16).sum()
    assert taken_by_flower >= 20  # 32 and 37 of 80 when this was written
    assert taken_by_us == 0
