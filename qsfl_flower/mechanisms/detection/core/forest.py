"""An isolation forest whose verdicts can be explained.

References
----------
F. T. Liu, K. M. Ting, Z.-H. Zhou, "Isolation forest", 2008. doi:10.1109/ICDM.2008.17.
S. M. Lundberg et al., "From local explanations to global understanding with explainable AI for
trees", 2020. arXiv:1905.04610 (TreeExplainer).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.detection.core.detector import Detector, Floats, Judgement, calibrated

if TYPE_CHECKING:
    from sklearn.ensemble import IsolationForest


class Forest(Detector):
    """Isolation forest over the reference and the round together.

    Unusual rows have to be among those that the trees are grown on, or they would not be isolated
    early; the reference keeps a colluding group from making up a large share of them.

    Parameters
    ----------
    explainer : callable, optional
        `explain`, or `path_contributions`, which takes a seventh of the time.
    """

    def __init__(
        self, explainer: Callable[[IsolationForest, Floats], Floats] | None = None
    ) -> None:
        self.explainer = explainer or explain

    def judge(self, rows: Floats, reference: Floats, seed: int) -> Judgement:
        """Judge by the mean path length; reasons are given for suspicious rows only."""
        from sklearn.ensemble import IsolationForest  # slow to load: 1 s and 100 MB

        forest = IsolationForest(n_estimators=100, max_samples=256, random_state=seed)
        both = np.vstack([reference, rows])
        raw = -forest.fit(both).score_samples(both)
        scores = calibrated(raw[len(reference) :], raw[: len(reference)])
        reasons = np.zeros_like(rows)
        suspicious = scores > 0.5
        if suspicious.any():
            reasons[suspicious] = self.explainer(forest, rows[suspicious])
        return Judgement(scores, reasons)


def explain(forest: IsolationForest, rows: Floats) -> Floats:
    """Attribute what makes rows easy to isolate to the features.

    With the extra ``shap`` installed these are SHAP values (TreeExplainer), else
    `path_contributions`. Both add up, for every row, to the mean path length that the forest
    expects of a row it does not know minus the row's own.

    Parameters
    ----------
    forest : IsolationForest
        A fitted one.
    rows : ndarray of float64, shape (n, F)
        What to explain.

    Returns
    -------
    ndarray of float64, shape (n, F)
        Steps by which each feature shortens the path: larger is more suspicious.
    """
    if find_spec("shap") is None:
        return path_contributions(forest, rows)
    shap: Any = importlib.import_module("shap")
    values: Floats = -np.asarray(shap.TreeExplainer(forest).shap_values(rows), dtype=np.float64)
    return values


def path_contributions(forest: IsolationForest, rows: Floats) -> Floats:
    """Attribute path lengths to the features that the paths split on, without further packages.

    A node's value is the path length that is expected in it, over the examples that the tree was
    grown on. Each step from a node to its child changes that value, and the change is put down to
    the feature of the split; the sum over a path is the leaf's value minus the root's.

    Parameters and result are those of `explain`.
    """
    rows = rows.astype(np.float32)  # as scikit-learn compares
    total = np.zeros(rows.shape)
    for estimator, used in zip(forest.estimators_, forest.estimators_features_, strict=True):
        tree = estimator.tree_
        values = expected_lengths(tree)
        at = np.zeros(len(rows), dtype=np.intp)
        while (inner := np.flatnonzero(tree.children_left[at] >= 0)).size:
            node = at[inner]
            feature = used[tree.feature[node]]
            left = rows[inner, feature] <= tree.threshold[node]
            child = np.where(left, tree.children_left[node], tree.children_right[node])
            total[inner, feature] += values[node] - values[child]
            at[inner] = child
    return total / len(forest.estimators_)


def expected_lengths(tree: Any) -> Floats:
    """Return the expected path length in every node of a scikit-learn tree.

    In a leaf it is the leaf's depth plus the mean length that is still missing there; in any other
    node the mean over its examples.
    """
    count = tree.node_count
    depth, values = np.zeros(count), np.zeros(count)
    inner = np.flatnonzero(tree.children_left >= 0)
    for node in inner:  # parents come before their children
        depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
    size = tree.n_node_samples.astype(np.float64)
    values[:] = depth + _missing(size)
    for node in inner[::-1]:
        children = [tree.children_left[node], tree.children_right[node]]
        values[node] = size[children] @ values[children] / size[children].sum()
    return values


def _missing(count: NDArray[np.float64]) -> Floats:
    """Return the mean path length of a tree over so many examples (Liu et al., equation 1)."""
    several = np.maximum(count, 3.0)
    mean = 2 * (np.log(several - 1) + np.euler_gamma) - 2 * (several - 1) / several
    return np.where(count > 2, mean, np.where(count > 1, 1.0, 0.0))
