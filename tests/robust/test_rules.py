"""Every rule against the same rule written down by hand, and the properties that rules promise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import (
    CGE,
    MDA,
    PREPARATIONS,
    RULES,
    Bucketing,
    Bulyan,
    CenteredClipping,
    FLTrust,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    NormBoundedMean,
    TooFewUpdates,
    TrimmedMean,
    Updates,
    aggregate,
)
from qsfl_flower.numerics import SparseVector, Vector
from tests.robust.conftest import distances_by_hand

TRANSLATED = ["krum", "multi_krum", "median", "trimmed_mean", "meamed", "bulyan",
              "geometric_median", "mda"]  # fmt: skip
"""Rules that move with the updates; the others measure from the global model."""

ROBUST = [name for name in RULES if name not in {"mean", "fltrust"}]


def rule(name, f=None):
    return FLTrust(f, np.ones(3)) if name == "fltrust" else RULES[name](f)


def krum_rows(rows, f, m):
    squared = distances_by_hand(rows)
    count = len(rows)
    neighbours = min(count - 1, max(1, count - f - 2))
    scores = [sorted(np.delete(squared[i], i))[:neighbours] for i in range(count)]
    return sorted(sorted(range(count), key=lambda i: (sum(scores[i]), i))[:m])


def around(column, centre, m):
    """The mean of the m values closest to a centre; of equally distant ones the lower first."""
    return np.mean(sorted(column, key=lambda x: (abs(x - centre), x))[:m])


def by_hand(name, x, f):
    """Each rule as slowly and plainly as it can be written."""
    n = len(x)
    norms = np.sqrt((x**2).sum(axis=1))
    if name == "mean":
        return x.mean(axis=0)
    if name in {"krum", "fast_krum"}:
        return x[krum_rows(x, f, 1)[0]]
    if name == "multi_krum":
        return x[krum_rows(x, f, n - f)].mean(axis=0)
    if name == "median":
        return np.median(x, axis=0)
    if name == "trimmed_mean":
        return np.sort(x, axis=0)[f : n - f].mean(axis=0)
    if name == "meamed":
        return np.array([around(c, np.median(c), n - f) for c in x.T])
    if name == "bulyan":
        left, chosen = list(range(n)), []
        for _ in range(max(1, n - 2 * f)):
            chosen.append(left.pop(krum_rows(x[left], f, 1)[0]))
        return np.array([around(c, np.median(c), max(1, n - 4 * f)) for c in x[sorted(chosen)].T])
    if name == "mda":
        squared = distances_by_hand(x)
        best = min(
            itertools.combinations(range(n), n - f),
            key=lambda s: squared[np.ix_(s, s)].max(),
        )
        return x[list(best)].mean(axis=0)
    if name == "cge":
        return x[np.argsort(norms, kind="stable")[: n - f]].mean(axis=0)
    if name == "norm_bounded":
        bound = np.median(norms)
        return np.mean(
            [v * min(1, bound / s) if s else v for v, s in zip(x, norms, strict=True)], 0
        )
    if name == "centered_clipping":
        z = np.zeros(x.shape[1])
        for _ in range(3):
            lengths = np.sqrt(((x - z) ** 2).sum(axis=1))
            factors = np.minimum(1, np.median(lengths) / np.maximum(lengths, 1e-300))
            z = z + (factors[:, np.newaxis] * (x - z)).mean(axis=0)
        return z
    raise AssertionError(name)


@pytest.mark.parametrize("name", [n for n in RULES if n not in {"geometric_median", "fltrust"}])
@pytest.mark.parametrize(("count", "f"), [(1, 0), (4, 0), (7, 1), (11, 2), (12, 1)])
@pytest.mark.parametrize("kind", ["spread", "float32", "one", "attacked"])
def test_against_the_rule_by_hand(rng, name, count, f, kind):
    f = 0 if name == "mean" else f
    rows = rng.standard_normal((count, 1 if kind == "one" else 6))
    if kind == "float32":
        rows = rows.astype(np.float32)
    if kind == "attacked":
        rows[:f] = 50
    found = aggregate(Updates.of(rows), rule(name, f))
    known = by_hand(name, rows.astype(np.float64), f)
    np.testing.assert_allclose(found.vector, known, rtol=1e-9, atol=1e-12)
    assert found.num_byzantine == f
    assert found.excluded == ()
    if found.weights is not None:
        np.testing.assert_allclose(found.weights @ rows, known, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found.selected, found.weights != 0)


@given(st.data(), st.sampled_from([n for n in ROBUST if n not in {"geometric_median"}]))
def test_ties_are_broken_as_by_hand(data, name):
    """Whole numbers on a tiny grid: equal norms, distances and values everywhere."""
    f = data.draw(st.integers(0, 2))
    count = 4 * f + 3 + data.draw(st.integers(0, 2))
    whole = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    rows = np.array([data.draw(whole) for _ in range(count)], dtype=np.float64)
    found = aggregate(Updates.of(rows), rule(name, f)).vector
    np.testing.assert_allclose(found, by_hand(name, rows, f), rtol=1e-9, atol=1e-12)


def test_geometric_median_minimizes_the_sum_of_distances(rng):
    rows = rng.standard_normal((9, 5))
    rows[:3] += 30

    def total(z):
        return np.sqrt(((rows - z) ** 2).sum(axis=1)).sum()

    found = aggregate(Updates.of(rows), GeometricMedian()).vector
    pull = (rows - found) / np.sqrt(((rows - found) ** 2).sum(axis=1))[:, np.newaxis]
    assert np.abs(pull.sum(axis=0)).max() < 1e-5  # the unit pulls are in balance
    for step in 1e-3 * rng.standard_normal((20, 5)):
        assert total(found) <= total(found + step)
    triangle = np.array([[0.0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    fermat = aggregate(Updates.of(triangle), GeometricMedian()).vector
    np.testing.assert_allclose(fermat, triangle.mean(axis=0), atol=1e-9)


def test_geometric_median_of_a_majority_in_one_point_is_that_point():
    rows = np.array([[1.0, 2]] * 4 + [[9.0, 9], [-5, 0], [3, 3]])
    np.testing.assert_allclose(aggregate(Updates.of(rows), GeometricMedian()).vector, [1, 2])


def test_a_far_update_among_equal_ones(rng):
    """The usual distance is zero then."""
    rows = np.full((12, 4), 0.5)
    rows[5] = 1e30
    for name in ("geometric_median", "centered_clipping"):
        for before in (None, NearestNeighbourMixing()):
            found = aggregate(Updates.of(rows), rule(name, 1), before).vector
            assert np.abs(found).max() < 1


def test_fltrust(rng):
    rows, root = rng.standard_normal((6, 40)), rng.standard_normal(40)
    rows[:3] += root
    cosines = rows @ root / np.sqrt((rows**2).sum(axis=1)) / np.sqrt(root @ root)
    trust = np.maximum(cosines, 0)
    scaled = rows * (np.sqrt(root @ root) / np.sqrt((rows**2).sum(axis=1)))[:, np.newaxis]
    found = aggregate(Updates.of(rows), FLTrust(root=root))
    np.testing.assert_allclose(found.vector, trust @ scaled / trust.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.scores, 1 - cosines, rtol=1e-9)
    away = aggregate(Updates.of(-np.outer([1, 2], root)), FLTrust(root=root))
    assert not away.selected.any()
    assert (away.vector == 0).all()
    with pytest.raises(ConfigError, match="own data"):
        aggregate(Updates.of(rows), FLTrust())


def test_parameters(rng):
    rows = rng.standard_normal((10, 8))
    found = aggregate(Updates.of(rows), MultiKrum(2, num_selected=3))
    np.testing.assert_allclose(found.vector, rows[krum_rows(rows, 2, 3)].mean(axis=0))
    found = aggregate(Updates.of(rows), TrimmedMean(share=0.25))
    np.testing.assert_allclose(found.vector, np.sort(rows, axis=0)[2:8].mean(axis=0))
    norms = np.sqrt((rows**2).sum(axis=1))[:, np.newaxis]
    found = aggregate(Updates.of(rows), NormBoundedMean(bound=0.1))
    np.testing.assert_allclose(found.vector, (rows / norms * 0.1).mean(axis=0))
    found = aggregate(Updates.of(rows), CenteredClipping(radius=0.1, iterations=1))
    np.testing.assert_allclose(found.vector, (rows / norms * 0.1).mean(axis=0))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("before", [None, *PREPARATIONS])
def test_equal_and_zero_updates(name, before):
    """All updates equal: the result is that update, or for FLTrust its direction."""
    prepare = None if before is None else PREPARATIONS[before]()
    for value in (0.0, 0.25):
        rows = np.full((8, 3), value)
        found = aggregate(Updates.of(rows), rule(name), prepare).vector
        wanted = np.sign(rows[0]) if name == "fltrust" else rows[0]
        np.testing.assert_allclose(found, wanted, atol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_updates_does_not_matter(rng, name):
    rows = rng.standard_normal((11, 3000)) if name != "fltrust" else rng.standard_normal((11, 3))
    order = rng.permutation(11)
    found = aggregate(Updates.of(rows), rule(name))
    other = aggregate(Updates.of(rows[order]), rule(name))
    np.testing.assert_allclose(other.vector, found.vector, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(other.selected, found.selected[order])
    if found.weights is None and name != "bulyan":
        np.testing.assert_array_equal(other.vector, found.vector)


@pytest.mark.parametrize("name", TRANSLATED)
def test_translation(rng, name):
    rows, shift = rng.standard_normal((11, 200)), rng.standard_normal(200)
    found = aggregate(Updates.of(rows), rule(name)).vector
    moved = aggregate(Updates.of(rows + shift), rule(name)).vector
    np.testing.assert_allclose(moved, found + shift, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_scaling(rng, name):
    rows = rng.standard_normal((11, 3))
    found, large = (aggregate(Updates.of(s * rows), rule(name)).vector for s in (1.0, 2.0**40))
    scale = 1.0 if name == "fltrust" else 2.0**40  # FLTrust has the length of the root update
    np.testing.assert_allclose(large, scale * found, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads_or_runs(rng, name, dtype):
    rows = rng.standard_normal((9, 70_001)).astype(dtype)
    one = FLTrust(root=rows[0].astype(np.float64)) if name == "fltrust" else RULES[name]()
    base = Vector.dense(rng.standard_normal(70_001).astype(dtype))
    updates = Updates([Vector.dense(r) for r in rows], [base] * 9)
    for before in (None, NearestNeighbourMixing()):
        alone = aggregate(updates, one, before, threads=1).vector
        for threads in (1, 2, 5):
            found = aggregate(updates, one, before, threads=threads).vector
            np.testing.assert_array_equal(found, alone)


def test_models_give_what_their_differences_give(rng):
    """The shortcut over float32 models equals the same rule on built differences."""
    model = rng.standard_normal(5000).astype(np.float32)
    models = (model + 0.01 * rng.standard_normal((10, 5000))).astype(np.float32)
    updates = Updates([Vector.dense(m) for m in models], [Vector.dense(model)] * 10)
    built = Updates.of(models.astype(np.float64) - model)
    for one in (Median(), TrimmedMean(3), MeaMed(3), Bulyan(1), Krum(2), GeometricMedian()):
        np.testing.assert_allclose(
            aggregate(updates, one).vector, aggregate(built, one).vector, rtol=1e-12, atol=1e-14
        )


def test_sparse_updates_give_what_dense_ones_give(rng):
    dense = np.where(rng.random((9, 5000)) < 0.1, rng.standard_normal((9, 5000)), 0.0)
    sparse = [SparseVector(5000, np.flatnonzero(r), r[r != 0].astype(np.float32)) for r in dense]
    for one in (Median(), MeaMed(2), MultiKrum(2), GeometricMedian(), NormBoundedMean(), Bulyan(1)):
        np.testing.assert_allclose(
            aggregate(Updates(sparse), one).vector,
            aggregate(Updates.of(dense.astype(np.float32)), one).vector,
            rtol=1e-12,
            atol=1e-15,
        )


def hostile(data, honest, f, size):
    """F rows of anything, at positions of their own."""
    wild = st.one_of(
        st.floats(-1e30, 1e30),
        st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e300]),
    )
    rows = [data.draw(st.lists(wild, min_size=size, max_size=size)) for _ in range(f)]
    order = data.draw(st.permutations(range(len(honest) + f)))
    return np.array([*honest, *rows], dtype=np.float64)[list(order)]


@given(st.data(), st.sampled_from(["median", "trimmed_mean", "meamed", "bulyan"]))
def test_no_liars_move_a_coordinate_out_of_the_honest_range(data, name):
    """Breakdown of the coordinate-wise rules: each coordinate stays between honest values.

    The mean around the median may leave that range by at most its width: what is averaged is at
    most as far from the median as the farthest honest value.
    """
    f = data.draw(st.integers(1, 2))
    count = (4 if name == "bulyan" else 2) * f + 3
    seed = data.draw(st.integers(0, 2**32 - 1))
    honest = np.random.default_rng(seed).standard_normal((count - f, 3))
    rows = hostile(data, honest, f, 3)
    found = aggregate(Updates.of(rows), rule(name, f)).vector
    low, high = honest.min(axis=0), honest.max(axis=0)
    slack = 0.0 if name in {"median", "trimmed_mean"} else high - low
    assert (found >= low - slack - 1e-12).all()
    assert (found <= high + slack + 1e-12).all()


@given(st.data(), st.sampled_from([n for n in ROBUST if n not in {"median", "trimmed_mean"}]),
       st.sampled_from([None, "nnm", "bucketing"]))  # fmt: skip
def test_no_liars_move_the_result_far_from_the_honest_updates(data, name, before):
    """Breakdown of all rules, with NaN, infinities and 1e30 from f of the updates.

    The constant is a coarse one that holds for every rule here: 20 times the largest honest norm,
    where an unprotected mean would be off by 1e29.
    """
    f = 1
    count = 12
    seed = data.draw(st.integers(0, 2**32 - 1))
    honest = np.random.default_rng(seed).standard_normal((count - f, 4))
    rows = hostile(data, honest, f, 4)
    prepare = None if before is None else PREPARATIONS[before]()
    if name == "bulyan" and before == "bucketing":
        f = 0  # six buckets are too few for Bulyan
        with pytest.raises(TooFewUpdates):
            aggregate(Updates.of(rows), rule(name, 1), prepare)
        return
    found = aggregate(Updates.of(rows), rule(name, f), prepare).vector
    largest = np.sqrt((honest**2).sum(axis=1)).max()
    assert np.sqrt(found @ found) <= 20 * largest


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e150])
def test_unusable_updates_are_excluded_and_count_as_liars(rng, name, bad):
    rows = rng.standard_normal((11, 3))
    f = 0 if name == "mean" else 2
    spoiled = np.insert(rows, [2, 7], 0.5, axis=0)
    spoiled[2, 1] = spoiled[8, 0] = bad
    if name in {"median", "trimmed_mean", "meamed"} and np.isfinite(bad):
        return  # one large number is sorted to an end
    found = aggregate(Updates.of(spoiled), rule(name, f))
    alone = aggregate(Updates.of(rows), rule(name, 0))
    assert found.excluded == (2, 8)
    assert not found.selected[[2, 8]].any()
    np.testing.assert_allclose(found.vector, alone.vector, rtol=1e-12)
    if found.scores is not None:
        assert np.isinf(found.scores[[2, 8]]).all()
        assert np.isfinite(np.delete(found.scores, [2, 8])).all()


def test_nothing_usable_is_an_error():
    for name in RULES:
        with pytest.raises(TooFewUpdates, match="none of 4"):
            aggregate(Updates.of(np.full((4, 3), np.nan)), rule(name))


@pytest.mark.parametrize(
    ("name", "needed"), [("krum", 9), ("multi_krum", 9), ("bulyan", 15), ("median", 7), ("mda", 7)]
)
def test_too_few_updates_for_the_liars(rng, name, needed):
    one = rule(name, 3)
    aggregate(Updates.of(rng.standard_normal((needed, 2))), one)
    with pytest.raises(TooFewUpdates, match=f"{name} withstands at most 2 malicious ones among"):
        aggregate(Updates.of(rng.standard_normal((needed - 1, 2))), one)


def test_estimated_liars_respect_the_bound_and_zero_is_zero():
    """N // 3, as usually taken, breaks Krum's bound for 3, 4 and 6 updates."""
    for count in range(1, 60):
        assert Krum().liars(count, count) == min(count // 3, max(0, (count - 3) // 2))
        assert Bulyan().liars(count, count) == max(0, (count - 3) // 4)
        assert Krum(0).liars(count, count) == 0
        f = Krum().liars(count, count)
        assert f == 0 or count >= 2 * f + 3
    assert Krum().liars(10, 10) == 3
    assert Mean().liars(10, 10) == 0


def test_bucketing(rng):
    rows = rng.standard_normal((7, 4))
    found = aggregate(Updates.of(rows), Mean(), Bucketing(size=3, seed=1))
    order = np.random.default_rng(1).permutation(7)
    buckets = [order[:3], order[3:6], order[6:]]
    np.testing.assert_allclose(found.vector, np.mean([rows[b].mean(axis=0) for b in buckets], 0))
    median = aggregate(Updates.of(rows), Median(), Bucketing(size=3, seed=1))
    np.testing.assert_allclose(
        median.vector, np.median([rows[b].mean(axis=0) for b in buckets], axis=0)
    )
    krum = aggregate(Updates.of(rows), Krum(0), Bucketing(size=3, seed=1))
    means = np.array([rows[b].mean(axis=0) for b in buckets])
    chosen = krum_rows(means, 0, 1)[0]
    np.testing.assert_allclose(krum.vector, means[chosen])
    assert sorted(np.flatnonzero(krum.selected)) == sorted(buckets[chosen])


@pytest.mark.parametrize("name", ["krum", "multi_krum", "median", "trimmed_mean", "mda",
                                  "centered_clipping", "norm_bounded", "meamed"])  # fmt: skip
def test_nearest_neighbour_mixing(rng, name):
    rows = rng.standard_normal((9, 30))
    nearest = np.argsort(distances_by_hand(rows), axis=1, kind="stable")[:, :7]
    mixed = rows[nearest].mean(axis=1)
    found = aggregate(Updates.of(rows), rule(name, 2), NearestNeighbourMixing())
    np.testing.assert_allclose(found.vector, by_hand(name, mixed, 2), rtol=1e-8, atol=1e-11)


def test_distances_of_mixtures_do_not_cancel(rng):
    """One update at 1e20: the mixtures without it keep their digits."""
    rows = rng.standard_normal((9, 30))
    rows[4] = 1e20
    found = aggregate(Updates.of(rows), MultiKrum(2), NearestNeighbourMixing())
    others = np.delete(rows, 4, axis=0)
    assert not found.selected[4]
    assert (np.abs(found.vector) < np.abs(others).max()).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Krum(-1),
        lambda: Krum(True),
        lambda: MultiKrum(1, num_selected=0),
        lambda: TrimmedMean(share=0.5),
        lambda: NormBoundedMean(bound=0.0),
        lambda: CenteredClipping(radius=-1.0),
        lambda: GeometricMedian(smoothing=0.0),
        lambda: GeometricMedian(iterations=0),
        lambda: Bucketing(size=0),
        lambda: Updates([]),
        lambda: Updates([Vector.dense(np.ones(2)), Vector.dense(np.ones(3))]),
    ],
)
def test_bad_parameters_are_errors(make):
    with pytest.raises(ConfigError, match=r"allowed|needed"):
        make()


def test_rules_are_values(rng):
    assert Krum(2) == replace(Krum(), num_byzantine=2)
    assert {CGE.name, MDA.name} < set(RULES)
