"""Questions about tables: sensitivities, agreement of trees, intervals; seeded, so repeatable."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.analytics.core.intervals import ratio
from qsfl_flower.mechanisms.analytics.core.plan import Answers, Ask, Part, Plan
from qsfl_flower.mechanisms.analytics.core.statistics import statistic_of
from qsfl_flower.mechanisms.analytics.core.tree import Tree
from qsfl_flower.mechanisms.analytics.options import (
    Correlation,
    Counts,
    HeavyHitters,
    Histogram,
    Mean,
    Quantiles,
    Variance,
    question_of,
)
from qsfl_flower.privacy.gaussian import gaussian_delta, gaussian_noise_multiplier

QUESTIONS = (
    Mean(column="age", low=0, high=120),
    Variance(column="age", low=0, high=120),
    Histogram(column="age", low=0, high=120, bins=12),
    Quantiles(column="age", low=0, high=120, depth=2),
    Counts(column="name", values=("anna", "bob")),
    HeavyHitters(column="name", max_length=5),
    Correlation(columns=("x", "y"), low=(-4, -4), high=(4, 4)),
)


def table(rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return {
        "age": rng.gamma(3, 10, rows),
        "name": rng.choice(["anna", "bob", "bobby", "carla"], rows, p=[0.5, 0.3, 0.15, 0.05]),
        "x": x,
        "y": 0.6 * x + 0.8 * rng.normal(size=rows),
    }


def answers_of(plan, columns, noise, rng, most=1e9, level=0.95):
    """Ask all rounds with Gaussian noise in place of the clients' shares."""
    found = Answers(plan)
    for server_round in range(1, plan.rounds + 1):
        if (ask := found.ask(server_round)) is None:
            break
        vector = ask.vector(columns, most)
        found.take(server_round, vector + noise * rng.normal(size=vector.size), noise)
    return {answer["name"]: answer for answer in found.results(level)}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.kind)
def test_no_row_moves_a_statistic_further_than_its_sensitivity(question):
    one, rng = statistic_of(question), np.random.default_rng(1)
    worst = 0.0
    for _ in range(200):
        wild = rng.choice([-1e300, -4.0, 0.0, 4.0, 1e300, rng.normal()], size=(3, 1))
        row = {"age": 30 * wild[0], "x": wild[1], "y": wild[2]}
        row["name"] = np.array([rng.choice(["anna", "zz", "ümlaut", "b"])])
        worst = max(worst, float(np.linalg.norm(one.sum(row))))
    assert worst <= one.sensitivity * (1 + 1e-12)
    assert worst >= 0.99 * one.sensitivity, "noise for more than any row can do"


def test_a_row_more_moves_what_a_client_sends_by_at_most_one():
    """Also where the client has more rows than count."""
    rng, full = np.random.default_rng(2), table(60)
    for parts in Plan(QUESTIONS).parts:
        ask = Ask(QUESTIONS, parts, {5: ("",)})
        for most in (1e9, 10.0):
            whole = ask.vector(full, most)
            keep = np.arange(60) != rng.integers(60)
            without = ask.vector({k: v[keep] for k, v in full.items()}, most)
            assert np.linalg.norm(whole - without) <= 1 + 1e-9
            assert np.linalg.norm(whole) <= most * (1 + 1e-12)


def test_each_question_costs_what_is_told_and_all_together_the_budget():
    plan, noise = Plan(QUESTIONS), gaussian_noise_multiplier(1.0, 1e-6) * math.sqrt(5)
    assert plan.rounds == 5
    assert all(sum(part.share for part in parts) == pytest.approx(1) for parts in plan.parts)
    told = plan.epsilons(noise, 1e-6)
    assert set(told) == {-1, *range(len(QUESTIONS))}
    squares = Counter()
    for parts in plan.parts:
        for part in parts:
            squares[part.question] += part.share
    for question, epsilon in told.items():
        mu = math.sqrt(squares[question]) / noise
        assert gaussian_delta(epsilon, mu) == pytest.approx(1e-6, rel=1e-3)
    assert gaussian_delta(1.0, math.sqrt(sum(squares.values())) / noise) <= 1e-6 * (1 + 1e-6)


