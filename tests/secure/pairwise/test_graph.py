"""Degree and threshold: bounds against enumeration and sampling, and their refusals."""

import itertools
import math
import random

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.pairwise.graph import (
    Graph,
    complete_graph,
    log2_gap,
    log2_tail,
    sparse_graph,
)


def connected(graph, alive):
    alive = set(alive)
    reached, border = set(), [min(alive)]
    while border:
        place = border.pop()
        if place not in reached:
            reached.add(place)
            border += [p for p in graph.neighbours(place) if p in alive]
    return reached == alive


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 4), (7, 2), (8, 6), (20, 6)])
def test_neighbours_are_mutual_and_as_many_as_said(n, k):
    graph = Graph(n, k, 1)
    for place in range(n):
        around = graph.neighbours(place)
        assert len(set(around)) == k
        assert place not in around
        assert list(around) == sorted(around)
        assert all(place in graph.neighbours(other) for other in around)


@pytest.mark.parametrize(("n", "k", "t"), [(1, 0, 1), (5, 3, 1), (5, 0, 1), (5, 4, 5), (5, 4, 0)])
def test_impossible_graphs_are_refused(n, k, t):
    with pytest.raises(ConfigError, match="allowed are"):
        Graph(n, k, t)


@pytest.mark.parametrize(
    ("n", "colluding", "threshold"), [(2, 0.0, 1), (3, 0.3, 2), (10, 0.1, 6), (10, 0.2, 6),
                                      (100, 0.1, 55), (10, 0.5, 8)]
)  # fmt: skip
def test_the_complete_graph_lets_one_story_be_told(n, colluding, threshold):
    """Two disjoint groups of honest clients cannot both find t supporters among n."""
    graph = complete_graph(n, colluding)
    assert graph.threshold == threshold
    c = math.floor(colluding * n)
    assert 2 * (threshold - c + 1) > n - c, "each story needs t - c honest friends and one teller"
    graph.check(colluding)
    if threshold > 1:
        with pytest.raises(ConfigError, match=r"threshold .* is too low"):
            Graph(n, n - 1, threshold - 1).check(colluding)


def test_two_clients_cannot_protect_each_other_from_each_other():
    with pytest.raises(ConfigError, match="cannot protect each other"):
        complete_graph(2, 0.5)


def test_tails_equal_enumeration():
    for others, marked, drawn, at_least in [(7, 3, 4, 2), (6, 2, 3, 0), (5, 5, 2, 2), (6, 1, 2, 2)]:
        hands = list(itertools.combinations(range(others), drawn))
        bad = sum(sum(card < marked for card in hand) >= at_least for hand in hands)
        expected = math.log2(bad / len(hands)) if bad else -math.inf
        assert log2_tail(others, marked, drawn, at_least) == pytest.approx(expected)


def test_a_ring_falls_apart_no_more_often_than_the_bound():
    """10,000 rings of 12 with degree 4; by the bound at most 0.55, so 5 sigma make 5,740."""
    graph, gone, generator = Graph(12, 4, 1), 3, random.Random(5)
    apart = sum(
        not connected(graph, set(range(12)) - set(generator.sample(range(12), gone)))
        for _ in range(10_000)
    )
    assert apart <= 10_000 * 2 ** log2_gap(12, gone, 2) + 250


def test_a_ring_holds_as_long_as_no_gap_is_wide_enough():
    graph = Graph(9, 4, 1)
    for gone in itertools.chain.from_iterable(itertools.combinations(range(9), r) for r in (1, 2)):
        alive = set(range(9)) - set(gone)
        assert connected(graph, alive)
    assert not connected(graph, {0, 3, 4, 5}), "1 and 2 are gone, and 6, 7, 8"


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(10, 0.1, (6, 2)), (50, 0.1, (22, 6)), (100, 0.1, (32, 11)), (300, 0.1, (42, 22)),
     (1000, 0.05, (34, 18)), (1000, 0.2, (112, 58))],
)  # fmt: skip
def test_sparse_graphs_meet_their_three_bounds(n, share, expected):
    graph = sparse_graph(n, share, share)
    assert (graph.degree, graph.threshold) == expected
    c = lost = math.floor(share * n)
    k, t = expected
    assert math.log2(n) + log2_tail(n - 1, c, k, t) <= -40
    assert log2_gap(n, c + lost, k // 2) <= -40
    assert math.log2(n) + log2_tail(n - 1, lost, k, k - t + 1) <= -30
    graph.check(share, lost)
    with pytest.raises(ConfigError, match="leave a risk of"):
        graph.check(0.45)


def test_no_smaller_degree_would_do():
    """Walk through all smaller degrees and thresholds and find none that is safe."""
    n, share = 60, 0.1
    best = sparse_graph(n, share, share)
    c = lost = math.floor(share * n)
    for k in range(2, best.degree, 2):
        for t in range(1, k + 1):
            private = max(
                math.log2(n) + log2_tail(n - 1, c, k, t), log2_gap(n, c + lost, k // 2)
            )  # fmt: skip
            recovered = math.log2(n) + log2_tail(n - 1, lost, k, k - t + 1)
            assert private > -40 or recovered > -30


def test_few_clients_get_the_complete_graph():
    assert sparse_graph(6, 0.3, 0.3) == complete_graph(6, 0.3)
