from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from qsfl_flower.mechanisms.detection.core import Forest, RobustZ, explain, path_contributions
from qsfl_flower.mechanisms.detection.core.detector import calibrated
from qsfl_flower.mechanisms.detection.core.forest import expected_lengths


@pytest.fixture(scope="module")
def forest():
    x = np.random.default_rng(0).normal(size=(300, 5))
    return IsolationForest(n_estimators=30, max_samples=128, random_state=0).fit(x)


@pytest.fixture(scope="module")
def rows():
    rows = np.random.default_rng(1).normal(size=(12, 5))
    rows[0, 3] = 9.0
    return rows


def mean_lengths(forest: IsolationForest, rows: np.ndarray) -> np.ndarray:
    """Path lengths from scikit-learn's own score: 2 ** (-length / c(max_samples))."""
    n = forest.max_samples_
    c = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return -np.log2(-forest.score_samples(rows)) * c


def test_contributions_add_up_to_the_score_less_the_base(forest, rows):
    base = np.mean([expected_lengths(tree.tree_)[0] for tree in forest.estimators_])
    total = path_contributions(forest, rows).sum(axis=1)
    assert total == pytest.approx(base - mean_lengths(forest, rows), abs=1e-9)


def test_the_odd_feature_has_the_largest_contribution(forest, rows):
    assert path_contributions(forest, rows)[0].argmax() == 3


@pytest.mark.skipif(importlib.util.find_spec("shap") is None, reason="the extra 'shap' is absent")
def test_shap_values_have_the_same_sum_and_name_the_same_feature(forest, rows):
    pytest.importorskip("shap")
    ours, theirs = path_contributions(forest, rows), explain(forest, rows)
    assert theirs.sum(axis=1) == pytest.approx(ours.sum(axis=1), abs=1e-4)
    assert theirs[0].argmax() == 3


def test_without_shap_paths_explain(forest, rows, monkeypatch):
    monkeypatch.setattr("qsfl_flower.mechanisms.detection.core.forest.find_spec", lambda _: None)
    assert np.array_equal(explain(forest, rows), path_contributions(forest, rows))


@pytest.mark.parametrize("detector", [Forest(path_contributions), RobustZ()])
def test_detectors_are_pure_and_score_in_the_unit_interval(detector):
    rng = np.random.default_rng(2)
    reference, rows = rng.normal(size=(256, 6)), rng.normal(size=(20, 6))
    rows[:6] += 12.0
    first, again = (detector.judge(rows, reference, 5) for _ in range(2))
    assert np.array_equal(first.scores, again.scores)
    assert ((first.scores >= 0) & (first.scores <= 1)).all()
    assert (first.scores[:6] > 0.9).all()
    assert first.scores[6:].mean() < 0.35
    assert first.reasons.shape == rows.shape


def test_gross_outliers_reach_one_and_a_share_of_one_percent_of_the_usual_is_above_a_half():
    """A forest's raw score does neither: it stays below 0.8, and 'contamination' flags a tenth."""
    usual = np.random.default_rng(3).normal(size=100_000)
    share = (calibrated(usual, usual) > 0.5).mean()
    assert share == pytest.approx(0.01, abs=1e-4)
    assert calibrated(np.array([100.0, -100.0]), usual).tolist() == [1.0, 0.0]
    assert np.isfinite(calibrated(np.ones(3), np.ones(5))).all()