def test_a_tree_is_the_least_squares_solution_and_knows_its_noise():
    rng, branches = np.random.default_rng(3), 3
    stds, sizes = [0.5, 2.0, 1.0, 3.0], [1, 3, 9, 27]
    levels = [rng.normal(size=size) for size in sizes]
    rows = np.concatenate([np.kron(np.eye(s), np.ones(27 // s)) for s in sizes])
    weights = np.repeat([1 / std for std in stds], sizes)
    solved = np.linalg.pinv(weights[:, None] * rows) * weights
    tree = Tree(levels, stds, branches)
    np.testing.assert_allclose(tree.leaves, solved @ np.concatenate(levels), atol=1e-12)
    assert tree.rows == pytest.approx(tree.leaves.sum())
    covariance = (solved * np.repeat(np.square(stds), sizes)) @ solved.T
    for q in (0.1, 0.5):
        before = np.tril(np.ones((28, 27)), -1) - q  # row e: the leaves before edge e, less q rows
        exact = np.sqrt(np.diag(before @ covariance @ before.T))
        np.testing.assert_allclose(tree.deviations(q), exact, rtol=1e-9)


def test_intervals_hold_the_truth_at_the_stated_rate():
    """1,000 runs; a rate of 0.9 gives fewer hits than these once in a million times."""
    middle = Quantiles(column="age", low=0, high=120, quantiles=(0.5,), depth=2)
    bins = Histogram(column="age", low=0, high=120, bins=4)
    plan = Plan((*QUESTIONS[:2], bins, middle, *QUESTIONS[4:5], QUESTIONS[6]))
    columns, rng, noise, runs = table(2000), np.random.default_rng(4), 6.0, 1000
    vector = (ask := plan.ask(1, {})).vector(columns, 1e9)
    age = np.clip(columns["age"], 0, 120)
    inside = np.clip(columns["x"], -4, 4), np.clip(columns["y"], -4, 4)
    ranks, hits = np.sort(age), Counter()
    truth = {
        ("rows", "rows"): 2000,
        ("mean of age", "mean"): age.mean(),
        ("variance of age", "variance"): age.var(),
        ("variance of age", "std"): age.std(),
        ("histogram of age", "bins", 3): np.histogram(age, 4, (0, 120))[0][3],
        ("counts of name", "values", 0): (columns["name"] == "anna").sum(),
        ("correlation of x, y", "pairs", 0): np.corrcoef(*inside)[0, 1],
    }
    quantiles = "quantiles of age"
    for _ in range(runs):
        found = Answers(plan)
        found.take(1, vector + noise * rng.normal(size=ask.size), noise)
        told = {answer["name"]: answer for answer in found.results(0.9)}
        for (name, *path), true in truth.items():
            one = told[name]
            for step in path:
                one = one[step]
            hits[name, *path] += one["low"] <= true <= one["high"]
        for one in told[quantiles]["quantiles"]:
            low = np.searchsorted(ranks, one["low"], "left")
            high = np.searchsorted(ranks, one["high"], "right")
            hits[quantiles, one["quantile"]] += low <= one["quantile"] * 2000 <= high
    least = binom.ppf(1e-6, runs, 0.9)
    assert len(hits) == len(truth) + 1
    assert min(hits.values()) >= least, hits
    exact = ("rows", "rows"), ("mean of age", "mean"), ("histogram of age", "bins", 3)
    assert all(hits[one] <= binom.ppf(1 - 1e-6, runs, 0.9) for one in exact), "wider than stated"


def test_a_ratio_of_which_the_noise_leaves_nothing_is_the_whole_range():
    for bottom in (-5.0, 0.0, 1.0):
        found = ratio(0.3, 1.0, bottom, 1.0, 0.95, -1.0, 1.0)
        assert (found.low, found.high) == (-1.0, 1.0)
        assert -1 <= found.value <= 1


def test_a_quantile_of_100_000_rows_is_right_to_one_percent_of_rank_at_epsilon_one():
    """The noise is 40 times smaller than allowed: a failure is beyond 10 standard deviations."""
    plan = Plan((Quantiles(column="age", low=0, high=120),))
    ages = table(100_000)["age"]
    noise = gaussian_noise_multiplier(1.0, 1e-6)
    told = answers_of(plan, {"age": ages}, noise, np.random.default_rng(5))
    for one in told["quantiles of age"]["quantiles"]:
        rank = (ages < one["value"]).mean()
        assert abs(rank - one["quantile"]) < 0.01
        assert one["low"] <= np.quantile(ages, one["quantile"]) <= one["high"]


def test_a_private_quantile_of_norms_is_a_clip_norm():
    """Each of 1,000 clients has one row, the norm of its update; as docs/analytics.md says."""
    norms = np.random.default_rng(8).gamma(4, 0.5, 1000)
    plan = Plan((Quantiles(column="norm", low=0, high=10, quantiles=(0.5,), depth=3),))
    ask = plan.ask(1, {})
    total = sum(ask.vector({"norm": norm[None]}, 1.0) for norm in norms)
    noise, rng = gaussian_noise_multiplier(2.0, 1e-6), np.random.default_rng(9)
    found = Answers(plan)
    found.take(1, total + noise * rng.normal(size=ask.size), noise)
    clip_norm = found.results(0.95)[1]["quantiles"][0]["value"]
    assert abs((norms < clip_norm).mean() - 0.5) < 0.05


def test_frequent_texts_are_found_and_rare_ones_are_not_made_up():
    told = answers_of(Plan(QUESTIONS[5:6]), table(20_000), 5.0, np.random.default_rng(6))
    words = told["heavy_hitters of name"]["words"]
    names = table(20_000)["name"]
    assert [(w["text"], w["whole"]) for w in words] == [
        ("anna", True), ("bob", True), ("bobby", False), ("carla", False),
    ]  # fmt: skip
    for word in words:
        assert word["low"] <= (names == word["text"]).sum() <= word["high"]


def test_a_column_that_nobody_has_ends_the_rounds_early():
    plan = Plan(QUESTIONS[5:6])
    found = Answers(plan)
    ask = found.ask(1)
    found.take(1, np.zeros(ask.size), 1.0)
    assert found.ask(2) is None
    (_, words) = found.results(0.95)
    assert words["words"] == []


def test_questions_travel_as_text():
    ask = Plan(QUESTIONS).ask(2, {5: ("an", "bo")})
    assert Ask.decode(ask.encode()) == ask


@pytest.mark.parametrize(
    "change",
    [
        {"parts": [[0, 0.5], [0, 0.5]]},
        {"parts": [[0, 0.8], [-1, 0.8]]},
        {"parts": [[0, -0.1]]},
        {"parts": [[0, True]]},
        {"parts": [[0, math.nan]]},
        {"parts": [[7, 0.5]]},
        {"parts": []},
        {"parts": 3},
        {"questions": [{"kind": "rows"}]},
        {"questions": [{"kind": ["mean"]}]},
        {"questions": [3]},
        {"questions": [QUESTIONS[0].to_dict() | {"low": 200.0}]},
        {"questions": [QUESTIONS[0].to_dict() | {"other": 1}]},
        {"beginnings": {"0": ["a", "bb"]}},
        {"beginnings": {"0": ["a", "a"]}},
        {"beginnings": {"0": []}},
        {"beginnings": []},
    ],
    ids=str,
)
def test_a_client_refuses_questions_that_are_none(change):
    values = {
        "questions": [QUESTIONS[0].to_dict()],
        "parts": [[0, 0.5], [-1, 0.5]],
        "beginnings": {},
    }
    assert Ask.decode(json.dumps(values)).size == 2
    with pytest.raises(ConfigError):
        Ask.decode(json.dumps(values | change))


@pytest.mark.parametrize("text", [None, 3, "", "[", "[]", "{}", "null", '"a"'])
def test_a_client_refuses_texts_that_are_none(text):
    with pytest.raises(ConfigError, match="cannot be read"):
        Ask.decode(text)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "mean", "column": "a", "low": 2, "high": 1}, "low is 2 and high 1"),
        ({"kind": "mean", "column": "a", "low": 1, "high": 1}, "low must be less than high"),
        ({"kind": "mean", "column": "a", "low": "0", "high": 1}, "low is '0'"),
        ({"kind": "mode", "column": "a"}, "allowed are mean, variance"),
        ({"kind": "counts", "column": "a", "values": []}, "each once"),
        ({"kind": "quantiles", "column": "a", "low": 0, "high": 1, "quantiles": [1.0]}, "< 1"),
        ({"kind": "heavy_hitters", "column": "a", "letters": "aa"}, "each once"),
        ({"kind": "correlation", "columns": ["a"], "low": [0], "high": [1]}, "2 to 100"),
    ],
)
def test_errors_of_questions_say_what_is_allowed(values, told):
    kind = values["kind"]
    defaults = {
        "name": None, "weight": 1.0, "bins": 10, "depth": 4, "max_length": 10, "most": 100,
        "letters": "ab", "false_share": 0.01, "quantiles": (0.5,), "column": "", "values": (),
    }  # fmt: skip
    made = {"mean": Mean, "counts": Counts, "quantiles": Quantiles, "heavy_hitters": HeavyHitters}
    made["correlation"] = Correlation
    if kind in made:
        known = set(made[kind].__dataclass_fields__)
        values = {k: v for k, v in defaults.items() if k in known} | values
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        question_of(values)


def test_questions_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="a name of its own"):
        Plan((QUESTIONS[0], QUESTIONS[0]))
    with pytest.raises(ConfigError, match="for numbers and for texts"):
        Plan((QUESTIONS[0], Counts(column="age", values=("a",))))
    with pytest.raises(ConfigError, match="smaller depth"):
        Plan(tuple(Quantiles(column=f"c{i}", low=0, high=1, depth=6) for i in range(20)))
    with pytest.raises(ConfigError, match="at most 1"):
        Ask(QUESTIONS[:1], (Part(0, 1.5),), {})


@pytest.mark.parametrize("ends", [(0.0, 5e-324), (-5e-324, 0.0), (1.0, 0.0), (-1.7e308, 1.7e308)])
@pytest.mark.parametrize("kind", ["mean", "variance", "histogram", "quantiles"])
def test_bounds_that_make_no_number_of_some_values_are_refused(kind, ends):
    """A client that cannot answer if one of its values is 0 would tell that without any noise."""
    told = {**next(q for q in QUESTIONS if q.kind == kind).to_dict(), "low": ends[0]}
    with pytest.raises(ConfigError, match="low must be less than high"):
        question_of({**told, "high": ends[1]})
