from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.mechanisms.detection.core import coordinated, extract
from qsfl_flower.mechanisms.robust.core import Updates


def test_colluders_are_found_and_honest_clients_left_alone(cohort, layout):
    x = cohort(20)
    x[3] = x[8] = x[11] = -x[8]
    assert coordinated(extract(Updates.of(x), layout).likeness) == [(3, 8, 11)]


@pytest.mark.parametrize("seed", range(20))
def test_honest_clients_form_no_group_although_their_updates_correlate(cohort, layout, seed):
    """Pairwise correlation of whole updates would: W-73's rule flagged honest clients."""
    x = 5 * cohort(1)[0] + 0.2 * cohort(10, seed=seed)
    raw = np.corrcoef(x)[np.triu_indices(10, 1)]
    assert (raw > 0.95).sum() > 10 // 2
    assert coordinated(extract(Updates.of(x), layout).likeness) == []


def test_two_groups_are_told_apart_and_a_majority_is_none():
    likeness = np.eye(9)
    for group in ((0, 1), (4, 5, 6)):
        likeness[np.ix_(group, group)] = 1.0
    assert coordinated(likeness) == [(0, 1), (4, 5, 6)]
    assert coordinated(np.ones((5, 5))) == []
    assert coordinated(np.ones((1, 1))) == []


def test_chains_are_one_group():
    likeness = np.eye(8)
    for a, b in ((0, 1), (1, 2)):
        likeness[a, b] = likeness[b, a] = 0.97
    assert coordinated(likeness) == [(0, 1, 2)]


def test_where_everybody_moves_on_one_line_nobody_stands_out():
    """Cosines of differences are 1 or -1 then: two camps, and no colluders."""
    side = np.where(np.arange(20) < 9, 1.0, -1.0)
    side[:2] = side[18:] = 0.0  # in the middle
    likeness = np.outer(side, side)
    np.fill_diagonal(likeness, 1.0)
    assert coordinated(likeness) == []


@pytest.mark.parametrize(("cosine", "groups"), [(0.88, []), (0.97, [(2, 5)])])
def test_honest_clients_with_the_same_few_classes_are_no_group(cosine, groups):
    likeness = np.eye(20)
    likeness[2, 5] = likeness[5, 2] = cosine
    assert coordinated(likeness) == groups
