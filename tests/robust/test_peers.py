"""The rules beside ByzFL's, where that package is installed; it pins an old torch, so CI has none.

Its Krum counts one neighbour more than Blanchard et al.; Flower's and ours are compared elsewhere.
"""

import numpy as np
import pytest

from qsfl_flower.mechanisms.robust.core import PREPARATIONS, RULES, Updates, aggregate

byzfl = pytest.importorskip("byzfl")
N, D, F = 11, 60, 2


def cohorts():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(N, D))
    yield honest
    attacked = honest.copy()
    attacked[:F] = 30 * rng.normal(size=(F, D))
    yield attacked
    colluding = honest.copy()
    colluding[:F] = -honest.mean(axis=0) + 1e-6 * rng.normal(size=(F, D))
    yield colluding


def ours(x, rule, before=None):
    return aggregate(Updates.of(list(x)), RULES[rule](F), before).vector


@pytest.mark.parametrize("cohort", range(3))
@pytest.mark.parametrize(
    ("rule", "peer"),
    [
        ("median", byzfl.Median()),
        ("trimmed_mean", byzfl.TrMean(F)),
        ("meamed", byzfl.Meamed(F)),
        ("mda", byzfl.MDA(F)),
    ],
)
def test_the_same_as_byzfl(rule, peer, cohort):
    x = list(cohorts())[cohort]
    np.testing.assert_allclose(ours(x, rule), np.asarray(peer(x)), rtol=1e-9, atol=1e-12)


def test_geometric_median_is_at_least_as_near_as_byzfls():
    """ByzFL stops after a number of steps, so its result is near ours and never better."""
    for x in cohorts():
        mine, peer = ours(x, "geometric_median"), np.asarray(byzfl.GeometricMedian(T=200)(x))

        def distances(point, x=x):
            return np.linalg.norm(x - point, axis=1).sum()

        assert distances(mine) <= distances(peer) * (1 + 1e-9)


def test_nearest_neighbour_mixing_is_byzfls():
    for x in cohorts():
        mine = ours(x, "trimmed_mean", PREPARATIONS["nnm"]())
        peer = byzfl.TrMean(F)(byzfl.NNM(F)(x))
        np.testing.assert_allclose(mine, np.asarray(peer), rtol=1e-9, atol=1e-12)
